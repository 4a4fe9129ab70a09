"""The DHCP server (RFC 2131): conversations and options; the addresses are in `leases`.

It is the only server of its segment and speaks with authority. So a client that asks to keep an
address of ours which is free (INIT-REBOOT, RENEWING, REBINDING) gets it although no record of it
is left: this server was restarted and the guest was not. (RFC 2131, 4.3.2, wants silence in
INIT-REBOOT, for the peace of several servers on one wire.) All else that is not the client's to
have is refused with a NAK, so that it starts afresh at once.

Leases go by client identifier (option 61), which is echoed (RFC 6842). A client without one is
known by hardware type and MAC address: that is what most others put into option 61, so a boot
ROM and the system it loads keep one address.

Options go by the client's list (option 55). Out of order only the subnet mask and the MTU: they
are sent unasked, as guests whose scripts would use them often forget to ask.
"""

import re
from collections.abc import Callable, Container

import dns.name
from attrs import define, evolve, field, frozen

from qemu_usernat.gateway.leases import LeasePool, by_nobody
from qemu_usernat.primitives.addresses import (
    ANY_IPV4,
    BROADCAST_IPV4,
    BROADCAST_MAC,
    Address,
    MacAddress,
    format_address,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.dhcp import DhcpMessage

SERVER_PORT = 67  # RFC 2131, 4.1
CLIENT_PORT = 68

BOOT_REQUEST = 1  # RFC 951: the `op` field
BOOT_REPLY = 2

# DHCP message types: option 53 (RFC 2132, 9.6)
DISCOVER = 1
OFFER = 2
REQUEST = 3
DECLINE = 4
ACK = 5
NAK = 6
RELEASE = 7
INFORM = 8

# Options (RFC 2132 unless noted)
SUBNET_MASK = 1
ROUTER = 3
DNS_SERVERS = 6
HOST_NAME = 12
DOMAIN_NAME = 15
INTERFACE_MTU = 26
BROADCAST_ADDRESS = 28
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
DOMAIN_SEARCH = 119  # RFC 3397
CLASSLESS_ROUTES = 121  # RFC 3442

SENT_UNASKED = frozenset({SUBNET_MASK, INTERFACE_MTU})

T1_SHARE = 0.5  # of the lease time (RFC 2131, 4.4.5)
T2_SHARE = 0.875

SIZE_MINIMUM = 576
"""Bytes of an IP packet that every client takes (RFC 2131, 2; option 57 may say more)."""

_OVERHEAD = 20 + 8 + 236 + 4 + 1
"""IP and UDP headers, the fixed fields, the magic cookie, the end option."""

_ETHERNET = b"\x01"
"""Hardware type of Ethernet, with which most client identifiers begin (RFC 2132, 9.14)."""

_NAME_OF_A_HOST = re.compile(rb"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")


@frozen
class DhcpSettings:
    """What the server tells, and the addresses it may lease: `first` to `last`, both included.

    `reserved` addresses are never leased; nor are the server's own, the router's, the name
    servers', the network's and its broadcast address. `lease_time` is in seconds, `mtu` in bytes.
    An empty `domain` is not told.
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


@frozen
class DhcpReply:
    """A message to send from port 67 to port 68, and to whom (RFC 2131, 4.1)."""

    message: DhcpMessage
    destination: Address
    destination_mac: MacAddress


@define
class DhcpServer:
    """One segment's DHCP server."""

    settings: DhcpSettings
    counters: Counters
    _leases: LeasePool = field(init=False)
    _believes_client: bool = field(default=True, init=False)
    _parameters: dict[int, bytes] = field(init=False)
    _conversations: dict[bytes, Callable[[DhcpMessage, float], DhcpReply | None]] = field(
        init=False
    )

    def __attrs_post_init__(self) -> None:
        settings = self.settings
        never = settings.reserved | {
            settings.server_address,
            settings.router,
            settings.network_address,
            settings.broadcast_address,
            *settings.dns_servers,
        }
        self._leases = LeasePool(settings.first, settings.last, frozenset(never))
        self._parameters = _parameters_for_all(settings)
        self._conversations = {
            bytes([DISCOVER]): self._on_discover,
            bytes([REQUEST]): self._on_request,
            bytes([DECLINE]): self._on_decline,
            bytes([RELEASE]): self._on_release,
            bytes([INFORM]): self._on_inform,
        }

    def has_leased(self, address: Address, now: float) -> bool:
        """Whether somebody has it from us."""
        return self._leases.holds(address, now)

    def answer(
        self,
        message: DhcpMessage,
        now: float,
        is_taken: Callable[[Address], bool] | None = None,
    ) -> DhcpReply | None:
        """What the client is told, or None: silence, counted where it is not by the protocol.

        Where it is known which addresses others have taken, nobody is believed to be another than
        its MAC address says.
        """
        self._believes_client = is_taken is None
        self._leases.is_taken = is_taken or by_nobody
        out_of_place = self._out_of_place(message)
        if out_of_place is not None:
            self.counters.count(out_of_place)
            return None
        return self._conversations[message.options[MESSAGE_TYPE]](message, now)

    def _out_of_place(self, message: DhcpMessage) -> str | None:
        """Why a message is not for this server at all: the name of its counter."""
        if message.operation != BOOT_REQUEST:
            return "dhcp.not_a_request"
        if message.relay_address != ANY_IPV4:
            return "dhcp.relayed"
        if MESSAGE_TYPE not in message.options:
            return "dhcp.bootp"
        if message.options[MESSAGE_TYPE] not in self._conversations:
            return "dhcp.unknown_type"
        if len(message.options.get(CLIENT_IDENTIFIER, b"")) > 255:
            return "dhcp.long_client_identifier"
        return None

    def on_gone(self, macs: Container[MacAddress], now: float) -> None:
        """The guests at `macs` have left the segment; others may have their addresses."""
        self._leases.on_gone(macs, now)

    def _client_key(self, message: DhcpMessage) -> bytes:
        """What the lease goes by: the client identifier (of 2 bytes or more) or its like."""
        identifier = message.options.get(CLIENT_IDENTIFIER, b"")
        is_identified = self._believes_client and len(identifier) >= 2
        return identifier if is_identified else _ETHERNET + message.client_mac

    def _bind(self, client: bytes, mac: MacAddress, address: Address, now: float) -> bool:
        return self._leases.bind(client, mac, address, self.settings.lease_time, now)

    def _on_discover(self, message: DhcpMessage, now: float) -> DhcpReply | None:
        """DHCPDISCOVER (RFC 2131, 4.3.1), answered by an offer, or by the lease (RFC 4039)."""
        client = self._client_key(message)
        address = self._leases.offer(
            client, message.client_mac, message.options.get(REQUESTED_ADDRESS), now
        )
        if address is None:
            self.counters.count("dhcp.pool_exhausted")
            return None
        if RAPID_COMMIT not in message.options:
            return self._reply(message, OFFER, address)
        self._bind(client, message.client_mac, address, now)
        return self._reply(message, ACK, address, {RAPID_COMMIT: b""})

    def _on_request(self, message: DhcpMessage, now: float) -> DhcpReply | None:
        """DHCPREQUEST in its four forms (RFC 2131, 4.3.2).

        SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in
        `ciaddr`; only SELECTING names a server.
        """
        client = self._client_key(message)
        server = message.options.get(SERVER_IDENTIFIER)
        if server is not None and server != self.settings.server_address:
            self._leases.withdraw_offer(client, now)
            self.counters.count("dhcp.other_server")
            return None
        address = message.options.get(REQUESTED_ADDRESS, message.client_address)
        if len(address) != 4 or address == ANY_IPV4:
            self.counters.count("dhcp.request_without_address")
            return None
        if not self._bind(client, message.client_mac, address, now):
            return self._refuse(message, b"this address is not yours here")
        return self._reply(message, ACK, address)

    def _on_decline(self, message: DhcpMessage, now: float) -> None:
        """DHCPDECLINE (RFC 2131, 4.3.3): somebody else uses the address."""
        address = message.options.get(REQUESTED_ADDRESS, b"")
        declined = self._is_for_us(message) and self._leases.decline(
            self._client_key(message), address, now
        )
        self.counters.count("dhcp.declined" if declined else "dhcp.decline_of_unknown")

    def _on_release(self, message: DhcpMessage, now: float) -> None:
        """DHCPRELEASE (RFC 2131, 4.3.4): the address is free, its client remembered."""
        released = self._is_for_us(message) and self._leases.release(
            self._client_key(message), message.client_address, now
        )
        if not released:
            self.counters.count("dhcp.release_of_unknown")

    def _on_inform(self, message: DhcpMessage, now: float) -> DhcpReply | None:
        """DHCPINFORM (RFC 2131, 4.3.5): parameters for an address that was set by hand."""
        if not self.settings.contains(message.client_address):
            self.counters.count("dhcp.inform_from_elsewhere")
            return None
        return self._reply(message, ACK, None)

    def _is_for_us(self, message: DhcpMessage) -> bool:
        return message.options.get(SERVER_IDENTIFIER) == self.settings.server_address

    def _reply(
        self,
        message: DhcpMessage,
        message_type: int,
        address: Address | None,
        extra: dict[int, bytes] | None = None,
    ) -> DhcpReply:
        """An offer or an acknowledgement; without an address the one of an INFORM."""
        options = self._header_options(message, message_type) | (extra or {})
        if address is not None:
            lease_time = self.settings.lease_time
            options[LEASE_TIME] = _seconds(lease_time)
            options[RENEWAL_TIME] = _seconds(lease_time * T1_SHARE)
            options[REBINDING_TIME] = _seconds(lease_time * T2_SHARE)
        self._add_parameters(options, message, address or message.client_address)
        # RFC 2131, 4.1: to `ciaddr` if the client has one, broadcast if it wants that, else to
        # the new address although the client does not answer ARP for it yet.
        destination, destination_mac = address or message.client_address, message.client_mac
        if message.client_address != ANY_IPV4:
            destination = message.client_address
        elif message.broadcast:
            destination, destination_mac = BROADCAST_IPV4, BROADCAST_MAC
        reply = evolve(
            _blank_reply(message),
            client_address=ANY_IPV4 if message_type == OFFER else message.client_address,
            your_address=address or ANY_IPV4,
            options=options,
        )
        return DhcpReply(reply, destination, destination_mac)

    def _refuse(self, message: DhcpMessage, why: bytes) -> DhcpReply:
        """A DHCPNAK: always broadcast, the client may have no right address (RFC 2131, 4.3.2)."""
        self.counters.count("dhcp.nak")
        options = self._header_options(message, NAK) | {MESSAGE: why}
        reply = evolve(_blank_reply(message), broadcast=True, options=options)
        return DhcpReply(reply, BROADCAST_IPV4, BROADCAST_MAC)

    def _header_options(self, message: DhcpMessage, message_type: int) -> dict[int, bytes]:
        """Those that every reply carries (RFC 2131, table 3; RFC 6842, 3)."""
        options = {
            MESSAGE_TYPE: bytes([message_type]),
            SERVER_IDENTIFIER: self.settings.server_address,
        }
        if CLIENT_IDENTIFIER in message.options:
            options[CLIENT_IDENTIFIER] = message.options[CLIENT_IDENTIFIER]
        return options

    def _add_parameters(
        self, options: dict[int, bytes], message: DhcpMessage, address: Address
    ) -> None:
        """Add what the client asked for, all there is if it gave no list, as far as it fits.

        Ascending, because the mask must precede the routers (RFC 2132, 3.3). Where a domain is
        very long, its search list (119) is what does not fit.
        """
        available = self._parameters | {HOST_NAME: _host_name(message, address)}
        wanted: set[int] = set(message.options.get(PARAMETER_LIST, available))
        room = _size_limit(message) - _OVERHEAD
        room -= sum(2 + len(value) for value in options.values())
        for code in sorted((wanted | SENT_UNASKED) & available.keys()):
            size = 2 + len(available[code])
            if size <= room:
                options[code] = available[code]
                room -= size


def is_lease(reply: DhcpMessage) -> bool:
    """Whether a reply gives its client an address."""
    return reply.options[MESSAGE_TYPE] == bytes([ACK]) and reply.your_address != ANY_IPV4


def _parameters_for_all(settings: DhcpSettings) -> dict[int, bytes]:
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
    if settings.domain:
        parameters[DOMAIN_NAME] = settings.domain.encode("ascii")
        parameters[DOMAIN_SEARCH] = dns.name.from_text(settings.domain).to_wire() or b""
    return parameters


def _blank_reply(message: DhcpMessage) -> DhcpMessage:
    """A reply to `message` that says nothing yet (RFC 2131, table 3)."""
    return DhcpMessage(
        operation=BOOT_REPLY,
        transaction_id=message.transaction_id,
        seconds=0,
        broadcast=message.broadcast,
        client_address=ANY_IPV4,
        your_address=ANY_IPV4,
        server_address=ANY_IPV4,
        relay_address=ANY_IPV4,
        client_mac=message.client_mac,
        options={},
    )


def _host_name(message: DhcpMessage, address: Address) -> bytes:
    """The name that the client calls itself, else one made from its address."""
    own = message.options.get(HOST_NAME, b"")
    if _NAME_OF_A_HOST.fullmatch(own):
        return own
    return b"guest-" + format_address(address).replace(".", "-").encode("ascii")


def _size_limit(message: DhcpMessage) -> int:
    """Bytes of an IP packet that the client takes (RFC 2132, 9.10)."""
    said = message.options.get(MAXIMUM_SIZE, b"")
    return max(SIZE_MINIMUM, int.from_bytes(said, "big")) if len(said) == 2 else SIZE_MINIMUM


def _seconds(duration: float) -> bytes:
    return min(int(duration), 0xFFFFFFFF).to_bytes(4, "big")


def _merge(address: Address, mask: Address, host_bits: Address) -> Address:
    """The bits of `address` under `mask`, those of `host_bits` elsewhere."""
    return bytes(a & m | h & ~m & 0xFF for a, m, h in zip(address, mask, host_bits, strict=True))
