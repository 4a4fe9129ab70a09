"""Where the guest is that a published port leads to.

A guest is there when it was heard on the link that it has now, and not because an address was
leased, or was its own on a link that is gone. One that has said nothing yet is asked for by ARP;
where no address was named, each that a guest may have is asked for, as far as they are few.

Where no guest was named, the one that was heard first is meant: the resident. Of several none takes
its place because it reboots.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from ipaddress import IPv4Address
from itertools import islice
from typing import TypeAlias

from attrs import define, field

from qemu_usernat.admission import Guest
from qemu_usernat.config.publish import Publication
from qemu_usernat.delivery import Delivery
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.port import Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.primitives.addresses import BROADCAST_MAC, Address, MacAddress
from qemu_usernat.primitives.time import NEVER, SECOND
from qemu_usernat.services import Services
from qemu_usernat.wire.arp import arp_frame
from qemu_usernat.wire.packets import ARP_REQUEST, Arp

ASK_INTERVAL = 1 * SECOND
"""Between two questions for the same guest: the rate of RFC 1122, 2.3.2.1."""

ASKED_MAXIMUM = 256
"""Addresses that are asked for at once: a whole /24, of a larger network what was leased there."""

RESIDENT_TIME = 600 * SECOND
"""How long the resident may be away before another, which was there beside it, takes its place."""


@define(eq=False)
class _Resident:
    mac: MacAddress
    port: Port
    """Where it was last."""
    gone_at: float = 0
    """When that link ended, where it has."""


FailedCallback: TypeAlias = Callable[[Publication, str, float], None]
"""Told of each client that found no guest, as what it was counted, and when."""


def nobody_minds(*_: object) -> None:
    """Nobody is to know."""


@define(eq=False)
class Whereabouts:
    """Of the guests of one network."""

    addressing: Addressing
    switch: Switch
    delivery: Delivery
    services: Services
    on_resident: Callable[[Guest], None] = nobody_minds
    """Who is meant from now on where nobody was named."""
    on_several: Callable[[], None] = nobody_minds
    """Told once: from now on there are `several`."""
    several: bool = field(default=False, init=False)
    """Whether two guests, on two links, were ever there at once."""
    _resident: _Resident | None = field(default=None, init=False)
    _seen: int = field(default=0, init=False)
    _asked_at: dict[IPv4Address | str, float] = field(factory=dict, init=False)
    """When each was last asked for, of those that publications name."""
    _found: dict[IPv4Address | str, Guest | None] = field(factory=dict, init=False)
    """Who was meant, in this turn: of a thousand clients each asks."""

    def news(self, now: float) -> bool:
        """Whether anybody may have come since this was asked for last; a turn ends."""
        if self._found:
            self._found.clear()
        seen = self.delivery.neighbours_met + self.services.dhcp.version  # neither ever falls
        if seen == self._seen:
            return False
        self._seen = seen
        self._look(now)
        return True

    def on_link_down(self, port: Port, now: float) -> None:
        """Its guests are away."""
        if self._resident is not None and self._resident.port is port:
            self._resident.gone_at = now

    def find(self, publication: Publication, now: float) -> Guest | None:
        """The guest that is meant, if it is there."""
        meant = publication.guest
        guest = self._found.get(meant)
        if meant not in self._found or (guest is not None and not self.is_there(guest)):
            guest = self._found[meant] = self._find(publication, now)
        return guest

    def _find(self, publication: Publication, now: float) -> Guest | None:
        if not publication.guest:
            return self._the_resident(now)
        ports = self._ports(publication)
        if ports:
            return self._first(ports, now)
        address = self._address(publication, now)
        return None if address is None else self._guest_at(address)

    def is_there(self, guest: Guest) -> bool:
        """Whether it still is where it was found."""
        port = self.switch.port_of(guest.mac)
        return (
            port is not None
            and port.name == guest.link
            and self.delivery.mac_of(guest.address) == guest.mac
        )

    def ask(self, publication: Publication, now: float) -> None:
        """Look for it, if that was not done a moment ago: whoever is there answers."""
        meant = publication.guest
        if now - self._asked_at.get(meant, -NEVER) < ASK_INTERVAL:
            return
        if len(self._asked_at) >= ASKED_MAXIMUM:
            self._asked_at.clear()
        self._asked_at[meant] = now
        addresses: Iterable[Address]
        if self._ports(publication):
            addresses = islice(self._possible(now), ASKED_MAXIMUM)
        else:
            address = self._address(publication, now)
            addresses = () if address is None else (address,)
        ours, our_mac = self.delivery.gateway_address, self.delivery.gateway_mac
        for address in addresses:
            question = Arp(ARP_REQUEST, our_mac, ours, bytes(6), address)
            self.delivery.frame(BROADCAST_MAC, arp_frame(question, BROADCAST_MAC, our_mac))

    def _look(self, now: float) -> None:
        """Somebody was heard who was not before."""
        if self._resident is None:
            self._the_resident(now)
        if not self.several and len(self.switch.ports) > 1:
            self.several = sum(bool(self.delivery.addresses_at(p)) for p in self.switch.ports) > 1
            if self.several:
                self.on_several()

    def _the_resident(self, now: float) -> Guest | None:
        """Who is meant where nobody was named, if it is there."""
        resident = self._resident
        if resident is not None:
            port = self.switch.port_of(resident.mac)
            if port is not None and port in self.switch.ports:
                resident.port = port
            is_up = resident.port in self.switch.ports
            guest = self._first([resident.port], now, resident.mac) if is_up else None
            may_return = is_up or now - resident.gone_at < RESIDENT_TIME
            if guest is not None or (self.several and may_return):
                return guest
        guest = self._first(self.switch.ports, now)
        port = None if guest is None else self.switch.port_of(guest.mac)
        if guest is not None and port is not None:
            is_new = resident is None or resident.mac != guest.mac
            self._resident = _Resident(guest.mac, port)
            if is_new:
                self.on_resident(guest)
        return guest

    def _ports(self, publication: Publication) -> list[Port]:
        """The links of which any guest is meant: all, or that of the name."""
        guest = publication.guest
        return [each for each in self.switch.ports if not guest or each.name == guest]

    def _address(self, publication: Publication, now: float) -> Address | None:
        """The address that was named, or that somebody of that name has."""
        guest = publication.guest
        if not guest:
            return None
        return self.services.guest_named(guest, now) if isinstance(guest, str) else guest.packed

    def _guest_at(self, address: Address) -> Guest | None:
        mac = self.delivery.mac_of(address)
        if mac is None or self.switch.port_of(mac) is None:
            return None
        return self.delivery.guest_at(mac, address)

    def _first(self, ports: Iterable[Port], now: float, mac: MacAddress = b"") -> Guest | None:
        """Of the first link where a guest was heard, that at `mac` if there are several. Of its
        addresses rather a leased one, and one of the machine that was there first: it may be a
        bridge; then the one that it had last."""
        for port in ports:
            heard = self.delivery.addresses_at(port)
            heard = [each for each in heard if self.delivery.mac_of(each) == mac] or heard
            if heard:
                rank = partial(self._rank, port, now)
                return self._guest_at(max(reversed(heard), key=rank))
        return None

    def _rank(self, port: Port, now: float, address: Address) -> tuple[bool, bool]:
        is_leased = self.services.dhcp.has_leased(address, now)
        return is_leased, self.delivery.mac_of(address) == port.first

    def _possible(self, now: float) -> Iterator[Address]:
        """Where a guest may be of whom nothing is known but that there is a link."""
        network = self.addressing.network
        known = [lease.address for lease in self.services.dhcp.leases(now)]
        known += [each.address.packed for each in network.reservations]
        yield from known
        if network.subnet.num_addresses <= ASKED_MAXIMUM:
            for each in network.subnet.hosts():
                if each.packed not in known and each.packed not in self.addressing.own:
                    yield each.packed
