"""What the network says against what a socket has sent: its error queue (IP_RECVERR, ip(7)).

Linux keeps ICMP errors there with all that they say: who sent them, of which type they are, and
the packet that they quote. Elsewhere there is no such queue; then errors are what errno tells.
"""

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.wire.icmp import (
    DESTINATION_UNREACHABLE,
    PARAMETER_PROBLEM,
    TIME_EXCEEDED,
    TTL,
    IcmpError,
    too_large,
)

_LINUX = sys.platform == "linux"
_IP_RECVERR = 11  # linux/in.h
_IP_RECVTTL = 12
_IP_MTU_DISCOVER = 10
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_MSG_ERRQUEUE = 0x2000  # linux/socket.h
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err, linux/errqueue.h
_ORIGIN_LOCAL, _ORIGIN_ICMP = 1, 2
_QUOTED = 576  # bytes of the packet that an ICMP error may quote
_AT_ONCE = 64
"""Errors read in one go, so that a flood of them does not starve the others."""

_CARRIED = frozenset({DESTINATION_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM})
"""Types that are an answer to what was sent (RFC 1122, 3.2.2); the others are for the host."""


def listen_for_errors(sock: socket.socket) -> None:
    """Have the kernel keep them, and tell of every packet how many hops it had left."""
    if _LINUX:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)


def forbid_fragments(sock: socket.socket, forbid: bool) -> None:
    """Whether what is sent from now on has the DF bit; too large for its path, it is an error."""
    if _LINUX:
        how = _PMTUDISC_DO if forbid else _PMTUDISC_DONT
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, how)


def hops_left(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """The TTL of a received packet, of which recvmsg(2) has told `ancillary`."""
    for level, kind, detail in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, socket.IP_TTL):
            return int.from_bytes(detail, sys.byteorder)
    return TTL


class ErrorReader:
    """Reads error queues; knows which offender is the host itself."""

    def __init__(self, is_of_host: Callable[[Address], bool]) -> None:
        self._is_of_host = is_of_host

    def read(self, sock: socket.socket) -> Iterator[tuple[IcmpError, Address, int, bytes]]:
        """What is in the queue: the error, whom it is about and at which port, and what was quoted.

        What is quoted begins behind the headers of IP and UDP, at the header of ICMP or of TCP.
        """
        if not _LINUX:
            return
        with contextlib.suppress(OSError):  # nothing more; or the next look reads the rest
            for _ in range(_AT_ONCE):
                quoted, ancillary, _, peer = sock.recvmsg(_QUOTED, 512, _MSG_ERRQUEUE)
                for level, kind, detail in ancillary:
                    if (level, kind) != (socket.IPPROTO_IP, _IP_RECVERR):
                        continue
                    address = socket.inet_aton(peer[0]) if peer else bytes(4)
                    error = self._error(detail, address, hops_left(ancillary))
                    if error is not None:
                        yield error, address, peer[1] if peer else 0, quoted

    def _error(self, detail: bytes, peer: Address, ttl: int) -> IcmpError | None:
        number, origin, icmp_type, code, _, info, _ = _EXTENDED_ERROR.unpack_from(detail)
        if origin == _ORIGIN_LOCAL and number == errno.EMSGSIZE:
            return too_large(info)
        if origin != _ORIGIN_ICMP or icmp_type not in _CARRIED:
            return None
        # struct sockaddr_in of whoever sent the error follows: family, port, address.
        offender: Address | None = detail[_EXTENDED_ERROR.size + 4 : _EXTENDED_ERROR.size + 8]
        if offender != peer and self._is_of_host(offender or b""):
            # The host has no way, or nobody answers its ARP.
            offender, ttl = None, TTL + 1
        if icmp_type == PARAMETER_PROBLEM:
            rest = bytes((info & 0xFF, 0, 0, 0))  # where in the packet it is (RFC 792)
        else:
            rest = min(info, 0xFFFF).to_bytes(4, "big")  # the next hop's MTU (RFC 1191, 4)
        return IcmpError(icmp_type, code, rest, offender, max(1, ttl - 1))
