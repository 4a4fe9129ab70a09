"""A guest that takes all it can get, at the limits as they are: each refusal is counted under its
name, and the guest beside it notices nothing."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import dns.message
import pytest

from qemu_usernat.gateway.dns import GUEST_PENDING_MAXIMUM
from qemu_usernat.lan import places, port, switch
from qemu_usernat.nat import fragments, holdings, udp_table
from qemu_usernat.nat.tcp.receiver import CAPACITY_INITIAL
from qemu_usernat.pings import FLOWS_OF_GUEST_MAXIMUM as PINGS_PER_GUEST
from qemu_usernat.wire.packets import ACK, ICMP, SYN, UDP
from tests.scripted_guest import (
    GATEWAY,
    NAMESERVER,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
    ethernet,
    icmp,
    packed,
)

BLACK_HOLE = "198.51.100.1"
EVERYBODY = b"\xff" * 6
AT_ONCE = 256  # frames in one turn

Story = Callable[[ScriptedGuest], None]
STORIES: dict[str, Story] = {}


def meets(counter: str) -> Callable[[Story], Story]:
    """What the story does is refused in the end, under this name."""

    def note(story: Story) -> Story:
        STORIES[counter] = story
        return story

    return note


def query(name: str) -> bytes:
    return dns.message.make_query(name, "A", id=7).to_wire()


def says(guest: ScriptedGuest, frames: list[bytes]) -> None:
    for start in range(0, len(frames), AT_ONCE):
        guest.sends(*frames[start : start + AT_ONCE])
        guest.stream.clear()


@meets("tcp.half_open_full")
def calls_all_who_do_not_answer(guest: ScriptedGuest) -> None:
    count = holdings.HALF_OPEN_PER_GUEST + 1
    says(guest, [guest.segment(1024 + n, BLACK_HOLE, 80, SYN, 1000) for n in range(count)])


@meets("tcp.flows_full")
def keeps_every_connection(guest: ScriptedGuest) -> None:
    guest.network.host.on_dial = lambda server: server.flow.on_host_connected(guest.network.now)
    flows = guest.network.router.connections.flows
    for number in range(holdings.FLOWS_PER_GUEST + 1):
        sport, destination = 1024 + number % 60_000, f"198.51.100.{number // 60_000}"
        guest.sends(guest.segment(sport, destination, 80, SYN, 1000))
        flow = flows.get(
            (packed(guest.address), sport, bytes((198, 51, 100, number // 60_000)), 80)
        )
        if flow is not None:
            ours = flow.sender.initial_sequence + 1
            guest.sends(guest.segment(sport, destination, 80, ACK, 1001, ours))
        guest.stream.clear()


@meets("tcp.octets_full")
def reads_nothing_of_what_servers_say(guest: ScriptedGuest) -> None:
    for number in range(holdings.OCTETS_PER_GUEST // CAPACITY_INITIAL + 1):
        connection = guest.connects(1024 + number)
        connection.server.says(bytes(1 << 16))
        guest.stream.clear()


@meets("udp.mapping_gave_way")
def writes_from_every_port(guest: ScriptedGuest) -> None:
    count = udp_table.MAPPINGS_PER_GUEST + 1
    says(guest, [guest.datagram(1024 + n, BLACK_HOLE, 99, b"x") for n in range(count)])


@meets("icmp.flow_gave_way")
def pings_under_every_identifier(guest: ScriptedGuest) -> None:
    identifiers = (number.to_bytes(2, "big") for number in range(PINGS_PER_GUEST + 1))
    echoes = (icmp(8, 0, identifier + b"\0\1", b"ping") for identifier in identifiers)
    says(guest, [guest.packet(echo, ICMP, BLACK_HOLE) for echo in echoes])


@meets("ipv4.reassembly_full")
def begins_datagrams_and_ends_none(guest: ScriptedGuest) -> None:
    count = fragments.DATAGRAMS_PER_GUEST + 1
    says(
        guest,
        [
            guest.packet(bytes(64), UDP, SERVER, identification=n, fragment=0x2000)
            for n in range(count)
        ],
    )


@meets("dns.too_many_queries")
def asks_for_every_name(guest: ScriptedGuest) -> None:
    count = GUEST_PENDING_MAXIMUM + 1
    says(
        guest,
        [guest.datagram(5353, NAMESERVER, 53, query(f"{n}.example")) for n in range(count)],
    )


@meets("ethernet.table_full")
def is_everybody(guest: ScriptedGuest) -> None:
    count = places.PLACES_PER_PORT + 1
    says(guest, [ethernet(b"", b"\x02\0\0\0" + n.to_bytes(2, "big")) for n in range(count)])


@meets("lan.neighbours_full")
def has_every_address(guest: ScriptedGuest) -> None:
    addresses = [f"10.0.{2 + n // 200}.{20 + n % 200}" for n in range(places.PLACES_PER_PORT + 1)]
    says(guest, [guest.ping(GATEWAY, source=address) for address in addresses])


@meets("ethernet.flood_limited")
def shouts(guest: ScriptedGuest) -> None:
    count = int(switch.FLOODS_AT_ONCE) + 1
    says(guest, [ethernet(bytes(64), guest.mac, EVERYBODY, 0x88B6)] * count)


@meets("link.queue_full")
def takes_nothing(guest: ScriptedGuest) -> None:
    guest.reads = False
    count = port.QUEUE_LIMIT // 1400 + 1
    says(guest, [guest.ping(GATEWAY, bytes(1400))] * count)


def _is_well(guest: ScriptedGuest, sport: int) -> None:
    """It pings, is told names, and writes and connects to the world; each at once."""
    network, sockets = guest.network, len(guest.network.host.sockets)
    guest.stream.clear()
    guest.sends(guest.ping(GATEWAY))
    assert guest.hears_one().source == GATEWAY
    guest.sends(guest.datagram(5353, NAMESERVER, 53, query("gateway.internal")))
    assert guest.hears_one().udp.payload.endswith(bytes((10, 0, 2, 2)))
    asked = len(network.resolvers.asked)
    guest.sends(guest.datagram(5353, NAMESERVER, 53, query("www.example")))
    assert len(network.resolvers.asked) == asked + 1
    guest.sends(guest.datagram(sport, SERVER, 99, b"question"))
    socket = network.host.sockets[sockets]
    socket.hears(b"answer", SERVER, 99)
    assert guest.hears_one().udp.payload == b"answer"
    network.host.on_dial = None
    connection = guest.connects(sport)
    assert connection.server.says(bytes(60_000)) == 60_000
    guest.stream.clear()
    guest.sends(*guest.fragments(icmp(8, 0, bytes(4), bytes(1600)), ICMP, GATEWAY))
    assert guest.hears_one().source == GATEWAY


@pytest.mark.parametrize(
    "counter",
    [
        pytest.param(name, marks=pytest.mark.deep if name == "tcp.flows_full" else ())
        for name in STORIES
    ],
)
def test_a_hostile_guest_meets_its_limit_and_nobody_else_does(counter: str) -> None:
    """Whatever one takes, it is counted when it is refused, and others have what they had."""
    network = ScriptedNetwork(
        mtu=1500,
        subnet=IPv4Network("10.0.0.0/16"),
        gateway=IPv4Address(GATEWAY),
        nameserver=IPv4Address(NAMESERVER),
        dns=[(b"\xc0\0\2\x35", 53)],
    )
    hostile = network.guest()
    other = network.guest(OTHER_MAC, OTHER, "other")
    _is_well(other, 4000)
    assert not network.counters[counter]
    STORIES[counter](hostile)
    assert network.counters[counter] >= 1
    other.port.outbox.clear()
    other.stream.clear()
    network.advance(0.01)
    _is_well(other, 4001)
