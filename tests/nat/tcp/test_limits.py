"""The limits of the engine: as they are written, and what is done at their borders."""

import pytest

from qemu_usernat.nat.holdings import Holdings
from qemu_usernat.nat.tcp.guest_half import (
    CHALLENGE_INTERVAL,
    SINGLE_ACKS,
    TIME_WAIT,
    TURN_ACKS,
)
from qemu_usernat.nat.tcp.output import DELAYED_ACK
from qemu_usernat.nat.tcp.reordering import ROUNDS
from qemu_usernat.nat.tcp.reordering import STEPS_MAXIMUM as PATIENCE_MAXIMUM
from qemu_usernat.nat.tcp.retained import JOINED_BELOW
from qemu_usernat.nat.tcp.scoreboard import RUNS_MAXIMUM
from qemu_usernat.nat.tcp.sender import (
    DUPLICATE_ACKS,
    MSS_DEFAULT,
    MSS_MINIMUM,
    RETRANSMISSIONS_MAXIMUM,
    TAKEN_AT_ONCE,
)
from qemu_usernat.nat.tcp.tail_probe import (
    TAIL_PROBE_DELAYED_ACK,
    TAIL_PROBE_MINIMUM,
)
from qemu_usernat.nat.tcp.window import STEPS_MAXIMUM, UNANSWERED_MAXIMUM
from qemu_usernat.wire.packets import ACK, RST
from tests.nat.tcp.conversation import MSS, Conversation


@pytest.mark.parametrize(
    ("limit", "written"),
    [
        (CHALLENGE_INTERVAL, 0.1),
        (TIME_WAIT, 10.0),
        (DELAYED_ACK, 0.005),
        (TAIL_PROBE_MINIMUM, 0.01),
        (TAIL_PROBE_DELAYED_ACK, 0.2),
        (SINGLE_ACKS, 64),
        (TURN_ACKS, 4),
        (ROUNDS, 16),
        (PATIENCE_MAXIMUM, 64),
        (STEPS_MAXIMUM, 9),
        (UNANSWERED_MAXIMUM, 15),
        (DUPLICATE_ACKS, 3),
        (RETRANSMISSIONS_MAXIMUM, 15),
        (MSS_DEFAULT, 536),
        (MSS_MINIMUM, 88),
        (TAKEN_AT_ONCE, 262_144),
        (JOINED_BELOW, 4096),
        (RUNS_MAXIMUM, 4096),
    ],
)
def test_a_limit_is_what_is_written(limit: float, written: float) -> None:
    """Whoever changes one has thought of who relies on it."""
    assert limit == written


def test_a_challenge_each_tenth_of_a_second() -> None:
    """RFC 5961, 7: not one more within it, and the next one when it is over."""
    talk = Conversation.open()
    for waits, answers in ((0.0, 1), (0.0996, 0), (0.0004, 1)):
        talk.now += waits
        talk.guest.sends(RST, at=1)
        assert len(talk.guest.loses_everything()) == answers


@pytest.mark.parametrize(("offered", "sent"), [(537, 536), (1459, 1458), (1460, 1460)])
def test_segments_are_of_even_length(offered: int, sent: int) -> None:
    """Never longer than the guest wants, and such that checksums of many can be summed at once."""
    talk = Conversation.open(mss=offered)
    talk.host.says(bytes(3 * offered))
    assert len(talk.guest.gets().payload) == sent


def test_a_window_is_used_in_segments_or_halves() -> None:
    """RFC 9293, 3.8.6.2.1: less would make the segments of this connection ever smaller."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(bytes(400))
    assert talk.flow.room() == 600
    talk.host.says(bytes(200))
    assert talk.flow.room() == 0, "less than half is left, and more is on its way"


@pytest.mark.parametrize("usable", [TAKEN_AT_ONCE, TAKEN_AT_ONCE + 1])
def test_what_is_taken_at_once_fills_segments(usable: int) -> None:
    """Less than a segment would be left over, though there is a window for more."""
    sender = Conversation.open().flow.sender
    sender.window.edge = usable
    assert sender.room() == TAKEN_AT_ONCE // MSS * MSS


@pytest.mark.parametrize(("octets", "grows"), [(7299, False), (7300, True)])
def test_a_congestion_window_grows_while_it_is_used(octets: int, grows: bool) -> None:
    """RFC 7661, 4.4: half of it, at least; else nothing shows that the path carries more."""
    talk = Conversation.open(congestion="reno")
    before = talk.flow.sender.congestion.window
    talk.host.says(bytes(octets))
    talk.guest.loses_everything()
    talk.guest.sends(ACK, ack=octets)
    assert (talk.flow.sender.congestion.window > before) is grows


def test_what_a_server_has_said_counts_at_once() -> None:
    """Not only when the turn ends: many servers may speak in one."""
    talk = Conversation.open()
    talk.flow.holdings = holdings = Holdings()
    talk.flow.account()
    before = holdings.octets
    talk.flow.on_host_data(memoryview(bytes(1000)), 1000, talk.now)
    assert holdings.octets == before + 1000
    talk.flow.account()
    assert holdings.octets == before + 1000
