"""Signals that come while the program starts: a real process that gets one at a certain moment."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Sends itself a signal when it first imports a certain module; then all is as in the program.
PROGRAM = """
import os, signal, sys
from qemu_usernat.__main__ import main

class Sender:
    module, number = sys.argv.pop(1), int(sys.argv.pop(1))

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), self.number)

sys.meta_path.insert(0, Sender())
sys.exit(main())
"""

QEMU = """#!/bin/sh
[ "$1" = --version ] && echo "QEMU emulator version 9.2.1" && exit
exec sleep 60
"""


def started(
    module: str, number: signal.Signals, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    """What becomes of the program if it gets the signal just before it loads the module."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, module, str(number.value), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["trio", "qemu_usernat.app", "impacket"])
def test_a_server_that_is_not_ready_ends_as_one_that_is(
    tmp_path: Path, module: str, number: signal.Signals
) -> None:
    """Ctrl-C in the first half second: exit code 0, no traceback, no socket file."""
    socket = tmp_path / "guest.sock"
    ended = started(module, number, "serve", "--listen", f"unix:{socket}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not socket.exists()


def test_a_server_that_is_not_ready_reports_when_it_is(tmp_path: Path) -> None:
    """SIGUSR1 is not lost and ends nothing, however early; the second signal is the end."""
    program = PROGRAM.replace("self.number)", "self.number); os.kill(os.getpid(), signal.SIGTERM)")
    ended = subprocess.run(
        [sys.executable, "-c", program, "trio", str(signal.SIGUSR1.value), "serve",
         "--listen", f"unix:{tmp_path}/guest.sock"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode == 0
    assert "report" in ended.stderr


@pytest.mark.parametrize("module", ["click", "qemu_usernat.cli"])
def test_before_there_is_a_server_an_interrupt_is_the_end(module: str) -> None:
    """While the command line itself loads: no word, as from any program that is interrupted."""
    ended = started(module, signal.SIGINT, "serve")
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` ends, with QEMU if that has begun by then, and its private directory is gone."""
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.write_text(QEMU)
    qemu.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ended = started("qemu_usernat.app", signal.SIGINT, "run", "--", str(qemu))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == [qemu]
