"""The router as guests see it: ARP, ping, DHCP, fragments, and what must not go out."""

import struct

import pytest

from qemu_usernat.lan.port import QUEUE_LIMIT
from qemu_usernat.wire.icmp import ECHO_REPLY
from qemu_usernat.wire.packets import ARP_REPLY, ICMP, TCP, UDP
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    NAMESERVER,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
    ethernet,
    icmp,
    ipv4,
    packed,
    udp,
)


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(mtu=1500)


@pytest.fixture
def guest(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest()


# -- IPv6, of which nothing exists yet


def test_passt_17a_a_guest_that_has_not_spoken_hears_nothing(network: ScriptedNetwork) -> None:
    """passt bf94927: no router advertises itself to a guest that is not there, or not yet."""
    guest = network.guest()
    network.end_turn()
    network.advance(3600)
    assert guest.frames() == []


def test_passt_17b_a_guest_s_probe_for_its_ipv6_address_meets_silence(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A neighbour solicitation from :: asks whether an address is taken: it is not, by us.

    tests/gateway/test_arp.py holds the same for IPv4.
    """
    target = bytes.fromhex("fe80000000000000505400fffe123456")
    probe = b"\x87\0\0\0" + bytes(4) + target
    header = b"\x60\0\0\0" + len(probe).to_bytes(2, "big") + b"\x3a\xff" + bytes(16)
    everybody = bytes.fromhex("ff0200000000000000000001ff123456")
    frame = ethernet(header + everybody + probe, guest.mac, b"\x33\x33\xff\x12\x34\x56", 0x86DD)
    guest.sends(frame)
    assert guest.frames() == []
    assert sum(network.counters.values()) == 1, "the drop has a name"


# -- ARP


@pytest.mark.parametrize("address", [GATEWAY, NAMESERVER])
def test_the_gateway_and_the_name_server_are_found_by_arp(
    guest: ScriptedGuest, address: str
) -> None:
    """The guest asks who has an address of ours and is told, in a frame to itself."""
    guest.sends(guest.asks_who_has(address))
    answer = guest.hears_one()
    assert answer.arp.operation == ARP_REPLY
    assert (answer.arp.sender_mac, answer.arp.sender_address) == (GATEWAY_MAC, packed(address))
    assert (answer.source_mac, answer.destination_mac) == (GATEWAY_MAC, GUEST_MAC)


def test_nobody_answers_for_an_address_that_nobody_has(guest: ScriptedGuest) -> None:
    """A guest that looks for a neighbour that is not there hears nothing."""
    guest.sends(guest.asks_who_has("10.0.2.77"))
    assert guest.hears() == []


# -- echo


@pytest.mark.parametrize("size", [0, 1, 56, 1472, 1473, 9000, 65507])
def test_a_ping_of_any_size_comes_back(guest: ScriptedGuest, size: int) -> None:
    """`ping -s SIZE` to the gateway is answered with the same bytes, in fragments if need be."""
    payload = bytes(range(256)) * 256
    echo = icmp(8, 0, b"\x12\x34\0\1", payload[:size])
    guest.sends(*guest.fragments(echo, ICMP, GATEWAY))
    answer = guest.hears_one()
    assert (answer.source, answer.destination) == (GATEWAY, GUEST)
    assert (answer.icmp.type, answer.icmp.rest) == (ECHO_REPLY, b"\x12\x34\0\1")
    assert answer.icmp.payload == payload[:size]


# -- DHCP


def dhcp(kind: int, options: bytes = b"", transaction_id: int = 0xDECAF) -> bytes:
    fixed = struct.pack(">BBBBIHH16x6s10x", 1, 1, 6, 0, transaction_id, 0, 0x8000, GUEST_MAC)
    return fixed + bytes(192) + b"\x63\x82\x53\x63" + bytes((53, 1, kind)) + options + b"\xff"


def broadcast_from_nobody(guest: ScriptedGuest, message: bytes) -> bytes:
    datagram = udp("0.0.0.0", 68, "255.255.255.255", 67, message)
    packet = ipv4("0.0.0.0", "255.255.255.255", UDP, datagram)
    return ethernet(packet, guest.mac, BROADCAST_MAC)


def test_a_guest_without_an_address_gets_one(guest: ScriptedGuest) -> None:
    """DISCOVER, OFFER, REQUEST, ACK: after it the guest has an address, a router and DNS."""
    guest.sends(broadcast_from_nobody(guest, dhcp(1)))
    offer = guest.hears_one()
    assert (offer.source, offer.udp.source_port, offer.udp.destination_port) == (GATEWAY, 67, 68)
    assert offer.destination_mac == BROADCAST_MAC
    offered = offer.udp.payload[16:20]
    assert offer.udp.payload[240:243] == b"\x35\x01\x02"

    wish = b"\x32\x04" + offered + b"\x36\x04" + packed(GATEWAY)
    guest.sends(broadcast_from_nobody(guest, dhcp(3, wish)))
    ack = guest.hears_one().udp.payload
    assert ack[240:243] == b"\x35\x01\x05"
    assert ack[16:20] == offered == packed(GUEST)
    assert b"\x03\x04" + packed(GATEWAY) in ack
    assert b"\x06\x04" + packed(NAMESERVER) in ack
    assert b"\x1a\x02" + struct.pack(">H", 1500) in ack


def test_a_lease_is_renewed_by_a_datagram_to_the_gateway(guest: ScriptedGuest) -> None:
    """A guest that has its address renews without broadcasting, and is answered there."""
    guest.sends(broadcast_from_nobody(guest, dhcp(1)))
    wish = b"\x32\x04" + packed(GUEST) + b"\x36\x04" + packed(GATEWAY)
    guest.sends(broadcast_from_nobody(guest, dhcp(3, wish)))
    guest.hears()
    renewal = bytearray(dhcp(3))
    renewal[12:16] = packed(GUEST)
    guest.sends(guest.datagram(68, GATEWAY, 67, bytes(renewal)))
    answer = guest.hears_one()
    assert (answer.destination, answer.destination_mac) == (GUEST, GUEST_MAC)
    assert answer.udp.payload[240:243] == b"\x35\x01\x05"


def test_a_guest_without_an_address_may_speak_dhcp_only(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """0.0.0.0 is nobody: what it says to others is dropped under its name."""
    datagram = udp("0.0.0.0", 68, SERVER, 99, b"hello")
    guest.sends(ethernet(ipv4("0.0.0.0", SERVER, UDP, datagram), guest.mac))
    assert network.counters["ipv4.martian_source"] == 1
    assert network.host.sockets == []


# -- what must not go out


@pytest.mark.parametrize("source", ["192.168.7.7", "127.0.0.1", GATEWAY, "10.0.2.0", "10.0.2.255"])
def test_a_stranger_s_source_address_is_dropped(
    network: ScriptedNetwork, guest: ScriptedGuest, source: str
) -> None:
    """Only addresses of this network that are nobody else's may speak (RFC 1812, 5.3.7)."""
    guest.sends(guest.datagram(1234, SERVER, 99, b"hello", source=source))
    assert network.counters["ipv4.martian_source"] == 1
    assert (network.host.sockets, guest.hears()) == ([], [])


@pytest.mark.parametrize(
    "destination", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "240.0.0.1"]
)
def test_the_host_s_own_loopback_cannot_be_named(
    network: ScriptedNetwork, guest: ScriptedGuest, destination: str
) -> None:
    """A guest's packet to 127.0.0.1 or 0.0.0.0 never reaches the host's own services, and fails
    at once."""
    guest.sends(
        guest.datagram(1234, destination, 99, b"hello"), guest.segment(40000, destination, 22, 2)
    )
    assert network.counters["ipv4.martian_destination"] == 2
    assert (network.host.sockets, network.host.servers) == ([], [])
    assert [(told.icmp.type, told.icmp.code) for told in guest.hears()] == [(3, 13), (3, 13)]


@pytest.mark.parametrize("destination", ["255.255.255.255", "10.0.2.255", "224.0.0.251"])
def test_broadcasts_and_multicasts_end_here(
    network: ScriptedNetwork, guest: ScriptedGuest, destination: str
) -> None:
    """What is for everybody on the segment is not for the world, and is not answered."""
    guest.sends(
        guest.datagram(5353, destination, 5353, b"hello", destination_mac=BROADCAST_MAC),
        guest.segment(40000, destination, 22, 2),
        guest.ping(destination),
    )
    assert (network.host.sockets, network.host.servers, guest.hears()) == ([], [], [])
    assert network.counters["udp.broadcast_or_multicast"] == 1
    assert network.counters["ipv4.broadcast_or_multicast"] == 2


def test_a_neighbour_that_is_not_there_is_unreachable(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A packet routed to an address of the guests' own network finds no way on."""
    guest.sends(guest.datagram(1234, "10.0.2.77", 99, b"hello"))
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (GATEWAY, 3, 1)
    assert network.counters["ipv4.no_such_guest"] == 1


def test_an_address_that_ends_in_255_is_an_address_like_any_other(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Only the network's own broadcast address is one; 198.51.100.255 is a host."""
    guest.sends(guest.datagram(1234, "198.51.100.255", 99, b"hello"))
    assert network.host.sockets[0].sent == [(b"hello", "198.51.100.255", 99)]


def test_a_hop_count_that_ends_here_is_told(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """`traceroute` sees the gateway as its first hop; what asks the gateway itself arrives."""
    frame = guest.datagram(1234, SERVER, 33434, b"probe", ttl=1)
    guest.sends(frame)
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (GATEWAY, 11, 0)
    assert error.icmp.payload == frame[14:]
    assert network.host.sockets == []
    guest.sends(guest.ping(GATEWAY, ttl=1))
    assert guest.hears_one().icmp.type == ECHO_REPLY


def test_an_unknown_protocol_is_refused_by_name(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """SCTP finds no ear, and hears that."""
    guest.sends(guest.packet(b"sctp....", 132, SERVER))
    assert (guest.hears_one().icmp.type, network.counters["ipv4.unknown_protocol"]) == (3, 1)


def test_errors_are_not_answered_by_errors(guest: ScriptedGuest) -> None:
    """An ICMP error to an address that is not there meets silence (RFC 1122, 3.2.2)."""
    error = icmp(3, 3, bytes(4), ipv4(GUEST, "10.0.2.77", UDP, b"........"))
    guest.sends(guest.packet(error, ICMP, "10.0.2.77"))
    assert guest.hears() == []


def test_a_flood_of_mistakes_gets_few_answers(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Errors are limited (RFC 1812, 4.3.2.8), counted, and come again later."""
    guest.sends(*[guest.datagram(1234, "10.0.2.77", 99, b"hello")] * 500)
    told = len(guest.hears())
    assert 0 < told <= 50
    assert network.counters["icmp.error_limited"] == 500 - told
    network.advance(1.0)
    guest.sends(guest.datagram(1234, "10.0.2.77", 99, b"hello"))
    assert guest.hears_one().icmp.type == 3


# -- fragments


def test_a_datagram_in_fragments_arrives_whole(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """65507 octets at an MTU of 1500, fragments in any order: one datagram for the server."""
    payload = bytes(range(251)) * 260 + bytes(247)
    fragments = guest.fragments(udp(GUEST, 1234, SERVER, 99, payload), UDP, SERVER)
    guest.sends(*reversed(fragments))
    assert network.host.sockets[0].sent == [(payload, SERVER, 99)]


def test_fragments_that_stay_incomplete_are_told_and_forgotten(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Half a datagram is held for a while, then dropped; the sender hears it (ICMP 11/1)."""
    first, *_ = guest.fragments(udp(GUEST, 1234, SERVER, 99, bytes(3000)), UDP, SERVER)
    guest.sends(first)
    assert guest.hears() == []
    network.advance(60.0)
    error = guest.hears_one()
    assert (error.icmp.type, error.icmp.code) == (11, 1)
    assert error.icmp.payload[:28] == first[14:42]
    network.assert_nothing_left()


def test_a_connection_may_begin_in_fragments(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A SYN cut in two is a SYN: the fast tier leaves it to reassembly."""
    segment = guest.segment(40000, SERVER, 80, 2, 1000)[34:]
    guest.sends(*guest.fragments(segment, TCP, SERVER, size=8))
    assert [server.port for server in network.host.servers] == [80]


# -- two guests


def test_two_guests_talk_to_each_other_and_to_the_world(network: ScriptedNetwork) -> None:
    """Frames between guests pass; each has its own flows, though ports are the same."""
    one, two = network.guest(), network.guest(OTHER_MAC, OTHER)
    one.sends(one.asks_who_has(OTHER))
    assert two.hears_one().arp.target_address == packed(OTHER)
    hello = ethernet(ipv4(OTHER, GUEST, UDP, udp(OTHER, 5, GUEST, 6, b"hi")), two.mac, one.mac)
    two.sends(hello)
    assert one.hears_one().udp.payload == b"hi"
    one.sends(one.datagram(1234, SERVER, 99, b"from one"))
    two.sends(two.datagram(1234, SERVER, 99, b"from two"))
    first, second = network.host.sockets
    second.hears(b"for two", SERVER, 99)
    first.hears(b"for one", SERVER, 99)
    assert one.hears_one().udp.payload == b"for one"
    assert two.hears_one().udp.payload == b"for two"


def test_capsa_05b_a_guest_that_does_not_read_delays_nobody_and_costs_a_bounded_queue(
    network: ScriptedNetwork,
) -> None:
    """One QEMU is stopped: its queue fills to its limit, the other guest gets its answers."""
    stopped, lively = network.guest(), network.guest(OTHER_MAC, OTHER)
    stopped.sends(stopped.datagram(1234, SERVER, 99, b"hello"))
    stopped.reads = False
    socket = network.host.sockets[0]
    for _ in range(100):
        socket.hears(bytes(60000), SERVER, 99)
    assert QUEUE_LIMIT <= stopped.port.queued < QUEUE_LIMIT + 65536
    assert network.counters["link.queue_full"] > 0
    lively.sends(lively.ping(GATEWAY))
    assert lively.hears_one().icmp.type == ECHO_REPLY
    stopped.reads = True
    stopped.sends(stopped.ping(GATEWAY))
    stopped.frames()
    stopped.sends(stopped.ping(GATEWAY))
    assert stopped.hears_one().icmp.type == ECHO_REPLY


def test_a_guest_that_comes_back_finds_its_flows(network: ScriptedNetwork) -> None:
    """QEMU reconnects on a new link: the mapping and the connection go on."""
    before = network.guest()
    connection = before.connects()
    before.sends(before.datagram(1234, SERVER, 99, b"hello"))
    network.router.switch.detach(before.port)
    network.host.sockets[0].hears(b"lost", SERVER, 99)
    assert network.counters["lan.guest_absent"] == 1
    connection.server.says(b"kept until it is back")
    after = connection.guest = network.guest()
    after.sends(after.ping(GATEWAY))
    assert after.hears_one().icmp.type == ECHO_REPLY
    network.host.sockets[0].hears(b"found", SERVER, 99)
    assert after.hears_one().udp.payload == b"found"
    network.advance(3.0)
    assert connection.reads() == b"kept until it is back"
