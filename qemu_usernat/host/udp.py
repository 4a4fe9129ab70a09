"""The host side of a UDP mapping: one unconnected datagram socket, and its error queue.

Unconnected, because a mapping is endpoint-independent (RFC 4787, REQ-1). On Linux such a
socket hears of ICMP errors only through its error queue (IP_RECVERR, ip(7)); elsewhere it
does not hear of them.
"""

import errno
import socket

from qemu_usernat.host.error_queue import ErrorReader, forbid_fragments, listen_for_errors
from qemu_usernat.host.refusals import refusal
from qemu_usernat.nat.udp import UdpMapping
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.packets import Buffer

DATAGRAMS_AT_ONCE = 64
"""Datagrams read from one socket in one go, so that one flood does not starve the others."""

RECEIVE_BUFFER = 1024 * 1024  # bytes

DATAGRAM_MAXIMUM = 65535  # bytes


def open_udp(mapping: UdpMapping, poller: Poller, counters: Counters, errors: ErrorReader) -> None:
    """Give `mapping` a socket; OSError if the system has none, or cannot watch it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        listen_for_errors(sock)
        # The system's default holds a few bursts of a fast sender's datagrams; ask for more. What
        # it grants is bounded by net.core.rmem_max, and used only while datagrams wait.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.bind(("", 0))
        mapping.host = HostUdp(mapping, sock, poller, counters, errors)
    except OSError:
        sock.close()
        raise


class HostUdp:
    """A socket and its mapping; `HostDatagrams`, and a `Handler` of the poller."""

    __slots__ = ("_counters", "_errors", "_mapping", "_poller", "_sock", "_ways")

    def __init__(
        self,
        mapping: UdpMapping,
        sock: socket.socket,
        poller: Poller,
        counters: Counters,
        errors: ErrorReader,
    ) -> None:
        self._mapping = mapping
        self._sock: socket.socket | None = sock
        self._poller = poller
        self._counters = counters
        self._errors = errors
        self._ways: tuple[int, bool] | None = None
        """TTL and DF bit of what is sent, as the socket was told last."""
        poller.watch(sock, self, read=True)

    # -- Handler

    def on_readable(self, now: float) -> None:
        """Datagrams, or errors, have come."""
        sock = self._sock
        if sock is None:
            return
        try:
            for _ in range(DATAGRAMS_AT_ONCE):
                data, (host, port) = sock.recvfrom(DATAGRAM_MAXIMUM)
                self._mapping.on_host_datagram(data, socket.inet_aton(host), port)
        except OSError:
            # Nothing more; or an error, whose details are in the queue. A queue that is not
            # emptied would be reported as readable for ever.
            self._read_errors(sock, now)

    def on_writable(self, now: float) -> None:
        """Never asked for: a datagram that finds no room is dropped."""

    def on_bug(self, now: float) -> None:
        """One datagram was lost, as datagrams may be."""

    def _read_errors(self, sock: socket.socket, now: float) -> None:
        for error, peer, port, payload in self._errors.read(sock):
            self._mapping.on_host_error(error, peer, port, payload, now)

    # -- HostDatagrams

    def send(
        self,
        payload: Buffer,
        address: Address,
        port: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        """Send, or drop and count: a datagram is not owed to anybody."""
        if self._sock is None:
            return
        if (ttl, dont_fragment) != self._ways:
            self._ways = ttl, dont_fragment
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            forbid_fragments(self._sock, dont_fragment)
        peer = (format_address(address), port)
        error = _send(self._sock, payload, peer)
        if error == errno.EMSGSIZE:
            self._counters.count("udp.send_too_large")
            self._on_too_large(self._sock, address, port, now)
            return
        if error not in (0, errno.EAGAIN):
            # It may be about an earlier datagram, to whomever: that is cleared by the saying.
            self._read_errors(self._sock, now)
            error = _send(self._sock, payload, peer)
        if error:
            self._on_unsent(error, address, port, now)

    def _on_too_large(self, sock: socket.socket, address: Address, port: int, now: float) -> None:
        """The path is narrower than the guest believed; how narrow, the queue says, but not at
        which port."""
        for error, peer, peer_port, payload in self._errors.read(sock):
            self._mapping.on_host_error(
                error, peer, peer_port or (port if peer == address else 0), payload, now
            )

    def _on_unsent(self, error: int, address: Address, port: int, now: float) -> None:
        icmp = refusal(error)
        if icmp is None:
            self._counters.count("udp.send_full" if error == errno.EAGAIN else "udp.send_failed")
            return
        self._counters.count("udp.send_unreachable")
        self._mapping.on_host_error(icmp, address, port, b"", now)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._sock is not None:
            self._poller.forget(self._sock)
            self._sock.close()
            self._sock = None


def _send(sock: socket.socket, payload: Buffer, peer: tuple[str, int]) -> int:
    """Zero, or the errno of sendto(2)."""
    try:
        sock.sendto(payload, peer)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
