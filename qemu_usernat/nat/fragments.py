"""Reassembly of the guests' IP fragments, within hard bounds (RFC 791, 3.2; RFC 5722).

It owns incomplete datagrams: how many there are, how much they hold, and for how long. A datagram
is given on whole or not at all. One whose fragments overlap, or do not make sense, is dropped, and
so is all that comes of it until its time is over: no honest sender makes one, and what a filter
would judge must not depend on who overwrites whom. A fragment that comes twice is no overlap.

Each guest has bounds of its own, and makes room from its own, oldest first: so a flood of first
fragments costs nobody else anything, and its sender's honest datagrams only if they wait for their
rest while `DATAGRAMS_PER_GUEST` others begin. When all guests together hold too much, whoever holds
most makes room. A fragment costs the same however many have come before it.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable

from attrs import define, evolve, field

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER, SECOND
from qemu_usernat.wire.packets import IpPacket

REASSEMBLY_TIME = 30 * SECOND
"""As Linux has it; RFC 1122, 3.3.2, asks for 60 to 120 s, of the whole world's paths."""

DATAGRAMS_PER_GUEST = 64
"""Incomplete datagrams of one guest, those included whose rest is awaited to be dropped."""

BYTES_PER_GUEST = 2 << 20
"""What they hold, `PIECE_COST` for each piece included: 29 datagrams of the largest at MTU 1500."""

BYTES_MAXIMUM = 16 << 20
"""The same, of all guests: what eight hold who hold all that they may."""

PIECE_COST = 256  # bytes: about what Python needs for a piece besides its octets

PIECES_MAXIMUM = 1024
"""Of one datagram: 65535 bytes at the smallest MTU of RFC 791 (68 bytes) make 1366, at any MTU that
this network has (576 and up) 119."""

PACKET_MAXIMUM = 65535  # bytes: total length is 16 bits

_Key = tuple[Hashable, Address, Address, int, int]


@define(eq=False)
class _Guest:
    """What is held for one guest."""

    datagrams: "OrderedDict[_Key, _Datagram]" = field(factory=OrderedDict)
    """Oldest first."""
    held: int = 0


@define(eq=False)
class _Datagram:
    """What has arrived of one datagram."""

    guest: _Guest
    sender: MacAddress
    expires_at: float
    starts: list[int] = field(factory=list)
    """Offsets of the pieces, in order."""
    pieces: dict[int, bytes] = field(factory=dict)
    """Offset to payload; no two overlap."""
    held: int = 0
    """Bytes, `PIECE_COST` for each piece included."""
    total: int | None = None
    """Length of the whole payload, known from the last fragment."""
    first: IpPacket | None = None
    is_dead: bool = False
    """Whether it was dropped, and what is still to come of it will be."""

    def has(self, packet: IpPacket) -> bool:
        """Whether just this piece has come already."""
        start, payload = packet.fragment_offset, packet.payload
        is_last = start + len(payload) == self.total
        return self.pieces.get(start) == payload and packet.more_fragments is not is_last

    def problem(self, packet: IpPacket) -> str | None:
        """The name of what is wrong with the datagram if `packet` belongs to it."""
        start, size = packet.fragment_offset, len(packet.payload)
        if not size or (packet.more_fragments and size % 8):
            return "ipv4.fragment_length"
        header = packet if self.first is None else self.first
        end = max(start + size, self._end())
        if len(header.header) + end > PACKET_MAXIMUM or len(self.pieces) >= PIECES_MAXIMUM:
            return "ipv4.fragment_too_large"
        return "ipv4.fragment_overlap" if self._overlaps(start, start + size, packet) else None

    def _end(self) -> int:
        if not self.starts:
            return 0
        last = self.starts[-1]
        return last + len(self.pieces[last])

    def _overlaps(self, start: int, end: int, packet: IpPacket) -> bool:
        if not packet.more_fragments:
            return self.total is not None or start < self._end()
        if self.total is not None and end > self.total:
            return True
        at = bisect_left(self.starts, start)
        if at < len(self.starts) and self.starts[at] < end:
            return True
        before = self.starts[at - 1] if at else None
        return before is not None and before + len(self.pieces[before]) > start

    def store(self, packet: IpPacket) -> None:
        """Keep a piece that fits."""
        start = packet.fragment_offset
        self.starts.insert(bisect_left(self.starts, start), start)
        self.pieces[start] = packet.payload
        if not start:
            self.first = packet
        if not packet.more_fragments:
            self.total = start + len(packet.payload)

    def whole(self) -> IpPacket | None:
        """The datagram, if nothing is missing; it has the header of its first fragment."""
        if self.first is None or self.held - PIECE_COST * len(self.pieces) != self.total:
            return None
        payload = b"".join(map(self.pieces.__getitem__, self.starts))
        return evolve(self.first, more_fragments=False, payload=payload)


