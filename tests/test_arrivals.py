"""Clients of published ports, as guests of a script meet them: who is called, as whom, how long."""

import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from qemu_usernat.admission import Guest
from qemu_usernat.arrivals import GUEST_WAIT, Door
from qemu_usernat.config.publish import Publication, parse_publication
from qemu_usernat.config.redirects import read_redirects
from qemu_usernat.config.reservations import Reservation
from qemu_usernat.nat.tcp.flow import CONNECT_TIMEOUT, TcpFlow
from qemu_usernat.nat.tcp.guest_half import TIME_WAIT
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.whereabouts import ASK_INTERVAL, RESIDENT_TIME, Whereabouts
from qemu_usernat.wire.packets import ACK, ARP_REQUEST, FIN, PSH, RST, SYN
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    ScriptedGuest,
    ScriptedNetwork,
    ScriptedServer,
    packed,
)

CLIENT = "198.51.100.9"
PORT = 51000
MSS = b"\2\4\5\xb4"


class ScriptedCaller(ScriptedServer):
    """A client of a published port: what it got to know, and what it does."""

    client: tuple[bytes, int] | None

    def __init__(self, network: ScriptedNetwork, client: tuple[bytes, int] | None) -> None:
        super().__init__(None, b"", 0, network, 0)  # type: ignore[arg-type] # until it begins
        self.client = client

    def begin(self, flow: TcpFlow) -> None:
        self.flow = flow


class Published:
    """A network with one published port, and whoever comes there."""

    def __init__(self, text: str = "8080:80", **settings: Any) -> None:
        self.network = ScriptedNetwork(**settings)
        self.door = self.at(text)

    def at(self, text: str) -> Door:
        publication = parse_publication(text)
        return Door(publication, publication.guest_port)

    def client(
        self, address: str = CLIENT, port: int = PORT, door: Door | None = None
    ) -> ScriptedCaller:
        """Connects."""
        caller = ScriptedCaller(self.network, (packed(address), port))
        return self.comes(caller, door)

    def comes(self, caller: ScriptedCaller, door: Door | None = None) -> ScriptedCaller:
        arrivals = self.network.router.arrivals
        arrivals.on_caller(caller, door or self.door, self.network.now)
        self.network.end_turn()
        return caller

    def guest(
        self, mac: bytes = GUEST_MAC, address: str = GUEST, link: str = "guest"
    ) -> "Answering":
        """One that has been heard."""
        guest = Answering(self.network.guest(mac, address, link))
        guest.guest.sends(guest.guest.asks_who_has(GATEWAY))
        guest.guest.hears_one()
        return guest

    def leaves(self, guest: "Answering") -> None:
        """Its link is gone."""
        router = self.network.router
        router.switch.detach(guest.guest.port)
        router.on_link_down(guest.guest.port, self.network.now)


class Answering:
    """A guest with a server, which keeps one connection by hand; its first number is 7000."""

    def __init__(self, guest: ScriptedGuest) -> None:
        self.guest = guest
        self.client = ""
        self.at = self.port = 0
        self.sent, self.received = 7001, 0

    def is_called(self) -> None:
        """Hears a SYN, and nothing else."""
        (syn,) = (heard for heard in self.guest.hears() if heard.packet is not None)
        assert syn.tcp.flags == SYN
        assert syn.destination == self.guest.address
        self.client, self.at, self.port = syn.source, syn.tcp.source_port, syn.tcp.destination_port
        self.received = syn.tcp.sequence + 1

    def says(self, flags: int, payload: bytes = b"") -> None:
        self.guest.sends(
            self.guest.segment(
                self.port, self.client, self.at, flags, self.sent, self.received, 64000, payload
            )
        )
        self.sent += len(payload) + (flags & FIN)

    def accepts(self) -> None:
        self.guest.sends(
            self.guest.segment(
                self.port, self.client, self.at, SYN | ACK, 7000, self.received, options=MSS
            )
        )
        assert self.guest.hears_one().tcp.flags == ACK

    def reads(self) -> bytes:
        """What came, acknowledged; FIN as a full stop."""
        octets = b""
        for heard in self.guest.hears():
            segment = heard.tcp
            assert segment.sequence in (self.received, self.received - 1)
            octets += segment.payload + b"." * (segment.flags & FIN)
            self.received += len(segment.payload) + (segment.flags & FIN)
        self.says(ACK)
        return octets


