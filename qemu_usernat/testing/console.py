"""Commands for a guest over its serial console, and exactly what they answered.

Owns the conversation with a POSIX shell behind a terminal; refuses to know what is on the other
end of the stream: a guest under QEMU, or a pseudo-terminal in a test.

A terminal echoes what is typed, wraps it at any column, turns line feeds into two characters and
mixes in what others write to it. None of that can be mistaken for an answer:

- A marker is a random word that the guest's shell puts together from halves. The bytes typed
  never contain it, so no echo does, at any length of the command and any width of the terminal.
- The command is typed as base64 and runs in a subshell between two such markers. The echo is
  over before the first marker is printed; what lies between the markers is the output, to the
  byte, with or without a final newline.
- Lines typed stay far below the 4096 bytes that the terminal's line discipline holds (N_TTY).

Echo and output translation are turned off too, since that is kinder to the log, but nothing
depends on it except that a line feed in the output stays one character.
"""

import base64
import re
import secrets
import shlex
import textwrap
from typing import IO, NamedTuple

import trio

LINE = 512  # characters; half of what the tightest line editor takes (busybox ash: 1024)
PIECE = 12_000  # bytes of command typed at once; the guest's serial driver buffers 64 KiB
FILE_PIECE = 8_000  # bytes of a file in one command, below PIECE once encoded
READ_SIZE = 65_536  # bytes
SYNCHRONISE_TIME = 5.0  # seconds for a shell to answer; a busy guest under emulation needs some
INTERRUPTS = (b"\x03", b"\x03", b"\x1c")  # Ctrl-C, Ctrl-C, Ctrl-\
DEFAULT_TIME_LIMIT = 60.0  # seconds


class CommandResult(NamedTuple):
    """How a command ended: `status` as in the shell's `$?`, and all it wrote, both streams."""

    status: int
    output: bytes

    @property
    def text(self) -> str:
        """The output for reading: decoded, without its final newlines."""
        return self.output.decode(errors="replace").rstrip("\n")


class CommandTimeout(Exception):  # noqa: N818 - reads as what happened
    """The command was interrupted after its time limit; the console is usable again."""

    def __init__(self, command: str, timeout: float, output: bytes) -> None:
        shown = textwrap.shorten(command, 200)
        super().__init__(f"still running after {timeout:g} s: {shown}\nso far: {output[-2000:]!r}")
        self.output = output


class ConsoleLost(Exception):  # noqa: N818 - reads as what happened
    """Nobody answers: the guest is gone, or its shell does not come back from an interrupt."""


