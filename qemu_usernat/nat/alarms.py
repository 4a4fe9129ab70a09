"""Who wants to be woken when: the earliest of many deadlines.

A deadline that moves away is not chased: the alarm rings at the old time, finds nothing
due, and is set again. So an acknowledgment, which moves a deadline with every segment,
costs one comparison here.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

from attrs import define, field

from qemu_usernat.primitives.time import NEVER


class Sleeper(Protocol):
    """What can be woken."""

    def deadline(self) -> float:
        """When it is next to be woken; NEVER if nothing is owed."""


@define
class Alarms:
    """Sleepers by deadline. A sleeper is hashed by identity and must be forgotten at its end."""

    _heap: list[tuple[float, int, Sleeper]] = field(factory=list)
    _armed: dict[Sleeper, float] = field(factory=dict)
    _serial: "count[int]" = field(factory=count)

    def __len__(self) -> int:
        return len(self._armed)

    def __iter__(self) -> Iterator[Sleeper]:
        return iter(self._armed)

    def arm(self, sleeper: Sleeper) -> None:
        """See to it that `sleeper` is woken at its deadline, or before."""
        when = sleeper.deadline()
        if when < self._armed.get(sleeper, NEVER):
            self._armed[sleeper] = when
            heappush(self._heap, (when, next(self._serial), sleeper))
            if len(self._heap) > 64 + 4 * len(self._armed):
                self._sweep()

    def forget(self, sleeper: Sleeper) -> None:
        """Never wake `sleeper` again."""
        if self._armed.pop(sleeper, None) is not None and len(self._heap) > 64 + 4 * len(
            self._armed
        ):
            self._sweep()

    def earliest(self) -> float:
        """When the next alarm rings; NEVER if none is set."""
        heap = self._heap
        while heap and self._armed.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else NEVER

    def ring(self, now: float) -> list[Sleeper]:
        """Everybody whose time has come, for the caller to wake, and to arm again."""
        due = []
        while self.earliest() <= now:
            sleeper = heappop(self._heap)[2]
            del self._armed[sleeper]
            due.append(sleeper)
        return due

    def _sweep(self) -> None:
        """Drop entries that were superseded, so that ended flows are not kept by the heap."""
        self._heap = [entry for entry in self._heap if self._armed.get(entry[2]) == entry[0]]
        heapify(self._heap)
