"""Redirects through the router: guests are led elsewhere, and see what they have asked for."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import dns.message
import dns.rrset
import pytest

from qemu_usernat.admission import Decision
from qemu_usernat.config.network import Network
from qemu_usernat.config.redirects import read_redirects
from qemu_usernat.gateway.leases import HeldLease
from qemu_usernat.observe import record_of
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.addresses import format_address
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.wire.icmp import (
    ADMINISTRATIVELY_PROHIBITED,
    DESTINATION_UNREACHABLE,
    PORT_UNREACHABLE,
    IcmpError,
)
from qemu_usernat.wire.packets import ACK, PSH, RST, SYN
from tests.scripted_guest import (
    GATEWAY,
    GATEWAY_MAC,
    NAMESERVER,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
    packed,
)

MIRROR = "192.0.2.80"
RESOLVER = (packed("192.0.2.53"), 53)


def network_of(*tables: dict[str, Any], policy: NetworkPolicy | None = None) -> ScriptedNetwork:
    network = ScriptedNetwork(
        mtu=1500, dns=[RESOLVER], redirects=read_redirects(list(tables)), host_loopback=False
    )
    if policy is not None:
        network.admission.replace(PolicySettings(policy=policy))
        network.router.on_policy(guarded=True, now=network.now)
    return network


def asks(guest: ScriptedGuest, name: str, *addresses: str, ttl: int = 300) -> None:
    """The guest looks the name up, and is told these addresses."""
    query = dns.message.make_query(name, "A")
    guest.sends(guest.datagram(5353, NAMESERVER, 53, query.to_wire()))
    network = guest.network
    upstream, _, message, token = network.resolvers.asked[-1]
    assert upstream == RESOLVER
    answer = dns.message.make_response(dns.message.from_wire(message))
    answer.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", "A", *addresses))
    network.router.dns.on_answer(token, answer.to_wire(), network.now)
    network.end_turn()
    told = dns.message.from_wire(guest.hears_one().udp.payload)
    assert {item.address for item in told.answer[0]} == set(addresses)


def dialled(guest: ScriptedGuest, destination: str, port: int, sport: int = 40000) -> str:
    """Where a connection of the guest is led."""
    guest.sends(guest.segment(sport, destination, port, SYN, 1000))
    server = guest.network.host.servers[-1]
    return f"{format_address(server.address)}:{server.port}" if server.port else str(server.address)


def test_an_address_is_somewhere_else() -> None:
    """The guest talks to the server that it has asked for; another one answers."""
    guest = network_of({"from": SERVER, "on": "tcp/80", "to": f"{MIRROR}:8080"}).guest()
    connection = guest.connects()
    assert (connection.server.address, connection.server.port) == (packed(MIRROR), 8080)
    guest.sends(connection.segment(ACK | PSH, b"GET /"))
    assert connection.server.received == b"GET /"
    guest.hears()
    connection.server.says(b"mirrored")
    assert connection.reads() == b"mirrored"


@pytest.mark.parametrize(
    ("destination", "port", "led"),
    [
        (SERVER, 80, f"{MIRROR}:80"),
        (SERVER, 81, f"{SERVER}:81"),
        ("198.51.100.8", 80, "198.51.100.8:80"),
        ("203.0.113.9", 22, f"{MIRROR}:22"),
        ("203.0.113.200", 22, "203.0.113.200:22"),
    ],
)
def test_only_what_is_meant_is_led_elsewhere(destination: str, port: int, led: str) -> None:
    """By address, range and port; a target without a port keeps the guest's."""
    guest = network_of(
        {"from": SERVER, "on": "tcp/80", "to": MIRROR},
        {"from": "203.0.113.1-203.0.113.99", "to": MIRROR},
    ).guest()
    assert dialled(guest, destination, port) == led


def test_the_first_redirect_holds() -> None:
    """As with rules."""
    guest = network_of(
        {"from": SERVER, "on": "tcp/80", "to": f"{MIRROR}:1"}, {"from": "any", "to": f"{MIRROR}:2"}
    ).guest()
    assert dialled(guest, SERVER, 80) == f"{MIRROR}:1"
    assert dialled(guest, SERVER, 81, 40001) == f"{MIRROR}:2"


def test_a_unix_socket_takes_connections_and_no_datagrams() -> None:
    """Datagrams to the same place go where they were sent."""
    guest = network_of({"from": SERVER, "to": "unix:/run/proxy"}).guest()
    assert dialled(guest, SERVER, 80) == "b'/run/proxy'"
    guest.sends(guest.datagram(1234, SERVER, 80, b"x"))
    assert guest.network.host.sockets[-1].sent == [(b"x", SERVER, 80)]


