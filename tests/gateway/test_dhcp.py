"""Conversations with the DHCP server, as guests of many kinds hold them."""

from ipaddress import ip_network

import pytest
from attrs import evolve

from qemu_usernat.gateway import dhcp, dhcp_options
from qemu_usernat.gateway.dhcp import DhcpReply, DhcpServer
from qemu_usernat.gateway.dhcp_options import DhcpSettings
from qemu_usernat.gateway.leases import DECLINE_TIME, OFFER_TIME
from qemu_usernat.primitives.addresses import (
    ANY_IPV4,
    BROADCAST_IPV4,
    BROADCAST_MAC,
    parse_address,
    parse_mac,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.dhcp import DhcpMessage, build_dhcp, parse_dhcp

GATEWAY = parse_address("10.0.2.2")
NAMESERVER = parse_address("10.0.2.3")
FIRST = parse_address("10.0.2.15")
SECOND_ADDRESS = parse_address("10.0.2.16")
ALICE = parse_mac("52:54:00:00:00:0a")
BOB = parse_mac("52:54:00:00:00:0b")
CAROL = parse_mac("52:54:00:00:00:0c")
DAY = 86400

SETTINGS = DhcpSettings(
    server_address=GATEWAY,
    prefix_length=24,
    router=GATEWAY,
    dns_servers=(NAMESERVER,),
    first=FIRST,
    last=parse_address("10.0.2.254"),
    reserved=frozenset(),
    mtu=65520,
    lease_time=DAY,
    domain="internal",
)

TINY = evolve(
    SETTINGS,
    server_address=parse_address("10.0.2.2"),
    router=parse_address("10.0.2.2"),
    dns_servers=(parse_address("10.0.2.2"),),
    prefix_length=30,
    first=parse_address("10.0.2.1"),
    last=parse_address("10.0.2.2"),
)


def make_server(settings: DhcpSettings = SETTINGS) -> DhcpServer:
    return DhcpServer(settings, Counters())


@pytest.fixture
def server() -> DhcpServer:
    return make_server()


def message(
    message_type: int | None,
    mac: bytes = ALICE,
    *,
    ciaddr: bytes = ANY_IPV4,
    broadcast: bool = False,
    options: dict[int, bytes] | None = None,
) -> DhcpMessage:
    """A client's message, having gone over the wire once."""
    kind = {} if message_type is None else {dhcp_options.MESSAGE_TYPE: bytes([message_type])}
    return parse_dhcp(
        build_dhcp(
            DhcpMessage(
                operation=dhcp.BOOT_REQUEST,
                transaction_id=0xDECAFBAD,
                seconds=0,
                broadcast=broadcast,
                client_address=ciaddr,
                your_address=ANY_IPV4,
                server_address=ANY_IPV4,
                relay_address=ANY_IPV4,
                client_mac=mac,
                options=kind | (options or {}),
            )
        )
    )


def discover(mac: bytes = ALICE, **options: bytes) -> DhcpMessage:
    return message(dhcp.DISCOVER, mac, options=_numbered(options))


def selecting(address: bytes, mac: bytes = ALICE, server: bytes = GATEWAY) -> DhcpMessage:
    options = {dhcp_options.REQUESTED_ADDRESS: address, dhcp_options.SERVER_IDENTIFIER: server}
    return message(dhcp.REQUEST, mac, options=options)


def init_reboot(address: bytes, mac: bytes = ALICE) -> DhcpMessage:
    return message(dhcp.REQUEST, mac, options={dhcp_options.REQUESTED_ADDRESS: address})


def renewing(address: bytes, mac: bytes = ALICE) -> DhcpMessage:
    """RENEWING and REBINDING differ only in the frame's destination."""
    return message(dhcp.REQUEST, mac, ciaddr=address)


def _numbered(options: dict[str, bytes]) -> dict[int, bytes]:
    return {getattr(dhcp_options, name.upper()): value for name, value in options.items()}


def told(reply: DhcpReply | None) -> tuple[int, bytes]:
    """(message type, address) of a reply that must be there and survive the wire."""
    assert reply is not None
    on_the_wire = reply.payload()
    assert len(on_the_wire) >= 300
    read = parse_dhcp(on_the_wire)
    assert read.operation == dhcp.BOOT_REPLY
    assert read.transaction_id == 0xDECAFBAD
    assert read.options == reply.message.options
    assert read.options[dhcp_options.SERVER_IDENTIFIER] == GATEWAY
    return read.options[dhcp_options.MESSAGE_TYPE][0], read.your_address


def lease(server: DhcpServer, mac: bytes, now: float = 0.0) -> bytes:
    """Discover, offer, request, acknowledgement."""
    kind, address = told(server.answer(discover(mac), now))
    assert kind == dhcp.OFFER
    assert told(server.answer(selecting(address, mac), now)) == (dhcp.ACK, address)
    return address


# The conversation that every guest holds


def test_a_guest_gets_the_first_address(server: DhcpServer) -> None:
    """The only guest of a network finds itself where QEMU users expect it: at .15."""
    assert lease(server, ALICE) == FIRST


def test_guests_get_different_addresses(server: DhcpServer) -> None:
    """Two guests on one segment never share an address, not even between offer and request."""
    offers = {told(server.answer(discover(mac), 0.0))[1] for mac in (ALICE, BOB, CAROL)}
    assert len(offers) == 3


def test_a_guest_that_comes_back_gets_its_old_address(server: DhcpServer) -> None:
    """After a reboot, a release or a long absence an address is kept for its guest."""
    lease(server, BOB)
    address = lease(server, ALICE)
    assert lease(server, ALICE, now=10.0) == address
    server.answer(_release(address), 20.0)
    assert lease(server, ALICE, now=30.0) == address
    assert lease(server, ALICE, now=30.0 + 10 * DAY) == address


def test_a_boot_rom_and_its_system_are_one_client(server: DhcpServer) -> None:
    """iPXE sends its MAC as client identifier, dhclient sends none: one machine, one address."""
    address = lease(server, ALICE)
    asked = server.answer(discover(ALICE, client_identifier=b"\x01" + ALICE), 1.0)
    assert told(asked) == (dhcp.OFFER, address)


def test_a_lease_goes_by_the_client_identifier(server: DhcpServer) -> None:
    """Two clients behind one MAC are two clients, and each hears its own identifier."""
    for identifier, expected in ((b"\xffone", FIRST), (b"\xfftwo", SECOND_ADDRESS)):
        reply = server.answer(discover(ALICE, client_identifier=identifier), 0.0)
        assert told(reply) == (dhcp.OFFER, expected)
        assert reply is not None
        assert reply.message.options[dhcp_options.CLIENT_IDENTIFIER] == identifier


def test_a_wish_for_a_free_address_is_granted(server: DhcpServer) -> None:
    """A client that asks for an address in its discover gets it if nobody has it."""
    wish = parse_address("10.0.2.77")
    asked = server.answer(discover(ALICE, requested_address=wish), 0.0)
    assert told(asked) == (dhcp.OFFER, wish)
    asked = server.answer(discover(BOB, requested_address=wish), 0.0)
    assert told(asked) == (dhcp.OFFER, FIRST)


@pytest.mark.parametrize("text", ["10.0.2.2", "10.0.2.3", "10.0.2.14", "10.0.2.255", "192.0.2.1"])
def test_a_wish_outside_the_pool_is_not_granted(server: DhcpServer, text: str) -> None:
    """Nobody talks the server out of its own address, the name server's, or the network's."""
    asked = server.answer(discover(ALICE, requested_address=parse_address(text)), 0.0)
    assert told(asked) == (dhcp.OFFER, FIRST)


def test_rapid_commit_saves_a_round_trip(server: DhcpServer) -> None:
    """A client that offers to take the address at once has it at once (RFC 4039)."""
    reply = server.answer(discover(ALICE, rapid_commit=b""), 0.0)
    assert told(reply) == (dhcp.ACK, FIRST)
    assert reply is not None
    assert reply.message.options[dhcp_options.RAPID_COMMIT] == b""
    assert told(server.answer(discover(BOB), OFFER_TIME + 1)) == (dhcp.OFFER, SECOND_ADDRESS)


# The forms of request


def test_an_address_of_another_network_is_refused_at_once(server: DhcpServer) -> None:
    """A guest moved here from another network starts afresh at once instead of waiting."""
    for request in (init_reboot, renewing):
        reply = server.answer(request(parse_address("192.168.7.7")), 0.0)
        assert told(reply) == (dhcp.NAK, ANY_IPV4)
        assert reply is not None
        assert (reply.destination, reply.destination_mac) == (BROADCAST_IPV4, BROADCAST_MAC)
        assert dhcp_options.LEASE_TIME not in reply.message.options
    assert server.counters["dhcp.nak"] == 2


def test_somebody_else_s_address_is_refused(server: DhcpServer) -> None:
    """No form of request takes an address from the guest that has it."""
    address = lease(server, ALICE)
    for request in (init_reboot, renewing, selecting):
        assert told(server.answer(request(address, BOB), 1.0)) == (dhcp.NAK, ANY_IPV4)
    assert told(server.answer(renewing(address), 2.0)) == (dhcp.ACK, address)


def test_another_address_than_the_offered_is_refused(server: DhcpServer) -> None:
    """Who was offered one address does not get another by asking for it."""
    server.answer(discover(), 0.0)
    assert told(server.answer(selecting(SECOND_ADDRESS), 1.0)) == (dhcp.NAK, ANY_IPV4)


def test_renewing_extends_the_lease(server: DhcpServer) -> None:
    """A guest that renews in time keeps its address past the first lease's end."""
    address = lease(server, ALICE)
    assert told(server.answer(renewing(address), DAY / 2)) == (dhcp.ACK, address)
    assert told(server.answer(init_reboot(address, BOB), DAY + 1)) == (dhcp.NAK, ANY_IPV4)
    assert told(server.answer(init_reboot(address, BOB), 2 * DAY)) == (dhcp.ACK, address)


@pytest.mark.parametrize("request_form", [renewing, init_reboot, selecting])
def test_a_restarted_server_grants_what_is_free(request_form: object) -> None:
    """Guests survive a restart of the server: it forgot them, they keep their addresses."""
    assert callable(request_form)
    server, address = make_server(), parse_address("10.0.2.42")
    assert told(server.answer(request_form(address), 0.0)) == (dhcp.ACK, address)
    assert told(server.answer(renewing(address, BOB), 1.0)) == (dhcp.NAK, ANY_IPV4)


def test_a_request_to_another_server_is_not_ours(server: DhcpServer) -> None:
    """A client that chose another server gets no answer, and our offer is free again."""
    server.answer(discover(ALICE), 0.0)
    other = parse_address("10.0.2.9")
    assert server.answer(selecting(FIRST, ALICE, server=other), 1.0) is None
    assert told(server.answer(init_reboot(FIRST, BOB), 1.0)) == (dhcp.ACK, FIRST)


def test_choosing_another_server_does_not_end_a_lease(server: DhcpServer) -> None:
    """Only an offer is withdrawn so; what was acknowledged stays leased."""
    address = lease(server, ALICE)
    server.answer(selecting(address, ALICE, server=parse_address("10.0.2.9")), 1.0)
    assert told(server.answer(init_reboot(address, BOB), 2.0)) == (dhcp.NAK, ANY_IPV4)


def test_a_request_for_nothing_is_ignored(server: DhcpServer) -> None:
    """A request that names no address has no answer."""
    assert server.answer(message(dhcp.REQUEST), 0.0) is None
    assert server.answer(init_reboot(b"\x0a\0\x02"), 0.0) is None
    assert server.counters["dhcp.request_without_address"] == 2


# Release, decline, inform


def _release(address: bytes, mac: bytes = ALICE, server: bytes = GATEWAY) -> DhcpMessage:
    return message(
        dhcp.RELEASE, mac, ciaddr=address, options={dhcp_options.SERVER_IDENTIFIER: server}
    )


def decline(address: bytes, mac: bytes = ALICE, server: bytes = GATEWAY) -> DhcpMessage:
    options = {dhcp_options.REQUESTED_ADDRESS: address, dhcp_options.SERVER_IDENTIFIER: server}
    return message(dhcp.DECLINE, mac, options=options)


def test_a_released_address_is_free_for_others(server: DhcpServer) -> None:
    """What one guest gave back another may have."""
    address = lease(server, ALICE)
    assert server.answer(_release(address), 1.0) is None
    assert told(server.answer(init_reboot(address, BOB), 2.0)) == (dhcp.ACK, address)


def test_only_the_holder_releases(server: DhcpServer) -> None:
    """A release by somebody else, or meant for another server, changes nothing."""
    address = lease(server, ALICE)
    server.answer(_release(address, BOB), 1.0)
    server.answer(_release(address, ALICE, server=parse_address("10.0.2.9")), 1.0)
    assert told(server.answer(init_reboot(address, BOB), 2.0)) == (dhcp.NAK, ANY_IPV4)
    assert server.counters["dhcp.release_of_unknown"] == 2


def test_a_declined_address_rests(server: DhcpServer) -> None:
    """An address that a guest found in use is given to nobody for a while."""
    address = lease(server, ALICE)
    assert server.answer(decline(address), 1.0) is None
    assert lease(server, ALICE, now=2.0) != address
    assert told(server.answer(init_reboot(address, BOB), 2.0)) == (dhcp.NAK, ANY_IPV4)
    later = 2.0 + DECLINE_TIME
    assert told(server.answer(init_reboot(address, BOB), later)) == (dhcp.ACK, address)


def test_only_the_holder_declines(server: DhcpServer) -> None:
    """Nobody makes another guest's address rest."""
    address = lease(server, ALICE)
    server.answer(decline(address, BOB), 1.0)
    assert told(server.answer(renewing(address), 2.0)) == (dhcp.ACK, address)
    assert server.counters["dhcp.decline_of_unknown"] == 1


def test_inform_tells_parameters_and_no_lease(server: DhcpServer) -> None:
    """A guest with an address set by hand learns the name server, and gets no lease."""
    mine = parse_address("10.0.2.200")
    reply = server.answer(message(dhcp.INFORM, ciaddr=mine), 0.0)
    assert told(reply) == (dhcp.ACK, ANY_IPV4)
    assert reply is not None
    assert (reply.destination, reply.destination_mac) == (mine, ALICE)
    assert reply.message.options[dhcp_options.DNS_SERVERS] == NAMESERVER
    assert not reply.message.options.keys() & {
        dhcp_options.LEASE_TIME,
        dhcp_options.RENEWAL_TIME,
        dhcp_options.REBINDING_TIME,
    }


def test_inform_from_another_network_is_ignored(server: DhcpServer) -> None:
    """Parameters of this network mean nothing elsewhere."""
    assert server.answer(message(dhcp.INFORM, ciaddr=parse_address("10.0.3.7")), 0.0) is None


# Options


def test_every_option_is_told_to_a_guest_that_gives_no_list(server: DhcpServer) -> None:
    """All there is to know, in the values that the protocols prescribe."""
    reply = server.answer(discover(), 0.0)
    assert reply is not None
    assert reply.message.options == {
        1: bytes([255, 255, 255, 0]),
        3: GATEWAY,
        6: NAMESERVER,
        12: b"guest-10-0-2-15",
        15: b"internal",
        26: (65520).to_bytes(2, "big"),
        28: parse_address("10.0.2.255"),
        51: (86400).to_bytes(4, "big"),
        53: bytes([dhcp.OFFER]),
        54: GATEWAY,
        58: (43200).to_bytes(4, "big"),
        59: (75600).to_bytes(4, "big"),
        119: b"\x08internal\0",
        121: b"\0" + GATEWAY,
    }


def test_the_list_is_followed(server: DhcpServer) -> None:
    """What was not asked for is not sent, but for the mask and the MTU; unknowns are skipped."""
    reply = server.answer(discover(parameter_list=bytes([6, 3, 42, 252])), 0.0)
    assert reply is not None
    parameters = reply.message.options.keys() - {51, 53, 54, 58, 59}
    assert parameters == {1, 3, 6, 26}


def test_the_mask_precedes_the_router(server: DhcpServer) -> None:
    """RFC 2132, 3.3: in this order, whatever the order of the list."""
    reply = server.answer(discover(parameter_list=bytes([3, 1])), 0.0)
    assert reply is not None
    order = list(reply.message.options)
    assert order.index(dhcp_options.SUBNET_MASK) < order.index(dhcp_options.ROUTER)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (b"web-1.example", b"web-1.example"),
        (b"", b"guest-10-0-2-15"),
        (b"$(reboot)", b"guest-10-0-2-15"),
    ],
)
def test_a_guest_keeps_the_name_it_has(server: DhcpServer, own: bytes, expected: bytes) -> None:
    """A guest with a name is not renamed; one without a proper name gets one."""
    options = {dhcp_options.HOST_NAME: own} if own else {}
    reply = server.answer(message(dhcp.DISCOVER, options=options), 0.0)
    assert reply is not None
    assert reply.message.options[dhcp_options.HOST_NAME] == expected


