"""What happened on a test's network, as lines for the person who reads why a test failed.

It owns the notes; the rest it puts in order from what others have recorded.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import trio

from qemu_usernat.primitives.counters import Counters
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.records import FlowRecord

NOTES_MAXIMUM = 10_000
LINES_MAXIMUM = 500
"""Of what is told: the last ones."""


class EventLog:
    """Notes with their times."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, str]] = deque(maxlen=NOTES_MAXIMUM)

    def note(self, text: str) -> None:
        """Something happens now."""
        self._notes.append((trio.current_time(), text))

    def clear(self) -> None:
        """Forget all of it."""
        self._notes.clear()

    def told(self, flows: Iterable[FlowRecord], internet: Internet, counters: Counters) -> str:
        """One line for each event, in order, then the counters."""
        events = sorted(self._events(flows, internet), key=lambda event: event[0])
        left_out = len(events) - LINES_MAXIMUM
        begun = events[0][0] if events else 0.0
        lines = [f"({left_out} earlier events left out)"] if left_out > 0 else []
        lines += [f"{time - begun:9.3f} s  {text}" for time, text in events[-LINES_MAXIMUM:]]
        lines += [f"{failure}" for failure in internet.errors]
        counted = ", ".join(f"{name} {count}" for name, count in sorted(counters.items()))
        return "\n".join([*lines, f"counters: {counted or 'nothing was counted'}"])

    def _events(
        self, flows: Iterable[FlowRecord], internet: Internet
    ) -> Iterator[tuple[float, str]]:
        yield from tuple(self._notes)
        for flow in flows:
            yield flow.opened_at, f"{flow}"
        for query in tuple(internet.dns_queries):
            answers = " ".join(query.answers)
            yield query.time, f"DNS {query.name} {query.type}: {query.outcome} {answers}".rstrip()
        for note in tuple(internet.unexpected):
            yield note.time, f"unexpected: {note}"
        unusual: dict[str, list[float]] = {}  # a system says the same again and again
        for note in tuple(internet.unusual):
            unusual.setdefault(f"{note}", []).append(note.time)
        for text, times in unusual.items():
            often = f" ({len(times)} times)" if len(times) > 1 else ""
            yield times[0], f"unusual: {text}{often}"
