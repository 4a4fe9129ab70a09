"""ICMP towards the guest (RFC 792; what an error quotes: RFC 1812, 4.3.2.3)."""

from struct import Struct

from attrs import frozen

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.errors import Malformed
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

TTL = 64  # RFC 1700: what our own packets begin with

UNUSED = bytes(4)
"""The second word of an error that has no use for it (RFC 792)."""

_HEADER = Struct(">BBH4s")


@frozen
class IcmpError:
    """What an ICMP error says, but for the packet that it quotes.

    `rest` is the word after the checksum: the next hop's MTU stands there (RFC 1191, 4). `offender`
    is who says it, of the host's world; None is the gateway, and the host behind it. `ttl` is what
    it has left when it reaches the guest.
    """

    type: int
    code: int
    rest: bytes = UNUSED
    offender: Address | None = None
    ttl: int = TTL


@frozen
class Quote:
    """The packet that an ICMP error is about, as far as every error quotes it (RFC 792).

    `beginning` are the first 8 bytes behind its IP header.
    """

    source: Address
    destination: Address
    protocol: int
    beginning: bytes

    @property
    def ports(self) -> tuple[int, int]:
        """Of its source and its destination, where it is of TCP or UDP."""
        return int.from_bytes(self.beginning[:2], "big"), int.from_bytes(self.beginning[2:4], "big")


def read_quote(payload: bytes) -> Quote:
    """What an ICMP error quotes. Malformed("icmp.bad_quote") where that is not enough of a
    packet."""
    header = 4 * (payload[0] & 0xF) if payload else 0
    if not payload or payload[0] >> 4 != 4 or header < 20 or len(payload) < header + 8:
        raise Malformed("icmp.bad_quote")
    beginning = payload[header : header + 8]
    return Quote(payload[12:16], payload[16:20], payload[9], beginning)


def unreachable(code: int) -> IcmpError:
    """The gateway says: destination unreachable."""
    return IcmpError(DESTINATION_UNREACHABLE, code)


def too_large(mtu: int, offender: Address | None = None) -> IcmpError:
    """Fragmentation needed, and that was forbidden; `mtu` in bytes (RFC 1191, 4)."""
    rest = min(mtu, 0xFFFF).to_bytes(4, "big")
    return IcmpError(DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, rest, offender)


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
