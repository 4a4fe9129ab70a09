"""UDP towards the guest (RFC 768)."""

from struct import Struct

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.wire.checksum import checksum, partial, pseudo_header
from qemu_usernat.wire.packets import UDP, Buffer

HEADER = 8  # bytes

_HEADER = Struct(">HHHH")


def udp_datagram(
    source: Address,
    source_port: int,
    destination: Address,
    destination_port: int,
    payload: Buffer,
) -> bytes:
    """A UDP header and its payload: what IP carries, with the checksum always filled in.

    The addresses, of 4 bytes or 16, are those of the pseudo header.
    """
    length = HEADER + len(payload)
    header = _HEADER.pack(source_port, destination_port, length, 0)
    start = pseudo_header(source, destination, UDP, length) + partial(header)
    # 0 would say that there is none; 0xffff is the same number.
    header = _HEADER.pack(source_port, destination_port, length, checksum(payload, start) or 0xFFFF)
    return b"".join((header, payload))
