"""The console against real shells on real terminals, and against a model of a nasty terminal."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing.console import (
    PIECE,
    CommandTimeout,
    ConsoleLost,
    VmConsole,
    WaitTimeout,
)

SHELLS = {
    "bash, no line editor": ["bash", "--norc", "--noediting", "-i"],
    "bash, readline": ["bash", "--norc", "-i"],
    "dash": ["dash", "-i"],
    "busybox ash": ["busybox", "ash", "-i"],
}


LOGIN = """
printf 'starting login: '; sleep 0.1; echo 'no prompt'; sleep 0.2
printf 'guest login: '; read -r name
stty -echo; printf 'Password: '; read -r word; stty echo
printf '\\nyour %s\\n# ' "$word"; sleep 1000
"""


FIRMWARE = """
import os, tty
tty.setraw(0)
os.write(1, b"boot: ")
line = b""
while not line.endswith(b"\\r"):
    keys = os.read(0, 4096)[:15]
    line += keys
    os.write(1, keys)
os.write(1, b"\\r\\nbooting " + line.upper() + b"\\n")
"""


def until_there(flag: Path) -> str:
    """The shell's command that waits for a file."""
    return f"until [ -e {flag} ]; do sleep 0.01; done"


def until_gone(flag: Path) -> str:
    """That makes one for another that waits for it, and waits until that one has removed it."""
    return f"touch {flag}; while [ -e {flag} ]; do sleep 0.01; done"


@contextmanager
def running(command: list[str], **files: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, **files)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def terminal(
    command: list[str], columns: int, shell: bool = True
) -> AsyncIterator[VmConsole]:
    """A console of `command` on a pseudo-terminal of that width, with echo on."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with running(["setsid", "-c", *command], stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        async with VmConsole(trio.lowlevel.FdStream(ours)) as console:
            with trio.fail_after(60):
                if shell:
                    await console.synchronise()
                yield console


@pytest.fixture(params=[7, 80], ids=lambda columns: f"{columns} columns")
def columns(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=SHELLS.values(), ids=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> list[str]:
    return list(request.param)


async def test_output_is_exact_in_any_shell(shell: list[str]) -> None:
    """Each answer is what the command wrote, to the byte, and its status is the command's."""
    every_byte = "".join(f"\\{byte:03o}" for byte in range(256))
    async with terminal(shell, 7) as console:
        assert await console.exec("echo hello") == (0, b"hello\n")
        assert await console.exec("printf 'no newline'") == (0, b"no newline")
        assert await console.exec("true") == (0, b"")
        assert await console.exec("echo to stderr >&2; false") == (1, b"to stderr\n")
        assert await console.exec("cd /; exit 7") == (7, b"")
        assert await console.exec("printf '\\r\\n\\033[2J\\0'") == (0, b"\r\n\x1b[2J\0")
        assert await console.exec(f"printf '{every_byte}'") == (0, bytes(range(256)))
        assert (await console.exec("if then")).status != 0
        assert (await console.exec("cat")) == (0, b"")
        assert await console.exec("echo 'it''s' \"$((6 * 7))\"\necho two") == (0, b"its 42\ntwo\n")


async def test_a_dialogue_after_commands(shell: list[str], columns: int) -> None:
    """The terminal echoes again: what a program says is not taken for the echo of its input."""
    async with terminal(shell, columns) as console:
        for name in ("one", "two"):
            assert await console.exec("echo hello") == (0, b"hello\n")
            await console.send_line("printf 'who? '; read -r name; echo \"hello, $name\"")
            await console.wait_for(r"who\? ")
            await console.send_line(name)
            await console.wait_for(f"hello, {name}\r")
            assert await console.exec("true") == (0, b"")  # all that was said before is heard now
            assert name.encode() not in console.unread


@pytest.mark.parametrize("slowly", [True, False])
async def test_firmware_that_holds_a_few_keys_is_typed_to_slowly(slowly: bool) -> None:
    """What is typed faster than it reads is lost."""
    async with terminal([sys.executable, "-c", FIRMWARE], 80, shell=False) as console:
        await console.expect("boot: ")
        await console.send_line("http://boot.example/script", end="\r", slowly=slowly)
        if slowly:
            await console.wait_for("booting HTTP://BOOT.EXAMPLE/SCRIPT")
        else:
            with pytest.raises(WaitTimeout):
                await console.wait_for("booting", timeout=0.3)