# -- names


def test_a_name_is_somewhere_else() -> None:
    """What the guest was told for it leads there; the same address by another name does not."""
    guest = network_of({"from": "*.pypi.example", "to": f"{MIRROR}:3141"}).guest()
    assert dialled(guest, SERVER, 443) == f"{SERVER}:443"
    asks(guest, "www.pypi.example", SERVER, "198.51.100.8")
    assert dialled(guest, SERVER, 443, 40001) == f"{MIRROR}:3141"
    assert dialled(guest, "198.51.100.8", 80, 40002) == f"{MIRROR}:3141"
    asks(guest, "other.example", SERVER)
    assert dialled(guest, SERVER, 443, 40003) == f"{SERVER}:443", "the name asked for last counts"
    asks(guest, "www.pypi.example", SERVER)
    assert dialled(guest, SERVER, 443, 40004) == f"{MIRROR}:3141"


def test_the_apex_of_a_wildcard_is_not_meant() -> None:
    """As in a policy."""
    guest = network_of({"from": "*.pypi.example", "to": MIRROR}).guest()
    asks(guest, "pypi.example", SERVER)
    assert dialled(guest, SERVER, 443) == f"{SERVER}:443"


def test_what_one_guest_was_told_leads_no_other() -> None:
    """Names are each guest's own."""
    network = network_of({"from": "pypi.example", "to": MIRROR})
    guest, other = network.guest(), network.guest(b"RT\0\x12\x34\x99", "10.0.2.99", "other")
    asks(guest, "pypi.example", SERVER)
    assert dialled(other, SERVER, 443) == f"{SERVER}:443"


def test_a_name_leads_for_as_long_as_its_answer_is_good() -> None:
    """And for the grace that pins have."""
    guest = network_of({"from": "pypi.example", "to": MIRROR}).guest()
    asks(guest, "pypi.example", SERVER, ttl=60)
    guest.network.advance(179)
    assert dialled(guest, SERVER, 443) == f"{MIRROR}:443"
    guest.network.advance(300)
    assert dialled(guest, SERVER, 443, 40001) == f"{SERVER}:443"


# -- datagrams


def test_datagrams_go_elsewhere_and_come_back_from_where_they_were_sent() -> None:
    """The first by the slow way, the next by the fast one; both alike."""
    guest = network_of({"from": SERVER, "on": "udp/123", "to": f"{MIRROR}:1123"}).guest()
    for number in range(3):
        guest.sends(guest.datagram(1234, SERVER, 123, b"%d" % number))
    (socket,) = guest.network.host.sockets
    assert socket.sent == [(b"%d" % number, MIRROR, 1123) for number in range(3)]
    socket.hears(b"time", MIRROR, 1123)
    heard = guest.hears_one()
    assert (heard.source, heard.udp.source_port, heard.udp.payload) == (SERVER, 123, b"time")


def test_a_redirect_lets_nobody_write_to_its_target_itself() -> None:
    """The guest that may ask one address may not ask the other, though that is where it was led."""
    policy = NetworkPolicy.deny_all().allow_ip(SERVER, on="udp/123")
    guest = network_of({"from": SERVER, "to": MIRROR}, policy=policy).guest()
    for _ in range(2):
        guest.sends(guest.datagram(1234, SERVER, 123, b"may"))
        guest.sends(guest.datagram(1234, MIRROR, 123, b"may not"))
        refusal = guest.hears_one().icmp
        assert (refusal.type, refusal.code) == (
            DESTINATION_UNREACHABLE,
            ADMINISTRATIVELY_PROHIBITED,
        )
    (socket,) = guest.network.host.sockets
    assert socket.sent == [(b"may", MIRROR, 123)] * 2


def test_two_places_led_to_one_answer_as_the_one_asked_last() -> None:
    """A resolver that is asked under one address and then under another."""
    guest = network_of({"from": ["198.51.100.1", "198.51.100.2"], "to": MIRROR}).guest()
    guest.sends(guest.datagram(1234, "198.51.100.1", 99, b"a"))
    guest.sends(guest.datagram(1234, "198.51.100.2", 99, b"b"))
    (socket,) = guest.network.host.sockets
    socket.hears(b"x", MIRROR, 99)
    assert guest.hears_one().source == "198.51.100.2"
    guest.sends(guest.datagram(1234, "198.51.100.1", 99, b"c"))
    socket.hears(b"y", MIRROR, 99)
    assert guest.hears_one().source == "198.51.100.1"


