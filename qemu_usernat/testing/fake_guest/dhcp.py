"""The fake guest's DHCP client (RFC 2131, 4.4): discover, request, renew, release."""

import errno
from collections.abc import Collection, Iterator, Mapping

import trio
from attrs import field, frozen

from qemu_usernat.gateway import dhcp, dhcp_options
from qemu_usernat.primitives.addresses import (
    ANY_IPV4,
    BROADCAST_IPV4,
    BROADCAST_MAC,
    Address,
    format_address,
    parse_address,
)
from qemu_usernat.testing.fake_guest.stack import Stack
from qemu_usernat.wire.dhcp import DhcpMessage, build_dhcp, parse_dhcp
from qemu_usernat.wire.packets import UDP
from qemu_usernat.wire.udp import udp_datagram

FIRST_PATIENCE = 4.0  # seconds until a message is sent again; doubles (RFC 2131, 4.1)

ASKED_FOR = bytes(
    (
        dhcp_options.SUBNET_MASK,
        dhcp_options.ROUTER,
        dhcp_options.DNS_SERVERS,
        dhcp_options.HOST_NAME,
        dhcp_options.DOMAIN_NAME,
        dhcp_options.INTERFACE_MTU,
        dhcp_options.BROADCAST_ADDRESS,
        dhcp_options.DOMAIN_SEARCH,
        dhcp_options.CLASSLESS_ROUTES,
    )
)


class DhcpRefused(Exception):  # noqa: N818 - a refusal is an answer
    """The server has said no (DHCPNAK); the message is its own."""


@frozen
class Lease:
    """What the server has leased and told: addresses as text, times in seconds."""

    address: str
    prefix_length: int
    server: str
    gateway: str | None
    nameservers: tuple[str, ...]
    domain: str | None
    host_name: str | None
    mtu: int | None
    lease_time: int
    renewal_time: int | None
    rebinding_time: int | None
    options: Mapping[int, bytes] = field(repr=False)
    """All options of the server's message, by code, for what has no name here."""


