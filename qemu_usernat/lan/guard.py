"""Who may speak as whom: one MAC address a link, and each IPv4 address by whoever has it.

Off by default: a guest may hold bridges and machines of its own. Where a policy holds, what is
judged has to be the guest's own, so the first MAC address that a link shows is its only one, no
other link may show it, and an address belongs to the one that has leased it, or that used it first.
An address whose owner has left is free; whoever takes it inherits nothing. One machine takes a few
by using them, so that it does not leave its neighbours without.
"""

from collections.abc import Callable, Iterable, Mapping

from attrs import define, field

from qemu_usernat.lan.port import JoinPort, Port
from qemu_usernat.primitives.addresses import Address, MacAddress

ADDRESSES_MAXIMUM = 65536
"""Addresses with an owner; beyond it no further one is taken, but by lease."""

USED_MAXIMUM = 16
"""Addresses that one machine has as it used them first: beyond its lease, and what is reserved for
it."""

JOINED_MAXIMUM = 512
"""Addresses that all machines behind one other server have: as many as it can tell of."""


def _nobody(address: Address) -> bool:
    return False


def _everyone(address: Address) -> bool:
    return True


def _nothing(address: Address, mac: MacAddress) -> None:
    """Nobody is to be told."""


@define
class SourceGuard:
    """Of one segment."""

    is_guest: Callable[[Address], bool] = _everyone
    """Whether a guest may have that address at all."""
    on_owner: Callable[[Address, MacAddress], None] = _nothing
    """An address has another owner than before: what others have begun from there is to end."""
    is_leased_here: Callable[[Address], bool] = _nobody
    """Whether we give that address away: then nobody behind another server has it, but the machine
    that it is reserved for."""
    reserved: Mapping[Address, MacAddress] = field(factory=dict)
    """Addresses that are one machine's, whether it is here or not."""
    on: bool = False
    _owners: dict[Address, MacAddress] = field(factory=dict)
    _used: dict[MacAddress, set[Address]] = field(factory=dict)
    """Of these, what its owner has neither leased nor reserved."""
    _leased: dict[MacAddress, Address] = field(factory=dict)
    """What a machine has leased last: it has one lease, but can have had any number."""
    _joined: dict[Port, set[Address]] = field(factory=dict)
    """What machines behind other servers have, or have had while these are joined."""

    def may_show(self, mac: MacAddress, port: Port, known: Port | None, silent: bool) -> bool:
        """Whether a frame from `mac` may come from `port`; `known` is where it was seen before, and
        `silent` whether that is long ago.

        Behind another server there may be many, but nobody who is a guest here. Who has gone silent
        there may be here now, and has its addresses to show anew.
        """
        if not self.on or known is port:
            return True
        if isinstance(port, JoinPort):
            return known is None or isinstance(known, JoinPort)
        if port.addresses or not (known is None or (silent and isinstance(known, JoinPort))):
            return False
        if known is not None:
            self.forget([mac])
        return True

    def may_use(self, address: Address, mac: MacAddress, join: Port | None = None) -> bool:
        """Whether `mac`, which is behind `join` or a guest of ours, may speak from `address`; it
        has it from now on, if nobody else has."""
        if not self.on:
            return True
        if self._owners.get(address) != mac:
            if join is not None and not self._may_be_behind(join, address):
                return False
            if self.is_of_another(mac, address) or len(self._owners) >= ADDRESSES_MAXIMUM:
                return False
            if not self._may_keep(address, mac):
                return False
            self._own(address, mac)
            if join is not None:
                self._joined.setdefault(join, set()).add(address)
        return True

    def _may_be_behind(self, join: Port, address: Address) -> bool:
        if self.is_leased_here(address) and address not in self.reserved:
            return False
        known = self._joined.get(join, ())
        return address in known or len(known) < JOINED_MAXIMUM

    def is_of_another(self, mac: MacAddress, address: Address) -> bool:
        """Whether somebody else than `mac` has `address` now."""
        return self._owners.get(address, self.reserved.get(address, mac)) != mac

    def is_owner(self, address: Address, mac: MacAddress) -> bool:
        """The same for each frame of the fast way, of an address that has an owner."""
        return mac == self._owners.get(address)

    def bind(self, address: Address, mac: MacAddress) -> None:
        """`mac` has leased `address`; what it had leased before it may go on to use, as others."""
        former = self._owners.get(address)
        if former in self._used:
            self._used[former].discard(address)
        before = self._leased.get(mac, address)
        self._leased[mac] = address
        had_another = before != address and self._owners.get(before) == mac
        if had_another and not self._may_keep(before, mac):
            del self._owners[before]
        self._own(address, mac)

    def _may_keep(self, address: Address, mac: MacAddress) -> bool:
        """Whether `mac` may have `address` without a lease; it is counted from now on."""
        if address in self.reserved:
            return True
        used = self._used.setdefault(mac, set())
        if len(used) >= USED_MAXIMUM:
            return False
        used.add(address)
        return True

    def _own(self, address: Address, mac: MacAddress) -> None:
        if self._owners.get(address) != mac:
            self._owners[address] = mac
            self.on_owner(address, mac)

    def leave(self, join: Port) -> set[MacAddress]:
        """Another server has left; the machines that have an address from there."""
        owners = map(self._owners.get, self._joined.pop(join, ()))
        return {mac for mac in owners if mac is not None}

    def forget(self, macs: Iterable[MacAddress]) -> None:
        """The machines at `macs` have left: their addresses are free, also for themselves."""
        gone = set(macs)
        self._owners = {address: mac for address, mac in self._owners.items() if mac not in gone}
        self._leased = {mac: each for mac, each in self._leased.items() if mac not in gone}
        self._used = {mac: used for mac, used in self._used.items() if mac not in gone}
