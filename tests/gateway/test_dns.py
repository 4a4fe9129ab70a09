"""The forwarder between a guest and the host's resolvers, who here are a list of what was asked.

Messages are made and read by dnspython's own message classes, which the forwarder does not use.
"""

from collections.abc import Callable

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.config.records import Record, read_records
from qemu_usernat.gateway.dns import (
    GUEST_PENDING_MAXIMUM,
    PATIENCE,
    PENDING_MAXIMUM,
    SILENCE,
    DnsForwarder,
    Upstream,
)
from qemu_usernat.gateway.dns_cache import DnsCache
from qemu_usernat.gateway.dns_message import QUERY_MAXIMUM
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.primitives.addresses import parse_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER

FIRST = (parse_address("192.0.2.1"), 53)
SECOND = (parse_address("2001:db8::2"), 53)
THIRD = (parse_address("192.0.2.3"), 5353)


@define
class ScriptedAsker:
    """Notes what is asked; `dead` upstreams cannot even be asked."""

    asked: list[tuple[Upstream, str, bytes, int]] = field(factory=list)
    forgotten: list[int] = field(factory=list)
    dead: set[Upstream] = field(factory=set)

    def ask(self, upstream: Upstream, transport: str, message: bytes, token: int) -> bool:
        self.asked.append((upstream, transport, message, token))
        return upstream not in self.dead

    def forget(self, token: int) -> None:
        self.forgotten.append(token)

    def open(self) -> set[int]:
        return {token for upstream, _, _, token in self.asked if upstream not in self.dead} - set(
            self.forgotten
        )


class Conversation:
    """A forwarder, its asker, and the guest's replies."""

    def __init__(
        self,
        *upstreams: Upstream,
        identifiers: Callable[[], int] | None = None,
        keeps: bool = False,
        records: tuple[Record, ...] = (),
    ) -> None:
        self.asker = ScriptedAsker()
        self.counters = Counters()
        self.replies: list[bytes] = []
        self.upstreams = list(upstreams)
        counting = iter(range(0x1000, 0xFFFF)).__next__
        self.forwarder = DnsForwarder(
            Zone(parse_address("10.0.2.2"), parse_address("10.0.2.3"), 24, records=records),
            lambda: self.upstreams,
            self.asker,
            identifiers or counting,
            self.counters,
            DnsCache(self.counters) if keeps else None,
        )

    def query(
        self,
        message: dns.message.Message | bytes,
        transport: str = "udp",
        now: float = 0.0,
        guest: str = "",
    ) -> bool:
        wire = message if isinstance(message, bytes) else message.to_wire()
        return self.forwarder.on_query(wire, transport, self.replies.append, now, port=guest)

    def asked(self) -> list[Upstream]:
        return [upstream for upstream, *_ in self.asker.asked]

    def answer(
        self,
        nth: int = -1,
        *,
        rcode: int = 0,
        now: float = 0.0,
        change: Callable[[dns.message.Message], None] = lambda message: None,
    ) -> bytes:
        """The upstream that was asked in the nth place answers; its message."""
        _, _, question, token = self.asker.asked[nth]
        response = dns.message.make_response(dns.message.from_wire(question), True)
        response.set_rcode(dns.rcode.from_text(dns.rcode.to_text(dns.rcode.Rcode(rcode))))
        change(response)
        wire = response.to_wire(max_size=65535)
        self.forwarder.on_answer(token, wire, now)
        return wire

    def reply(self) -> dns.message.Message:
        """The only reply so far, as a guest reads it."""
        assert len(self.replies) == 1
        return dns.message.from_wire(self.replies[0])


def ask_for(name: str, rdtype: str = "A", *, edns: int | None = None) -> dns.message.QueryMessage:
    return dns.message.make_query(name, rdtype, use_edns=edns is not None, payload=edns or 0)


def with_records(*records: tuple[str, str]) -> Callable[[dns.message.Message], None]:
    def add(message: dns.message.Message) -> None:
        name = message.question[0].name
        for rdtype, text in records:
            message.answer.append(dns.rrset.from_text(name, 300, "IN", rdtype, text))

    return add


