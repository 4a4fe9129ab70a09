"""The console against real shells on real terminals, and against a model of a nasty terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import cycle
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_usernat.testing.console import (
    PIECE,
    CommandTimeout,
    Console,
    ConsoleLost,
)

SHELLS = {
    "bash, no line editor": ["bash", "--norc", "--noediting", "-i"],
    "bash, readline": ["bash", "--norc", "-i"],
    "dash": ["dash", "-i"],
    "busybox ash": ["busybox", "ash", "-i"],
}


class DescriptorStream(trio.abc.Stream):
    """A terminal's or a pipe's descriptors as a stream; a hang-up is the end of it."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reader = trio.lowlevel.FdStream(reading)
        self.writer = trio.lowlevel.FdStream(writing)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.writer.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.writer.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return bytes(await self.reader.receive_some(max_bytes))
        except trio.BrokenResourceError:
            return b""

    async def aclose(self) -> None:
        await self.writer.aclose()
        await self.reader.aclose()


@contextmanager
def running(command: list[str], **files: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, **files)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def terminal(command: list[str], columns: int) -> AsyncIterator[Console]:
    """A console of `command` on a pseudo-terminal of that width, with echo on."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with running(["setsid", "-c", *command], stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        async with DescriptorStream(ours, os.dup(ours)) as stream:
            console = Console(stream)
            with trio.fail_after(60):
                await console.synchronise()
                yield console


@pytest.fixture(params=[7, 80], ids=lambda columns: f"{columns} columns")
def columns(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=SHELLS.values(), ids=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> list[str]:
    return list(request.param)


async def test_output_is_exact_in_any_shell(shell: list[str], columns: int) -> None:
    """Each answer is what the command wrote, to the byte, and its status is the command's."""
    async with terminal(shell, columns) as console:
        assert await console.exec("echo hello") == (0, b"hello\n")
        assert await console.exec("printf 'no newline'") == (0, b"no newline")
        assert await console.exec("true") == (0, b"")
        assert await console.exec("echo to stderr >&2; false") == (1, b"to stderr\n")
        assert await console.exec("cd /; exit 7") == (7, b"")
        assert await console.exec("printf '\\r\\n\\033[2J\\0'") == (0, b"\r\n\x1b[2J\0")
        assert (await console.exec("if then")).status != 0
        assert (await console.exec("cat")) == (0, b"")
        assert await console.exec("echo 'it''s' \"$((6 * 7))\"\necho two") == (0, b"its 42\ntwo\n")


async def test_commands_of_any_length(shell: list[str], columns: int) -> None:
    """Lengths around every limit on the way, of line, piece and terminal, make no difference."""
    async with terminal(shell, columns) as console:
        for length in (60, 384, 385, 1024, 4095, 4096, PIECE - 1, PIECE + 1, 100_000):
            word = "x" * length
            assert await console.exec(f"echo {word}") == (0, f"{word}\n".encode())


async def test_megabytes_of_output(columns: int) -> None:
    """Several megabytes arrive whole."""
    async with terminal(SHELLS["dash"], columns) as console:
        expected = b"".join(b"%d\n" % number for number in range(1, 600_001))
        assert await console.exec("seq 1 600000") == (0, expected)


async def test_a_command_that_hangs_is_interrupted(shell: list[str]) -> None:
    """After its time limit a command gets Ctrl-C; what it said is told; the next one works."""
    async with terminal(shell, 80) as console:
        with pytest.raises(CommandTimeout) as caught:
            await console.exec("echo begun; sleep 1000; echo not reached", timeout=0.5)
        assert caught.value.output == b"begun\n"
        assert await console.exec("echo alive") == (0, b"alive\n")


async def test_a_command_that_ignores_the_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-\\ follows where Ctrl-C is ignored."""
    monkeypatch.setattr("qemu_usernat.testing.console.SYNCHRONISE_TIME", 0.5)
    async with terminal(SHELLS["dash"], 80) as console:
        await console.start("trap '' INT; echo on; sleep 1000")
        await console.wait_for("on")
        with trio.fail_after(30):
            await console.interrupt()
        assert await console.exec("echo alive") == (0, b"alive\n")


async def test_a_cancelled_command_does_not_spoil_the_next(shell: list[str]) -> None:
    """A caller's own time limit leaves a console that repairs itself on the next command."""
    async with terminal(shell, 80) as console:
        with trio.move_on_after(0.3) as scope:
            await console.exec("sleep 1000")
        assert scope.cancelled_caught
        assert await console.exec("echo alive") == (0, b"alive\n")