def test_places_that_are_led_elsewhere_count_as_those_that_are_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a guest asks for, what is kept of it is bounded, and given back."""
    monkeypatch.setattr("qemu_usernat.nat.udp.PEERS_PER_GUEST", 50)
    guest = network_of({"from": "any", "to": MIRROR}).guest()
    for number in range(200):
        destination = f"198.51.100.{number % 250 + 1}"
        guest.sends(guest.datagram(1000 + number % 4, destination, 99, b"x"))
    mappings = list(guest.network.router.datagrams.mappings.values())
    kept = sum(len(each._redirected) + len(each._peers) for each in mappings)
    assert kept == mappings[0].tally.peers <= 50 + len(mappings)
    assert all(len(each._asked_of) <= len(each._redirected) for each in mappings)
    guest.sends(guest.datagram(1000, SERVER, 99, b"x"))
    socket = guest.network.host.sockets[0]
    socket.hears(b"y", MIRROR, 99)
    assert guest.hears()[-1].source == SERVER
    tally = mappings[0].tally
    guest.network.advance(600)
    assert tally.peers == 0
    guest.network.assert_nothing_left()


def test_an_error_comes_from_where_the_datagram_was_sent() -> None:
    """A closed port of the target is one of what the guest has asked for."""
    guest = network_of({"from": SERVER, "to": f"{MIRROR}:9"}).guest()
    guest.sends(guest.datagram(1234, SERVER, 123, b"x"))
    (socket,) = guest.network.host.sockets
    error = IcmpError(DESTINATION_UNREACHABLE, PORT_UNREACHABLE, offender=packed(MIRROR))
    socket.fails(error, MIRROR, 9, b"x")
    heard = guest.hears_one()
    assert (heard.source, heard.icmp.code) == (SERVER, PORT_UNREACHABLE)
    assert packed(SERVER) in heard.icmp.payload
    assert packed(MIRROR) not in heard.icmp.payload


def test_a_new_policy_ends_what_is_led_elsewhere() -> None:
    """What was asked for counts; and what it still allows notices nothing."""
    allowed = NetworkPolicy.deny_all().allow_ip(SERVER)
    guest = network_of({"from": SERVER, "to": MIRROR}).guest()
    network = guest.network
    guest.sends(guest.datagram(1234, SERVER, 123, b"x"))
    (socket,) = network.host.sockets
    for policy, heard in ((allowed, 1), (NetworkPolicy.deny_all().allow_ip(MIRROR), 0)):
        network.admission.replace(PolicySettings(policy=policy))
        network.router.on_policy(guarded=True, now=network.now)
        socket.hears(b"y", MIRROR, 123)
        assert len(guest.hears()) == heard
    guest.sends(guest.datagram(1234, SERVER, 123, b"x"))
    assert guest.hears_one().icmp.code == ADMINISTRATIVELY_PROHIBITED


# -- addresses where nobody is


def test_an_address_of_the_guests_own_network_may_be_led_elsewhere() -> None:
    """As libslirp's guestfwd: the gateway answers for it, and no guest gets it."""
    guest = network_of({"from": "10.0.2.100", "on": "tcp/80", "to": "unix:/run/a"}).guest()
    guest.sends(guest.asks_who_has("10.0.2.100"))
    answer = guest.hears_one().arp
    assert (answer.sender_mac, answer.sender_address) == (GATEWAY_MAC, packed("10.0.2.100"))
    assert dialled(guest, "10.0.2.100", 80) == "b'/run/a'"
    guest.sends(guest.segment(40001, "10.0.2.100", 81, SYN, 1000))
    assert guest.hears_one().tcp.flags == RST | ACK
    guest.sends(guest.datagram(1234, "10.0.2.100", 80, b"x"))
    assert guest.hears_one().icmp.code == PORT_UNREACHABLE
    guest.sends(guest.ping("10.0.2.100"))
    assert guest.hears_one().source == "10.0.2.100"
    settings = guest.network.router.dhcp.settings
    assert packed("10.0.2.100") in settings.reserved


def test_a_port_of_the_gateway_and_the_metadata_service_may_be_led_elsewhere() -> None:
    """And nothing else of the floor is open by that."""
    guest = network_of(
        {"from": GATEWAY, "on": "tcp/8080", "to": "unix:/run/a"},
        {"from": "169.254.169.254", "on": "tcp/80", "to": "127.0.0.1:80"},
    ).guest()
    assert dialled(guest, GATEWAY, 8080) == "b'/run/a'"
    assert dialled(guest, "169.254.169.254", 80, 40001) == "127.0.0.1:80"
    for destination, port in ((GATEWAY, 8081), ("169.254.169.254", 81), ("169.254.170.2", 80)):
        guest.sends(guest.segment(40002, destination, port, SYN, 1000))
        assert guest.hears_one().tcp.flags == RST | ACK
    assert len(guest.network.host.servers) == 2


