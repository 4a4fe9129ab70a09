"""What must hold before impacket may look: lengths, versions, options, checksums.

impacket trusts its input. It reads past the end, takes header sizes from whatever options it
found, and loops for ever over an IP option of length 0. So every length is checked here first
against the bytes that are there, innermost last, and impacket is shown only headers that are
whole. These functions return nothing: they raise `Malformed`, or all is well.

Names of the reasons: the header, a dot, what is wrong with it.
"""

from collections.abc import Container, Mapping

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire import tcp_options
from qemu_usernat.wire.checksum import checksum, pseudo_header
from qemu_usernat.wire.packets import ETHERTYPE_ARP, ETHERTYPE_IPV4, TCP, UDP

_ETHERTYPES_NOT_SERVED = {
    0x86DD: "ethernet.ipv6_not_supported",
    0x8100: "ethernet.vlan",  # IEEE 802.1Q
    0x88A8: "ethernet.vlan",  # IEEE 802.1ad
    0x9100: "ethernet.vlan",  # its predecessor, never standardised
}
_ETHERTYPE_MINIMUM = 0x0600  # below it, the field is the length of an 802.3 frame

_ARP_IPV4_OVER_ETHERNET = b"\0\x01\x08\0\x06\x04"  # hardware, protocol and their lengths (RFC 826)

_ANY_LENGTH: Mapping[int, Container[int]] = {}


def check_ethernet(frame: bytes) -> None:
    """An Ethernet II frame of 14 bytes or more that carries ARP or IPv4."""
    if len(frame) < 14:
        raise Malformed("ethernet.too_short")
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype in (ETHERTYPE_IPV4, ETHERTYPE_ARP):
        return
    if ethertype < _ETHERTYPE_MINIMUM:
        raise Malformed("ethernet.802_3")
    raise Malformed(_ETHERTYPES_NOT_SERVED.get(ethertype, "ethernet.unknown_type"))


def check_arp(packet: bytes) -> None:
    """A whole ARP packet (RFC 826) for IPv4 over Ethernet; what follows it is padding."""
    if len(packet) < 28:
        raise Malformed("arp.too_short")
    if packet[:6] != _ARP_IPV4_OVER_ETHERNET:
        raise Malformed("arp.not_ipv4_over_ethernet")


def check_ipv4(packet: bytes) -> None:
    """A whole IPv4 packet or fragment (RFC 791, 3.1); what follows it is padding."""
    if len(packet) < 20:
        raise Malformed("ipv4.too_short")
    if packet[0] >> 4 != 4:
        raise Malformed("ipv4.bad_version")
    header_length = (packet[0] & 15) * 4
    total_length = int.from_bytes(packet[2:4], "big")
    if header_length < 20:
        raise Malformed("ipv4.bad_header_length")
    if not header_length <= total_length <= len(packet):
        raise Malformed("ipv4.bad_total_length")
    if checksum(packet[:header_length]):
        raise Malformed("ipv4.bad_checksum")
    if not _options_are_whole(packet[20:header_length], _ANY_LENGTH):
        raise Malformed("ipv4.bad_option")


def check_tcp(segment: bytes, source: Address, destination: Address) -> None:
    """A TCP segment (RFC 9293, 3.1) with right options and a right checksum."""
    if len(segment) < 20:
        raise Malformed("tcp.too_short")
    if not 20 <= (segment[12] >> 4) * 4 <= len(segment):
        raise Malformed("tcp.bad_data_offset")
    if checksum(segment, pseudo_header(source, destination, TCP, len(segment))):
        raise Malformed("tcp.bad_checksum")
    if not _options_are_whole(segment[20 : (segment[12] >> 4) * 4], tcp_options.LENGTHS):
        raise Malformed("tcp.bad_option")  # MUST-7


def check_udp(datagram: bytes, source: Address, destination: Address) -> None:
    """A UDP datagram (RFC 768) whose checksum is right or, over IPv4, absent."""
    if len(datagram) < 8:
        raise Malformed("udp.too_short")
    length = int.from_bytes(datagram[4:6], "big")
    if not 8 <= length <= len(datagram):
        raise Malformed("udp.bad_length")
    if datagram[6:8] == b"\0\0" and len(source) == 4:
        return
    if checksum(datagram[:length], pseudo_header(source, destination, UDP, length)):
        raise Malformed("udp.bad_checksum")


def check_icmp(message: bytes) -> None:
    """An ICMP message (RFC 792) with a right checksum."""
    if len(message) < 8:
        raise Malformed("icmp.too_short")
    if checksum(message):
        raise Malformed("icmp.bad_checksum")


def _options_are_whole(options: bytes, lengths: Mapping[int, Container[int]]) -> bool:
    """Whether each option ends inside the header and has a length that its kind may have.

    Whatever follows an end of the list is padding (RFC 791, 3.1; RFC 9293, 3.1).
    """
    at, end = 0, len(options)
    while at < end:
        kind = options[at]
        if kind == tcp_options.END_OF_OPTIONS:
            return True
        if kind == tcp_options.NO_OPERATION:
            at += 1
            continue
        length = options[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end or length not in lengths.get(kind, (length,)):
            return False
        at += length
    return True
