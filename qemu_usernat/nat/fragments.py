"""Reassembly of the guest's IP fragments, within hard bounds (RFC 791, 3.2; RFC 5722).

It owns incomplete datagrams and how long and how large they may be. A datagram whose
fragments overlap is dropped whole: no honest sender makes one, and what a filter would
judge must not depend on who overwrites whom.
"""

from attrs import define, evolve, field

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER, SECOND
from qemu_usernat.wire.packets import IpPacket

REASSEMBLY_TIME = 30 * SECOND  # RFC 1122, 3.3.2, asks for 60 to 120 s, of the whole world's paths
DATAGRAMS_MAXIMUM = 64
"""Incomplete datagrams at once, so 4 MiB of payload; the oldest gives way."""
FRAGMENTS_MAXIMUM = 1024
"""Pieces of one datagram: 65535 bytes at the smallest MTU of RFC 791 (68 bytes) make 1366, at
any MTU that this network has (576 and up) 119."""
_PAYLOAD_MAXIMUM = 65535 - 20  # bytes: total length is 16 bits, the header at least 20

_Key = tuple[Address, Address, int, int]


@define(eq=False)
class _Datagram:
    """What has arrived of one datagram."""

    sender: MacAddress
    expires_at: float
    pieces: dict[int, bytes] = field(factory=dict)
    """Offset to payload; no two overlap."""
    held: int = 0
    total: int | None = None
    """Length of the whole payload, known from the last fragment."""
    first: IpPacket | None = None


@define(eq=False)
class Reassembler:
    """Incomplete datagrams of the guests, by source, destination, protocol and identification."""

    counters: Counters
    _datagrams: dict[_Key, _Datagram] = field(factory=dict)

    def add(self, packet: IpPacket, sender: MacAddress, now: float) -> IpPacket | None:
        """Take in one fragment; the whole datagram if that completes it."""
        key = (packet.source, packet.destination, packet.protocol, packet.identification)
        datagram = self._datagrams.get(key)
        if datagram is None:
            if len(self._datagrams) >= DATAGRAMS_MAXIMUM:
                self._drop(next(iter(self._datagrams)), "ipv4.reassembly_full")
            datagram = self._datagrams[key] = _Datagram(sender, now + REASSEMBLY_TIME)
        problem = self._problem(datagram, packet)
        if problem is not None:
            self._drop(key, problem)
            return None
        if packet.fragment_offset in datagram.pieces:
            self.counters.count("ipv4.fragment_repeated")
            return None
        self._store(datagram, packet)
        if datagram.held == datagram.total and datagram.first is not None:
            return self._complete(key, datagram.first)
        return None

    def _problem(self, datagram: _Datagram, packet: IpPacket) -> str | None:
        """The name of what is wrong with the datagram now that `packet` belongs to it."""
        start = packet.fragment_offset
        end = start + len(packet.payload)
        if packet.more_fragments and (len(packet.payload) % 8 or not packet.payload):
            return "ipv4.fragment_length"
        if end > _PAYLOAD_MAXIMUM or len(datagram.pieces) >= FRAGMENTS_MAXIMUM:
            return "ipv4.fragment_too_large"
        if not packet.more_fragments and datagram.total not in (None, end):
            return "ipv4.fragment_overlap"
        if datagram.total is not None and end > datagram.total:
            return "ipv4.fragment_overlap"
        for offset, piece in datagram.pieces.items():
            if offset == start and piece == packet.payload:
                return None  # the same again: a duplicate on the wire, no overlap
            if offset < end and start < offset + len(piece):
                return "ipv4.fragment_overlap"
            if not packet.more_fragments and offset + len(piece) > end:
                return "ipv4.fragment_overlap"
        return None

    def _store(self, datagram: _Datagram, packet: IpPacket) -> None:
        datagram.pieces[packet.fragment_offset] = packet.payload
        datagram.held += len(packet.payload)
        if packet.fragment_offset == 0:
            datagram.first = packet
        if not packet.more_fragments:
            datagram.total = packet.fragment_offset + len(packet.payload)

    def _complete(self, key: _Key, first: IpPacket) -> IpPacket:
        datagram = self._datagrams.pop(key)
        payload = b"".join(piece for _, piece in sorted(datagram.pieces.items()))
        return evolve(first, more_fragments=False, payload=payload)

    def _drop(self, key: _Key, reason: str) -> _Datagram:
        self.counters.count(reason)
        return self._datagrams.pop(key)

    def deadline(self) -> float:
        """When the oldest incomplete datagram expires."""
        for datagram in self._datagrams.values():
            return datagram.expires_at
        return NEVER

    def expire(self, now: float) -> list[tuple[IpPacket, MacAddress]]:
        """Drop what is too old; first fragments and their senders, to be told (ICMP 11/1)."""
        firsts = []
        while self.deadline() <= now:
            datagram = self._drop(next(iter(self._datagrams)), "ipv4.reassembly_timeout")
            if datagram.first is not None:
                firsts.append((datagram.first, datagram.sender))
        return firsts
