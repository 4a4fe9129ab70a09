"""What is lost is found by time (RFC 8985), to the octet, whatever the guest says it has."""

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import define, field
from hypothesis import example, given
from hypothesis import strategies as st

from qemu_usernat.nat.tcp.scoreboard import (
    DELIVERED,
    IN_FLIGHT,
    LOST,
    RUNS_MAXIMUM,
    Fate,
    Run,
    Scoreboard,
)
from qemu_usernat.primitives.time import NEVER

ROUND_TRIP = 4.0
PATIENCE = 1.0


def sent(*bursts: tuple[int, int, float]) -> Scoreboard:
    """(start, end, moment) of each."""
    board = Scoreboard()
    for start, end, moment in bursts:
        board.sent(start, end, moment)
    return board


def runs(board: Scoreboard) -> list[tuple[int, int, Fate]]:
    """(start, end, fate) of each run."""
    return [(run.start, run.end, run.fate) for run in board._runs]


def test_a_burst_is_one_run_until_a_part_of_it_fares_differently() -> None:
    """Three writes of one turn are one object, and a block in its middle makes three."""
    board = sent((0, 1000, 0.0), (1000, 3000, 0.0), (3000, 9000, 0.0))
    assert runs(board) == [(0, 9000, IN_FLIGHT)]
    assert board.selected(2000, 4000, 4.0) == 2000
    assert runs(board) == [(0, 2000, IN_FLIGHT), (2000, 4000, DELIVERED), (4000, 9000, IN_FLIGHT)]
    assert (board.in_flight, board.delivered, board.lost) == (7000, 2000, 0)


def test_each_burst_is_one_run() -> None:
    """Whatever was sent before it."""
    board = sent((0, 1000, 0.0), (1000, 2000, 1.0), (2000, 3000, 1.0))
    assert runs(board) == [(0, 1000, IN_FLIGHT), (1000, 3000, IN_FLIGHT)]


def test_an_acknowledgment_of_what_was_known_to_have_arrived_tells_no_round_trip() -> None:
    """When it arrived was told before."""
    board = sent((0, 1000, 0.0), (1000, 2000, 1.0))
    board.selected(0, 1000, 4.0)
    assert board.acknowledged(1000, 9.0) is None


def test_neighbours_that_have_arrived_are_one_run() -> None:
    """Block by block, in any order; what is said twice is no news."""
    board = sent((0, 5000, 0.0))
    assert board.selected(3000, 4000, 4.0) == 1000
    assert board.selected(1000, 2000, 4.0) == 1000
    assert board.selected(2000, 3000, 4.0) == 1000
    assert runs(board)[1] == (1000, 4000, DELIVERED)
    assert board.selected(1500, 3500, 4.0) == 0
    assert board.selected(1000, 4500, 4.0) == 500
    assert runs(board) == [(0, 1000, IN_FLIGHT), (1000, 4500, DELIVERED), (4500, 5000, IN_FLIGHT)]


@pytest.mark.parametrize("twice", [1000, 2000])
def test_neighbours_of_which_one_was_sent_twice_tell_no_round_trip(twice: int) -> None:
    """Karn (RFC 6298, 3): whichever of the two it was."""
    board = sent((0, 3000, 0.0))
    board.sent_again(twice, twice + 1000, 1.0)
    board.selected(1000, 3000, 4.0)
    assert runs(board) == [(0, 1000, IN_FLIGHT), (1000, 3000, DELIVERED)]
    assert board.acknowledged(3000, 5.0) is None


def test_what_was_sent_before_an_arrival_is_lost_after_a_round_trip_and_some_patience() -> None:
    """RFC 8985, 6.2, step 5: not sooner, and the moment is known before."""
    board = sent((0, 1000, 0.0), (1000, 2000, 0.5), (2000, 3000, 1.0))
    board.selected(1000, 2000, 0.5 + ROUND_TRIP)
    assert board.judge(PATIENCE, 4.5) == 0
    assert board.judge_at == ROUND_TRIP + PATIENCE
    assert board.judge(PATIENCE, 5.0) == 1000
    assert board.judge(PATIENCE, 50.0) == 0, "what was sent after that arrival is not overdue"
    assert board.judge_at == NEVER
    assert runs(board) == [(0, 1000, LOST), (1000, 2000, DELIVERED), (2000, 3000, IN_FLIGHT)]
    assert board.first_lost() == (0, 1000)


