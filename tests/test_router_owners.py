"""Who has left, and who comes after: a machine is its MAC address at its link."""

import pytest

from qemu_usernat.admission import Decision
from qemu_usernat.gateway.leases import HeldLease
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.policy.why import Why
from qemu_usernat.wire.packets import ACK, RST, UDP
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
    icmp,
    ipv4,
    packed,
    udp,
)


@pytest.fixture
def network() -> ScriptedNetwork:
    """Whoever comes by the link "open" may do everything; nobody else anything."""
    network = ScriptedNetwork(mtu=1500)
    guests = {"open": NetworkPolicy.allow_all()}
    settings = PolicySettings(policy=NetworkPolicy.deny_all(), guests=guests)
    network.router.admission.replace(settings)
    network.router.on_policy(guarded=True, now=network.now)
    return network


def leaves(guest: ScriptedGuest) -> None:
    """Its QEMU is gone."""
    network = guest.network
    network.router.switch.detach(guest.port)
    network.router.on_link_down(guest.port, network.now)


def comes(network: ScriptedNetwork, link: str) -> ScriptedGuest:
    """A machine with the MAC address that QEMU gives to each, and so with the same lease."""
    guest = network.guest(link=link)
    guest.sends(guest.ping(GATEWAY))
    guest.hears()
    return guest


def test_another_link_inherits_no_connection(network: ScriptedNetwork) -> None:
    """What the one before has opened is reset, and not read by one that may not open it."""
    connection = comes(network, "open").connects()
    leaves(connection.guest)
    after = comes(network, "closed")
    assert connection.server.was_reset
    connection.guest = after
    after.sends(connection.segment(ACK, payload=b"and writes"))
    assert [heard.tcp.flags for heard in after.hears()] == [RST]
    assert not connection.server.received


def test_another_link_inherits_no_datagrams_and_no_pings(network: ScriptedNetwork) -> None:
    """Neither hears who answers the one before, nor writes to whom that was allowed to write."""
    before = comes(network, "open")
    before.sends(before.datagram(1234, SERVER, 99, b"hello"), before.ping(SERVER))
    leaves(before)
    after = comes(network, "closed")
    (mapping,), (echo,) = network.host.sockets, network.host.echoes
    assert (mapping.closed, echo.closed) == (True, True)
    after.sends(after.datagram(1234, SERVER, 99, b"me, too"), after.ping(SERVER))
    assert [heard.icmp.code for heard in after.hears()] == [13, 13]


def test_a_guest_that_comes_back_goes_on(network: ScriptedNetwork) -> None:
    """At its own link, its connections are where they were: QEMU has only connected again."""
    connection = comes(network, "open").connects()
    leaves(connection.guest)
    connection.guest = comes(network, "open")
    connection.guest.sends(connection.segment(ACK, payload=b"hello again"))
    assert connection.server.received == b"hello again"


@pytest.mark.parametrize("link", ["open", "closed"])
def test_how_narrow_a_way_behind_it_was_goes_with_a_machine(
    network: ScriptedNetwork, link: str
) -> None:
    """The next one at that address gets datagrams as large as its own link takes."""
    network.router.on_policy(guarded=False, now=network.now)
    network.router.admission.replace(None)
    before = comes(network, "open")
    before.sends(before.datagram(1234, SERVER, 99, b"?"))
    about = ipv4(SERVER, GUEST, UDP, udp(SERVER, 99, GUEST, 1234, b""))
    too_large = icmp(3, 4, (576).to_bytes(4, "big"), about[:28])
    before.sends(before.packet(too_large, 1, SERVER))
    leaves(before)
    after = comes(network, link)
    after.sends(after.datagram(1234, SERVER, 99, b"?"))
    network.host.sockets[-1].hears(bytes(1400), SERVER, 99)
    assert len(after.frames()) == 1


def test_who_has_leased_an_address_has_it_when_a_policy_comes() -> None:
    """A neighbour that is quicker to speak from it than its owner does not get it."""
    network = ScriptedNetwork(mtu=1500)
    guest, other = network.guest(), network.guest(OTHER_MAC, OTHER)
    client = b"\x01" + GUEST_MAC
    network.router.dhcp.restore([HeldLease(packed(GUEST), GUEST_MAC, "", client, 3600.0)])
    network.router.admission.replace(PolicySettings(policy=NetworkPolicy.allow_all()))
    network.router.on_policy(guarded=True, now=network.now)
    other.sends(other.datagram(1234, SERVER, 99, b"I am it", source=GUEST))
    assert (network.host.sockets, network.counters["ipv4.spoofed_source"]) == ([], 1)
    guest.sends(guest.datagram(1234, SERVER, 99, b"no, I am"))
    assert len(network.host.sockets) == 1


def test_nobody_owns_an_address_by_another_s_arp(network: ScriptedNetwork) -> None:
    """Who says ARP in the name of invented machines, or of its neighbour, gets nothing by it."""
    told: list[Decision] = []
    network.admission.on_decision = lambda decision, now: told.append(decision)
    hostile, other = comes(network, "closed"), network.guest(OTHER_MAC, OTHER, "other")
    other.sends(other.ping(GATEWAY))
    other.hears()
    invented = [b"\x02\0\0\0\0" + bytes((number,)) for number in range(20)]
    for number, mac in enumerate([*invented, *[other.mac] * 20]):
        address = f"10.0.2.{100 + number}"
        frame = hostile.asks_who_has(GATEWAY)
        said = frame[:22] + mac + packed(address) + frame[32:]
        hostile.sends(said)
    assert hostile.hears() == []
    assert network.counters["arp.spoofed_sender"] == 40
    assert {(each.guest.mac, each.verdict.why) for each in told} == {(GUEST_MAC, Why.SPOOFED)}
    for number in range(15):  # and its own, from which it speaks
        other.sends(other.ping(GATEWAY, source=f"10.0.2.{100 + number}"))
    assert len(other.hears()) == 15, "its own places are not used up, and the addresses are free"
