"""IPv4 towards the guest (RFC 791): a header, and fragments where the link asks for them."""

from struct import Struct

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.wire.checksum import checksum
from qemu_usernat.wire.emit import framed
from qemu_usernat.wire.packets import ETHERTYPE_IPV4, Buffer

HEADER = 20  # bytes without options
PACKET_MAXIMUM = 65535  # bytes, the total length's 16 bits

DONT_FRAGMENT = 0x4000
MORE_FRAGMENTS = 0x2000

_HEADER = Struct(">BBHHHBBH4s4s")


def ipv4_header(
    source: Address,
    destination: Address,
    protocol: int,
    length: int,
    identification: int,
    ttl: int,
    fragment: int = 0,
) -> bytes:
    """A header of 20 bytes with its checksum.

    `length` is the payload's, in bytes; `fragment` the word of flags and offset in units of 8.
    """
    fields = (0x45, 0, HEADER + length, identification, fragment, ttl, protocol)
    header = _HEADER.pack(*fields, 0, source, destination)
    return _HEADER.pack(*fields, checksum(header), source, destination)


def ipv4_frames(
    gateway_mac: MacAddress,
    guest_mac: MacAddress,
    source: Address,
    destination: Address,
    protocol: int,
    payload: Buffer,
    mtu: int,
    identification: int,
    ttl: int = 64,
    dont_fragment: bool = False,
) -> list[bytes]:
    """The frames that carry one packet to the guest: one, or its fragments (RFC 791, 2.3).

    `mtu` is that of IP, in bytes, at least 28. ValueError for a payload that no packet can
    hold, or that does not fit the MTU when it may not be fragmented.
    """
    length = len(payload)
    if HEADER + length > (mtu if dont_fragment else PACKET_MAXIMUM):
        raise ValueError(f"a payload of {length} bytes does not fit into a packet")

    def frame(start: int, end: int, word: int) -> bytes:
        header = ipv4_header(source, destination, protocol, end - start, identification, ttl, word)
        return framed(guest_mac, gateway_mac, ETHERTYPE_IPV4, header, payload[start:end])

    if HEADER + length <= mtu:
        return [frame(0, length, DONT_FRAGMENT if dont_fragment else 0)]
    step = (mtu - HEADER) & ~7
    last = (length - 1) // step * step
    frames = [
        frame(start, start + step, MORE_FRAGMENTS | start >> 3) for start in range(0, last, step)
    ]
    frames.append(frame(last, length, last >> 3))
    return frames
