"""What of the segment is a gateway's affair, and what guests have among themselves."""

import struct

import pytest

from qemu_usernat.lan.affairs import GatewayAffairs
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    OTHER_MAC,
    ethernet,
    ipv4,
    packed,
    udp,
)

STAND_IN = "10.0.2.77"
NEIGHBOUR = "10.0.2.16"


def arp(sender: str, target: str, mac: bytes = GUEST_MAC) -> bytes:
    octets = struct.pack(
        ">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2, mac, packed(sender), OTHER_MAC, packed(target)
    )
    return ethernet(octets, GUEST_MAC, OTHER_MAC, 0x0806)


def datagram(source_port: int, destination_port: int) -> bytes:
    octets = udp(GUEST, source_port, NEIGHBOUR, destination_port, b"x")
    return ethernet(ipv4(GUEST, NEIGHBOUR, 17, octets), GUEST_MAC, OTHER_MAC)


def ipv6(header: int, payload: bytes) -> bytes:
    octets = struct.pack(">IHBB32x", 6 << 28, len(payload), header, 255) + payload
    return ethernet(octets, GUEST_MAC, BROADCAST_MAC, 0x86DD)


def tagged(frame: bytes, kind: int, vlan: int) -> bytes:
    return frame[:12] + struct.pack(">HH", kind, 0xE000 | vlan) + frame[12:]


AFFAIRS = {
    "for the gateway": ethernet(bytes(46), GUEST_MAC, GATEWAY_MAC),
    "from the gateway": ethernet(bytes(46), GATEWAY_MAC, GUEST_MAC),
    "who the gateway is": arp(NEIGHBOUR, GATEWAY),
    "somebody is the gateway": arp(GATEWAY, NEIGHBOUR),
    "the gateway is somebody": arp(NEIGHBOUR, GUEST, GATEWAY_MAC),
    "somebody is a stand-in": arp(STAND_IN, NEIGHBOUR),
    "to a stand-in": ethernet(ipv4(GUEST, STAND_IN, 6, bytes(20)), GUEST_MAC, OTHER_MAC),
    "from the gateway's address": ethernet(
        ipv4(GATEWAY, GUEST, 6, bytes(20)), OTHER_MAC, GUEST_MAC
    ),
    "a search for leases": datagram(68, 67),
    "a lease": datagram(67, 68),
    "a router's advertisement": ipv6(58, b"\x86" + bytes(15)),
    "a search for routers": ipv6(58, b"\x85" + bytes(7)),
    "a redirect": ipv6(58, b"\x89" + bytes(39)),
    "an advertisement behind options": ipv6(
        0, b"\x3c" + bytes(7) + b"\x3a\1" + bytes(14) + b"\x86"
    ),
    "a lease of IPv6": ipv6(17, struct.pack(">HHHH", 547, 546, 8, 0)),
}
OWN = {
    "who a neighbour is": arp(GUEST, NEIGHBOUR),
    "a datagram": datagram(1000, 2000),
    "the second part of a datagram": datagram(67, 68)[:20] + b"\0\1" + datagram(67, 68)[22:],
    "TCP of the same ports": ethernet(
        ipv4(GUEST, NEIGHBOUR, 6, b"\0\x43\0\x44" + bytes(16)), GUEST_MAC, OTHER_MAC
    ),
    "a neighbour of IPv6": ipv6(58, b"\x87" + bytes(23)),
    "IPv6 that ends": ipv6(0, b""),
    "IPv6 that ends behind options": ipv6(0, b"\x3a\0" + bytes(6)),
    "neither": ethernet(bytes(46), GUEST_MAC, OTHER_MAC, 0x88CC),
    "cut at its type": ethernet(b"", GUEST_MAC, OTHER_MAC),
    "cut in its header": ethernet(b"\x45" + bytes(8) + b"\x11", GUEST_MAC, OTHER_MAC),
    "cut in its tag": ethernet(b"\0", GUEST_MAC, OTHER_MAC, 0x8100),
}


@pytest.fixture
def affairs() -> GatewayAffairs:
    return GatewayAffairs(GATEWAY_MAC, frozenset({packed(GATEWAY), packed(STAND_IN)}))


@pytest.mark.parametrize("what", AFFAIRS)
def test_a_gateways_affair_is_one_whatever_its_priority(what: str, affairs: GatewayAffairs) -> None:
    """A frame with a priority tag, or two, is of the same network as one without."""
    frame = AFFAIRS[what]
    for each in (
        frame, tagged(frame, 0x8100, 0), tagged(frame, 0x88A8, 0),
        tagged(tagged(frame, 0x8100, 0), 0x8100, 0),
    ):  # fmt: skip
        assert affairs.is_one(memoryview(bytearray(each)))


@pytest.mark.parametrize("what", OWN)
def test_what_guests_have_among_themselves_is_none(what: str, affairs: GatewayAffairs) -> None:
    """Whatever it is, also where it has been cut."""
    assert not affairs.is_one(memoryview(bytearray(OWN[what])))
    assert not affairs.is_one(memoryview(bytearray(tagged(OWN[what], 0x8100, 0))))


def test_a_vlan_of_guests_has_a_gateway_of_its_own(affairs: GatewayAffairs) -> None:
    """What is said there is another network's, but for our gateway's MAC address."""
    lease = AFFAIRS["a lease"]
    assert not affairs.is_one(memoryview(tagged(lease, 0x8100, 5)))
    assert affairs.is_one(memoryview(tagged(AFFAIRS["for the gateway"], 0x8100, 5)))
