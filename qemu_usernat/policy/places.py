"""Places and services: what a rule is about, as values, and as a person writes them.

    10.0.0.0/8    192.0.2.7    10.0.0.1-10.0.0.9    2001:db8::/32
    pypi.org      *.github.com                       one or more labels, never the apex
    public        private, lan, host, …              a group of addresses (`groups`)
    any           every address above the floor
    dns           any name may be looked up

Names are compared as a resolver does (RFC 4343): small letters, without the final dot; a name with
other letters than ASCII is written in its A-labels (RFC 5891, as browsers and curl do). An IPv4
network that is written inside an IPv6 one is that IPv4 network, as it is for the judge.
"""

import difflib
import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    ip_address,
    ip_network,
    summarize_address_range,
)
from typing import TypeAlias

from attrs import field, frozen

from qemu_usernat.policy.groups import GROUPS, unwrapped
from qemu_usernat.policy.tables import Network
from qemu_usernat.primitives.errors import UserError

NAME_MAXIMUM = 253  # octets, as text without the final dot (RFC 1035, 2.3.4)
PORT_MAXIMUM = 65535
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")  # RFC 1123, 2.1, and underscores

# Resolvers of the C library take a name that ends so for an address: 127.1, 0x7f.1 (RFC 1123, 2.1).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

_IPV4 = r"[0-9.]+"
_IPV6 = r"[0-9a-fA-F.]*:[0-9a-fA-F.:]*"
_NETWORK = re.compile(rf"(?:{_IPV4}|{_IPV6})(?:/[0-9]+)?")
_RANGE = re.compile(rf"({_IPV4}|{_IPV6})\s*-\s*(\S*)")

WORDS = ("any", "dns", *GROUPS)
"""Places that are no names."""

PLACES_ALLOWED = (
    'a network ("10.0.0.0/8"), an address, a range ("10.0.0.1-10.0.0.9"), a name ("pypi.org", '
    f'"*.github.com"), a group ({", ".join(GROUPS)}), "any" or "dns"'
)
SERVICES_ALLOWED = '"tcp/443", "udp/1000-2000", "443" (tcp and udp), "tcp", "udp" or "icmp"'

AnyAddress: TypeAlias = IPv4Address | IPv6Address


def _inner_address(address: AnyAddress) -> AnyAddress:
    return ip_address(unwrapped(address.packed))


def _inner_network(network: Network) -> Network:
    inner = _inner_address(network.network_address)
    if inner.version == network.version or network.prefixlen < 96:
        return network
    return IPv4Network((int(inner), network.prefixlen - 96))


def normalised(text: str) -> str:
    """A name as names are compared; ValueError where it is none."""
    name = text
    if not name.isascii():
        import idna  # only for those who need it

        try:
            name = idna.encode(name, uts46=True).decode()
        except UnicodeError as error:
            raise ValueError(f"{error}") from error
    name = name.removesuffix(".").lower()
    if not name or len(name) > NAME_MAXIMUM:
        raise ValueError("a name has 1 to 253 letters")
    labels = name.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(f'"{label}" is no label of a name')
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError("a name does not end in a number")
    return name


@frozen
class NetworkPlace:
    """Every address in a network."""

    network: Network = field(converter=_inner_network)

    def __str__(self) -> str:
        network = self.network
        return str(
            network.network_address if network.prefixlen == network.max_prefixlen else network
        )

    def bounds(self) -> tuple[AnyAddress, AnyAddress]:
        """Its first address and its last."""
        return self.network.network_address, self.network.broadcast_address

    def networks(self) -> tuple[Network, ...]:
        """What a table holds."""
        return (self.network,)


@frozen
class RangePlace:
    """Every address from one to another, both included: at least two."""

    first: AnyAddress = field(converter=_inner_address)
    last: AnyAddress = field(converter=_inner_address)

    def __attrs_post_init__(self) -> None:
        if self.first.version != self.last.version:
            raise UserError(f'"{self}" is no range: its ends are not of one version of IP')
        if int(self.first) >= int(self.last):
            raise UserError(f'"{self}" is no range; allowed: the smaller address first')

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def bounds(self) -> tuple[AnyAddress, AnyAddress]:
        """Its first address and its last."""
        return self.first, self.last

    def networks(self) -> tuple[Network, ...]:
        """What a table holds."""
        return tuple(summarize_address_range(self.first, self.last))