class Console:
    """A shell on the other end of `stream`. One command at a time, in the order asked for.

    All that the other end ever writes is kept in `log` too, for a person to look at.
    """

    def __init__(self, stream: trio.abc.Stream, log: IO[bytes] | None = None) -> None:
        self._stream = stream
        self._log = log
        self._buffer = bytearray()  # what came, from the begin of the running command's output
        self._searched = 0  # bytes of it that `wait_for` has passed
        self._end: bytes | None = None  # the running command's end marker

    async def exec(
        self,
        command: str,
        timeout: float = DEFAULT_TIME_LIMIT,  # noqa: ASYNC109 - ends the command, not the caller
    ) -> CommandResult:
        """Run `command` and wait for its end.

        It runs in a subshell, its input is empty, and it ends after `timeout` seconds by Ctrl-C,
        with CommandTimeout. Raises ConsoleLost when nobody answers.
        """
        try:
            with trio.fail_after(timeout):
                await self.start(command)
                return await self.finish()
        except trio.TooSlowError:
            output = bytes(self._buffer)
            await self.interrupt()
            raise CommandTimeout(command, timeout, output) from None

    async def start(self, command: str) -> None:
        """Begin `command` in the foreground, as `exec` does; `wait_for` and `finish` follow."""
        if self._end is not None:
            await self.interrupt()
        script = command.encode()
        if len(script) > PIECE:
            path = f"/tmp/.command-{secrets.token_hex(8)}"
            await self.write_file(path, script)
            script = f'_command=$(cat {path}); rm -f {path}; eval "$_command"'.encode()
        begin, type_begin = _marker()
        end, type_end = _marker()
        typed = (
            f"printf '\\036%s%s\\n' {type_begin}; "
            f"( eval \"$(base64 -d <<'_'\n{_encoded(script)}\n_\n)\" ) </dev/null 2>&1; "
            f"printf '\\036%s%s %d\\036' {type_end} $?\n"
        )
        self._end = b"\x1e" + end + b" "
        await self._type_and_skip_past(typed.encode(), begin)

    async def wait_for(
        self,
        pattern: str | bytes,
        timeout: float = DEFAULT_TIME_LIMIT,  # noqa: ASYNC109 - so that the error can say it
    ) -> re.Match[bytes]:
        """The next match of the regular expression in the running command's output.

        Before the first command: in what the guest says on its own. Raises CommandTimeout, with
        the command still running, or ConsoleLost when the command ends without a match.
        """
        wanted = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        with trio.move_on_after(timeout):
            while True:
                ended = self._buffer.find(self._end) if self._end is not None else -1
                output_end = ended if ended >= 0 else len(self._buffer)
                text = bytes(self._buffer[self._searched : output_end])
                if found := wanted.search(text):
                    self._searched += found.end()
                    return found
                if ended >= 0:
                    raise ConsoleLost(f"the command ended without {pattern!r}: {self._tail()}")
                await self._receive()
        raise CommandTimeout(f"waiting for {pattern!r}", timeout, bytes(self._buffer))

    async def finish(self) -> CommandResult:
        """Wait for the running command's end; the result has all its output from the start."""
        if self._end is None:
            raise RuntimeError("no command is running: call start() first")
        ended = re.compile(re.escape(self._end) + rb"(\d+)\x1e")
        looked = 0
        while not (found := ended.search(self._buffer, looked)):
            looked = max(0, len(self._buffer) - len(self._end) - 4)
            await self._receive()
        output, status = bytes(self._buffer[: found.start()]), int(found[1])
        self._forget(found.end())
        self._end = None
        return CommandResult(status, output)

    async def interrupt(self) -> None:
        """End whatever runs in the foreground and get the shell's attention back."""
        for key in INTERRUPTS:
            await self._stream.send_all(key)
            with trio.move_on_after(SYNCHRONISE_TIME):
                await self.synchronise()
                return
        raise ConsoleLost(f"no answer after Ctrl-C: {self._tail()}")

    async def synchronise(self) -> None:
        """Have the shell answer; what came before is forgotten. To be called once after boot."""
        marker, type_marker = _marker()
        typed = (
            "\nstty -echo -opost 2>/dev/null; set +m; PS1= PS2=; "
            f"printf '\\036%s%s\\n' {type_marker}\n"
        )
        await self._type_and_skip_past(typed.encode(), marker)
        self._end = None

    async def write_file(self, path: str, content: bytes) -> None:
        """Put a file into the guest, whatever its bytes. Meant for kilobytes."""
        target = shlex.quote(path)
        await self._must(f": >{target}")
        for start in range(0, len(content), FILE_PIECE):
            piece = _encoded(content[start : start + FILE_PIECE])
            await self._must(f"base64 -d >>{target} <<'_'\n{piece}\n_")

    async def _must(self, command: str) -> None:
        status, output = await self.exec(command)
        if status != 0:
            raise OSError(f"in the guest: {command.partition(chr(10))[0]}: {output!r}")

    async def _type_and_skip_past(self, typed: bytes, marker: bytes) -> None:
        """Read while typing: a guest that cannot write its echo does not read either."""
        line = re.compile(b"\x1e" + marker + rb"\r?\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stream.send_all, typed)
            while not (found := line.search(self._buffer)):
                self._forget(max(0, len(self._buffer) - len(marker) - 3))
                await self._receive()
        self._forget(found.end())

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive_some(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            raise ConsoleLost(f"the guest is gone: {self._tail()}")
        self._buffer += data
        if self._log is not None:
            self._log.write(data)

    def _forget(self, count: int) -> None:
        del self._buffer[:count]
        self._searched = 0

    def _tail(self) -> str:
        return f"its last words: {bytes(self._buffer[-2000:])!r}"


def _marker() -> tuple[bytes, str]:
    """A word, and how it is typed: in halves, for the shell's printf to join."""
    halves = secrets.token_hex(8), secrets.token_hex(8)
    return "".join(halves).encode(), " ".join(halves)


def _encoded(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    return "\n".join(text[start : start + LINE] for start in range(0, len(text), LINE))