class DhcpClient:
    """The talk with the server; whose the lease is, the guest knows."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._replies: list[DhcpMessage] = []
        self._transaction = 0
        self._options: Mapping[int, bytes] = {}
        """What was asked with, to be said again."""

    def on_message(self, payload: bytes) -> None:
        """Something for port 68."""
        message = parse_dhcp(payload)
        if message.client_mac == self._stack.mac and message.operation == dhcp.BOOT_REPLY:
            self._replies.append(message)

    async def lease(self, options: Mapping[int, bytes], timeout: float) -> Lease:  # noqa: ASYNC109
        """Discover, offer, request, acknowledgment."""
        self._transaction += 1
        deadline = trio.current_time() + timeout
        options = self._options = {dhcp_options.PARAMETER_LIST: ASKED_FOR, **options}
        offer = await self._ask(dhcp.DISCOVER, options, (dhcp.OFFER, dhcp.ACK), deadline)
        if _kind(offer) == dhcp.ACK:
            return read_lease(offer)  # it commits at once, as was asked for (RFC 4039)
        chosen = {
            dhcp_options.REQUESTED_ADDRESS: offer.your_address,
            dhcp_options.SERVER_IDENTIFIER: offer.options.get(
                dhcp_options.SERVER_IDENTIFIER, ANY_IPV4
            ),
        }
        return await self._request({**options, **chosen}, deadline)

    async def renew(self, lease: Lease, timeout: float) -> Lease:  # noqa: ASYNC109
        """Ask the server that gave it for more time (RFC 2131, 4.4.5)."""
        self._transaction += 1
        deadline = trio.current_time() + timeout
        server = parse_address(lease.server)
        await self._stack.next_hop(server)
        return await self._request(self._options, deadline, server)

    async def release(self, lease: Lease) -> None:
        """Give it back; nobody answers that."""
        self._transaction += 1
        server = parse_address(lease.server)
        await self._stack.next_hop(server)
        self._send(dhcp.RELEASE, {dhcp_options.SERVER_IDENTIFIER: server}, server)
        self._stack.end_turn()

    async def _request(
        self, options: Mapping[int, bytes], deadline: float, server: Address | None = None
    ) -> Lease:
        answer = await self._ask(dhcp.REQUEST, options, (dhcp.ACK, dhcp.NAK), deadline, server)
        if _kind(answer) == dhcp.NAK:
            reason = answer.options.get(dhcp_options.MESSAGE, b"without a reason").decode(
                errors="replace"
            )
            raise DhcpRefused(f"the DHCP server refused the address: {reason}")
        return read_lease(answer)

    async def _ask(
        self,
        kind: int,
        options: Mapping[int, bytes],
        wanted: Collection[int],
        deadline: float,
        server: Address | None = None,
    ) -> DhcpMessage:
        """The answer that is `wanted`; asks again where none comes."""

        def look() -> DhcpMessage | None:
            for message in self._replies:
                if message.transaction_id == self._transaction and _kind(message) in wanted:
                    return message
            return None

        for patience in _patience(deadline):
            self._replies.clear()
            self._send(kind, options, server)
            self._stack.end_turn()
            try:
                return await self._stack.until(look, patience, "")
            except TimeoutError:
                continue
        asked = "DISCOVER" if kind == dhcp.DISCOVER else "REQUEST"
        raise TimeoutError(errno.ETIMEDOUT, f"nobody answered the guest's DHCP{asked} in time")

    def _send(self, kind: int, options: Mapping[int, bytes], server: Address | None) -> None:
        stack = self._stack
        source = ANY_IPV4 if server is None else stack.address
        message = DhcpMessage(
            operation=dhcp.BOOT_REQUEST,
            transaction_id=self._transaction,
            seconds=0,
            broadcast=False,
            client_address=source,
            your_address=ANY_IPV4,
            server_address=ANY_IPV4,
            relay_address=ANY_IPV4,
            client_mac=stack.mac,
            options={dhcp_options.MESSAGE_TYPE: bytes((kind,)), **options},
        )
        destination = server or BROADCAST_IPV4
        mac = BROADCAST_MAC if server is None else stack.known_hop(server)
        datagram = udp_datagram(
            source, dhcp.CLIENT_PORT, destination, dhcp.SERVER_PORT, build_dhcp(message)
        )
        stack.send_packet(mac, destination, UDP, datagram, source)


def _patience(deadline: float) -> Iterator[float]:
    """How long to wait each time, in seconds, until `deadline`."""
    patience = FIRST_PATIENCE
    while (left := deadline - trio.current_time()) > 0:
        yield min(patience, left)
        patience *= 2


def _kind(message: DhcpMessage) -> int:
    return int.from_bytes(message.options.get(dhcp_options.MESSAGE_TYPE, b""), "big")


def read_lease(message: DhcpMessage) -> Lease:
    """What an acknowledgment says."""
    options = message.options

    def number(code: int) -> int | None:
        return int.from_bytes(options[code], "big") if code in options else None

    def text(code: int) -> str | None:
        return options[code].decode(errors="replace") if code in options else None

    def addresses(code: int) -> tuple[str, ...]:
        value = options.get(code, b"")
        return tuple(format_address(value[at : at + 4]) for at in range(0, len(value), 4))

    mask = number(dhcp_options.SUBNET_MASK)
    return Lease(
        address=format_address(message.your_address),
        prefix_length=24 if mask is None else mask.bit_count(),
        server=next(iter(addresses(dhcp_options.SERVER_IDENTIFIER)), "0.0.0.0"),
        gateway=next(iter(addresses(dhcp_options.ROUTER)), None),
        nameservers=addresses(dhcp_options.DNS_SERVERS),
        domain=text(dhcp_options.DOMAIN_NAME),
        host_name=text(dhcp_options.HOST_NAME),
        mtu=number(dhcp_options.INTERFACE_MTU),
        lease_time=number(dhcp_options.LEASE_TIME) or 0,
        renewal_time=number(dhcp_options.RENEWAL_TIME),
        rebinding_time=number(dhcp_options.REBINDING_TIME),
        options=options,
    )
