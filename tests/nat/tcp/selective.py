"""A guest with selective acknowledgments, 40 ms away, and a server that writes full segments."""

import random

from qemu_usernat.wire.packets import ACK, SYN
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
