"""The values between the wire and everybody else: one class a header, already verified.

Ports, sequence numbers and lengths are ints in host order; addresses are packed
(`primitives.addresses`); payloads are bytes that hold no padding of a lower layer. Nothing
here knows how it is written on the wire.
"""

from typing import TypeAlias

from attrs import frozen

from qemu_usernat.primitives.addresses import Address, MacAddress

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that somebody else may own: never kept by a builder, never changed."""

# Protocol numbers (IANA, RFC 790 first)
ICMP = 1
TCP = 6
UDP = 17

# TCP control bits (RFC 9293, 3.1)
FIN = 1
SYN = 2
RST = 4
PSH = 8
ACK = 16
URG = 32

# ARP operations (RFC 826)
ARP_REQUEST = 1
ARP_REPLY = 2

# Ethernet types (IEEE 802 numbers)
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806


@frozen
class Arp:
    """An ARP packet for IPv4 over Ethernet (RFC 826)."""

    operation: int
    sender_mac: MacAddress
    sender_address: Address
    target_mac: MacAddress
    target_address: Address


@frozen
class IpPacket:
    """An IP packet or a fragment of one (RFC 791).

    `fragment_offset` is in bytes. `header` is the IP header as it came, options included, for
    those who quote it. `payload` ends where the total length says.
    """

    source: Address
    destination: Address
    protocol: int
    ttl: int
    identification: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int
    header: bytes
    payload: bytes


@frozen
class Frame:
    """An Ethernet II frame (RFC 894)."""

    destination: MacAddress
    source: MacAddress
    content: Arp | IpPacket


@frozen
class TcpSegment:
    """A TCP segment (RFC 9293, 3.1), with those options that this project negotiates.

    `flags` are the eight control bits, ECN's two included. Options that count only in a SYN
    are read wherever they stand; whoever uses them looks at the flags. The urgent pointer is
    not here: urgent data is data. `selective` are the sequence numbers in the first SACK option:
    the left and the right edge of a block, then those of the next.
    """

    source_port: int
    destination_port: int
    sequence: int
    acknowledgment: int
    flags: int
    window: int
    maximum_segment_size: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    payload: bytes = b""
    selective: tuple[int, ...] = ()


@frozen
class UdpDatagram:
    """A UDP datagram (RFC 768); the payload ends where the UDP length says."""

    source_port: int
    destination_port: int
    payload: bytes


@frozen
class IcmpMessage:
    """An ICMP message (RFC 792): `rest` is the four bytes after the checksum."""

    type: int
    code: int
    rest: bytes
    payload: bytes
