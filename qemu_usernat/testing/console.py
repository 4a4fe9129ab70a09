"""Commands for a guest over its serial console, and exactly what they answered.

Owns what is said to a POSIX shell, for `exec`, and knows when one listens. What else may be at the
other end of a terminal, a login, an installer, is a `Dialogue`, which this can hold as well.

A terminal echoes what is typed, wraps it at any column, turns line feeds into two characters and
mixes in what the kernel and others write to it. None of that can be mistaken for an answer:

- The command is typed as base64, in lines far below the 4096 bytes that the terminal's line
  discipline holds (N_TTY), and runs in a subshell whose output goes to a file, best in memory.
- What the shell then says (status, checksum, and the output as base64) is made of other bytes
  than anybody else's words, and picked out of them (`answer`).
- What is no answer stays to be read by the dialogue.

Several commands at once (`exec_many`) run in the background of the one shell, each with its own
file. An agent on a virtio-serial port would need a driver and a program in the guest; this needs
neither, works over every console, and what takes long is the commands, not the line.

The guest needs a POSIX shell with base64, md5sum, wc, tr and rm, and a /dev/shm, /run or /tmp that
can be written to. Between commands its echo is off, and with that busybox's ash (1.35) takes the
end of a background job of its own for the end of its input: a job that `send_line` has started
should not end then. What `exec` leaves in the background is no job of that shell.
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
from typing import IO, NamedTuple, TypeAlias

import trio

from qemu_usernat.nurseries import helpers
from qemu_usernat.testing.answer import TO_ANSWER, Answer
from qemu_usernat.testing.dialogue import DEFAULT_TIME_LIMIT, ConsoleLost, Dialogue, WaitTimeout

__all__ = ["CommandResult", "CommandTimeout", "ConsoleLost", "VmConsole", "WaitTimeout"]

LINE = 512  # characters; half of what the tightest line editor takes (busybox ash: 1024)
PIECE = 12_000  # bytes of command typed at once; the guest's serial driver buffers 64 KiB
FILE_PIECE = 8_000  # bytes of a file in one command, below PIECE once encoded
LARGE = 50_000  # bytes; an output of more than this is compressed on its way
SYNCHRONISE_TIME = 5.0  # seconds for a shell to answer; a busy guest under emulation needs some
SILENCE = 20.0  # seconds without a byte in the middle of an answer
ATTEMPTS = 5  # to hear an answer unspoilt
INTERRUPTS = (b"\x03", b"\x03", b"\x1c")  # Ctrl-C, Ctrl-C, Ctrl-\
GIVE_BACK = "stty echo opost 2>/dev/null; "

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


class VmConsole(Dialogue):
    """A `Dialogue` that also runs commands: one at a time, in the order asked for.

    Each command with its output is kept in `log`, too.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        log: IO[bytes] | None = None,
        last_words: Callable[[], str] = str,
    ) -> None:
        super().__init__(stream, log, last_words)
        self._answer: Answer | None = None  # the one that is being listened for
        self._name = secrets.token_hex(6)
        self._output = ""  # the file in the guest; empty until a shell has answered
        self._silenced = False  # a shell waits for a line, and `exec` has turned its echo off
        self._busy = False  # something runs in the foreground that nobody waits for any more
        self.is_paused: Callable[[], bool] = lambda: False
        """Whether the guest stands still, and nothing in it can be interrupted."""

    # -- a shell

    async def exec(
        self,
        command: str,
        timeout: float = DEFAULT_TIME_LIMIT,  # noqa: ASYNC109 - ends the command, not the caller
    ) -> CommandResult:
        """Run `command` in the guest's shell; its exit status and its exact output.

        It runs in a subshell, its input is empty, its output is no terminal, and what it leaves in
        the background goes on. After `timeout` seconds it is ended by Ctrl-C, and CommandTimeout
        has what it wrote until then; in a guest that is paused that is left to the next command.
        ConsoleLost when nobody answers.
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

    # -- how

    async def _exec(self, command: str, timeout: float) -> CommandResult:  # noqa: ASYNC109
        if self._busy:
            await self._interrupt()
        elif not self._output:
            patience = max(timeout, SYNCHRONISE_TIME)
            with trio.move_on_after(patience) as waiting:
                await self._synchronise()
            if waiting.cancelled_caught:
                raise ConsoleLost(f"no shell has answered within {patience:g} s: {self._tail()}")
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
            if self.is_paused():  # the next command interrupts this one
                paused = CommandTimeout(command, timeout, b"")
                paused.add_note("the guest is paused")
                raise paused from None
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
            self._echo.sent(line, unmistakable=len(line) > 1)
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
                self._add(self._echo.feed(before) + self._echo.give_up() + self._echo.feed(rest))
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
            if self.is_paused():
                raise ConsoleLost("no answer after Ctrl-C: the guest is paused")
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

    # -- what a dialogue leaves open

    def _line(self, text: str, end: str) -> str:
        if self._silenced and end == "\n":  # what is typed next may be for other programs
            text = f"{GIVE_BACK}{text}"
            self._silenced, self._output = False, ""
        return text

    def _hear(self, data: bytes) -> None:
        if self._answer is not None:
            self._answer.hear(data)
        else:
            super()._hear(data)

    def _consume(self, wanted: re.Pattern[bytes], start: int) -> re.Match[bytes]:
        self._silenced = False
        return super()._consume(wanted, start)

    def _latest(self) -> bytearray:
        heard = self._answer.heard if self._answer is not None else b""
        return super()._latest() + heard


_Run: TypeAlias = Callable[[str, float], Awaitable[CommandResult]]


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
