"""ICMP towards the guest (RFC 792; what an error quotes: RFC 1812, 4.3.2.3)."""

from struct import Struct

from qemu_usernat.wire.checksum import checksum, partial
from qemu_usernat.wire.packets import Buffer

# Types (RFC 792)
ECHO_REPLY = 0
DESTINATION_UNREACHABLE = 3
REDIRECT = 5
ECHO_REQUEST = 8
TIME_EXCEEDED = 11
PARAMETER_PROBLEM = 12

# Codes of DESTINATION_UNREACHABLE (RFC 792, RFC 1812, 5.2.7.1)
NETWORK_UNREACHABLE = 0
HOST_UNREACHABLE = 1
PROTOCOL_UNREACHABLE = 2
PORT_UNREACHABLE = 3
FRAGMENTATION_NEEDED = 4
ADMINISTRATIVELY_PROHIBITED = 13

# Codes of TIME_EXCEEDED (RFC 792)
TTL_EXCEEDED = 0
REASSEMBLY_TIME_EXCEEDED = 1

QUOTE_MAXIMUM = 548  # bytes: the error's packet is at most 576 (RFC 1812, 4.3.2.3)

_HEADER = Struct(">BBH4s")


def icmp_message(type: int, code: int, rest: bytes, payload: Buffer) -> bytes:  # noqa: A002
    """An ICMP message with its checksum; `rest` is the four bytes after it."""
    start = partial(_HEADER.pack(type, code, 0, rest))
    return b"".join((_HEADER.pack(type, code, checksum(payload, start), rest), payload))


def icmp_error(type: int, code: int, rest: bytes, quoted: bytes) -> bytes:  # noqa: A002
    """An ICMP error that quotes as much of the offending packet as 576 bytes allow.

    `quoted` starts at that packet's IP header. Whether an error may be sent at all
    (RFC 1122, 3.2.2) is the caller's to know.
    """
    return icmp_message(type, code, rest, quoted[:QUOTE_MAXIMUM])
