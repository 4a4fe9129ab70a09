"""Where connections come from: listening for QEMU, or connecting to a QEMU that listens.

Owns the listening sockets, the socket file, and the patience that either side needs;
hands over each connection as a non-blocking socket of the standard library and from
then on knows nothing of it. Frames are `link`'s.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from qemu_usernat.config import Endpoint, FdEndpoint, TcpEndpoint, UnixEndpoint
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import MS

BACKLOG = 128  # connections waiting for accept; more guests than start in one moment

# Without descriptors accept fails at once, again and again, while the connection waits in
# the backlog: look again when some flow may have ended. (accept(2): errors of the new
# connection are reported here as well; they may wait too.)
ACCEPT_PAUSE = 200 * MS

# A QEMU that listens is started by hand or comes back from a restart: soon at first, then
# at a pace that nobody pays for and that still feels like "at once".
CONNECT_PAUSE_FIRST = 200 * MS
CONNECT_PAUSE_LONGEST = 1000 * MS

# Two of us starting at the same moment take turns; a stranger's lock on the directory
# (it may be /tmp) must not keep us from starting.
TURN_WAIT = 500 * MS
TURN_PAUSE = 20 * MS

T = TypeVar("T")


@attrs.define
class Listener:
    """A listening socket, or one connection that was inherited already made.

    `endpoint` is where we really are: the port that the kernel chose, the address of an
    inherited socket.
    """

    endpoint: Endpoint
    _socket: socket.socket | None
    _counters: Counters
    _inode: tuple[int, int] | None = None  # (device, inode) of the socket file, if it is ours
    _connected: bool = False

    @classmethod
    def open(cls, endpoint: Endpoint, counters: Counters | None = None) -> "Listener":
        """Listen at `endpoint`. UserError where that cannot be, with the reason."""
        counters = Counters() if counters is None else counters
        match endpoint:
            case UnixEndpoint(path):
                sock, inode = _listen_on_path(path)
                return cls(endpoint, sock, counters, inode)
            case TcpEndpoint():
                sock = _listen_on_tcp(endpoint)
                return cls(_endpoint_of(sock, endpoint), sock, counters)
            case FdEndpoint():
                sock, listening = _inherit(endpoint)
                where = _endpoint_of(sock, endpoint) if listening else endpoint
                return cls(where, sock, counters, connected=not listening)

    async def accept_forever(self, on_connection: Callable[[socket.socket, str], object]) -> None:
        """Hand over every connection, with a name for messages, until `close`.

        Where accept fails, for want of descriptors as a rule, that is counted as
        ``listener.accept_failed`` and the connection waits its turn; one that
        `on_connection` cannot serve (OSError) counts as well, and is closed. A connection
        that was inherited is handed over once, and that is all.
        """
        if self._socket is None:
            return
        if self._connected:
            sock, self._socket = self._socket, None
            try:
                _hand_over(sock, str(self.endpoint), on_connection)
            except OSError:
                self._counters.count("listener.accept_failed")
            return
        with contextlib.suppress(trio.ClosedResourceError):
            while self._socket is not None:
                await trio.lowlevel.wait_readable(self._socket)
                try:
                    sock, _ = self._socket.accept()
                    _hand_over(sock, str(self.endpoint), on_connection)
                except BlockingIOError:
                    continue  # whoever else inherited this socket was quicker
                except OSError:
                    self._counters.count("listener.accept_failed")
                    await trio.sleep(ACCEPT_PAUSE)

    def close(self) -> None:
        """Stop listening; remove the socket file if it is still the one we made."""
        # The file goes first: while we still answer, nobody takes its place.
        if self._inode is not None and isinstance(self.endpoint, UnixEndpoint):
            with contextlib.suppress(OSError):
                if _identity(self.endpoint.path) == self._inode:
                    Path(self.endpoint.path).unlink()
            self._inode = None
        if self._socket is not None:
            with contextlib.suppress(RuntimeError):  # nobody can be waiting outside of trio
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._socket = None


async def connect_forever(
    endpoint: UnixEndpoint,
    on_connection: Callable[[socket.socket, str], trio.Event],
    counters: Counters | None = None,
) -> None:
    """Connect to a QEMU that listens (``server=on``), and again whenever it has gone.

    `on_connection` returns an event that is set when the connection has ended; OSError if it
    cannot serve it. A failed attempt is counted as ``listener.connect_failed``. Never returns;
    cancel it.
    """
    counters = Counters() if counters is None else counters
    pause = CONNECT_PAUSE_FIRST
    while True:
        try:
            ended = _hand_over(_connect(endpoint.path), str(endpoint), on_connection)
        except OSError:
            counters.count("listener.connect_failed")
            await trio.sleep(pause)
            pause = min(2 * pause, CONNECT_PAUSE_LONGEST)
            continue
        await ended.wait()
        # QEMU may accept and hang up at once, over and over: never without a pause.
        pause = CONNECT_PAUSE_FIRST
        await trio.sleep(pause)


# ---- unix --------------------------------------------------------------------------


def _listen_on_path(path: str) -> tuple[socket.socket, tuple[int, int]]:
    """A socket that listens at `path`, mode 0600, and its file's identity.

    A stale socket file there is replaced.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode of the socket becomes the mode of the file, without the moment between
        # bind and chmod, and without a umask that would hold for the whole process.
        os.fchmod(sock.fileno(), 0o600)
        with _our_turn(Path(path).absolute().parent):
            _make_room(path)
            sock.bind(path)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            return sock, _identity(path)
    except OSError as error:
        sock.close()
        raise UserError(f"cannot listen on unix:{path}: {error.strerror}") from error
    except UserError:
        sock.close()
        raise


