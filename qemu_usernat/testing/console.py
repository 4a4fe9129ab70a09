"""Commands for a guest over its serial console, and exactly what they answered.

Owns the conversation with whatever is at the other end of a terminal: a POSIX shell, for `exec`, or
a login, an installer, a boot loader, for `send_line`, `wait_for` and `expect`. Refuses to know what
carries it: any trio stream will do.

A terminal echoes what is typed, wraps it at any column, turns line feeds into two characters and
mixes in what the kernel and others write to it. None of that can be mistaken for an answer:

- The command is typed as base64, in lines far below the 4096 bytes that the terminal's line
  discipline holds (N_TTY), and runs in a subshell whose output goes to a file, best in memory.
- What the shell then says (status, checksum, and the output as base64) is made of other bytes
  than anybody else's words, and picked out of them (`answer`).
- What is no answer stays unread, in order, until `wait_for` or `expect` asks for it; nothing is
  thrown away before. The echo of what `send_line` typed is cut out of it (`echo`).

Several commands at once (`exec_many`) run in the background of the one shell, each with its own
file. An agent on a virtio-serial port would need a driver and a program in the guest; this needs
neither, works over every console, and what takes long is the commands, not the line.

The guest needs a POSIX shell with base64, md5sum, wc, tr and rm, and a /dev/shm, /run or /tmp that
can be written to.
"""

import base64
import gzip
import hashlib
import math
import re
import secrets
import shlex
import textwrap
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, TypeAlias

import trio

from qemu_usernat.testing.answer import TO_ANSWER, Answer
from qemu_usernat.testing.console_stream import open_console
from qemu_usernat.testing.echo import BETWEEN, EchoFilter
from qemu_usernat.testing.nurseries import helpers

LINE = 512  # characters; half of what the tightest line editor takes (busybox ash: 1024)
PIECE = 12_000  # bytes of command typed at once; the guest's serial driver buffers 64 KiB
FILE_PIECE = 8_000  # bytes of a file in one command, below PIECE once encoded
READ_SIZE = 65_536  # bytes
LARGE = 50_000  # bytes; an output of more than this is compressed on its way
SYNCHRONISE_TIME = 5.0  # seconds for a shell to answer; a busy guest under emulation needs some
SILENCE = 20.0  # seconds without a byte in the middle of an answer
ATTEMPTS = 5  # to hear an answer unspoilt
INTERRUPTS = (b"\x03", b"\x03", b"\x1c")  # Ctrl-C, Ctrl-C, Ctrl-\
DEFAULT_TIME_LIMIT = 60.0  # seconds
ECHO_TIME = 1.0  # seconds for a character to come back
GIVE_BACK = "stty echo opost 2>/dev/null; "
QUIET = 0.3  # seconds without a word after a prompt: then the guest waits for us
LOOK_BACK = 65_536  # bytes before new ones that are searched again for a pattern's begin
SHELL_PROMPT = rb"[#$%>] ?"

# Commands in the background of a shell ignore Ctrl-C, so they are ended one by one.
END_ALL = """end_all() {
    for _pid; do
        end_all $(cat "/proc/$_pid/task/$_pid/children" 2>/dev/null); kill "$_pid"
    done
}"""


class CommandResult(NamedTuple):
    """How a command ended: `status` as in the shell's `$?`, and all it wrote, both streams."""

    status: int
    output: bytes

    @property
    def text(self) -> str:
        """The output for reading: decoded, without its final newlines."""
        return self.output.decode(errors="replace").rstrip("\n")


class CommandTimeout(TimeoutError):  # noqa: N818 - reads as what happened
    """The command was interrupted after its time limit; the console is usable again."""

    def __init__(self, command: str, timeout: float, output: bytes) -> None:
        shown = textwrap.shorten(command, 200)
        super().__init__(f"still running after {timeout:g} s: {shown}\nso far: {output[-2000:]!r}")
        self.output = output


class WaitTimeout(TimeoutError):  # noqa: N818 - reads as what happened
    """What was waited for did not come; all that came is still unread."""

    def __init__(self, pattern: str | bytes, timeout: float, unread: bytes, echo: bytes) -> None:
        said = f"no {pattern!r} within {timeout:g} s; unread: {unread[-2000:]!r}"
        if echo:
            said += f"\ntaken for the echo of what was sent: {echo[-200:]!r}"
        super().__init__(said)
        self.unread = unread


class ConsoleLost(Exception):  # noqa: N818 - reads as what happened
    """Nobody answers: the guest is gone, or its shell does not come back from an interrupt."""