def test_within_one_moment_the_position_tells_what_was_sent_first() -> None:
    """A burst of one turn: before the segment that has arrived is a gap, behind it is none."""
    board = sent((0, 9000, 0.0))
    board.selected(4000, 5000, ROUND_TRIP)
    assert board.judge(0.0, ROUND_TRIP) == 4000
    board.selected(6000, 7000, ROUND_TRIP)
    assert board.judge(0.0, ROUND_TRIP) == 1000
    assert board.judge(0.0, 100.0) == 0
    assert [run for run in runs(board) if run[2] is LOST] == [(0, 4000, LOST), (5000, 6000, LOST)]


def test_what_arrives_later_from_the_same_burst_takes_no_gap_back() -> None:
    """The furthest of what was sent last says what was overtaken, whatever is told after it."""
    board = sent((0, 9000, 0.0))
    board.selected(6000, 7000, ROUND_TRIP)
    board.selected(1000, 2000, ROUND_TRIP)
    assert board.judge(0.0, ROUND_TRIP) == 5000


def test_a_repetition_has_a_round_trip_of_its_own() -> None:
    """That its octets were sent before says nothing any more."""
    board = sent((0, 1000, 0.0), (1000, 2000, 1.0))
    board.sent_again(1000, 2000, 5.0)
    board.sent(2000, 3000, 5.5)
    board.selected(2000, 3000, 6.0)
    assert board.judge(PATIENCE, 6.0) == 1000
    assert board.judge_at == 5.0 + 0.5 + PATIENCE
    assert board.judge(PATIENCE, 6.5) == 1000


@pytest.mark.parametrize("moment", [0.1 * number for number in range(1, 60)])
def test_at_the_moment_that_was_named_there_is_something_to_judge(moment: float) -> None:
    """Decimal fractions are none in binary: an alarm that rings a hair too soon would ring for
    ever."""
    board = sent((0, 1000, moment), (1000, 2000, moment))
    board.selected(1000, 2000, moment + 0.3)
    assert board.judge(0.07, moment + 0.3) == 0
    assert board.judge(0.07, board.judge_at) == 1000


@pytest.mark.parametrize("moment", [0.1 * number for number in range(1, 60)])
def test_without_patience_a_gap_is_seen_in_the_moment_of_the_arrival_behind_it(
    moment: float,
) -> None:
    """Likewise: no alarm is set for a hair later."""
    board = sent((0, 2000, moment))
    board.selected(1000, 2000, moment + 0.3)
    assert board.judge(0.0, moment + 0.3) == 1000
    assert board.judge_at == NEVER


@pytest.mark.parametrize("acknowledged", [1000, 1500])
def test_no_alarm_is_set_for_what_has_been_acknowledged(acknowledged: int) -> None:
    """A repetition that arrived, sent after octets that are still missing."""
    board = sent((0, 3000, 0.0))
    board.selected(2000, 3000, 4.0)
    board.judge(0.0, 4.0)
    board.sent(3000, 4000, 5.0)
    board.sent_again(0, 1000, 5.5)
    board.sent_again(1000, 2000, 6.0)
    board.acknowledged(acknowledged, 9.5)
    assert board.judge(PATIENCE, 9.5) == 0
    due = board.judge_at
    assert due < 10.5
    assert board.judge(PATIENCE, due) == 1000
    assert board.judge_at == NEVER


def test_gaps_of_two_bursts_that_touch_are_one() -> None:
    """And are repeated in segments that are full."""
    board = sent((0, 1500, 0.0), (1500, 3000, 0.1), (3000, 4000, 0.2))
    board.selected(3000, 4000, 4.0)
    assert board.judge(0.0, 4.0) == 3000
    assert board.first_lost() == (0, 3000)


