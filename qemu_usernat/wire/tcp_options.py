"""TCP's options, read and written (RFC 9293, 3.1; RFC 2018, 2 and 3; RFC 7323, 2).

The one home of their kinds, lengths and layout. What an option means is for `nat.tcp` to know;
sequence numbers are carried here, never compared.
"""

from collections.abc import Sequence
from struct import Struct

from qemu_usernat.wire.packets import Buffer

END_OF_OPTIONS = 0  # these two are the same in IP (RFC 791, 3.1)
NO_OPERATION = 1
MAXIMUM_SEGMENT_SIZE = 2
WINDOW_SCALE = 3
SACK_PERMITTED = 4
SELECTIVE = 5

BLOCKS_MAXIMUM = 4  # of 8 bytes: more do not fit into the 40 bytes of options (RFC 2018, 3)

_EDGES = {2 + 8 * blocks: Struct(f">{2 * blocks}I") for blocks in range(1, BLOCKS_MAXIMUM + 1)}
"""Length of the option to the edges of its blocks."""

LENGTHS = {
    MAXIMUM_SEGMENT_SIZE: frozenset({4}),  # RFC 9293, 3.7.1
    WINDOW_SCALE: frozenset({3}),  # RFC 7323, 2.2
    SACK_PERMITTED: frozenset({2}),  # RFC 2018, 2
    SELECTIVE: frozenset(_EDGES),  # RFC 2018, 3
}
"""Kind to the lengths in bytes, its own two included, that an option may have."""


def syn_options(maximum_segment_size: int, window_scale: int | None, sack_permitted: bool) -> bytes:
    """The options of our SYN or SYN,ACK, padded to a multiple of 4 bytes.

    `maximum_segment_size` is in bytes, below 2**16; `window_scale` is a shift of 0..14, or None
    where the option is not to be sent.
    """
    options = b"\x02\x04" + maximum_segment_size.to_bytes(2, "big")
    if sack_permitted:
        options += b"\x01\x01\x04\x02"
    if window_scale is not None:
        options += b"\x01\x03\x03" + bytes([window_scale])
    return options


def selective_option(edges: Sequence[int]) -> bytes:
    """A SACK option of the blocks (left, right, left, right, …), padded as others pad it.

    `edges` are sequence numbers, at most 4 pairs, the most important first; without any there is
    no option, b"".
    """
    if not edges:
        return b""
    length = 2 + 4 * len(edges)
    return bytes((NO_OPERATION, NO_OPERATION, SELECTIVE, length)) + _EDGES[length].pack(*edges)


def selective_edges(options: Buffer) -> tuple[int, ...]:
    """The edges of the first SACK option, as `selective_option` takes them; () without one.

    `guard.check_tcp` has refused lengths that cannot be. Where it was not asked, an option that
    cannot be read is none: what it would have said is advice (RFC 2018, 3).
    """
    at = 0
    while at + 1 < len(options) and options[at] != END_OF_OPTIONS:
        if options[at] == NO_OPERATION:
            at += 1
            continue
        length = options[at + 1]
        if options[at] == SELECTIVE:
            edges = _EDGES.get(length)
            if edges is None or at + length > len(options):
                return ()
            return edges.unpack_from(options, at + 2)
        at += max(length, 2)
    return ()
