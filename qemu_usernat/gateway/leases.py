"""The address pool: who holds which address, and until when (RFC 2131, 2.2 and 4.3.1).

It knows clients by an opaque key, addresses and time; it knows no message. A record outlives its
lease, so that a client that comes back finds its old address for as long as nobody else needed
it. There is at most one record an address and none is ever added beyond `RECORDS_MAXIMUM`, so a
flood of invented clients costs bounded memory. Nor does a guest get all addresses out of the way by
finding them in use: it may do so with a few, and what rests is given before nothing is.

A reserved address is its client's alone, and the only one that this client gets: whatever has
become of it, nobody else is given it, and a client that found it in use is given it again.
"""

from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count

from attrs import define, field, frozen

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.primitives.time import MINUTE, SECOND

OFFER_TIME = 30 * SECOND
"""How long an offer is kept for its client: several times what clients need to answer."""

DECLINE_TIME = 10 * MINUTE
"""How long a declined address rests: somebody seems to use it (RFC 2131, 4.3.3, names no time)."""

RESTING_PER_LINK = 8
"""Declined addresses that rest as one machine said so: of more, the one that has rested longest is
free again."""

RECORDS_MAXIMUM = 4096
"""Records kept, whatever the size of the pool: far more guests than one process serves."""


@define(eq=False)
class Lease:
    """One address and its latest client; free again once `expires` has come.

    `client` is None for an address that was declined. `mac` is where the client was when it was
    offered the address. `offered` until the client has asked for it. `name` is what the machine
    is called; `since` when the client's lease began; `link` of whom it was declined.
    """

    address: Address
    client: bytes | None
    mac: MacAddress
    offered: bool
    expires: float
    name: str = ""
    since: float = 0.0
    link: Hashable = None


@frozen
class HeldLease:
    """An address that a client has, or had: `name` is "" where it has none, `expires` a time."""

    address: Address
    mac: MacAddress
    name: str
    client: bytes
    expires: float


def by_nobody(address: Address) -> bool:
    """Nobody is known who has taken the address."""
    return False