# Passing on


@pytest.mark.parametrize(
    ("rdtype", "text"),
    [
        ("A", "192.0.2.80"),
        ("AAAA", "2001:db8::80"),
        ("TXT", '"v=spf1 -all"'),
        ("SRV", "0 5 5060 sip.example."),
        ("HTTPS", "1 . alpn=h2"),
        ("CAA", '0 issue "ca.example"'),
        ("TYPE65399", r"\# 3 abcdef"),
    ],
)
def test_every_record_type_passes(rdtype: str, text: str) -> None:
    """A guest may ask for anything, also for types that nobody here has heard of."""
    talk = Conversation(FIRST)
    query = ask_for("www.example", rdtype)
    assert talk.query(query)
    talk.answer(change=with_records((rdtype, text)))
    reply = talk.reply()
    assert query.is_response(reply)
    assert reply.answer[0] == dns.rrset.from_text("www.example.", 300, "IN", rdtype, text)


def test_the_query_goes_up_as_it_came_but_for_its_identifier() -> None:
    """EDNS, flags and capitals of the guest's are the upstream's business."""
    talk = Conversation(FIRST, identifiers=lambda: 0xBEEF)
    query = ask_for("wWw.ExAmPlE", edns=1400)
    talk.query(query)
    upstream, transport, message, _ = talk.asker.asked[0]
    assert (upstream, transport) == (FIRST, "udp")
    assert message == b"\xbe\xef" + query.to_wire()[2:]


def test_the_guest_finds_its_own_identifier_and_capitals() -> None:
    """A resolver that spells the name in lower case does not confuse a guest that checks."""
    talk = Conversation(FIRST)
    query = ask_for("wWw.ExAmPlE")
    talk.query(query)
    _, _, question, token = talk.asker.asked[0]
    response = dns.message.make_response(dns.message.from_wire(question)).to_wire()
    talk.forwarder.on_answer(token, response[:12] + response[12:].lower(), 0.0)
    assert talk.reply().id == query.id
    assert talk.replies[0][12:] == query.to_wire()[12:]


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOTIMP, dns.rcode.FORMERR])
def test_other_response_codes_pass_as_they_are(rcode: int) -> None:
    """A name that does not exist is told as such, and at once."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("nowhere.example"))
    talk.answer(rcode=rcode)
    assert talk.reply().rcode() == rcode
    assert talk.asked() == [FIRST]


def test_a_query_over_tcp_is_asked_over_tcp_and_never_truncated() -> None:
    """A guest that was told to come back over TCP gets the whole answer."""
    talk = Conversation(FIRST)
    talk.query(ask_for("big.example", "TXT"), "tcp")
    assert talk.asker.asked[0][1] == "tcp"
    wire = talk.answer(change=with_records(*[("TXT", f'"{n:0200}"') for n in range(30)]))
    assert len(wire) > 6000
    assert talk.replies[0][2:] == wire[2:]


def test_answered_questions_are_forgotten() -> None:
    """Nothing of a query remains: no socket, no deadline, no second reply."""
    talk = Conversation(FIRST)
    talk.query(ask_for("www.example"))
    assert talk.forwarder.deadline() == PATIENCE
    talk.answer()
    talk.answer()
    assert len(talk.replies) == 1
    assert talk.asker.open() == set()
    assert talk.forwarder.deadline() == NEVER


# Answers that are none


def test_forged_answers_are_not_believed() -> None:
    """A wrong identifier, another question, an echoed query: ignored, and the true one taken."""
    talk = Conversation(FIRST)
    talk.query(ask_for("www.example"))
    _, _, question, token = talk.asker.asked[0]
    good = dns.message.make_response(dns.message.from_wire(question)).to_wire()
    wrong_id = bytes([good[0], good[1] ^ 1]) + good[2:]
    other_name = good.replace(b"\x03www", b"\x03wwx")
    other_type = good[:-4] + b"\x00\x1c\x00\x01"
    short = good[:14]
    forgeries = [wrong_id, other_name, other_type, question, short, b""]
    for forged in forgeries:
        assert talk.forwarder.on_answer(token, forged, 0.0) is False
    assert talk.replies == []
    assert talk.counters["dns.mismatched_answer"] == len(forgeries)
    talk.answer()
    assert talk.reply().rcode() == dns.rcode.NOERROR


def test_types_that_look_like_letters_are_not_folded() -> None:
    """Type 65 is 'A' and 97 is 'a': only the name is compared without case."""
    talk = Conversation(FIRST)
    talk.query(ask_for("www.example", "TYPE65"))
    _, _, question, token = talk.asker.asked[0]
    good = dns.message.make_response(dns.message.from_wire(question)).to_wire()
    talk.forwarder.on_answer(token, good[:-4] + b"\x00\x61\x00\x01", 0.0)
    assert talk.replies == []


def test_an_answer_to_nobody_is_ignored() -> None:
    """A token that was never given out, or is over, harms nothing."""
    talk = Conversation(FIRST)
    talk.forwarder.on_answer(17, b"nonsense", 0.0)
    talk.forwarder.on_answer(17, None, 0.0)
    assert talk.replies == []


def test_nonsense_over_tcp_fails_that_upstream() -> None:
    """On a connection nothing better follows a wrong answer, so the next one is asked."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("www.example"), "tcp")
    talk.forwarder.on_answer(talk.asker.asked[0][3], b"nonsense of 12 bytes and more", 0.0)
    assert talk.asked() == [FIRST, SECOND]


