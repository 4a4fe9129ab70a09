"""Groups of addresses: what kind of place an address is, for rules that do not list networks.

The groups are disjoint, and every address is in one. Those of the *floor* are never meant by `any`,
by a default or by a shortcut: a rule has to name them. The table is our own: Python's `is_global`
disagrees with it in several places, and a library's opinion may change under a policy.

An IPv4 address may be written inside an IPv6 one (RFC 4291, 2.5.5.2; RFC 6052, 2.1). It is the
inner address that is judged.
"""

from collections.abc import Callable
from ipaddress import ip_network

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

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_NAT64 = bytes.fromhex("0064ff9b") + bytes(8)  # 64:ff9b::/96


def unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, where that is what it stands for; else `address`."""
    if len(address) == 16 and address[:12] in (_MAPPED, _NAT64):
        return address[12:]
    return address


def _no_addresses(address: Address) -> bool:
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
    _prefixes: PrefixTable[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        table = PrefixTable[str]()
        for group, texts in _TABLE.items():
            for text in texts:
                table.add(ip_network(text), group)
        for network in self.lan:
            table.add(network, LAN)
        for network in self.public:
            table.add(network, PUBLIC)
        self._prefixes = table

    def of(self, address: Address) -> str:
        """The one group of this address."""
        address = unwrapped(address)
        if address in self.gateway:
            return HOST
        group = next(iter(self._prefixes.find(address)), PUBLIC)
        if group in FLOOR:
            return group
        return HOST if self.is_of_host(address) else group

    def is_named(self, group: str, network: Network) -> bool:
        """Whether a rule for `network` names the floor's `group`: a network of that group, or for
        the host's own addresses the very address. A wide network names nothing that lies in it."""
        if group == HOST:
            return network.prefixlen == network.max_prefixlen
        return any(
            network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
            for other in map(ip_network, _TABLE[group])
        )
