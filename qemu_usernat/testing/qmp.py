"""QEMU's machine protocol: commands and their answers, and the events in between.

Owns the conversation over any trio stream (docs/interop/qmp-spec.rst of QEMU): one JSON object a
line, answers in the order of commands, events at any time. Refuses to know what commands mean.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import trio

COMMAND_TIME = 30.0  # seconds; QEMU answers at once unless the host is very busy
DONE_TIME = 120.0  # seconds for a command to be done; the longest writes a guest's memory
EVENTS_KEPT = 10_000  # a guest can cause some of them as often as it likes
READ_SIZE = 65_536  # bytes


class QmpEvent(NamedTuple):
    """Something that happened: QEMU's name for it, its data, and when we heard of it (trio)."""

    name: str
    data: Mapping[str, Any]
    time: float


class QmpError(Exception):
    """QEMU refused a command; the message has the command and QEMU's words."""


class QmpLost(Exception):  # noqa: N818 - reads as what happened
    """QEMU is gone, or does not answer; the message has its last words."""


class Qmp:
    """The client. `run` has to run, in a nursery, from the beginning."""

    def __init__(self, stream: trio.abc.Stream, last_words: Callable[[], str] = str) -> None:
        self._stream = stream
        self._last_words = last_words
        self._turns = trio.StrictFIFOLock()
        self._news = trio.Event()  # set, and made anew, whenever something has arrived
        self._answers: dict[int, dict[str, Any]] = {}
        self._number = 0
        self._lost = False
        self._seen: Counter[str] = Counter()  # how many of each name were waited for
        self._forgotten: Counter[str] = Counter()
        self.events: list[QmpEvent] = []
        """All events, the latest last."""

    async def run(self) -> None:
        """Read until QEMU is gone."""
        line = bytearray()
        try:
            while data := await self._stream.receive_some(READ_SIZE):
                line += data
                *whole, rest = line.split(b"\n")
                line = bytearray(rest)
                for text in whole:
                    self._on_message(json.loads(text) if text.strip() else {})
                self._tell()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._lost = True
            self._tell()

    async def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run a command of QEMU (``"query-status"``); returns what QEMU returns.

        Names with a dash are given as ``**{"job-id": …}``. QmpError where it refuses, QmpLost where
        it is gone.
        """
        async with self._turns:
            number = self._number = self._number + 1
            request = {"execute": command, "arguments": arguments, "id": number}
            try:
                await self._stream.send_all(json.dumps(request).encode() + b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self._gone(command) from None
            with trio.move_on_after(COMMAND_TIME):
                while number not in self._answers:
                    await self._wait(command)
        if number not in self._answers:
            raise QmpLost(f"{command}: no answer from QEMU within {COMMAND_TIME:g} s")
        answer = self._answers.pop(number)
        if "error" in answer:
            told = f"{command} {arguments}" if arguments else command
            raise QmpError(f"{told}: {answer['error']['desc']}")
        return answer["return"]

    async def wait_for_event(
        self,
        name: str,
        timeout: float = COMMAND_TIME,  # noqa: ASYNC109 - so that the error can say it
    ) -> QmpEvent:
        """The next event of that name: the first that this has not returned yet.

        One that came before the call counts, too. TimeoutError when there is none in time.
        """
        with trio.move_on_after(timeout):
            while True:
                # The oldest may have been forgotten before anybody waited for them.
                number = max(0, self._seen[name] - self._forgotten[name])
                found = [event for event in self.events if event.name == name]
                if number < len(found):
                    self._seen[name] = self._forgotten[name] + number + 1
                    return found[number]
                await self._wait(f"waiting for {name}")
        heard = ", ".join(event.name for event in self.events[-20:]) or "none"
        raise TimeoutError(f"no event {name} within {timeout:g} s; events so far: {heard}")

    async def cause(
        self,
        command: str,
        event: str,
        data: Mapping[str, Any] | None = None,
        /,
        **arguments: Any,
    ) -> None:
        """Run a command and wait for the event that says that it was done: it has that `data`.

        The event counts as not seen.
        """
        wanted = data or {}
        before = self._forgotten.total() + len(self.events)
        await self.execute(command, **arguments)
        with trio.move_on_after(DONE_TIME):
            while not any(
                heard.name == event and wanted.items() <= heard.data.items()
                for heard in self.events[max(0, before - self._forgotten.total()) :]
            ):
                await self._wait(f"waiting for {event}")
            return
        raise TimeoutError(f"no event {event} with {dict(wanted)} within {DONE_TIME:g} s")

    def _on_message(self, message: dict[str, Any]) -> None:
        if "event" in message:
            event = QmpEvent(message["event"], message.get("data", {}), trio.current_time())
            self.events.append(event)
            for old in self.events[:-EVENTS_KEPT]:
                self._forgotten[old.name] += 1
            del self.events[:-EVENTS_KEPT]
        elif "id" in message:
            self._answers[message["id"]] = message

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _wait(self, what: str) -> None:
        if self._lost:
            raise self._gone(what)
        await self._news.wait()

    def _gone(self, what: str) -> QmpLost:
        return QmpLost(f"{what}: QEMU is gone\n{self._last_words()}".strip())