def test_an_old_server_s_format_error_without_a_question_passes() -> None:
    """A server that knows no EDNS says so by a bare header; the guest may then try without."""
    talk = Conversation(FIRST, identifiers=lambda: 0x1234)
    query = ask_for("www.example", edns=1232)
    talk.query(query)
    bare = b"\x12\x34\x81\x81" + bytes(8)
    talk.forwarder.on_answer(talk.asker.asked[0][3], bare, 0.0)
    assert talk.reply().rcode() == dns.rcode.FORMERR
    assert talk.reply().id == query.id


# Failover


def test_a_silent_upstream_is_followed_by_the_next() -> None:
    """A dead first resolver costs its patience, not the answer."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("www.example"))
    talk.forwarder.on_deadline(PATIENCE)
    assert talk.asked() == [FIRST, SECOND]
    talk.answer(now=PATIENCE + 0.1)
    assert talk.reply().rcode() == dns.rcode.NOERROR
    assert talk.asker.open() == set()


def test_a_late_answer_is_still_welcome() -> None:
    """A resolver that took its time for a hard name is believed after the next was asked."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("www.example"))
    talk.forwarder.on_deadline(PATIENCE)
    talk.answer(nth=0, now=PATIENCE + 0.5)
    assert talk.reply().rcode() == dns.rcode.NOERROR
    assert talk.asker.open() == set()


def test_each_question_has_an_identifier_of_its_own() -> None:
    """The answer of one upstream is not believed of another."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("www.example"))
    talk.forwarder.on_deadline(PATIENCE)
    first, second = (message for _, _, message, _ in talk.asker.asked)
    assert first[:2] != second[:2]
    answer = dns.message.make_response(dns.message.from_wire(first)).to_wire()
    talk.forwarder.on_answer(talk.asker.asked[1][3], answer, PATIENCE)
    assert talk.replies == []


def test_all_silent_is_servfail() -> None:
    """When nobody answers, the guest is told in bounded time."""
    talk = Conversation(FIRST, SECOND, THIRD)
    query = ask_for("www.example", edns=1232)
    talk.query(query)
    for n in (1, 2, 3):
        assert talk.replies == []
        assert talk.forwarder.deadline() == n * PATIENCE
        talk.forwarder.on_deadline(n * PATIENCE)
    assert talk.asked() == [FIRST, SECOND, THIRD]
    assert talk.reply().rcode() == dns.rcode.SERVFAIL
    assert query.is_response(talk.reply())
    assert talk.reply().edns == 0
    assert talk.counters["dns.timeout"] == 1
    assert talk.asker.open() == set()


def test_a_sole_upstream_is_asked_twice() -> None:
    """One lost datagram does not fail a lookup."""
    talk = Conversation(FIRST)
    talk.query(ask_for("www.example"))
    talk.forwarder.on_deadline(PATIENCE)
    assert talk.asked() == [FIRST, FIRST]
    talk.forwarder.on_deadline(2 * PATIENCE)
    assert talk.reply().rcode() == dns.rcode.SERVFAIL


def test_a_refused_port_asks_the_next_at_once() -> None:
    """A resolver that is not running costs no time."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("www.example"))
    talk.forwarder.on_answer(talk.asker.asked[0][3], None, 0.0)
    assert talk.asked() == [FIRST, SECOND]
    talk.forwarder.on_answer(talk.asker.asked[1][3], None, 0.0)
    assert talk.reply().rcode() == dns.rcode.SERVFAIL