def test_a_connection_from_end_to_end() -> None:
    """The guest is called as by its client, both speak, both end; nobody is reset."""
    here = Published()
    guest = here.guest()
    client = here.client()
    assert client.says(b"early") == 0
    guest.is_called()
    assert (guest.client, guest.at, guest.port) == (CLIENT, PORT, 80)
    guest.accepts()
    assert client.says(b"question") == 8
    assert guest.reads() == b"question"
    guest.says(PSH | ACK, b"answer")
    assert client.received == b"answer"
    guest.says(FIN | ACK)
    assert client.shut
    assert client.says(b" more") == 5
    client.ends()
    assert guest.reads() == b" more."
    here.network.advance(1)
    assert client.closed
    assert not client.was_reset
    here.network.assert_nothing_left()


def test_the_guest_may_speak_first_and_the_client_end_first() -> None:
    """As a mail server does; the half that is open goes on."""
    here = Published()
    guest = here.guest()
    client = here.client()
    guest.is_called()
    guest.accepts()
    guest.says(PSH | ACK, b"220 hello")
    client.ends()
    assert guest.reads() == b"."
    guest.says(PSH | ACK, b" and more")
    guest.says(FIN | ACK)
    assert client.received == b"220 hello and more"
    assert client.shut
    here.network.advance(TIME_WAIT + 1)
    here.network.assert_nothing_left()


def test_both_may_end_at_once() -> None:
    """RFC 9293, 3.6, figure 13: the FINs cross."""
    here = Published()
    guest = here.guest()
    client = here.client()
    guest.is_called()
    guest.accepts()
    client.ends()
    guest.says(FIN | ACK)
    assert guest.reads() == b"."
    here.network.advance(TIME_WAIT + 1)
    assert client.shut
    assert not client.was_reset
    here.network.assert_nothing_left()


def test_a_closed_port_is_a_reset_for_the_client() -> None:
    """The guest's word, at once."""
    here = Published()
    guest = here.guest()
    client = here.client()
    guest.is_called()
    guest.says(RST | ACK)
    assert client.was_reset
    here.network.assert_nothing_left()


@pytest.mark.parametrize("opened", [True, False])
def test_a_reset_crosses_both_ways(opened: bool) -> None:
    """The client's also while the guest is being called."""
    here = Published()
    guest = here.guest()
    client = here.client()
    guest.is_called()
    if opened:
        guest.accepts()
    client.fails()
    assert guest.guest.hears_one().tcp.flags & RST
    assert client.closed
    here.network.assert_nothing_left()


def test_a_guest_that_is_not_there_is_waited_for_and_then_given_up() -> None:
    """Ten seconds; it is asked for each second by ARP, and nothing is read of the client."""
    here = Published("8080:10.0.2.15:80")
    listening = here.network.guest()  # a link, with a guest that does not say a word
    client = here.client()
    for _ in range(int(GUEST_WAIT / ASK_INTERVAL)):
        (question,) = (heard.arp for heard in listening.hears())
        assert (question.operation, question.target_address) == (ARP_REQUEST, packed(GUEST))
        assert (question.sender_address, question.sender_mac) == (
            packed(GATEWAY),
            here.network.settings.gateway_mac,
        )
        assert not client.was_reset
        assert not client.reading
        here.network.advance(ASK_INTERVAL)
    assert client.was_reset
    assert here.network.counters["publish.no_guest"] == 1
    here.network.assert_nothing_left()


def comes_by_arp(guest: ScriptedGuest) -> None:
    guest.sends(guest.answers_who_has())


def speaks(guest: ScriptedGuest) -> None:
    guest.sends(guest.asks_who_has(GATEWAY))


@pytest.mark.parametrize("comes", [comes_by_arp, speaks])
@pytest.mark.parametrize("text", ["8080:80", "8080:10.0.2.15:80"])
def test_a_guest_that_comes_meanwhile_is_called_in_that_very_turn(
    comes: Callable[[ScriptedGuest], None], text: str
) -> None:
    """It answers our question, or says something by itself."""
    here = Published(text)
    client = here.client()
    here.network.advance(5)
    guest = here.network.guest()
    comes(guest)
    syns = [heard for heard in guest.hears() if heard.packet is not None]
    assert [heard.tcp.flags for heard in syns] == [SYN]
    assert not client.was_reset
    here.network.advance(GUEST_WAIT)
    assert not client.was_reset


