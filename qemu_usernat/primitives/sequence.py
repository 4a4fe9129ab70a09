"""Sequence numbers: 32 bits that wrap (RFC 9293, 3.4).

Never compare two sequence numbers as plain integers: `difference` is the only
comparison, and it is right for numbers less than 2**31 apart.
"""

MODULUS = 1 << 32
_HALF = 1 << 31
_MASK = MODULUS - 1


def add(sequence: int, length: int) -> int:
    """The number `length` octets (which may be negative) after `sequence`."""
    return (sequence + length) & _MASK


def difference(later: int, earlier: int) -> int:
    """How far `later` is ahead of `earlier`: from -2**31 to 2**31 - 1."""
    return ((later - earlier + _HALF) & _MASK) - _HALF