def _make_room(path: str) -> None:
    """Remove a socket file that nobody listens on; UserError for anything else there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UserError(
            f"cannot listen on unix:{path}: the file there is not a socket; "
            "remove it or choose another path"
        )
    try:
        _connect(path).close()
    except ConnectionRefusedError:
        Path(path).unlink(missing_ok=True)
        return
    except FileNotFoundError:
        return  # its owner removed it while we asked
    except OSError as error:
        # EAGAIN is a full backlog, EPROTOTYPE a datagram socket: both alive.
        if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
            raise
    raise UserError(
        f"cannot listen on unix:{path}: another process listens there; "
        "end it, or choose another path with --listen"
    )


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


def _connect(path: str) -> socket.socket:
    """A non-blocking socket connected to `path`; OSError. On unix this never waits."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


# ---- TCP and inherited descriptors -------------------------------------------------


def _listen_on_tcp(endpoint: TcpEndpoint) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
    except UnicodeError as error:
        raise UserError(f"cannot listen on {endpoint}: that is not a host's name") from error
    except OSError as error:
        raise UserError(f"cannot listen on {endpoint}: {error.strerror}") from error
    return sock


def _inherit(endpoint: FdEndpoint) -> tuple[socket.socket, bool]:
    """The inherited socket, and whether it listens; UserError where it is neither kind."""
    try:
        sock = socket.socket(fileno=endpoint.descriptor)
    except OSError as error:
        why = "not open" if error.errno == errno.EBADF else "not a socket"
        raise UserError(f"cannot use {endpoint}: this descriptor is {why}") from error
    listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    try:
        if sock.type != socket.SOCK_STREAM:
            raise UserError(f"cannot use {endpoint}: it is not a stream socket")
        if not listening:
            sock.getpeername()
        sock.set_inheritable(False)
        sock.setblocking(False)
    except OSError as error:
        sock.detach()
        raise UserError(
            f"cannot use {endpoint}: this socket neither listens nor is connected"
        ) from error
    except UserError:
        sock.detach()
        raise
    return sock, listening


def _endpoint_of(sock: socket.socket, otherwise: Endpoint) -> Endpoint:
    """Where a listening socket is, as QEMU would have to name it."""
    address = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return TcpEndpoint(address[0], address[1])
    if sock.family == socket.AF_UNIX and isinstance(address, str) and address:
        return UnixEndpoint(address)
    return otherwise


def _hand_over(
    sock: socket.socket, name: str, on_connection: Callable[[socket.socket, str], T]
) -> T:
    """Give a connection away; if nobody can take it (OSError) it is closed.

    It does not block, and over TCP does not wait for more to send (RFC 896): frames are whole.
    """
    try:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return on_connection(sock, name)
    except OSError:
        sock.close()
        raise