def test_a_whole_network_is_asked_where_nobody_was_named() -> None:
    """A guest with an address of its own need not have said anything to anybody."""
    here = Published()
    guest = here.network.guest(address="10.0.2.77")
    here.client()
    asked = {heard.arp.target_address for heard in guest.hears()}
    assert packed("10.0.2.77") in asked
    assert len(asked) == 252  # a /24 without the gateway and the name server
    guest.sends(guest.answers_who_has())
    assert guest.hears_one().tcp.flags == SYN


def test_an_address_of_a_link_that_is_gone_is_not_there() -> None:
    """Whoever has it now says so itself, from the link that it has now."""
    here = Published()
    guest = here.guest()
    router = here.network.router
    router.switch.detach(guest.guest.port)
    router.on_link_down(guest.guest.port, here.network.now)
    client = here.client()
    again = here.network.guest()
    assert again.hears() == []
    again.sends(again.asks_who_has("10.0.2.99"))
    assert [heard.tcp.flags for heard in again.hears()] == [SYN]
    assert not client.was_reset


def test_of_several_guests_the_one_whose_link_came_first_is_meant() -> None:
    """Unless one is named by its address."""
    here = Published()
    first, second = here.guest(), here.guest(OTHER_MAC, OTHER, "other")
    here.client()
    first.is_called()
    here.client(door=here.at(f"8081:{OTHER}:81"))
    second.is_called()


def test_no_neighbour_takes_the_place_of_a_guest_that_reboots() -> None:
    """Clients wait for it, and find it there again, though its link is now the younger one; also
    where nobody had called before."""
    here = Published()
    first, second = here.guest(), here.guest(OTHER_MAC, OTHER, "other")
    here.leaves(first)
    client = here.client()
    assert all(heard.packet is None for heard in second.guest.hears())
    again = Answering(here.network.guest())
    again.guest.sends(again.guest.asks_who_has(GATEWAY))
    again.is_called()
    assert not client.was_reset
    here.client(port=PORT + 1)
    again.is_called()
    assert all(heard.packet is None for heard in second.guest.hears())


def test_a_guest_that_stays_away_is_followed_by_another() -> None:
    """After ten minutes; and then that one keeps the place."""
    here = Published()
    first, second = here.guest(), here.guest(OTHER_MAC, OTHER, "other")
    here.network.advance(RESIDENT_TIME)  # it may be there for as long as it likes
    here.leaves(first)
    here.network.advance(RESIDENT_TIME - GUEST_WAIT - 1)
    early = here.client()
    here.network.advance(GUEST_WAIT)
    assert early.was_reset
    second.guest.hears()
    here.client(port=PORT + 1)
    here.network.advance(ASK_INTERVAL)
    second.is_called()
    again = here.guest()
    here.client(port=PORT + 2)
    second.is_called()
    assert again.guest.hears() == []


def test_a_guest_that_was_alone_is_followed_at_once() -> None:
    """Another machine in its place is what somebody has begun there."""
    here = Published()
    here.leaves(here.guest())
    second = here.guest(OTHER_MAC, OTHER)
    here.client()
    second.is_called()


def test_a_guest_that_has_changed_its_address_is_called_at_the_new_one() -> None:
    """At once, and for good; the old one was never taken back by anybody."""
    here = Published()
    guest = here.guest(address="10.0.2.50")
    for address in ("10.0.2.60", "10.0.2.50", "10.0.2.70"):
        here.network.advance(3600)
        guest.guest.address = address
        guest.guest.sends(guest.guest.asks_who_has(GATEWAY))
        guest.guest.hears()
        here.client()
        guest.is_called()


def leases(guest: ScriptedGuest, identifier: bytes) -> str:
    """An address, as a client of that identifier (RFC 2132, 9.14); it speaks from there."""

    def asks(kind: int, *options: bytes) -> bytes:
        head = struct.pack(">BBBBIHH16s", 1, 1, 6, 0, 7, 0, 0x8000, bytes(16))
        own = b"\x3d" + bytes([len(identifier)]) + identifier
        message = head + guest.mac.ljust(208, b"\0") + b"\x63\x82\x53\x63\x35\x01"
        message += bytes([kind]) + own + b"".join(options) + b"\xff"
        everybody = {"source": "0.0.0.0", "destination_mac": b"\xff" * 6}
        guest.sends(guest.datagram(68, "255.255.255.255", 67, message, **everybody))
        return guest.hears_one().udp.payload[16:20]

    offered = asks(1)
    asks(3, b"\x32\x04", offered, b"\x36\x04", packed(GATEWAY))
    guest.address = str(IPv4Address(offered))
    guest.sends(guest.asks_who_has(GATEWAY))
    guest.hears()
    return guest.address