def test_a_path_that_has_become_slower_is_waited_for() -> None:
    """The round trip is that of the newest arrival, be it longer than the one before."""
    board = sent((0, 1000, 0.0))
    board.acknowledged(1000, 1.0)
    board.sent(1000, 2000, 2.0)
    board.sent(2000, 3000, 2.5)
    board.selected(2000, 3000, 10.5)
    assert board.judge(PATIENCE, 10.5) == 0
    assert board.judge_at == 2.0 + 8.0 + PATIENCE


def test_what_was_acknowledged_is_forgotten() -> None:
    """Each transmission with its last octet, and the alarm with all of them."""
    board = sent((0, 1000, 0.0), (1000, 2000, 0.2), (2000, 3000, 0.5))
    board.selected(2000, 3000, 4.5)
    board.judge(PATIENCE, 4.5)
    assert board.judge_at == ROUND_TRIP + PATIENCE
    for position, left in ((500, 3), (1000, 2), (1500, 2), (2500, 1), (3000, 0)):
        board.acknowledged(position, 6.0)
        assert len(board._transmissions) == left
    assert board.judge_at == NEVER


@pytest.mark.parametrize(("length", "lost"), [(1000, 1000), (3000, 3000), (3500, 3000)])
def test_the_first_octets_are_lost_in_one_burst_at_most(length: int, lost: int) -> None:
    """A segment does not go from one transmission to the next."""
    board = sent((0, 3000, 0.0), (3000, 4000, 1.0))
    board.lose_first(length)
    assert board.lost == lost
    assert board.first_lost() == (0, lost)


def test_a_silence_begins_anew_with_the_first_octets() -> None:
    """Whatever was looked for last."""
    board = sent((0, 4000, 0.0))
    board.selected(1000, 2000, 4.0)
    board.selected(3000, 4000, 4.0)
    assert board.judge(0.0, 4.0) == 2000
    for start in (0, 2000):
        assert board.first_lost() == (start, start + 1000)
        board.sent_again(start, start + 1000, 5.0)
    board.lose_everything()
    assert board.first_lost() == (0, 1000)


def test_the_tail_is_the_last_burst() -> None:
    """What was sent before it is none."""
    assert sent((0, 1000, 0.0), (1000, 2500, 1.0)).last_start() == 1000


def test_what_left_first_at_one_moment_is_known() -> None:
    """New octets may leave before the ACKs of their turn are read, and repetitions after that:
    that the new ones have arrived says nothing of the repetitions, and the other way round."""
    board = sent((0, 3000, 0.0))
    board.selected(2000, 3000, 4.0)
    board.judge(0.0, 4.0)
    board.sent(3000, 5000, 5.0)
    board.sent_again(0, 1000, 5.0)
    board.sent_again(1000, 2000, 5.0)
    board.selected(4000, 5000, 9.0)
    assert board.judge(0.0, 9.0) == 1000
    assert board.first_lost() == (3000, 4000)
    board.selected(1000, 2000, 9.0)
    assert board.judge(0.0, 9.0) == 1000
    assert board.first_lost() == (0, 1000)


def test_a_lost_repetition_is_seen_by_what_was_sent_after_it() -> None:
    """No counting of duplicates can do that: the timer would have to."""
    board = sent((0, 2000, 0.0))
    board.selected(1000, 2000, 4.0)
    assert board.judge(0.0, 4.0) == 1000
    for moment in (5.0, 10.0, 15.0):
        board.sent_again(0, 1000, moment)
        position = 2000 + int(moment) * 1000
        board.sent(position, position + 5000, moment + 1)
        assert board.judge(0.0, moment + 4) == 0
        board.selected(position, position + 5000, moment + 5)
        assert board.judge(0.0, moment + 5) == 1000
        assert board.first_lost() == (0, 1000)


