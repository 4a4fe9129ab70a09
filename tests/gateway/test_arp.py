"""ARP as a guest sees it: the gateway answers for itself, and for nobody else."""

import pytest

from qemu_usernat.gateway.arp import ArpResponder
from qemu_usernat.primitives.addresses import parse_address, parse_mac
from qemu_usernat.wire.packets import ARP_REPLY, ARP_REQUEST, Arp

GATEWAY_MAC = parse_mac("52:55:0a:00:02:02")
GUEST_MAC = parse_mac("52:54:00:12:34:56")
GATEWAY = parse_address("10.0.2.2")
NAMESERVER = parse_address("10.0.2.3")
GUEST = parse_address("10.0.2.15")
NOBODY = bytes(4)


@pytest.fixture
def responder() -> ArpResponder:
    return ArpResponder(GATEWAY_MAC, frozenset({GATEWAY, NAMESERVER}))


def who_has(target: bytes, sender: bytes = GUEST, sender_mac: bytes = GUEST_MAC) -> Arp:
    return Arp(ARP_REQUEST, sender_mac, sender, bytes(6), target)


@pytest.mark.parametrize("address", [GATEWAY, NAMESERVER])
def test_a_request_for_each_of_our_addresses_is_answered(
    responder: ArpResponder, address: bytes
) -> None:
    """A guest that asks where the gateway or the nameserver lives is told."""
    assert responder.answer(who_has(address), 0.0) == Arp(
        ARP_REPLY, GATEWAY_MAC, address, GUEST_MAC, GUEST
    )


def test_the_guest_s_probe_for_its_own_address_meets_silence(responder: ArpResponder) -> None:
    """A guest that checks whether somebody else has its address must not be told yes."""
    assert responder.answer(who_has(GUEST, sender=NOBODY), 0.0) is None
    assert responder.answer(who_has(GUEST, sender=GUEST), 0.0) is None


def test_a_probe_for_the_gateway_is_defended(responder: ArpResponder) -> None:
    """A guest about to take the gateway's address learns that it is taken."""
    reply = responder.answer(who_has(GATEWAY, sender=NOBODY), 0.0)
    assert reply == Arp(ARP_REPLY, GATEWAY_MAC, GATEWAY, GUEST_MAC, NOBODY)


def test_addresses_outside_are_not_proxied(responder: ArpResponder) -> None:
    """A request for some other host of the subnet, or of the world, is not ours to answer."""
    assert responder.answer(who_has(parse_address("10.0.2.99")), 0.0) is None
    assert responder.answer(who_has(parse_address("192.0.2.1")), 0.0) is None


@pytest.mark.parametrize("operation", [0, ARP_REPLY, 3, 8, 0xFFFF])
def test_only_requests_are_answered(responder: ArpResponder, operation: int) -> None:
    """A reply, or an operation of some other protocol, is no question."""
    arp = Arp(operation, GUEST_MAC, GUEST, bytes(6), GATEWAY)
    assert responder.answer(arp, 0.0) is None


@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
def test_a_sender_at_a_group_address_is_not_believed(responder: ArpResponder, mac: str) -> None:
    """No answer goes to a multicast or broadcast address that somebody claims to live at."""
    assert responder.answer(who_has(GATEWAY, sender_mac=parse_mac(mac)), 0.0) is None
