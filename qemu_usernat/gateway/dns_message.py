"""DNS messages (RFC 1035), as little of them as a forwarder has to understand.

A guest's query is read as far as its question and its EDNS record (RFC 6891), with every length
checked: a plain one, as nearly all are, by the few lines of `_read_plain`, any other by dnspython's
parser. An upstream's message is never parsed to be passed on: it is compared, header and question,
and its bytes go through, so record types that nobody has heard of pass as well. `read_query` raises
only `Malformed`.
"""

from collections.abc import Iterable
from struct import Struct
from typing import Final, TypeAlias

import dns.exception
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.wire
from attrs import frozen

from qemu_usernat.primitives.errors import Malformed

HEADER_LENGTH: Final = 12  # bytes (RFC 1035, 4.1.1)

# Flag bits of the second word (RFC 1035, 4.1.1)
QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020  # RFC 4035; in a query, that its meaning is understood (RFC 6840, 5.7)
CD: Final = 0x0010
OPCODE_MASK: Final = 0x7800
RCODE_MASK: Final = 0x000F

# Response codes (RFC 1035, 4.1.1)
NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5

UDP_SIZE_MINIMUM: Final = 512
"""Bytes of a UDP answer that everybody takes (RFC 1035, 2.3.4; RFC 6891, 6.2.3)."""

UDP_PAYLOAD_MAXIMUM: Final = 65507
"""Bytes in one UDP datagram over IPv4, whatever size a guest says it takes."""

_LABEL_MAXIMUM: Final = 63  # bytes (RFC 1035, 2.3.4)
_NAME_MAXIMUM: Final = 255

TCP_SIZE_MAXIMUM: Final = 65535
"""Bytes of a message over TCP, whose length has two (RFC 1035, 4.2.2)."""

RECORDS_MAXIMUM: Final = 8
"""Records that a query may carry; it has use for two, an OPT and a signature (RFC 8945)."""

QUERY_MAXIMUM: Final = 4096
"""Bytes of a query: a question, a signature and padding to a block (RFC 8467) take a few hundred.
Those that wait are kept, and there may be thousands."""

UDP_SIZE_OURS: Final = 1232
"""Bytes of a UDP query that we invite: what fits any IPv6 path unfragmented."""

_HEADER = Struct("!HHHHHH")
_QUESTION_END = Struct("!HH")  # type, class
_RECORD = Struct("!HHIH")  # type, class, TTL, length of the data
_OPTION = Struct("!HH")  # code, length (RFC 6891, 6.1.2)
_EXTENDED_ERROR = 15  # RFC 8914, 2
_DNSSEC_OK = 0x8000  # in the TTL field of an OPT record (RFC 3225)
_OPT_RECORD = Struct("!xHHIH")  # its name is the root
_HOP_BY_HOP = frozenset({10, 11, 12})  # cookie (RFC 7873), keepalive (7828), padding (7830)
_SHAREABLE_FLAGS = RD | AD | CD
_POINTER = 0xC000  # and an offset, in place of a name (RFC 1035, 4.1.4)
_OWNER_IS_QUESTION = (_POINTER | HEADER_LENGTH).to_bytes(2, "big")


Key: TypeAlias = tuple[bytes, int, bool]
"""A question, and the bits that change what is answered."""


@frozen
class Query:
    """A guest's query: one question.

    `question` is its section as it came, capitals and all, `folded` the same in lower case.
    `udp_size` is how large a UDP answer may be, in bytes. `has_edns` and `dnssec_ok` tell of its
    OPT record. `is_shareable` if nothing in it but `flags`, `folded` and `dnssec_ok` has a say in
    what is answered, so that one answer serves everybody who asks the same.
    """

    identifier: int
    flags: int
    question: bytes
    folded: bytes
    record_type: int
    record_class: int
    udp_size: int
    has_edns: bool
    dnssec_ok: bool
    is_shareable: bool

    @property
    def key(self) -> Key:
        """What a shareable query asks."""
        return self.folded, self.flags, self.dnssec_ok

    @property
    def name(self) -> dns.name.Name:
        """Whose records are asked for."""
        return dns.name.from_wire(self.question, 0)[0]


