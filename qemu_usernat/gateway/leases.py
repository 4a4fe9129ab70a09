"""The address pool: who holds which address, and until when (RFC 2131, 2.2 and 4.3.1).

It knows clients by an opaque key, addresses and time; it knows no message. A record outlives its
lease, so that a client that comes back finds its old address for as long as nobody else needed
it. There is at most one record an address and none is ever added beyond `RECORDS_MAXIMUM`, so a
flood of invented clients costs bounded memory.
"""

from collections.abc import Callable, Container

from attrs import define, field

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.primitives.time import MINUTE, SECOND

OFFER_TIME = 30 * SECOND
"""How long an offer is kept for its client: several times what clients need to answer."""

DECLINE_TIME = 10 * MINUTE
"""How long a declined address rests: somebody seems to use it (RFC 2131, 4.3.3, names no time)."""

RECORDS_MAXIMUM = 4096
"""Records kept, whatever the size of the pool: far more guests than one process serves."""


@define(eq=False)
class Lease:
    """One address and its latest client; free again once `expires` has come.

    `client` is None for an address that was declined. `mac` is where the client was when it was
    offered the address. `offered` until the client has asked for it.
    """

    address: Address
    client: bytes | None
    mac: MacAddress
    offered: bool
    expires: float


def by_nobody(address: Address) -> bool:
    """Nobody is known who has taken the address."""
    return False


@define
class LeasePool:
    """Addresses from `first` to `last`, without those in `never`."""

    first: Address
    last: Address
    never: frozenset[Address]
    is_taken: Callable[[Address], bool] = by_nobody
    """Whether another machine uses the address without a lease."""
    _by_address: dict[Address, Lease] = field(factory=dict, init=False)
    _by_client: dict[bytes, Lease] = field(factory=dict, init=False)
    _fresh: int = field(init=False)

    def __attrs_post_init__(self) -> None:
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
        address = known.address if known is not None else self._choose(wanted, now)
        if address is not None:
            self._record(address, client, mac, offered=True, expires=now + OFFER_TIME)
        return address

    def bind(
        self, client: bytes, mac: MacAddress, address: Address, duration: float, now: float
    ) -> bool:
        """Lease `address` to `client` for `duration` seconds; False if it may not have it.

        It may if it holds no other address, and this one is its own, or of the pool and free.
        """
        held = self._by_client.get(client)
        if held is None or held.address != address:
            holds_another = held is not None and held.expires > now
            if holds_another or not self._is_free(address, now):
                return False
        self._record(address, client, mac, offered=False, expires=now + duration)
        return True

    def on_gone(self, macs: Container[MacAddress], now: float) -> None:
        """The machines at `macs` have left the segment: their addresses are free, but remembered.

        Without this, machines that come and go, each with a MAC address of its own, would use up
        a pool within one lease time.
        """
        for lease in self._by_address.values():
            if lease.mac in macs:
                lease.expires = min(lease.expires, now)

    def release(self, client: bytes, address: Address, now: float) -> bool:
        """End the lease of `address`, which `client` holds; False if it does not."""
        held = self._by_client.get(client)
        if held is None or held.address != address:
            return False
        held.expires = min(held.expires, now)
        return True

    def withdraw_offer(self, client: bytes, now: float) -> None:
        """Take back what was offered to `client`, which went to another server."""
        held = self._by_client.get(client)
        if held is not None and held.offered:
            held.expires = min(held.expires, now)

    def decline(self, client: bytes, address: Address, now: float) -> bool:
        """Rest `address`, which `client` holds and found in use; False if it does not hold it."""
        held = self._by_client.get(client)
        if held is None or held.address != address:
            return False
        self._record(address, None, held.mac, offered=False, expires=now + DECLINE_TIME)
        return True

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

    def _choose(self, wanted: Address | None, now: float) -> Address | None:
        if wanted is not None and self._is_free(wanted, now):
            return wanted
        fresh = self._next_fresh()
        if fresh is not None:
            return fresh
        oldest = min(self._by_address.values(), key=lambda lease: lease.expires, default=None)
        return oldest.address if oldest is not None and oldest.expires <= now else None

    def holds(self, address: Address, now: float) -> bool:
        """Whether some client has it."""
        record = self._by_address.get(address)
        return record is not None and record.client is not None and record.expires > now

    def _is_free(self, address: Address, now: float) -> bool:
        if self.is_taken(address):
            return False
        record = self._by_address.get(address)
        if record is not None:
            return record.expires <= now
        return (
            len(address) == len(self.first)
            and self.first <= address <= self.last
            and address not in self.never
            and len(self._by_address) < RECORDS_MAXIMUM
        )

    def _next_fresh(self) -> Address | None:
        """The lowest address that has no record yet."""
        if len(self._by_address) >= RECORDS_MAXIMUM:
            return None
        last = int.from_bytes(self.last, "big")
        while self._fresh <= last:
            address = self._fresh.to_bytes(len(self.first), "big")
            is_known = address in self._by_address or address in self.never
            if not is_known and not self.is_taken(address):
                return address
            self._fresh += 1
        return None
