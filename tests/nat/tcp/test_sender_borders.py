"""The sender to the octet, and to the moment: where each of its rules begins to hold."""

import pytest
from attrs import define, field

from qemu_usernat.nat.tcp.retained import JOINED_BELOW
from qemu_usernat.nat.tcp.sender import RETRANSMISSIONS_MAXIMUM, Sender
from qemu_usernat.nat.tcp.window import UNANSWERED_MAXIMUM
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.packets import PSH
from tests.nat.tcp.bench import MSS, STREAM, Bench, bench

# -- what is asked of the host


@pytest.mark.parametrize(("in_flight", "room"), [(500, 500), (501, 0)])
def test_half_of_the_largest_window_is_not_silly(in_flight: int, room: int) -> None:
    """RFC 9293, 3.8.6.2.1: where the window was never a segment more, half of it is used."""
    b = bench(window=MSS)
    b.host_says(in_flight)
    assert b.sender.room() == room


def test_nothing_more_is_read_while_something_waits_here() -> None:
    """The window shrank over octets that were read for it: 100 of them would be a silly segment."""
    b = bench(window=1800)
    b.host_says(800)
    b.sender.take(STREAM[800:1800], 1000)
    b.acknowledges(0, 1700)
    assert b.lengths() == [(0, 800)]
    assert b.sender.room() == 0


def test_a_guest_whose_acknowledgment_overtook_its_window_is_waited_for() -> None:
    """It shrank its window, and then acknowledged more in a segment that is older: nothing is sent
    until there is a window again, and all of it then."""
    b = bench(window=5000)
    b.host_says(5000)
    sender = b.sender
    sender.on_window(50, 0, 1000)
    assert not sender.on_window(49, 2000, 3000)
    sender.on_acknowledgment(2000, b.now)
    assert sender.window.edge < sender.acknowledged
    b.lengths()
    for _ in range(RETRANSMISSIONS_MAXIMUM):
        assert b.times_out()
        sender.on_alive()
    assert sender.retransmissions == 0, "it answers, and is asked on"
    assert set(b.lengths()) == {(2000, MSS)}
    sender.on_window(51, 2000, 3000)
    b.pump()
    assert b.lengths() == [(2000, MSS)]


def test_no_room_is_less_than_none() -> None:
    """All was acknowledged, beyond the edge of the window that is known."""
    b = bench(window=1000)
    b.host_says(1000)
    b.sender.on_window(50, 0, 500)
    b.sender.on_window(49, 1000, 0)
    b.sender.on_acknowledgment(1000, b.now)
    assert b.sender.room() == 0


def test_more_duplicates_than_segments_make_no_more_room() -> None:
    """The wire made copies: nothing is in flight then, and the window is what it is."""
    b = bench(window=60_000, congestion="reno")
    b.host_says(5 * MSS)
    for _ in range(10):
        b.acknowledges(0, 60_000)
    assert b.sender.room() == b.sender.congestion.window == 2500


# -- the segments


def test_what_one_read_left_unsent_is_followed_by_the_next() -> None:
    """The window shrank in the middle of a read, and opens when another one has followed."""
    b = bench(window=30_000)
    sender = b.sender
    sender.take(STREAM[:JOINED_BELOW], JOINED_BELOW)
    sender.on_window(1, 0, 3000)
    b.pump()
    sender.take(STREAM[JOINED_BELOW:20_000], 20_000 - JOINED_BELOW)
    b.acknowledges(3000, 30_000)
    assert b"".join(octets for _, octets, _ in b.sent) == STREAM[:20_000]
    assert b.sent[-1][0] + len(b.sent[-1][1]) == sender.next == 20_000


def test_no_fin_beyond_a_window_that_has_shrunk() -> None:
    """Nor when only the octets before it are in flight."""
    b = bench(window=1000)
    b.host_says(1000)
    b.acknowledges(0, 500)
    b.sender.fin_queued = True
    b.pump()
    assert b.lengths() == [(0, 1000)]
    b.acknowledges(0, 1000)
    assert b.lengths() == [], "it would stand just beyond the edge"
    b.acknowledges(0, 1001)
    assert b.lengths() == [(1000, 0)]


@pytest.mark.parametrize(("said", "flags"), [(5 * MSS, 0), (MSS, PSH)])
def test_a_repetition_is_pushed_where_it_is_the_last_segment(said: int, flags: int) -> None:
    """RFC 9293, 3.9.1.2: the guest may wait for what follows the others."""
    b = bench()
    b.host_says(said)
    b.sent.clear()
    b.times_out()
    assert [(position, sent) for position, _, sent in b.sent] == [(0, flags)]


