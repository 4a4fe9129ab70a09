"""The last segments are looked after before the timer is: the tail probe (RFC 8985, 7)."""

import pytest

from qemu_usernat.nat.tcp.tail_probe import TAIL_PROBE_DELAYED_ACK, TAIL_PROBE_MINIMUM
from qemu_usernat.wire.packets import ACK, FIN
from tests.nat.tcp.conversation import MSS, Conversation
from tests.nat.tcp.selective import PATIENCE, ROUND_TRIP, STREAM, block, got, numbers, opened, says


def test_a_lost_tail_is_probed_for_before_the_timer() -> None:
    """RFC 8985, 7.2: after two round trips, once; what its ACK tells repairs the rest."""
    talk = opened()
    first = says(talk, 4)
    talk.now -= ROUND_TRIP
    talk.advance(2 * ROUND_TRIP * 0.99)
    talk.guest.gets_nothing()
    talk.advance(2 * ROUND_TRIP * 0.02)
    assert numbers(talk, first) == [3]
    assert talk.counters["tcp.tail_probe"] == 1
    talk.now += ROUND_TRIP
    talk.guest.sends(ACK, ack=first, selective=[block(first, 3, 4)])
    talk.advance(2 * PATIENCE)
    assert numbers(talk, first) == [0, 1, 2]
    assert talk.counters["tcp.tail_probe"] == 1
    assert talk.counters["tcp.retransmission_timeout"] == 0


def test_an_alarm_that_comes_late_probes_the_tail_all_the_same() -> None:
    """The loop has more to do than to wake one flow."""
    talk = opened()
    first = says(talk, 4)
    talk.now = talk.flow.deadline() + 0.001
    talk.flow.on_deadline(talk.now)
    talk.end_turn()
    assert numbers(talk, first) == [3]


def test_no_tail_is_probed_beyond_a_window_that_has_shrunk() -> None:
    """The guest would throw it away; the timer repeats what there is room for."""
    talk = opened(scale=0)
    first = says(talk, 4)
    talk.guest.sends(ACK, ack=first, window=2 * MSS)
    talk.advance(2 * ROUND_TRIP)
    talk.guest.gets_nothing()
    talk.advance(0.1)
    assert numbers(talk, first) == [0]


def test_one_probe_and_then_the_timer() -> None:
    """If it is lost, too: RFC 8985, 7.2, and RFC 6298, 5, counted from the probe."""
    talk = opened()
    first = says(talk, 4)
    talk.advance(0.4)
    assert numbers(talk, first) == [3, 0]
    assert talk.counters["tcp.tail_probe"] == 1
    assert talk.counters["tcp.retransmission_timeout"] == 1


def test_a_timeout_ends_the_probe_and_the_next_tail_is_probed_for() -> None:
    """One probe for each flight (RFC 8985, 7.2): one that the timer ended is past."""
    talk = opened()
    says(talk, 4)
    talk.advance(0.4)
    got(talk)
    talk.guest.sends(ACK)
    first = says(talk, 4)
    talk.now -= ROUND_TRIP
    talk.advance(2.02 * ROUND_TRIP)
    assert numbers(talk, first) == [3]
    assert talk.counters["tcp.tail_probe"] == 2


def test_an_ack_that_may_be_delayed_is_waited_for() -> None:
    """A single segment is acknowledged when the guest likes: 200 ms later, which is when the timer
    rings (RFC 8985, 7.2)."""
    talk = opened()
    sent_at = talk.now
    first = says(talk, 1)
    talk.advance(0.9 * (2 * ROUND_TRIP + TAIL_PROBE_DELAYED_ACK) - ROUND_TRIP)
    assert not talk.counters["tcp.tail_probe"]
    assert talk.flow.sender.retransmit_at >= sent_at + 0.2
    got(talk)
    assert first == MSS


def test_a_near_guest_is_not_probed_at_once() -> None:
    """Round trips of microseconds: a guest has more to do than to answer."""
    talk = Conversation.open(selective=True)
    talk.host.says(STREAM[: 4 * MSS])
    got(talk)
    talk.advance(0.9 * TAIL_PROBE_MINIMUM)
    talk.guest.gets_nothing()
    talk.advance(0.2 * TAIL_PROBE_MINIMUM)
    assert numbers(talk, 0) == [3]


def test_no_tail_probe_while_something_is_repaired() -> None:
    """The guest has spoken: what it lacks is known."""
    talk = opened()
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 4)])
    assert numbers(talk, first) == [0]
    talk.advance(0.19)
    talk.guest.gets_nothing()


def test_no_tail_probe_before_the_repair_has_ended() -> None:
    """The hole is filled, but of what was sent when it was seen something is still on its way."""
    talk = opened()
    first = says(talk, 8)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 4)])
    assert numbers(talk, first) == [0]
    talk.guest.sends(ACK, ack=first + 4 * MSS)
    talk.advance(0.19)
    talk.guest.gets_nothing()


def test_no_second_probe_while_the_first_is_not_answered() -> None:
    """RFC 8985, 7.2: what is new meanwhile waits for the timer."""
    talk = opened()
    first = says(talk, 4)
    talk.advance(0.05)
    assert numbers(talk, first) == [3]
    talk.host.says(STREAM[first + 4 * MSS :][: 2 * MSS])
    assert numbers(talk, first) == [4, 5]
    talk.advance(0.15)
    talk.guest.gets_nothing()


@pytest.mark.parametrize("needless", ["", "told", "not told"])
def test_a_probe_that_repaired_a_loss_is_a_loss(needless: str) -> None:
    """RFC 8985, 7.4: reno sends less then. Unless the probe came twice, be that told by the very
    ACK that tells of more; or by an ACK twice, from guests that tell nothing of it."""
    talk = opened(congestion="reno")
    for segments in (10, 10):
        says(talk, segments)
        talk.guest.sends(ACK)
    window = talk.flow.sender.congestion.window
    first = says(talk, 10)
    talk.advance(ROUND_TRIP * 1.1)
    assert numbers(talk, first) == [9]
    talk.host.says(STREAM[first + 10 * MSS :][:MSS])
    assert numbers(talk, first) == [10]
    talk.now += ROUND_TRIP
    if needless == "not told":
        talk.guest.sends(ACK, ack=first + 10 * MSS)
        talk.guest.sends(ACK, ack=first + 10 * MSS)
    blocks = [block(first, 9, 10)] if needless == "told" else []
    talk.guest.sends(ACK, ack=first + 11 * MSS, selective=blocks)
    if needless:
        assert talk.flow.sender.congestion.window >= window
    else:
        assert talk.flow.sender.congestion.window == 5 * MSS


def test_our_fin_is_the_tail() -> None:
    """A lost FIN is asked after by itself."""
    talk = opened()
    says(talk, 2)
    talk.now -= ROUND_TRIP
    talk.host.ends()
    talk.guest.gets(FIN | ACK)
    talk.advance(0.1)
    talk.guest.gets(FIN | ACK)
    talk.guest.gets_nothing()
    assert talk.counters["tcp.tail_probe"] == 1
