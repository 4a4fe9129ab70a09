"""Addresses outlive machines: what is sent to one goes to whoever has it now."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from qemu_usernat.lan.places import AGING_TIME, PLACES_PER_PORT
from qemu_usernat.wire.packets import ACK, PSH, RST, SYN
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
    packed,
    tcp,
)


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(
        mtu=1500, subnet=IPv4Network("10.0.0.0/22"), gateway=IPv4Address(GATEWAY)
    )


def successor(network: ScriptedNetwork, guest: ScriptedGuest) -> ScriptedGuest:
    """The guest's machine is gone; another one, with its own MAC, has its address."""
    network.router.switch.detach(guest.port)
    network.router.on_link_down(guest.port, network.now)
    return network.guest(mac=OTHER_MAC, address=GUEST)


def test_answers_to_a_fixed_port_find_the_new_machine(network: ScriptedNetwork) -> None:
    """NTP from port 123 of a VM made anew, while the old one's mapping still lives."""
    guest = network.guest()
    guest.sends(guest.datagram(123, SERVER, 123, b"time?"))
    heir = successor(network, guest)
    heir.sends(heir.datagram(123, SERVER, 123, b"time?"))
    network.host.sockets[-1].hears(b"now", SERVER, 123)
    answer = heir.hears_one()
    assert (answer.udp.payload, answer.destination_mac) == (b"now", OTHER_MAC)


def test_a_connection_of_the_old_machine_does_not_keep_the_new_one_out(
    network: ScriptedNetwork,
) -> None:
    """A SYN on the old four-tuple is challenged where it came from; the reset clears the way."""
    guest = network.guest()
    old = guest.connects(sport=40000)
    heir = successor(network, guest)
    heir.sends(heir.segment(40000, SERVER, 80, SYN, 77777))
    challenge = heir.hears_one()
    assert (challenge.tcp.flags, challenge.destination_mac) == (ACK, OTHER_MAC)
    heir.sends(heir.segment(40000, SERVER, 80, RST, challenge.tcp.acknowledgment))
    assert old.server.was_reset
    new = heir.connects(sport=40000)
    heir.sends(new.segment(ACK | PSH, b"hello"))
    assert new.server.received == b"hello"


def test_a_guest_cannot_make_us_remember_addresses_without_end(network: ScriptedNetwork) -> None:
    """Nor forget its neighbour's, or its own first one; old ones give way."""
    hostile, other = network.guest(), network.guest(OTHER_MAC, OTHER, "other")
    for guest in (hostile, other):
        guest.sends(guest.ping(GATEWAY))
    paths = network.router._delivery
    forged = [f"10.0.2.{number}" for number in range(20, 250)]
    forged += [f"10.0.3.{number}" for number in range(50)]
    for address in forged:
        hostile.sends(hostile.ping(GATEWAY, source=address))
    assert paths.mac_of(packed(OTHER)) == OTHER_MAC
    assert paths.mac_of(packed(GUEST)) == GUEST_MAC
    known = [address for address in forged if paths.mac_of(packed(address))]
    assert known == forged[: PLACES_PER_PORT - 1]
    assert network.counters["lan.neighbours_full"] == len(forged) - len(known)
    network.advance(AGING_TIME)
    hostile.sends(hostile.ping(GATEWAY))
    hostile.sends(hostile.ping(GATEWAY, source=forged[-1]))
    assert paths.mac_of(packed(forged[-1])) == GUEST_MAC
    assert paths.mac_of(packed(forged[0])) is None
    assert paths.mac_of(packed(GUEST)) == GUEST_MAC


def test_a_guest_whose_link_is_gone_is_not_there(network: ScriptedNetwork) -> None:
    """Nobody has its address then, until somebody speaks from it."""
    guest = network.guest()
    guest.sends(guest.ping(GATEWAY))
    heir = successor(network, guest)
    paths = network.router._delivery
    assert paths.mac_of(packed(GUEST)) is None
    heir.sends(heir.ping(GATEWAY))
    assert paths.mac_of(packed(GUEST)) == OTHER_MAC


def test_a_guest_that_comes_again_before_its_old_link_is_gone_is_there(
    network: ScriptedNetwork,
) -> None:
    """A QEMU that hangs, and another that goes on with the same machine: its new link counts."""
    guest = network.guest()
    for _ in range(2):
        guest.sends(guest.ping(GATEWAY))
    again = network.guest(link="again")
    again.sends(again.ping(GATEWAY))
    network.router.switch.detach(guest.port)
    network.router.on_link_down(guest.port, network.now)
    assert network.router._delivery.link_of(packed(GUEST)) == "again"
    again.hears()
    again.sends(again.ping(GATEWAY))
    assert again.hears_one().source == GATEWAY


def test_a_packet_for_one_in_a_frame_for_all_is_dropped(network: ScriptedNetwork) -> None:
    """RFC 1122, 3.2.2 and 3.3.6: neither an ICMP error nor a connection comes of it."""
    guest = network.guest()
    guest.sends(
        guest.datagram(5000, GATEWAY, 9, b"x", destination_mac=BROADCAST_MAC),
        guest.packet(
            tcp(GUEST, 4000, SERVER, 80, SYN, 1000), 6, SERVER, destination_mac=BROADCAST_MAC
        ),
    )
    assert guest.hears() == []
    assert not network.router.connections.flows
    assert network.counters["ipv4.unicast_to_everybody"] == 2