@frozen
class NamePlace:
    """A name, or all that are longer and end in it."""

    name: str = field(converter=normalised)
    wildcard: bool = False

    def __attrs_post_init__(self) -> None:
        if "." in self.name:
            return
        if self.wildcard:
            raise UserError(
                f'"{self}" would match a whole top-level domain; allowed: a wildcard over two '
                'labels or more, like "*.example.com"'
            )
        close = difflib.get_close_matches(self.name, WORDS, n=1, cutoff=0.8)
        if close:  # a typing error must not become a rule that never matches
            raise UserError(
                f'"{self}" is no name; did you mean "{close[0]}"? allowed: {PLACES_ALLOWED}'
            )

    def __str__(self) -> str:
        return f"*.{self.name}" if self.wildcard else self.name

    def matches(self, name: str) -> bool:
        """Whether `name`, in small letters and without a final dot, is meant."""
        return name.endswith("." + self.name) if self.wildcard else name == self.name


@frozen
class GroupPlace:
    """Every address of a group."""

    group: str

    def __attrs_post_init__(self) -> None:
        if self.group not in GROUPS:
            raise UserError(f'"{self.group}" is no group; allowed: {", ".join(GROUPS)}')

    def __str__(self) -> str:
        return self.group


@frozen
class AnyPlace:
    """Every address that is not of the floor."""

    def __str__(self) -> str:
        return "any"


@frozen
class DnsPlace:
    """No address: that any name may be looked up."""

    def __str__(self) -> str:
        return "dns"


Place: TypeAlias = NetworkPlace | RangePlace | NamePlace | GroupPlace | AnyPlace | DnsPlace


@frozen
class Service:
    """A protocol, or both of those with ports, and a range of ports."""

    protocol: str | None
    """``tcp``, ``udp``, ``icmp``; None for TCP and UDP."""
    first: int = 0
    last: int = PORT_MAXIMUM

    def __attrs_post_init__(self) -> None:
        known = self.protocol in (None, "tcp", "udp", "icmp")
        ports = self.first, self.last
        if not known or not 0 <= self.first <= self.last <= PORT_MAXIMUM:
            raise _no_service(str(self))
        if self.protocol == "icmp" and ports != (0, PORT_MAXIMUM):
            raise _no_service(str(self))

    def __str__(self) -> str:
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        if (self.first, self.last) == (0, PORT_MAXIMUM) and self.protocol is not None:
            return self.protocol
        return ports if self.protocol is None else f"{self.protocol}/{ports}"

    def covers(self, protocol: str, port: int) -> bool:
        """Whether a flow of this protocol to this port is meant."""
        if self.protocol is None:
            return protocol in ("tcp", "udp") and self.first <= port <= self.last
        return protocol == self.protocol and self.first <= port <= self.last


def _no_service(text: str) -> UserError:
    return UserError(f'"{text}" is no service; allowed: {SERVICES_ALLOWED}, ports from 0 to 65535')


# -- reading


def parse_place(text: str) -> Place:
    """The place that `text` is; UserError."""
    word = text.strip()
    small = word.lower()
    if small == "any":
        return AnyPlace()
    if small == "dns":
        return DnsPlace()
    if small in GROUPS:
        return GroupPlace(small)
    if _NETWORK.fullmatch(word):
        try:
            return NetworkPlace(ip_network(word))
        except ValueError as error:
            raise UserError(
                f'"{word}" is no network: {error}; allowed: {PLACES_ALLOWED}'
            ) from error
    found = _RANGE.fullmatch(word)
    if found:
        return parse_range(found[1], found[2])
    return parse_name(word)


def parse_range(first: str, last: str) -> NetworkPlace | RangePlace:
    """All addresses from one to another; UserError."""
    try:
        ends = ip_address(first.strip()), ip_address(last.strip())
    except ValueError as error:
        raise UserError(f'"{first}-{last}" is no range of addresses: {error}') from error
    return NetworkPlace(ip_network(ends[0])) if ends[0] == ends[1] else RangePlace(*ends)


def parse_name(text: str) -> NamePlace:
    """``pypi.org`` or ``*.github.com``; UserError."""
    word = text.strip()
    try:
        return NamePlace(word.removeprefix("*."), word.startswith("*."))
    except ValueError as error:
        raise UserError(f'"{text}" is no place: {error}; allowed: {PLACES_ALLOWED}') from error


def parse_service(text: str) -> Service:
    """``tcp/443``, ``udp/1000-2000``, ``443``, ``tcp``, ``icmp``; UserError."""
    word = text.strip().lower()
    if word in ("tcp", "udp", "icmp"):
        return Service(word)
    found = re.fullmatch(r"(?:(tcp|udp)/)?([0-9]{1,5})(?:-([0-9]{1,5}))?", word)
    if not found:
        raise _no_service(text)
    try:
        return Service(found[1], int(found[2]), int(found[3] or found[2]))
    except UserError as error:
        raise _no_service(text) from error
