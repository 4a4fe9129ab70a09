"""What an answer costs to read, told before it is read.

dnspython reads the answers of which something is changed. It takes 2 µs for each label of an owner,
and for a name in the data, which it hashes, time in the square of its labels: 4 ms for the longest.
Whoever runs a zone could have us stand still for seconds with one message full of them. Here names
are only counted, each place in the message once.
"""

import struct
from typing import Final

import dns.rdatatype

from qemu_usernat.gateway import dns_message
from qemu_usernat.gateway.dns_message import HEADER_LENGTH

RECORDS_MAXIMUM: Final = 512
"""Records in one answer: 25 ms, where their names are short."""

WEIGHT_MAXIMUM: Final = 1 << 17
"""Of the names in one answer: below 0.1 s. 512 addresses or services of usual names are half."""

_OWNER_WEIGHT = 8
"""Of each label of an owner; those of a name in the data weigh by their square."""

_UNKNOWN_WEIGHT = 127 * 127
"""Of data that have names nobody knows where: as much as the longest name."""

_QUESTION_END = 4  # type, class
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of the data
_LABEL_MAXIMUM = 63
_POINTER = 0xC0  # in the first of two bytes that end a name (RFC 1035, 4.1.4)


def _types(text: str) -> frozenset[int]:
    return frozenset(int(dns.rdatatype.from_text(each)) for each in text.split())


_WITHOUT_NAMES = _types("A AAAA TXT SPF HINFO CAA DS CDS DNSKEY CDNSKEY TLSA SSHFP OPT LOC URI")
_NAME_AT = {
    **dict.fromkeys(_types("NS CNAME PTR DNAME"), 0),
    **dict.fromkeys(_types("MX AFSDB KX RT"), 2),
    **dict.fromkeys(_types("SRV"), 6),
}
"""Where in the data the one name begins."""


def is_light(message: bytes) -> bool:
    """Whether an upstream's message of one question is read in no time that matters; False, too,
    if its records are broken."""
    count = dns_message.record_count(message)
    if count > RECORDS_MAXIMUM:
        return False
    try:
        return _weight(message, count) <= WEIGHT_MAXIMUM
    except (IndexError, ValueError, struct.error):
        return False


def _weight(message: bytes, count: int) -> int:
    weight, known = 0, dict[int, int]()
    at = _name_ends(message, HEADER_LENGTH) + _QUESTION_END
    for _ in range(count):
        weight += _OWNER_WEIGHT * _labels(message, at, known)
        at = _name_ends(message, at)
        kind, _, _, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if kind in _NAME_AT:
            weight += _labels(message, at + _NAME_AT[kind], known) ** 2
        elif kind not in _WITHOUT_NAMES:
            weight += _UNKNOWN_WEIGHT
        at += length
    return weight


def _name_ends(message: bytes, at: int) -> int:
    """Behind the name that begins there."""
    while length := message[at]:
        if length >= _POINTER:
            return at + 2
        at += length + 1
    return at + 1


def _labels(message: bytes, at: int, known: dict[int, int]) -> int:
    """How many the name has that begins there; `known` is of each place that was seen."""
    seen, begins = [], at
    while at not in known and (length := message[at]):
        seen.append(at)
        if length >= _POINTER:
            at = (length - _POINTER) << 8 | message[at + 1]
            if at >= begins:
                raise ValueError("a pointer that does not lead back")
            begins = at
        elif length > _LABEL_MAXIMUM:
            raise ValueError("no length of a label")
        else:
            at += length + 1
    count = known.get(at, 0)
    for place in reversed(seen):
        count += message[place] < _POINTER
        known[place] = count
    return count
