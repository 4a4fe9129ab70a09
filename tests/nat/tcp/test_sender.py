"""The host's octets reach the guest within its window, and are repeated until acknowledged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.nat.tcp.congestion import FLIGHT_MAXIMUM
from qemu_usernat.nat.tcp.rtt import RTO_MAXIMUM
from qemu_usernat.nat.tcp.scoreboard import RUNS_MAXIMUM
from qemu_usernat.nat.tcp.sender import RETRANSMISSIONS_MAXIMUM
from qemu_usernat.primitives.sequence import MODULUS, add
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.packets import FIN, PSH
from tests.nat.tcp.bench import MSS, STREAM, bench


def test_segments_are_full_and_the_last_one_is_pushed() -> None:
    """passt ec5c4d9: PSH on the last segment of a batch, and there alone."""
    b = bench()
    assert b.host_says(2500) == 2500
    assert [(p, len(o), f) for p, o, f in b.sent] == [
        (0, 1000, 0),
        (1000, 1000, 0),
        (2000, 500, PSH),
    ]
    assert b"".join(octets for _, octets, _ in b.sent) == STREAM[:2500]


def test_not_an_octet_beyond_the_window() -> None:
    """The window is 2500 octets: that much is asked of the host, and sent."""
    b = bench(window=2500)
    assert b.host_says(9999) == 2500
    assert b.lengths() == [(0, 1000), (1000, 1000), (2000, 500)]
    assert b.sender.room() == 0


def test_a_syns_window_is_not_scaled_and_all_others_are() -> None:
    """RFC 7323, 2.2 and 2.3."""
    b = bench(window=100, scale=3)
    assert b.sender.room() == 100
    b.sender.on_window(1, 0, 100)
    assert b.sender.room() == 800


def test_a_silly_window_is_not_used_while_more_is_coming() -> None:
    """RFC 9293, 3.8.6.2.1: with octets in flight, less than a segment waits."""
    b = bench(window=4 * MSS)
    b.host_says(3900)
    assert b.sender.room() == 0
    b.acknowledges(1000, 4 * MSS)
    assert b.sender.room() == 1100


def test_a_silly_window_is_used_when_nothing_else_is_in_flight() -> None:
    """A guest whose whole buffer is small would otherwise wait for ever."""
    b = bench(window=10)
    assert b.host_says(100) == 10


def test_a_flight_is_bounded_whatever_the_guest_offers() -> None:
    """A window of a gigabyte would have the host keep a gigabyte for a guest that never answers."""
    b = bench(window=0xFFFF, scale=14)
    b.sender.on_window(1, 0, 0xFFFF)
    said = 0
    while (room := b.sender.room()) > 0:
        b.sender.take(bytes(room), room)
        b.pump()
        said += room
    assert said == FLIGHT_MAXIMUM
    b.acknowledges(MSS, 0xFFFF)
    assert b.sender.room() == MSS


@pytest.mark.parametrize("isn", [0, MODULUS - 1, MODULUS - 1500])
def test_acknowledgments_count_across_the_wrap(isn: int) -> None:
    """Sequence numbers wrap, positions do not."""
    b = bench(isn=isn)
    b.host_says(3000)
    assert b.sender.sequence_of(2000) == add(isn, 2001)
    assert b.sender.position_of(add(isn, 2001)) == 2000
    b.acknowledges(2000, 5000)
    assert b.sender.position_of(add(isn, 3001)) == 3000
    assert b.sender.in_flight
    b.acknowledges(3000, 5000)
    assert not b.sender.in_flight
    assert b.sender.retransmit_at == NEVER


def test_an_older_segment_does_not_bring_back_its_window() -> None:
    """RFC 9293, 3.10.7.4: SND.WL1 and SND.WL2, for segments that overtook each other."""
    b = bench()
    b.host_says(1000)
    b.sender.on_window(50, 1000, 9000)
    assert not b.sender.on_window(49, 1000, 100)
    assert not b.sender.on_window(50, 500, 100)
    assert b.sender.window.edge == 10_000
    assert b.sender.on_window(50, 1000, 100), "the guest may shrink it"
    assert b.sender.window.edge == 1100
    assert b.sender.on_window(51, 500, 100), "a later segment, whatever it acknowledges"
    assert b.sender.window.edge == 600


def test_a_timeout_starts_again_with_one_segment() -> None:
    """RFC 6298, 5.4 to 5.6, and RFC 5681, 3.1: one segment, then twice as much per round."""
    b = bench()
    b.host_says(5000)
    b.lengths()
    first = b.sender.retransmit_at - b.now
    assert b.times_out()
    assert b.lengths() == [(0, 1000)]
    assert b.sender.retransmit_at - b.now == pytest.approx(2 * first)
    b.acknowledges(1000, 10 * MSS)
    assert b.lengths() == [(1000, 1000), (2000, 1000)]
    b.acknowledges(3000, 10 * MSS)
    assert b.lengths() == [(3000, 1000), (4000, 1000)]


def test_a_late_acknowledgment_ends_the_repetition() -> None:
    """The timeout was in error: what is acknowledged is not sent again."""
    b = bench()
    b.host_says(5000)
    b.times_out()
    b.lengths()
    b.acknowledges(5000, 10 * MSS)
    assert b.lengths() == []
    assert b.sender.retransmit_at == NEVER
    assert b.sender.room() == 6000, "slow start: one segment, and what was acknowledged"


def test_each_timeout_waits_twice_as_long_and_the_last_gives_up() -> None:
    """R2 of RFC 9293, 3.8.3, is at least 100 seconds."""
    b = bench()
    b.host_says(100)
    start, waits = b.now, []
    while True:
        before = b.now
        if not b.times_out():
            break
        waits.append(b.now - before)
    assert waits[:4] == [1, 2, 4, 8]
    assert max(waits) == RTO_MAXIMUM
    assert len(waits) == RETRANSMISSIONS_MAXIMUM
    assert b.now - start >= 100


def test_what_was_sent_twice_is_not_measured() -> None:
    """Karn's rule (RFC 6298, 3): nobody knows which of the two was acknowledged."""
    b = bench()
    b.host_says(1000)
    b.times_out()
    b.now += 0.05
    b.acknowledges(1000, 10 * MSS)
    assert b.sender.round_trip.smoothed is None
    b.host_says(1000)
    b.now += 0.05
    b.acknowledges(2000, 10 * MSS)
    assert b.sender.round_trip.smoothed == pytest.approx(0.05)


