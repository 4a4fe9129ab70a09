"""Places and services: what a rule is about, as values, and as a person writes them.

    10.0.0.0/8    192.0.2.7    10.0.0.1-10.0.0.9    2001:db8::/32
    pypi.org      *.github.com                       one or more labels, never the apex
    public        private, lan, host, …              a group of addresses (`groups`)
    any           every address above the floor
    dns           any name may be looked up

Names are compared as a resolver does (RFC 4343): small letters, without the final dot; a name with
other letters than ASCII is written in its A-labels (RFC 5890).
"""

import re
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import TypeAlias

from attrs import frozen

from qemu_usernat.policy.groups import GROUPS
from qemu_usernat.policy.tables import Network
from qemu_usernat.primitives.errors import UserError

NAME_MAXIMUM = 253  # octets, as text without the final dot (RFC 1035, 2.3.4)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")  # RFC 1123, 2.1, and underscores

PLACES_ALLOWED = (
    'a network ("10.0.0.0/8"), an address, a range ("10.0.0.1-10.0.0.9"), a name ("pypi.org", '
    f'"*.github.com"), a group ({", ".join(GROUPS)}), "any" or "dns"'
)
SERVICES_ALLOWED = '"tcp/443", "udp/1000-2000", "443" (tcp and udp), "tcp", "udp" or "icmp"'


@frozen
class NetworkPlace:
    """Every address in a network."""

    network: Network

    def __str__(self) -> str:
        network = self.network
        return str(
            network.network_address if network.prefixlen == network.max_prefixlen else network
        )


@frozen
class NamePlace:
    """A name, or all that are longer and end in it."""

    name: str
    wildcard: bool = False

    def __str__(self) -> str:
        return f"*.{self.name}" if self.wildcard else self.name

    def matches(self, name: str) -> bool:
        """Whether `name`, in small letters and without a final dot, is meant."""
        return name.endswith("." + self.name) if self.wildcard else name == self.name


@frozen
class GroupPlace:
    """Every address of a group."""

    group: str

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


Place: TypeAlias = NetworkPlace | NamePlace | GroupPlace | AnyPlace | DnsPlace


@frozen
class Service:
    """A protocol, or both of those with ports, and a range of ports."""

    protocol: str | None
    """``tcp``, ``udp``, ``icmp``; None for TCP and UDP."""
    first: int = 0
    last: int = 65535

    def __str__(self) -> str:
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        if (self.first, self.last) == (0, 65535) and self.protocol is not None:
            return self.protocol
        return ports if self.protocol is None else f"{self.protocol}/{ports}"

    def covers(self, protocol: str, port: int) -> bool:
        """Whether a flow of this protocol to this port is meant."""
        if self.protocol is None:
            return protocol in ("tcp", "udp") and self.first <= port <= self.last
        return protocol == self.protocol and self.first <= port <= self.last


# -- reading


def parse_places(text: str) -> tuple[Place, ...]:
    """The place, or for a range of addresses the networks, that `text` is; UserError."""
    word = text.strip()
    if word.lower() == "any":
        return (AnyPlace(),)
    if word.lower() == "dns":
        return (DnsPlace(),)
    if word.lower() in GROUPS:
        return (GroupPlace(word.lower()),)
    if re.fullmatch(r"[0-9.]+(/\d+)?|[0-9a-fA-F.:]*:[0-9a-fA-F.:]*(/\d+)?", word):
        try:
            return (NetworkPlace(ip_network(word)),)
        except ValueError as error:
            raise UserError(
                f'"{word}" is no network: {error}; allowed: {PLACES_ALLOWED}'
            ) from error
    first, dash, last = word.partition("-")
    if dash and re.fullmatch(r"[0-9.]+|[0-9a-fA-F.:]*:[0-9a-fA-F.:]*", first.strip()):
        return parse_range(first.strip(), last.strip())
    return (parse_name(word),)


def parse_range(first: str, last: str) -> tuple[NetworkPlace, ...]:
    """The networks from one address to another; UserError."""
    try:
        networks = summarize_address_range(ip_address(first), ip_address(last))
        return tuple(NetworkPlace(network) for network in networks)
    except (ValueError, TypeError) as error:
        raise UserError(f'"{first}-{last}" is no range of addresses: {error}') from error


def parse_name(text: str) -> NamePlace:
    """``pypi.org`` or ``*.github.com``; UserError."""
    wildcard = text.startswith("*.")
    try:
        name = normalised(text[2:] if wildcard else text)
    except ValueError as error:
        raise UserError(f'"{text}" is no place: {error}; allowed: {PLACES_ALLOWED}') from error
    if wildcard and "." not in name:
        raise UserError(
            f'"{text}" would match a whole top-level domain; allowed: a wildcard over two labels '
            'or more, like "*.example.com"'
        )
    return NamePlace(name, wildcard)


def normalised(text: str) -> str:
    """A name as names are compared; ValueError where it is none."""
    name = text[:-1] if text.endswith(".") else text
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError as error:
            raise ValueError(f"{error}") from error
    name = name.lower()
    if not name or len(name) > NAME_MAXIMUM:
        raise ValueError("a name has 1 to 253 letters")
    for label in name.split("."):
        if not _LABEL.fullmatch(label):
            raise ValueError(f'"{label}" is no label of a name')
    if re.fullmatch(r"[0-9]+", name.rpartition(".")[2]):
        raise ValueError("a name does not end in a number")  # RFC 1123, 2.1: it is an address
    return name


def parse_service(text: str) -> Service:
    """``tcp/443``, ``udp/1000-2000``, ``443``, ``tcp``, ``icmp``; UserError."""
    word = text.strip().lower()
    if word in ("tcp", "udp"):
        return Service(word)
    if word == "icmp":
        return Service("icmp")
    found = re.fullmatch(r"(?:(tcp|udp)/)?(\d{1,5})(?:-(\d{1,5}))?", word)
    if found:
        first = int(found[2])
        last = int(found[3] or first)
        if first <= last <= 65535:
            return Service(found[1], first, last)
    raise UserError(f'"{text}" is no service; allowed: {SERVICES_ALLOWED}, ports from 0 to 65535')
