"""Groups of addresses: what kind of place an address is, for rules that do not list networks.

The groups are disjoint, and every address is in one. Those of the *floor* are never meant by `any`,
by a default or by a shortcut: a rule has to name them. The table is our own: Python's `is_global`
disagrees with it in several places, and a library's opinion may change under a policy.

An IPv4 address may be written inside an IPv6 one (RFC 4291, 2.5.5.2; RFC 6052, 2.1). It is the
inner address that is judged.
"""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network

from attrs import define, field

from qemu_usernat.policy.tables import Network, PrefixTable
from qemu_usernat.primitives.addresses import Address

PUBLIC = "public"
PRIVATE = "private"
LAN = "lan"
HOST = "host"
LOOPBACK = "loopback"
LINK_LOCAL = "link-local"
METADATA = "metadata"
MULTICAST = "multicast"
RESERVED = "reserved"

GROUPS = (PUBLIC, PRIVATE, LAN, HOST, LOOPBACK, LINK_LOCAL, METADATA, MULTICAST, RESERVED)

FLOOR = frozenset({HOST, LOOPBACK, LINK_LOCAL, METADATA, MULTICAST, RESERVED})
"""Groups that only a rule reaches which names them."""

# IANA's registries of special-purpose addresses (RFC 6890), and the clouds' own documentation for
# the addresses of metadata services. Where two networks overlap, the longer prefix counts.
_TABLE: dict[str, tuple[str, ...]] = {
    PRIVATE: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"),
    LOOPBACK: ("127.0.0.0/8", "::1/128"),
    LINK_LOCAL: ("169.254.0.0/16", "fe80::/10"),
    METADATA: (
        "169.254.169.254/32",
        "169.254.170.2/32",
        "fd00:ec2::254/128",
        "168.63.129.16/32",
        "100.100.100.200/32",
        "192.0.0.192/32",
    ),
    MULTICAST: ("224.0.0.0/4", "255.255.255.255/32", "ff00::/8"),
    RESERVED: (
        "0.0.0.0/8",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
        "::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/32",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    ),
}

_NETWORKS: dict[str, tuple[Network, ...]] = {
    group: tuple(map(ip_network, texts)) for group, texts in _TABLE.items()
}

_OWN_FIRST = frozenset({LOOPBACK, METADATA})
"""Groups that an address keeps even where it is the host's own."""

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_NAT64 = bytes.fromhex("0064ff9b") + bytes(8)  # 64:ff9b::/96


def unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, where that is what it stands for; else `address`."""
    if len(address) == 16 and address[:12] in (_MAPPED, _NAT64):
        return address[12:]
    return address


def networks_of(group: str) -> tuple[Network, ...]:
    """Those that make a group, wherever the guests are."""
    return _NETWORKS.get(group, ())


def _no_addresses(address: Address) -> bool:
    return False


def is_internal(name: str) -> bool:
    """Whether the gateway answers for the name itself, and no other resolver is ever asked."""
    return f".{name}".endswith((".internal", ".localhost"))


def is_martian(address: Address) -> bool:
    """Whether no packet to there is let through, whatever a policy says: this host, any host and
    those of no use (RFC 1122, 3.2.1.3; RFC 4291, 2.5)."""
    address = unwrapped(address)
    if len(address) == 16:
        return address[:15] == bytes(15) and address[15] <= 1
    return address[0] in (0, 127) or address[0] >= 240


def _no_names(name: str) -> bool:
    return False


@define
class Groups:
    """Which group an address is of, on one network."""

    lan: tuple[Network, ...] = ()
    """The guests' own."""
    gateway: frozenset[Address] = frozenset()
    """The gateway's own addresses."""
    is_of_host: Callable[[Address], bool] = _no_addresses
    """Whether the host itself has this address at this moment."""
    public: tuple[Network, ...] = ()
    """Networks that a hermetic test declares to be public, whatever they are elsewhere."""
    is_own_name: Callable[[str], bool] = is_internal
    """Whether the name is of our own zone: the operator says what its address is, and nobody
    else can. Other names are never believed to be anything but public."""
    is_guests_name: Callable[[str], bool] = _no_names
    """Whether nobody but a guest can have the name: then no rule by name means it."""
    _prefixes: PrefixTable[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        table = PrefixTable[str]()
        for network in self.lan:  # of equal prefixes the first counts
            table.add(network, LAN)
            if network.version == 4 and network.prefixlen < 31:
                table.add(ip_network(network.broadcast_address), MULTICAST)
        for network in self.public:
            table.add(network, PUBLIC)
        for group, networks in _NETWORKS.items():
            for network in networks:
                table.add(network, group)
        self._prefixes = table

    def of(self, address: Address) -> str:
        """The one group of this address."""
        address = unwrapped(address)
        if address in self.gateway:
            return HOST
        group = next(iter(self._prefixes.find(address)), PUBLIC)
        return HOST if group not in _OWN_FIRST and self.is_of_host(address) else group


def names_group(
    group: str, first: IPv4Address | IPv6Address, last: IPv4Address | IPv6Address
) -> bool:
    """Whether a rule for the addresses from `first` to `last` names the floor's `group`: it is
    for one single address, or for none but that group's. A wide network names nothing in it."""
    return first == last or any(
        network.version == first.version and first in network and last in network
        for network in networks_of(group)
    )
