"""What the DHCP server says: its options, their values, and which of them a client is told.

Options go by the client's list (option 55). Out of order only the subnet mask and the MTU: they
are sent unasked, as guests whose scripts would use them often forget to ask.
"""

import re
from collections.abc import Sequence

import dns.name
from attrs import field, frozen

from qemu_usernat.config.boot import Boot
from qemu_usernat.config.reservations import Reservation
from qemu_usernat.primitives.addresses import BROADCAST_IPV4, Address, format_address
from qemu_usernat.wire.dhcp import DhcpMessage

# Options (RFC 2132 unless noted)
SUBNET_MASK = 1
ROUTER = 3
DNS_SERVERS = 6
HOST_NAME = 12
DOMAIN_NAME = 15
INTERFACE_MTU = 26
BROADCAST_ADDRESS = 28
NTP_SERVERS = 42
REQUESTED_ADDRESS = 50
LEASE_TIME = 51
MESSAGE_TYPE = 53
SERVER_IDENTIFIER = 54
PARAMETER_LIST = 55
MESSAGE = 56
MAXIMUM_SIZE = 57
RENEWAL_TIME = 58
REBINDING_TIME = 59
CLIENT_IDENTIFIER = 61
RAPID_COMMIT = 80  # RFC 4039
CLIENT_NAME = 81  # RFC 4702
DOMAIN_SEARCH = 119  # RFC 3397
CLASSLESS_ROUTES = 121  # RFC 3442

SENT_UNASKED = frozenset({SUBNET_MASK, INTERFACE_MTU})

SIZE_MINIMUM = 576
"""Bytes of an IP packet that every client takes (RFC 2131, 2; option 57 may say more)."""

_HEADERS = 20 + 8  # IP and UDP

_WIRE_NAME = 0x04
"""Of the flags of option 81: the name is written as in DNS messages (RFC 4702, 2.1)."""

_NAME_OF_A_HOST = re.compile(rb"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@frozen
class DhcpSettings:
    """What the server tells, and the addresses it may lease: `first` to `last`, both included.

    `reserved` addresses are never leased; nor are the server's own, the router's, the name
    servers', the network's and its broadcast address. `lease_time` is in seconds, `mtu` in bytes.
    An empty `domain` is not told; `search` are the domains that are searched after it.
    """

    server_address: Address
    prefix_length: int
    router: Address
    dns_servers: tuple[Address, ...]
    first: Address
    last: Address
    reserved: frozenset[Address]
    mtu: int
    lease_time: int
    domain: str
    search: tuple[str, ...] = ()
    ntp_servers: tuple[Address, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    boot: Boot = field(factory=Boot)

    @property
    def subnet_mask(self) -> Address:
        """As a packed address: 255.255.255.0."""
        ones = (1 << self.prefix_length) - 1
        return (ones << (32 - self.prefix_length)).to_bytes(4, "big")

    @property
    def network_address(self) -> Address:
        """All host bits zero."""
        return _merge(self.server_address, self.subnet_mask, bytes(4))

    @property
    def broadcast_address(self) -> Address:
        """All host bits one."""
        return _merge(self.server_address, self.subnet_mask, BROADCAST_IPV4)

    def contains(self, address: Address) -> bool:
        """Whether `address` is of this network."""
        return _merge(address, self.subnet_mask, bytes(4)) == self.network_address


def parameters_for_all(settings: DhcpSettings) -> dict[int, bytes]:
    """The options whose values are the same for every client."""
    parameters = {
        SUBNET_MASK: settings.subnet_mask,
        ROUTER: settings.router,
        INTERFACE_MTU: settings.mtu.to_bytes(2, "big"),
        BROADCAST_ADDRESS: settings.broadcast_address,
        # The default route, 0.0.0.0/0: whoever takes option 121 ignores option 3 (RFC 3442).
        CLASSLESS_ROUTES: b"\0" + settings.router,
    }
    if settings.dns_servers:
        parameters[DNS_SERVERS] = b"".join(settings.dns_servers)
    if settings.ntp_servers:
        parameters[NTP_SERVERS] = b"".join(settings.ntp_servers)
    if settings.domain:
        parameters[DOMAIN_NAME] = settings.domain.encode("ascii")
    domains = ((settings.domain,) if settings.domain else ()) + settings.search
    if domains:
        parameters[DOMAIN_SEARCH] = _search_list(domains)
    return parameters


def _search_list(domains: Sequence[str]) -> bytes:
    return b"".join(dns.name.from_text(each).to_wire() or b"" for each in domains)


def wanted_of(message: DhcpMessage, available: dict[int, bytes]) -> dict[int, bytes]:
    """What the client asked for, all there is if it gave no list.

    Ascending, because the mask must precede the routers (RFC 2132, 3.3).
    """
    wanted: set[int] = set(message.options.get(PARAMETER_LIST, available))
    return {code: available[code] for code in sorted((wanted | SENT_UNASKED) & available.keys())}


def name_of_client(message: DhcpMessage) -> str:
    """What the client calls itself, as the first label of a name in lower case; "" if nothing.

    By option 12, or by option 81, which some send instead once their name has a domain.
    """
    own = _own_name(message) or _full_name(message.options.get(CLIENT_NAME, b""))
    label = own.decode("ascii", "replace").partition(".")[0].lower()
    return label if _LABEL.fullmatch(label) else ""


def _own_name(message: DhcpMessage) -> bytes:
    return message.options.get(HOST_NAME, b"").rstrip(b"\0")  # which some send (RFC 2132, 2)


def _full_name(option: bytes) -> bytes:
    if len(option) < 4:
        return b""
    name = option[3:]  # after the flags and two codes that nobody uses
    return name[1 : 1 + name[0]] if option[0] & _WIRE_NAME else name


def host_name(message: DhcpMessage, name: str, address: Address) -> bytes:
    """What a client is to be called: as it calls itself, unless it has a name from us."""
    own = _own_name(message)
    if name:
        return name.encode("ascii")
    if _NAME_OF_A_HOST.fullmatch(own):
        return own
    return b"guest-" + format_address(address).replace(".", "-").encode("ascii")


def size_limit(message: DhcpMessage, mtu: int) -> int:
    """Bytes of a message that the client takes (RFC 2132, 9.10) and that need no fragments."""
    said = message.options.get(MAXIMUM_SIZE, b"")
    size = int.from_bytes(said, "big") if len(said) == 2 else SIZE_MINIMUM
    return max(SIZE_MINIMUM, min(size, mtu)) - _HEADERS


def seconds(duration: float) -> bytes:
    """A time in seconds, as options have it."""
    return min(int(duration), 0xFFFFFFFF).to_bytes(4, "big")


def _merge(address: Address, mask: Address, host_bits: Address) -> Address:
    """The bits of `address` under `mask`, those of `host_bits` elsewhere."""
    return bytes(a & m | h & ~m & 0xFF for a, m, h in zip(address, mask, host_bits, strict=True))
