"""What is said to and heard from whatever is at the other end of a terminal.

Owns the conversation with anything that reads lines and writes words, a login, an installer, a boot
loader: what was sent, what is unread, and the log. Refuses to know a shell (`VmConsole` does), and
what carries the words: any trio stream will do.

What is heard stays unread, in order, until `wait_for` or `expect` asks for it; nothing is thrown
away before. The echo of what was sent is cut out of it (`echo`).
"""

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import trio

from qemu_usernat.testing.console_stream import open_console
from qemu_usernat.testing.echo import SHELL_PROMPT, EchoFilter
from qemu_usernat.testing.echo_line import BETWEEN

READ_SIZE = 65_536  # bytes
DEFAULT_TIME_LIMIT = 60.0  # seconds
ECHO_TIME = 1.0  # seconds for a character to come back
QUIET = 0.3  # seconds without a word: then the guest waits for us
LOOK_BACK = 65_536  # bytes before new ones that are searched again for a pattern's begin


class WaitTimeout(TimeoutError):  # noqa: N818 - reads as what happened
    """What was waited for did not come; all that came is still unread."""

    def __init__(
        self, pattern: str | bytes, timeout: float, unread: bytes, echo: bytes, held: bytes = b""
    ) -> None:
        said = f"no {pattern!r} within {timeout:g} s; unread: {unread[-2000:]!r}"
        if echo:
            said += f"\ntaken for the echo of what was sent: {echo[-200:]!r}"
        if held:
            said += f"\nheld back, as it may become one: {held[-200:]!r}"
        super().__init__(said)
        self.unread = unread


class ConsoleLost(Exception):  # noqa: N818 - reads as what happened
    """Nobody answers: the guest is gone, or its shell does not come back from an interrupt."""