def test_a_sole_upstream_that_fails_is_not_asked_again() -> None:
    """Who says no is believed; only silence may be a lost datagram."""
    talk = Conversation(FIRST)
    talk.query(ask_for("www.example"))
    talk.forwarder.on_answer(talk.asker.asked[0][3], None, 0.0)
    assert talk.asked() == [FIRST]
    assert talk.reply().rcode() == dns.rcode.SERVFAIL


def test_upstreams_that_cannot_be_asked_are_passed_over() -> None:
    """Without a route or a descriptor the next is tried, and in the end it is SERVFAIL."""
    talk = Conversation(FIRST, SECOND)
    talk.asker.dead.add(FIRST)
    talk.query(ask_for("www.example"))
    assert talk.asked() == [FIRST, SECOND]
    talk.answer()
    assert talk.reply().rcode() == dns.rcode.NOERROR
    talk.asker.dead.add(SECOND)
    talk.replies.clear()
    talk.query(ask_for("www.example"))
    assert talk.reply().rcode() == dns.rcode.SERVFAIL
    assert talk.forwarder.deadline() == NEVER


def test_no_upstream_at_all_is_servfail() -> None:
    """A host without resolvers: a quick answer, no silence."""
    talk = Conversation()
    talk.query(ask_for("www.example"))
    assert talk.reply().rcode() == dns.rcode.SERVFAIL


def test_upstreams_are_those_of_the_moment() -> None:
    """A server that was there before its host's network works as soon as that is up."""
    talk = Conversation()
    talk.query(ask_for("early.example"))
    assert talk.reply().rcode() == dns.rcode.SERVFAIL
    talk.upstreams.append(FIRST)
    talk.query(ask_for("www.example"))
    talk.upstreams[:] = [SECOND]
    talk.query(ask_for("later.example"))
    assert talk.asked() == [FIRST, SECOND]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_refusal_is_told_only_if_nobody_does_better(rcode: int) -> None:
    """A resolver that refuses is followed by the next; the last one's refusal is passed on."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("www.example"))
    talk.answer(rcode=rcode)
    assert talk.asked() == [FIRST, SECOND]
    assert talk.replies == []
    talk.answer(rcode=rcode)
    assert talk.reply().rcode() == rcode
    talk.replies.clear()
    talk.query(ask_for("www.example"))
    talk.answer(rcode=rcode)
    talk.answer()
    assert talk.reply().rcode() == dns.rcode.NOERROR


def test_a_refusal_waits_for_who_is_still_silent() -> None:
    """While one upstream may still answer, another's refusal is not the last word."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("www.example"))
    talk.forwarder.on_deadline(PATIENCE)
    talk.answer(nth=1, rcode=dns.rcode.REFUSED, now=PATIENCE + 0.1)
    assert talk.replies == []
    talk.forwarder.on_deadline(2 * PATIENCE)
    assert talk.reply().rcode() == dns.rcode.REFUSED


