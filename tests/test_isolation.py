"""Guests that see only the gateway: what a hostile one tries, and what its neighbour notices."""

import struct

import dns.message
import dns.rcode
import pytest
from attrs import evolve

from qemu_usernat.admission import Decision
from qemu_usernat.gateway.leases import HeldLease
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.policy.why import Why
from qemu_usernat.wire.dhcp import build_dhcp
from qemu_usernat.wire.icmp import ADMINISTRATIVELY_PROHIBITED, DESTINATION_UNREACHABLE
from qemu_usernat.wire.packets import SYN
from tests.gateway.test_dhcp import discover
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    NAMESERVER,
    OTHER,
    OTHER_MAC,
    ScriptedGuest,
    ScriptedNetwork,
    ethernet,
    packed,
)

GROUP_MAC = bytes.fromhex("01005e0000fb")
IPV6_GROUP_MAC = bytes.fromhex("333300000001")


def pair(isolate: bool) -> tuple[ScriptedNetwork, ScriptedGuest, ScriptedGuest]:
    """Two guests that both have spoken to the gateway."""
    network = ScriptedNetwork(mtu=1500, isolate=isolate)
    guests = network.guest(), network.guest(OTHER_MAC, OTHER, "other")
    for guest in guests:
        guest.sends(guest.asks_who_has(GATEWAY))
        guest.sends(guest.ping(GATEWAY))
    for guest in guests:
        guest.frames()
    network.counters.clear()
    return network, *guests


def everything(one: ScriptedGuest) -> dict[str, bytes]:
    """What one guest may say to its neighbour."""
    to_two = {"destination_mac": OTHER_MAC}
    router_advertisement = struct.pack(">IHBB", 6 << 28, 16, 58, 255) + bytes(32) + bytes(16)
    return {
        "ping": one.ping(OTHER, **to_two),
        "datagram": one.datagram(4000, OTHER, 4000, b"hello", **to_two),
        "connection": ethernet(one.segment(4000, OTHER, 22, SYN)[14:], GUEST_MAC, OTHER_MAC),
        "who has": one.asks_who_has(OTHER),
        "broadcast": one.datagram(
            4000, "255.255.255.255", 4000, b"hello", destination_mac=BROADCAST_MAC
        ),
        "multicast": one.datagram(5353, "224.0.0.251", 5353, b"who?", destination_mac=GROUP_MAC),
        "ipv6": ethernet(router_advertisement, GUEST_MAC, OTHER_MAC, 0x86DD),
        "router advertisement": ethernet(router_advertisement, GUEST_MAC, IPV6_GROUP_MAC, 0x86DD),
        "unknown type": ethernet(bytes(46), GUEST_MAC, OTHER_MAC, 0x88B6),
        "vlan": ethernet(bytes(46), GUEST_MAC, BROADCAST_MAC, 0x8100),
        "llc": ethernet(bytes(46), GUEST_MAC, GROUP_MAC, 46),
        "to nobody": ethernet(bytes(46), GUEST_MAC, b"\2\0\0\0\0\1", 0x88B6),
    }


@pytest.mark.parametrize("what", sorted(everything(pair(False)[1])))
def test_nothing_of_a_guest_reaches_another(what: str) -> None:
    """Each kind of frame is dropped and counted, and passes where guests are not isolated."""
    for isolate in (True, False):
        network, one, two = pair(isolate)
        one.sends(everything(one)[what])
        assert bool(two.frames()) is not isolate
        assert network.counters["ethernet.isolated"] == isolate


def test_what_a_guest_asks_of_everybody_is_answered_to_it_alone() -> None:
    """A DHCP reply that has to be a broadcast has words of the client's choosing in it."""
    _, one, two = pair(True)
    message = evolve(discover(one.mac), broadcast=True)
    one.sends(
        one.datagram(
            68, "255.255.255.255", 67, build_dhcp(message), source="0.0.0.0",
            destination_mac=BROADCAST_MAC,
        )
    )  # fmt: skip
    (offer,) = one.frames()
    assert offer[:6] == BROADCAST_MAC
    assert two.frames() == []


@pytest.mark.parametrize("isolate", [True, False])
def test_guests_do_not_meet_at_the_loopback_of_the_host(isolate: bool) -> None:
    """Where it is theirs to reach: a socket of the host that stands for a guest is that guest."""
    network = ScriptedNetwork(
        mtu=1500, isolate=isolate, host_loopback=True, udp_filtering="endpoint"
    )
    one, two = network.guest(), network.guest(OTHER_MAC, OTHER, "other")
    one.sends(one.datagram(1111, GATEWAY, 9999, b"is anybody there?"))
    two.sends(two.datagram(2222, GATEWAY, 9999, b"is anybody there?"))
    first, second = network.host.sockets
    one.sends(one.datagram(1111, GATEWAY, second.port, b"it is me"))
    two.sends(two.datagram(2222, GATEWAY, first.port, b"it is me"))
    second.hears(b"it is me", "127.0.0.1", first.port)
    assert bool(two.hears()) is not isolate
    second.hears(b"a program of the host", "127.0.0.1", 9999)
    assert two.hears_one().udp.payload == b"a program of the host"


def test_what_is_sent_to_the_gateway_for_another_guest_is_refused() -> None:
    """Administratively prohibited, at once and always the same: whether it is there is not told.
    Where guests are not isolated the gateway is no way to there either."""
    for isolate, code in ((True, ADMINISTRATIVELY_PROHIBITED), (False, 1)):
        network, one, two = pair(isolate)
        told: list[Why] = []

        def hear(decision: Decision, now: float, told: list[Why] = told) -> None:
            told.append(decision.verdict.why)

        network.admission.on_decision = hear
        for address in (OTHER, "10.0.2.99"):
            one.sends(one.ping(address))
            answer = one.hears_one()
            assert (answer.icmp.type, answer.icmp.code) == (DESTINATION_UNREACHABLE, code)
            assert answer.source == GATEWAY
        assert two.frames() == []
        assert told == [Why.ISOLATED] * 2 * isolate
        assert network.counters["ipv4.isolated"] == 2 * isolate


def asks(guest: ScriptedGuest, name: str, kind: str = "A") -> dns.message.Message:
    """The name server's answer."""
    query = dns.message.make_query(name, kind).to_wire()
    guest.sends(guest.datagram(5000, NAMESERVER, 53, query))
    return dns.message.from_wire(guest.hears_one().udp.payload)


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("has_policy", [True, False])
def test_a_guest_is_told_its_own_name_and_no_other_s(isolate: bool, has_policy: bool) -> None:
    """Forward and backward; the gateway has its name for everybody."""
    network, one, two = pair(isolate)
    if has_policy:
        settings = PolicySettings(policy=NetworkPolicy.deny_all())
        network.admission.replace(settings)
        network.router.on_policy(True, network.now)
    network.router.dhcp.restore(
        HeldLease(packed(guest.address), guest.mac, label, b"\1" + guest.mac, network.now + 3600)
        for guest, label in ((one, "one"), (two, "two"))
    )
    assert asks(one, "one.internal").answer[0][0].to_text() == GUEST
    assert asks(one, "15.2.0.10.in-addr.arpa", "PTR").answer
    assert asks(one, "gateway.internal").answer
    for name, kind in (("two.internal", "A"), ("16.2.0.10.in-addr.arpa", "PTR")):
        answer = asks(one, name, kind)
        assert bool(answer.answer) is not isolate
        assert (answer.rcode() == dns.rcode.NXDOMAIN) is isolate