def test_three_duplicates_repeat_the_first_segment_at_once() -> None:
    """RFC 5681, 3.2; RFC 6582: a partial acknowledgment repeats the next hole."""
    b = bench(congestion="reno")
    b.host_says(8000)
    b.lengths()
    for _ in range(2):
        b.acknowledges(0, 10 * MSS)
    assert b.lengths() == []
    b.acknowledges(0, 10 * MSS)
    assert b.lengths() == [(0, 1000)]
    for _ in range(4):
        b.acknowledges(0, 10 * MSS)
    assert b.lengths() == [], "once is enough"
    b.acknowledges(4000, 6 * MSS)
    assert b.lengths() == [(4000, 1000)]
    b.acknowledges(8000, 10 * MSS)
    assert b.lengths() == []
    assert b.sender.room() == 4 * MSS, "half of what was in flight when the loss was seen"


def test_a_changed_window_is_no_duplicate() -> None:
    """RFC 5681, 2: the same ACK with another window is a window update."""
    b = bench()
    b.host_says(5000)
    b.lengths()
    for window in (9000, 8000, 7000, 6000):
        b.acknowledges(0, window)
    assert b.lengths() == []


def test_the_fin_comes_after_the_last_octet_and_is_repeated() -> None:
    """passt 2e3d93b: a FIN is retransmitted like an octet."""
    b = bench()
    b.host_says(1500)
    b.sender.fin_queued = True
    b.pump()
    b.pump()
    assert [(p, len(o), f) for p, o, f in b.sent][-1] == (1500, 0, FIN)
    assert len(b.sent) == 3
    b.acknowledges(1500, 10 * MSS)
    b.lengths()
    b.times_out()
    assert b.sent == [(1500, b"", FIN)]
    b.acknowledges(1501, 10 * MSS)
    assert not b.sender.in_flight
    assert b.sender.retransmit_at == NEVER
    assert b.sender.room() == 0