def test_deadlines_come_in_the_order_of_asking() -> None:
    """A query that moved on to its next upstream waits behind those asked before that."""
    talk = Conversation(FIRST, SECOND)
    talk.query(ask_for("a.example"), now=0.0)
    talk.query(ask_for("b.example"), now=1.0)
    talk.forwarder.on_deadline(2.0)
    assert talk.forwarder.deadline() == 3.0
    talk.forwarder.on_deadline(3.5)
    assert talk.forwarder.deadline() == 4.0
    assert talk.asked() == [FIRST, FIRST, SECOND, SECOND]


# Bounds


def test_a_flood_is_bounded_and_answered() -> None:
    """Beyond the bound a query fails at once; the pending ones are not harmed."""
    talk = Conversation(FIRST)
    for n in range(PENDING_MAXIMUM + 10):
        talk.query(ask_for(f"n{n}.example"), guest=f"guest {n % 5}")
    assert len(talk.asker.asked) == PENDING_MAXIMUM
    assert talk.counters["dns.too_many_queries"] == 10
    assert {dns.message.from_wire(reply).rcode() for reply in talk.replies} == {dns.rcode.SERVFAIL}
    talk.answer(nth=0)
    assert dns.message.from_wire(talk.replies[-1]).rcode() == dns.rcode.NOERROR
    talk.query(ask_for("late.example"))
    assert len(talk.asker.asked) == PENDING_MAXIMUM + 1


def test_one_guest_s_flood_leaves_room_for_the_others() -> None:
    """Whoever asks for thousands of names at once fails for itself: its neighbours are answered."""
    talk = Conversation(FIRST)
    for n in range(GUEST_PENDING_MAXIMUM + 10):
        talk.query(ask_for(f"n{n}.example"), guest="flood")
    assert talk.counters["dns.too_many_queries"] == len(talk.replies) == 10
    talk.query(ask_for("www.example"), guest="neighbour")
    talk.answer()
    assert dns.message.from_wire(talk.replies[-1]).rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize(
    ("edns", "size", "is_cut"),
    [
        (None, 512, False),
        (None, 513, True),
        (100, 512, False),
        (1232, 1232, False),
        (1232, 1233, True),
        (65535, 20000, False),
    ],
)
def test_large_answers_over_udp_are_truncated(edns: int | None, size: int, is_cut: bool) -> None:
    """A guest gets no more than it takes; TC tells it to come back over TCP."""
    talk = Conversation(FIRST)
    query = ask_for("big.example", "TXT", edns=edns)
    talk.query(query)

    def fill(message: dns.message.Message) -> None:
        while (missing := size - len(message.to_wire(max_size=65535))) > 0:
            length = min(255, missing - 13)
            if 0 < missing - 13 - length <= 13:
                length -= 14
            with_records(("TXT", '"' + "x" * length + '"'))(message)

    wire = talk.answer(change=fill)
    assert len(wire) == size
    reply = talk.reply()
    assert query.is_response(reply)
    assert bool(reply.flags & dns.flags.TC) is is_cut
    assert bool(reply.answer) is not is_cut
    assert reply.edns == (-1 if edns is None else 0)
    assert len(talk.replies[0]) <= max(512, edns or 0)


@pytest.mark.parametrize(("padding", "has_opt"), [(468, True), (469, False), (65000, False)])
def test_a_truncated_answer_is_never_too_large_itself(padding: int, has_opt: bool) -> None:
    """An OPT record that fills the answer is cut off with the rest."""
    talk = Conversation(FIRST)
    query = ask_for("www.example", edns=512)
    talk.query(query)

    def pad(message: dns.message.Message) -> None:
        option = dns.edns.GenericOption(dns.edns.OptionType.PADDING, bytes(padding))
        message.use_edns(0, payload=1232, options=[option])
        with_records(("TXT", '"' + "x" * 255 + '"'))(message)

    talk.answer(change=pad)
    reply = talk.reply()
    assert query.is_response(reply)
    assert reply.flags & dns.flags.TC
    assert (reply.edns == 0) is has_opt
    assert len(talk.replies[0]) <= 512


