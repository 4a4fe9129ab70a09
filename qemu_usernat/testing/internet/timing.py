"""When things happen in the hermetic internet: one line of time, and the lines of its hosts.

`Timeline` calls what is due, outside of the server's turns; `Line` says when what is sent now
arrives. Time is trio's clock, so that a test with a MockClock does not wait.
"""

import heapq
from collections.abc import Callable
from math import inf
from random import Random
from typing import Protocol

import trio
from attrs import define, field

REPETITION_TIME = 0.2
"""Seconds that the loss of a piece costs a stream at least: Linux's shortest timeout of TCP."""

PIECE = 1460
"""Octets that are delayed and lost together: a segment on an Ethernet."""

BUFFER = 64 * 1024
"""Octets in one direction of a connection that the far end has not taken yet."""

BUFFER_WITH_LATENCY = 1024 * 1024
"""As `BUFFER`, where octets are long on their way: 100 Mbit/s at 80 ms."""

DATAGRAMS_MAXIMUM = 1024
"""Datagrams under way in one direction of a host's line; beyond it they are lost."""

QUEUE_TIME = 1.0
"""Seconds that a datagram waits for a slow line at most; beyond it it is lost."""


@define(eq=False)
class Timeline:
    """Calls at their time, in the order in which they were asked for."""

    _calls: list[tuple[float, int, Callable[[], None]]] = field(factory=list, init=False)
    _count: int = field(default=0, init=False)
    _alarm: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Call at `time`, or as soon as the turn that is going on has ended."""
        self._count += 1
        heapq.heappush(self._calls, (time, self._count, call))
        if time < self._alarm.deadline:
            self._alarm.deadline = time

    async def run(self) -> None:
        """Call whatever is due, for ever."""
        while True:
            with trio.CancelScope() as self._alarm:
                self._alarm.deadline = self._calls[0][0] if self._calls else inf
                await trio.sleep_forever()
            now = trio.current_time()
            while self._calls and self._calls[0][0] <= now:
                heapq.heappop(self._calls)[2]()


class Shape(Protocol):
    """How a host's line is."""

    latency: float
    bandwidth: float | None
    loss: float


@define(eq=False)
class Line:
    """One direction of a host's line, which all its connections share."""

    shape: Shape
    _free_at: float = field(default=-inf, init=False)
    _datagrams: int = field(default=0, init=False)

    @property
    def is_plain(self) -> bool:
        """Whether everything arrives in the moment in which it is sent."""
        shape = self.shape
        return not (shape.latency or shape.bandwidth or shape.loss)

    def buffer(self) -> int:
        """Octets of one connection that the line, and the end behind it, hold at most."""
        return BUFFER_WITH_LATENCY if self.shape.latency else BUFFER

    def arrival(self, octets: int, now: float) -> float:
        """When `octets` that are sent now have arrived; they wait for those sent before."""
        left = now
        if self.shape.bandwidth is not None:
            left = self._free_at = max(self._free_at, now) + octets / self.shape.bandwidth
        return left + self.shape.latency

    def repetitions(self, chance: Random) -> float:
        """Seconds that a piece of a stream is late because it was lost, perhaps repeatedly."""
        late = 0.0
        while chance.random() < self.shape.loss:
            late += max(REPETITION_TIME, 2 * self.shape.latency)
        return late

    def carry(
        self, timeline: Timeline, chance: Random, octets: int, arrive: Callable[[], None]
    ) -> None:
        """A datagram: `arrive` is called at its time, or the datagram is lost."""
        now = trio.current_time()
        lost = chance.random() < self.shape.loss
        if lost or self._datagrams >= DATAGRAMS_MAXIMUM or self._free_at - now > QUEUE_TIME:
            return
        self._datagrams += 1

        def call() -> None:
            self._datagrams -= 1
            arrive()

        timeline.at(self.arrival(octets, now), call)