@define(eq=False)
class Reassembler:
    """Incomplete datagrams, by guest, source, destination, protocol and identification."""

    counters: Counters
    held: int = field(default=0, init=False)
    """Bytes, of all guests."""
    _datagrams: OrderedDict[_Key, _Datagram] = field(factory=OrderedDict)
    """In the order in which they began, which is that in which they expire."""
    _guests: dict[Hashable, _Guest] = field(factory=dict)
    """Those that have any."""

    def __len__(self) -> int:
        return len(self._datagrams)

    def add(
        self, packet: IpPacket, sender: MacAddress, guest: Hashable, now: float
    ) -> IpPacket | None:
        """Take in one fragment of `guest`; the whole datagram if that completes it."""
        source, destination = packet.source, packet.destination
        key = guest, source, destination, packet.protocol, packet.identification
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._begin(key, sender, now)
        if datagram.is_dead:
            self.counters.count("ipv4.fragment_of_dropped")
            return None
        if datagram.has(packet):
            self.counters.count("ipv4.fragment_repeated")
            return None
        problem = datagram.problem(packet)
        if problem is not None:
            self.counters.count(problem)
            datagram.is_dead = True
            self._empty(datagram)
            return None
        datagram.store(packet)
        self._account(datagram, PIECE_COST + len(packet.payload))
        whole = datagram.whole()
        if whole is not None:
            self._forget(key)
        else:
            self._make_room(datagram.guest)
        return whole

    def _begin(self, key: _Key, sender: MacAddress, now: float) -> _Datagram:
        guest = self._guests.setdefault(key[0], _Guest())
        if len(guest.datagrams) >= DATAGRAMS_PER_GUEST:
            self._drop_oldest(guest)
        datagram = _Datagram(guest, sender, now + REASSEMBLY_TIME)
        self._datagrams[key] = guest.datagrams[key] = datagram
        return datagram

    def _make_room(self, guest: _Guest) -> None:
        while guest.held > BYTES_PER_GUEST:
            self._drop_oldest(guest)
        while self.held > BYTES_MAXIMUM:
            self._drop_oldest(max(self._guests.values(), key=_held))

    def _drop_oldest(self, guest: _Guest) -> None:
        key, datagram = next(iter(guest.datagrams.items()))
        if not datagram.is_dead:
            self.counters.count("ipv4.reassembly_full")
        self._forget(key)

    def _forget(self, key: _Key) -> None:
        datagram = self._datagrams.pop(key)
        self._empty(datagram)
        del datagram.guest.datagrams[key]
        if not datagram.guest.datagrams:
            del self._guests[key[0]]

    def _empty(self, datagram: _Datagram) -> None:
        self._account(datagram, -datagram.held)
        datagram.starts.clear()
        datagram.pieces.clear()
        datagram.first = None

    def _account(self, datagram: _Datagram, octets: int) -> None:
        datagram.held += octets
        datagram.guest.held += octets
        self.held += octets

    def deadline(self) -> float:
        """When the oldest incomplete datagram expires."""
        for datagram in self._datagrams.values():
            return datagram.expires_at
        return NEVER

    def expire(self, now: float) -> list[tuple[IpPacket, MacAddress]]:
        """Drop what is too old; first fragments and their senders, to be told (ICMP 11/1)."""
        firsts = []
        while self.deadline() <= now:
            key, datagram = next(iter(self._datagrams.items()))
            if not datagram.is_dead:
                self.counters.count("ipv4.reassembly_timeout")
            if datagram.first is not None:
                firsts.append((datagram.first, datagram.sender))
            self._forget(key)
        return firsts


def _held(guest: _Guest) -> int:
    return guest.held