def test_a_repetition_answered_too_soon_was_not_needed() -> None:
    """Sooner than any round trip, it is the first one that has arrived: it says nothing of
    what was sent between the two (RFC 8985, 6.2, step 2)."""
    board = sent((0, 1000, 0.0), (1000, 2000, 1.0), (2000, 3000, 2.0))
    board.selected(1000, 2000, 5.0)
    assert board.judge(0.0, 5.0) == 1000
    board.sent_again(0, 1000, 5.0)
    assert board.acknowledged(2000, 6.0) is None
    assert board.judge(0.0, 20.0) == 0, "which was sent before the repetition"


@pytest.mark.parametrize(("moment", "lost"), [(18.0, 0), (22.4, 0), (22.5, 4000), (23, 4000)])
def test_where_octets_come_late_a_repetition_must_take_its_time(moment: float, lost: int) -> None:
    """An answer sooner than what was sent once takes at present is that to the late first copy:
    it says nothing of a queue of octets between the two. One that took 10.5 seconds, too, does."""
    board = sent((0, 2000, 0.0), (2000, 4000, 1.0))
    board.selected(1000, 2000, 4.0)
    board.judge(0.0, 4.0)
    board.selected(3000, 4000, 11.0)
    board.selected(2000, 3000, 11.5)
    assert board.reordered
    board.sent(4000, 8000, 12.0)
    board.sent_again(0, 1000, 12.0)
    board.acknowledged(4000, moment)
    assert board.judge(0.0, 50.0) == lost, "which was sent before the repetition"


@pytest.mark.parametrize(("repeated", "reordered"), [(False, True), (True, False)])
def test_what_arrives_late_without_having_been_repeated_was_overtaken(
    repeated: bool, reordered: bool
) -> None:
    """RFC 8985, 6.2, step 3."""
    board = sent((0, 3000, 0.0))
    board.selected(2000, 3000, 4.0)
    board.judge(0.0, 4.0)
    assert not board.reordered
    if repeated:
        board.sent_again(0, 1000, 5.0)
        board.sent_again(1000, 2000, 5.0)
    board.selected(1000, 2000, 9.0)
    assert board.reordered is reordered


def test_the_round_trip_is_that_of_what_was_sent_last() -> None:
    """One ACK tells of a repetition and of old octets behind it: the path is as slow as the
    repetition was (RFC 8985, 6.2, step 2, in order of time)."""
    board = sent((0, 3000, 0.0), (3000, 4000, 7.5))
    board.selected(2500, 3000, 4.0)
    board.lose_first(1000)
    board.sent_again(0, 1000, 8.0)
    board.acknowledged(2000, 12.0)  # 1000 octets after 4, and after 12
    assert board.judge(PATIENCE, 12.0) == 500
    assert board.judge(PATIENCE, 12.0) == 0, "the last 1000 may be on their way"
    assert board.judge_at == 7.5 + 4.0 + PATIENCE


def test_a_round_trip_is_measured_by_what_was_sent_once() -> None:
    """Karn's rule, for all that one ACK tells: what waited behind a gap did so (RFC 6298, 3)."""
    board = sent((0, 1000, 0.0), (1000, 2000, 1.0), (2000, 3000, 2.0), (3000, 4000, 3.0))
    assert board.acknowledged(1000, 4.0) == 4.0
    assert board.acknowledged(1500, 4.5) == 3.5
    board.selected(2000, 3000, 5.0)
    board.judge(0.0, 5.0)
    board.sent_again(1500, 2000, 6.0)
    assert board.acknowledged(4000, 9.0) is None


def test_a_part_of_what_is_lost_goes_first_and_the_rest_stays_lost() -> None:
    """A segment is cut off; the next one begins where it ends."""
    board = sent((0, 9000, 0.0))
    board.selected(8000, 9000, 4.0)
    board.judge(0.0, 4.0)
    board.sent_again(0, 1000, 5.0)
    assert board.first_lost() == (1000, 8000)
    board.sent_again(1000, 2000, 5.0)
    board.sent_again(2000, 3000, 6.0)
    assert runs(board) == [
        (0, 2000, IN_FLIGHT),
        (2000, 3000, IN_FLIGHT),
        (3000, 8000, LOST),
        (8000, 9000, DELIVERED),
    ]
    assert board.repeated == 3000
    assert board.acknowledged(4000, 9.0) is None
    assert (board.in_flight, board.delivered, board.lost) == (0, 1000, 4000)
    assert board.first_lost() == (4000, 8000)