def read_query(message: bytes) -> Query:
    """Read a message of at least `HEADER_LENGTH` bytes that is a query.

    Malformed("dns.malformed") unless it has exactly one question, at most `RECORDS_MAXIMUM`
    records that end where the message ends, and at most one OPT among them (RFC 6891, 6.1.1);
    Malformed("dns.query_too_large") if it has more than `QUERY_MAXIMUM` bytes.
    """
    if len(message) > QUERY_MAXIMUM:
        raise Malformed("dns.query_too_large")
    return _read_plain(message) or _read_any(message)


def _read_plain(message: bytes) -> Query | None:
    """A query with nothing behind its question but perhaps an OPT record; None for any other."""
    identifier, flags, questions, answers, authority, additional = _HEADER.unpack_from(message)
    if questions != 1 or answers or authority or additional > 1:
        return None
    size, name_ends = len(message), HEADER_LENGTH
    while name_ends < size and (length := message[name_ends]):
        if length > _LABEL_MAXIMUM:
            return None
        name_ends += length + 1
    name_ends += 1
    end = name_ends + _QUESTION_END.size
    if end > size or name_ends - HEADER_LENGTH > _NAME_MAXIMUM:
        return None
    edns = None
    if additional:
        start = end + _OPT_RECORD.size
        if start > size or message[end]:
            return None
        record_type, record_class, ttl, length = _OPT_RECORD.unpack_from(message, end)
        if record_type != dns.rdatatype.OPT or start + length != size:
            return None
        edns = record_class, ttl, message[start:]
    elif end != size:
        return None
    return _query(identifier, flags, message[HEADER_LENGTH:end], edns, is_plain=True)


def _read_any(message: bytes) -> Query:
    identifier, flags, questions, *others = _HEADER.unpack_from(message)
    if questions != 1 or sum(others) > RECORDS_MAXIMUM:
        raise Malformed("dns.malformed")
    parser = dns.wire.Parser(message, HEADER_LENGTH)
    try:
        name = dns.name.from_wire_parser(parser)
        parser.get_bytes(_QUESTION_END.size)
        end_of_question = parser.current
        edns = _read_records(parser, sum(others))
    except dns.exception.DNSException:
        raise Malformed("dns.malformed") from None
    question = message[HEADER_LENGTH:end_of_question]
    # A question whose name is a pointer could not be echoed.
    if len(question) != sum(len(label) + 1 for label in name.labels) + _QUESTION_END.size:
        raise Malformed("dns.malformed")
    is_plain = sum(others) == others[2] == (edns is not None)
    return _query(identifier, flags, question, edns, is_plain=is_plain)


def _query(
    identifier: int,
    flags: int,
    question: bytes,
    edns: tuple[int, int, bytes] | None,
    *,
    is_plain: bool,
) -> Query:
    """`edns` is class, TTL and data of the OPT record; `is_plain` if there is no other record."""
    size, ttl, options = edns or (UDP_SIZE_MINIMUM, 0, b"")
    name_ends = len(question) - _QUESTION_END.size
    record_type, record_class = _QUESTION_END.unpack_from(question, name_ends)
    return Query(
        identifier=identifier,
        flags=flags,
        question=question,
        folded=_folded(question),
        record_type=record_type,
        record_class=record_class,
        udp_size=max(UDP_SIZE_MINIMUM, size),
        has_edns=edns is not None,
        dnssec_ok=bool(ttl & _DNSSEC_OK),
        is_shareable=(
            is_plain
            and not flags & ~_SHAREABLE_FLAGS
            and not ttl & ~_DNSSEC_OK
            and not 128 <= record_type <= 255  # of questions only (RFC 6895, 3.1)
            and (not options or _are_hop_by_hop(options))
        ),
    )


def _are_hop_by_hop(options: bytes) -> bool:
    """Whether EDNS options concern nobody but the one who is asked; broken ones may do anything."""
    at = 0
    while at + _OPTION.size <= len(options):
        code, length = _OPTION.unpack_from(options, at)
        if code not in _HOP_BY_HOP:
            return False
        at += _OPTION.size + length
    return at == len(options)


