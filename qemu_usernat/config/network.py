"""The guest's network: addresses, lease, MTU, upstream resolvers.

Each value has a default that follows from the others, so that a subnet alone is a
complete network down to a /30 (RFC 950 leaves two addresses there: the gateway, which
is then its own name server, and one guest). Owns what may be combined with what; how
a value is written in a file or an option belongs to `configuration`.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import TypeAlias

import attrs
import dns.name

from qemu_usernat.config.boot import ALLOWED_WITHOUT_FOLDER, Boot
from qemu_usernat.config.publish import SOURCE_ALLOWED, SOURCES, Publication, check_different
from qemu_usernat.config.records import Record, mistake, own_names
from qemu_usernat.config.reservations import Reservation
from qemu_usernat.policy.redirects import Redirect
from qemu_usernat.primitives.addresses import Address, MacAddress, format_mac
from qemu_usernat.primitives.errors import UserError

DEFAULT_SUBNET = IPv4Network("10.0.2.0/24")
PREFIX_SHORTEST = 8
PREFIX_LONGEST = 30  # /31 and /32 leave no room for a gateway and a guest
MTU_MINIMUM = 576  # bytes; RFC 791: what every host must accept
MTU_MAXIMUM = 65520  # bytes; a frame of 65534, below IPv4's 65535 in total, a multiple of 16
LEASE_TIME_MAXIMUM = 0xFFFFFFFF  # seconds; RFC 2131, 3.3: for ever
SEARCH_MAXIMUM = 32  # domains, each of which costs a guest a question for a name that is not there
DOMAIN_MAXIMUM = 189  # characters; RFC 1035's 253, less a label of 63 and its dot
STAND_INS_MAXIMUM = 256  # addresses of the subnet in one place of a redirect
GATEWAY_MAC_PREFIX = b"\x52\x55"  # locally administered; the prefix QEMU users know

_DOMAIN = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")

CONGESTION_CONTROLS = ("none", "reno", "cubic")
CONGESTION_ALLOWED = f"{', '.join(CONGESTION_CONTROLS[:-1])} or {CONGESTION_CONTROLS[-1]}"

UDP_FILTERINGS = ("endpoint", "address", "address-port")
"""Who may send to a port that a guest has sent from (RFC 4787, 5): everybody, whoever has one of
the addresses that it has sent to, or only those very ports of theirs."""
UDP_FILTERING_ALLOWED = f"{', '.join(UDP_FILTERINGS[:-1])} or {UDP_FILTERINGS[-1]}"

Upstream: TypeAlias = tuple[IPv4Address | IPv6Address, int]
"""A resolver of the host's world: address and port."""


class SettingError(UserError):
    """One value of the network does not fit, by itself or beside the others."""

    def __init__(self, key: str, value: str, allowed: str) -> None:
        super().__init__(f"{key} is {value}; allowed: {allowed}")
        self.key = key
        self.value = value
        self.allowed = allowed


def _checked_subnet(subnet: IPv4Network) -> IPv4Network:
    """A converter and no validator: the defaults that follow are reckoned from the subnet."""
    first = subnet.network_address
    if not PREFIX_SHORTEST <= subnet.prefixlen <= PREFIX_LONGEST:
        raise SettingError(
            "subnet", f"{subnet}", f"a prefix from /{PREFIX_SHORTEST} to /{PREFIX_LONGEST}"
        )
    if first.is_loopback or first.is_multicast or first.is_reserved or first.packed[0] == 0:
        raise SettingError("subnet", f"{subnet}", "a subnet of unicast addresses")
    return subnet


def _default_nameserver(network: "Network") -> IPv4Address:
    candidate = network.subnet.network_address + 3
    return candidate if network.is_usable(candidate) else network.gateway


def _default_first_lease(network: "Network") -> IPv4Address:
    candidate = network.subnet.network_address + 15
    if network.is_usable(candidate) and candidate <= network.last_lease:
        return candidate
    lowest = network.subnet.network_address + 1
    ours = (network.gateway, network.nameserver)
    free = (lowest + step for step in range(3) if lowest + step not in ours)
    candidate = next(free)
    # In a /30 whose two addresses are both ours there is none: the lease check says so.
    return candidate if network.is_usable(candidate) else lowest


