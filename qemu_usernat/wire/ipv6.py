"""Whom an IPv6 packet is for: all that is read of IPv6 while there is none."""

from qemu_usernat.primitives.addresses import Address, is_unspecified_network
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.packets import TCP, UDP

_ETHERNET, _HEADER = 14, 40  # bytes
_ICMPV6 = 58  # RFC 4443
_ECHO_REQUEST = 128
_NEIGHBOR_SOLICITATION = 135  # RFC 4861, 4.3
_TARGET = slice(8, 24)


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