def test_passt_16b_a_long_domain_stays_within_what_the_client_takes() -> None:
    """No reply is larger than 576 bytes unless the client says that it takes more."""
    settings = evolve(SETTINGS, domain=".".join(["a" * 49] * 5))
    for size, has_search_list in ((b"", False), ((1500).to_bytes(2, "big"), True)):
        options = {dhcp_options.MAXIMUM_SIZE: size} if size else {}
        reply = make_server(settings).answer(message(dhcp.DISCOVER, options=options), 0.0)
        assert reply is not None
        assert len(reply.payload()) + 28 <= (1500 if size else 576)
        assert (dhcp_options.DOMAIN_SEARCH in reply.message.options) is has_search_list
        assert dhcp_options.CLASSLESS_ROUTES in reply.message.options


def test_without_domain_and_name_server_nothing_is_told_of_them() -> None:
    """Options with empty values are not sent."""
    server = make_server(evolve(SETTINGS, domain="", dns_servers=()))
    reply = server.answer(discover(), 0.0)
    assert reply is not None
    assert not reply.message.options.keys() & {6, 15, 119}


@pytest.mark.parametrize("length", range(33))
def test_passt_16d_the_mask_of_every_prefix_length(length: int) -> None:
    """passt 77a6d97: from none of the bits to all of them, in the order of the network."""
    server = make_server(evolve(SETTINGS, prefix_length=length))
    reply = server.answer(discover(), 0.0)
    assert reply is not None
    assert reply.message.options[dhcp_options.SUBNET_MASK] == ip_network((0, length)).netmask.packed