# What is no proper query


def test_what_is_no_query_is_dropped() -> None:
    """An answer is never answered, nor is half a header: two forwarders must not talk for ever."""
    talk = Conversation(FIRST)
    response = dns.message.make_response(ask_for("www.example")).to_wire()
    for message in (b"", response[:11], response):
        assert not talk.query(message)
    assert talk.replies == []
    assert talk.counters["dns.not_a_query"] == 3


@pytest.mark.parametrize("opcode", [dns.opcode.STATUS, dns.opcode.NOTIFY, dns.opcode.UPDATE])
def test_other_opcodes_are_not_implemented(opcode: dns.opcode.Opcode) -> None:
    """Updates and notifications are none of a forwarder's business, and it says so."""
    talk = Conversation(FIRST)
    query = ask_for("www.example")
    query.set_opcode(opcode)
    talk.query(query)
    assert talk.reply().rcode() == dns.rcode.NOTIMP
    assert talk.reply().opcode() == opcode
    assert talk.reply().id == query.id


@pytest.mark.parametrize("rdtype", ["AXFR", "IXFR"])
def test_zone_transfers_are_refused(rdtype: str) -> None:
    """Whole zones do not pass a forwarder."""
    talk = Conversation(FIRST)
    wire = ask_for("example", "A").to_wire()
    number = int(dns.rdatatype.from_text(rdtype))
    talk.query(wire[:-4] + number.to_bytes(2, "big") + wire[-2:], "tcp")
    assert talk.replies[0][3] & 15 == dns.rcode.REFUSED
    assert talk.asker.asked == []


def _header(counts: bytes) -> bytes:
    return b"\xab\xcd\x01\0" + counts


_QUESTION = b"\x03www\x07example\0\0\x01\0\x01"
_RECORD = b"\0\0\x0a\0\x01" + bytes(6)
_OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "malformed",
    [
        _header(b"\0\0\0\0\0\0\0\0"),
        _header(b"\0\x02\0\0\0\0\0\0") + _QUESTION + _QUESTION,
        _header(b"\0\x01\0\0\0\0\0\0") + _QUESTION[:-1],
        _header(b"\0\x01\0\0\0\0\0\0") + b"\x40" + _QUESTION,
        _header(b"\0\x01\0\0\0\0\0\0") + b"\x40" + b"a" * 64 + b"\0\0\x01\0\x01",
        _header(b"\0\x01\0\0\0\0\0\0") + (b"\x01a" * 127 + b"\x01a\0") + b"\0\x01\0\x01",
        _header(b"\0\x01\0\0\0\0\0\0") + b"\xc0\x0c\0\x01\0\x01",
        _header(b"\0\x01\0\0\0\0\0\0") + b"\xc0\x04\0\x01\0\x01",
        _header(b"\0\x01\0\0\0\0\0\0") + _QUESTION + b"junk",
        _header(b"\0\x01\0\0\0\0\0\0") + b"\x3f" + b"a" * 63 + b"\x3f" * 300,
        _header(b"\0\x01\0\0\0\0\0\x01") + _QUESTION + _OPT[:-3],
        _header(b"\0\x01\0\0\0\0\0\x02") + _QUESTION + _OPT + _OPT,
        _header(b"\0\x01\0\x09\0\0\0\0") + _QUESTION + _RECORD * 9,
    ],
)
def test_a_malformed_query_is_told_so(malformed: bytes) -> None:
    """No or two questions, cut names, pointers, junk: a format error, and nothing goes out."""
    talk = Conversation(FIRST)
    assert talk.query(malformed)
    assert talk.replies == [b"\xab\xcd\x81\x01" + bytes(8)]
    assert talk.asker.asked == []
    assert talk.counters["dns.malformed"] == 1