def test_of_two_leases_of_one_machine_the_later_is_meant() -> None:
    """An initramfs asks by its MAC address, the system after it by an identifier of its own; one
    that was not leased does not come before."""
    here = Published()
    guest = Answering(here.network.guest())
    first = leases(guest.guest, b"\1" + GUEST_MAC)
    here.network.advance(5)
    assert leases(guest.guest, b"\xffduid") != first
    here.client()
    guest.is_called()
    guest.guest.sends(guest.guest.ping(GATEWAY, source="10.0.2.200"))
    guest.guest.hears()
    here.client(port=PORT + 1)
    guest.is_called()


def test_machines_behind_a_bridge_do_not_take_its_clients() -> None:
    """However much later they speak: who was there first is meant."""
    here = Published()
    guest = here.guest()
    here.network.advance(60)
    nested = guest.guest.asks_who_has(GATEWAY).replace(GUEST_MAC, OTHER_MAC)
    guest.guest.sends(nested.replace(packed(GUEST), packed(OTHER)))
    guest.guest.hears()
    here.client()
    guest.is_called()


def test_a_thousand_clients_look_for_a_guest_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes, and who waits as somebody else shows: else a guest with many neighbours, or one
    that changes its MAC address with each frame, would keep all the others waiting."""
    looked = 0
    look = Whereabouts._find

    def counted(self: Whereabouts, publication: Publication, now: float) -> Guest | None:
        nonlocal looked
        looked += 1
        return look(self, publication, now)

    monkeypatch.setattr(Whereabouts, "_find", counted)
    here = Published("8080:10.0.2.99:80")
    doors = [here.at(f"{9000 + number}:10.0.2.99:80") for number in range(5)]
    arrivals = here.network.router.arrivals
    for number in range(1000):
        caller = ScriptedCaller(here.network, (packed(CLIENT), 2000 + number))
        arrivals.on_caller(caller, doors[number % 5], here.network.now)
    here.network.end_turn()
    assert looked == 1
    guest = here.guest().guest
    assert looked == 2
    ping = guest.ping(GATEWAY)
    guest.sends(ping, ping.replace(GUEST_MAC, OTHER_MAC))
    assert looked == 3
    assert len(arrivals.waiting) == 1000


def test_a_guest_may_be_named() -> None:
    """By the name that was reserved for it, without a lease, and by one that there is not."""
    reservation = Reservation(OTHER_MAC, IPv4Address(OTHER), "web")
    here = Published("8080:web:80", reservations=(reservation,))
    here.guest()
    web = here.network.guest(OTHER_MAC, OTHER, "other")
    here.client()
    assert [heard.arp.target_address for heard in web.hears()] == [packed(OTHER)]
    web.sends(web.answers_who_has())
    assert web.hears_one().tcp.flags == SYN
    nobody = here.client(door=here.at("8081:nobody:80"))
    here.network.advance(GUEST_WAIT)
    assert nobody.was_reset


def test_a_guest_may_be_named_by_its_link() -> None:
    """Whatever its address is, and wherever another one's came first."""
    here = Published("8080:other:80")
    here.guest()
    other = here.network.guest(OTHER_MAC, OTHER, "other")
    here.client()
    assert packed(OTHER) in {heard.arp.target_address for heard in other.hears()}
    other.sends(other.answers_who_has())
    assert other.hears_one().tcp.flags == SYN


def test_a_guest_that_does_not_answer_is_called_again_and_given_up() -> None:
    """As any server; for a minute, as outward."""
    here = Published()
    guest = here.guest()
    client = here.client()
    here.network.advance(CONNECT_TIMEOUT - 0.001)
    assert not client.was_reset
    assert [heard.tcp.flags for heard in guest.guest.hears()] == [SYN] * 6
    here.network.advance(0.001)
    assert client.was_reset
    assert here.network.counters["publish.no_answer"] == 1
    assert guest.guest.hears_one().tcp.flags & RST
    here.network.assert_nothing_left()