# To whom a reply goes (RFC 2131, 4.1)


def test_a_reply_goes_to_the_new_address(server: DhcpServer) -> None:
    """By default the offer is unicast to the address it offers."""
    reply = server.answer(discover(), 0.0)
    assert reply is not None
    assert (reply.destination, reply.destination_mac) == (FIRST, ALICE)


def test_a_client_that_wants_broadcasts_gets_them(server: DhcpServer) -> None:
    """A client that cannot take unicast before it has an address says so and is heard."""
    reply = server.answer(message(dhcp.DISCOVER, broadcast=True), 0.0)
    assert reply is not None
    assert (reply.destination, reply.destination_mac) == (BROADCAST_IPV4, BROADCAST_MAC)
    assert reply.message.broadcast


def test_a_client_with_an_address_is_answered_there(server: DhcpServer) -> None:
    """A renewal is answered at the address that the client has, broadcast flag or not."""
    address = lease(server, ALICE)
    reply = server.answer(message(dhcp.REQUEST, ciaddr=address, broadcast=True), 1.0)
    assert reply is not None
    assert (reply.destination, reply.destination_mac) == (address, ALICE)
    assert reply.message.client_address == address


# What is not ours to answer


def test_passt_16c_bootp_and_nonsense_are_counted_and_ignored(server: DhcpServer) -> None:
    """BOOTP clients, servers' messages, relayed and unknown ones: silence, with a name."""
    plain = discover()
    odd = {
        "dhcp.bootp": message(None),
        "dhcp.not_a_request": evolve(plain, operation=dhcp.BOOT_REPLY),
        "dhcp.relayed": evolve(plain, relay_address=parse_address("10.0.2.9")),
        "dhcp.unknown_type": evolve(plain, options={dhcp_options.MESSAGE_TYPE: b"\x63"}),
        "dhcp.long_client_identifier": evolve(
            plain, options=plain.options | {dhcp_options.CLIENT_IDENTIFIER: bytes(256)}
        ),
    }
    for reason, strange in odd.items():
        assert server.answer(strange, 0.0) is None
        assert server.counters[reason] == 1
    assert told(server.answer(plain, 0.0)) == (dhcp.OFFER, FIRST)