@pytest.mark.parametrize(("size", "is_asked"), [(QUERY_MAXIMUM, True), (QUERY_MAXIMUM + 1, False)])
def test_a_huge_query_is_not_kept(size: int, is_asked: bool) -> None:
    """A thousand that wait, each with 64 KB of options, would be memory for nothing."""
    talk = Conversation(FIRST)
    query = _header(b"\0\1\0\0\0\0\0\1") + _QUESTION + _OPT[:-2]
    options = bytes(size - len(query) - 2)
    query += len(options).to_bytes(2, "big") + options
    assert len(query) == size
    talk.query(query, "tcp")
    assert len(talk.asker.asked) == is_asked
    if not is_asked:
        assert talk.reply().rcode() == dns.rcode.FORMERR
        assert talk.counters["dns.query_too_large"] == 1


_REAL = ask_for("www.internal", edns=1232).to_wire()


@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(lambda tail: _header(b"\0\x01\0\0\0\0\0\x01") + tail, st.binary(max_size=80)),
        st.builds(
            lambda at, byte: _REAL[:at] + bytes([byte]) + _REAL[at + 1 :],
            st.integers(0, len(_REAL) - 1),
            st.integers(0, 255),
        ),
    )
)
def test_any_bytes_get_one_answer_at_most(message: bytes) -> None:
    """Whatever a guest sends: no exception, and a reply now, or a question upstream, or nothing."""
    talk = Conversation(FIRST)
    promised = talk.query(message)
    assert len(talk.replies) + len(talk.asker.asked) == promised
    for reply in talk.replies:
        assert reply[:2] == message[:2]
        assert reply[2] & 0x80


@given(st.binary(max_size=100), st.integers(0, 60), st.booleans())
def test_any_bytes_from_an_upstream_do_no_harm(junk: bytes, at: int, is_prefixed: bool) -> None:
    """Whatever an upstream sends: no exception, and the guest's answer fits and is its own."""
    talk = Conversation(FIRST)
    query = ask_for("www.example")
    talk.query(query)
    _, _, question, token = talk.asker.asked[0]
    good = dns.message.make_response(dns.message.from_wire(question)).to_wire()
    message = good[: at % len(good)] + junk + good[at % len(good) :] if is_prefixed else junk
    is_heard = talk.forwarder.on_answer(token, message + bytes(600), 0.0)
    if not is_heard:
        assert talk.replies == []
        talk.forwarder.on_answer(token, good, 0.0)
    (reply,) = talk.replies
    assert len(reply) <= 512
    assert query.id == int.from_bytes(reply[:2], "big")
    assert reply[12 : 12 + len(query.to_wire()) - 12] == query.to_wire()[12:]


def test_own_names_are_answered_at_once() -> None:
    """The gateway's names need no upstream."""
    talk = Conversation()
    talk.query(ask_for("gateway.internal"))
    assert talk.reply().answer[0][0].to_text() == "10.0.2.2"


def test_a_resolver_that_is_down_costs_one_query_its_patience() -> None:
    """The next questions go to the one that answers, until it is time to try the other again."""
    talk = Conversation(FIRST, SECOND)
    talk.query(dns.message.make_query("example.org", "A"))
    talk.forwarder.on_deadline(PATIENCE)
    talk.answer(now=PATIENCE)
    talk.query(dns.message.make_query("example.net", "A"), now=3.0)
    assert talk.asked() == [FIRST, SECOND, SECOND]
    talk.answer(now=3.0)
    talk.query(dns.message.make_query("example.com", "A"), now=PATIENCE + SILENCE)
    assert talk.asked()[-1] == FIRST
    talk.answer(now=40.0)


def test_a_resolver_that_answers_again_is_the_first_again() -> None:
    """A late answer is a sign of life."""
    talk = Conversation(FIRST, SECOND)
    talk.query(dns.message.make_query("example.org", "A"))
    talk.forwarder.on_deadline(PATIENCE)
    talk.answer(nth=0, now=PATIENCE)
    talk.query(dns.message.make_query("example.net", "A"), now=3.0)
    assert talk.asked()[-1] == FIRST


# Names of the user's own that lead outside


def alias(name: str, target: str) -> tuple[Record, ...]:
    return read_records([{"name": name, "type": "CNAME", "data": target}])


