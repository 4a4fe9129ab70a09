"""The Internet checksum (RFC 1071), and the only door to numpy.

The ones' complement sum of 16-bit words is arithmetic modulo 0xffff, so words of any size
may be added in any order and reduced once at the end. Python's big integers do that best for
a header, numpy for a payload.

A sum of 0 and one of 0xffff are the same number in ones' complement but not the same
checksum: only data of nothing but zeros sums to 0. `partial` keeps the two apart, so that the
checksums are bit for bit those of the RFC's loop.
"""

import numpy as np

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.wire.packets import Buffer

_NUMPY_FROM = 700  # bytes: below it, one big integer is cheaper than an array (measured)

_WORDS = np.dtype("<u4")
_HALF_WORDS = np.dtype("<u2")
_SWAP = np.uint64(8)
_SUM = np.dtype(np.uint64)  # 2**32 words of 32 bits fit, so nothing carries out
_array = np.frombuffer
_add = np.add.reduce


def partial(data: Buffer) -> int:
    """The ones' complement sum of big-endian 16-bit words, 0..0xffff, not complemented.

    An odd last byte is padded with a zero; any length and any alignment is right. Partial sums
    of pieces of even length may be added as plain integers.
    """
    length = len(data)
    if length < _NUMPY_FROM:
        total = int.from_bytes(data, "big")
        if length & 1:
            total <<= 8
    else:
        whole = length & ~3
        # Little-endian words hold each pair of bytes swapped, and 256 is what swaps a sum back.
        total = int(_add(_array(data, _WORDS, whole >> 2), 0, _SUM)) << 8
        if whole != length:
            total += int.from_bytes(data[whole:], "big") << 8 * (length & 1)
    return total % 0xFFFF or (0xFFFF if total else 0)


def partial_each(data: Buffer, size: int) -> list[int]:
    """The sums of consecutive pieces of `size` bytes, which is even; a shorter rest is left out.

    One array for all of them: a piece costs a tenth of what `partial` costs. Not reduced; a piece
    of nothing but zeros, and no other, sums to 0.
    """
    words = _WORDS if size & 3 == 0 else _HALF_WORDS
    row = size // words.itemsize
    pieces = len(data) // size
    sums = _add(_array(data, words, pieces * row).reshape(pieces, row), 1, _SUM)
    return (sums << _SWAP).tolist()  # type: ignore[no-any-return]


def checksum(data: Buffer, start: int = 0) -> int:
    """The checksum field, 0..0xffff, over `data` and the sum `start` of what comes before it.

    Over data that holds its checksum already, 0 says that it is right. UDP, where 0 means "none",
    sends 0xffff in its place (RFC 768); that is the caller's to do.
    """
    total = partial(data) + start
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


def pseudo_header(source: Address, destination: Address, protocol: int, length: int) -> int:
    """The sum of the pseudo header: RFC 9293, 3.1 for 4-byte addresses, RFC 8200, 8.1 for 16.

    `length` is that of the transport header and its payload, in bytes. Not reduced, never 0.
    """
    return int.from_bytes(source + destination, "big") % 0xFFFF + protocol + length