async def test_commands_of_any_length(shell: list[str]) -> None:
    """Lengths around every limit on the way, of line, piece and terminal, make no difference."""
    async with terminal(shell, 7) as console:
        for length in (60, 384, 385, 1024, 4095, 4096, PIECE - 1, PIECE + 1, 100_000):
            word = "x" * length
            assert await console.exec(f"echo {word}") == (0, f"{word}\n".encode())


async def test_megabytes_of_output() -> None:
    """Ten megabytes arrive whole."""
    async with terminal(SHELLS["dash"], 80) as console:
        expected = b"".join(b"%d\n" % number for number in range(1, 1_450_001))
        assert len(expected) > 10_000_000
        assert await console.exec("seq 1 1450000") == (0, expected)


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
        with pytest.raises(CommandTimeout) as caught:
            await console.exec("trap '' INT; echo on; sleep 1000", timeout=0.5)
        assert caught.value.output == b"on\n"
        assert await console.exec("echo alive") == (0, b"alive\n")


async def test_a_guest_that_is_paused_holds_nobody_up() -> None:
    """There is nobody who could be interrupted: that is done when the guest goes on."""
    async with terminal(SHELLS["dash"], 80) as console:
        pid = int((await console.exec("echo $$")).text)
        console.is_paused = lambda: True
        with trio.fail_after(5), pytest.raises(CommandTimeout) as caught:
            await console.exec("kill -STOP $$; sleep 1000", timeout=0.5)
        assert caught.value.__notes__ == ["the guest is paused"]
        with trio.fail_after(12), pytest.raises(ConsoleLost, match="paused"):
            await console.exec("echo asleep", timeout=0.5)
        console.is_paused = lambda: False
        os.kill(pid, signal.SIGCONT)
        assert await console.exec("echo alive") == (0, b"alive\n")


async def test_a_guest_without_a_shell_is_no_reason_to_wait_for_ever(
    autojump_clock: MockClock,
) -> None:
    """Who asks it for a command hears so in the time that the command was given."""
    ours, _ = memory_stream_pair()
    console = VmConsole(ours)
    with trio.fail_after(61), pytest.raises(ConsoleLost, match="no shell has answered within 60 s"):
        await console.exec("true")


async def test_a_command_that_is_killed(shell: list[str]) -> None:
    """Its status says so, and what it had written is there."""
    async with terminal(shell, 80) as console:
        result = await console.exec("sh -c 'echo before; kill -9 $$'")
        assert (result.status, result.output[:7]) == (137, b"before\n")


async def test_what_stays_in_the_background_holds_nobody_up(
    shell: list[str], tmp_path: Path
) -> None:
    """A command that leaves a program behind ends with its own end, and the program goes on."""
    flag = tmp_path / "flag"
    async with terminal(shell, 80) as console:
        late = f"({until_there(flag)}; echo late; rm {flag})"
        assert await console.exec(f"{late} & echo begun") == (0, b"begun\n")
        assert await console.exec(f"{until_gone(flag)}; echo next", timeout=20) == (0, b"next\n")


async def test_many_commands_at_once(shell: list[str]) -> None:
    """Commands that need each other run side by side; each has its own status and output."""
    async with terminal(shell, 80) as console:
        fifo = (await console.exec("mktemp -u")).text
        await console.exec(f"mkfifo {fifo}")
        results = await console.exec_many(
            f"cat {fifo}; exit 3", f"echo through >{fifo}; echo done", "printf '\\0x'"
        )
        assert results == [(3, b"through\n"), (0, b"done\n"), (0, b"\0x")]
        await console.exec(f"rm {fifo}")


async def test_many_commands_that_do_not_end(shell: list[str]) -> None:
    """All are ended, what they said is told, and nothing of them is left."""
    async with terminal(shell, 80) as console:
        with pytest.raises(CommandTimeout, match="sleep 1234") as caught:
            await console.exec_many("echo one; sleep 1234.5", "sleep 1234.5; true", timeout=0.5)
        assert b"one\n" in caught.value.output
        assert (await console.exec("pgrep -f '[s]leep 1234.5'")).output == b""


