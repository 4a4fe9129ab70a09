"""The host side of UDP mappings: one unconnected datagram socket each, and its error queue.

Unconnected, because a mapping is endpoint-independent (RFC 4787, REQ-1). On Linux such a
socket hears of ICMP errors only through its error queue (IP_RECVERR, ip(7)); elsewhere it
does not hear of them.

What a guest sends in one turn to one peer, in datagrams of one size, goes to the kernel in one call
(UDP_SEGMENT, udp(7)), and so may come what a peer has sent like that (UDP_GRO). Each datagram is
still one, in order; where the kernel, the path or the size do not allow it, they go one by one.
"""

import errno
import socket
import struct
from collections.abc import Container, Iterator
from pathlib import Path

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

PORT_MINIMUM = 1024
"""Below it are the ports of the system's own services: no guest's (RFC 4787, REQ-3)."""

PORTS_TRIED = 4
"""The guest's own port, and others of its parity (RFC 4787, REQ-4), before any will do."""

RUN_MAXIMUM = 64  # datagrams in one call: UDP_MAX_SEGMENTS, linux/udp.h, since 4.18
RUN_OCTETS = 65000  # of all of them: they go through the stack as one packet

TRIAL = 512
"""Datagrams of a busy socket in which UDP_GRO has to show that it is of use there: reading one that
was not merged costs more with it than without."""

_UDP_SEGMENT, _UDP_GRO = 103, 104  # linux/udp.h
_SEGMENT_SIZE = struct.Struct("=H")
_MERGED_SIZE = struct.Struct("=i")
_ANCILLARY = 64  # bytes

_RESERVED_PORTS = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


def reserved_ports() -> frozenset[int]:
    """Those that the host's administrator keeps for services (ip-sysctl)."""
    try:
        ranges = _RESERVED_PORTS.read_text().strip().split(",")
    except OSError:
        return frozenset()
    edges = [each.partition("-") for each in ranges if each]
    return frozenset(
        port for first, _, last in edges for port in range(int(first), int(last or first) + 1)
    )


