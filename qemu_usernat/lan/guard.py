"""Who may speak as whom: one MAC address a link, and each IPv4 address by whoever has it.

Off by default: a guest may hold bridges and machines of its own. Where a policy holds, what is
judged has to be the guest's own, so the first MAC address that a link shows is its only one, no
other link may show it, and an address belongs to the one that has leased it, or that used it first.
An address whose owner has left is free; whoever takes it inherits nothing. One machine takes a few
by using them, so that it does not leave its neighbours without.

Between guests it lets ARP and IPv4 through, where the sender is who it says and does not do what
is the gateway's: a guest that answers for the gateway, or leases addresses, would have its
neighbours' packets.
"""

from collections.abc import Callable, Iterable, Mapping

from attrs import define, field

from qemu_usernat.lan.port import Port
from qemu_usernat.primitives.addresses import ANY_IPV4, Address, MacAddress
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.decoder import decode
from qemu_usernat.wire.headers import peek
from qemu_usernat.wire.packets import UDP, Arp, IpPacket

ADDRESSES_MAXIMUM = 65536
"""Addresses with an owner; beyond it no further one is taken, but by lease."""

USED_MAXIMUM = 16
"""Addresses that one machine has as it used them first: beyond its lease, and what is reserved for
it."""

DHCP_SERVER_PORT = 67  # RFC 2131, 4.1


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
    reserved: Mapping[Address, MacAddress] = field(factory=dict)
    """Addresses that are one machine's, whether it is here or not."""
    on: bool = False
    _owners: dict[Address, MacAddress] = field(factory=dict)
    _used: dict[MacAddress, set[Address]] = field(factory=dict)
    """Of these, what its owner has neither leased nor reserved."""
    _leased: dict[MacAddress, Address] = field(factory=dict)
    """What a machine has leased last: it has one lease, but can have had any number."""

    def may_show(self, mac: MacAddress, port: Port, known: Port | None) -> bool:
        """Whether a frame from `mac` may come from `port`; `known` is where it was seen before."""
        return not self.on or known is port or (known is None and not port.addresses)

    def may_use(self, address: Address, mac: MacAddress) -> bool:
        """Whether `mac` may speak from `address`; it has it from now on, if nobody else has."""
        if not self.on:
            return True
        if self._owners.get(address) != mac:
            if self.is_of_another(mac, address) or len(self._owners) >= ADDRESSES_MAXIMUM:
                return False
            if not self._may_keep(address, mac):
                return False
            self._own(address, mac)
        return True

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

    def forget(self, macs: Iterable[MacAddress]) -> None:
        """The machines at `macs` have left: their addresses are free, also for themselves."""
        gone = set(macs)
        self._owners = {address: mac for address, mac in self._owners.items() if mac not in gone}
        self._leased = {mac: each for mac, each in self._leased.items() if mac not in gone}
        self._used = {mac: used for mac, used in self._used.items() if mac not in gone}

    def may_reach_guests(self, frame: memoryview) -> bool:
        """Whether a frame for another guest, or for all of them, may go there."""
        if not self.on:
            return True
        mac = frame[6:12].tobytes()
        peeked = peek(frame)
        if peeked is not None:
            protocol, address, port, _, to_port = peeked[:5]
            if protocol == UDP and DHCP_SERVER_PORT in (port, to_port):
                return port != DHCP_SERVER_PORT and address == ANY_IPV4
            return self._is_its_own(address, mac)
        try:
            content = decode(frame).content
        except Malformed:
            return False
        if isinstance(content, Arp):
            address = content.sender_address
            return content.sender_mac == mac and (
                address == ANY_IPV4 or self._is_its_own(address, mac)  # RFC 5227: it asks first
            )
        return not _is_of_server(content) and self._is_its_own(content.source, mac)

    def _is_its_own(self, address: Address, mac: MacAddress) -> bool:
        return self.is_guest(address) and self.may_use(address, mac)


def _is_of_server(packet: IpPacket) -> bool:
    """Whether it is what only a DHCP server sends; of fragments, the first."""
    return (
        packet.protocol == UDP
        and packet.fragment_offset == 0
        and packet.payload[:2] == DHCP_SERVER_PORT.to_bytes(2, "big")
    )