def test_a_connection_that_was_answered_in_time_is_not_given_up() -> None:
    """Nor is it in the way of those that come after it."""
    here = Published()
    guest = here.guest()
    client = here.client()
    guest.is_called()
    guest.accepts()
    here.network.advance(2 * CONNECT_TIMEOUT)
    assert not client.was_reset
    guest.says(PSH | ACK, b"still here")
    assert client.received == b"still here"


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        (CLIENT, CLIENT),
        ("192.168.1.5", "192.168.1.5"),
        ("127.0.0.1", GATEWAY),
        ("127.8.9.10", GATEWAY),
        ("10.0.2.15", GATEWAY),
        ("10.0.2.77", GATEWAY),
        ("10.0.2.255", GATEWAY),
        ("10.0.2.0", GATEWAY),
        (GATEWAY, GATEWAY),
        ("10.0.2.3", GATEWAY),
        ("169.254.1.2", GATEWAY),
        ("0.0.0.0", GATEWAY),
        ("240.0.0.1", GATEWAY),
        ("2001:db8::7", GATEWAY),
        ("::1", GATEWAY),
    ],
)
def test_a_client_is_seen_as_itself_wherever_it_can_be(address: str, seen: str) -> None:
    """What the guest would keep to itself, or look for on its link, is the gateway."""
    here = Published()
    guest = here.guest()
    here.client(address)
    guest.is_called()
    assert (guest.client, guest.at) == (seen, PORT)


@pytest.mark.parametrize("address", [GATEWAY, "10.0.2.3", "10.0.2.100"])
def test_nobody_is_seen_as_the_gateway_at_a_port_of_its_own(address: str) -> None:
    """Nor as the name server, nor as one that stands for a service of the host."""
    here = Published(redirects=read_redirects([{"from": "10.0.2.100", "to": "127.0.0.1"}]))
    guest = here.guest()
    here.client(address, 80)
    guest.is_called()
    assert guest.client == GATEWAY
    assert guest.at >= 1024


def test_a_client_without_an_address_is_the_gateway() -> None:
    """As those of unix sockets; at a port of no service."""
    here = Published()
    guest = here.guest()
    here.comes(ScriptedCaller(here.network, None))
    guest.is_called()
    assert guest.client == GATEWAY
    assert guest.at >= 1024


def test_the_gateway_may_stand_for_everybody() -> None:
    """As the configuration asks; two that have one port get two."""
    here = Published(publish_source="gateway")
    guest = here.guest()
    seen = set()
    for address in (CLIENT, "203.0.113.9"):
        here.client(address)
        guest.is_called()
        seen.add((guest.client, guest.at))
    assert (GATEWAY, PORT) in seen
    assert len(seen) == 2
    assert {client for client, _ in seen} == {GATEWAY}


@pytest.mark.parametrize(
    ("address", "port"), [(CLIENT, 53), ("127.0.0.1", 53), ("127.0.0.1", 67), ("127.0.0.1", 1023)]
)
def test_no_client_is_seen_at_a_port_of_the_gateways_services(address: str, port: int) -> None:
    """Its answers would be questions."""
    here = Published()
    guest = here.guest()
    here.client(address, port)
    guest.is_called()
    assert guest.at >= 1024


def test_a_privileged_port_of_a_client_is_seen() -> None:
    """There are programs that ask for one."""
    here = Published()
    guest = here.guest()
    here.client(CLIENT, 1000)
    guest.is_called()
    assert guest.at == 1000


def test_a_four_tuple_in_use_is_disturbed_by_nobody() -> None:
    """The guest itself has called from port 80 to where the client comes from."""
    here = Published()
    guest = here.guest()
    own = guest.guest.connects(80, CLIENT, PORT)
    here.client()
    guest.is_called()
    assert (guest.client, guest.at) != (CLIENT, PORT)
    assert guest.client == CLIENT
    own.server.says(b"undisturbed")
    assert own.reads() == b"undisturbed"


def test_what_has_just_ended_is_left_in_peace() -> None:
    """A client that comes again from its port while our end is in TIME-WAIT gets another."""
    here = Published()
    guest = here.guest()
    client = here.client()
    guest.is_called()
    guest.accepts()
    client.ends()
    assert guest.reads() == b"."
    guest.says(FIN | ACK)
    guest.guest.hears()
    here.client()
    guest.is_called()
    assert guest.client == CLIENT
    assert guest.at != PORT


def test_what_is_known_of_those_that_are_called_is_bounded() -> None:
    """However long the first of them says nothing: those that were refused are forgotten."""
    here = Published()
    guest = here.guest()
    here.client()
    guest.is_called()
    for number in range(1000):
        client = here.client("198.51.100.10", 2000 + number)
        guest.is_called()
        guest.says(RST | ACK)
        assert client.was_reset
    assert len(here.network.router.arrivals._calls) < 200
    here.network.advance(CONNECT_TIMEOUT)
    here.network.assert_nothing_left()


