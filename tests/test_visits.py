"""Clients of published UDP ports, as guests of a script meet them."""

from collections.abc import Hashable
from typing import Any

import pytest

from qemu_usernat.config.publish import parse_publication
from qemu_usernat.nat.udp import IDLE_TIME
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.visits import HELD_MAXIMUM, HOLD_TIME, SURE_TIME, UdpDoor
from qemu_usernat.wire.packets import ICMP, UDP, Buffer
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    ScriptedGuest,
    ScriptedNetwork,
    icmp,
    ipv4,
    packed,
    udp,
)

CLIENT = "198.51.100.9"
PORT = 51000


class Published:
    """A network with a published UDP port; an `Outlet`."""

    def __init__(self, text: str = "udp:5353:53", **settings: Any) -> None:
        self.network = ScriptedNetwork(**settings)
        publication = parse_publication(text)
        self.door = UdpDoor(publication, publication.guest_port, self)
        self.sent: list[tuple[bytes, Hashable]] = []

    def send(self, payload: Buffer, client: Hashable) -> None:
        self.sent.append((bytes(payload), client))

    def client_says(self, payload: bytes, address: str = CLIENT, port: int = PORT) -> None:
        visits, now = self.network.router.visits, self.network.now
        visits.on_client(self.door, (address, port), (packed(address), port), payload, now)
        self.network.end_turn()

    def guest(self, **who: Any) -> ScriptedGuest:
        guest = self.network.guest(**who)
        guest.sends(guest.asks_who_has(GATEWAY))
        guest.hears()
        return guest


def test_question_and_answer() -> None:
    """The guest sees the client, and its answer leaves by the published port; no mapping is
    opened for that."""
    here = Published()
    guest = here.guest()
    here.client_says(b"question")
    heard = guest.hears_one()
    assert (heard.source, heard.udp.source_port, heard.udp.destination_port) == (CLIENT, PORT, 53)
    assert heard.udp.payload == b"question"
    guest.sends(guest.datagram(53, CLIENT, PORT, b"answer"))
    assert here.sent == [(b"answer", (CLIENT, PORT))]
    assert not here.network.router.datagrams.mappings
    assert not here.network.host.sockets


@pytest.mark.parametrize("size", [0, 1, 1472, 9000, 65507])
def test_datagrams_of_every_size_go_both_ways(size: int) -> None:
    """In fragments where they must."""
    here = Published(mtu=1500)
    guest = here.guest()
    here.client_says(bytes(size))
    assert guest.hears_one().udp.payload == bytes(size)
    whole = guest.datagram(53, CLIENT, PORT, bytes(size))[34:]
    guest.sends(*guest.fragments(whole, 17, CLIENT))
    assert here.sent == [(bytes(size), (CLIENT, PORT))]


def test_two_clients_and_the_gateway() -> None:
    """Each has its answer; those that stand behind the gateway have ports of their own."""
    here = Published()
    guest = here.guest()
    for address in ("127.0.0.1", "::1"):
        here.client_says(address.encode(), address)
    faces = {heard.udp.payload: (heard.source, heard.udp.source_port) for heard in guest.hears()}
    assert {address for address, _ in faces.values()} == {GATEWAY}
    assert len(set(faces.values())) == 2
    for said, (address, port) in faces.items():
        guest.sends(guest.datagram(53, address, port, said + b"!"))
    assert here.sent == [
        (b"127.0.0.1!", ("127.0.0.1", PORT)),
        (b"::1!", ("::1", PORT)),
    ]


def test_a_guest_that_has_changed_its_address_is_visited_at_the_new_one() -> None:
    """Though its client has never been silent; where both are in use, a conversation stays."""
    here = Published()
    guest = here.guest(address="10.0.2.50")
    here.client_says(b"question")
    guest.hears()
    for _ in range(10):
        guest.address = "10.0.2.60"
        guest.sends(guest.asks_who_has(GATEWAY))
        guest.address = "10.0.2.50"
        guest.sends(guest.datagram(53, CLIENT, PORT, b"answer"))
        guest.hears()
        here.network.advance(SURE_TIME / 2)
        here.client_says(b"again")
        assert guest.hears_one().destination == "10.0.2.50"
    guest.address = "10.0.2.60"
    guest.sends(guest.asks_who_has(GATEWAY))
    guest.hears()
    here.network.advance(SURE_TIME / 2)
    here.client_says(b"again")
    assert guest.hears_one().destination == "10.0.2.60"
    assert len(here.network.router.visits.by_key) == 1


def test_a_guest_that_never_answers_is_told_all_the_same() -> None:
    """As one that collects logs: its visit is one, for as long as the client speaks."""
    here = Published()
    guest = here.guest()
    for _ in range(10):
        here.client_says(b"line")
        here.network.advance(SURE_TIME)
    assert {heard.udp.source_port for heard in guest.hears()} == {PORT}
    assert len(here.network.router.visits.by_key) == 1


