"""What on the segment is a gateway's affair, and so stays on its own side of a join.

It knows who the gateway is, how machines look for one, and how one gives itself out as theirs. A
priority tag makes no other network of a frame (IEEE 802.1Q, 6.9): it is looked through. A VLAN is
a network of the guests' own.
"""

from struct import Struct

from attrs import frozen

from qemu_usernat.primitives.addresses import Address, MacAddress

_TAGS = frozenset({b"\x81\x00", b"\x88\xa8"})
_VLAN = 0x0FFF
_ARP, _IPV4, _IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
_UDP, _ICMPV6 = 17, 58

_DHCP_PORTS = frozenset({67, 68})  # RFC 2131
_DHCPV6_PORTS = frozenset({546, 547})  # RFC 9915
_ROUTERS = frozenset({133, 134, 137})
"""Router solicitation and advertisement, and redirect (RFC 4861, 4): also behind other headers,
but never in fragments (RFC 6980)."""
_EXTENSIONS = frozenset({0, 43, 60})
"""Hop-by-hop options, routing and destination options (RFC 8200, 4)."""

_ports = Struct(">HH").unpack_from


@frozen
class GatewayAffairs:
    """Of one network."""

    mac: MacAddress
    addresses: frozenset[Address]
    """Where it is, and where it stands in for others."""

    def is_one(self, frame: memoryview) -> bool:
        """Whether this frame is, of at least 14 bytes."""
        if self.mac in (frame[:6], frame[6:12]):
            return True
        at = 12
        while bytes(frame[at : at + 2]) in _TAGS and len(frame) >= at + 6:
            if int.from_bytes(frame[at + 2 : at + 4], "big") & _VLAN:
                return False
            at += 4
        kind, packet = frame[at : at + 2], frame[at + 2 :]
        if kind == _ARP:
            addresses = bytes(packet[14:18]), bytes(packet[24:28])
            return packet[8:14] == self.mac or not self.addresses.isdisjoint(addresses)
        if kind == _IPV4:
            return self._is_of_ipv4(packet)
        return kind == _IPV6 and _is_of_ipv6(packet)

    def _is_of_ipv4(self, packet: memoryview) -> bool:
        if not self.addresses.isdisjoint((bytes(packet[12:16]), bytes(packet[16:20]))):
            return True
        is_first = not int.from_bytes(packet[6:8], "big") & 0x1FFF
        return packet[9:10] == bytes([_UDP]) and is_first and _has_port(
            packet[(packet[0] & 15) * 4 :], _DHCP_PORTS
        )  # fmt: skip


def _is_of_ipv6(packet: memoryview) -> bool:
    header, packet = packet[6:7], packet[40:]
    while header and header[0] in _EXTENSIONS and len(packet) >= 8:
        header, packet = packet[:1], packet[8 * (packet[1] + 1) :]
    if header == bytes([_ICMPV6]):
        return bool(packet) and packet[0] in _ROUTERS
    return header == bytes([_UDP]) and _has_port(packet, _DHCPV6_PORTS)


def _has_port(datagram: memoryview, ports: frozenset[int]) -> bool:
    return len(datagram) >= 4 and not ports.isdisjoint(_ports(datagram))
