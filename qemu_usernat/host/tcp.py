"""The host half of a TCP flow: a non-blocking stream socket.

It owns the descriptor and turns errno into what the flow understands: bytes, the end, or
failure with the ICMP code that would say it to a guest still waiting for its SYN,ACK.
"""

import errno
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable

from qemu_usernat.host.error_queue import ErrorReader
from qemu_usernat.host.refusals import refusal
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.poller import BUSY, Poller
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import Buffer

HANG_UP_READS, READ_SIZE = 64, 256 * 1024
"""Reads, and bytes of each, that are thrown away: together more than a socket's buffer holds."""

_IOV_MAXIMUM = 1024  # buffers for one sendmsg (IOV_MAX on Linux and macOS)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds


def dial(
    flow: TcpFlow,
    address: Address,
    port: int,
    ttl: int,
    poller: Poller,
    touch: Callable[[TcpFlow], None],
    errors: ErrorReader,
) -> None:
    """Begin to connect `flow` to a server; never blocks. OSError if there is no descriptor.

    `ttl` hops are what the connection has to get there.
    """
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        set_up(sock)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        result = sock.connect_ex((format_address(address), port))
        stream = HostTcp(sock, poller, touch, errors)
    except OSError:
        sock.close()
        raise
    stream.begin(flow)
    flow.dial(stream)
    if result in (0, errno.EINPROGRESS):
        stream.watch(False, True, flow.opened_at)
    else:
        flow.on_host_failed(refusal(result), flow.opened_at)