# -- the timer


def test_a_timer_that_runs_is_not_wound_up_by_what_follows() -> None:
    """RFC 6298, 5.1: a server that goes on writing does not put the repetition off."""
    b = bench()
    b.host_says(MSS)
    rings = b.sender.retransmit_at
    for _ in range(5):
        b.now += 0.1
        b.host_says(MSS)
    assert b.sender.retransmit_at == rings


def test_a_repetition_behind_the_first_hole_does_not_wind_up_the_timer() -> None:
    """It watches over the first octets, and counts from when these were sent."""
    b = bench(window=20_000, selective=True)
    b.host_says(10 * MSS)
    b.now += 0.05
    b.acknowledges(0, 20_000, (MSS, 5 * MSS))
    rings = b.sender.retransmit_at
    b.now += 0.01
    b.acknowledges(0, 20_000, (6 * MSS, 10 * MSS), (MSS, 5 * MSS))
    assert b.lengths()[-2:] == [(0, MSS), (5 * MSS, MSS)]
    assert b.sender.retransmit_at == rings


def test_a_guest_that_was_heard_is_asked_as_often_as_before() -> None:
    """R2 begins anew, whether its closed window is asked for by repetitions or by probes."""
    b = bench(window=2 * MSS)
    b.host_says(2 * MSS)
    b.acknowledges(MSS, 0)
    for _ in range(2):
        for _ in range(RETRANSMISSIONS_MAXIMUM):
            assert b.times_out()
        b.acknowledges(MSS, 0)
    b.acknowledges(2 * MSS, 0)
    for _ in range(2):
        for _ in range(UNANSWERED_MAXIMUM):
            assert b.sender.on_probe_sent(b.now)
        b.acknowledges(2 * MSS, 0)
    for _ in range(UNANSWERED_MAXIMUM):
        assert b.sender.on_probe_sent(b.now)
    assert not b.sender.on_probe_sent(b.now)


def test_a_repetition_into_a_window_that_stays_closed_is_still_on_its_way() -> None:
    """That the guest says so again is no news of it; its ACK lets two segments follow."""
    b = bench(window=5000)
    b.host_says(5000)
    b.acknowledges(2000, 0)
    b.times_out()
    b.acknowledges(2000, 0)
    assert b.sender.scoreboard.in_flight == MSS
    b.lengths()
    b.acknowledges(3000, 5000)
    assert b.lengths() == [(3000, MSS), (4000, MSS)]


def test_no_window_is_asked_for_when_our_fin_has_arrived() -> None:
    """There is nothing left that it could keep."""
    b = bench(window=1000)
    b.host_says(1000)
    b.sender.fin_queued = True
    b.acknowledges(1000, 0)
    b.acknowledges(1001, 0)
    assert not b.sender.in_flight
    assert b.sender.window.probe_at == NEVER


@pytest.mark.parametrize(("position", "edge"), [(999, 1000), (1000, 6000), (1001, 1000)])
def test_a_keepalive_opens_no_window_by_another_acknowledgment(position: int, edge: int) -> None:
    """With less it is older than what has been heard since; with more it is none."""
    b = bench(window=1000)
    b.host_says(1000)
    b.acknowledges(1000, 0)
    b.sender.on_keepalive(position, 5000)
    assert b.sender.window.edge == edge


# -- losses


@pytest.mark.parametrize(
    ("duplicates", "acknowledged", "room"),
    [(7, 1000, 3000), (7, 500, 2500), (7, 4000, 3000), (3, 6000, 1000)],
)
def test_a_partial_acknowledgment_takes_back_as_many_duplicates_as_it_explains(
    duplicates: int, acknowledged: int, room: int
) -> None:
    """RFC 6582, 3.2, step 3: the first of its segments is the repetition, each other one had sent a
    duplicate; a part of a segment explains none."""
    b = bench(window=60_000, congestion="reno")
    b.host_says(10 * MSS)
    for _ in range(duplicates):
        b.acknowledges(0, 60_000)
    b.acknowledges(acknowledged, 60_000)
    assert b.sender.congestion.window == 5 * MSS
    assert b.sender.room() == room