class VmConsole:
    """The other end of `stream`: one command at a time, in the order asked for.

    What the guest says, and each command with its output, is kept in `log` for a person to look at.
    `last_words` is asked for what else is known of a guest that is gone. To be used in an
    ``async with``, which closes the stream, or without.
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
        self._answer: Answer | None = None  # the one that is being listened for
        self._name = secrets.token_hex(6)
        self._output = ""  # the file in the guest; empty until a shell has answered
        self._silenced = False  # a shell waits for a line, and `exec` has turned its echo off
        self._busy = False  # something runs in the foreground that nobody waits for any more
        self._arrivals: trio.Event | None = None  # set by the task that reads, if there is one
        self._lost = ""  # how the stream ended

    @classmethod
    async def connect(
        cls, path: str | Path, patience: float = 10.0, log: IO[bytes] | None = None
    ) -> "VmConsole":
        """The console at `path`, as soon as it is there: a unix socket, a terminal, or two pipes.

        These are QEMU's ``-serial unix:PATH,server=on,wait=off``, ``-serial pty`` (/dev/pts/N), and
        ``-serial pipe:PATH`` (PATH.in and PATH.out). UserError after `patience` seconds.
        """
        return cls(await open_console(path, patience), log)

    async def aclose(self) -> None:
        """Close the stream; the guest stays as it is."""
        await self._stream.aclose()

    async def __aenter__(self) -> "VmConsole":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<VmConsole, unread: {bytes(self._unread[-200:])!r}>"

    @property
    def unread(self) -> bytes:
        """What the guest has said that nobody has asked for yet."""
        return bytes(self._unread)

    # -- a shell

    async def exec(
        self,
        command: str,
        timeout: float = DEFAULT_TIME_LIMIT,  # noqa: ASYNC109 - ends the command, not the caller
    ) -> CommandResult:
        """Run `command` in the guest's shell; its exit status and its exact output.

        It runs in a subshell, its input is empty, its output is no terminal, and what it leaves in
        the background goes on. After `timeout` seconds it is ended by Ctrl-C, and CommandTimeout
        has what it wrote until then. ConsoleLost when nobody answers.
        """
        async with self._turns:
            return await self._exec(command, timeout)

    async def exec_many(
        self,
        *commands: str,
        timeout: float = DEFAULT_TIME_LIMIT,  # noqa: ASYNC109 - ends the commands, not the caller
    ) -> list[CommandResult]:
        """Run all `commands` at the same time and wait for each; results in the order given.

        When the time is over, each gets SIGTERM, and CommandTimeout has what they wrote until then.
        """
        async with self._turns:
            if not self._output:
                await self._synchronise()
            folder = f"{self._output}-{secrets.token_hex(4)}"
            begin = [f"mkdir {folder} && cd /"]
            begin += [
                f"{_subshell(text.encode(), f'{folder}/{number}')} & _p{number}=$!"
                for number, text in enumerate(commands)
            ]
            pids = " ".join(f"$_p{number}" for number in range(len(commands)))
            wait = [f"wait $_p{number}; echo $?" for number in range(len(commands))]
            script = "\n".join([*begin, END_ALL, f"trap 'end_all {pids}; exit 130' INT", *wait])
            try:
                statuses = (await self._exec(script, timeout)).output.split()
                outputs = [
                    (await self._exec(f"cat {folder}/{number}", SILENCE)).output
                    for number in range(len(commands))
                ]
            except CommandTimeout:
                said = await self._exec(f"tail -n 20 {folder}/*", SILENCE)
                raise CommandTimeout("; ".join(commands), timeout, said.output) from None
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(SYNCHRONISE_TIME):
                    if not self._lost:
                        await self._exec(f"rm -r {folder}", SYNCHRONISE_TIME)
            return [
                CommandResult(int(status), output)
                for status, output in zip(statuses, outputs, strict=True)
            ]

    async def write_file(self, path: str, content: bytes) -> None:
        """Put a file into the guest, whatever its bytes. Meant for kilobytes."""
        async with self._turns:
            await self._write_file(path, content)

    async def read_file(self, path: str) -> bytes:
        """The bytes of a file in the guest; OSError, with the guest's words, if it cannot."""
        return await self._must(f"cat {shlex.quote(path)}", self.exec)

    async def synchronise(self) -> None:
        """Have the shell answer. To be called once it runs; `exec` calls it where it was not."""
        async with self._turns:
            await self._synchronise()

    async def interrupt(self) -> None:
        """End whatever runs in the foreground and get the shell's attention back."""
        async with self._turns:
            await self._interrupt()

    # -- anything else that reads and writes

    async def send_line(
        self, text: str, *, end: str = "\n", echoed: bool = True, slowly: bool = False
    ) -> None:
        """Type `text` and a line end (firmware and boot loaders may want ``end="\\r"``).

        `slowly` is for firmware, too: each character waits until the one before it has come back,
        as a BIOS holds 15 of them and loses the others.

        Its echo is no answer: `wait_for` does not see it. `echoed=False` says for certain that the
        terminal does not echo, as for a password, so that the first copy of it is the guest's own.
        Wait for the prompt before typing: a shell with a line editor that finds a line typed ahead
        shows it once more, and the second copy counts as said.
        """
        async with self._turns:
            if self._silenced and end == "\n":  # what is typed next may be for other programs
                text = f"{GIVE_BACK}{text}"
                self._silenced, self._output = False, ""
            if echoed:
                self._echo.sent(text.encode(), whole=bool(end))
            for piece in text + end if slowly else (text + end,):
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
        raise WaitTimeout(pattern, timeout, self.unread, self._echo.removed)

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
                    return self._consume(wanted, max(0, len(self._unread) - LOOK_BACK))
        raise WaitTimeout(prompt, timeout, self.unread, self._echo.removed)

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

    async def _exec(self, command: str, timeout: float) -> CommandResult:  # noqa: ASYNC109
        if self._busy:
            await self._interrupt()
        elif not self._output:
            await self._synchronise()
        self._silenced = True
        shown = command if len(command) <= LINE else command.partition("\n")[0][:LINE] + " …"
        self._write_log(f"\n$ {shown}\n".encode())
        script = command.encode()
        try:
            with trio.fail_after(timeout) as limit:
                if len(script) > PIECE:
                    await self._write_file(f"{self._output}.sh", script)
                    script = f'_c=$(cat {self._output}.sh); eval "$_c"'.encode()
                run = f"rm -f {self._output}; {_subshell(script, self._output)}; _s=$?; "
                result = await self._ask(run, limit)
        except trio.TooSlowError:
            await self._interrupt()
            result = await self._ask(f"_s=130; : >>{self._output}; ")
            self._write_log(result.output + b"[interrupted]\n")
            raise CommandTimeout(command, timeout, result.output) from None
        self._write_log(
            result.output + (b"[status %d]\n" % result.status if result.status else b"")
        )
        return result

    async def _ask(self, run: str, limit: trio.CancelScope | None = None) -> CommandResult:
        """Type `run`, and have the shell say `$_s` and the file, until it is heard unspoilt."""
        file = self._output
        # An emulated line takes ten seconds for a megabyte, and compressing it takes one.
        content = (
            f'if [ "$(wc -c <{file})" -gt {LARGE} ]; '
            f"then {{ gzip -1 <{file} || cat {file}; }} 2>/dev/null | base64; "
            f"else base64 <{file}; fi"
        )
        tell = f"printf '%d ' $_s; md5sum <{file}; {content}"
        for attempt in range(ATTEMPTS):
            body = await self._exchange(run if attempt == 0 else "", tell, limit)
            if found := re.fullmatch(rb"(\d+) ([0-9a-f]+)[^\n]*\n([\w+/=\n]*)", body or b""):
                output = _decoded(found[3], found[2].decode())
                if output is not None:
                    return CommandResult(int(found[1]), output)
        raise ConsoleLost(
            f"{ATTEMPTS} answers in a row were spoilt by what others write: {self._tail()}"
        )

    async def _exchange(
        self, run: str, tell: str, limit: trio.CancelScope | None = None
    ) -> bytes | None:
        """What the commands of `tell` write, heard exactly; None where its begin was spoilt.

        Once it begins, `limit` is lifted: what runs is over then, and what takes time is the line.
        """
        answer = Answer()
        words = answer.typed_words
        typed = (
            f"{run}{{ printf ' %s%s ' {words}; {tell}; printf ' %s%s.' {words}; }} | {TO_ANSWER}\n"
        ).encode()
        for line in typed.splitlines():
            self._echo.sent(line)
        with self._listening(answer):
            # Read while typing: a guest that cannot write its echo does not read either.
            async with helpers() as nursery:
                nursery.start_soon(self._type, typed)
                while not answer.begun:
                    await self._receive()
                if limit is not None:
                    limit.deadline = math.inf
                while not answer.complete:
                    with trio.move_on_after(SILENCE) as silence:
                        await self._receive()
                    if silence.cancelled_caught:
                        break
        return answer.body if answer.complete else None

    @contextmanager
    def _listening(self, answer: Answer) -> Iterator[None]:
        """What arrives goes to `answer`; what of it was none is unread afterwards."""
        self._answer, self._busy = answer, True
        try:
            yield
            self._busy = False
        finally:
            self._answer = None
            before, rest = answer.others()
            if answer.begun:  # whoever answers has read all that was typed: no echo is left
                self._add(self._echo.feed(before) + self._echo.give_up() + rest)
            else:
                self._add(self._echo.feed(before))

    async def _synchronise(self) -> None:
        find = "; ".join(
            (
                "\nstty -echo -opost 2>/dev/null; set +m; PS1= PS2=; unset PROMPT_COMMAND",
                "for _d in /dev/shm /run /tmp ''; do",
                '[ -z "$_d" ] || { ( : >$_d/.c$$ ) 2>/dev/null && rm $_d/.c$$ && break; }; done; ',
            )
        ).replace("do;", "do")
        for _ in range(ATTEMPTS):
            folder = await self._exchange(find, 'printf %s "$_d"')
            if folder is not None and re.fullmatch(rb"(/dev/shm|/run|/tmp)?", folder):
                break
        else:
            raise ConsoleLost(f"the shell's answers are spoilt: {self._tail()}")
        if not folder:
            raise ConsoleLost("the shell can write to none of /dev/shm, /run and /tmp")
        self._output = f"{folder.decode()}/.console-{self._name}"
        self._silenced = True

    async def _interrupt(self) -> None:
        for key in INTERRUPTS:
            await self._type(key)
            with trio.move_on_after(SYNCHRONISE_TIME):
                await self._synchronise()
                return
        raise ConsoleLost(f"no answer after Ctrl-C: {self._tail()}")

    async def _write_file(self, path: str, content: bytes) -> None:
        target = shlex.quote(path)
        await self._must(f": >{target}", self._exec)
        for start in range(0, len(content), FILE_PIECE):
            piece = _encoded(content[start : start + FILE_PIECE])
            await self._must(f"base64 -d >>{target} <<'_'\n{piece}\n_", self._exec)

    async def _must(self, command: str, run: "_Run") -> bytes:
        status, output = await run(command, DEFAULT_TIME_LIMIT)
        if status != 0:
            raise OSError(f"in the guest: {command.partition(chr(10))[0]}: {output!r}")
        return output

    async def _type(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._gone() from None

    async def _receive(self) -> None:
        """Wait until something has arrived."""
        if self._lost:
            raise self._gone()
        if self._arrivals is None:
            await self._read()
        else:
            await self._arrivals.wait()
        if self._lost:
            raise self._gone()

    async def _read(self) -> None:
        try:
            data = bytes(await self._stream.receive_some(READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self._lost = "the guest is gone"
        elif self._answer is not None:
            self._answer.hear(data)
        else:
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
        self._silenced = False
        del self._unread[: found.end()]
        return found

    def _gone(self) -> ConsoleLost:
        words = [f"{self._lost or 'the guest is gone'}: {self._tail()}", self._last_words()]
        return ConsoleLost("\n".join(word for word in words if word))

    def _tail(self) -> str:
        heard = self._answer.heard if self._answer is not None else b""
        return f"its last words: {bytes((self._unread + heard)[-2000:])!r}"


_Run: TypeAlias = Callable[[str, float], Awaitable[CommandResult]]


def _compiled(pattern: str | bytes) -> re.Pattern[bytes]:
    return re.compile(pattern.encode() if isinstance(pattern, str) else pattern)


def _subshell(script: bytes, output: str) -> str:
    """What is typed to run `script`, whatever is in it."""
    decoded = f"$(base64 -d <<'_'\n{_encoded(script)}\n_\n)"
    return f'( eval "{decoded}" ) </dev/null >{output} 2>&1'


def _decoded(text: bytes, checksum: str) -> bytes | None:
    """What is meant by base64 of it, or of it compressed; None if that is spoilt."""
    with suppress(ValueError, EOFError, OSError, zlib.error):
        output = base64.b64decode(text)
        for unpack in (bytes, gzip.decompress):
            unpacked = unpack(output)
            if hashlib.md5(unpacked, usedforsecurity=False).hexdigest() == checksum:
                return unpacked
    return None


def _encoded(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    return "\n".join(text[start : start + LINE] for start in range(0, len(text), LINE))
