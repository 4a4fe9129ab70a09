"""TCP through the router: how connections begin, are refused, and leave nothing behind."""

import struct
from collections.abc import Callable
from unittest import mock

import pytest

from qemu_usernat.connections import TIME_WAITS_MAXIMUM
from qemu_usernat.lan.port import STALLED_AT
from qemu_usernat.nat.tcp.flow import CONNECT_TIMEOUT, TcpFlow
from qemu_usernat.nat.tcp.guest_half import TIME_WAIT
from qemu_usernat.primitives.sequence import difference
from qemu_usernat.wire.icmp import HOST_UNREACHABLE, unreachable
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, TCP, URG
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    NAMESERVER,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedConnection,
    ScriptedGuest,
    ScriptedNetwork,
    ScriptedServer,
    icmp,
    packed,
    tcp,
)


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(mtu=1500)


@pytest.fixture
def guest(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest()


# -- opening


def test_the_handshake_waits_for_the_server(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """A SYN is dialled; only when the server accepts does the guest hear SYN,ACK."""
    guest.sends(guest.segment(40000, SERVER, 80, SYN, 1000))
    (server,) = network.host.servers
    assert (server.address, server.port) == (packed(SERVER), 80)
    assert guest.hears() == []
    server.accepts()
    answer = guest.hears_one()
    assert (answer.source, answer.destination) == (SERVER, GUEST)
    assert (answer.tcp.source_port, answer.tcp.destination_port) == (80, 40000)
    assert (answer.tcp.flags, answer.tcp.acknowledgment) == (SYN | ACK, 1001)
    assert answer.tcp.maximum_segment_size == 1460


def test_octets_pass_both_ways_and_both_ends_close(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A question, an answer, FIN and FIN: the whole life of a connection."""
    connection = guest.connects()
    guest.sends(connection.segment(ACK | PSH, b"GET / HTTP/1.0\r\n\r\n"))
    server = connection.server
    assert server.received == b"GET / HTTP/1.0\r\n\r\n"
    assert server.says(b"HTTP/1.0 200 OK\r\n") == 17
    assert connection.reads() == b"HTTP/1.0 200 OK\r\n"
    server.ends()
    assert connection.reads() == b""
    guest.sends(connection.segment(ACK | FIN))
    assert guest.hears_one().tcp.acknowledgment == connection.sent
    assert (server.shut, server.closed, server.was_reset) == (True, True, False)
    network.advance(TIME_WAIT)
    network.assert_nothing_left()


@pytest.mark.parametrize("options", [b"\1\1\5\x0a", b"\5\x0a"], ids=["the usual", "unusual"])
def test_selective_acknowledgments_reach_the_flow(guest: ScriptedGuest, options: bytes) -> None:
    """Whether the fast way or the slow one takes the segment, the flow hears what it says."""
    connection = guest.connects()
    options += struct.pack(">II", 5, 9)
    frame = connection.segment(ACK, b"data", options=options.ljust(12, b"\1"))
    spy = mock.patch.object(TcpFlow, "on_segment", autospec=True, side_effect=TcpFlow.on_segment)
    with spy as on_segment:
        guest.sends(frame)
    assert on_segment.call_args.args[-1] == (5, 9)
    assert connection.server.received == b"data"


@pytest.mark.parametrize(("congestion", "segments"), [("none", 44), ("reno", 10), ("cubic", 10)])
def test_the_chosen_congestion_control_is_that_of_the_flows(congestion: str, segments: int) -> None:
    """None fills the guest's window at once; the others begin with ten segments (RFC 6928)."""
    guest = ScriptedNetwork(mtu=1500, congestion=congestion).guest()
    guest.connects().server.says(bytes(100 * 1460))
    assert len(guest.hears()) == segments


def test_a_refused_connection_is_refused_at_once(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """The server's RST becomes RST,ACK of the guest's SYN: connect() fails now, not later."""
    guest.sends(guest.segment(40000, SERVER, 80, SYN, 1000))
    network.host.servers[0].fails()
    answer = guest.hears_one().tcp
    assert (answer.flags, answer.sequence, answer.acknowledgment) == (RST | ACK, 0, 1001)
    network.assert_nothing_left()


@pytest.mark.parametrize("code", [0, 1, 13])
def test_an_unreachable_server_is_told_as_icmp(
    network: ScriptedNetwork, guest: ScriptedGuest, code: int
) -> None:
    """No route is another thing than refusal: the guest's connect() says which."""
    syn = guest.segment(40000, SERVER, 80, SYN, 1000)
    guest.sends(syn)
    network.host.servers[0].fails(unreachable(code))
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (GATEWAY, 3, code)
    assert error.icmp.payload == syn[14:54]
    network.assert_nothing_left()


def test_a_server_that_never_answers_is_given_up(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A black hole costs its own connection a minute, and then nothing."""
    guest.sends(guest.segment(40000, SERVER, 80, SYN, 1000))
    network.advance(CONNECT_TIMEOUT)
    assert guest.hears_one().icmp.type == 3
    assert network.host.servers[0].closed
    network.assert_nothing_left()


@pytest.mark.parametrize("address", [GATEWAY, NAMESERVER])
def test_a_closed_port_of_ours_refuses(
    network: ScriptedNetwork, guest: ScriptedGuest, address: str
) -> None:
    """Nothing listens at the gateway but DNS, and nothing of the host is reached by it."""
    guest.sends(guest.segment(40000, address, 22, SYN, 1000))
    assert guest.hears_one().tcp.flags == RST | ACK
    assert network.host.servers == []
    network.assert_nothing_left()


def test_the_gateway_stands_for_the_host_s_loopback_if_asked() -> None:
    """With host_loopback the guest reaches 127.0.0.1 at the gateway's address, and only there."""
    guest = ScriptedNetwork(host_loopback=True).guest()
    connection = guest.connects(destination=GATEWAY, dport=8080)
    assert (connection.server.address, connection.server.port) == (packed("127.0.0.1"), 8080)
    connection.server.says(b"hello")
    assert connection.reads() == b"hello"
    guest.sends(guest.segment(40001, NAMESERVER, 8080, SYN, 1000))
    assert guest.hears_one().tcp.flags == RST | ACK


def test_without_descriptors_new_connections_are_refused_and_old_ones_go_on(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """The guest hears a refusal; whoever is connected does not notice."""
    connection = guest.connects()
    network.host.descriptors = 0
    guest.sends(guest.segment(40001, SERVER, 80, SYN, 1000))
    assert guest.hears_one().tcp.flags == RST | ACK
    assert network.counters["tcp.no_descriptor"] == 1
    guest.sends(connection.segment(ACK | PSH, b"still here"))
    assert connection.server.received == b"still here"
    assert list(network.router.connections.flows) == [connection.key]


def test_connections_have_a_limit(
    network: ScriptedNetwork, guest: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that opens connections without end is refused; those it has go on."""
    monkeypatch.setattr("qemu_usernat.nat.holdings.FLOWS_MAXIMUM", 1)
    connection = guest.connects()
    guest.sends(guest.segment(40001, SERVER, 80, SYN, 1000))
    assert guest.hears_one().tcp.flags == RST | ACK
    assert network.counters["tcp.flows_full"] == 1
    guest.sends(connection.segment(ACK | PSH, b"still here"))
    assert connection.server.received == b"still here"


def test_capsa_05a_five_hundred_black_holes_do_not_delay_the_one_that_answers(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Every connection waits for its own server only."""
    guest.sends(*[guest.segment(1024 + n, "192.0.2.1", 80, SYN, 1000) for n in range(500)])
    connection = guest.connects()
    guest.sends(connection.segment(ACK | PSH, b"hello"))
    connection.server.says(b"at once")
    answers = [heard.tcp.payload for heard in guest.hears()]
    assert b"at once" in answers
    assert connection.server.received == b"hello"


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (GUEST, "255.255.255.255"),
        (GUEST, "10.0.2.255"),
        (GUEST, "224.0.0.251"),
        ("127.0.0.1", SERVER),
        ("10.0.2.255", SERVER),
        ("224.0.0.1", SERVER),
        ("0.0.0.0", SERVER),
        (GATEWAY, SERVER),
    ],
)
def test_a_syn_to_many_or_from_nobody_is_dropped(
    network: ScriptedNetwork, guest: ScriptedGuest, source: str, destination: str
) -> None:
    """RFC 9293, 3.9.2.3 (MUST-57, 63): neither a connection, nor an answer."""
    syn = tcp(source, 40000, destination, 80, SYN, 1000)
    guest.sends(guest.packet(syn, TCP, destination, source=source))
    assert (guest.hears(), network.host.servers) == ([], [])
    assert sum(network.counters.values()) == 1, "the drop has a name"
    network.assert_nothing_left()


def test_what_a_syn_carries_is_not_lost(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """RFC 9293, 3.10.7.2, would keep it; it is not acknowledged, so the guest says it again."""
    guest.sends(guest.segment(40000, SERVER, 80, SYN, 1000, payload=b"early"))
    (server,) = network.host.servers
    server.accepts()
    answer = guest.hears_one().tcp
    assert answer.acknowledgment == 1001
    ours = answer.sequence + 1
    guest.sends(guest.segment(40000, SERVER, 80, ACK | PSH, 1001, ours, payload=b"early"))
    assert server.received == b"early"


@pytest.mark.parametrize("pointer", [0, 1, 5, 6, 0xFFFF])
def test_urgent_octets_pass_whatever_their_pointer_says(guest: ScriptedGuest, pointer: int) -> None:
    """RFC 6093: data like any other, by the slow way and with the fast one before and after it."""
    connection = guest.connects()
    guest.sends(connection.segment(ACK, b"before "))
    urgent = tcp(
        GUEST, 40000, SERVER, 80, ACK | PSH | URG, connection.sent, connection.received,
        urgent_pointer=pointer, payload=b"urgent",
    )  # fmt: skip
    connection.sent += 6
    guest.sends(guest.packet(urgent, TCP, SERVER), connection.segment(ACK, b" after"))
    assert connection.server.received == b"before urgent after"
    assert guest.hears()[-1].tcp.acknowledgment == connection.sent


# -- segments of no flow


@pytest.mark.parametrize(
    ("flags", "payload", "answer"),
    [
        (ACK, b"", (RST, 9000, 0)),
        (ACK | PSH, b"hello", (RST, 9000, 0)),
        (ACK | FIN, b"", (RST, 9000, 0)),
        (SYN | ACK, b"", (RST, 9000, 0)),
        (0, b"hello", (RST | ACK, 0, 5005)),
        (FIN, b"hello", (RST | ACK, 0, 5006)),
        (SYN | FIN, b"", (RST | ACK, 0, 5002)),
    ],
)
def test_passt_04_capsa_04a_a_segment_of_no_flow_is_reset_with_the_numbers_it_expects(
    network: ScriptedNetwork,
    guest: ScriptedGuest,
    flags: int,
    payload: bytes,
    answer: tuple[int, int, int],
) -> None:
    """RFC 9293, 3.10.7.1: the reset of an ACK has its number, of others it acknowledges."""
    guest.sends(guest.segment(40000, SERVER, 80, flags, 5000, 9000, payload=payload))
    reset = guest.hears_one()
    assert (reset.tcp.flags, reset.tcp.sequence, reset.tcp.acknowledgment) == answer
    assert (reset.source, reset.tcp.source_port) == (SERVER, 80)
    assert reset.tcp.destination_port == 40000
    assert network.counters["tcp.unknown_flow"] == 1
    network.assert_nothing_left()


@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN, RST | FIN | ACK])
def test_a_reset_of_no_flow_meets_silence(guest: ScriptedGuest, flags: int) -> None:
    """Two ends that reset each other's resets would never stop."""
    guest.sends(guest.segment(40000, SERVER, 80, flags, 5000, 9000))
    assert guest.hears() == []


def test_after_a_restart_old_connections_end_at_once(guest: ScriptedGuest) -> None:
    """A server that has been restarted knows no flows; the guest's programs hear it now."""
    guest.sends(guest.segment(40000, SERVER, 443, ACK | PSH, 5000, 9000, payload=b"are you there"))
    assert guest.hears_one().tcp.flags == RST


# -- one four-tuple, several attempts


def test_a_repeated_syn_is_the_same_connection(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """While the server is dialled the guest repeats its SYN: nothing is dialled twice."""
    connection = ScriptedConnection(guest, 40000, SERVER, 80)
    guest.sends(connection.syn(), connection.syn())
    guest.sends(connection.syn())
    (server,) = network.host.servers
    server.accepts()
    assert guest.hears_one().tcp.flags == SYN | ACK


def test_another_syn_replaces_an_attempt_that_the_guest_has_given_up(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Another sequence number is another attempt: the first socket is given back."""
    connection = ScriptedConnection(guest, 40000, SERVER, 80)
    guest.sends(connection.syn(1000))
    guest.sends(connection.syn(77_000))
    first, second = network.host.servers
    assert first.closed
    second.accepts()
    assert guest.hears_one().tcp.acknowledgment == 77_001
    assert list(network.router.connections.flows) == [connection.key]


def test_passt_03a_reset_and_syn_of_one_four_tuple_in_one_turn(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A program that dies and is started again reuses its port before our turn has ended."""
    connection = guest.connects()
    guest.sends(connection.segment(RST | ACK), connection.syn(500_000))
    guest.sends(connection.syn(500_000))
    first, second = network.host.servers
    assert first.was_reset
    second.accepts()
    assert guest.hears()[-1].tcp.acknowledgment == 500_001


@pytest.mark.parametrize("server_first", [True, False], ids=["TIME-WAIT", "LAST-ACK"])
def test_passt_03b_the_end_and_a_syn_of_one_four_tuple_in_one_turn(
    network: ScriptedNetwork, guest: ScriptedGuest, server_first: bool
) -> None:
    """passt 46f915d: the last word of a close, and the next connection right behind it."""
    connection = guest.connects()
    first = connection.server
    if not server_first:
        guest.sends(connection.segment(ACK | FIN))
        guest.hears()
    first.ends()
    connection.received = guest.hears_one().tcp.sequence + 1
    last = connection.segment(ACK | FIN if server_first else ACK)
    guest.sends(last, connection.syn(500_000))
    _, second = network.host.servers
    assert (first.shut, first.closed, first.was_reset) == (True, True, False)
    second.accepts()
    assert guest.hears()[-1].tcp.acknowledgment == 500_001
    assert len(network.router.connections.flows) == 1


def test_a_new_syn_may_follow_a_connection_that_has_ended(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """From TIME-WAIT a SYN with a later number opens again (RFC 9293, 3.10.7.4)."""
    connection = guest.connects()
    connection.server.ends()
    connection.reads()
    guest.sends(connection.segment(ACK | FIN))
    guest.hears()
    assert len(network.router.connections.flows) == 1
    guest.sends(connection.syn(connection.sent + 1000))
    network.host.servers[1].accepts()
    assert guest.hears_one().tcp.flags == SYN | ACK
    assert len(network.router.connections.flows) == 1


def test_a_connection_after_time_wait_begins_beyond_the_old_one(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """RFC 9293, 3.10.7.4 (MAY-2): two megabytes in no time overtake the clock of our numbers."""
    connection = guest.connects()
    for _ in range(40):
        connection.server.says(bytes(50_000))
        connection.reads()
    connection.server.ends()
    connection.reads()
    guest.sends(connection.segment(ACK | FIN))
    guest.hears()
    guest.sends(connection.syn(connection.sent + 1000))
    network.host.servers[1].accepts()
    assert difference(guest.hears_one().tcp.sequence, connection.received) > 0


# -- nothing is left


def closes(connection: ScriptedConnection) -> None:
    connection.guest.sends(connection.segment(ACK | FIN))
    connection.server.ends()
    connection.reads()


def resets(connection: ScriptedConnection) -> None:
    connection.guest.sends(connection.segment(RST | ACK))


def server_resets(connection: ScriptedConnection) -> None:
    connection.server.fails()
    connection.guest.hears()


def server_ends_first(connection: ScriptedConnection) -> None:
    connection.server.ends()
    connection.reads()
    connection.guest.sends(connection.segment(ACK | FIN))
    connection.guest.hears()


@pytest.mark.parametrize("end", [closes, resets, server_resets, server_ends_first])
def test_a_thousand_connections_leave_nothing_behind(
    network: ScriptedNetwork, guest: ScriptedGuest, end: Callable[[ScriptedConnection], None]
) -> None:
    """However they end: no flow, no alarm, no socket stays."""
    for number in range(1000):
        connection = guest.connects(sport=2000 + number)
        guest.sends(connection.segment(ACK | PSH, b"hello"))
        guest.hears()
        end(connection)
    network.advance(TIME_WAIT)
    network.assert_nothing_left()
    assert all(server.closed for server in network.host.servers)


def test_time_wait_has_its_limit(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """A guest that opens and closes without end does not fill our memory: the oldest leave."""
    ports = range(1024, 1024 + TIME_WAITS_MAXIMUM + 10)
    for port in ports:
        server_ends_first(guest.connects(sport=port))
    assert len(network.router.connections.flows) == TIME_WAITS_MAXIMUM
    assert network.counters["tcp.time_waits_full"] == 10
    assert (packed(GUEST), ports[0], packed(SERVER), 80) not in network.router.connections.flows
    assert (packed(GUEST), ports[-1], packed(SERVER), 80) in network.router.connections.flows
    network.advance(TIME_WAIT)
    network.assert_nothing_left()


# -- a guest that does not read


def test_a_stopped_guest_stops_its_own_flows_only(network: ScriptedNetwork) -> None:
    """Its servers are read no more once its queue is long; the other guest's go on."""
    stopped, lively = network.guest(), network.guest(OTHER_MAC, OTHER)
    connections = [stopped.connects(sport=40000 + number) for number in range(20)]
    other = lively.connects()
    stopped.reads = False
    for connection in connections:
        connection.server.says(bytes(1_000_000))
    assert stopped.port.queued < 700 * 1024
    assert network.counters["link.queue_full"] == 0
    held = [flow.host for flow in stopped.port.waiting]
    assert held
    assert not any(server.reading for server in held)
    other.server.says(b"hello")
    assert other.reads() == b"hello"

    stopped.reads = True
    lively.sends(other.segment(ACK))  # any turn: what the link takes again is noticed
    assert not stopped.port.waiting
    assert any(server.reading for server in held)
    assert all(server.reading == (server.flow.room() > 0) for server in held)


def test_what_the_host_does_not_take_comes_back_as_window(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A slow server: the guest's octets wait, all of them, and its window shrinks."""
    connection = guest.connects()
    server: ScriptedServer = connection.server
    server.takes = 1000
    sent = b""
    for number in range(150):
        octets = bytes([number]) * 1460
        guest.sends(connection.segment(ACK, octets))
        sent += octets
    first, *_, last = (heard.tcp for heard in guest.hears())
    assert last.acknowledgment == connection.sent
    assert last.window < first.window
    assert server.received == sent[:1000]
    assert server.writing
    server.takes = 1 << 30
    network.router.touch(server.flow)
    network.end_turn()
    assert server.received == sent
    assert not server.writing


def test_flows_that_have_ended_do_not_wait_for_a_stopped_guest(network: ScriptedNetwork) -> None:
    """A guest that does not read opens and resets connections: none of them is kept."""
    guest = network.guest()
    guest.reads = False
    echo = guest.fragments(icmp(8, 0, bytes(4), bytes(60000)), 1, GATEWAY, 1480)
    while guest.port.queued < STALLED_AT:
        guest.sends(*echo)
    for sport in range(1024, 1124):
        guest.sends(guest.segment(sport, NAMESERVER, 53, SYN, 1000))
        guest.sends(guest.segment(sport, NAMESERVER, 53, RST, 1001))
    assert not network.router.connections.flows
    assert not guest.port.waiting


def test_what_a_syn_carries_is_not_kept(network: ScriptedNetwork) -> None:
    """An ICMP error quotes 548 bytes: that much of the SYN is remembered, not 60,000."""
    guest = ScriptedNetwork(mtu=65520).guest()
    guest.sends(guest.segment(40000, SERVER, 80, SYN, 1000, payload=bytes(60000)))
    (server,) = guest.network.host.servers
    syn = server.flow.wire._syn  # type: ignore[attr-defined]
    assert len(syn.header) + len(syn.payload) == 548
    server.fails(unreachable(HOST_UNREACHABLE))
    assert len(guest.hears_one().icmp.payload) == 548


def test_connections_that_still_end_count(
    network: ScriptedNetwork, guest: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest is done and its server does not read: a new SYN does not hide the old flow."""
    monkeypatch.setattr("qemu_usernat.nat.holdings.FLOWS_MAXIMUM", 5)
    refused = 0
    for turn in range(10):
        guest.sends(guest.segment(40000, SERVER, 80, SYN, 1000 + turn * 100_000))
        if guest.hears()[-1:] and network.counters["tcp.flows_full"]:
            refused += 1
            continue
        server = network.host.servers[-1]
        server.takes = 0
        server.accepts()
        ours = guest.hears_one().tcp.sequence + 1
        first = 1001 + turn * 100_000
        guest.sends(guest.segment(40000, SERVER, 80, ACK | FIN, first, ours, payload=b"unread"))
        server.ends()
        guest.hears()
        guest.sends(guest.segment(40000, SERVER, 80, ACK, first + 7, ours + 1))
    assert refused
    assert len(network.router.alarms) <= 5