def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """At one port, and at all; who is refused is reset, and counted."""
    monkeypatch.setattr("qemu_usernat.arrivals.WAITING_PER_PORT", 2)
    monkeypatch.setattr("qemu_usernat.arrivals.WAITING_MAXIMUM", 3)
    here = Published()
    clients = [here.client(port=PORT + number) for number in range(3)]
    assert [client.was_reset for client in clients] == [False, False, True]
    other = here.at("8081:81")
    others = [here.client(port=PORT + number, door=other) for number in range(2)]
    assert [client.was_reset for client in others] == [False, True]
    assert here.network.counters["publish.waiting_full"] == 2
    here.network.advance(GUEST_WAIT)
    assert not here.client().was_reset


def test_flows_have_a_limit_for_clients_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it a client is reset."""
    monkeypatch.setattr("qemu_usernat.nat.holdings.FLOWS_MAXIMUM", 1)
    here = Published()
    here.guest()
    assert not here.client().was_reset
    assert here.client(port=PORT + 1).was_reset
    assert here.network.counters["tcp.flows_full"] == 1


def test_where_no_port_is_free_a_client_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a counter of its own."""
    monkeypatch.setattr("qemu_usernat.nat.faces.PORTS", range(0))
    here = Published()
    here.guest()
    assert not here.client().was_reset
    assert here.client().was_reset
    assert here.network.counters["publish.no_port"] == 1


def test_a_door_that_closes_keeps_who_is_in() -> None:
    """Who still waits is reset; who was let in stays, or is cut with a word to both."""
    for cut in (False, True):
        here = Published()
        waits = here.client()
        arrivals = here.network.router.arrivals
        arrivals.close(here.door)
        assert waits.was_reset
        guest = here.guest()
        client = here.client()
        guest.is_called()
        guest.accepts()
        arrivals.close(here.door, cut)
        here.network.end_turn()
        assert client.was_reset is cut
        if cut:
            assert guest.guest.hears_one().tcp.flags & RST
            here.network.assert_nothing_left()
        else:
            client.says(b"still")
            assert guest.reads() == b"still"


def test_the_end_of_the_network_leaves_nobody_waiting() -> None:
    """Nor a descriptor open."""
    here = Published()
    waits = here.client()
    here.network.router.close()
    assert waits.was_reset


def test_publishing_is_the_operators_word() -> None:
    """A policy that denies everything lets a client come and hear an answer; the guest itself
    can start nothing by it."""
    here = Published()
    here.network.router.admission.replace(PolicySettings(policy=NetworkPolicy.deny_all()))
    here.network.router.on_policy(True, here.network.now)
    guest = here.guest()
    client = here.client()
    guest.is_called()
    guest.accepts()
    client.says(b"question")
    assert guest.reads() == b"question"
    guest.says(PSH | ACK, b"answer")
    assert client.received == b"answer"
    here.network.router.on_policy(True, here.network.now)
    assert not client.was_reset
    guest.guest.sends(guest.guest.segment(80, CLIENT, PORT + 1, SYN, 1))
    assert guest.guest.hears_one().tcp.flags & RST
    assert here.network.host.servers == []


def test_equal_publications_are_asked_for_once() -> None:
    """However many wait."""
    here = Published("8080:10.0.2.15:80")
    guest = here.network.guest()
    for number in range(5):
        here.client(port=PORT + number)
    assert len(guest.hears()) == 1
    here.network.advance(ASK_INTERVAL)
    assert len(guest.hears()) == 1
    assert here.door.publication == Publication(
        guest_port=80, host_port=8080, guest=IPv4Address(GUEST)
    )


def test_who_runs_the_server_is_told() -> None:
    """Of each client that found no guest, or no answer; whom ports lead to; of several."""
    here = Published()
    arrivals = here.network.router.arrivals
    failed: list[tuple[str, float]] = []
    met: list[str] = []
    arrivals.on_failed = lambda publication, counted, now: failed.append((counted, now))
    arrivals.whereabouts.on_resident = lambda guest: met.append(guest.link)
    arrivals.whereabouts.on_several = lambda: met.append("several")
    begun = here.network.now
    here.client()
    here.network.advance(GUEST_WAIT)
    assert failed == [("publish.no_guest", begun + GUEST_WAIT)]
    here.guest()
    here.client()
    here.guest(OTHER_MAC, OTHER, "other")
    here.network.advance(CONNECT_TIMEOUT)
    assert failed[1:] == [("publish.no_answer", begun + GUEST_WAIT + CONNECT_TIMEOUT)]
    assert met == ["guest", "several"]
