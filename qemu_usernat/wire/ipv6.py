"""Whom an IPv6 packet is for, and how to say that there is none: all of IPv6 for now."""

from struct import Struct

from qemu_usernat.primitives.addresses import Address, MacAddress, is_unspecified_network
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.checksum import checksum, pseudo_header
from qemu_usernat.wire.packets import TCP, UDP

_ETHERNET, _HEADER = 14, 40  # bytes
_ICMPV6 = 58  # RFC 4443
_ECHO_REQUEST = 128
_ROUTER_SOLICITATION = 133
_ROUTER_ADVERTISEMENT = 134
_NEIGHBOR_SOLICITATION = 135  # RFC 4861, 4.3
_TARGET = slice(8, 24)
_ALL_NODES = bytes.fromhex("ff02000000000000 0000000000000001")  # RFC 4291, 2.7.1
_ALL_NODES_MAC = bytes.fromhex("333300000001")  # RFC 2464, 7
_LINK_LOCAL = bytes.fromhex("fe80000000000000")

_FIXED = Struct(">IHBB16s16s")


def addressee(frame: bytes) -> tuple[str, Address, Address, int]:
    """Protocol, source, destination and port of an Ethernet frame with IPv6 in it; of a look for a
    neighbour (``ndp``), whom it looks for. Raises `Malformed`."""
    header, payload = frame[_ETHERNET : _ETHERNET + _HEADER], frame[_ETHERNET + _HEADER :]
    if len(header) < _HEADER:
        raise Malformed("ethernet.too_short")
    protocol, source, destination = header[6], header[8:24], header[24:40]
    if protocol in (TCP, UDP) and len(payload) >= 4:
        port = int.from_bytes(payload[2:4], "big")
        return "tcp" if protocol == TCP else "udp", source, destination, port
    if protocol != _ICMPV6:
        return f"{protocol}", source, destination, 0
    kind = payload[0] if payload else None
    looks = kind == _NEIGHBOR_SOLICITATION and len(payload) >= _TARGET.stop
    if looks and not is_unspecified_network(source):  # from ::, it makes sure of its own address
        return "ndp", source, payload[_TARGET], 0
    return "icmp" if kind == _ECHO_REQUEST else "icmpv6", source, destination, 0


def seeks_router(frame: bytes) -> bool:
    """Whether an Ethernet frame with IPv6 in it is a router solicitation (RFC 4861, 4.1)."""
    payload = frame[_ETHERNET + _HEADER :]
    return frame[_ETHERNET + 6] == _ICMPV6 and payload[:1] == bytes((_ROUTER_SOLICITATION,))


def no_router_here(mac: MacAddress) -> bytes:
    """A frame, its length in front, that tells all nodes that the one at `mac` is no router for
    them: an advertisement without lifetime, prefix and further servers (RFC 4861, 4.2)."""
    # The address that follows from the MAC address (RFC 4291, appendix A).
    source = _LINK_LOCAL + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
    head, rest = bytes((_ROUTER_ADVERTISEMENT, 0)), bytes(12) + b"\x01\x01" + mac
    length = len(head) + 2 + len(rest)
    start = pseudo_header(source, _ALL_NODES, _ICMPV6, length)
    message = head + checksum(head + b"\0\0" + rest, start).to_bytes(2, "big") + rest
    fixed = _FIXED.pack(6 << 28, length, _ICMPV6, 255, source, _ALL_NODES)
    frame = _ALL_NODES_MAC + mac + b"\x86\xdd" + fixed + message
    return len(frame).to_bytes(4, "big") + frame
