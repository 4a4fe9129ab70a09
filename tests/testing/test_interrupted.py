"""pytest is ended from outside, by a person at the terminal or by a CI system: nothing is left.

The guest is a program that never boots, so no QEMU is needed; it stands for one that still does.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE = 60.0  # seconds for pytest to start, on a busy machine
SOON = 30.0  # seconds in which it is to be over; one is usual

TEST = """
from pathlib import Path

def test_it(usernat):
    guest = str(Path(__file__).with_name("guest"))
    with usernat.machine(command=[guest], network=(), accelerator="tcg"):
        assert False, "it does not boot"
"""
GUEST = """#!/bin/sh
echo $$ >"$0.pid.new"
mv "$0.pid.new" "$0.pid"
exec sleep 1000
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """For the tests, and for whatever they keep while they run; its path is short, for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        (folder / "test_it.py").write_text(TEST)
        guest = folder / "guest"
        guest.write_text(GUEST)
        guest.chmod(0o755)
        yield folder


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    """pytest in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition: Callable[[], bool], patience: float) -> bool:
    """Whether it comes true in time."""
    limit = time.monotonic() + patience
    while not condition() and time.monotonic() < limit:
        time.sleep(0.05)
    return condition()


def guest_of(folder: Path) -> int:
    """Its process, as soon as there is one."""
    note = folder / "guest.pid"
    assert until(note.exists, PATIENCE), "the guest has not been started"
    return int(note.read_text())


def runs(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def left(folder: Path) -> list[str]:
    """What it has not cleared away, but for the folder of the test that failed."""
    return [path.name for path in (folder / "tmp").iterdir() if "pytest-of-" not in path.name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_guest_that_still_boots_ends_with_pytest(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C ends both at once, and so does SIGTERM, as CI systems send it."""
    with start(folder) as pytest_process:
        guest = guest_of(folder)
        assert runs(guest)
        pytest_process.send_signal(number)
        said, _ = pytest_process.communicate(timeout=SOON)
    assert pytest_process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in said
    assert not runs(guest)
    assert not left(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_workers_do_not_outlive_pytest(folder: Path, number: signal.Signals) -> None:
    """Under pytest-xdist they clear away what is theirs, at once and not after some seconds."""
    with start(folder, "-n1") as pytest_process:
        guest = guest_of(folder)
        pytest_process.send_signal(number)
        assert until(lambda: not runs(guest) and not left(folder), 4.5)  # xdist's own way takes 5


def test_who_has_plans_for_sigterm_keeps_them(folder: Path) -> None:
    """A handler that a test suite has set before is not ours to replace."""
    (folder / "conftest.py").write_text(
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(42))\n"
    )
    with start(folder) as pytest_process:
        guest = guest_of(folder)
        pytest_process.send_signal(signal.SIGTERM)
        pytest_process.communicate(timeout=SOON)
    assert pytest_process.returncode == 42
    assert until(lambda: not runs(guest), SOON)