def _read_records(parser: dns.wire.Parser, count: int) -> tuple[int, int, bytes] | None:
    """Skip `count` records to the end of the message; class, TTL, data of the OPT among them."""
    edns = None
    for _ in range(count):
        dns.name.from_wire_parser(parser)
        record_type, record_class, ttl, length = parser.get_struct("!HHIH")
        data = parser.get_bytes(length)
        if record_type == dns.rdatatype.OPT:
            if edns is not None:
                raise Malformed("dns.malformed")
            edns = record_class, ttl, data
    if parser.remaining():
        raise Malformed("dns.malformed")
    return edns


def is_response(message: bytes) -> bool:
    """Whether the header says so: such a message is never answered."""
    return bool(message[2] << 8 & QR)


def is_standard_query(message: bytes) -> bool:
    """Opcode 0: no inverse query, status, notification or update."""
    return not message[2] << 8 & OPCODE_MASK


def bare_error(message: bytes, rcode: int) -> bytes:
    """An answer to a query of which only the header can be read: a header."""
    identifier, flags = _HEADER.unpack_from(message)[:2]
    return _HEADER.pack(identifier, QR | flags & (OPCODE_MASK | RD) | rcode, 0, 0, 0, 0)


def reply(
    query: Query,
    rcode: int,
    answers: list[bytes] | None = None,
    authority: list[bytes] | None = None,
    *,
    authoritative: bool = False,
    extended_error: tuple[int, str] | None = None,
) -> bytes:
    """An answer of our own, of records that `record` made; with EDNS if the query has it, and then
    with the extended error (RFC 8914)."""
    answers, authority = answers or [], authority or []
    additional = []
    if query.has_edns:
        option = b""
        if extended_error is not None:
            code, text = extended_error
            said = code.to_bytes(2, "big") + text.encode()
            option = _OPTION.pack(_EXTENDED_ERROR, len(said)) + said
        additional.append(_our_opt(query, option))
    flags = QR | query.flags & (RD | CD) | RA | rcode | (AA if authoritative else 0)
    counts = 1, len(answers), len(authority), len(additional)
    header = _HEADER.pack(query.identifier, flags, *counts)
    return b"".join((header, query.question, *answers, *authority, *additional))


def _our_opt(query: Query, options: bytes = b"") -> bytes:
    """The OPT record of an answer of ours; its DO bit is the query's (RFC 3225, 3)."""
    flags = _DNSSEC_OK if query.dnssec_ok else 0
    return _OPT_RECORD.pack(dns.rdatatype.OPT, UDP_SIZE_OURS, flags, len(options)) + options


def record(record_type: int, ttl: int, data: bytes, owner: bytes = _OWNER_IS_QUESTION) -> bytes:
    """A resource record of class IN; its owner is the question's name unless given."""
    return owner + _RECORD.pack(record_type, dns.rdataclass.IN, ttl, len(data)) + data


def chain(query: Query, rrsets: Iterable[dns.rrset.RRset]) -> list[bytes]:
    """Records for `reply`: CNAMEs from the question's name on, and what is at their end.

    An owner is a pointer (RFC 1035, 4.1.4), to the question or to the target of the CNAME before.
    """
    records = []
    owner, end = _OWNER_IS_QUESTION, HEADER_LENGTH + len(query.question)
    for rrset in rrsets:
        for item in rrset:
            data = item.to_wire() or b""
            records.append(record(rrset.rdtype, rrset.ttl, data, owner))
            end += len(records[-1])
        if rrset.rdtype == dns.rdatatype.CNAME:  # of which there is one, and its data are a name
            owner = (_POINTER | end - len(data)).to_bytes(2, "big")
    return records


def question(identifier: int, name: bytes, record_type: int) -> bytes:
    """A query of our own, for class IN, recursion desired, with EDNS."""
    header = _HEADER.pack(identifier, RD, 1, 0, 0, 1)
    opt = b"\0" + _RECORD.pack(dns.rdatatype.OPT, UDP_SIZE_OURS, 0, 0)
    return header + name + _QUESTION_END.pack(record_type, dns.rdataclass.IN) + opt


def in_our_words(query: Query) -> bytes:
    """What a shareable query asks, without what is of the guest's making: capitals and options."""
    opt = b""
    if query.has_edns:
        opt = _OPT_RECORD.pack(
            dns.rdatatype.OPT, query.udp_size, _DNSSEC_OK if query.dnssec_ok else 0, 0
        )
    return (
        _HEADER.pack(query.identifier, query.flags, 1, 0, 0, int(query.has_edns))
        + query.folded
        + opt
    )