def test_after_a_silence_all_is_lost_but_what_the_guest_has() -> None:
    """And nothing that was sent before can be judged again."""
    board = sent((0, 2000, 0.0), (2000, 3000, 1.0), (3000, 4000, 1.5))
    board.selected(1000, 2000, 4.0)
    assert board.judge(PATIENCE, 4.5) == 0
    assert not board.lose_everything()
    assert board.judge_at == NEVER
    assert runs(board) == [(0, 1000, LOST), (1000, 2000, DELIVERED), (2000, 4000, LOST)]
    assert (board.in_flight, board.delivered, board.lost) == (0, 1000, 3000)
    board.sent_again(0, 1000, 9.0)
    assert board.judge(0.0, 50.0) == 0


def test_a_tail_that_has_arrived_is_believed() -> None:
    """The first octets are missing: the guest has thrown nothing away."""
    board = sent((0, 4000, 0.0))
    board.selected(3000, 4000, 4.0)
    assert not board.lose_everything()
    assert runs(board) == [(0, 3000, LOST), (3000, 4000, DELIVERED)]


def test_a_guest_that_has_thrown_its_octets_away_is_sent_them_again() -> None:
    """RFC 2018, 8: it acknowledges up to what it said it had, and no further."""
    board = sent((0, 4000, 0.0))
    board.selected(1000, 2000, 4.0)
    board.selected(3000, 4000, 4.0)
    board.acknowledged(1000, 4.0)
    assert board.lose_everything()
    assert runs(board) == [(1000, 4000, LOST)]
    assert (board.in_flight, board.delivered, board.lost) == (0, 0, 3000)


def test_every_second_octet_costs_a_bounded_number_of_runs() -> None:
    """A guest that has them like that: beyond the bound its blocks count where they cover whole
    runs. No block costs more than it is worth, and the sums stay right."""
    board = sent((0, 4 * RUNS_MAXIMUM, 0.0), (4 * RUNS_MAXIMUM, 5 * RUNS_MAXIMUM, 1.0))
    for start in range(1, 4 * RUNS_MAXIMUM, 2):
        board.selected(start, start + 1, 4.0)
    assert board.full
    assert len(runs(board)) <= RUNS_MAXIMUM + 1
    assert board.delivered + board.in_flight == 5 * RUNS_MAXIMUM
    assert board.selected(4 * RUNS_MAXIMUM, 5 * RUNS_MAXIMUM, 5.0) == RUNS_MAXIMUM
    board.selected(0, 4 * RUNS_MAXIMUM, 5.0)
    assert runs(board) == [(0, 5 * RUNS_MAXIMUM, DELIVERED)]


def test_the_bound_holds_where_it_is_stepped_over() -> None:
    """A block in the middle of a run makes three of it: one more than the bound is full, too. Then
    a block that covers no whole run says nothing."""
    last = 2 * RUNS_MAXIMUM
    board = sent((0, last, 0.0))
    for start in range(1, last, 2):
        board.selected(start, start + 1, 4.0)
    assert board.full
    assert len(runs(board)) == RUNS_MAXIMUM + 1
    start, end, fate = runs(board)[-1]
    assert fate is IN_FLIGHT
    assert board.selected(start + 1, end, 5.0) == 0
    assert board.selected(start, end - 1, 5.0) == 0
    assert board.selected(start, end, 5.0) == end - start