# -- policy and audit


def test_the_policy_judges_what_was_asked_for_and_the_audit_shows_both() -> None:
    """A redirect allows nothing, and a rule about its target means nothing."""
    told: list[Decision] = []
    policy = NetworkPolicy.deny_all().allow_ip(SERVER, on="tcp/80")
    guest = network_of(
        {"from": "any", "on": "tcp/80", "to": f"{MIRROR}:8080"}, policy=policy
    ).guest()
    guest.network.admission.on_decision = lambda decision, now: told.append(decision)
    assert dialled(guest, SERVER, 80) == f"{MIRROR}:8080"
    guest.sends(guest.segment(40001, "198.51.100.8", 80, SYN, 1000))
    assert guest.hears_one().tcp.flags == RST | ACK
    guest.sends(guest.segment(40002, MIRROR, 8080, SYN, 1000))
    assert guest.hears_one().tcp.flags == RST | ACK
    records = [record_of(decision, 0) for decision in told]
    assert [(each.verdict, each.address, each.port, each.redirected) for each in records] == [
        ("allow", SERVER, 80, f"{MIRROR}:8080"),
        ("deny", "198.51.100.8", 80, f"{MIRROR}:8080"),
        ("deny", MIRROR, 8080, None),
    ]


def test_under_a_policy_names_lead_elsewhere_too() -> None:
    """The pin that allows the flow is the one that redirects it."""
    policy = NetworkPolicy.deny_all().rule("allow pypi.example on tcp/22")
    guest = network_of({"from": "pypi.example", "to": "127.0.0.1:2222"}, policy=policy).guest()
    asks(guest, "pypi.example", SERVER)
    assert dialled(guest, SERVER, 22) == "127.0.0.1:2222"


def test_what_a_guest_calls_itself_is_no_name_of_a_policy_that_comes_later() -> None:
    """Where names lead elsewhere it is noted what guests are told; a rule by name means nobody who
    has given itself that name."""
    network = network_of({"from": "unrelated.example", "to": MIRROR})
    guest, other = network.guest(), network.guest(OTHER_MAC, OTHER, "other")
    other.sends(other.asks_who_has(GATEWAY))
    lease = HeldLease(packed(OTHER), OTHER_MAC, "db", b"\1" + OTHER_MAC, network.now + 3600)
    network.router.dhcp.restore([lease])
    guest.frames()
    query = dns.message.make_query("db.internal", "A")
    guest.sends(guest.datagram(5353, NAMESERVER, 53, query.to_wire()))
    assert dns.message.from_wire(guest.hears_one().udp.payload).answer[0][0].address == OTHER
    policy = NetworkPolicy.deny_all().rule("allow db.internal on tcp/80")
    network.admission.replace(PolicySettings(policy=policy))
    network.router.on_policy(guarded=True, now=network.now)
    guest.sends(OTHER_MAC + guest.segment(40000, OTHER, 80, SYN, 1000)[6:])
    assert other.frames()[1:] == []
    assert guest.hears_one().tcp.flags == RST | ACK


@pytest.mark.parametrize(
    ("place", "first", "count"),
    [("10.0.2.101-10.0.2.103", "10.0.2.101", 3), ("10.0.2.112/30", "10.0.2.112", 4)],
)
def test_several_addresses_of_the_guests_network_are_led_elsewhere(
    place: str, first: str, count: int
) -> None:
    """Each is answered for by the gateway, and no guest gets it."""
    network = network_of({"from": place, "to": f"{MIRROR}:80"})
    guest = network.guest()
    for number in range(count):
        address = str(IPv4Address(first) + number)
        guest.sends(guest.asks_who_has(address))
        assert guest.hears_one().arp.sender_mac == GATEWAY_MAC
        assert dialled(guest, address, 80, 41000 + number) == f"{MIRROR}:80"
    guest.sends(guest.asks_who_has(str(IPv4Address(first) + count)))
    assert guest.hears() == []


@pytest.mark.parametrize("place", ["10.0.2.0/24", "10.0.0.20-10.0.2.1"])
def test_not_too_many_of_them(place: str) -> None:
    """A mistake that would leave guests without an address is told."""
    subnet = IPv4Network("10.0.0.0/22" if "-" in place else "10.0.2.0/24")
    with pytest.raises(UserError, match="allowed: inside"):
        Network(subnet=subnet, redirects=read_redirects([{"from": place, "to": MIRROR}]))
