"""The DHCP server (RFC 2131): the conversations. Addresses are in `leases`, options in
`dhcp_options`.

It is the only server of its segment and speaks with authority. So a client that asks to keep an
address of ours which is free (INIT-REBOOT, RENEWING, REBINDING) gets it although no record of it
is left: this server was restarted and the guest was not. (RFC 2131, 4.3.2, wants silence in
INIT-REBOOT, for the peace of several servers on one wire.) All else that is not the client's to
have is refused with a NAK, so that it starts afresh at once.

Leases go by client identifier (option 61), which is echoed (RFC 6842). A client without one is
known by hardware type and MAC address: that is what most others put into option 61, so a boot
ROM and the system it loads keep one address. A machine with a reservation is known by its MAC
address alone, whatever it says.
"""

from collections.abc import Callable, Container, Hashable, Iterable, Mapping

from attrs import define, evolve, field, frozen

from qemu_usernat.gateway.dhcp_boot import boot_answer
from qemu_usernat.gateway.dhcp_options import (
    CLIENT_IDENTIFIER,
    HOST_NAME,
    LEASE_TIME,
    MESSAGE,
    MESSAGE_TYPE,
    RAPID_COMMIT,
    REBINDING_TIME,
    RENEWAL_TIME,
    REQUESTED_ADDRESS,
    SERVER_IDENTIFIER,
    DhcpSettings,
    host_name,
    name_of_client,
    parameters_for_all,
    seconds,
    size_limit,
    wanted_of,
)
from qemu_usernat.gateway.leases import HeldLease, LeasePool, by_nobody
from qemu_usernat.primitives.addresses import (
    ANY_IPV4,
    BROADCAST_IPV4,
    BROADCAST_MAC,
    Address,
    MacAddress,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.dhcp import DhcpMessage, build_dhcp, fitting

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

T1_SHARE = 0.5  # of the lease time (RFC 2131, 4.4.5)
T2_SHARE = 0.875

_ETHERNET = b"\x01"
"""Hardware type of Ethernet, with which most client identifiers begin (RFC 2132, 9.14)."""


@frozen
class DhcpReply:
    """A message to send from port 67 to port 68, and to whom (RFC 2131, 4.1).

    `limit` is how long it may be, in bytes.
    """

    message: DhcpMessage
    destination: Address
    destination_mac: MacAddress
    limit: int

    def payload(self) -> bytes:
        """The message as a UDP payload."""
        return build_dhcp(self.message, self.limit)


@define
class DhcpServer:
    """One segment's DHCP server."""

    settings: DhcpSettings
    counters: Counters
    _leases: LeasePool = field(init=False)
    _link: Hashable = field(default=None, init=False)
    """Of the client that speaks."""
    _believes_client: bool = field(default=True, init=False)
    _parameters: dict[int, bytes] = field(init=False)
    _names: Mapping[MacAddress, str] = field(init=False)
    """Of the machines that have a reservation; "" where that has none."""
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
        reserved = {_ETHERNET + each.mac: each.address.packed for each in settings.reservations}
        self._leases = LeasePool(settings.first, settings.last, frozenset(never), reserved=reserved)
        self._names = {each.mac: each.name for each in settings.reservations}
        self._parameters = parameters_for_all(settings)
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

    @property
    def version(self) -> int:
        """Another one once a lease has begun, was renewed, or has ended before its time."""
        return self._leases.version

    def leases(self, now: float) -> list[HeldLease]:
        """The leases that there are, the one that began first in front."""
        return self._leases.held(now)

    def remembered(self) -> list[HeldLease]:
        """The leases that there are and were: what `restore` takes."""
        return self._leases.remembered()

    def restore(self, leases: Iterable[HeldLease]) -> None:
        """What a server remembered that was here before, as far as the settings still allow it."""
        ours = [each for each in leases if self._may_have_had(each)]
        self._leases.restore(ours)

    def _may_have_had(self, lease: HeldLease) -> bool:
        """Whether that machine would be known by that client identifier now."""
        return self._key(lease.client, lease.mac) == lease.client

    def answer(
        self,
        message: DhcpMessage,
        now: float,
        is_taken: Callable[[Address], bool] | None = None,
        link: Hashable = None,
    ) -> DhcpReply | None:
        """What the client at `link` is told, or None: silence, counted where it is not by the
        protocol.

        Where it is known which addresses others have taken, nobody is believed to be another than
        its MAC address says.
        """
        self._link = link
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
        return self._key(identifier if is_identified else b"", message.client_mac)

    def _key(self, identifier: bytes, mac: MacAddress) -> bytes:
        """A reservation is for a machine: for all it runs, and for nobody who names it."""
        names_reserved = identifier[:1] == _ETHERNET and identifier[1:] in self._names
        if not identifier or mac in self._names or names_reserved:
            return _ETHERNET + mac
        return identifier

    def _bind(self, client: bytes, message: DhcpMessage, address: Address, now: float) -> bool:
        mac = message.client_mac
        name = self._names.get(mac) or name_of_client(message)
        return self._leases.bind(client, mac, address, self.settings.lease_time, now, name)

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
        self._bind(client, message, address, now)
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
        if not self._bind(client, message, address, now):
            return self._refuse(message, b"this address is not yours here")
        return self._reply(message, ACK, address)

    def _on_decline(self, message: DhcpMessage, now: float) -> None:
        """DHCPDECLINE (RFC 2131, 4.3.3): somebody else uses the address."""
        address = message.options.get(REQUESTED_ADDRESS, b"")
        declined = self._is_for_us(message) and self._leases.decline(
            self._client_key(message), address, now, self._link
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
        given = address or message.client_address
        options = self._header_options(message, message_type) | (extra or {})
        if address is not None:
            lease_time = self.settings.lease_time
            options[LEASE_TIME] = seconds(lease_time)
            options[RENEWAL_TIME] = seconds(lease_time * T1_SHARE)
            options[REBINDING_TIME] = seconds(lease_time * T2_SHARE)
        boot = boot_answer(message, self.settings.boot, self.settings.server_address)
        options |= boot.options
        name = self._names.get(message.client_mac, "")
        available = self._parameters | {HOST_NAME: host_name(message, name, given)}
        options |= wanted_of(message, available)
        # RFC 2131, 4.1: to `ciaddr` if the client has one, broadcast if it wants that, else to
        # the new address although the client does not answer ARP for it yet.
        destination, destination_mac = given, message.client_mac
        if message.client_address != ANY_IPV4:
            destination = message.client_address
        elif message.broadcast:
            destination, destination_mac = BROADCAST_IPV4, BROADCAST_MAC
        reply = evolve(
            _blank_reply(message),
            client_address=ANY_IPV4 if message_type == OFFER else message.client_address,
            your_address=address or ANY_IPV4,
            server_address=boot.server,
            boot_file=boot.file,
            options=options,
        )
        limit = size_limit(message, self.settings.mtu)
        return DhcpReply(fitting(reply, limit), destination, destination_mac, limit)

    def _refuse(self, message: DhcpMessage, why: bytes) -> DhcpReply:
        """A DHCPNAK: always broadcast, the client may have no right address (RFC 2131, 4.3.2)."""
        self.counters.count("dhcp.nak")
        options = self._header_options(message, NAK) | {MESSAGE: why}
        reply = evolve(_blank_reply(message), broadcast=True, options=options)
        limit = size_limit(message, self.settings.mtu)
        return DhcpReply(reply, BROADCAST_IPV4, BROADCAST_MAC, limit)

    def _header_options(self, message: DhcpMessage, message_type: int) -> dict[int, bytes]:
        """Those that every reply carries (RFC 2131, table 3; RFC 6842, 3)."""
        options = {
            MESSAGE_TYPE: bytes([message_type]),
            SERVER_IDENTIFIER: self.settings.server_address,
        }
        if CLIENT_IDENTIFIER in message.options:
            options[CLIENT_IDENTIFIER] = message.options[CLIENT_IDENTIFIER]
        return options


def is_lease(reply: DhcpMessage) -> bool:
    """Whether a reply gives its client an address."""
    return reply.options[MESSAGE_TYPE] == bytes([ACK]) and reply.your_address != ANY_IPV4


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