def test_an_alias_to_the_world_is_followed() -> None:
    """The guest asks once and has the whole chain: our alias, and what the world says beyond."""
    talk = Conversation(FIRST, records=alias("db", "db.example.com"))
    query = ask_for("dB.internal", edns=1232)
    talk.query(query)
    asked = dns.message.from_wire(talk.asker.asked[0][2])
    assert asked.question[0].to_text() == "db.example.com. IN A"

    def chain(message: dns.message.Message) -> None:
        more = dns.rrset.from_text("db.example.com.", 300, "IN", "CNAME", "real.example.com.")
        end = dns.rrset.from_text("real.example.com.", 30, "IN", "A", "192.0.2.80")
        message.answer.extend((more, end))

    talk.answer(change=chain)
    reply = talk.reply()
    assert query.is_response(reply)
    assert [rrset.to_text() for rrset in reply.answer] == [
        "dB.internal. 60 IN CNAME db.example.com.",
        "db.example.com. 300 IN CNAME real.example.com.",
        "real.example.com. 30 IN A 192.0.2.80",
    ]


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL, dns.rcode.NOERROR])
def test_an_alias_to_what_is_not_there_says_so(rcode: int) -> None:
    """The world's absence is told with how long to believe in it; its failure is a failure."""
    talk = Conversation(FIRST, records=alias("db", "db.example.com"))
    talk.query(ask_for("db.internal"))

    def absent(message: dns.message.Message) -> None:
        soa = "ns.example.com. hostmaster.example.com. 1 2 3 4 5"
        message.authority.append(dns.rrset.from_text("example.com.", 99, "IN", "SOA", soa))

    talk.answer(rcode=rcode, change=absent)
    reply = talk.reply()
    assert reply.rcode() == rcode
    if rcode != dns.rcode.SERVFAIL:
        assert [rrset.rdtype for rrset in reply.answer] == [dns.rdatatype.CNAME]
        assert reply.authority[0].ttl == 99


def test_a_long_answer_of_our_own_is_cut_for_udp() -> None:
    """Sixty addresses of one name: TC over UDP, all of them over TCP."""
    data = [f"192.0.2.{n}" for n in range(60)]
    records = read_records([{"name": "many", "type": "A", "data": data}])
    for transport, count in (("udp", 0), ("tcp", 1)):
        talk = Conversation(FIRST, records=records)
        talk.query(ask_for("many.internal"), transport)
        assert len(talk.reply().answer) == count
        assert bool(talk.reply().flags & dns.flags.TC) is (transport == "udp")


def test_an_alias_that_is_cut_short_sends_the_guest_to_tcp() -> None:
    """What did not fit outside is asked for again over TCP."""
    talk = Conversation(FIRST, records=alias("db", "db.example.com"))
    query = ask_for("db.internal", "TXT")
    talk.query(query)

    def cut(message: dns.message.Message) -> None:
        message.flags |= dns.flags.TC

    talk.answer(change=cut)
    assert talk.reply().flags & dns.flags.TC
    talk.replies.clear()
    talk.query(query, "tcp")
    assert talk.asker.asked[-1][1] == "tcp"


@given(st.binary(max_size=100), st.integers(12, 60))
def test_any_bytes_about_an_alias_do_no_harm(junk: bytes, at: int) -> None:
    """Whatever an upstream says of where it leads: an answer or SERVFAIL, and no exception."""
    talk = Conversation(FIRST, records=alias("db", "db.example.com"))
    query = ask_for("db.internal")
    talk.query(query)
    _, _, question, token = talk.asker.asked[0]
    good = dns.message.make_response(dns.message.from_wire(question)).to_wire()
    if not talk.forwarder.on_answer(token, good[:at] + junk + good[at:], 0.0):
        assert talk.replies == []
        talk.forwarder.on_answer(token, good, 0.0)
    (reply,) = talk.replies
    assert len(reply) <= 512
    message = dns.message.from_wire(reply)
    assert query.is_response(message)
    assert message.rcode() in range(16)
