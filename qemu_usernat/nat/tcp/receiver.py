"""The receiving side of the guest half: the guest's bytes, in order, once, within the window.

It owns the sequence space of the guest's direction (RFC 9293, 3.4 and 3.10.7.4), the
out-of-order store and what is said of it (RFC 2018, RFC 2883), the window that is advertised,
and the bytes that the host has not taken yet. It does not know states, timers, or what carries
the bytes on.

Two promises: what was advertised is accepted, and what was accepted is delivered.

Positions are octets since the guest's SYN, plain integers that never wrap; sequence
numbers exist only at the border.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from operator import itemgetter

from attrs import define, field

from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import add, difference
from qemu_usernat.wire.packets import Buffer

KIB = 1024

WINDOW_SCALE = 8
"""Our shift (RFC 7323, 2): 65535 << 8 is room for the largest capacity."""

CAPACITY_INITIAL = 256 * KIB  # four of the largest segments
CAPACITY_MAXIMUM = 8192 * KIB
# A flow whose server takes everything earns a larger window; one whose server is slow
# cannot hold more than the initial one.

OUT_OF_ORDER_RUNS = 512
"""Separate runs kept at once, each as long as it may be: bounds the objects that tiny segments
can cost. Only what arrives backwards makes many."""

SELECTIVE_BLOCKS = 4  # RFC 2018, 3: the 40 octets of options hold no more

DUPLICATES_TOLD = 64
"""Of those that come in one turn, each in an ACK of its own: an ACK can tell of one (RFC 2883)."""

ROUNDING_ROOM = 64 * KIB
"""How far rounding up to the scale may carry the right edge beyond the capacity."""

_start = itemgetter(0)


def _never() -> bool:
    """Nobody bounds it."""
    return False


@define
class Receiver:
    """The guest's octets on their way to the host."""

    maximum_segment_size: int
    """The largest segment that the guest may send us."""
    counters: Counters
    initial_sequence: int = 0
    """IRS: the number of the guest's SYN."""
    scale: int = 0
    """Shift of the windows we send; 0 where the guest's SYN had no window scale."""
    capacity: int = CAPACITY_INITIAL
    may_not_grow: Callable[[], bool] = _never
    """Whether the capacity has to stay as it is."""
    next_sequence: int = 0
    """RCV.NXT."""
    position: int = 0
    """Octets accepted in order so far."""
    right_edge: int = field(init=False)
    """The position up to which the guest has been allowed to send; never moves back."""
    fin_position: int | None = None
    """Where the guest's FIN stands, once it is known."""
    fin_consumed: bool = False
    arrived: list[Buffer] = field(factory=list)
    """In-order pieces of this turn; views into the caller's buffer, good until the turn ends."""
    arrived_length: int = 0
    backlog: bytearray = field(factory=bytearray)
    """What the host did not take in earlier turns."""
    out_of_order: list[tuple[int, bytearray]] = field(factory=list)
    """(position, octets), sorted, not overlapping, all beyond `position`."""
    untold_blocks: int = 0
    """Of those beyond a gap, how many have grown since an ACK told of any: the newest ones."""
    delivered_since_growth: int = 0
    _recent: list[int] = field(factory=list)
    """Where the latest arrivals beyond a gap began, the newest first."""
    _recent_end: int = 0
    """One past the newest of them."""
    duplicates: list[tuple[int, int]] = field(factory=list)
    """Octets that came twice, not yet told of: (start, end)."""

    def __attrs_post_init__(self) -> None:
        # The window of a SYN is never scaled (RFC 7323, 2.2).
        self.right_edge = min(self.capacity, 0xFFFF)

    def begin(self, initial_sequence: int, *, scaled: bool) -> None:
        """The guest's SYN has come; `scaled`: it has offered to scale windows."""
        self.initial_sequence = initial_sequence
        self.next_sequence = add(initial_sequence, 1)
        self.scale = WINDOW_SCALE if scaled else 0

    # -- the guest's segments

    def accept(self, sequence: int, payload: Buffer, length: int) -> bool:
        """Take in the octets of a segment; True if `next_sequence` moved on.

        Duplicates and what lies outside the window are cut off, the rest is kept until the
        gap before it is filled (RFC 9293, 3.10.7.4, first and seventh).
        """
        start = self._position_of(sequence)
        end = start + length
        limit = self.right_edge if self.fin_position is None else self.fin_position
        if start == self.position and end <= limit and not self.out_of_order:
            self._deliver(payload, length)
            return length > 0
        if length and end <= limit and self._extend_last(payload, start):
            self._note(start, end)
            return False
        view = memoryview(payload)
        if end > limit:
            view = view[: max(0, limit - start)]
        if start < self.position:
            self._came_twice(start, min(end, self.position))
            view = view[self.position - start :]
        if not len(view):
            return False
        if start > self.position:
            self._keep(start, view)
            self._note(start, start + len(view))
            return False
        self._deliver(view, len(view))
        self._deliver_kept()
        return True

    def finish(self, sequence: int) -> bool:
        """The guest's FIN stands at `sequence`; True if it was news and is now in order.

        A FIN beyond the window is no FIN; one beyond a gap is remembered.
        """
        position = self._position_of(sequence)
        if self.fin_position is None and self.position <= position <= self.right_edge:
            self.fin_position = position
            self.out_of_order = [
                (start, octets[: position - start])
                for start, octets in self.out_of_order
                if start < position
            ]
        return self.consume_fin()

    def consume_fin(self) -> bool:
        """True once, when everything before the guest's FIN has arrived."""
        if self.fin_consumed or self.fin_position != self.position:
            return False
        self.fin_consumed = True
        self.next_sequence = add(self.next_sequence, 1)
        return True

    def _deliver(self, payload: Buffer, length: int) -> None:
        if length:
            self.arrived.append(payload)
            self.arrived_length += length
            self.position += length
            self.next_sequence = add(self.next_sequence, length)

    def _deliver_kept(self) -> None:
        while self.out_of_order and self.out_of_order[0][0] <= self.position:
            start, octets = self.out_of_order.pop(0)
            fresh = octets[self.position - start :]
            self._deliver(fresh, len(fresh))

    def _extend_last(self, payload: Buffer, start: int) -> bool:
        """The usual case behind a gap: the octets follow the newest ones, at the end of all."""
        runs = self.out_of_order
        if not runs or runs[-1][0] + len(runs[-1][1]) != start:
            return False
        runs[-1][1].extend(payload)
        return True

    def _note(self, start: int, end: int) -> None:
        """An arrival beyond a gap: the newest; in the place of the one that it follows on."""
        if self._recent and start == self._recent_end:
            self._recent[0] = start
            self.untold_blocks = self.untold_blocks or 1
        else:
            self._recent.insert(0, start)
            self.untold_blocks += 1
            del self._recent[2 * SELECTIVE_BLOCKS :]
        self._recent_end = end

    def _keep(self, start: int, view: memoryview) -> None:
        """Store the parts of `view` that are not stored yet."""
        runs = self.out_of_order
        index = max(0, bisect_left(runs, (start,)) - 1)
        cursor, end = start, start + len(view)
        fresh = False
        while cursor < end:
            gap_end = min(end, runs[index][0]) if index < len(runs) else end
            if gap_end > cursor:
                piece = view[cursor - start : gap_end - start]
                fresh = True
                if index and runs[index - 1][0] + len(runs[index - 1][1]) == cursor:
                    runs[index - 1][1].extend(piece)  # segments after a gap are one run
                elif len(runs) < OUT_OF_ORDER_RUNS:
                    runs.insert(index, (cursor, bytearray(piece)))
                else:
                    self.counters.count("tcp.out_of_order_full")
                    return
                cursor = gap_end
            if index < len(runs) and cursor >= runs[index][0]:
                cursor = max(cursor, runs[index][0] + len(runs[index][1]))
                index += 1
        if not fresh:
            self._came_twice(start, end)

    # -- selective acknowledgments

    def on_duplicate(self, sequence: int, length: int) -> None:
        """A segment that was not even looked at, as all of it had come before."""
        start = self._position_of(sequence)
        if length and start + length <= self.position:
            self._came_twice(start, start + length)

    def _came_twice(self, start: int, end: int) -> None:
        duplicates = self.duplicates
        if duplicates and duplicates[-1][1] == start:
            duplicates[-1] = (duplicates[-1][0], end)
        elif len(duplicates) < DUPLICATES_TOLD:
            duplicates.append((start, end))

    @property
    def untold(self) -> bool:
        """Whether `selective_edges` has anything to tell."""
        return bool(self.out_of_order or self.duplicates)

    def selective_edges(self) -> list[int]:
        """What the next ACK tells beside its number, as sequence numbers: left, right, left, …

        First, once, what came twice (RFC 2883, 4); then the block of the newest arrival, and
        those told of before (RFC 2018, 4).
        """
        blocks: list[tuple[int, int]] = []
        recent = []
        for position in self._recent:
            block = self._block_at(position)
            if block is not None and block not in blocks:
                blocks.append(block)
                recent.append(position)
        self._recent = recent
        if self.duplicates:
            blocks.insert(0, self.duplicates.pop(0))
        self.untold_blocks = 0
        origin = add(self.initial_sequence, 1)
        return [add(origin, edge) for block in blocks[:SELECTIVE_BLOCKS] for edge in block]

    def _block_at(self, position: int) -> tuple[int, int] | None:
        """The unbroken octets around `position` beyond the gap: (start, end)."""
        runs = self.out_of_order
        index = bisect_right(runs, position, key=_start) - 1
        if index < 0 or runs[index][0] + len(runs[index][1]) <= position:
            return None
        last = index
        while index and runs[index - 1][0] + len(runs[index - 1][1]) == runs[index][0]:
            index -= 1
        while last + 1 < len(runs) and runs[last][0] + len(runs[last][1]) == runs[last + 1][0]:
            last += 1
        return runs[index][0], runs[last][0] + len(runs[last][1])

    # -- the host takes

    @property
    def queued(self) -> int:
        """Octets accepted from the guest that the host has not taken."""
        return len(self.backlog) + self.arrived_length

    def drain(self, send: Callable[[list[Buffer]], int]) -> None:
        """Offer everything queued to `send`, which returns how many octets it took.

        What it leaves is copied: the views of this turn do not outlive it.
        """
        if not self.backlog:
            taken = send(self.arrived)
            self._keep_rest(taken)
        else:
            with memoryview(self.backlog) as backlog:
                taken = send([backlog, *self.arrived])
            rest = max(0, taken - len(self.backlog))
            del self.backlog[:taken]
            self._keep_rest(rest)
        self.delivered_since_growth += taken
        if self.backlog:
            self.delivered_since_growth = 0
        elif self.delivered_since_growth >= self.capacity < CAPACITY_MAXIMUM:
            if self.may_not_grow():
                self.counters.count("tcp.octets_full")
            else:
                self.capacity *= 2
            self.delivered_since_growth = 0

    def _keep_rest(self, taken: int) -> None:
        if taken < self.arrived_length:
            for piece in self.arrived:
                self.backlog += memoryview(piece)[taken:]
                taken = max(0, taken - len(piece))
        self.arrived.clear()
        self.arrived_length = 0

    def discard(self) -> None:
        """Forget everything queued: there is nobody left to take it."""
        self.arrived.clear()
        self.arrived_length = 0
        self.backlog = bytearray()
        self.out_of_order.clear()

    # -- the window

    def window(self) -> int:
        """The window to send now, in units of 2**scale; moves the right edge.

        The edge moves by an MSS at least, or half of the capacity (RFC 9293, 3.8.6.2.2), never
        back, and is rounded up to the scale so that rounding does not move it back either.
        """
        wanted = self.position + self.capacity - self.queued
        opens = wanted - self.right_edge >= min(self.maximum_segment_size, self.capacity // 2)
        edge = wanted if opens else self.right_edge
        unit = 1 << self.scale
        units = min((edge - self.position + unit - 1) >> self.scale, 0xFFFF)
        rounded = self.position + (units << self.scale)
        if rounded > wanted + ROUNDING_ROOM:
            # Octets one by one into a full queue: no more room is given away to rounding.
            return (self.right_edge - self.position) >> self.scale
        self.right_edge = rounded
        return units

    def window_update_due(self) -> bool:
        """Whether the right edge could move enough to be worth a segment of its own."""
        if self.fin_consumed:
            return False
        # No more than the field can say: the same window again reads as a duplicate ACK.
        largest = 0xFFFF << self.scale
        wanted = self.position + min(self.capacity - self.queued, largest)
        step = min(2 * self.maximum_segment_size, largest // 2, self.capacity // 2)
        return wanted - self.right_edge >= step

    def _position_of(self, sequence: int) -> int:
        return self.position + self.fin_consumed + difference(sequence, self.next_sequence)

    def offset_of(self, sequence: int) -> int:
        """How far `sequence` is ahead of RCV.NXT."""
        return difference(sequence, self.next_sequence)

    @property
    def room(self) -> int:
        """RCV.WND: how far ahead of RCV.NXT the guest may send."""
        return 0 if self.fin_consumed else self.right_edge - self.position
