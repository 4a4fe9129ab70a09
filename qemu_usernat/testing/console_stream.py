"""Where a console is found: a unix socket, a terminal, or two pipes, as QEMU makes them.

Owns the opening; refuses to know what is said.
"""

import os
import tty
from collections.abc import Callable
from pathlib import Path

import trio

from qemu_usernat.primitives.errors import UserError

RETRY_TIME = 0.05  # seconds between two looks for a console that is not there yet


async def open_console(path: str | Path, patience: float) -> trio.abc.Stream:
    """The stream at `path`, as soon as it is there. UserError after `patience` seconds."""
    with trio.move_on_after(patience):
        while True:
            try:
                return await _open(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                await trio.sleep(RETRY_TIME)
    raise UserError(
        f"no console at {path} within {patience:g} s; allowed: a unix socket that QEMU listens at, "
        f"a terminal, or pipes named {path}.in and {path}.out"
    )


async def _open(path: str) -> trio.abc.Stream:
    if _is(Path.is_fifo, f"{path}.in"):
        return await _open_pipes(path)
    if _is(Path.is_char_device, path):
        terminal = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        tty.setraw(terminal)
        return trio.lowlevel.FdStream(terminal)
    return await trio.open_unix_socket(path)


async def _open_pipes(path: str) -> trio.abc.Stream:
    try:
        writing = os.open(f"{path}.in", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # ENXIO: nobody reads, so QEMU is not there yet (fifo(7))
        raise FileNotFoundError(path) from error
    writer = trio.lowlevel.FdStream(writing)
    # QEMU opens the one pipe right after the other; before that, this end would read as ended.
    await trio.sleep(RETRY_TIME)
    reading = os.open(f"{path}.out", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return trio.StapledStream(writer, trio.lowlevel.FdStream(reading))


def _is(kind: Callable[[Path], bool], path: str) -> bool:
    return kind(Path(path))
