"""QEMU as our child: it shares our terminal and does not outlive us.

Owns the child process, and the signals that reach us while it lives: they are QEMU's to
answer. Knows nothing of sockets and frames.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence

import trio

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import SECOND

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# QEMU answers SIGTERM by writing out its images and giving the terminal back; one that is
# stuck is ended after this time.
END_TIME_LIMIT = 5 * SECOND

_PR_SET_PDEATHSIG = 1  # prctl(2)


async def run_program(command: Sequence[str]) -> int:
    """Run the program until it ends; its exit code, or 128 + N where signal N ended it.

    Must be called from the main thread. SIGINT, SIGTERM and SIGHUP are passed on to the
    program. Cancelled, it ends the program first. UserError where it cannot be started.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    process = _start(command)
    ended = os.pidfd_open(process.pid)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_pass_on_signals, process)
            await trio.lowlevel.wait_readable(ended)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await _end(process, ended)
        os.close(ended)
    status = process.returncode
    return status if status >= 0 else 128 - status


def _start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    try:
        # Descriptors that the user opened for QEMU go through; all of ours close on exec.
        return subprocess.Popen(command, close_fds=False, preexec_fn=_dies_with(os.getpid()))
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error.strerror}") from error


def _dies_with(parent: int) -> Callable[[], None]:
    """What the child does before exec: ask the kernel for a SIGTERM when we are gone.

    The kernel watches the thread that forked: the main thread lives as long as we do.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # we ended before the kernel was asked
            os._exit(128 + signal.SIGTERM)

    return in_child


async def _pass_on_signals(
    process: "subprocess.Popen[bytes]",
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(*PASSED_ON) as signals:
        task_status.started()
        async for number in signals:
            process.send_signal(number)


async def _end(process: "subprocess.Popen[bytes]", ended: int) -> None:
    """Reap the process, ending it first if it runs."""
    process.terminate()
    with trio.move_on_after(END_TIME_LIMIT) as patience:
        await trio.lowlevel.wait_readable(ended)
    if patience.cancelled_caught:
        process.kill()
        await trio.lowlevel.wait_readable(ended)
    process.wait()
