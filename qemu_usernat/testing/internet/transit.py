"""One direction of one connection: octets on their way, in order, and each at its time.

It owns what is between the two ends, and what has arrived and was not taken. Its bound is the
back-pressure: whoever puts no more than `free` never makes it larger.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from random import Random

import trio

from qemu_usernat.testing.internet.timing import PIECE, Line, Timeline


class End(Enum):
    """How a direction ends."""

    EOF = "in order"
    RESET = "reset, behind the last octet"
    ABORT = "reset, whether or not the octets before it were taken"


class Transit:
    """Octets from one end to the other, and the end behind them."""

    __slots__ = (
        "_chance",
        "_line",
        "_moving",
        "_on_arrival",
        "_timeline",
        "aborted",
        "arrived",
        "ended",
        "eof",
        "octets",
        "put_total",
        "reset",
        "total",
    )

    def __init__(
        self, line: Line, chance: Random, timeline: Timeline, on_arrival: Callable[[], None]
    ) -> None:
        """`on_arrival()` is called when something has arrived: `arrived` is not empty any more, or
        one of `eof`, `reset` and `aborted` is true."""
        self._line = line
        self._chance = chance
        self._timeline = timeline
        self._on_arrival = on_arrival
        self._moving: deque[tuple[float, bytes | End]] = deque()
        self.arrived: deque[bytes] = deque()
        self.octets = 0
        """Those put and not taken."""
        self.put_total = self.total = 0
        """Octets that were ever put, and that have ever arrived."""
        self.ended = False
        """Whether an end is under way, or there."""
        self.eof = self.reset = self.aborted = False

    def free(self) -> int:
        """How many octets may be put now."""
        return max(0, self._line.buffer() - self.octets)

    def put(self, octets: bytes) -> None:
        """Send on: they may arrive in this very call."""
        now = trio.current_time()
        self.octets += len(octets)
        self.put_total += len(octets)
        if self._line.is_plain and not self._moving:
            self._arrive(octets)
            self._on_arrival()
            return
        for start in range(0, len(octets), PIECE):
            piece = octets[start : start + PIECE]
            late = self._line.repetitions(self._chance)
            self._move(piece, self._line.arrival(len(piece), now) + late)

    def end(self, end: End) -> None:
        """Send the end on: it arrives behind what was put before it, and never in this call."""
        self.ended = True
        self._move(end, self._line.arrival(0, trio.current_time()))

    def take(self, maximum: int) -> bytes:
        """Up to `maximum` of the octets that have arrived."""
        pieces = []
        while self.arrived and maximum > 0:
            piece = self.arrived.popleft()
            if len(piece) > maximum:
                self.arrived.appendleft(piece[maximum:])
                piece = piece[:maximum]
            maximum -= len(piece)
            pieces.append(piece)
        octets = b"".join(pieces)
        self.octets -= len(octets)
        return octets

    def clear(self) -> None:
        """Forget all octets: nobody takes them any more."""
        self.arrived.clear()
        self._moving.clear()
        self.octets = 0

    def _move(self, what: bytes | End, time: float) -> None:
        # Nothing overtakes what was sent before it, also where it would be there sooner.
        self._moving.append((time, what))
        if len(self._moving) == 1:
            self._timeline.at(time, self._on_time)

    def _on_time(self) -> None:
        now = trio.current_time()
        moved = False
        while self._moving and self._moving[0][0] <= now:
            self._arrive(self._moving.popleft()[1])
            moved = True
        if self._moving and moved:
            self._timeline.at(self._moving[0][0], self._on_time)
        if moved:
            self._on_arrival()

    def _arrive(self, what: bytes | End) -> None:
        if isinstance(what, bytes):
            self.arrived.append(what)
            self.total += len(what)
        elif what is End.EOF:
            self.eof = True
        elif what is End.RESET:
            self.reset = True
        else:
            self.aborted = True