async def test_a_cancelled_command_does_not_spoil_the_next(shell: list[str]) -> None:
    """A caller's own time limit leaves a console that repairs itself on the next command."""
    async with terminal(shell, 80) as console:
        with trio.move_on_after(0.1) as scope:
            await console.exec("sleep 1000")
        assert scope.cancelled_caught
        assert await console.exec("echo alive") == (0, b"alive\n")


async def test_waiting_matches_output_and_never_the_echo(shell: list[str], columns: int) -> None:
    """The word waited for stands in the line itself, and only its printing counts."""
    async with terminal(shell, columns) as console:
        await console.send_line("stty echo; PS1='what next? '")
        await console.wait_for(r"next\? ")
        await console.send_line("read -r _; echo ready; echo not read''y")
        await console.send_line("go")
        ready = await console.wait_for("rea(dy)")
        assert ready[1] == b"dy"
        assert b"echo" not in ready.string
        assert (await console.wait_for("rea(dy)")).string.strip().startswith(b"not ")
        assert await console.exec("echo alive") == (0, b"alive\n")


@pytest.mark.parametrize(
    ("editor", "kind"),
    [("bash, readline", "vt220"), ("bash, readline", "dumb"), ("busybox ash", "any")],
)
async def test_lines_that_end_at_the_edge(editor: str, kind: str) -> None:
    """A line editor shows the end of such lines twice, or scrolls them: no answer either."""
    async with terminal(["env", f"TERM={kind}", *SHELLS[editor]], 80) as console:
        await console.send_line("stty echo; PS1='what next? '")
        await console.wait_for(r"next\? ")
        for length in (*range(55, 65), *range(135, 145)):
            await console.send_line("# a word " + "x" * length)
            said = await console.wait_for(r"what next\? ")
            assert b"x" not in said.string[: said.start()]
            assert b"word" not in said.string


@pytest.mark.parametrize("kind", ["vt220", "dumb"])
async def test_a_line_typed_one_by_one(columns: int, kind: str) -> None:
    """A line editor then goes back, or scrolls, again and again: all of it is the echo."""
    async with terminal(["env", f"TERM={kind}", *SHELLS["bash, readline"]], columns) as console:
        await console.send_line("stty echo; PS1='what next? '")
        await console.wait_for(r"t\? ")  # as much of it as a "dumb" terminal of 7 columns shows
        await console.send_line("echo the answer to all of that", slowly=True)
        said = (await console.wait_for(r"t\? ")).string
        assert b" ".join(said.split()).count(b"the answer to all of that") == 1
        assert b"echo" not in said