def test_a_lost_fin_with_its_octets_is_found_in_order() -> None:
    """After a timeout the octets come first, then the FIN."""
    b = bench()
    b.host_says(1500)
    b.sender.fin_queued = True
    b.pump()
    b.lengths()
    b.times_out()
    assert b.lengths() == [(0, 1000)]
    b.acknowledges(1000, 10 * MSS)
    assert b.lengths() == [(1000, 500), (1500, 0)]


def test_a_fin_waits_behind_octets_that_the_window_keeps() -> None:
    """No FIN before its data; into a closed window, alone, it is its own probe."""
    b = bench(window=1000)
    b.host_says(1000)
    b.sender.fin_queued = True
    b.pump()
    assert b.lengths() == [(0, 1000)]
    b.acknowledges(1000, 0)
    for _ in range(3):
        assert b.lengths() == [(1000, 0)]
        b.times_out()


def test_octets_taken_before_the_window_shrank_wait_for_it() -> None:
    """They were read for a window that is no more: to the octet, they are held back."""
    b = bench(window=1000)
    b.host_says(1000)
    b.sender.on_window(1, 0, 3000)
    b.sender.take(STREAM[1000:3000], 2000)
    b.acknowledges(1000, 500)
    b.lengths()
    b.acknowledges(1000, 500)
    assert b.lengths() == []
    b.acknowledges(1500, 500)
    assert b.lengths() == [(1500, 500)]


def test_a_shrunk_window_holds_new_octets_back() -> None:
    """passt e86d480: nothing new is sent until the guest has room; what is lost is repeated."""
    b = bench(window=5000)
    b.host_says(4000)
    b.lengths()
    b.acknowledges(1000, 1000)
    assert b.lengths() == []
    assert b.sender.room() == 0
    b.acknowledges(2000, 0)
    assert b.sender.retransmit_at != NEVER, "what was in flight is still owed"
    for _ in range(3):
        assert b.times_out()
        assert b.lengths() == [(2000, 1000)]
    b.acknowledges(2000, 3000)
    b.acknowledges(4000, 3000)
    assert b.sender.room() == 3 * MSS, "slow start: one segment, and what was acknowledged"


def test_a_closed_window_is_probed_for_as_long_as_the_guest_answers() -> None:
    """RFC 9293, 3.8.6.1: the first probe after an RTO, then ever more rarely, never giving up."""
    b = bench(window=1000)
    b.host_says(1000)
    b.acknowledges(1000, 0)
    b.sender.data_waiting = True
    b.sender.arm_probe(b.now)
    assert b.sender.window.probe_at > b.now
    for _ in range(5 * RETRANSMISSIONS_MAXIMUM):
        b.now = b.sender.window.probe_at
        assert b.sender.on_probe_sent(b.now)
        b.acknowledges(1000, 0)
        assert b.now < b.sender.window.probe_at <= b.now + RTO_MAXIMUM
    b.acknowledges(1000, 500)
    assert b.sender.window.probe_at == NEVER
    assert b.host_says(500) == 500


def test_probes_that_nothing_answers_wait_longer_and_come_to_an_end() -> None:
    """The guest is dead, not busy."""
    b = bench(window=0)
    b.sender.data_waiting = True
    b.sender.arm_probe(b.now)
    waits = []
    while True:
        waits.append(b.sender.window.probe_at - b.now)
        b.now = b.sender.window.probe_at
        if not b.sender.on_probe_sent(b.now):
            break
    assert waits[:4] == [1, 2, 4, 8]
    assert sum(waits) >= 100


