"""Whatever bytes a guest sends, the router stays up, small, and of one mind with itself."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.nat.fragments import DATAGRAMS_PER_GUEST
from qemu_usernat.wire.icmp import ECHO_REPLY
from qemu_usernat.wire.packets import ACK, FIN, ICMP, PSH, RST, SYN, UDP
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    NAMESERVER,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedConnection,
    ScriptedGuest,
    ScriptedNetwork,
    ScriptedServer,
    internet_checksum,
    udp,
)

QUERY = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\7gateway\10internal\0\0\1\0\1"

FRAMES: list[Callable[[ScriptedGuest], list[bytes]]] = [
    lambda guest: [guest.asks_who_has(GATEWAY)],
    lambda guest: [guest.ping(GATEWAY)],
    lambda guest: [guest.datagram(1234, SERVER, 99, b"hello")],
    lambda guest: [guest.datagram(1234, NAMESERVER, 53, QUERY)],
    lambda guest: [guest.datagram(68, GATEWAY, 67, bytes(240) + b"\x35\1\1\xff")],
    lambda guest: [guest.segment(40000, SERVER, 80, SYN, 1000, options=b"\2\4\5\xb4\1\3\3\7")],
    lambda guest: [guest.segment(40000, SERVER, 80, ACK | PSH, 1001, 1, payload=b"hello")],
    lambda guest: [guest.segment(40000, NAMESERVER, 53, SYN, 1000)],
    lambda guest: [guest.packet(b"sctp....", 132, SERVER, options=b"\x07\x04\x04\0")],
    lambda guest: guest.fragments(udp(GUEST, 5, SERVER, 6, bytes(3000)), UDP, SERVER),
]


def assert_still_well(guest: ScriptedGuest) -> None:
    guest.frames()
    guest.sends(guest.ping(GATEWAY, b"are you there"))
    assert guest.hears_one().icmp.type == ECHO_REPLY


def mend(frame: bytearray) -> None:
    """Make the checksum of the IP header right again, so that more than the guard is reached."""
    length = (frame[14] & 15) * 4 if len(frame) > 34 else 0
    if length >= 20 and frame[12:14] == b"\x08\0":
        frame[24:26] = b"\0\0"
        frame[24:26] = internet_checksum(bytes(frame[14 : 14 + length])).to_bytes(2, "big")


@given(st.lists(st.binary(min_size=14, max_size=200), max_size=20))
def test_random_bytes_do_no_harm(frames: list[bytes]) -> None:
    """A broken driver, or a guest that means ill: the gateway answers the next ping."""
    guest = ScriptedNetwork(mtu=1500).guest()
    guest.sends(*frames)
    guest.sends(*[GATEWAY_MAC + guest.mac + b"\x08\0" + frame for frame in frames])
    assert_still_well(guest)


@given(st.data())
def test_broken_frames_do_no_harm(data: st.DataObject) -> None:
    """Frames that are right but for some bytes, a length or an end: nothing breaks on them."""
    guest = ScriptedNetwork(mtu=1500, host_loopback=data.draw(st.booleans())).guest()
    for _ in range(data.draw(st.integers(1, 12))):
        for frame in map(bytearray, data.draw(st.sampled_from(FRAMES))(guest)):
            at = st.integers(14, len(frame) - 1)
            for place, octet in data.draw(st.lists(st.tuples(at, st.integers(0, 255)), max_size=4)):
                frame[place] = octet
            if data.draw(st.booleans()):
                mend(frame)
            kept = data.draw(st.one_of(st.just(len(frame)), st.integers(14, len(frame))))
            guest.sends(bytes(frame[:kept]))
            for server in guest.network.host.servers:
                if data.draw(st.booleans()) and not server.closed:
                    if server.reading:
                        server.says(b"from the server")
                    elif not server.flow.room():
                        server.fails()
        guest.network.advance(data.draw(st.sampled_from([0.0, 0.1, 40.0, 400.0])))
    assert_still_well(guest)


def test_a_flood_of_fragments_has_bounds() -> None:
    """Datagrams that are never finished: memory has a limit, and time does too."""
    network = ScriptedNetwork(mtu=1500)
    guest = network.guest()
    for number in range(5000):
        guest.sends(guest.packet(bytes(1480), UDP, SERVER, fragment=0x2000, identification=number))
    assert network.counters["ipv4.reassembly_full"] >= 5000 - 64
    assert_still_well(guest)
    network.advance(60.0)
    network.assert_nothing_left()


def test_a_flood_of_addresses_and_ports_is_answered_by_resets_only() -> None:
    """A scan of segments that belong to nothing opens nothing."""
    network = ScriptedNetwork(mtu=1500)
    guest = network.guest()
    guest.sends(*[guest.segment(port, SERVER, port, ACK, 1, 2) for port in range(1, 3000)])
    assert all(heard.tcp.flags == RST for heard in guest.hears())
    network.assert_nothing_left()


def test_a_flood_of_fragments_delays_nobody() -> None:
    """In the very turn of the flood another guest's datagrams pass, whole ones and cut ones; of
    what is never finished nothing goes out, and of its end its sender is told so often and no more.
    """
    network = ScriptedNetwork(mtu=1500)
    hostile, honest = network.guest(), network.guest(OTHER_MAC, OTHER)
    payload = udp(OTHER, 5, SERVER, 6, bytes(3000))
    first, *rest = honest.fragments(payload, UDP, SERVER)
    honest.sends(first)
    hostile.sends(
        *[
            hostile.packet(bytes(1480), UDP, SERVER, fragment=0x2000, identification=number)
            for number in range(2000)
        ]
    )
    honest.sends(honest.datagram(7, SERVER, 8, b"small"), *rest)
    assert [sent for socket in network.host.sockets for sent in socket.sent] == [
        (b"small", SERVER, 8),
        (bytes(3000), SERVER, 6),
    ]
    network.advance(60.0)
    told = hostile.hears()
    assert 0 < len(told) <= DATAGRAMS_PER_GUEST
    assert {(heard.icmp.type, heard.icmp.code) for heard in told} == {(11, 1)}
    assert len(told) + network.counters["icmp.error_limited"] == DATAGRAMS_PER_GUEST


# -- the fast way and the slow way

ELSEWHERE = [
    "198.51.100.8",
    "127.0.0.1",
    "0.0.0.1",
    "10.0.2.77",
    "10.0.2.255",
    "224.0.0.251",
    "240.0.0.1",
    NAMESERVER,
]


def _life_of_a_network(script: list[tuple[str, int]]) -> tuple[Any, ...]:
    """Play `script`; everything that could be seen of it afterwards."""
    network = ScriptedNetwork(mtu=1500, host_loopback=True)
    guest = network.guest()
    connection: ScriptedConnection = guest.connects()
    server: ScriptedServer = connection.server
    guest.sends(*[guest.datagram(1234, peer, 99, b"x") for peer in (GATEWAY, SERVER)])
    heard: list[bytes] = []
    for verb, size in script:
        octets = bytes(range(256)) * 6
        match verb:
            case "says":
                guest.sends(connection.segment(ACK | PSH, octets[:size]))
            case "repeats":
                connection.sent -= size
                guest.sends(connection.segment(ACK | PSH, octets[:size]))
            case "skips":
                connection.sent += size
                guest.sends(connection.segment(ACK, octets[:10]))
                connection.sent -= size + 10
            case "ends":
                guest.sends(connection.segment(ACK | FIN))
            case "resets":
                guest.sends(connection.segment(RST | ACK))
            case "hears":
                if server.reading and not server.closed:
                    server.says(octets[:size])
            case "closes its window":
                guest.sends(connection.segment(ACK, window=size))
            case "acknowledges":
                heard += guest.frames()
                connection.received += size
                guest.sends(connection.segment(ACK))
                connection.received -= size
            case "sends a datagram":
                guest.sends(guest.datagram(1234, SERVER, 99, octets[:size]))
            case "sends elsewhere":
                guest.sends(guest.datagram(1234, ELSEWHERE[size % len(ELSEWHERE)], 99, b"x"))
            case "sends to a service":
                guest.sends(guest.datagram(1234, GATEWAY, (53, 67, 99)[size % 3], b"x"))
            case "waits":
                network.advance(size / 10)
        heard += guest.frames()
    return (
        heard,
        network.counters,
        [(bytes(end.received), end.shut, end.was_reset, end.closed, end.reading, end.writing)
         for end in network.host.servers],
        [(socket.sent, socket.closed) for socket in network.host.sockets],
        sorted(network.router.connections.flows),
        sorted(network.router.datagrams.mappings),
        network.router.deadline(),
    )  # fmt: skip


VERBS = [
    "says",
    "repeats",
    "skips",
    "ends",
    "resets",
    "hears",
    "closes its window",
    "acknowledges",
    "sends a datagram",
    "sends elsewhere",
    "sends to a service",
    "waits",
]


@given(st.lists(st.tuples(st.sampled_from(VERBS), st.integers(1, 1400)), max_size=15))
def test_the_fast_way_leads_where_the_slow_way_leads(script: list[tuple[str, int]]) -> None:
    """The header peek only saves time: without it every frame, flow and counter is the same."""
    fast = _life_of_a_network(script)
    with mock.patch("qemu_usernat.router.peek", return_value=None):
        assert _life_of_a_network(script) == fast


@pytest.mark.parametrize("destination", [GATEWAY_MAC, BROADCAST_MAC])
def test_the_shortest_frame_there_is(destination: bytes) -> None:
    """Fourteen bytes are a header and nothing else: counted, and no more."""
    guest = ScriptedNetwork().guest()
    guest.sends(destination + guest.mac + b"\x08\0")
    assert guest.network.counters["ipv4.too_short"] == 1
    guest.sends(guest.packet(b"", ICMP, GATEWAY))
    assert guest.network.counters["icmp.too_short"] == 1
    assert_still_well(guest)
