"""Clients of published ports, as guests of a script meet them: who is called, as whom, how long."""

from ipaddress import IPv4Address

import pytest

from qemu_usernat.arrivals import GUEST_WAIT
from qemu_usernat.config.publish import Publication
from qemu_usernat.config.redirects import read_redirects
from qemu_usernat.nat.tcp.flow import CONNECT_TIMEOUT
from qemu_usernat.nat.tcp.guest_half import TIME_WAIT
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.whereabouts import ASK_INTERVAL
from qemu_usernat.wire.packets import ACK, ARP_REQUEST, FIN, PSH, RST, SYN
from tests.scripted_client import CLIENT, PORT, Published, ScriptedCaller
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    OTHER,
    OTHER_MAC,
    packed,
)


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
