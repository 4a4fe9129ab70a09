"""QEMU as a child: its exit code is ours, signals are its own, and it never outlives us."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.qemu.process import run_program


def shell(script: str) -> list[str]:
    """A program that stands in for QEMU."""
    return ["/bin/sh", "-c", script]


def says(fifo: Path) -> str:
    """What the program writes when it is ready; blocks until then."""
    return fifo.read_text()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """The way by which a program says that it is ready."""
    path = tmp_path / "ready"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 128 + signal.SIGKILL)]
)
async def test_the_exit_code_is_the_programs(script: str, code: int) -> None:
    """As a shell would tell it, a death by signal included."""
    assert await run_program(shell(script)) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signals_are_the_programs_to_answer(
    fifo: Path, number: signal.Signals, nursery: trio.Nursery
) -> None:
    """Who asks us to end asks QEMU: its guest may want to shut down first."""
    codes: list[int] = []
    done = trio.Event()

    async def program() -> None:
        # Long sleeps are started in the background: a shell runs no trap while it waits
        # for a foreground command.
        name = number.name.removeprefix("SIG")
        trap = f"trap 'kill $!; exit 42' {name}; sleep 60 & echo ready > '{fifo}'; wait"
        codes.append(await run_program(["/bin/bash", "-c", trap]))
        done.set()

    nursery.start_soon(program)
    assert await trio.to_thread.run_sync(says, fifo) == "ready\n"
    os.kill(os.getpid(), number)
    with trio.fail_after(10):
        await done.wait()
    assert codes == [42]


async def test_cancelled_we_take_the_program_with_us(fifo: Path) -> None:
    """When the network fails, no QEMU stays behind."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_program, shell(f"echo $$ > '{fifo}'; exec sleep 60"))
        child = int(await trio.to_thread.run_sync(says, fifo))
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


async def test_a_program_that_will_not_end_is_ended(
    fifo: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A QEMU that hangs holds nobody up for ever."""
    autojump_clock.autojump_threshold = float("inf")
    script = f"trap '' TERM; echo $$ > '{fifo}'; while :; do sleep 60; done"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_program, shell(script))
        child = int(await trio.to_thread.run_sync(says, fifo))
        autojump_clock.autojump_threshold = 0
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


async def test_a_program_that_cannot_start_is_told(tmp_path: Path) -> None:
    """Its name and the system's reason."""
    with pytest.raises(UserError, match="no-such-qemu cannot be started: No such file"):
        await run_program(["no-such-qemu"])


async def test_the_users_descriptors_reach_the_program(tmp_path: Path) -> None:
    """`run -- qemu … -add-fd fd=N` works as it would without us."""
    with (tmp_path / "log").open("w+") as log:
        os.set_inheritable(log.fileno(), True)
        assert await run_program(shell(f"echo hello > /dev/fd/{log.fileno()}")) == 0
        log.seek(0)
        assert log.read() == "hello\n"


def test_killed_we_leave_no_orphan() -> None:
    """Even kill -9 of us ends QEMU: the kernel sees to it."""
    script = (
        "import trio; from qemu_usernat.qemu.process import run_program;"
        "trio.run(run_program, ['/bin/sh', '-c', 'echo $$; exec sleep 60'])"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        child = os.pidfd_open(int(ours.stdout.readline()))
        ours.kill()
    gone, _, _ = select.select([child], [], [], 10)
    os.close(child)
    assert gone