def with_identifier(message: bytes, identifier: int) -> bytes:
    """The same message under another identifier."""
    return identifier.to_bytes(2, "big") + message[2:]


def is_answer_to(query: Query, identifier: int, message: bytes) -> bool:
    """Whether an upstream's `message` answers `query`, asked under `identifier` (RFC 5452, 9.1).

    Names are equal whatever their capitals. A server that did not understand the question may
    leave it out, if it says so by its response code.
    """
    if len(message) < HEADER_LENGTH:
        return False
    its_identifier, flags, questions = _HEADER.unpack_from(message)[:3]
    if its_identifier != identifier or not flags & QR or flags & OPCODE_MASK:
        return False
    if questions == 0:
        return flags & RCODE_MASK in (FORMERR, SERVFAIL, NOTIMP, REFUSED)
    echoed = message[HEADER_LENGTH : HEADER_LENGTH + len(query.question)]
    return questions == 1 and _folded(echoed) == query.folded


def _folded(question: bytes) -> bytes:
    """The question with its name in lower case.

    Lengths of labels are below 64 and no letters; type and class may look like letters.
    """
    name_ends = len(question) - _QUESTION_END.size
    return question[:name_ends].lower() + question[name_ends:]


def rcode_of(message: bytes) -> int:
    """The response code in the header."""
    return message[3] & RCODE_MASK


def record_count(message: bytes) -> int:
    """How many records a message says that it has."""
    return sum(_HEADER.unpack_from(message)[3:])


def for_guest(query: Query, message: bytes) -> bytes:
    """An upstream's answer as the guest's own: with its identifier and its capitals."""
    rest = message[HEADER_LENGTH:]
    if message[4:6] == b"\0\x01":
        rest = query.question + rest[len(query.question) :]
    return query.identifier.to_bytes(2, "big") + message[2:HEADER_LENGTH] + rest


def with_records(query: Query, head: bytes, additional: int, records: bytes) -> bytes:
    """An answer from what was kept of an earlier one: `head` is its flags and counts of records,
    but for the `additional` ones, `records` are all of them but the OPT, which is of each hop's
    own (RFC 6891, 6.1.1)."""
    opt = _our_opt(query) if query.has_edns else b""
    return b"".join(
        (
            query.identifier.to_bytes(2, "big"),
            head,
            (additional + query.has_edns).to_bytes(2, "big"),
            query.question,
            records,
            opt,
        )
    )


def fitting(query: Query, answer: bytes, transport: str) -> bytes:
    """`answer`, or what stands for it where the guest takes none so large."""
    if transport == "udp":
        size = min(query.udp_size, UDP_PAYLOAD_MAXIMUM)
        return answer if len(answer) <= size else truncated(query, answer, size)
    return answer if len(answer) <= TCP_SIZE_MAXIMUM else reply(query, SERVFAIL)


def truncated(query: Query, message: bytes, size: int) -> bytes:
    """What stands for an answer above `size` bytes: TC set, no record but the OPT (RFC 2181, 9).

    Nor that, where the OPT is what makes it too large.
    """
    identifier, flags, questions, *others = _HEADER.unpack_from(message)
    opt = _opt_record(message, sum(others)) if questions == 1 else b""
    if HEADER_LENGTH + len(query.question) + len(opt) > size:
        opt = b""
    header = _HEADER.pack(identifier, flags | TC, 1, 0, 0, 1 if opt else 0)
    return header + query.question + opt


def _opt_record(message: bytes, count: int) -> bytes:
    """The bytes of the OPT record among `count` records, empty where there is none to be found."""
    parser = dns.wire.Parser(message, HEADER_LENGTH)
    try:
        dns.name.from_wire_parser(parser)
        parser.get_bytes(_QUESTION_END.size)
        for _ in range(count):
            start = parser.current
            dns.name.from_wire_parser(parser)
            record_type, _, _, length = parser.get_struct("!HHIH")
            parser.get_bytes(length)
            if record_type == dns.rdatatype.OPT:
                return message[start : parser.current]
    except dns.exception.DNSException:
        pass
    return b""
