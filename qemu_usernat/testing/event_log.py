"""What happened on a test's network, as lines for the person who reads why a test failed.

It owns the notes; the rest it puts in order from what others have recorded.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator

import trio

from qemu_usernat.primitives.counters import Counters
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.records import FlowRecord

NOTES_MAXIMUM = 10_000
LINES_MAXIMUM = 500
"""Of what is told: the last ones."""
UNUSUAL_MAXIMUM = 20
"""Kinds of it, the most frequent first: systems say the same again and again."""


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
        """One line for each event, in order, then what was unusual, and the counters."""
        events = sorted(self._events(flows, internet), key=lambda event: event[0])
        left_out = len(events) - LINES_MAXIMUM
        begun = events[0][0] if events else 0.0
        lines = [f"({left_out} earlier events left out)"] if left_out > 0 else []
        lines += [f"{time - begun:9.3f} s  {text}" for time, text in events[-LINES_MAXIMUM:]]
        lines += [f"{failure}" for failure in internet.errors]
        unusual = Counter(f"{note}" for note in internet.unusual).most_common(UNUSUAL_MAXIMUM)
        if unusual:
            lines.append(
                "unusual: " + "; ".join(f"{text}, {often} times" for text, often in unusual)
            )
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
