"""Frames for the guest, ready for the stream: length, Ethernet header, packet, padding.

QEMU's stream carries each frame behind a 4-byte big-endian length. Writing it here, with the
header that is being packed anyway, costs nothing; so everything this room emits begins with it.
Frames are padded with zeros to the 60 bytes that Ethernet asks for (RFC 894).

A `SegmentTemplate` knows everything about a TCP flow that does not change: what is left for
each segment is one `pack` and the sum of its payload, which is not copied. A `DatagramTemplate`
knows as much of a UDP mapping, to which anybody may send.
"""

from struct import Struct

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.wire.checksum import partial, partial_each, pseudo_header
from qemu_usernat.wire.packets import ETHERTYPE_IPV4, PSH, TCP, UDP, Buffer

FRAME_MINIMUM = 60  # bytes without the frame check sequence (IEEE 802.3)
ETHERNET_HEADER = 14  # bytes

_STREAM_AND_ETHERNET = Struct(">I6s6sH")

# Stream length; MAC addresses, ethertype, version, TOS; total length; identification and DF;
# TTL and protocol; checksum; addresses and ports; sequence; acknowledgment; offset and flags;
# window; checksum; urgent pointer.
_pack_segment = Struct(">I16sHIHH12sIIHHHH").pack

# The same in two: down to the ports, which all full segments of a flow share, and the rest.
_pack_shared = Struct(">I16sHIHH12s").pack
_pack_rest = Struct(">IIHHHH").pack

# Of a datagram: stream length; MAC addresses, ethertype, version, TOS; length; identification;
# flags and offset; TTL and protocol; checksum; addresses; ports; length; checksum.
_pack_datagram = Struct(">I16sHHHHH4s4sHHHH").pack

# RFC 6864: an atomic datagram needs no identification.
_UNIDENTIFIED_DONT_FRAGMENT = 0x0000_4000
_TTL_64_TCP = 64 << 8 | TCP

_TTL_64_UDP = 64 << 8 | UDP

_JOINED_BELOW = 256  # bytes: copying less costs no more than one more buffer to send (measured)


def framed(destination: MacAddress, source: MacAddress, ethertype: int, *content: Buffer) -> bytes:
    """One Ethernet frame as the stream carries it; `content` is joined and padded."""
    length = ETHERNET_HEADER + sum(map(len, content))
    padding = bytes(max(0, FRAME_MINIMUM - length))
    head = _STREAM_AND_ETHERNET.pack(length + len(padding), destination, source, ethertype)
    return b"".join((head, *content, padding))