class Watched(list[Run]):
    """Runs, and how often one of them was looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Run]:
        for run in super().__iter__():
            self.looks += 1
            yield run


def test_nothing_costs_more_because_there_are_many_gaps() -> None:
    """Two thousand runs: each block, judgement, repetition and ACK looks at a few of them. Looking
    at all would let a guest keep us busy with a few small segments."""
    bursts = [(1000 * number, 1000 * number + 1000, 0.001 * number) for number in range(2000)]
    board = sent(*bursts)
    board._runs = watched = Watched(board._runs)
    few = 100

    def looks() -> int:
        seen, watched.looks = watched.looks, 0
        return seen

    for number in range(1, 2000, 2):
        start = 1000 * number
        assert board.selected(start, start + 1000, 4.0 + 0.001 * number) == 1000
        assert looks() < few
        assert board.judge(0.0, 4.0 + 0.001 * number) == 1000
        assert looks() < few
    board.sent(2_000_000, 2_001_000, 7.0)
    for number in range(0, 2000, 2):
        start, end = board.first_lost()
        assert start == 1000 * number
        board.sent_again(start, end, 8.0)
        assert looks() < few
    for number in range(2000):
        board.acknowledged(1000 * number + 1000, 12.0)
        assert looks() < few


# -- against one record for each octet


@define
class Octet:
    """What became of one of them."""

    order: int
    """Of all that was sent, in which call it was, the last time."""
    sent_at: float
    repeated: bool = False
    fate: Fate = IN_FLIGHT


@define
class Records:
    """The rules of RFC 8985, for octets one by one."""

    octets: dict[int, Octet] = field(factory=dict)
    smallest: float = NEVER
    furthest: int = 0
    newest: tuple[int, int] = (0, 0)
    """In which call the newest arrival was sent, and one past its position."""
    plain: float = NEVER
    round_trip: float = 0.0
    heard_at: float = -NEVER
    repeated: int = 0
    reordered: bool = False
    reneged: bool = False

    def count(self, fate: Fate) -> int:
        return sum(octet.fate is fate for octet in self.octets.values())

    def arrives(self, position: int, octet: Octet, now: float) -> None:
        round_trip = now - octet.sent_at
        if octet.repeated and round_trip < (self.plain if self.reordered else self.smallest):
            return
        if not octet.repeated:
            self.plain = round_trip
            self.smallest = min(self.smallest, round_trip)
            self.reordered |= position + 1 < self.furthest
        self.furthest = max(self.furthest, position + 1)
        self.newest = max(self.newest, (octet.order, position + 1))
        if now > self.heard_at:
            self.round_trip = round_trip
        self.round_trip = min(self.round_trip, round_trip)
        self.heard_at = now

    def acknowledged(self, until: int, now: float) -> float | None:
        gone = {at: self.octets.pop(at) for at in sorted(self.octets) if at < until}
        waiting = {at: octet for at, octet in gone.items() if octet.fate is not DELIVERED}
        for at, octet in waiting.items():
            self.arrives(at, octet, now)
        if not waiting or any(octet.repeated for octet in gone.values()):
            return None
        return now - waiting[max(waiting)].sent_at

    def selected(self, start: int, end: int, now: float) -> int:
        news = [at for at in range(start, end) if self.octets[at].fate is not DELIVERED]
        for at in news:
            self.arrives(at, self.octets[at], now)
            self.octets[at].fate = DELIVERED
        self.merge()
        return len(news)

    def judge(self, patience: float, now: float) -> tuple[int, float]:
        """(octets lost, when the next one may be)"""
        lost, due = 0, NEVER
        for at, octet in self.octets.items():
            if octet.fate is IN_FLIGHT and (octet.order, at + 1) <= self.newest:
                when = octet.sent_at + self.round_trip + patience
                if now >= when:
                    octet.fate = LOST
                    lost += 1
                else:
                    due = min(due, when)
        self.merge()
        return lost, due

    def lose_everything(self) -> bool:
        reneged = self.octets[min(self.octets)].fate is DELIVERED
        for octet in self.octets.values():
            if octet.fate is IN_FLIGHT or reneged:
                octet.fate = LOST
        self.merge()
        self.reneged |= reneged
        return reneged

    def merge(self) -> None:
        """Neighbours that are lost are sent again as one, those that have arrived are past: of
        each such group only the first one's moment is kept, and whether any was repeated."""
        groups: list[list[Octet]] = []
        before = None
        for octet in self.octets.values():
            if octet.fate is IN_FLIGHT or before is None or octet.fate is not before.fate:
                groups.append([])
            groups[-1].append(octet)
            before = octet
        for group in groups:
            repeated = any(octet.repeated for octet in group)
            for octet in group:
                octet.order, octet.sent_at, octet.repeated = (
                    group[0].order,
                    group[0].sent_at,
                    repeated,
                )