class Dialogue:
    """The other end of `stream`, which may be anything that is typed to.

    What the guest says is kept in `log` for a person to look at. `last_words` is asked for what
    else is known of a guest that is gone. To be used in an ``async with``, which closes the stream,
    or without.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        log: IO[bytes] | None = None,
        last_words: Callable[[], str] = str,
    ) -> None:
        self._stream = stream
        self._log = log
        self._last_words = last_words
        self._turns = trio.StrictFIFOLock()
        self._unread = bytearray()
        self._echo = EchoFilter()
        self._heard_at = -math.inf  # trio's clock
        self._arrivals: trio.Event | None = None  # set by the task that reads, if there is one
        self._lost = ""  # how the stream ended

    @classmethod
    async def connect(
        cls, path: str | Path, patience: float = 10.0, log: IO[bytes] | None = None
    ) -> Self:
        """The console at `path`, as soon as it is there: a unix socket, a terminal, or two pipes.

        These are QEMU's ``-serial unix:PATH,server=on,wait=off``, ``-serial pty`` (/dev/pts/N), and
        ``-serial pipe:PATH`` (PATH.in and PATH.out). UserError after `patience` seconds.
        """
        return cls(await open_console(path, patience), log)

    async def aclose(self) -> None:
        """Close the stream; the guest stays as it is."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, unread: {bytes(self._unread[-200:])!r}>"

    @property
    def unread(self) -> bytes:
        """What the guest has said that nobody has asked for yet."""
        return bytes(self._unread)

    async def send_line(
        self, text: str, *, end: str = "\n", echoed: bool = True, slowly: bool = False
    ) -> None:
        """Type `text` and a line end (firmware and boot loaders may want ``end="\\r"``).

        `slowly` is for firmware, too: each character waits until the one before it has come back,
        as a BIOS holds 15 of them and loses the others.

        Its echo is no answer: `wait_for` does not see it. `echoed=False` says for certain that the
        terminal does not echo, as for a password, so that the first copy of it is the guest's own.
        A line typed ahead is shown once more by a shell's line editor: that is cut out behind a
        prompt that looks like a shell's, or that was expected before. Behind any other, the second
        copy counts as said; so better wait for the prompt before typing.
        """
        async with self._turns:
            line = self._line(text, end)
            if echoed:
                self._echo.sent(line.encode(), whole=bool(end))
            for piece in line + end if slowly else (line + end,):
                await self._type(piece.encode())
                if slowly:
                    with trio.move_on_after(ECHO_TIME):
                        await self._receive()

    async def wait_for(
        self,
        pattern: str | bytes,
        timeout: float = DEFAULT_TIME_LIMIT,  # noqa: ASYNC109 - so that the error can say it
    ) -> re.Match[bytes]:
        """The next match of the regular expression in what the guest says; it is consumed.

        So is what came before it: ``match.string[: match.start()]``. What comes after stays for the
        next call. WaitTimeout when it does not come, with everything still unread.
        """
        wanted = _compiled(pattern)
        searched, thorough = 0, 0  # up to where: with a look back only, and from the begin
        with trio.move_on_after(timeout):
            while True:
                size = len(self._unread)
                if size >= thorough * 5 // 4:
                    start, thorough = 0, size
                else:
                    start = max(0, searched - LOOK_BACK)
                if wanted.search(self._unread, start):
                    return self._consume(wanted, start)
                searched = size
                await self._receive()
        if wanted.search(self._unread):
            return self._consume(wanted, 0)
        return self._last_chance(wanted, pattern, timeout)

    async def expect(
        self,
        prompt: str | bytes = SHELL_PROMPT,
        timeout: float = DEFAULT_TIME_LIMIT,  # noqa: ASYNC109 - so that the error can say it
    ) -> re.Match[bytes]:
        """Wait until the guest asks: the regular expression is the last that it says, then silence.

        What came before is consumed with it; what the kernel says behind it is no matter.
        """
        wanted = re.compile(
            rb"(?:" + _compiled(prompt).pattern + rb")(?:" + BETWEEN.pattern + rb")?\Z"
        )
        with trio.move_on_after(timeout):
            while True:
                if not wanted.search(self._unread, max(0, len(self._unread) - LOOK_BACK)):
                    await self._receive()
                    continue
                with trio.move_on_after(QUIET) as silence:
                    await self._receive()
                if silence.cancelled_caught:
                    self._echo.prompted()
                    return self._consume(wanted, max(0, len(self._unread) - LOOK_BACK))
        return self._last_chance(wanted, prompt, timeout)

    async def keep_reading(self) -> None:
        """Read all the time, until the stream ends: for a nursery.

        Without it only calls that wait do, and a guest that says much between them is held up.
        """
        if self._arrivals is not None:
            raise RuntimeError("keep_reading runs already")
        self._arrivals = trio.Event()
        try:
            while not self._lost:
                await self._read()
                self._arrivals.set()
                self._arrivals = trio.Event()
        finally:
            self._arrivals.set()
            self._arrivals = None

    # -- how

    def _line(self, text: str, end: str) -> str:
        """What is typed for a line of `text`."""
        return text

    async def _type(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._gone() from None

    async def _receive(self) -> None:
        """Wait until something has arrived, or nothing will any more: then the next call raises."""
        if self._lost:
            raise self._gone()
        if self._arrivals is None:
            await self._read()
        else:
            await self._arrivals.wait()

    async def _read(self) -> None:
        try:
            data = bytes(await self._stream.receive_some(READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if data:
            self._heard_at = trio.current_time()
            self._hear(data)
        else:
            self._add(self._echo.give_up())
            self._lost = "the guest is gone"

    def _hear(self, data: bytes) -> None:
        self._add(self._echo.feed(data))

    def _add(self, data: bytes) -> None:
        self._unread += data
        self._write_log(data)

    def _write_log(self, data: bytes) -> None:
        if self._log is not None:
            self._log.write(data)

    def _consume(self, wanted: re.Pattern[bytes], start: int) -> re.Match[bytes]:
        found = wanted.search(bytes(self._unread), start)
        assert found is not None
        del self._unread[: found.end()]
        return found

    def _last_chance(
        self, wanted: re.Pattern[bytes], pattern: str | bytes, timeout: float
    ) -> re.Match[bytes]:
        """The time is over: what is held back counts, too, where the guest has fallen silent.

        A terminal does not pause in the middle of an echo; what ends like that is none.
        """
        if trio.current_time() >= self._heard_at + QUIET:
            echo = copy.deepcopy(self._echo)
            held = echo.let_go()
            if wanted.search(self._unread + held):
                self._echo = echo
                self._add(held)
                return self._consume(wanted, 0)
        raise WaitTimeout(pattern, timeout, self.unread, self._echo.removed, self._echo.held)

    def _gone(self) -> ConsoleLost:
        words = [f"{self._lost or 'the guest is gone'}: {self._tail()}", self._last_words()]
        return ConsoleLost("\n".join(word for word in words if word))

    def _tail(self) -> str:
        return f"its last words: {bytes(self._latest()[-2000:])!r}"

    def _latest(self) -> bytearray:
        return self._unread


def _compiled(pattern: str | bytes) -> re.Pattern[bytes]:
    return re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