class SegmentTemplate:
    """The headers of one TCP flow's segments towards the guest (RFC 9293, 3.1).

    IPv4 with DF set, identification 0 and TTL 64: a segment fits the link or is not sent.
    """

    __slots__ = ("_addresses", "_ethernet", "_ip_sum", "_tcp_sum")

    def __init__(
        self,
        guest_mac: MacAddress,
        gateway_mac: MacAddress,
        host_address: Address,
        host_port: int,
        guest_address: Address,
        guest_port: int,
    ) -> None:
        ports = host_port.to_bytes(2, "big") + guest_port.to_bytes(2, "big")
        self._ethernet = guest_mac + gateway_mac + ETHERTYPE_IPV4.to_bytes(2, "big") + b"\x45\0"
        self._addresses = host_address + guest_address + ports
        self._ip_sum = (
            0x4500
            + 20
            + _UNIDENTIFIED_DONT_FRAGMENT
            + _TTL_64_TCP
            + partial(host_address + guest_address)
        )
        self._tcp_sum = pseudo_header(host_address, guest_address, TCP, 0) + host_port + guest_port

    def append(
        self,
        out: list[Buffer],
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: Buffer = b"",
        options: bytes = b"",
    ) -> int:
        """Append one segment to `out` and return how many bytes that was, stream length included.

        `options` are padded to a multiple of 4 by the caller, at most 40 bytes; all of the packet
        is at most 65535 bytes. A small payload is joined to its header, a large one is appended as
        it is: it must not change before it is sent.
        """
        length = 20 + len(options) + len(payload)
        control = 0x5000 + (len(options) << 10) + flags
        total = self._tcp_sum + length + sequence + acknowledgment + control + window
        if payload:
            total += partial(payload)
        if options:
            total += partial(options)
        # A header's sum is never 0, so the remainder of its negative is its checksum.
        header = _pack_segment(
            length + 34 if length > 26 else FRAME_MINIMUM,
            self._ethernet,
            length + 20,
            _UNIDENTIFIED_DONT_FRAGMENT,
            _TTL_64_TCP,
            -(self._ip_sum + length) % 0xFFFF,
            self._addresses,
            sequence,
            acknowledgment,
            control,
            window,
            -total % 0xFFFF,
            0,
        )
        if length < 26:
            out.append((header + options + payload).ljust(4 + FRAME_MINIMUM, b"\0"))
            return 4 + FRAME_MINIMUM
        if len(payload) < _JOINED_BELOW:
            out.append(header + options + payload)
        else:
            out.append(header + options if options else header)
            out.append(payload)
        return length + 38

    def append_each(
        self,
        out: list[Buffer],
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: memoryview,
        size: int,
    ) -> int:
        """Append `payload` as segments of `size` bytes, an even number; what `append` returns.

        As `append` for each of them, at a fraction of its cost. `flags` are the last segment's;
        the others have no PSH.
        """
        length = size + 20
        shared = _pack_shared(
            length + 34,
            self._ethernet,
            length + 20,
            _UNIDENTIFIED_DONT_FRAGMENT,
            _TTL_64_TCP,
            -(self._ip_sum + length) % 0xFFFF,
            self._addresses,
        )
        control = 0x5000 + (flags & ~PSH)
        same = self._tcp_sum + length + acknowledgment + control + window
        start = 0
        sums = partial_each(payload, size)
        if len(sums) * size == len(payload):
            sums.pop()  # the last one differs in its flags
        for total in sums:
            stop = start + size
            out.append(
                shared
                + _pack_rest(
                    sequence,
                    acknowledgment,
                    control,
                    window,
                    -(same + sequence + total) % 0xFFFF,
                    0,
                )
            )
            out.append(payload[start:stop])
            start = stop
            sequence = (sequence + size) & 0xFFFF_FFFF
        last = self.append(out, sequence, acknowledgment, flags, window, payload[start:])
        return len(sums) * (length + 38) + last


class DatagramTemplate:
    """The headers of what one UDP mapping says to its guest (RFC 768), whoever it comes from."""

    __slots__ = ("_address", "_ethernet", "_ip_sum", "_port", "_udp_sum")

    def __init__(
        self,
        guest_mac: MacAddress,
        gateway_mac: MacAddress,
        guest_address: Address,
        guest_port: int,
    ) -> None:
        self._ethernet = guest_mac + gateway_mac + ETHERTYPE_IPV4.to_bytes(2, "big") + b"\x45\0"
        self._address = guest_address
        self._port = guest_port
        # The length is in the pseudo header and in the header: 8 each, and that of the payload.
        self._ip_sum = 0x4500 + 28 + _TTL_64_UDP + partial(guest_address)
        self._udp_sum = partial(guest_address) + UDP + 8 + 8 + guest_port

    def append(
        self,
        out: list[Buffer],
        source: Address,
        source_port: int,
        identification: int,
        payload: Buffer,
    ) -> int:
        """Append one datagram to `out` and return how many bytes that was, stream length included.

        All of it fits the guest's MTU. A small payload is joined to its header, a large one is
        appended as it is: it must not change before it is sent.
        """
        size = len(payload)
        sender = int.from_bytes(source, "big")
        total = self._udp_sum + sender + source_port + 2 * size + partial(payload)
        header = _pack_datagram(
            size + 42 if size > 18 else FRAME_MINIMUM,
            self._ethernet,
            size + 28,
            identification,
            0,
            _TTL_64_UDP,
            -(self._ip_sum + size + identification + sender) % 0xFFFF,
            source,
            self._address,
            source_port,
            self._port,
            size + 8,
            -total % 0xFFFF or 0xFFFF,  # 0 would say that there is none
        )
        if size < 18:
            out.append((header + payload).ljust(4 + FRAME_MINIMUM, b"\0"))
            return 4 + FRAME_MINIMUM
        if size < _JOINED_BELOW:
            out.append(header + payload)
        else:
            out.append(header)
            out.append(payload)
        return size + 46