@given(
    isn=st.sampled_from([0, MODULUS - 1, MODULUS - 5000]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["say", "ack", "same", "shrink", "timeout", "fin"]),
            st.integers(0, 6000),
        ),
        max_size=60,
    ),
)
def test_whatever_the_guest_answers(isn: int, steps: list[tuple[str, int]]) -> None:
    """Over any history: the octets are the stream's, nothing new is beyond the window, and
    there is a timer whenever something is in flight or is kept by a window."""
    b = bench(window=3000, isn=isn)
    sender = b.sender
    highest = 0
    for action, number in steps:
        edge_before = sender.window.edge
        b.now += 0.01
        if action == "say":
            if b.host_says(number) < number and not sender.fin_queued:
                sender.data_waiting = not sender.room()
        elif action == "fin":
            sender.fin_queued, sender.data_waiting = True, False
            b.pump()
        elif action == "ack":
            b.acknowledges(min(sender.next, sender.acknowledged + number), 3000)
        elif action == "same":
            b.acknowledges(sender.acknowledged, max(0, sender.window.edge - sender.acknowledged))
        elif action == "shrink":
            b.acknowledges(sender.acknowledged, number % 3000)
        elif sender.retransmit_at != NEVER:
            b.times_out()
            sender.retransmissions = 0
        sender.arm_probe(b.now)
        edge = max(edge_before, sender.window.edge)
        for position, octets, flags in b.sent:
            stop = position + len(octets)
            assert octets == STREAM[position:stop]
            assert len(octets) <= MSS
            assert stop <= max(highest, edge)
            if flags & FIN:
                assert position == sender.end
            highest = max(highest, stop)
        b.sent.clear()
        if sender.in_flight:
            assert sender.retransmit_at <= b.now + RTO_MAXIMUM
        elif (sender.data_waiting or sender.next < sender.end) and not sender.room():
            assert sender.window.probe_at <= b.now + RTO_MAXIMUM
        if not sender.in_flight:
            assert sender.retransmit_at == NEVER


def test_a_server_that_writes_octet_by_octet_costs_no_more_than_its_octets() -> None:
    """Retained as one, and repeated as full segments."""
    b = bench(window=60_000)
    for _ in range(20_000):
        b.host_says(1)
    assert len(b.sender.retained.chunks) <= 10
    b.lengths()
    b.times_out()
    assert b.lengths() == [(0, 1000)]


def test_what_follows_a_large_write_does_not_copy_it() -> None:
    """Small writes are joined with each other; a hundred copies of 50,000 octets are not made."""
    b = bench(window=60_000)
    b.host_says(50_000)
    large = b.sender.retained.chunks[0][1]
    for _ in range(100):
        b.host_says(1)
    assert len(b.sender.retained.chunks) == 2
    assert b.sender.retained.chunks[0][1] is large


def test_the_tail_is_what_was_sent_last_not_what_waits_for_the_window() -> None:
    """RFC 8985, 7.3: what the window keeps back is no tail."""
    b = bench(window=1000, selective=True)
    b.host_says(1000)
    b.now += 0.01
    b.acknowledges(1000, 4000)
    b.sender.take(STREAM[1000:5000], 4000)
    b.acknowledges(1000, 2500)
    assert b.lengths() == [(0, 1000), (1000, 1000), (2000, 1000)]
    b.now = b.sender.tail_probe.at
    b.sender.on_tail_probe(b.transmit, b.now)
    assert [(position, len(octets), flags & FIN) for position, octets, flags in b.sent] == [
        (2000, 1000, 0)
    ]


def test_octets_that_leave_one_by_one_are_not_without_end() -> None:
    """Each leaves in a moment of its own, and nothing is acknowledged: then the rest waits in
    the host, until something is."""
    b = bench(window=60_000)
    for _ in range(RUNS_MAXIMUM):
        assert b.host_says(1) == 1
        b.now += 1e-5
    assert b.sender.room() == 0
    b.acknowledges(1, 60_000)
    assert b.host_says(5000) == 5000


def test_a_window_that_is_not_used_does_not_grow() -> None:
    """RFC 7661: what was not tried is not known to be good."""
    b = bench(window=60_000, congestion="reno")
    window = b.sender.congestion.window
    for _ in range(20):
        b.host_says(MSS)
        b.now += 0.01
        b.acknowledges(b.sender.next, 60_000)
    assert b.sender.congestion.window == window
    b.host_says(window)
    b.now += 0.01
    b.acknowledges(b.sender.next, 60_000)
    assert b.sender.congestion.window == 2 * window


def test_a_flight_is_not_counted_beyond_its_window() -> None:
    """What the guest has beyond a hole makes room for more: half of all of it would be no less
    than before the loss (RFC 5681, 3.1, equation 4)."""
    b = bench(window=60_000, selective=True, congestion="reno")
    b.host_says(10 * MSS)
    b.now += 0.04
    for _ in range(8):
        b.acknowledges(0, 60_000, (MSS, b.sender.next))
        b.host_says(10 * MSS)
        b.now += 0.001
    window = b.sender.congestion.window
    assert b.sender.next > 4 * window
    b.times_out()
    assert b.sender.congestion.window == MSS
    b.acknowledges(b.sender.next, 60_000)
    assert b.sender.congestion.window <= window // 2
