"""What the readers of first flights share: their outcomes, their bound, the names they read.

A reader takes the octets that a guest has sent so far, in any pieces, and comes to an outcome that
is a function of those octets alone, never of how they were cut. Once it has come to one it
stays with it. Bytes never make a reader raise; inside, `Malformed` carries the reason to its edge.

A guest may hope that we take its octets for one thing and the server for another. So readers
are strict where they accept and generous where they suspect: what any server in use might take
for a ClientHello or a request is never called something else, it is unreadable.
"""

import re
from collections.abc import Mapping
from typing import Final, TypeAlias

from attrs import frozen

from qemu_usernat.primitives.errors import Malformed

FLIGHT_MAXIMUM: Final = 64 * 1024
"""Octets within which a ClientHello, or the head of a request, must be complete."""

NAME_MAXIMUM: Final = 253  # octets of a name in text, without its last dot (RFC 1035, 2.3.4)

Buffer: TypeAlias = bytes | bytearray | memoryview


@frozen
class NeedMore:
    """Nothing is decided yet."""


@frozen
class Unreadable:
    """The protocol it is, or pretends to be, but nothing that a name could be believed of.

    `why` is one of the closed list of reasons: a key of `first_flight.REASONS`.
    """

    why: str


NEED_MORE: Final = NeedMore()

REASONS: Final[Mapping[str, str]] = {
    "flight.too_large": "It was not complete within 64 KiB.",
    "name.empty": "The name is empty.",
    "name.is_address": "An IP address stands where a name should.",
    "name.malformed": "The name has octets, labels or a length that no host name has.",
}

_NAME = re.compile(rb"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_NUMBER = re.compile(rb"[0-9]+|0x[0-9a-f]*")


def is_host_name(name: str) -> bool:
    """Whether it has only labels that a name may have here, in small letters."""
    return name.isascii() and bool(_NAME.fullmatch(name.encode()))


def read_name(octets: bytes) -> str:
    """A host name in its one spelling: lower case, no dot at the end.

    Letters, digits, hyphens and, as they are in use, underscores; others come as A-labels
    (RFC 5890). What ends in a number is an address to whoever parses it (as 127.1 and 0x7f000001
    are), whatever the rest. Raises Malformed(name.…).
    """
    name = octets.lower().removesuffix(b".")
    if not name:
        raise Malformed("name.empty")
    if name.count(b":") > 1 or _NUMBER.fullmatch(name.rpartition(b".")[2]):
        raise Malformed("name.is_address")
    if len(name) > NAME_MAXIMUM or not _NAME.fullmatch(name):
        raise Malformed("name.malformed")
    return name.decode("ascii")