@pytest.mark.parametrize("port", [53, 67, 68, 69])
def test_nothing_published_is_taken_for_the_gateways_services(port: int) -> None:
    """A client at such a port is shown at another; the guest's DNS goes on."""
    here = Published(f"udp:5000:{port}", dns=[(packed("192.0.2.53"), 53)])
    guest = here.guest()
    here.client_says(b"x", GATEWAY, port)
    here.client_says(b"x", CLIENT, port)
    heard = guest.hears()
    assert all(each.udp.source_port >= 1024 for each in heard)
    guest.sends(guest.ping(GATEWAY))
    assert guest.hears_one().icmp.type == 0
    question = bytes.fromhex("123401000001000000000000037777770765786d61706c6503636f6d0000010001")
    guest.sends(guest.datagram(port, GATEWAY, 53, question))
    assert len(here.network.resolvers.asked) == 1
    assert here.sent == []


def test_the_guest_can_begin_nothing_by_it() -> None:
    """Under a policy that denies everything an answer passes; from another port, to another one,
    or before a client has come, nothing does."""
    here = Published()
    here.network.router.admission.replace(PolicySettings(policy=NetworkPolicy.deny_all()))
    here.network.router.on_policy(True, here.network.now)
    guest = here.guest()
    guest.sends(guest.datagram(53, CLIENT, PORT, b"too early"))
    here.client_says(b"question")
    guest.sends(guest.datagram(54, CLIENT, PORT, b"another port"))
    guest.sends(guest.datagram(53, CLIENT, PORT + 1, b"another port of it"))
    guest.sends(guest.datagram(53, "198.51.100.10", PORT, b"another client"))
    assert here.sent == []
    assert here.network.host.sockets == []
    guest.sends(guest.datagram(53, CLIENT, PORT, b"answer"))
    assert here.sent == [(b"answer", (CLIENT, PORT))]


def test_a_conversation_of_the_guests_own_is_left_alone() -> None:
    """It has written there from that very port by itself: the client is shown at another."""
    here = Published()
    guest = here.guest()
    guest.sends(guest.datagram(53, CLIENT, PORT, b"mine"))
    here.client_says(b"question")
    heard = guest.hears_one()
    assert heard.source == CLIENT
    assert heard.udp.source_port != PORT
    guest.sends(guest.datagram(53, CLIENT, PORT, b"mine again"))
    assert [payload for payload, *_ in here.network.host.sockets[0].sent] == [
        b"mine",
        b"mine again",
    ]
    assert here.sent == []


def test_a_visit_ends_after_five_idle_minutes() -> None:
    """RFC 4787, REQ-5; both sides keep it alive."""
    here = Published()
    guest = here.guest()
    here.client_says(b"one")
    here.network.advance(IDLE_TIME - 1)
    guest.sends(guest.datagram(53, CLIENT, PORT, b"two"))
    here.network.advance(IDLE_TIME - 1)
    assert here.network.router.visits.by_key
    here.network.advance(1)
    assert not here.network.router.visits.by_key
    here.network.assert_nothing_left()


def test_the_longest_silent_visit_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each port, and of all; it is counted."""
    monkeypatch.setattr("qemu_usernat.visits.VISITS_PER_PORT", 2)
    here = Published()
    here.guest()
    for port in (1, 2, 1, 3):
        here.client_says(b"x", CLIENT, PORT + port)
    visits = here.network.router.visits
    assert {key[3] for key in visits.by_key} == {PORT + 1, PORT + 3}
    assert here.network.counters["publish.visit_gave_way"] == 1
    monkeypatch.setattr("qemu_usernat.visits.VISITS_PER_PORT", 9)
    monkeypatch.setattr("qemu_usernat.visits.VISITS_MAXIMUM", 2)
    here.client_says(b"x", CLIENT, PORT + 4)
    assert {key[3] for key in visits.by_key} == {PORT + 3, PORT + 4}


def test_a_datagram_waits_for_arp() -> None:
    """The guest was not heard yet: it is asked for, and has it with its answer."""
    here = Published()
    guest = here.network.guest()
    here.client_says(b"question")
    assert guest.hears()
    guest.sends(guest.answers_who_has())
    assert guest.hears_one().udp.payload == b"question"


def test_it_does_not_wait_for_long() -> None:
    """Then it is lost, as datagrams may be, and counted; so are those beyond a few."""
    here = Published()
    for number in range(70):
        here.client_says(b"question", CLIENT, PORT + number)
    assert here.network.counters["publish.datagram_lost"] == 6
    here.network.advance(HOLD_TIME)
    assert here.network.counters["publish.datagram_lost"] == 70
    here.network.assert_nothing_left()


def test_clients_of_many_ports_ask_for_their_guest_together() -> None:
    """Once a second, however many ports lead to it."""
    here = Published()
    silent = here.network.guest()
    for seconds, questions in ((0, 252), (0.5, 0), (0.5, 252)):
        here.network.advance(seconds)
        for port in range(6000, 6010):
            publication = parse_publication(f"udp:{port}:99")
            here.door = UdpDoor(publication, publication.guest_port, here)
            here.client_says(b"question")
        assert len(silent.hears()) == questions


@pytest.mark.parametrize("mac", [OTHER_MAC, GUEST_MAC], ids=["another MAC", "the same MAC"])
def test_who_takes_the_address_inherits_no_visit(mac: bytes) -> None:
    """Under a policy whoever is on another link is another machine, whatever it shows: its answer
    goes nowhere, and the client's next word finds it."""
    here = Published(f"udp:5353:{OTHER}:53")
    here.network.router.switch.guard_sources(True)
    first = here.guest(mac=GUEST_MAC, address=OTHER)
    here.client_says(b"question")
    first.hears()
    router = here.network.router
    router.switch.detach(first.port)
    router.on_link_down(first.port, here.network.now)
    second = here.guest(mac=mac, address=OTHER, link="other")
    second.sends(second.datagram(53, CLIENT, PORT, b"not asked"))
    assert here.sent == []
    here.client_says(b"question")
    assert second.hears_one().udp.payload == b"question"


