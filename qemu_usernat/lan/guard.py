"""Who may speak as whom: one MAC address a link, and each IPv4 address by whoever has it.

Off by default: a guest may hold bridges and machines of its own. Where a policy holds, what is
judged has to be the guest's own, so the first MAC address that a link shows is its only one, no
other link may show it, and an address belongs to the one that has leased it, or that used it first.
"""

from attrs import define, field

from qemu_usernat.lan.port import Port
from qemu_usernat.primitives.addresses import Address, MacAddress

ADDRESSES_MAXIMUM = 65536
"""Addresses with an owner; the one that was bound longest ago goes first."""


@define
class SourceGuard:
    """Of one segment."""

    on: bool = False
    _owners: dict[Address, MacAddress] = field(factory=dict)

    def may_show(self, mac: MacAddress, port: Port, known: Port | None) -> bool:
        """Whether a frame from `mac` may come from `port`; `known` is where it was seen before."""
        return not self.on or known is port or (known is None and not port.addresses)

    def may_use(self, address: Address, mac: MacAddress) -> bool:
        """Whether `mac` may speak from `address`; it has it from now on, if nobody else has."""
        if not self.on:
            return True
        owner = self._owners.get(address)
        if owner is None:
            self.bind(address, mac)
            return True
        return owner == mac

    def is_owner(self, address: Address, mac: memoryview) -> bool:
        """The same for each frame of the fast way, of an address that has an owner."""
        return mac.tobytes() == self._owners.get(address)

    def bind(self, address: Address, mac: MacAddress) -> None:
        """`mac` has leased `address`."""
        if len(self._owners) >= ADDRESSES_MAXIMUM:
            del self._owners[next(iter(self._owners))]
        self._owners[address] = mac

    def forget(self, macs: "dict[MacAddress, None]") -> None:
        """The machines at `macs` are gone."""
        if self._owners:
            self._owners = {
                address: mac for address, mac in self._owners.items() if mac not in macs
            }
