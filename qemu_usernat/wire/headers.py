"""The fast tier: the headers of a plain TCP segment or UDP datagram, from one unpack.

It knows exactly one shape a protocol, the one that nearly every frame has: IPv4 without options,
not a fragment, TCP without options, SYN or URG. It answers only if all of it is right, checksums
included; everything else, broken or just unusual, gets None, which means "ask the decoder" and
never "refused". So nothing is decided here, and a tuple from here is what `decoder` would have
said, field by field.
"""

from struct import Struct
from typing import TypeAlias

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.wire.checksum import partial
from qemu_usernat.wire.packets import TCP, UDP

Peeked: TypeAlias = tuple[int, Address, int, Address, int, int, int, int, int, int, int]
"""(protocol, source, source port, destination, destination port, payload start, payload end,
sequence, acknowledgment, flags, window); payload bounds are offsets into the frame, and the last
four are 0 for UDP."""

# Ethernet (14 bytes): ethertype. IPv4 (20): version and IHL, total length, flags and offset, TTL,
# source, destination. Then the transport header.
_ETHERNET_IPV4 = ">12xHBxH2xHB3x4s4s"
_UDP_FRAME = Struct(_ETHERNET_IPV4 + "HHHH")
_TCP_FRAME = Struct(_ETHERNET_IPV4 + "HHIIHH4x")
_unpack_udp = _UDP_FRAME.unpack_from
_unpack_tcp = _TCP_FRAME.unpack_from

_PROTOCOL_AT = 23
_ADDRESSES_AT = 26  # the pseudo header's addresses end where the transport header begins
_TRANSPORT_AT = 34


def peek(frame: memoryview) -> Peeked | None:
    """The headers of a plain frame whose lengths and checksums are all right; else None.

    `frame` starts at the Ethernet header; whatever follows the IP packet is padding. A UDP
    checksum of 0 counts as right (RFC 768). A TTL below 2 is left to those who answer it.
    """
    length = len(frame)
    if length < _UDP_FRAME.size:
        return None
    protocol = frame[_PROTOCOL_AT]
    if protocol == TCP and length >= _TCP_FRAME.size:
        (ethertype, version, total, fragment, ttl, source, destination,
         source_port, destination_port, sequence, acknowledgment, control,
         window) = _unpack_tcp(frame)  # fmt: skip
        end = total + 14
        if (
            ethertype != 0x0800
            or version != 0x45
            or fragment & 0x3FFF
            or ttl < 2
            or not 54 <= end <= length
            or control & 0xF022 != 0x5000
            or int.from_bytes(frame[14:34], "big") % 0xFFFF
            or (partial(frame[_ADDRESSES_AT:end]) + TCP + total - 20) % 0xFFFF
        ):
            return None
        return (TCP, source, source_port, destination, destination_port, 54, end,
                sequence, acknowledgment, control & 0xFF, window)  # fmt: skip
    if protocol == UDP:
        (ethertype, version, total, fragment, ttl, source, destination,
         source_port, destination_port, datagram, sum_) = _unpack_udp(frame)  # fmt: skip
        end = datagram + _TRANSPORT_AT
        if (
            ethertype != 0x0800
            or version != 0x45
            or fragment & 0x3FFF
            or ttl < 2
            or not 42 <= end <= total + 14 <= length
            or int.from_bytes(frame[14:34], "big") % 0xFFFF
            or (sum_ and (partial(frame[_ADDRESSES_AT:end]) + UDP + datagram) % 0xFFFF)
        ):
            return None
        return (UDP, source, source_port, destination, destination_port, 42, end, 0, 0, 0, 0)
    return None