@pytest.mark.parametrize("kind", [b"", b"\x01\x01", b"\x00", b"\x02", b"\x05", b"\x06"])
def test_types_that_no_client_sends_are_ignored(server: DhcpServer, kind: bytes) -> None:
    """A type of the wrong length, or a server's, is no question."""
    strange = evolve(discover(), options={dhcp_options.MESSAGE_TYPE: kind})
    assert server.answer(strange, 0.0) is None


# Pools


def test_the_smallest_network_serves_its_guest() -> None:
    """In a /30 the gateway has one address and the guest the other."""
    server = make_server(TINY)
    only = parse_address("10.0.2.1")
    reply = server.answer(discover(), 0.0)
    assert told(reply) == (dhcp.OFFER, only)
    assert reply is not None
    assert reply.message.options[dhcp_options.SUBNET_MASK] == bytes([255, 255, 255, 252])
    assert told(server.answer(selecting(only), 0.0)) == (dhcp.ACK, only)


def test_an_exhausted_pool_is_silent() -> None:
    """When all addresses are leased a further guest hears nothing, and it is counted."""
    server = make_server(TINY)
    lease(server, ALICE)
    assert server.answer(discover(BOB), 1.0) is None
    assert server.counters["dhcp.pool_exhausted"] == 1
    assert told(server.answer(discover(BOB), DAY + 1.0))[0] == dhcp.OFFER


