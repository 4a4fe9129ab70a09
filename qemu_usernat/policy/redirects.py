"""Redirects: what a guest asks for, and where it goes instead.

A redirect is of places and services, as a rule is, and the first that matches holds. It allows
nothing: the policy judges what the guest has asked for, and its records say where that went.

A name is whatever the guest was told an address for. One address may be told for several names, as
of a content network; what counts then is the name that the guest asked for last.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import TypeAlias

from attrs import field, frozen

from qemu_usernat.policy.places import (
    AnyAddress,
    AnyPlace,
    NamePlace,
    NetworkPlace,
    Place,
    RangePlace,
    Service,
)
from qemu_usernat.primitives.addresses import Address, format_address

PLACES_ALLOWED = (
    'an address, a network ("10.0.0.0/8"), a range ("10.0.0.1-10.0.0.9"), a name ("pypi.org", '
    '"*.github.com") or "any"'
)

REDIRECTED = (NetworkPlace, RangePlace, NamePlace, AnyPlace)
"""Kinds of places that can be."""


@frozen
class HostTarget:
    """An address of the host's world."""

    address: Address
    port: int
    """0: the one that the guest has asked for."""

    def __str__(self) -> str:
        address = format_address(self.address)
        if not self.port:
            return address
        return f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"


@frozen
class UnixTarget:
    """A unix stream socket of the host."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Target: TypeAlias = HostTarget | UnixTarget


@frozen
class Redirect:
    """What guests ask for at some places, on some services or on all, goes elsewhere."""

    places: tuple[Place, ...]
    services: tuple[Service, ...]
    """None: all of TCP and UDP."""
    target: Target

    def target_of(
        self, protocol: str, destination: Address, port: int, name: str | None
    ) -> Target | None:
        """Where a flow goes, if it is one of these; `name` is what the guest calls `destination`.

        Only TCP goes to a unix socket.
        """
        target = self.target
        if protocol not in ("tcp", "udp") or (protocol == "udp" and isinstance(target, UnixTarget)):
            return None
        if self.services and not any(each.covers(protocol, port) for each in self.services):
            return None
        if not any(_is_at(place, destination, name) for place in self.places):
            return None
        if isinstance(target, HostTarget) and not target.port:
            return HostTarget(target.address, port)
        return target

    def ranges(self) -> Iterator[tuple[AnyAddress, AnyAddress]]:
        """The addresses that it is about, by the first and the last of each place."""
        for place in self.places:
            if isinstance(place, NetworkPlace | RangePlace):
                yield place.bounds()


def _is_at(place: Place, destination: Address, name: str | None) -> bool:
    if isinstance(place, NamePlace):
        return name is not None and place.matches(name)
    if isinstance(place, AnyPlace):
        return True
    if isinstance(place, NetworkPlace | RangePlace):
        first, last = place.bounds()
        address = ip_address(destination)
        return address.version == first.version and int(first) <= int(address) <= int(last)
    return False


@frozen
class Redirects:
    """All of one network, in order."""

    each: tuple[Redirect, ...] = field(default=(), converter=tuple[Redirect, ...])

    def __bool__(self) -> bool:
        return bool(self.each)

    def target_of(
        self, protocol: str, destination: Address, port: int, name: str | None
    ) -> Target | None:
        """Where a flow goes that does not go where the guest has asked; None for all others."""
        for redirect in self.each:
            target = redirect.target_of(protocol, destination, port, name)
            if target is not None:
                return target
        return None

    @property
    def know_names(self) -> bool:
        """Whether any is about a name: then it matters what a guest is told of names."""
        return any(isinstance(place, NamePlace) for each in self.each for place in each.places)
