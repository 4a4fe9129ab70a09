"""UDP through the router: mappings, who may answer, how they end, and ICMP about them."""

from unittest import mock

import pytest

from qemu_usernat.nat import udp_table
from qemu_usernat.nat.udp import DNS_IDLE_TIME, IDLE_TIME
from qemu_usernat.nat.udp_table import LIVE_TIME, MAPPINGS_MAXIMUM, MAPPINGS_PER_GUEST
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.testing.internet.world import TEST_NETWORKS
from qemu_usernat.wire.icmp import IcmpError
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    NAMESERVER,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
    ScriptedSocket,
    packed,
    udp,
)

STRANGER = "203.0.113.9"


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(mtu=1500)


@pytest.fixture
def guest(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest()


def test_a_question_goes_out_and_the_answer_comes_back(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """The server sees the payload, the guest sees an answer from the server's own address."""
    guest.sends(guest.datagram(1234, SERVER, 99, b"question"))
    (socket,) = network.host.sockets
    assert socket.sent == [(b"question", SERVER, 99)]
    socket.hears(b"answer", SERVER, 99)
    answer = guest.hears_one()
    assert (answer.source, answer.destination) == (SERVER, GUEST)
    assert (answer.udp.source_port, answer.udp.destination_port) == (99, 1234)
    assert answer.udp.payload == b"answer"


def test_one_port_of_the_guest_is_one_port_of_the_host(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Endpoint-independent mapping (RFC 4787, REQ-1): other destinations, the same socket."""
    for destination in (SERVER, STRANGER):
        for port in (99, 100):
            guest.sends(guest.datagram(1234, destination, port, b"x"))
    guest.sends(guest.datagram(1235, SERVER, 99, b"y"))
    first, second = network.host.sockets
    assert [peer for _, *peer in first.sent] == [
        [SERVER, 99],
        [SERVER, 100],
        [STRANGER, 99],
        [STRANGER, 100],
    ]
    assert second.sent == [(b"y", SERVER, 99)]


def test_only_those_whom_the_guest_has_written_to_may_write(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Filtering is by address (RFC 4787, REQ-8): another port of the server may, a stranger not."""
    guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
    (socket,) = network.host.sockets
    socket.hears(b"from another port", SERVER, 100)
    assert guest.hears_one().udp.source_port == 100
    socket.hears(b"spam", STRANGER, 99)
    assert guest.hears() == []
    assert network.counters["udp.filtered"] == 1


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 65507])
def test_datagrams_of_every_size_pass_both_ways(
    network: ScriptedNetwork, guest: ScriptedGuest, size: int
) -> None:
    """At an MTU of 1500 a large datagram is fragments, and nobody has to know."""
    payload = (bytes(range(255)) * 257)[:size]
    datagram = udp(GUEST, 1234, SERVER, 99, payload)
    guest.sends(*guest.fragments(datagram, 17, SERVER))
    (socket,) = network.host.sockets
    assert socket.sent == [(payload, SERVER, 99)]
    socket.hears(payload, SERVER, 99)
    assert guest.hears_one().udp.payload == payload


@pytest.mark.parametrize(
    "destination",
    ["127.0.0.1", "0.0.0.1", "240.0.0.1", "10.0.2.77", "10.0.2.255", "224.0.0.251", NAMESERVER],
)
def test_an_open_port_reaches_no_more_than_a_new_one(
    network: ScriptedNetwork, guest: ScriptedGuest, destination: str
) -> None:
    """What may not go out may not go out from a port that is in use either."""
    guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
    guest.sends(guest.datagram(1234, destination, 99, b"y"))
    assert network.host.sockets[0].sent == [(b"x", SERVER, 99)]


# -- the end of a mapping


def test_a_mapping_ends_when_the_guest_has_been_silent_for_long(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Only the guest's own datagrams keep it (RFC 4787, REQ-5 and REQ-6)."""
    guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
    network.advance(IDLE_TIME - 1)
    guest.sends(guest.datagram(1234, SERVER, 99, b"still here"))
    network.advance(IDLE_TIME - 1)
    (socket,) = network.host.sockets
    socket.hears(b"does not count", SERVER, 99)
    assert not socket.closed
    network.advance(1.0)
    assert socket.closed
    network.assert_nothing_left()


def test_a_mapping_for_dns_alone_ends_soon(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """A resolver of the guest's own opens a port for each question: they must not pile up."""
    guest.sends(guest.datagram(1234, SERVER, 53, b"?"))
    guest.sends(guest.datagram(1235, SERVER, 53, b"?"), guest.datagram(1235, SERVER, 99, b"x"))
    network.advance(DNS_IDLE_TIME)
    short, long = network.host.sockets
    assert (short.closed, long.closed) == (True, False)
    network.advance(IDLE_TIME)
    network.assert_nothing_left()


def test_a_thousand_mappings_leave_nothing_behind(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Neither descriptors nor alarms are left when everybody has gone silent."""
    guest.sends(*[guest.datagram(2000 + port, SERVER, 99, b"x") for port in range(1000)])
    assert len(network.router.datagrams.mappings) == 1000
    network.advance(IDLE_TIME)
    assert all(socket.closed for socket in network.host.sockets)
    network.assert_nothing_left()


# -- who cannot be reached


def test_a_closed_port_of_the_gateway_says_so(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """The gateway has no service there: port unreachable, about the datagram as it was sent."""
    frame = guest.datagram(1234, GATEWAY, 99, b"anybody?")
    guest.sends(frame)
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (GATEWAY, 3, 3)
    assert error.icmp.payload == frame[14:]
    assert (network.host.sockets, network.counters["udp.closed_port"]) == ([], 1)


def test_a_closed_port_of_a_server_is_told_to_the_guest(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """What the host's error queue says is said again, about the guest's own datagram."""
    frame = guest.datagram(1234, SERVER, 99, b"anybody?", ttl=9, identification=4711)
    guest.sends(frame)
    (socket,) = network.host.sockets
    socket.fails(IcmpError(3, 3, offender=packed(STRANGER)), SERVER, 99)
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (STRANGER, 3, 3)
    assert error.icmp.payload == frame[14:]


def test_an_error_about_what_was_never_sent_is_not_believed(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """An ICMP error that quotes a datagram to a stranger cannot concern the guest."""
    guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
    (socket,) = network.host.sockets
    socket.fails(IcmpError(3, 3, offender=packed(STRANGER)), STRANGER, 99, b"x")
    assert guest.hears() == []


# -- too many of them


def converse(network: ScriptedNetwork, guest: ScriptedGuest, port: int) -> ScriptedSocket:
    """A question of the guest's, and an answer."""
    guest.sends(guest.datagram(port, SERVER, 99, b"?"))
    socket = network.host.sockets[-1]
    socket.hears(b"!", SERVER, 99)
    assert guest.hears_one().udp.payload == b"!"
    return socket


def test_without_descriptors_a_new_mapping_is_refused_and_conversations_go_on(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """The guest hears that it may not, at once; whoever is talking keeps the socket."""
    talking = converse(network, guest, 1234)
    network.host.descriptors = 0
    guest.sends(guest.datagram(1235, SERVER, 99, b"second"))
    error = guest.hears_one()
    assert (error.icmp.type, error.icmp.code) == (3, 13)
    assert network.counters["udp.no_descriptor"] == 1
    guest.sends(guest.datagram(1234, SERVER, 99, b"third"))
    assert talking.sent[1:] == [(b"third", SERVER, 99)]
    network.host.descriptors = 1
    guest.sends(guest.datagram(1235, SERVER, 99, b"again"))
    assert network.host.sockets[1].sent == [(b"again", SERVER, 99)]


def test_without_descriptors_what_nobody_has_answered_gives_way(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """The oldest question is given up for a new one, and a silent conversation after all those."""
    talking = converse(network, guest, 1234)
    network.host.descriptors = 2
    for port in range(2000, 2003):
        guest.sends(guest.datagram(port, SERVER, 99, b"anybody?"))
    assert [socket.closed for socket in network.host.sockets] == [False, True, False, False]
    assert network.counters["udp.mapping_gave_way"] == 1
    for port in (2001, 2002):
        network.host.sockets[port - 1999].hears(b"!", SERVER, 99)
    network.advance(LIVE_TIME - 1)
    guest.sends(guest.datagram(2001, SERVER, 99, b"on"), guest.datagram(2002, SERVER, 99, b"on"))
    network.advance(1.0)
    guest.sends(guest.datagram(2003, SERVER, 99, b"anybody?"))
    assert talking.closed
    assert [socket.closed for socket in network.host.sockets[2:]] == [False, False, False]


def test_twenty_thousand_ports_in_a_second_have_a_bound(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A scan, or a resolver gone mad: as many descriptors as a guest may have; its conversations,
    and its neighbour's question, live on, and the last port is served as the first one was."""
    other = network.guest(OTHER_MAC, OTHER)
    other.sends(other.datagram(53, SERVER, 99, b"neighbour"))
    talking = converse(network, guest, 1234)
    for start in range(0, 20_000, 1000):
        frames = [guest.datagram(2000 + start + n, SERVER, 99, b"x") for n in range(1000)]
        guest.sends(*frames)
        network.advance(0.05)
    sockets = network.host.sockets
    assert sum(not socket.closed for socket in sockets) == MAPPINGS_PER_GUEST + 1
    assert (sockets[0].closed, talking.closed) == (False, False)
    assert sockets[-1].sent == [(b"x", SERVER, 99)]
    assert len(network.router.alarms) == MAPPINGS_PER_GUEST + 1
    assert network.router.datagrams.table.crowds[guest.port].tally.peers == MAPPINGS_PER_GUEST
    guest.sends(guest.ping(GATEWAY))
    assert guest.hears_one().icmp.type == 0
    network.advance(IDLE_TIME)
    network.assert_nothing_left()
    assert not network.router.datagrams.table.crowds


def test_many_guests_together_have_a_bound_and_the_largest_makes_room(
    network: ScriptedNetwork,
) -> None:
    """Nobody who has few loses any to somebody who wants thousands."""
    macs = [OTHER_MAC[:5] + bytes([n]) for n in range(6)]
    guests = [network.guest(mac, f"10.0.2.{20 + n}") for n, mac in enumerate(macs)]
    few = guests.pop()
    few.sends(*[few.datagram(2000 + n, SERVER, 99, b"x") for n in range(100)])
    for guest in guests:
        frames = [guest.datagram(2000 + n, SERVER, 99, b"x") for n in range(MAPPINGS_PER_GUEST)]
        guest.sends(*frames)
    table = network.router.datagrams.table
    assert len(table) == MAPPINGS_MAXIMUM
    assert next(map(len, table.crowds.values())) == 100
    assert sum(not socket.closed for socket in network.host.sockets) == MAPPINGS_MAXIMUM


def test_who_has_all_that_a_guest_may_have_makes_room_itself(network: ScriptedNetwork) -> None:
    """Also where somebody else has as many."""
    one, two = network.guest(), network.guest(OTHER_MAC, OTHER)
    with mock.patch.object(udp_table, "MAPPINGS_PER_GUEST", 2):
        for guest in (one, two):
            for port in range(2000, 2002 + (guest is two)):
                guest.sends(guest.datagram(port, SERVER, 99, b"x"))
    closed = [socket.closed for socket in network.host.sockets]
    assert closed == [False, False, True, False, False]


# -- filtering, with a policy and without


HOST = "192.0.2.1"


def network_of(filtering: str = "address", policy: NetworkPolicy | None = None) -> ScriptedNetwork:
    """One whose host has the address `HOST`."""
    network = ScriptedNetwork(mtu=1500, udp_filtering=filtering)
    network.admission.groups = Groups(
        gateway=frozenset({packed(GATEWAY)}),
        is_of_host=lambda address: address == packed(HOST),
        public=TEST_NETWORKS,
    )
    network.admission.replace(None if policy is None else PolicySettings(policy=policy))
    network.router.on_policy(policy is not None, network.now)
    return network


@pytest.mark.parametrize(
    ("filtering", "heard"),
    [("endpoint", [99, 98, 97]), ("address", [99, 98]), ("address-port", [99])],
)
def test_filtering_is_as_the_configuration_says(filtering: str, heard: list[int]) -> None:
    """RFC 4787, 5: everybody, who was written to, or only from the very port."""
    guest = network_of(filtering).guest()
    guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
    (socket,) = guest.network.host.sockets
    for source, port in ((SERVER, 99), (SERVER, 98), (STRANGER, 97)):
        socket.hears(b"y", source, port)
    assert [each.udp.source_port for each in guest.hears()] == heard


@pytest.mark.parametrize("source", ["127.0.0.1", HOST, "169.254.169.254"])
def test_nobody_of_the_floor_is_a_welcome_stranger(source: str) -> None:
    """The host's own programs, and the metadata service, do not come in where anybody may."""
    guest = network_of("endpoint").guest()
    guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
    guest.network.host.sockets[0].hears(b"y", source, 99)
    assert (guest.hears(), guest.network.counters["udp.filtered"]) == ([], 1)


def test_a_policy_says_which_strangers_may_come_in() -> None:
    """Who is open to everybody is, under a policy, open to those whom the guest might write to."""
    policy = NetworkPolicy.deny_all().rule(f"allow {SERVER}, {STRANGER} on udp/99")
    guest = network_of("endpoint", policy).guest()
    guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
    (socket,) = guest.network.host.sockets
    for source, port in ((STRANGER, 99), (STRANGER, 98), (SERVER, 98), ("203.0.113.10", 99)):
        socket.hears(b"y", source, port)
    assert [(each.source, each.udp.source_port) for each in guest.hears()] == [(STRANGER, 99)]


def test_the_host_s_loopback_is_judged_by_the_name_that_the_guest_has_for_it() -> None:
    """To the guest it is the gateway: a rule for that lets its programs in, and no other does."""
    for place, heard in ((GATEWAY, 1), ("127.0.0.1", 0)):
        policy = NetworkPolicy.deny_all().rule(f"allow {SERVER}, {place}")
        guest = network_of("endpoint", policy).guest()
        guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
        guest.network.host.sockets[0].hears(b"y", "127.0.0.1", 7)
        assert [each.source for each in guest.hears()] == [GATEWAY] * heard


# -- hairpinning


def test_a_guest_reaches_another_at_its_mapping() -> None:
    """RFC 4787, REQ-9: where the world sees the other, and as the world sees the sender."""
    network = network_of("address-port")
    one, two = network.guest(), network.guest(OTHER_MAC, OTHER)
    one.sends(one.datagram(1111, SERVER, 99, b"here I am"))
    two.sends(two.datagram(2222, SERVER, 99, b"me, too"))
    first, second = network.host.sockets
    for _ in range(2):
        one.sends(one.datagram(1111, HOST, second.port, b"hello"))
        two.sends(two.datagram(2222, HOST, first.port, b"hello yourself"))
    assert first.sent[1:] == [(b"hello", HOST, second.port)] * 2
    assert second.sent[1:] == [(b"hello yourself", HOST, first.port)] * 2
    # The host's kernel brings each to the other's socket.
    second.hears(b"hello", HOST, first.port)
    heard = two.hears_one()
    assert (heard.source, heard.udp.source_port) == (HOST, first.port)


def test_where_everybody_may_write_a_guest_may() -> None:
    """Another guest's mapping comes from the host's own address, and is none of its services."""
    network = network_of("endpoint")
    one, two = network.guest(), network.guest(OTHER_MAC, OTHER)
    one.sends(one.datagram(1111, SERVER, 99, b"here I am"))
    two.sends(two.datagram(2222, SERVER, 99, b"me, too"))
    first, second = network.host.sockets
    second.hears(b"hello", HOST, first.port)
    assert two.hears_one().udp.payload == b"hello"
    second.hears(b"from a service of the host", HOST, first.port + 7)
    assert two.hears() == []


def test_a_policy_ends_what_was_never_judged() -> None:
    """Whoever was reached at the host without one may not answer under it."""
    network = network_of()
    one, two = network.guest(), network.guest(OTHER_MAC, OTHER)
    two.sends(two.datagram(2222, SERVER, 99, b"here I am"))
    port = network.host.sockets[0].port
    one.sends(one.datagram(1111, HOST, port, b"hello"))
    network.router.admission.replace(PolicySettings(policy=NetworkPolicy.deny_all()))
    network.router.on_policy(guarded=False, now=network.now)
    network.host.sockets[1].hears(b"still in", HOST, port)
    assert one.hears() == []


def test_other_ports_of_the_host_stay_closed() -> None:
    """A port that was a mapping's a moment ago may be the host's own by now."""
    network = network_of()
    one, two = network.guest(), network.guest(OTHER_MAC, OTHER)
    two.sends(two.datagram(2222, SERVER, 53, b"soon over"))
    port = network.host.sockets[0].port
    one.sends(one.datagram(1111, HOST, port, b"hello"))
    one.sends(one.datagram(1111, HOST, port + 7, b"hello"))
    assert (one.hears_one().icmp.code, network.counters["policy.denied"]) == (13, 1)
    one.sends(one.datagram(1111, "169.254.169.254", port, b"hello"))
    assert one.hears_one().icmp.code == 13
    network.advance(DNS_IDLE_TIME)
    one.sends(one.datagram(1111, HOST, port, b"hello again"))
    assert one.hears_one().icmp.code == 13
    assert [sent for _, *sent in network.host.sockets[1].sent] == [[HOST, port]]


def test_under_a_policy_its_rules_say_who_reaches_whom_at_the_host() -> None:
    """No mapping opens what the policy keeps closed."""
    policy = NetworkPolicy.deny_all().rule(f"allow {SERVER}")
    for each, code in ((policy, 13), (policy.rule(f"allow {HOST}"), None)):
        network = network_of(policy=each)
        one, two = network.guest(), network.guest(OTHER_MAC, OTHER)
        two.sends(two.datagram(2222, SERVER, 99, b"here I am"))
        one.sends(one.datagram(1111, HOST, network.host.sockets[0].port, b"hello"))
        assert [heard.icmp.code for heard in one.hears()] == ([] if code is None else [code])


# -- the host's loopback


@pytest.fixture
def loopback() -> ScriptedGuest:
    return ScriptedNetwork(mtu=1500, host_loopback=True).guest()


def test_the_gateway_stands_for_the_host_s_loopback_if_asked(loopback: ScriptedGuest) -> None:
    """A datagram to the gateway reaches 127.0.0.1; the answer comes from the gateway."""
    loopback.sends(loopback.datagram(1234, GATEWAY, 99, b"question"))
    (socket,) = loopback.network.host.sockets
    assert socket.sent == [(b"question", "127.0.0.1", 99)]
    socket.hears(b"answer", "127.0.0.1", 99)
    answer = loopback.hears_one()
    assert (answer.source, answer.udp.payload) == (GATEWAY, b"answer")
    # The second goes the fast way, and to the same place.
    loopback.sends(loopback.datagram(1234, GATEWAY, 100, b"again"))
    assert socket.sent[1:] == [(b"again", "127.0.0.1", 100)]


def test_passt_15c_a_closed_port_of_the_loopback_is_a_closed_port_of_the_gateway(
    loopback: ScriptedGuest,
) -> None:
    """The guest must not see 127.0.0.1, neither as offender nor in the quotation."""
    loopback.sends(loopback.datagram(1234, GATEWAY, 99, b"?"))
    (socket,) = loopback.network.host.sockets
    here = packed("127.0.0.1")
    socket.fails(IcmpError(3, 3, offender=here), "127.0.0.1", 99, b"?")
    error = loopback.hears_one()
    assert error.source == GATEWAY
    assert here not in error.icmp.payload
    assert packed(GATEWAY) in error.icmp.payload


def test_the_name_server_does_not_stand_for_the_loopback(loopback: ScriptedGuest) -> None:
    """Only the gateway's address does; the name server has its own port and no other."""
    loopback.sends(loopback.datagram(1234, NAMESERVER, 99, b"?"))
    assert loopback.network.host.sockets == []
    assert loopback.hears_one().icmp.code == 3


def test_a_port_that_talks_to_the_loopback_cannot_name_it(loopback: ScriptedGuest) -> None:
    """127.0.0.1 is a martian to every frame, also to one from a port that may reach it."""
    loopback.sends(loopback.datagram(1234, GATEWAY, 99, b"?"))
    loopback.sends(loopback.datagram(1234, "127.0.0.1", 99, b"!"))
    assert loopback.network.counters["ipv4.martian_destination"] == 1
    assert len(loopback.network.host.sockets[0].sent) == 1


@pytest.mark.parametrize("port", [53, 67])
def test_the_gateway_s_own_services_stay_its_own(loopback: ScriptedGuest, port: int) -> None:
    """DNS and DHCP at the gateway are ours, also for a port that talks to the loopback."""
    loopback.sends(loopback.datagram(1234, GATEWAY, 99, b"?"))
    loopback.sends(loopback.datagram(1234, GATEWAY, port, b"no message"))
    assert len(loopback.network.host.sockets[0].sent) == 1


def test_the_guest_is_known_by_its_mac_address(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """An answer is a frame to the guest, not to everybody."""
    guest.sends(guest.datagram(1234, SERVER, 99, b"x"))
    network.host.sockets[0].hears(b"y", SERVER, 99)
    assert guest.hears_one().destination_mac == GUEST_MAC