async def test_waiting_matches_output_and_never_the_echo(shell: list[str], columns: int) -> None:
    """The word waited for stands in the command itself, and only its printing counts."""
    async with terminal(shell, columns) as console:
        await console.exec("stty echo")
        fifo = (await console.exec("mktemp -u")).text
        assert (await console.exec(f"mkfifo {fifo}")).status == 0
        await console.start(f"read -r _ <{fifo}; echo ready; exit 3")
        with pytest.raises(CommandTimeout):
            await console.wait_for("ready", timeout=0.3)
        with trio.fail_after(10):
            await trio.to_thread.run_sync(Path(fifo).write_text, "go\n")
        assert (await console.wait_for("rea(dy)"))[1] == b"dy"
        assert await console.finish() == (3, b"ready\n")
        await console.exec(f"rm {fifo}")


async def test_waiting_in_vain_says_what_came() -> None:
    """A command that ends without the word is an error at once, not after the time limit."""
    async with terminal(SHELLS["dash"], 80) as console:
        await console.start("echo something else")
        with pytest.raises(ConsoleLost, match="something else"):
            await console.wait_for("word")
        assert await console.exec("echo alive") == (0, b"alive\n")


async def test_files_of_any_bytes(tmp_path: Path) -> None:
    """A file written is the file read, all byte values, longer than a piece."""
    content = bytes(range(256)) * 100
    async with terminal(SHELLS["dash"], 80) as console:
        await console.write_file(f"{tmp_path}/it's here", content)
    assert (tmp_path / "it's here").read_bytes() == content


async def test_a_guest_that_goes_away() -> None:
    """The end of the stream is told, with the last words."""
    async with terminal(SHELLS["dash"], 80) as console:
        await console.start("echo farewell; kill -9 $$")
        with pytest.raises(ConsoleLost, match="gone"):
            await console.finish()


@attrs.define(slots=False)
class NastyTerminal(trio.abc.Stream):
    """A model of a terminal before a real shell: it echoes, wraps, adds noise and splits reads."""

    shell: trio.abc.Stream
    width: int
    wrap: bytes
    noise: bytes
    sizes: Iterator[int]
    pending: bytearray = attrs.field(factory=bytearray)
    column: int = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for byte in bytes(data):
            if byte == 0x0A:
                self.pending += b"\r\n" + self.noise
                self.column = 0
            else:
                self.pending.append(byte)
                self.column += 1
                if self.column % self.width == 0:
                    self.pending += self.wrap
        await self.shell.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.shell.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self.pending:
            self.pending += await self.shell.receive_some(max_bytes)
        size = next(self.sizes)
        piece = bytes(self.pending[:size])
        del self.pending[:size]
        return piece

    async def aclose(self) -> None:
        await self.shell.aclose()


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 200),
    wrap=st.sampled_from([b"\r\n", b" \r", b"\x1b[K\r\n", b"\r\r\n"]),
    noise=st.sampled_from([b"", b"[   12.345678] eth0: link up\r\n", b"\x1e", b"\xff$ "]),
    sizes=st.lists(st.integers(1, 400), min_size=1),
    outputs=st.lists(st.binary(max_size=700), min_size=1, max_size=3),
    status=st.integers(0, 255),
)
async def test_a_nasty_terminal_changes_no_answer(
    width: int, wrap: bytes, noise: bytes, sizes: list[int], outputs: list[bytes], status: int
) -> None:
    """Whatever a terminal does to what is typed, the answers are the command's own bytes."""
    (shell_input, typing), (listening, shell_output) = os.pipe(), os.pipe()
    # busybox's shell ignores what follows a zero byte in a script, so bytes go by their numbers
    octal: Callable[[bytes], str] = lambda data: "".join(f"\\{byte:03o}" for byte in data)  # noqa: E731
    with running(["dash", "-i"], stdin=shell_input, stdout=shell_output, stderr=shell_output):
        os.close(shell_input)
        os.close(shell_output)
        pipes = DescriptorStream(listening, typing)
        async with NastyTerminal(pipes, width, wrap, noise, cycle(sizes)) as stream:
            console = Console(stream)
            with trio.fail_after(30):
                await console.synchronise()
                for output in outputs:
                    command = f"printf '{octal(output)}'; exit {status}"
                    assert await console.exec(command) == (status, output)