def test_a_hole_that_is_not_the_first_waits_for_the_window() -> None:
    """RFC 6675, 5, step 4.3: the first one never waits, and halves the window; the second is
    repeated when less is in flight than that."""
    b = bench(window=60_000, selective=True, congestion="reno")
    b.host_says(10 * MSS)
    b.now += 0.05
    b.acknowledges(0, 60_000, (MSS, 2 * MSS), (3 * MSS, 5 * MSS))
    b.pump()
    assert b.sender.congestion.window == 5 * MSS
    assert b.lengths()[10:] == [(0, MSS)]
    b.acknowledges(0, 60_000, (MSS, 2 * MSS), (3 * MSS, 7 * MSS))
    assert b.lengths() == [(2 * MSS, MSS)]


@define
class Listener:
    """A congestion control that only listens."""

    segment: int
    window: int = 1 << 20
    heard: list[tuple[int, float, float]] = field(factory=list)

    def on_acknowledged(self, gained: int, round_trip: float, now: float) -> None:
        self.heard.append((gained, round_trip, now))

    def on_loss(self, flight: int, now: float) -> None:
        """Nothing is lost here."""

    def on_timeout(self, flight: int, now: float) -> None:
        """All in time."""


def test_the_control_hears_how_much_came_and_how_long_a_round_trip_is() -> None:
    """In octets and seconds; nothing, where none has been measured yet."""
    sender = Sender(0, MSS, Listener, Counters())
    sender.begin(0, 60_000, MSS, 0, False)
    control = sender.congestion
    assert isinstance(control, Listener)
    control.window = MSS
    b = Bench(sender)
    b.host_says(MSS)
    sender.scoreboard.sent_again(0, MSS, b.now)  # so that it tells no round trip: Karn
    b.acknowledges(MSS, 60_000)
    b.host_says(MSS)
    b.now += 0.25
    b.acknowledges(2 * MSS, 60_000)
    assert control.heard == [(MSS, 0.0, 100.0), (MSS, 0.25, 100.25)]


# -- the tail


def probed(b: Bench) -> list[tuple[int, int]]:
    """What the tail probe repeats now."""
    b.lengths()
    b.sender.on_tail_probe(b.transmit, b.now)
    return b.lengths()


def measured(window: int) -> Bench:
    """A guest with selective acknowledgments, 10 ms away, that has got a segment."""
    b = bench(window=window, selective=True)
    b.host_says(MSS)
    b.now += 0.01
    b.acknowledges(MSS, window)
    return b


def test_a_tail_within_the_window_to_the_octet_is_probed() -> None:
    """The guest has room for it; with an octet less it would throw it away."""
    b = measured(4 * MSS)
    b.host_says(4 * MSS)
    assert b.sender.next == b.sender.window.edge
    assert probed(b) == [(4 * MSS, MSS)]
    b.acknowledges(MSS, 4 * MSS - 1)
    assert probed(b) == []


def test_the_last_octet_is_probed_by_itself_where_it_was_read_by_itself() -> None:
    """A segment is repeated out of one read."""
    b = measured(60_000)
    b.sender.take(STREAM[MSS : MSS + JOINED_BELOW], JOINED_BELOW)
    b.sender.take(STREAM[MSS + JOINED_BELOW :][:1], 1)
    b.pump()
    assert probed(b) == [(MSS + JOINED_BELOW, 1)]


def test_what_waits_behind_the_tail_is_not_probed_for() -> None:
    """A read of its own, that the window keeps back."""
    b = measured(60_000)
    b.sender.take(STREAM[MSS : 6 * MSS], 5 * MSS)
    b.sender.take(STREAM[6 * MSS : 11 * MSS], 5 * MSS)
    b.acknowledges(MSS, 5 * MSS)
    assert b.sender.next == 6 * MSS
    assert probed(b) == [(5 * MSS, MSS)]


def test_a_tail_of_which_the_guest_has_something_is_not_probed() -> None:
    """What it lacks is judged by that (RFC 8985, 7.3)."""
    b = measured(60_000)
    b.host_says(4 * MSS)
    b.acknowledges(MSS, 60_000, (2 * MSS, 3 * MSS))
    assert b.sender.scoreboard.delivered
    assert not b.sender.scoreboard.lost
    assert probed(b) == []


@pytest.mark.parametrize("length", [100, MSS, MSS + 1])
def test_less_than_a_segment_is_one(length: int) -> None:
    """Its ACK may be delayed by 200 ms, and is waited for (RFC 8985, 7.2)."""
    b = measured(60_000)
    b.sender.retransmit_at = NEVER
    b.sender.round_trip.timeout = 1.0
    b.host_says(length)
    wait = 0.02 if length > MSS else 0.22
    assert b.sender.tail_probe.at == pytest.approx(b.now + wait)
