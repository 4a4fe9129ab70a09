"""Selective acknowledgments in a conversation (RFC 2018, RFC 2883), and what follows from them.

Towards the guest: what it says it has is not sent again, what it lacks is repaired within a
round trip (RFC 6675, RFC 8985), and how much is sent then is the congestion control's. From the
guest: it is told what has arrived beyond a gap, and what has come twice.
"""

import random

import pytest

from qemu_usernat.nat.tcp.congestion import CUBIC_BETA
from qemu_usernat.wire.packets import ACK, PSH, SYN
from tests.nat.tcp.conversation import MSS, Conversation, Segment

STREAM = random.Random(2018).randbytes(1 << 21)
ROUND_TRIP = 0.04
PATIENCE = ROUND_TRIP / 4
"""What a segment may be overtaken by at first: a quarter of a round trip (RFC 8985, 6.2)."""


def opened(**options: int | str) -> Conversation:
    """A guest with selective acknowledgments, 40 ms away, that has got one segment."""
    talk = Conversation(selective=True, **options)  # type: ignore[arg-type]
    talk.host.connects()
    talk.now += ROUND_TRIP
    talk.guest.gets(SYN | ACK)
    talk.guest.sends(ACK)
    says(talk, 1)
    talk.guest.sends(ACK)
    talk.guest.gets_nothing()
    return talk


def says(talk: Conversation, segments: int) -> int:
    """The server writes so many full segments, which leave at once; where the first one is."""
    first = talk.guest.expects
    talk.host.says(STREAM[first : first + segments * MSS])
    for number in range(segments):
        talk.guest.gets(ACK, at=first + number * MSS)
    talk.guest.gets_nothing()
    talk.now += ROUND_TRIP
    return first


def block(first: int, start: int, end: int) -> tuple[int, int]:
    """The segments from number `start` to before number `end`, counted from position `first`."""
    return first + start * MSS, first + end * MSS


def got(talk: Conversation) -> list[Segment]:
    """What the guest gets now, checked against the stream."""
    segments = talk.guest.loses_everything()
    for segment in segments:
        assert segment.payload == STREAM[segment.at : segment.end]
    return segments


def numbers(talk: Conversation, first: int) -> list[int]:
    """Which segments come now, counted from `first`."""
    return [(segment.at - first) // MSS for segment in got(talk)]


# -- what the guest lacks


def test_everything_acknowledged_leaves_nothing_to_be_judged() -> None:
    """A segment that was overtaken arrives after all: no alarm for it rings any more."""
    talk = opened()
    first = says(talk, 3)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 3)])
    assert talk.flow.deadline() == pytest.approx(talk.now + PATIENCE)
    talk.guest.sends(ACK)
    assert talk.flow.deadline() > talk.now + 60
    talk.advance(60)
    talk.guest.gets_nothing()


@pytest.mark.parametrize("selective", [False, True])
def test_a_long_exchange_leaves_nothing_behind(selective: bool) -> None:
    """Request and answer, a thousand times: what was acknowledged is forgotten."""
    talk = Conversation.open(selective=selective)
    for _ in range(1000):
        talk.guest.sends(ACK | PSH, b"?")
        talk.host.says(b"!")
        talk.guest.gets(ACK)
    talk.guest.sends(ACK)
    scoreboard = talk.flow.sender.scoreboard
    assert not scoreboard._transmissions
    assert not scoreboard._runs


@pytest.mark.parametrize(
    ("congestion", "share"), [("none", None), ("reno", 0.5), ("cubic", CUBIC_BETA)]
)
def test_a_loss_is_answered_by_a_share_of_what_was_in_flight(
    congestion: str, share: float | None
) -> None:
    """RFC 5681, 3.2, and RFC 9438, 4.6, though all the ACKs of a flight come in one turn: the
    lost segment and as many new ones as the control allows."""
    talk = opened(congestion=congestion)
    for segments in (10, 10, 20):
        says(talk, segments)
        talk.guest.sends(ACK)
    first = says(talk, 20)
    with talk.turn():
        for end in range(2, 21):
            talk.guest.sends(ACK, ack=first, selective=[block(first, 1, end)])
    assert numbers(talk, first) == [0]
    talk.host.says(STREAM[first + 20 * MSS :][: 100 * MSS])
    sent = 1 + len(got(talk))
    assert sent == (20 * share if share else 101)
