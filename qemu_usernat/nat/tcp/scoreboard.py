"""What became of everything that was sent and not yet acknowledged: the scoreboard.

It owns, for each octet between SND.UNA and SND.NXT, when it was sent last and whether the
guest has it (RFC 2018), whether it counts as lost, or is on its way; and the judgement of
loss, which is RACK's (RFC 8985): what was sent well before something that has arrived is
lost, be it the first transmission or the fifth. So a repetition that is lost itself is seen
to be, which no counting of duplicates can do. It does not know when anything may be sent, or
that a guest may be without selective acknowledgments.

Positions are those of the `sender`. Octets of one fate that were sent in one go are one
*run*: a burst is one object until a part of it fares differently. What was sent before what
is told by a serial number, as several bursts may leave at one moment of the clock, and what
is repeated after new octets is not older than they are.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from enum import Enum
from operator import attrgetter

from attrs import define, field

from qemu_usernat.primitives.time import NEVER

RUNS_MAXIMUM = 4096
"""Runs beyond which no flight is begun, and none is cut in two by what the guest says it has: a
server that writes octet by octet, or a guest that has every second one, costs no more objects."""


class Fate(Enum):
    """What is known of octets that were sent."""

    IN_FLIGHT = "on their way"
    DELIVERED = "the guest has them, beyond a gap"
    LOST = "to be sent again"


IN_FLIGHT, DELIVERED, LOST = Fate.IN_FLIGHT, Fate.DELIVERED, Fate.LOST


@define(eq=False)
class Run:
    """Octets from `start` to before `end` that share a fate and a transmission."""

    start: int
    end: int
    order: int
    """Of all transmissions, which was their last."""
    sent_at: float
    repeated: bool
    """Sent more than once: which of the copies has arrived is not known (Karn)."""
    fate: Fate = IN_FLIGHT


_start = attrgetter("start")


@define(eq=False)
class Transmission:
    """That octets were sent, once; what has become of them meanwhile stands in the runs."""

    start: int
    end: int
    order: int
    sent_at: float


@define
class Scoreboard:
    """The octets in flight, in order of position, and their transmissions, in theirs."""

    in_flight: int = 0
    """Octets that are on their way: RFC 6675's pipe."""
    delivered: int = 0
    """Octets that the guest has beyond a gap."""
    lost: int = 0
    """Octets to be sent again."""
    repeated: int = 0
    """Octets that were ever sent again."""
    smallest_round_trip: float = NEVER
    reordered: bool = False
    """Whether octets were seen to overtake others, as on some wires they do."""
    judge_at: float = NEVER
    """When `judge` will know more, if nothing else happens."""

    _runs: list[Run] = field(factory=list)
    _transmissions: deque[Transmission] = field(factory=deque)
    _lost_from: int = 0
    """No run before it is lost."""
    _furthest: int = 0
    """One past the last position that has arrived."""
    _order: int = 0
    """Of the newest transmission."""
    _newest: tuple[int, int] = (0, 0)
    """Of all that has arrived, what was sent last, and one past its end: in the place of
    RACK.xmit_ts and RACK.end_seq."""
    _plain_round_trip: float = NEVER
    """The last that was measured on what was sent once."""
    _newest_round_trip: float = 0.0
    """RACK.rtt."""
    _heard_at: float = NEVER
    """When that was measured."""

    # -- what is sent

    def sent(self, start: int, end: int, now: float) -> None:
        """The octets after all others are sent for the first time."""
        order = self._transmitted(start, end, now)
        runs = self._runs
        last = runs[-1] if runs else None
        if last and last.order == order and not last.repeated and last.fate is IN_FLIGHT:
            last.end = end  # the same burst
        else:
            runs.append(Run(start, end, order, now, False))
        self.in_flight += end - start

    def sent_again(self, start: int, end: int, now: float) -> None:
        """Octets of one run are sent once more, be they lost or not."""
        order = self._transmitted(start, end, now)
        runs = self._runs
        index = self._cut(start)
        self._cut(end)
        self._take_from_sum(runs[index])
        self.in_flight += end - start
        self.repeated += end - start
        before = runs[index - 1] if index else None
        if before and before.order == order and before.repeated and before.fate is IN_FLIGHT:
            before.end = end  # the same burst
            del runs[index]
        else:
            runs[index] = Run(start, end, order, now, True)

    def _transmitted(self, start: int, end: int, now: float) -> int:
        """The serial number of a transmission; a burst, in which each segment follows the last,
        is one."""
        transmissions = self._transmissions
        last = transmissions[-1] if transmissions else None
        if last and last.end == start and last.sent_at == now:
            last.end = end
        else:
            self._order += 1
            transmissions.append(Transmission(start, end, self._order, now))
        return self._order

    @property
    def full(self) -> bool:
        """Whether the octets in flight are in as many runs as may be."""
        return len(self._runs) >= RUNS_MAXIMUM

    def first_lost(self) -> tuple[int, int]:
        """The first of the lost octets: (start, end)."""
        runs = self._runs
        index = max(0, bisect_right(runs, self._lost_from, key=_start) - 1)
        while runs[index].fate is not LOST:
            index += 1
        run = runs[index]
        self._lost_from = run.start
        return run.start, run.end

    def last_start(self) -> int:
        """Where the last octets that were sent in one go begin."""
        return self._runs[-1].start

    # -- what arrives

    def acknowledged(self, position: int, now: float) -> float | None:
        """The guest has everything before `position`.

        A round trip in seconds, if what has arrived tells one: nothing does that was sent twice,
        nor what may have waited behind it (RFC 6298, 3).
        """
        runs = self._runs
        ended = 0
        sample = None
        repeated = False
        for run in runs:
            if run.start >= position:
                break
            part = run.end - run.start
            if run.end > position:
                part = position - run.start
            else:
                ended += 1
            if run.fate is DELIVERED:
                self.delivered -= part
            else:
                if run.fate is IN_FLIGHT:
                    self.in_flight -= part
                else:
                    self.lost -= part
                self._arrived(run, run.start + part, now)
                sample = now - run.sent_at
            repeated = repeated or run.repeated
            run.start += part
        del runs[:ended]
        transmissions = self._transmissions
        while transmissions and transmissions[0].end <= position:
            transmissions.popleft()
        if not runs:
            self.judge_at = NEVER
        return None if repeated else sample

    def selected(self, start: int, end: int, now: float) -> int:
        """The guest has the octets from `start` to before `end`, all of which were sent and none
        acknowledged; how many of them are news."""
        runs = self._runs
        before = self.delivered
        index = bisect_right(runs, start, key=_start) - 1
        while index < len(runs) and runs[index].start < end:
            run = runs[index]
            within = start <= run.start and run.end <= end
            if run.fate is not DELIVERED and (within or not self.full):
                index = self._cut(max(start, run.start))
                self._cut(end)
                run = runs[index]
                self._arrived(run, run.end, now)
                self._take_from_sum(run)
                run.fate = DELIVERED
                self.delivered += run.end - run.start
            index += 1
        if self.delivered != before:
            self._join(start, end)
        return self.delivered - before

    def _arrived(self, run: Run, end: int, now: float) -> None:
        """The octets of `run` before `end`: the news that RACK learns (RFC 8985, 6.2, 1 to 3)."""
        round_trip = now - run.sent_at
        if not run.repeated:
            self._plain_round_trip = round_trip
            self.smallest_round_trip = min(self.smallest_round_trip, round_trip)
            if end < self._furthest:
                self.reordered = True
        elif round_trip < (self._plain_round_trip if self.reordered else self.smallest_round_trip):
            # Too soon to be the answer to the repetition. Where octets come late, the first
            # copy often follows its repetition; taken for that, it condemns a whole flight.
            return
        self._furthest = max(self._furthest, end)
        self._newest = max(self._newest, (run.order, end))
        # The path as it is now: of all that is told at one moment, what was sent last.
        if now == self._heard_at:
            round_trip = min(round_trip, self._newest_round_trip)
        self._newest_round_trip = round_trip
        self._heard_at = now

    # -- what is lost

    def judge(self, patience: float, now: float) -> int:
        """Octets that are lost as of now: sent before the newest arrival, and `patience` ago
        more than a round trip (RFC 8985, 6.2, 5). Sets `judge_at` for those that may be."""
        lost = 0
        transmissions = self._transmissions
        self.judge_at = NEVER
        limit = self._newest_round_trip + patience
        order, arrived = self._newest
        while transmissions:
            oldest = transmissions[0]
            if (oldest.order, oldest.start) >= self._newest:
                break
            end = min(oldest.end, arrived) if oldest.order == order else oldest.end
            if end > self._runs[0].start:
                due = oldest.sent_at + limit
                if now < due:
                    self.judge_at = due
                    break
                lost += self._lose(oldest.start, end, oldest.order)
            if end == oldest.end:
                transmissions.popleft()
            else:
                oldest.start = end
        return lost

    def lose_first(self, length: int) -> None:
        """The first octets, at most `length`, count as lost: duplicate ACKs say so."""
        first = self._runs[0]
        end = min(first.end, first.start + length)
        self._cut(end)
        self._lose(first.start, end, first.order)

    def lose_everything(self) -> bool:
        """Whatever is on its way counts as lost: the timer says so (RFC 8985, 6.3).

        If the first octets are among those that the guest said it had, it has thrown them away
        again, as it may (RFC 2018, 8): then nothing that it said is believed, and this is True.
        """
        runs = self._runs
        reneged = runs[0].fate is DELIVERED
        for run in runs:
            if run.fate is IN_FLIGHT or reneged:
                run.fate = LOST
        self._join(runs[0].start, runs[-1].end)
        self.lost = sum(run.end - run.start for run in runs if run.fate is LOST)
        self.delivered = sum(run.end - run.start for run in runs if run.fate is DELIVERED)
        self.in_flight = 0
        self._lost_from = runs[0].start
        self._transmissions.clear()
        self.judge_at = NEVER
        return reneged

    def _lose(self, start: int, end: int, order: int) -> int:
        """Mark what is on its way since the transmission `order`, in whole runs; how many octets
        that is."""
        before = self.lost
        runs = self._runs
        for run in runs[bisect_left(runs, start, key=_start) : bisect_left(runs, end, key=_start)]:
            if run.fate is IN_FLIGHT and run.order == order:
                self._take_from_sum(run)
                run.fate = LOST
                self.lost += run.end - run.start
                self._lost_from = min(self._lost_from, run.start)
        self._join(start, end)
        return self.lost - before

    # -- runs

    def _join(self, start: int, end: int) -> None:
        """Neighbours of one fate, unless they are on their way, are one run, however cut."""
        runs = self._runs
        index = max(0, bisect_right(runs, start, key=_start) - 2)
        while index + 1 < len(runs) and runs[index].start < end:
            run, following = runs[index], runs[index + 1]
            if run.fate is following.fate and run.fate is not IN_FLIGHT:
                run.end = following.end
                run.repeated = run.repeated or following.repeated
                del runs[index + 1]
            else:
                index += 1

    def _take_from_sum(self, run: Run) -> None:
        length = run.end - run.start
        if run.fate is IN_FLIGHT:
            self.in_flight -= length
        else:
            self.lost -= length

    def _cut(self, position: int) -> int:
        """See to it that a run starts at `position`, if one goes over it; the run's index."""
        runs = self._runs
        index = bisect_left(runs, position, key=_start)
        if index and runs[index - 1].end > position:
            run = runs[index - 1]
            rest = Run(position, run.end, run.order, run.sent_at, run.repeated, run.fate)
            runs.insert(index, rest)
            run.end = position
        return index