async def test_a_line_typed_ahead_is_an_echo_each_time(
    shell: list[str], columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal shows it at once, and a line editor once more when it comes to it: no answer."""
    monkeypatch.setattr("qemu_usernat.testing.dialogue.QUIET", 0.05)
    flag = tmp_path / "flag"
    async with terminal(shell, columns) as console:
        await console.send_line("stty echo; PS1='what next? '")
        await console.expect(r"next\? ", timeout=20)
        for line in (f"{until_there(flag)}; echo first", "echo second", "echo third"):
            await console.send_line(line)
        flag.touch()
        said = b"".join((await console.wait_for("third")).string.split())
        assert [said.count(word) for word in (b"first", b"second", b"third")] == [1, 1, 1]
        assert b"echo" not in said


async def test_commands_lose_nothing_that_waits_to_be_read(
    shell: list[str], tmp_path: Path
) -> None:
    """What the guest said before, during and between commands is found afterwards, in order."""
    one, two = tmp_path / "1", tmp_path / "2"
    async with terminal(shell, 80) as console:
        during = f"{until_there(one)}; echo 'one: ü'; rm {one}"
        between = f"{until_there(two)}; echo two; rm {two}"
        end = f"{until_there(two)}; rm {two}"  # during a command: see console.py about busybox
        await console.send_line(f"({during}; {between}; {end}) & echo zero")
        assert await console.exec(f"{until_gone(one)}; echo hidden") == (0, b"hidden\n")
        two.touch()
        while two.exists():  # noqa: ASYNC110 - a shell removes it
            await trio.sleep(0.01)
        assert await console.exec(f"{until_gone(two)}; echo hidden") == (0, b"hidden\n")
        for word in ("zero", "one: ü", "two"):
            await console.wait_for(word, timeout=5)
        assert b"hidden" not in console.unread


async def test_a_prompt_is_what_the_guest_says_last() -> None:
    """`expect` waits for the guest to ask, not for a word that looks like a prompt."""
    async with terminal(["sh", "-c", LOGIN], 80, shell=False) as console:
        await console.expect("login: ", timeout=10)
        await console.send_line("root")
        await console.expect("Password: ", timeout=10)
        await console.send_line("secret", echoed=False)
        assert (await console.wait_for("secret")).string.startswith(b"\r\nyour ")
        assert b"login: " not in (await console.expect(timeout=10)).string
        with pytest.raises(WaitTimeout, match=r"0\.2 s; unread: b''"):
            await console.expect(timeout=0.2)


async def test_a_silent_terminal_and_the_same_word() -> None:
    """A reply that is the line itself passes for the echo, and the error says what to do."""
    async with terminal(["sh", "-c", "stty -echo; echo on; exec cat"], 80, shell=False) as console:
        await console.wait_for("on")
        await console.send_line("same")
        with pytest.raises(WaitTimeout, match=r"taken for the echo.*same"):
            await console.wait_for("same", timeout=0.2)
        await console.send_line("same", echoed=False)
        await console.wait_for("same")


async def test_waiting_in_megabytes() -> None:
    """A word far into a long output is found, and its search takes no time that matters."""
    async with terminal(SHELLS["dash"], 80) as console:
        await console.send_line("seq 1 1000000; echo the end")
        before = trio.current_time()
        assert len((await console.wait_for("the end")).string) > 6_888_000
        assert trio.current_time() - before < 20
        assert await console.exec("echo alive") == (0, b"alive\n")


async def test_two_tasks_take_turns() -> None:
    """Commands of two tasks at the same time are run one after the other."""
    async with terminal(SHELLS["dash"], 80) as console, trio.open_nursery() as nursery:

        async def say(word: str) -> None:
            assert await console.exec(f"sleep 0.1; echo {word}") == (0, f"{word}\n".encode())

        for word in ("one", "two", "three"):
            nursery.start_soon(say, word)


async def test_reading_all_the_time() -> None:
    """A guest that says more than a terminal holds is not held up while nobody asks."""
    async with terminal(SHELLS["dash"], 80) as console, trio.open_nursery() as nursery:
        nursery.start_soon(console.keep_reading)
        await console.send_line("seq 1 200000; echo end")
        with trio.fail_after(20):
            while not console.unread.endswith(b"end\r\n"):  # noqa: ASYNC110 - nobody may ask here
                await trio.sleep(0.01)
        assert await console.exec("echo alive") == (0, b"alive\n")
        nursery.cancel_scope.cancel()


async def test_a_console_on_a_socket(tmp_path: Path) -> None:
    """It is connected to as soon as it is there; one that never comes is a clear error."""
    path = tmp_path / "console"
    with running(["socat", f"UNIX-LISTEN:{path}", "EXEC:'dash -i',pty,setsid,ctty,stderr"]):
        async with await VmConsole.connect(path) as console:
            assert await console.exec("echo hello") == (0, b"hello\n")
    with pytest.raises(UserError, match=r"no console at .*allowed: a unix socket"):
        await VmConsole.connect(tmp_path / "none", patience=0.1)


async def test_a_console_on_pipes(tmp_path: Path) -> None:
    """QEMU's two pipes, PATH.in and PATH.out."""
    path = tmp_path / "console"
    for suffix in ("in", "out"):
        os.mkfifo(f"{path}.{suffix}")
    pipes = f"exec dash -i <>{path}.in >{path}.out 2>&1"
    with running(["sh", "-c", pipes]):
        async with await VmConsole.connect(path) as console:
            assert await console.exec("echo hello") == (0, b"hello\n")


async def test_files_of_any_bytes(tmp_path: Path) -> None:
    """A file written is the file read, all byte values, longer than a piece."""
    content = bytes(range(256)) * 100
    async with terminal(SHELLS["dash"], 80) as console:
        await console.write_file(f"{tmp_path}/it's here", content)
    assert (tmp_path / "it's here").read_bytes() == content


async def test_a_guest_that_goes_away() -> None:
    """The end of the stream is told, with the last words."""
    async with terminal(SHELLS["dash"], 80) as console:
        await console.send_line("echo farewell; kill -9 $$")
        with pytest.raises(ConsoleLost, match="gone"):
            await console.wait_for("never said")
        with pytest.raises(ConsoleLost, match="farewell"):
            await console.exec("true")
