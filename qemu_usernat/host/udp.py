"""The host side of a UDP mapping: one unconnected datagram socket, and its error queue.

Unconnected, because a mapping is endpoint-independent (RFC 4787, REQ-1). On Linux such a
socket hears of ICMP errors only through its error queue (IP_RECVERR, ip(7)); elsewhere it
does not hear of them.
"""

import contextlib
import errno
import socket
import struct
import sys

from qemu_usernat.host.refusals import refusal_code
from qemu_usernat.nat.udp import UdpMapping
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import LOOPBACK_IPV4, Address, format_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.icmp import DESTINATION_UNREACHABLE
from qemu_usernat.wire.packets import Buffer

DATAGRAMS_AT_ONCE = 64
"""Datagrams read from one socket in one go, so that one flood does not starve the others."""

RECEIVE_BUFFER = 1024 * 1024  # bytes

DATAGRAM_MAXIMUM = 65535  # bytes

_LINUX = sys.platform == "linux"
_IP_RECVERR = 11  # linux/in.h
_MSG_ERRQUEUE = 0x2000  # linux/socket.h
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err, linux/errqueue.h
_ORIGIN_ICMP = 2  # SO_EE_ORIGIN_ICMP
_QUOTED = 576  # bytes of the datagram that an ICMP error may quote


def open_udp(mapping: UdpMapping, poller: Poller, counters: Counters) -> None:
    """Give `mapping` a socket; OSError if the system has none, or cannot watch it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if _LINUX:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        # The system's default holds a few bursts of a fast sender's datagrams; ask for more. What
        # it grants is bounded by net.core.rmem_max, and used only while datagrams wait.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.bind(("", 0))
        mapping.host = HostUdp(mapping, sock, poller, counters)
    except OSError:
        sock.close()
        raise


class HostUdp:
    """A socket and its mapping; `HostDatagrams`, and a `Handler` of the poller."""

    __slots__ = ("_counters", "_mapping", "_poller", "_sock")

    def __init__(
        self, mapping: UdpMapping, sock: socket.socket, poller: Poller, counters: Counters
    ) -> None:
        self._mapping = mapping
        self._sock: socket.socket | None = sock
        self._poller = poller
        self._counters = counters
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
            self._read_errors(sock)

    def on_writable(self, now: float) -> None:
        """Never asked for: a datagram that finds no room is dropped."""

    def on_bug(self, now: float) -> None:
        """One datagram was lost, as datagrams may be."""

    def _read_errors(self, sock: socket.socket) -> None:
        if not _LINUX:
            return
        with contextlib.suppress(OSError):  # nothing more; or the next look reads the rest
            while True:
                sent, ancillary, _, peer = sock.recvmsg(_QUOTED, 512, _MSG_ERRQUEUE)
                for level, kind, detail in ancillary:
                    if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR):
                        self._on_error(sent, detail, peer)

    def _on_error(self, sent: bytes, detail: bytes, peer: tuple[str, int]) -> None:
        _, origin, icmp_type, code, _, info, _ = _EXTENDED_ERROR.unpack_from(detail)
        if origin != _ORIGIN_ICMP:
            return
        # struct sockaddr_in of whoever sent the error follows: family, port, address.
        offender = detail[_EXTENDED_ERROR.size + 4 : _EXTENDED_ERROR.size + 8]
        rest = b"\0\0" + min(info, 0xFFFF).to_bytes(2, "big")  # the next hop's MTU, RFC 1191
        self._mapping.on_host_error(
            (icmp_type, code, rest), offender, socket.inet_aton(peer[0]), peer[1], sent
        )

    # -- HostDatagrams

    def send(self, payload: Buffer, address: Address, port: int) -> None:
        """Send, or drop and count: a datagram is not owed to anybody."""
        if self._sock is None:
            return
        peer = (format_address(address), port)
        error = _send(self._sock, payload, peer)
        if error not in (0, errno.EAGAIN):
            # It may be about an earlier datagram, to whomever: that is cleared by the saying.
            self._read_errors(self._sock)
            error = _send(self._sock, payload, peer)
        if error:
            self._on_unsent(error, payload, address, port)

    def _on_unsent(self, error: int, payload: Buffer, address: Address, port: int) -> None:
        code = refusal_code(error)
        if code is None:
            self._counters.count("udp.send_full" if error == errno.EAGAIN else "udp.send_failed")
            return
        self._counters.count("udp.send_unreachable")
        # The host itself says so, as a router without a route would.
        icmp = DESTINATION_UNREACHABLE, code, bytes(4)
        self._mapping.on_host_error(icmp, LOOPBACK_IPV4, address, port, bytes(payload))

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