def dial_unix(
    flow: TcpFlow,
    path: str,
    poller: Poller,
    touch: Callable[[TcpFlow], None],
    errors: ErrorReader,
) -> int:
    """The same, to who listens at a unix socket; 0, or why it failed at once."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        result = sock.connect_ex(path)  # which never waits: a full backlog is EAGAIN
        stream = HostTcp(sock, poller, touch, errors)
    except OSError:
        sock.close()
        raise
    stream.begin(flow)
    flow.dial(stream)
    if result == 0:
        stream.watch(False, True, flow.opened_at)
    else:
        flow.on_host_failed(None, flow.opened_at)
    return result


def set_up(sock: socket.socket) -> None:
    """What every connection of a flow is told."""
    # What the guest's kernel has decided to send is not held back by ours.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Urgent octets are octets of the stream (RFC 6093, 3.1).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


class HostTcp:
    """A socket and its flow; a `HostStream`, and a `Handler` of the poller."""

    __slots__ = (
        "_connected",
        "_errors",
        "_flow",
        "_poller",
        "_reading",
        "_sock",
        "_touch",
        "_writing",
    )

    def __init__(
        self,
        sock: socket.socket,
        poller: Poller,
        touch: Callable[[TcpFlow], None],
        errors: ErrorReader | None = None,
    ) -> None:
        """`errors` tells why a connection was not made; without it there is one already."""
        self._flow: TcpFlow
        self._errors = errors
        self._sock: socket.socket | None = sock
        self._poller = poller
        self._touch = touch
        self._reading = self._writing = False
        self._connected = errors is None

    def begin(self, flow: TcpFlow) -> None:
        """It is the host half of `flow`; said before anything else but `reset`."""
        self._flow = flow

    # -- Handler

    def on_readable(self, now: float) -> None:
        """The server has sent something, ended its direction, or failed."""
        if self._sock is not None and self._connected:
            self._touch(self._flow)
            self._read(self._sock, now)

    def on_writable(self, now: float) -> None:
        """The connection has been made or has failed; or the socket takes more again."""
        if self._sock is None:
            return
        self._touch(self._flow)
        if self._connected:
            return  # the flow's flush writes
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._flow.on_host_failed(self._refusal(self._sock, error), now)
        elif _has_met_itself(self._sock):
            self.reset()
            self._flow.on_host_failed(None, now)
        else:
            self._connected = True
            self._flow.on_host_connected(now)

    def _refusal(self, sock: socket.socket, error: int) -> IcmpError | None:
        """What the network said against our SYN, or the kernel.

        Linux keeps the first unasked, since 5.8. Asked, it would take what is said later, which is
        a passing trouble (RFC 1122, 4.2.3.9), for the end of the connection.
        """
        assert self._errors is not None
        told = [said for said, *_ in self._errors.read(sock)]
        return told[0] if told else refusal(error)

    def on_bug(self, now: float) -> None:
        """The flow's guest hears of it as of any other failure."""
        self._touch(self._flow)
        self._flow.on_host_failed(None, now)

    def _read(self, sock: socket.socket, now: float) -> bool:
        """Read once what the guest's window admits; True if there may be more."""
        flow = self._flow
        room = flow.room()
        try:
            if room <= 0:
                if sock.recv(1, socket.MSG_PEEK):
                    flow.on_host_waiting()
                    return False
                data = b""
            else:
                data = sock.recv(room)
        except BlockingIOError:
            return False
        except OSError:
            flow.on_host_failed(None, now)
            return False
        if data:
            flow.on_host_data(data, len(data), now)
            return True
        flow.on_host_eof(now)
        return False

    # -- HostStream

    def send(self, buffers: list[Buffer], now: float) -> int:
        """Write; how many octets were taken."""
        if self._sock is None:
            return 0
        try:
            if len(buffers) == 1:
                return self._sock.send(buffers[0])
            return self._sock.sendmsg(buffers[:_IOV_MAXIMUM])
        except OSError as error:
            if error.errno not in BUSY:
                self._on_broken(self._sock, now)
            return 0

    def _on_broken(self, sock: socket.socket, now: float) -> None:
        """The server is gone; what it said before is still in the socket, and is said first."""
        while self._flow.room() > 0 and self._read(sock, now):
            pass
        self._flow.on_host_failed(None, now)

    def shutdown(self) -> None:
        """FIN to the server."""
        assert self._sock is not None
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # the server has reset: ENOTCONN
            self._flow.on_host_failed(None, self._flow.opened_at)

    def reset(self) -> None:
        """RST to the server: closing with a linger time of zero."""
        if self._sock is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close()

    def hang_up(self) -> None:
        """RST to the server, but not before it has got what was written.

        What it has said meanwhile is thrown away first: unread octets would turn the kernel's
        close into a reset that overtakes those (RFC 2525, 2.17).
        """
        assert self._sock is not None
        try:
            for _ in range(HANG_UP_READS):
                if not self._sock.recv(READ_SIZE):
                    break
        except OSError:
            pass  # nothing more to read, or the server has reset
        if not unsent(self._sock):
            self.reset()
        else:
            self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        if self._sock is not None:
            if self._reading or self._writing:
                self._poller.forget(self._sock)
            self._sock.close()
            self._sock = None

    def watch(self, read: bool, write: bool, now: float) -> None:
        """Tell the poller, if anything changed; a socket that it cannot watch has failed."""
        if (read, write) == (self._reading, self._writing) or self._sock is None:
            return
        try:
            if not (self._reading or self._writing):
                self._poller.watch(self._sock, self, read=read, write=write)
            elif read or write:
                self._poller.change(self._sock, read=read, write=write)
            else:
                self._poller.forget(self._sock)
        except OSError:
            self._touch(self._flow)  # which owes its guest a reset now
            self._flow.on_host_failed(None, now)
            return
        self._reading, self._writing = read, write


def unsent(sock: socket.socket) -> int:
    """Octets, and our FIN, that the server's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _has_met_itself(sock: socket.socket) -> bool:
    """Whether both ends of a connection are this one.

    The kernel may give us the very port that we dial on this host: nobody listens there, and
    the SYN meets itself (RFC 9293, 3.5, simultaneous open).
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # the server has already reset the connection
        return False