class UdpSockets:
    """Opens the sockets of mappings; at the end of a turn they send what they kept."""

    def __init__(self, poller: Poller, counters: Counters, errors: ErrorReader) -> None:
        self.poller = poller
        self.counters = counters
        self.errors = errors
        self._reserved = reserved_ports()
        self._sending: list[HostUdp] = []

    def open(self, mapping: UdpMapping) -> None:
        """Give `mapping` a socket; OSError if the system has none, or cannot watch it."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            listen_for_errors(sock)
            # The system's default holds a few bursts of a fast sender's datagrams; ask for more.
            # What it grants is bounded by net.core.rmem_max, and used only while datagrams wait.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            _bind(sock, mapping.key[1], self._reserved)
            mapping.host = HostUdp(mapping, sock, self)
        except OSError:
            sock.close()
            raise

    def at_end_of_turn(self, host: "HostUdp") -> None:
        """It has something to send."""
        self._sending.append(host)

    def flush(self, now: float) -> None:
        """The turn ends."""
        if self._sending:
            sending, self._sending = self._sending, []
            for host in sending:
                self.poller.protect(host, host.flush, now)


def _bind(sock: socket.socket, wanted: int, reserved: Container[int]) -> None:
    """At the guest's own port if that is free, or at one that is."""
    for port in _candidates(wanted):
        if port in reserved:
            continue
        try:
            sock.bind(("", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
        else:
            return
    sock.bind(("", 0))


def _candidates(wanted: int) -> Iterator[int]:
    if wanted >= PORT_MINIMUM:
        yield from range(wanted, min(wanted + 2 * PORTS_TRIED, 65536), 2)


class HostUdp:
    """A socket and its mapping; `HostDatagrams`, and a `Handler` of the poller."""

    __slots__ = (
        "_is_waiting",
        "_mapping",
        "_merges",
        "_now",
        "_octets",
        "_run",
        "_runs_below",
        "_size",
        "_sock",
        "_sockets",
        "_to",
        "_trial",
        "_ways",
        "port",
    )

    def __init__(self, mapping: UdpMapping, sock: socket.socket, sockets: UdpSockets) -> None:
        self._mapping = mapping
        self._sock: socket.socket | None = sock
        self._sockets = sockets
        self.port: int = sock.getsockname()[1]
        self._ways: tuple[int, bool] | None = None
        """TTL and DF bit of what is sent, as the socket was told last."""
        self._run: list[Buffer] = []
        """What is to be sent together."""
        self._to: tuple[Address, int, int, bool] | None = None
        """Address, port, TTL and DF bit of the run."""
        self._size = self._octets = 0
        """Of the run's first datagram, and of all of them."""
        self._runs_below = DATAGRAM_MAXIMUM
        """Size from which datagrams do not go together."""
        self._is_waiting = False
        self._now = 0.0
        self._merges = False
        """Whether UDP_GRO is on."""
        self._trial = TRIAL
        """Datagrams left in which something has to be merged; 0 when it has been judged."""
        sockets.poller.watch(sock, self, read=True)

    # -- Handler

    def on_readable(self, now: float) -> None:
        """Datagrams, or errors, have come."""
        sock = self._sock
        if sock is None:
            return
        count = 0
        try:
            while count < DATAGRAMS_AT_ONCE:
                count += self._read_merged(sock, now) if self._merges else self._read(sock, now)
        except BlockingIOError:
            if count:
                return  # if there are errors, too, we are told again
            # A queue that is not emptied would be reported as readable for ever.
            self._read_errors(sock, now)
        except OSError:
            self._read_errors(sock, now)
        else:
            if self._trial and not self._merges:
                self._merge(sock, True)

    def _read(self, sock: socket.socket, now: float) -> int:
        data, (host, port) = sock.recvfrom(DATAGRAM_MAXIMUM)
        self._mapping.on_host_datagram(data, socket.inet_aton(host), port, now)
        return 1

    def _read_merged(self, sock: socket.socket, now: float) -> int:
        """One datagram, or several of one peer that are of one size, but for the last."""
        data, ancillary, _, (host, port) = sock.recvmsg(DATAGRAM_MAXIMUM, _ANCILLARY)
        address = socket.inet_aton(host)
        for level, kind, detail in ancillary:
            if (level, kind) == (socket.IPPROTO_UDP, _UDP_GRO):
                (size,) = _MERGED_SIZE.unpack_from(detail)
                break
        else:
            size = len(data)
        if size < len(data):
            self._trial = 0
        elif self._trial:
            self._trial -= 1
            if not self._trial:
                self._merge(sock, False)
        deliver = self._mapping.on_host_datagram
        starts = range(0, len(data) or 1, size or 1)
        for start in starts:
            deliver(data[start : start + size], address, port, now)
        return len(starts)

    def _merge(self, sock: socket.socket, merge: bool) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, merge)
            self._merges = merge
        except OSError:  # before Linux 5.0, and elsewhere
            self._trial = 0

    def on_writable(self, now: float) -> None:
        """Never asked for: a datagram that finds no room is dropped."""

    def on_bug(self, now: float) -> None:
        """One datagram was lost, as datagrams may be."""

    def _read_errors(self, sock: socket.socket, now: float) -> None:
        for error, peer, port, payload in self._sockets.errors.read(sock):
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
        """Send at the end of the turn, or drop and count: a datagram is not owed to anybody."""
        to, size = (address, port, ttl, dont_fragment), len(payload)
        if self._run and not self._fits(to, size):
            self.flush(now)
        if not self._run:
            self._to, self._size, self._octets, self._now = to, size, 0, now
        self._run.append(payload)
        self._octets += size
        if not self._is_waiting:
            self._is_waiting = True
            self._sockets.at_end_of_turn(self)

    def _fits(self, to: tuple[Address, int, int, bool], size: int) -> bool:
        """Whether one more datagram goes with the run: only the last one may be shorter."""
        return (
            to == self._to
            and 0 < size <= self._size < self._runs_below
            and self._octets == len(self._run) * self._size
            and self._octets + size <= RUN_OCTETS
            and len(self._run) < RUN_MAXIMUM
        )

    def flush(self, now: float) -> None:
        """Send what was kept."""
        self._is_waiting = False
        run, self._run = self._run, []
        if not run or self._sock is None or self._to is None:
            return
        address, port, ttl, dont_fragment = self._to
        if (ttl, dont_fragment) != self._ways:
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            forbid_fragments(self._sock, dont_fragment)
            self._ways = ttl, dont_fragment
        peer = (format_address(address), port)
        if len(run) == 1 or not self._send_run(self._sock, run, peer):
            for payload in run:
                self._send(self._sock, payload, address, peer, now)

    def _send_run(self, sock: socket.socket, run: list[Buffer], peer: tuple[str, int]) -> bool:
        """All in one call; False if nothing was sent."""
        size = _SEGMENT_SIZE.pack(self._size)
        try:
            sock.sendmsg(run, [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)], 0, peer)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EMSGSIZE):
                self._runs_below = self._size  # what is cut has to fit the path
            elif error.errno not in (errno.EAGAIN, errno.ECONNREFUSED):
                self._runs_below = 0  # EIO: not over that card; ENOPROTOOPT: not on this system
            return False
        return True

    def _send(
        self,
        sock: socket.socket,
        payload: Buffer,
        address: Address,
        peer: tuple[str, int],
        now: float,
    ) -> None:
        error = _send(sock, payload, peer)
        if error == errno.EMSGSIZE:
            self._sockets.counters.count("udp.send_too_large")
            self._on_too_large(sock, address, peer[1], now)
            return
        if error not in (0, errno.EAGAIN):
            # It may be about an earlier datagram, to whomever: that is cleared by the saying.
            self._read_errors(sock, now)
            error = _send(sock, payload, peer)
        if error:
            self._on_unsent(error, address, peer[1], now)

    def _on_too_large(self, sock: socket.socket, address: Address, port: int, now: float) -> None:
        """The path is narrower than the guest believed; how narrow, the queue says, but not at
        which port."""
        for error, peer, peer_port, payload in self._sockets.errors.read(sock):
            self._mapping.on_host_error(
                error, peer, peer_port or (port if peer == address else 0), payload, now
            )

    def _on_unsent(self, error: int, address: Address, port: int, now: float) -> None:
        icmp, counters = refusal(error), self._sockets.counters
        if icmp is None:
            counters.count("udp.send_full" if error == errno.EAGAIN else "udp.send_failed")
            return
        counters.count("udp.send_unreachable")
        self._mapping.on_host_error(icmp, address, port, b"", now)

    def close(self) -> None:
        """Send what was kept, and give the descriptor back."""
        if self._sock is not None:
            self.flush(self._now)
            self._sockets.poller.forget(self._sock)
            self._sock.close()
            self._sock = None


def _send(sock: socket.socket, payload: Buffer, peer: tuple[str, int]) -> int:
    """Zero, or the errno of sendto(2)."""
    try:
        sock.sendto(payload, peer)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