def test_an_offer_that_nobody_takes_is_free_again() -> None:
    """A client that vanishes after its discover does not keep the address."""
    server = make_server(TINY)
    server.answer(discover(ALICE), 0.0)
    assert server.answer(discover(BOB), OFFER_TIME - 1) is None
    assert told(server.answer(discover(BOB), OFFER_TIME))[0] == dhcp.OFFER


def test_the_lease_longest_expired_is_reused_first() -> None:
    """Guests that were here lately keep the better chance of their old address."""
    server = make_server(evolve(SETTINGS, last=SECOND_ADDRESS))
    alice, bob = lease(server, ALICE, now=0.0), lease(server, BOB, now=100.0)
    later = 2.0 * DAY
    assert lease(server, CAROL, now=later) == alice
    assert lease(server, BOB, now=later) == bob
    assert server.answer(discover(ALICE), later) is None


def test_a_discover_does_not_shorten_a_lease(server: DhcpServer) -> None:
    """A guest that discovers again and goes away keeps what was acknowledged."""
    address = lease(server, ALICE)
    server.answer(discover(ALICE), 10.0)
    later = 10.0 + 2 * OFFER_TIME
    assert told(server.answer(init_reboot(address, BOB), later)) == (dhcp.NAK, ANY_IPV4)