def test_a_port_that_is_closed_is_over() -> None:
    """Its visits, and what waits there."""
    here = Published()
    here.client_says(b"waits")
    here.network.router.visits.close(here.door)
    guest = here.guest()
    here.client_says(b"question")
    guest.hears_one()
    here.network.router.visits.close(here.door)
    guest.sends(guest.datagram(53, CLIENT, PORT, b"answer"))
    assert here.sent == []


def refuses(guest: ScriptedGuest, code: int, word: bytes, port: int, address: str = CLIENT) -> None:
    """The guest says, destination unreachable, of what has come from there to its port 53."""
    about = ipv4(address, GUEST, UDP, udp(address, port, GUEST, 53, b""))
    guest.sends(guest.packet(icmp(3, code, word, about[:28]), ICMP, address))


def test_a_guest_that_does_not_listen_has_no_visit() -> None:
    """Port unreachable ends that client's, and nobody else's; its next datagram begins anew."""
    here = Published()
    guest = here.guest()
    for port in (PORT, PORT + 1):
        here.client_says(b"question", port=port)
    guest.hears()
    refuses(guest, 3, bytes(4), PORT + 2)
    refuses(guest, 1, bytes(4), PORT)
    assert len(here.network.router.visits.by_key) == 2
    refuses(guest, 3, bytes(4), PORT)
    assert [key[3] for key in here.network.router.visits.by_key] == [PORT + 1]
    assert here.network.counters["publish.visit_refused"] == 1
    here.client_says(b"again")
    assert guest.hears_one().udp.payload == b"again"


def test_a_client_is_cut_smaller_where_the_guest_says_so() -> None:
    """The way to what listens is narrower than the link; of nobody's visit that is not believed."""
    here = Published(mtu=1500)
    guest = here.guest()
    here.client_says(b"question")
    guest.hears()
    for port, largest in ((PORT + 1, 1500), (PORT, 1000)):
        refuses(guest, 4, (1000).to_bytes(4, "big"), port)
        here.client_says(bytes(3000))
        assert largest - 8 < max(map(len, guest.frames())) - 14 <= largest
    assert here.network.counters["icmp.guest_path_mtu"] == 1


def test_who_is_behind_the_most_crowded_port_is_the_one_that_finds_no_room() -> None:
    """The first of its own wait on."""
    here = Published()
    for number in range(HELD_MAXIMUM + 3):
        here.client_says(b"question", CLIENT, PORT + number)
    guest = here.network.guest()
    guest.sends(guest.asks_who_has(GATEWAY))
    heard = [each.udp.source_port for each in guest.hears() if each.packet is not None]
    assert heard == [PORT + number for number in range(HELD_MAXIMUM)]


def test_a_guest_that_comes_on_another_link_has_its_visits() -> None:
    """With their number, which ends as they do."""
    here = Published()
    first = here.guest()
    here.client_says(b"question")
    first.hears()
    router = here.network.router
    router.switch.detach(first.port)
    router.on_link_down(first.port, here.network.now)
    again = here.guest(link="another")
    here.client_says(b"again")
    assert again.hears_one().udp.payload == b"again"
    here.network.advance(IDLE_TIME)
    assert not router.visits._crowds
    here.network.assert_nothing_left()


def test_an_address_that_another_machine_of_the_link_has_is_followed() -> None:
    """A guest that is a bridge: what comes for the address goes to whoever speaks from it now."""
    here = Published(f"udp:5353:{GUEST}:53")
    guest = here.guest()
    here.client_says(b"question")
    assert guest.frames()[0][:6] == GUEST_MAC
    moved = guest.asks_who_has(GATEWAY).replace(GUEST_MAC, OTHER_MAC)
    guest.sends(moved)
    guest.frames()
    here.client_says(b"again")
    (frame,) = guest.frames()
    assert frame[:6] == OTHER_MAC
