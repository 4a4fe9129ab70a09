"""Answers kept for whoever asks the same, for as long as they say (RFC 2181, RFC 2308).

What is kept is a message: its flags, and its records but for the OPT, which is each hop's own
(RFC 6891, 6.1.1). It is found by name, type and class, and by the bits that change what is
answered: RD, AD, CD and DO; not by how the question came, for what was cut short is not kept.
Nor is a failure, so that what is mended works at once, nor an absence without an SOA, which alone
says how long to believe in it (RFC 2308, 5).

A message is kept for as long as the first of its records to end; what is served says how long each
still lives, so that nobody down the line keeps it longer. What is past its time is not served
(RFC 8767 would allow it), so a cache never says what an upstream would not.
"""

import struct

import dns.rdatatype
from attrs import define, field

from qemu_usernat.gateway import dns_message
from qemu_usernat.gateway.dns_message import HEADER_LENGTH, NOERROR, NXDOMAIN, Key, Query
from qemu_usernat.primitives.counters import Counters

ENTRIES_MAXIMUM = 10_000
"""Answers kept; the one that nobody has asked for the longest goes first."""

BYTES_MAXIMUM = 16 * 1024 * 1024
"""Bytes of all that is kept, with what Python needs around it."""

TTL_MAXIMUM = 86_400
"""Seconds, whatever an upstream says: a bound is ours to choose (RFC 2181, 8), and none has use
for more than a day."""

ABSENCE_MAXIMUM = 900
"""Seconds that something is said to be absent: people lift absences, and then try. RFC 2308, 5,
names one to three hours as working well, and leaves the bound to us."""

OVERHEAD = 1024
"""Bytes of an answer besides its records, which are there twice: as they came, and as they were
served last."""

_HEAD = struct.Struct("!2xHHHHH")  # flags, counts of questions and records
_KEPT_HEAD = struct.Struct("!HHHH")  # the same without additional records
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of the data
_TTL = struct.Struct("!I")
_TTL_AT = 4  # in a record, behind its name
_TTL_LIMIT = 1 << 31
"""From here on a TTL means none (RFC 2181, 8)."""
_POINTER = 0xC0  # in the first of two bytes that end a name (RFC 1035, 4.1.4)
_OPT = int(dns.rdatatype.OPT)
_SOA = int(dns.rdatatype.SOA)


@define(eq=False)
class Answer:
    """An upstream's message, for anybody who asks the same.

    `head` is its flags and counts but for the `additional` records, `records` are all of them but
    the OPT, with their TTLs at `ttls`. `lifetime` is in seconds, 0 where nothing is to be kept.
    """

    head: bytes
    additional: int
    records: bytes
    ttls: list[int]
    lifetime: int
    expires: float = 0.0
    _age: int = 0
    _aged: bytes = b""

    def for_query(self, query: Query, age: int = 0) -> bytes:
        """The answer to `query`, which asks the same, `age` seconds after the message came."""
        records = self.records if not age else self._records_at(age)
        return dns_message.with_records(query, self.head, self.additional, records)

    def _records_at(self, age: int) -> bytes:
        if age != self._age:
            records = bytearray(self.records)
            for at in self.ttls:
                (ttl,) = _TTL.unpack_from(records, at)
                _TTL.pack_into(records, at, max(0, ttl - age))
            self._age, self._aged = age, bytes(records)
        return self._aged


def read_answer(query: Query, message: bytes) -> Answer | None:
    """The message that answers `query`, as it can be told to others; None if it is unreadable."""
    try:
        return _read_answer(query, message)
    except (IndexError, ValueError, struct.error):
        return None


def _read_answer(query: Query, message: bytes) -> Answer:
    flags, questions, answers, authority, additional = _HEAD.unpack_from(message)
    if questions != 1:
        raise ValueError("no question")
    start = end = HEADER_LENGTH + len(query.question)
    records = bytearray(message[start:])
    ttls: list[int] = []
    lifetime, absence, is_positive, opts = TTL_MAXIMUM, 0, False, 0
    for index in range(answers + authority + additional):
        at = _name_ends(message, end)
        kind, _, ttl, length = _RECORD.unpack_from(message, at)
        behind = at + _RECORD.size + length
        if behind > len(message) or opts:
            # What stands behind an OPT might be pointed to, and would not be there any more.
            raise ValueError("a record that does not end in the message, or behind the OPT")
        if kind == _OPT:
            if ttl >> 24:
                raise ValueError("a response code that is not in the header (RFC 6891, 6.1.3)")
            opts, records = 1, records[: end - start]
        else:
            ttl = 0 if ttl >= _TTL_LIMIT else min(ttl, TTL_MAXIMUM)
            if index < answers:
                is_positive = is_positive or kind == query.record_type
            elif kind == _SOA and index < answers + authority:
                (minimum,) = _TTL.unpack_from(message, behind - _TTL.size)
                ttl = absence = min(ttl, minimum, ABSENCE_MAXIMUM)
            lifetime = min(lifetime, ttl)
            ttls.append(at + _TTL_AT - start)
            _TTL.pack_into(records, ttls[-1], ttl)
        end = behind
    if end != len(message):
        raise ValueError("something behind the records")
    rcode = flags & dns_message.RCODE_MASK
    if flags & dns_message.TC or rcode not in (NOERROR, NXDOMAIN):
        lifetime = 0
    elif rcode == NXDOMAIN or not is_positive:
        lifetime = min(lifetime, absence)
    head = _KEPT_HEAD.pack(flags & ~dns_message.AA, 1, answers, authority)
    return Answer(head, additional - opts, bytes(records), ttls, lifetime)


def _name_ends(message: bytes, at: int) -> int:
    """Behind the name that begins there."""
    while length := message[at]:
        if length >= _POINTER:
            return at + 2
        at += length + 1
    return at + 1


@define(eq=False)
class DnsCache:
    """The answers of one network."""

    counters: Counters
    entries_maximum: int = ENTRIES_MAXIMUM
    bytes_maximum: int = BYTES_MAXIMUM
    _answers: dict[Key, Answer] = field(factory=dict, init=False)
    """Oldest in use first."""
    _bytes: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, query: Query, now: float) -> bytes | None:
        """The answer to a shareable query; None if it is not known, or not any more."""
        answer = self._answers.pop(query.key, None)
        if answer is None:
            return None
        left = answer.expires - now
        if left <= 0:
            self._bytes -= _size(query.key, answer)
            return None
        self._answers[query.key] = answer
        # Rounded up: what is served is never said to live longer than it does here.
        return answer.for_query(query, answer.lifetime - int(left))

    def put(self, query: Query, answer: Answer, now: float) -> None:
        """Keep the answer to a shareable query for its lifetime."""
        if not answer.lifetime:
            return
        key = query.key
        old = self._answers.pop(key, None)
        if old is not None:
            self._bytes -= _size(key, old)
        answer.expires = now + answer.lifetime
        self._answers[key] = answer
        self._bytes += _size(key, answer)
        while len(self._answers) > self.entries_maximum or self._bytes > self.bytes_maximum:
            self.counters.count("dns.cache_full")
            oldest = next(iter(self._answers))
            self._bytes -= _size(oldest, self._answers.pop(oldest))

    def clear(self) -> None:
        """Forget everything."""
        self._answers.clear()
        self._bytes = 0


def _size(key: Key, answer: Answer) -> int:
    return OVERHEAD + len(key[0]) + 2 * len(answer.records)
