"""Where connections come from: listening for QEMU, or connecting to a QEMU that listens.

Owns the listening sockets, the socket file, and the patience that either side needs;
hands over each connection as a non-blocking socket of the standard library and from
then on knows nothing of it. Frames are `link`'s.
"""

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TypeVar

import attrs
import trio

from qemu_usernat import socket_file
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

KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds of silence on a TCP link, seconds between questions then, and how many of them."""

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
    _identity: socket_file.Identity | None = None
    """Of the socket file, if it is ours."""
    _connected: bool = False

    @classmethod
    def open(cls, endpoint: Endpoint, counters: Counters | None = None) -> "Listener":
        """Listen at `endpoint`. UserError where that cannot be, with the reason."""
        counters = Counters() if counters is None else counters
        match endpoint:
            case UnixEndpoint(path):
                sock, identity = socket_file.listen(
                    path, BACKLOG, "listen on", "choose another path with --listen"
                )
                return cls(endpoint, sock, counters, identity)
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
                hand_over(sock, str(self.endpoint), on_connection)
            except OSError:
                self._counters.count("listener.accept_failed")
            return
        with contextlib.suppress(trio.ClosedResourceError):
            while self._socket is not None:
                await trio.lowlevel.wait_readable(self._socket)
                try:
                    sock, _ = self._socket.accept()
                    hand_over(sock, str(self.endpoint), on_connection)
                except BlockingIOError:
                    continue  # whoever else inherited this socket was quicker
                except OSError:
                    self._counters.count("listener.accept_failed")
                    await trio.sleep(ACCEPT_PAUSE)

    def close(self) -> None:
        """Stop listening; remove the socket file if it is still the one we made."""
        # The file goes first: while we still answer, nobody takes its place.
        if self._identity is not None and isinstance(self.endpoint, UnixEndpoint):
            socket_file.remove(self.endpoint.path, self._identity)
            self._identity = None
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
            ended = hand_over(socket_file.connect(endpoint.path), str(endpoint), on_connection)
        except OSError:
            counters.count("listener.connect_failed")
            await trio.sleep(pause)
            pause = min(2 * pause, CONNECT_PAUSE_LONGEST)
            continue
        await ended.wait()
        # QEMU may accept and hang up at once, over and over: never without a pause.
        pause = CONNECT_PAUSE_FIRST
        await trio.sleep(pause)


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


def _keep_alive(sock: socket.socket) -> None:
    """A QEMU whose host is gone says no goodbye; until its link ends, nobody else may be its guest
    where sources are guarded. One that is only stopped is answered for by its kernel."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def hand_over(
    sock: socket.socket, name: str, on_connection: Callable[[socket.socket, str], T]
) -> T:
    """Give a connection away; if nobody can take it (OSError) it is closed.

    It does not block, and over TCP does not wait for more to send (RFC 896): frames are whole.
    """
    try:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _keep_alive(sock)
        return on_connection(sock, name)
    except OSError:
        sock.close()
        raise
