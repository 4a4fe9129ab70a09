"""The fast tier: the headers of a plain TCP segment, UDP datagram or ping, from one unpack.

It knows only the shapes that nearly every frame has: IPv4 without options, not a fragment, TCP
without SYN or URG, and without options but for one SACK option behind two NOPs, in which a guest
says what it has beyond a gap. It answers only if all of it is right, checksums included; everything
else, broken or just unusual, gets None, which means "ask the decoder" and never "refused". So
nothing is decided here, and a tuple from here is what `decoder` would have said, field by field.

A plain fragment, of which a large datagram makes dozens, has a function of its own.
"""

from struct import Struct
from typing import TypeAlias

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.wire.checksum import partial
from qemu_usernat.wire.icmp import ECHO_REQUEST
from qemu_usernat.wire.packets import ICMP, TCP, UDP, IpPacket
from qemu_usernat.wire.tcp_options import BLOCKS_MAXIMUM, selective_edges, selective_option

Peeked: TypeAlias = tuple[
    int, Address, int, Address, int, int, int, int, int, int, int, tuple[int, ...]
]
"""(protocol, source, source port, destination, destination port, payload start, payload end,
sequence, acknowledgment, flags, window, selective); payload bounds are offsets into the frame,
`selective` is as in `TcpSegment`, and for UDP the last five are 0, 0, 0, 0, (). So they are for an
echo request (RFC 792), which has its identifier and its sequence number in the places of ports."""

# Ethernet (14 bytes): ethertype. IPv4 (20): version and IHL, total length, flags and offset, TTL,
# source, destination. Then the transport header.
_ETHERNET_IPV4 = ">12xHBxH2xHB3x4s4s"
_UDP_FRAME = Struct(_ETHERNET_IPV4 + "HHHH")
_TCP_FRAME = Struct(_ETHERNET_IPV4 + "HHIIHH4x")
_FRAGMENT = Struct(">12xHBxHHHBB2x4s4s")
_unpack_fragment = _FRAGMENT.unpack_from
_ECHO_FRAME = Struct(_ETHERNET_IPV4 + "H2xHH")
_unpack_echo = _ECHO_FRAME.unpack_from
_ECHO = ECHO_REQUEST << 8  # type and code
_unpack_udp = _UDP_FRAME.unpack_from
_unpack_tcp = _TCP_FRAME.unpack_from

_PROTOCOL_AT = 23
_ADDRESSES_AT = 26  # the pseudo header's addresses end where the transport header begins
_TRANSPORT_AT = 34

_BEFORE_BLOCKS = {
    54 + len(option): option[:4]
    for option in (selective_option((0, 0) * (count + 1)) for count in range(BLOCKS_MAXIMUM))
}
"""Where the payload starts to what stands before the blocks, if a SACK option is all there is."""


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
        start = 54
        end = total + 14
        selective: tuple[int, ...] = ()
        if control & 0xF022 != 0x5000:
            start = _TRANSPORT_AT + 4 * (control >> 12)
            if control & 0x22 or frame[54:58] != _BEFORE_BLOCKS.get(start, b""):
                return None
            selective = selective_edges(frame[54:start])
        if (
            ethertype != 0x0800
            or version != 0x45
            or fragment & 0x3FFF
            or ttl < 2
            or not start <= end <= length
            or int.from_bytes(frame[14:34], "big") % 0xFFFF
            or (partial(frame[_ADDRESSES_AT:end]) + TCP + total - 20) % 0xFFFF
        ):
            return None
        return (TCP, source, source_port, destination, destination_port, start, end,
                sequence, acknowledgment, control & 0xFF, window, selective)  # fmt: skip
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
        return (UDP, source, source_port, destination, destination_port, 42, end, 0, 0, 0, 0, ())
    if protocol == ICMP:
        (ethertype, version, total, fragment, ttl, source, destination,
         kind, identifier, sequence) = _unpack_echo(frame)  # fmt: skip
        end = total + 14
        if (
            kind != _ECHO
            or ethertype != 0x0800
            or version != 0x45
            or fragment & 0x3FFF
            or ttl < 2
            or not 42 <= end <= length
            or int.from_bytes(frame[14:34], "big") % 0xFFFF
            or partial(frame[_TRANSPORT_AT:end]) % 0xFFFF
        ):
            return None
        return (ICMP, source, identifier, destination, sequence, 42, end, 0, 0, 0, 0, ())
    return None


def peek_fragment(frame: memoryview) -> IpPacket | None:
    """A fragment without options whose lengths and header checksum are right; else None.

    As `decoder.decode` has it, the payload copied. One whose TTL is below 2 is left alone, too.
    """
    length = len(frame)
    if length < _FRAGMENT.size:
        return None
    (ethertype, version, total, identification, word, ttl, protocol,
     source, destination) = _unpack_fragment(frame)  # fmt: skip
    end = total + 14
    if (
        not word & 0x3FFF
        or ethertype != 0x0800
        or version != 0x45
        or ttl < 2
        or not _FRAGMENT.size <= end <= length
        or int.from_bytes(frame[14:34], "big") % 0xFFFF
    ):
        return None
    return IpPacket(source, destination, protocol, ttl, identification,
                    bool(word & 0x4000), bool(word & 0x2000), (word & 0x1FFF) * 8,
                    frame[14:34].tobytes(), frame[34:end].tobytes())  # fmt: skip


Located: TypeAlias = tuple[int, Address, Address, int, int, int, int]
"""(protocol, source, destination, identification, flags and offset of fragments, payload start,
payload end); the bounds are offsets into the frame."""


def locate(frame: memoryview) -> Located | None:
    """Where in a frame an IPv4 packet is whose lengths and header checksum are right; else None.

    What it carries is not looked at: this is for packets that somebody else will read.
    """
    length = len(frame)
    if length < _FRAGMENT.size:
        return None
    (ethertype, version, total, identification, word, _, protocol,
     source, destination) = _unpack_fragment(frame)  # fmt: skip
    start, end = 14 + 4 * (version & 0xF), 14 + total
    if (
        ethertype != 0x0800
        or version >> 4 != 4
        or not _FRAGMENT.size <= start <= end <= length
        or int.from_bytes(frame[14:start], "big") % 0xFFFF
    ):
        return None
    return protocol, source, destination, identification, word, start, end
