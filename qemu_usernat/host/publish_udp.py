"""A published UDP port on the host: one socket for all of its clients.

Where it is bound to every address of the host, an answer leaves from the address that the client
wrote to (IP_PKTINFO, ip(7)): from another one the client would not take it.
"""

import socket
import struct
from collections.abc import Hashable

from qemu_usernat.config.publish import Publication
from qemu_usernat.host.flood import Flood
from qemu_usernat.poller import BUSY, Poller
from qemu_usernat.primitives.addresses import parse_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.visits import UdpDoor, Visits
from qemu_usernat.wire.packets import Buffer

RECEIVE_BUFFER = 1024 * 1024  # bytes

DATAGRAM_MAXIMUM = 65535  # bytes

_ANCILLARY = 64  # bytes
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50  # linux/in.h, linux/in6.h
_PKTINFO = struct.Struct("=I4s4s")  # interface, our address, the packet's destination
_PKTINFO6 = struct.Struct("=16sI")


class UdpEntrance:
    """The socket; a `Handler` of the poller, and an `Outlet`."""

    def __init__(
        self,
        sock: socket.socket,
        publication: Publication,
        guest_port: int,
        visits: Visits,
        poller: Poller,
        counters: Counters,
    ) -> None:
        self.port: int = sock.getsockname()[1]
        self._sock = sock
        self._visits = visits
        self._poller = poller
        self._counters = counters
        self._door = UdpDoor(publication, guest_port, self)
        self._flood = Flood(poller, self, self._take)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if publication.host_address.is_unspecified:
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        poller.watch(sock, self, read=True)

    def on_readable(self, now: float) -> None:
        """Datagrams have come."""
        self._flood.on_readable(now)

    def _take(self, now: float) -> bool:
        """One datagram; False if there is none."""
        try:
            payload, ancillary, _, peer = self._sock.recvmsg(DATAGRAM_MAXIMUM, _ANCILLARY)
        except OSError:  # nothing more, or an error of no datagram
            return False
        face = parse_address(peer[0].partition("%")[0]), peer[1]
        client = peer, _answer_from(ancillary)
        self._visits.on_client(self._door, client, face, payload, now)
        return True

    def on_writable(self, now: float) -> None:
        """Never asked for: a datagram that finds no room is dropped."""

    def on_bug(self, now: float) -> None:
        """One datagram was lost, as datagrams may be."""

    def send(self, payload: Buffer, client: Hashable) -> None:
        """To the client, from where it wrote to; or drop and count."""
        assert isinstance(client, tuple), "as we have named it"
        peer, ancillary = client
        try:
            self._sock.sendmsg([payload], ancillary, 0, peer)
        except OSError as error:
            full = error.errno in BUSY
            self._counters.count("udp.send_full" if full else "udp.send_failed")

    def resume(self) -> None:
        """It never pauses."""

    def close(self, cut: bool) -> None:
        """Nothing goes on: who has come is answered by nobody else."""
        self._poller.forget(self._sock)
        self._sock.close()
        self._visits.close(self._door)


def _answer_from(ancillary: list[tuple[int, int, bytes]]) -> tuple[tuple[int, int, bytes], ...]:
    """What to say with an answer, so that it leaves from the address that was written to."""
    for level, kind, detail in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, ours, _ = _PKTINFO.unpack_from(detail)
            return ((level, kind, _PKTINFO.pack(0, ours, bytes(4))),)
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            ours, interface = _PKTINFO6.unpack_from(detail)
            local = ours[0] == 0xFE and ours[1] >> 6 == 2  # link-local: of that link
            return ((level, kind, _PKTINFO6.pack(ours, interface * local)),)
    return ()