@attrs.frozen(kw_only=True)
class Network:
    """One guest network, complete and consistent: `SettingError` (a UserError) if not.

    `lease_time` is in seconds, `mtu` in bytes of IP packet. `first_lease` to
    `last_lease` is inclusive; `gateway` and `nameserver` are never leased even where
    they lie between. An empty `dns` means the host's own resolvers. `ntp`
    are time servers that guests are told of; `reservations` may lie outside of the leases;
    `boot` is what machines boot from the network. `search` are domains that guests search
    after `domain`, `records` names of the user's own. `redirects` lead guests elsewhere.
    `host_loopback` makes the gateway's address reach the host's 127.0.0.1; `isolate` lets each
    guest see the gateway alone. `congestion` is the control of TCP towards the guest, one of
    `CONGESTION_CONTROLS`; `udp_filtering` one of `UDP_FILTERINGS`. `publications` are ports of
    guests that the host's world may call, and `publish_source`, one of `SOURCES`, is whom a guest
    sees then.
    """

    subnet: IPv4Network = attrs.field(default=DEFAULT_SUBNET, converter=_checked_subnet)
    gateway: IPv4Address = attrs.Factory(
        lambda self: self.subnet.network_address + 2, takes_self=True
    )
    nameserver: IPv4Address = attrs.Factory(_default_nameserver, takes_self=True)
    last_lease: IPv4Address = attrs.Factory(
        lambda self: self.subnet.broadcast_address - 1, takes_self=True
    )
    first_lease: IPv4Address = attrs.Factory(_default_first_lease, takes_self=True)
    lease_time: int = 86400
    mtu: int = MTU_MAXIMUM
    domain: str = "internal"
    gateway_mac: MacAddress = attrs.Factory(
        lambda self: GATEWAY_MAC_PREFIX + self.gateway.packed, takes_self=True
    )
    dns: tuple[Upstream, ...] = ()
    ntp: tuple[IPv4Address, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    search: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    boot: Boot = attrs.Factory(Boot)
    host_loopback: bool = False
    isolate: bool = False
    congestion: str = "none"
    udp_filtering: str = "address"
    publications: tuple[Publication, ...] = ()
    publish_source: str = "client"

    def __attrs_post_init__(self) -> None:
        self._check_addresses()
        self._check_leases()
        self._check_reservations()
        self._check_redirects()
        self._check_publications()
        self._check_the_rest()
        self._check_names()

    def is_usable(self, address: IPv4Address) -> bool:
        """Whether a host may have that address: in the subnet, not its first, not its last."""
        return self.subnet.network_address < address < self.subnet.broadcast_address

    def _check_addresses(self) -> None:
        subnet, first = self.subnet, self.subnet.network_address
        usable = (
            f"an address inside {subnet} other than {first} (the subnet itself) "
            f"and {subnet.broadcast_address} (broadcast)"
        )
        for key in ("gateway", "nameserver", "first_lease", "last_lease"):
            address = getattr(self, key)
            if not self.is_usable(address):
                raise SettingError(key, f"{address}", usable)

    def _check_leases(self) -> None:
        if self.first_lease > self.last_lease:
            raise SettingError(
                "first_lease", f"{self.first_lease}", f"at most last_lease, {self.last_lease}"
            )
        count = int(self.last_lease) - int(self.first_lease) + 1
        ours = {self.gateway, self.nameserver}
        taken = sum(self.first_lease <= address <= self.last_lease for address in ours)
        if taken == count:
            raise SettingError(
                "first_lease",
                f"{self.first_lease}",
                f"a range up to last_lease, {self.last_lease}, that holds an address besides "
                f"the gateway {self.gateway} and the nameserver {self.nameserver}",
            )

    def _check_reservations(self) -> None:
        for each in self.reservations:
            if not self.is_usable(each.address) or each.address in (self.gateway, self.nameserver):
                raise SettingError(
                    "reservation",
                    f"{each.address} for {format_mac(each.mac)}",
                    f"an address inside {self.subnet} that is neither the gateway's "
                    f"({self.gateway}) nor the nameserver's ({self.nameserver})",
                )
            if each.mac == self.gateway_mac:
                raise SettingError(
                    "reservation",
                    f"{each.address} for {format_mac(each.mac)}",
                    "a MAC address other than the gateway's",
                )
            if each.name and self._is_taken(each.name):
                raise SettingError(
                    "reservation",
                    f'"{each.name}" for {format_mac(each.mac)}',
                    "a name that is neither the gateway's nor one of [[record]]",
                )

    def halved(self, *, upper: bool) -> "Network":
        """The same with half of its leases, where both halves have one."""
        first, last = int(self.first_lease), int(self.last_lease)
        middle = (first + last) // 2
        bounds = (middle + 1, last) if upper else (first, middle)
        if self.subnet.prefixlen == PREFIX_LONGEST:
            return self
        return attrs.evolve(
            self, first_lease=IPv4Address(bounds[0]), last_lease=IPv4Address(bounds[1])
        )

    def leases(self, address: Address) -> bool:
        """Whether it is among those that are leased."""
        return self.first_lease.packed <= address <= self.last_lease.packed

    def is_guests_name(self, name: str) -> bool:
        """Whether nobody but a guest can have that name: it is of our domain, and you have not said
        what it is. A reservation is a guest's name, too."""
        origin, whole = dns.name.from_text(self.domain), dns.name.from_text(name)
        if not whole.is_subdomain(origin) or len(whole) != len(origin) + 1:
            return False
        given = {each.within(origin).name for each in self.records}
        return given.isdisjoint({whole, dns.name.from_text("*", origin)}) and (
            whole not in own_names(origin)
        )

    @property
    def stand_ins(self) -> frozenset[Address]:
        """Addresses of the subnet at which nobody is, but for what is redirected from there."""
        own = self.gateway, self.nameserver
        given = (
            IPv4Address(number)
            for first, last in self._redirected_ranges()
            for number in range(int(first), int(last) + 1)
        )
        return frozenset(each.packed for each in given if each not in own)

    def _redirected_ranges(self) -> Iterator[tuple[IPv4Address, IPv4Address]]:
        """Those that lie in the subnet; what reaches beyond it is led as it is routed."""
        for redirect in self.redirects:
            for first, last in redirect.ranges():
                if (
                    isinstance(first, IPv4Address)
                    and isinstance(last, IPv4Address)
                    and first in self.subnet
                    and last in self.subnet
                ):
                    yield first, last

    def _check_redirects(self) -> None:
        for first, last in self._redirected_ranges():
            if int(last) - int(first) >= STAND_INS_MAXIMUM:
                raise SettingError(
                    "redirect",
                    f"from {first}-{last}",
                    f"inside {self.subnet} at most {STAND_INS_MAXIMUM} addresses in a row",
                )
        reserved = {each.address for each in self.reservations}
        for packed in self.stand_ins:
            address = IPv4Address(packed)
            if not self.is_usable(address) or address in reserved:
                raise SettingError(
                    "redirect",
                    f"from {address}",
                    f"inside {self.subnet} an address that a machine may have and that is not "
                    "reserved for one",
                )

    def _check_publications(self) -> None:
        check_different(self.publications)
        for each in self.publications:
            self.check_publication(each)
        if self.publish_source not in SOURCES:
            raise SettingError("publish_source", f'"{self.publish_source}"', SOURCE_ALLOWED)

    def check_publication(self, each: Publication) -> None:
        """`SettingError` if it leads to where no guest of this network can be."""
        guest, ours = each.guest, (self.gateway, self.nameserver)
        if isinstance(guest, IPv4Address) and (not self.is_usable(guest) or guest in ours):
            raise SettingError(
                "publish",
                f"{each}",
                f"a guest's address inside {self.subnet}, neither the gateway's ({self.gateway}) "
                f"nor the nameserver's ({self.nameserver})",
            )

    def _is_taken(self, label: str) -> bool:
        """Whether a guest of that name would never be found by it."""
        domain = dns.name.from_text(self.domain)
        name = dns.name.from_text(label, domain)
        given = {each.within(domain).name for each in self.records}
        return name in given or name in own_names(domain) or label == "localhost"

    def _check_the_rest(self) -> None:
        if not 1 <= self.lease_time <= LEASE_TIME_MAXIMUM:
            raise SettingError(
                "lease_time", f"{self.lease_time}", f"seconds from 1 to {LEASE_TIME_MAXIMUM}"
            )
        if not MTU_MINIMUM <= self.mtu <= MTU_MAXIMUM:
            raise SettingError("mtu", f"{self.mtu}", f"bytes from {MTU_MINIMUM} to {MTU_MAXIMUM}")
        if self.boot.folder is None and self.boot.names:
            raise SettingError("bootfile", f'"{self.boot.names[0]}"', ALLOWED_WITHOUT_FOLDER)
        if self.congestion not in CONGESTION_CONTROLS:
            raise SettingError("congestion", f'"{self.congestion}"', CONGESTION_ALLOWED)
        if self.udp_filtering not in UDP_FILTERINGS:
            raise SettingError("udp_filtering", f'"{self.udp_filtering}"', UDP_FILTERING_ALLOWED)
        mac = self.gateway_mac
        if len(mac) != 6 or mac[0] & 1 or not any(mac):
            raise SettingError(
                "gateway_mac",
                format_mac(mac),
                "the six bytes of a unicast address, like 52:55:0a:00:02:02",
            )
        for server in self.ntp:
            if server.is_unspecified or server.is_multicast or server.is_loopback:
                raise SettingError("ntp", f"{server}", "unicast addresses that guests can reach")
        for address, port in self.dns:
            if address.is_unspecified or address.is_multicast or not 1 <= port <= 65535:
                raise SettingError(
                    "dns", f"{address} port {port}", "a unicast address and a port from 1 to 65535"
                )

    def _check_names(self) -> None:
        if len(self.search) > SEARCH_MAXIMUM:
            raise SettingError("search", f"{len(self.search)} domains", f"at most {SEARCH_MAXIMUM}")
        for key, domains in (("domain", (self.domain,)), ("search", self.search)):
            for domain in domains:
                if len(domain) > DOMAIN_MAXIMUM or not _DOMAIN.fullmatch(domain):
                    raise SettingError(
                        key,
                        f'"{domain}"',
                        "labels of a-z, 0-9 and inner dashes, joined by dots, "
                        f"at most {DOMAIN_MAXIMUM} characters, like internal or lab.internal",
                    )
        wrong = mistake(self.records, dns.name.from_text(self.domain))
        if wrong is not None:
            raise SettingError("record", *wrong)