def compare(board: Scoreboard, records: Records) -> None:
    """Whatever is told apart octet by octet is told apart by runs."""
    assert board.in_flight == records.count(IN_FLIGHT)
    assert board.delivered == records.count(DELIVERED)
    assert board.lost == records.count(LOST)
    assert board.repeated == records.repeated
    assert board.smallest_round_trip == records.smallest
    assert board.reordered == records.reordered or records.reneged
    octets = [(at, run.fate) for run in board._runs for at in range(run.start, run.end)]
    assert octets == [(at, octet.fate) for at, octet in records.octets.items()]
    if board.lost:
        start, end = board.first_lost()
        assert start == min(at for at, octet in records.octets.items() if octet.fate is LOST)
        assert all(records.octets[at].fate is LOST for at in range(start, end))
        assert end not in records.octets or records.octets[end].fate is not LOST
    for transmission in board._transmissions:
        assert transmission.start < transmission.end
    orders = [transmission.order for transmission in board._transmissions]
    assert orders == sorted(set(orders))


Step = tuple[str, int, int]
ACTIONS = ["sent", "again", "selected", "judge"] * 2 + [
    "probe",
    "acknowledged",
    "first",
    "everything",
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ACTIONS),
            st.integers(0, 40),
            st.integers(1, 12),
        ),
        max_size=60,
    ),
    st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=60, max_size=60),
)
@example([("sent", 0, 8), ("selected", 4, 2), ("judge", 0, 1), ("again", 0, 9)], [1.0] * 60)
def test_runs_tell_what_a_record_of_each_octet_would(
    steps: list[Step], pauses: list[float]
) -> None:
    """Any history: the same octets are in flight, delivered and lost, the first lost one is
    found, and the next judgement is neither late nor in the past."""
    board, records, now, end, repetitions = Scoreboard(), Records(), 100.0, 0, 0
    for order, ((action, number, length), pause) in enumerate(zip(steps, pauses, strict=False), 1):
        now += pause
        if action == "sent":
            board.sent(end, end + length, now)
            records.octets |= {at: Octet(order, now) for at in range(end, end + length)}
            end += length
            continue
        if not records.octets:
            continue
        first = min(records.octets)
        start = min(first + number, end - 1)
        stop = min(start + length, end)
        if action == "selected":
            assert board.selected(start, stop, now) == records.selected(start, stop, now)
        elif action == "acknowledged":
            assert board.acknowledged(stop, now) == records.acknowledged(stop, now)
            if not records.octets:
                assert board.judge_at == NEVER
                assert not board._transmissions
        elif action == "everything":
            assert board.lose_everything() == records.lose_everything()
        elif action == "first":
            before = board.lost
            board.lose_first(length)
            lost = board.lost - before
            assert (0 < lost <= length) == (records.octets[first].fate is IN_FLIGHT)
            for at in range(first, first + lost):
                records.octets[at].fate = LOST
            records.merge()
        elif action == "judge":
            # No round trip takes no time: what has arrived in the moment of its sending waits.
            patience = 0.25 * (length % 4) or 0.125
            lost, due = records.judge(patience, now)
            assert board.judge(patience, now) == lost
            assert now < board.judge_at <= due
        elif board.lost if action == "again" else not board.lost and not board.delivered:
            start, stop = board.first_lost() if action == "again" else (board.last_start(), end)
            stop = min(stop, start + length)
            board.sent_again(start, stop, now)
            repetitions += 1
            records.repeated += stop - start
            for at in range(start, stop):
                records.octets[at] = Octet(order, now, True)
        compare(board, records)
    assert len(board._transmissions) <= len(steps) + repetitions