@define
class LeasePool:
    """Addresses from `first` to `last`, without those in `never`; and those of `reserved`, by
    client."""

    first: Address
    last: Address
    never: frozenset[Address]
    is_taken: Callable[[Address], bool] = by_nobody
    """Whether another machine uses the address without a lease."""
    reserved: Mapping[bytes, Address] = field(factory=dict)
    version: int = 0
    """Another one once a lease has begun, was renewed, or has ended before its time."""
    _by_address: dict[Address, Lease] = field(factory=dict, init=False)
    _by_client: dict[bytes, Lease] = field(factory=dict, init=False)
    _fresh: int = field(init=False)
    """What is below has a record, is never given, or was in use when its turn came."""
    _passed: dict[Address, None] = field(factory=dict, init=False)
    """The latter: it is in use for as long as somebody uses it, and no longer."""
    _ends: list[tuple[float, int, Lease]] = field(factory=list, init=False)
    """A heap: when records end that others may have then. What has become of one since is seen
    when it comes up; by the number, of those that end together the first is first."""
    _numbers: "count[int]" = field(factory=count, init=False)
    _resting: dict[Address, Lease] = field(factory=dict, init=False)
    """Declined ones, the one that has rested longest in front, and what has ended since."""

    def __attrs_post_init__(self) -> None:
        self.never |= frozenset(self.reserved.values())
        self._fresh = int.from_bytes(self.first, "big")

    def offer(
        self, client: bytes, mac: MacAddress, wanted: Address | None, now: float
    ) -> Address | None:
        """An address set aside for `client`, or None where the pool is exhausted.

        In the order of RFC 2131, 4.3.1: the client's present or past address, the one it wants,
        one never used, the one longest expired.
        """
        known = self._by_client.get(client)
        if known is not None and known.expires > now and not known.offered:
            return known.address
        address = self.reserved.get(client)
        if address is not None:
            address = None if self.is_taken(address) else address
        elif known is not None:
            address = known.address
        else:
            address = self._choose(wanted, now)
        if address is not None:
            self._record(address, client, mac, offered=True, expires=now + OFFER_TIME)
        return address

    def bind(
        self,
        client: bytes,
        mac: MacAddress,
        address: Address,
        duration: float,
        now: float,
        name: str = "",
    ) -> bool:
        """Lease `address` to `client` for `duration` seconds; False if it may not have it.

        It may if it holds no other address, and this one is its own, or of the pool and free.
        """
        held = self._by_client.get(client)
        if client in self.reserved:
            if address != self.reserved[client] or self.is_taken(address):
                return False
        elif held is None or held.address != address:
            holds_another = held is not None and held.expires > now
            if holds_another or not self._is_free(address, now):
                return False
        goes_on = held is not None and held.address == address and self._is_leased(held, now)
        since = held.since if held is not None and goes_on else now
        self._record(address, client, mac, offered=False, expires=now + duration)
        self._by_address[address].name, self._by_address[address].since = name, since
        self.version += 1
        return True

    def held(self, now: float) -> list[HeldLease]:
        """The leases that there are, the one that began first in front."""
        leased = [lease for lease in self._by_client.values() if self._is_leased(lease, now)]
        return _as_held(sorted(leased, key=lambda lease: lease.since))

    def remembered(self) -> list[HeldLease]:
        """What `restore` takes: the leases that there are and were, in the order they began."""
        leased = [lease for lease in self._by_client.values() if not lease.offered]
        return _as_held(sorted(leased, key=lambda lease: lease.since))

    def restore(self, leases: Iterable[HeldLease]) -> None:
        """What another server remembered, as far as it is still to be had: before anybody asks."""
        for number, held in enumerate(leases):
            own = self.reserved.get(held.client)
            is_ours = held.address == own if own is not None else self._is_ours(held.address)
            if is_ours and held.client not in self._by_client:
                since = float(number) - RECORDS_MAXIMUM  # of old, and in this order
                lease = Lease(
                    held.address, held.client, held.mac, False, held.expires, held.name, since
                )
                self._by_address[held.address] = self._by_client[held.client] = lease
                self._await_end(lease)

    def on_gone(self, macs: Container[MacAddress], now: float) -> None:
        """The machines at `macs` have left the segment: their addresses are free, but remembered.

        Without this, machines that come and go, each with a MAC address of its own, would use up
        a pool within one lease time.
        """
        for lease in self._by_address.values():
            if lease.mac in macs and lease.expires > now:
                self._end(lease, now)
                self.version += 1

    def release(self, client: bytes, address: Address, now: float) -> bool:
        """End the lease of `address`, which `client` holds; False if it does not."""
        held = self._by_client.get(client)
        if held is None or held.address != address:
            return False
        self._end(held, now)
        self.version += 1
        return True

    def withdraw_offer(self, client: bytes, now: float) -> None:
        """Take back what was offered to `client`, which went to another server."""
        held = self._by_client.get(client)
        if held is not None and held.offered:
            self._end(held, now)

    def decline(self, client: bytes, address: Address, now: float, link: Hashable = None) -> bool:
        """Rest `address`, which `client` at `link` holds and found in use; False if it does not
        hold it."""
        held = self._by_client.get(client)
        if held is None or held.address != address:
            return False
        self._record(address, None, held.mac, offered=False, expires=now + DECLINE_TIME)
        self._rest(self._by_address[address], link, now)
        self.version += 1
        return True

    def _rest(self, lease: Lease, link: Hashable, now: float) -> None:
        lease.link = link
        self._resting = {
            address: each
            for address, each in self._resting.items()
            if each.expires > now and self._by_address[address] is each
        }
        of_link = [each for each in self._resting.values() if each.link == link]
        if len(of_link) >= RESTING_PER_LINK:
            self._end(of_link[0], now)
        self._resting[lease.address] = lease

    def _record(
        self,
        address: Address,
        client: bytes | None,
        mac: MacAddress,
        *,
        offered: bool,
        expires: float,
    ) -> None:
        """The one place where records are written: both tables always agree."""
        previous = self._by_address.get(address)
        former = previous.client if previous is not None else None
        if former is not None and self._by_client.get(former) is previous:
            del self._by_client[former]
        lease = Lease(address, client, mac, offered, expires)
        self._by_address[address] = lease
        if client is not None:
            self._by_client[client] = lease
        self._await_end(lease)

    def _end(self, lease: Lease, now: float) -> None:
        """Before its time, if it has not ended yet."""
        if lease.expires > now:
            lease.expires = now
            self._await_end(lease)

    def _await_end(self, lease: Lease) -> None:
        if lease.address in self.never:
            return
        heappush(self._ends, (lease.expires, next(self._numbers), lease))
        if len(self._ends) > 2 * RECORDS_MAXIMUM + 2 * len(self._by_address):
            self._ends = list(filter(self._is_end, self._ends))
            heapify(self._ends)

    def _is_end(self, entry: tuple[float, int, Lease]) -> bool:
        """Whether it still ends then."""
        expires, _, lease = entry
        return self._by_address.get(lease.address) is lease and lease.expires == expires

    def _choose(self, wanted: Address | None, now: float) -> Address | None:
        if wanted is not None and self._is_free(wanted, now):
            return wanted
        return self._next_fresh() or self._longest_ended(now) or self._longest_resting()

    def holds(self, address: Address, now: float) -> bool:
        """Whether some client has it."""
        record = self._by_address.get(address)
        return record is not None and record.client is not None and record.expires > now

    def _is_leased(self, lease: Lease, now: float) -> bool:
        return not lease.offered and lease.expires > now

    def _is_free(self, address: Address, now: float) -> bool:
        if self.is_taken(address):
            return False
        record = self._by_address.get(address)
        if record is None:
            return self._is_ours(address)
        return record.expires <= now and address not in self.never

    def _is_ours(self, address: Address) -> bool:
        """Whether we may lease it to anybody, and have not yet."""
        return (
            len(address) == len(self.first)
            and self.first <= address <= self.last
            and address not in self.never
            and address not in self._by_address
            and len(self._by_address) < RECORDS_MAXIMUM
        )

    def _next_fresh(self) -> Address | None:
        """The lowest address that has no record yet."""
        if len(self._by_address) >= RECORDS_MAXIMUM:
            return None
        for address in tuple(self._passed):
            if address in self._by_address:
                del self._passed[address]
            elif not self.is_taken(address):
                return address
        last = int.from_bytes(self.last, "big")
        while self._fresh <= last:
            address = self._fresh.to_bytes(len(self.first), "big")
            if address not in self._by_address and address not in self.never:
                if not self.is_taken(address):
                    return address
                self._passed[address] = None
            self._fresh += 1
        return None

    def _longest_ended(self, now: float) -> Address | None:
        """The address that has been free for the longest time, of those with a record."""
        taken: list[tuple[float, int, Lease]] = []
        address = None
        while self._ends and self._ends[0][0] <= now:
            entry = self._ends[0]
            if self._is_end(entry):
                if not self.is_taken(entry[2].address):
                    address = entry[2].address
                    break
                taken.append(entry)
            heappop(self._ends)
        for entry in taken:
            heappush(self._ends, entry)
        return address

    def _longest_resting(self) -> Address | None:
        """Of the declined addresses: better one that somebody may use than none."""
        for address, lease in self._resting.items():
            is_current = self._by_address[address] is lease and address not in self.never
            if is_current and not self.is_taken(address):
                return address
        return None


def _as_held(leases: Iterable[Lease]) -> list[HeldLease]:
    return [
        HeldLease(lease.address, lease.mac, lease.name, lease.client, lease.expires)
        for lease in leases
        if lease.client is not None
    ]
