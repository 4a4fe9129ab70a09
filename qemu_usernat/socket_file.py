"""Listening on a path of the file system: a unix stream socket, and the care for its file.

A file that a dead process has left is replaced, one of a living process never; the mode is 0600;
and at the end only that file is removed which is still ours.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import MS

# Two of us starting at the same moment take turns; a stranger's lock on the directory
# (it may be /tmp) must not keep us from starting.
TURN_WAIT = 500 * MS
TURN_PAUSE = 20 * MS

Identity: TypeAlias = tuple[int, int]
"""Device and inode of a socket file."""


def listen(path: str, backlog: int, doing: str, remedy: str) -> tuple[socket.socket, Identity]:
    """A non-blocking socket that listens at `path`, mode 0600, and its file's identity.

    A stale socket file there is replaced. UserError for anything else: "cannot `doing` unix:…",
    and `remedy`.
    """
    what = f"cannot {doing} unix:{path}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode of the socket becomes the mode of the file, without the moment between
        # bind and chmod, and without a umask that would hold for the whole process.
        os.fchmod(sock.fileno(), 0o600)
        with _our_turn(Path(path).absolute().parent):
            _make_room(path, what, remedy)
            sock.bind(path)
            sock.listen(backlog)
            sock.setblocking(False)
            return sock, _identity(path)
    except OSError as error:
        sock.close()
        raise UserError(f"{what}: {error.strerror}") from error
    except UserError:
        sock.close()
        raise


def _make_room(path: str, what: str, remedy: str) -> None:
    """Remove a socket file that nobody listens on; UserError for anything else there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UserError(f"{what}: the file there is not a socket; remove it or choose another path")
    try:
        connect(path).close()
    except ConnectionRefusedError:
        Path(path).unlink(missing_ok=True)
        return
    except FileNotFoundError:
        return  # its owner removed it while we asked
    except OSError as error:
        # EAGAIN is a full backlog, EPROTOTYPE a datagram socket: both alive.
        if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
            raise
    raise UserError(f"{what}: another process listens there; end it, or {remedy}")


def remove(path: str, identity: Identity) -> None:
    """Remove the socket file, if it is still the one that we made."""
    with contextlib.suppress(OSError):
        if _identity(path) == identity:
            Path(path).unlink()


@contextlib.contextmanager
def _our_turn(directory: Path) -> Iterator[None]:
    """Only one of us looks at and replaces a socket file in `directory` at a time."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        yield  # a drop box (mode 1733): we may put our socket there, but not look or lock
        return
    try:
        deadline = time.monotonic() + TURN_WAIT
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(TURN_PAUSE)
        yield
    finally:
        os.close(descriptor)


def connect(path: str) -> socket.socket:
    """A non-blocking socket connected to `path`; OSError. On unix this never waits."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def _identity(path: str) -> Identity:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
