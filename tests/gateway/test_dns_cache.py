"""What is kept of answers, and for how long, beside a model that keeps whole messages."""

from collections.abc import Callable

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qemu_usernat.gateway.dns import GUEST_PENDING_MAXIMUM, PATIENCE
from qemu_usernat.gateway.dns_cache import (
    ABSENCE_MAXIMUM,
    BYTES_MAXIMUM,
    TTL_MAXIMUM,
    Answer,
    DnsCache,
    read_answer,
)
from qemu_usernat.gateway.dns_message import Query, read_query
from qemu_usernat.primitives.counters import Counters
from tests.gateway.test_dns import FIRST, SECOND, Conversation, ask_for, with_records

Change = Callable[[dns.message.Message], None]

SOA = "ns.example. hostmaster.example. 1 3600 600 86400"


@pytest.fixture
def talk() -> Conversation:
    """With a cache."""
    return Conversation(FIRST, SECOND, keeps=True)


def address(ttl: int, text: str = "192.0.2.80") -> Change:
    def add(message: dns.message.Message) -> None:
        owner = message.question[0].name
        message.answer.append(dns.rrset.from_text(owner, ttl, "IN", "A", text))

    return add


def absent(ttl: int, minimum: int) -> Change:
    def add(message: dns.message.Message) -> None:
        soa = dns.rrset.from_text("example.", ttl, "IN", "SOA", f"{SOA} {minimum}")
        message.authority.append(soa)

    return add


def again(
    talk: Conversation, query: dns.message.Message, now: float, transport: str = "udp"
) -> dns.message.Message | None:
    """What a guest is told at once; None where somebody has to be asked."""
    talk.replies.clear()
    talk.query(query, transport, now)
    if not talk.replies:
        return None
    reply = talk.reply()
    assert query.is_response(reply)
    return reply


# What a guest notices


def test_who_asks_again_is_told_at_once(talk: Conversation) -> None:
    """The second guest has its answer without a resolver, with its own identifier and capitals."""
    talk.query(ask_for("www.example"))
    talk.answer(change=address(300))
    query = ask_for("wWw.ExAmPlE")
    reply = again(talk, query, 0.0)
    assert reply is not None
    assert reply.answer[0][0].to_text() == "192.0.2.80"
    assert talk.replies[0][12:25] == query.to_wire()[12:25]
    assert len(talk.asker.asked) == 1
    assert talk.counters["dns.cache_hit"] == 1


def test_what_is_told_lives_no_longer_than_what_was_heard(talk: Conversation) -> None:
    """The TTL falls with the seconds, and when it is over, the resolver is asked anew."""
    talk.query(ask_for("www.example"))
    talk.answer(change=address(300), now=1000.25)
    for elapsed, left in ((0.0, 300), (0.5, 299), (1.0, 299), (100.0, 200), (299.5, 0)):
        reply = again(talk, ask_for("www.example"), 1000.25 + elapsed)
        assert reply is not None
        assert reply.answer[0].ttl == left
    assert again(talk, ask_for("www.example"), 1300.25) is None
    assert len(talk.asker.asked) == 2


def test_each_record_keeps_its_own_ttl(talk: Conversation) -> None:
    """An alias of an hour with an address of a minute ends with the address."""

    def chain(message: dns.message.Message) -> None:
        alias = dns.rrset.from_text("www.example.", 3600, "IN", "CNAME", "cdn.example.")
        end = dns.rrset.from_text("cdn.example.", 60, "IN", "A", "192.0.2.80")
        message.answer.extend((alias, end))

    talk.query(ask_for("www.example"))
    talk.answer(change=chain)
    reply = again(talk, ask_for("www.example"), 20.0)
    assert reply is not None
    assert [rrset.ttl for rrset in reply.answer] == [3580, 40]
    assert again(talk, ask_for("www.example"), 60.0) is None


@pytest.mark.parametrize(
    ("ttl", "minimum", "kept"),
    [(3600, 60, 60), (60, 3600, 60), (86400, 86400, ABSENCE_MAXIMUM)],
)
@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
def test_absence_is_believed_for_as_long_as_its_zone_says(
    talk: Conversation, ttl: int, minimum: int, kept: int, rcode: int
) -> None:
    """RFC 2308: the smaller of the SOA's TTL and its last number, and never for long."""
    talk.query(ask_for("nowhere.example"))
    talk.answer(rcode=rcode, change=absent(ttl, minimum))
    reply = again(talk, ask_for("nowhere.example"), kept - 1.0)
    assert reply is not None
    assert reply.rcode() == rcode
    assert reply.authority[0].ttl == 1
    assert again(talk, ask_for("nowhere.example"), float(kept)) is None


def test_an_alias_to_nothing_is_an_absence(talk: Conversation) -> None:
    """That a name has an alias does not say for how long its target has no address."""

    def dangling(message: dns.message.Message) -> None:
        with_records(("CNAME", "gone.example."))(message)
        absent(30, 30)(message)

    talk.query(ask_for("www.example"))
    talk.answer(rcode=dns.rcode.NXDOMAIN, change=dangling)
    assert again(talk, ask_for("www.example"), 29.0) is not None
    assert again(talk, ask_for("www.example"), 31.0) is None


def cut_short(message: dns.message.Message) -> None:
    address(300)(message)
    message.flags |= dns.flags.TC


@pytest.mark.parametrize(
    ("rcode", "change"),
    [
        (dns.rcode.SERVFAIL, absent(300, 300)),
        (dns.rcode.REFUSED, absent(300, 300)),
        (dns.rcode.NOTIMP, absent(300, 300)),
        (dns.rcode.NXDOMAIN, lambda message: None),
        (dns.rcode.NOERROR, lambda message: None),
        (dns.rcode.NOERROR, cut_short),
        (dns.rcode.NOERROR, address(0)),
    ],
)
def test_what_is_no_answer_for_good_is_not_kept(
    talk: Conversation, rcode: int, change: Change
) -> None:
    """Failures, half answers, and what does not say for how long: the next one asks again."""
    talk.query(ask_for("www.example"))
    talk.answer(rcode=rcode, change=change)
    if talk.asker.open():
        talk.answer(rcode=rcode, change=change)
    assert talk.replies
    assert again(talk, ask_for("www.example"), 0.0) is None


def test_a_ttl_beyond_all_bounds_is_none(talk: Conversation) -> None:
    """RFC 2181: with its first bit set it means zero; below it a day is our limit."""
    talk.query(ask_for("long.example"))
    talk.answer(change=address((1 << 31) - 1))
    reply = again(talk, ask_for("long.example"), 0.0)
    assert reply is not None
    assert reply.answer[0].ttl == TTL_MAXIMUM
    talk.query(ask_for("odd.example"))
    _, _, question, token = talk.asker.asked[-1]
    response = dns.message.make_response(dns.message.from_wire(question), True)
    address(77)(response)
    wire = response.to_wire().replace(b"\0\0\0\x4d", b"\x80\0\0\x4d")
    talk.forwarder.on_answer(token, wire, 0.0)
    assert again(talk, ask_for("odd.example"), 0.0) is None


@pytest.mark.parametrize(
    "other",
    [
        ask_for("www.example", "AAAA"),
        dns.message.make_query("www.example", "A", "CH"),
        dns.message.make_query("www.example", "A", want_dnssec=True),
        dns.message.make_query("www.example", "A", flags=dns.flags.RD | dns.flags.CD),
        dns.message.make_query("www.example", "A", flags=0),
        ask_for("ww.wexample"),
    ],
)
def test_another_question_has_another_answer(
    talk: Conversation, other: dns.message.QueryMessage
) -> None:
    """Type, class, DO, CD and RD are of the question; a dot is none of its letters."""
    talk.query(ask_for("www.example"))
    talk.answer(change=address(300))
    assert again(talk, other, 1.0) is None


def test_transports_share_what_is_known(talk: Conversation) -> None:
    """An answer that came over TCP is cut for who asks over UDP, and whole for who comes back."""
    big = with_records(*[("TXT", f'"{n:0200}"') for n in range(30)])
    query = ask_for("big.example", "TXT")
    talk.query(query, "tcp")
    talk.answer(change=big)
    short = again(talk, query, 1.0)
    assert short is not None
    assert short.flags & dns.flags.TC
    whole = again(talk, query, 1.0, "tcp")
    assert whole is not None
    assert len(whole.answer[0]) == 30
    assert len(talk.asker.asked) == 1


def test_edns_is_each_hop_s_own(talk: Conversation) -> None:
    """A guest that speaks EDNS gets our own record of it; one that does not gets none."""
    talk.query(dns.message.make_query("www.example", "A", use_edns=0))

    def signed(message: dns.message.Message) -> None:
        address(300)(message)
        message.use_edns(
            0, payload=4096, options=[dns.edns.GenericOption("COOKIE", b"of the first")]
        )

    talk.answer(change=signed)
    plain = again(talk, ask_for("www.example"), 1.0)
    assert plain is not None
    assert plain.edns == -1
    speaking = again(talk, ask_for("www.example", edns=1400), 1.0)
    assert speaking is not None
    assert speaking.edns == 0
    assert speaking.options == ()


def test_an_answer_from_memory_is_not_authoritative(talk: Conversation) -> None:
    """RFC 1035, 4.1.1: AA is for who has the zone."""
    talk.query(ask_for("www.example"))

    def authoritative(message: dns.message.Message) -> None:
        address(300)(message)
        message.flags |= dns.flags.AA

    talk.answer(change=authoritative)
    reply = again(talk, ask_for("www.example"), 1.0)
    assert reply is not None
    assert not reply.flags & dns.flags.AA


def test_other_resolvers_are_asked_anew(talk: Conversation) -> None:
    """A laptop that joins a VPN believes nothing that the network before it said."""
    talk.query(ask_for("www.example"))
    talk.answer(change=address(300))
    talk.query(ask_for("late.example"))
    talk.upstreams[:] = [SECOND]
    assert again(talk, ask_for("www.example"), 1.0) is None
    talk.replies.clear()
    talk.answer(nth=1, change=address(300), now=1.0)
    assert len(talk.replies) == 1
    assert again(talk, ask_for("late.example"), 1.0) is None


def test_a_question_with_a_subnet_is_asked_by_itself(talk: Conversation) -> None:
    """Who says where it is (RFC 7871) is told what is near, and nobody else is told that."""
    query = dns.message.make_query("www.example", "A", use_edns=0)
    query.use_edns(0, options=[dns.edns.ECSOption("192.0.2.0", 24)])
    for _ in range(2):
        talk.query(query)
        talk.answer(change=address(300))
    assert len(talk.asker.asked) == 2
    assert again(talk, ask_for("www.example"), 0.0) is None


# Who asks the same at the same time


def test_the_same_question_is_asked_once(talk: Conversation) -> None:
    """Ten guests that start together cost one question, and each gets its own answer."""
    queries = [ask_for("wWw.example" if n % 2 else "www.example") for n in range(10)]
    for query in queries:
        talk.query(query)
    assert len(talk.asker.asked) == 1
    talk.answer(change=address(300))
    assert len(talk.replies) == 10
    for query, reply in zip(queries, talk.replies, strict=True):
        assert query.is_response(dns.message.from_wire(reply))
        assert reply[12:25] == query.to_wire()[12:25]
    assert talk.counters["dns.joined"] == 9
    assert talk.forwarder._pending == 0
    assert not talk.forwarder._pending_of


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.NOTIMP])
def test_all_who_wait_are_told_of_a_failure(talk: Conversation, rcode: int) -> None:
    """A failure is everybody's, too, and everybody's own question is in it."""
    queries = [ask_for("www.example", edns=1232) for _ in range(3)]
    for query in queries:
        talk.query(query)
    talk.answer(rcode=rcode)
    if rcode == dns.rcode.SERVFAIL:
        talk.answer(rcode=rcode)
    assert len(talk.replies) == 3
    for query, reply in zip(queries, talk.replies, strict=True):
        message = dns.message.from_wire(reply)
        assert query.is_response(message)
        assert message.rcode() == rcode


def test_all_who_wait_are_told_that_nobody_answers(talk: Conversation) -> None:
    """Silence upstream is SERVFAIL for each of them, in bounded time."""
    for _ in range(3):
        talk.query(ask_for("www.example"))
    talk.forwarder.on_deadline(PATIENCE)
    talk.forwarder.on_deadline(2 * PATIENCE)
    assert [reply[3] & 15 for reply in talk.replies] == [dns.rcode.SERVFAIL] * 3


@pytest.mark.parametrize(
    ("other", "transport"),
    [
        (ask_for("www.example"), "tcp"),
        (ask_for("www.example", edns=4096), "udp"),
        (ask_for("www.example", edns=512), "udp"),
        (ask_for("www.example", "AAAA"), "udp"),
    ],
)
def test_who_takes_more_asks_for_itself(
    talk: Conversation, other: dns.message.QueryMessage, transport: str
) -> None:
    """An answer that was cut for one guest is none for another that takes all of it."""
    talk.query(ask_for("www.example"))
    talk.query(other, transport)
    assert len(talk.asker.asked) == 2


def _strange(**how: object) -> dns.message.QueryMessage:
    cookie = dns.edns.GenericOption("COOKIE", b"1")  # of 8 to 40 bytes (RFC 7873, 4)
    return dns.message.make_query("wWW.example", "A", options=[cookie], payload=1232, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", [{}, {"want_dnssec": True}, {"flags": dns.flags.RD | dns.flags.CD}])
def test_nobody_spoils_an_answer_for_others_by_how_he_asks(
    talk: Conversation, how: dict[str, object]
) -> None:
    """A broken cookie would be a format error, for all who wait: what is asked for several has
    nothing of the one who was first but his question."""
    plain = dns.message.make_query("www.example", "A", use_edns=0, payload=1232, **how)  # type: ignore[arg-type]
    talk.query(_strange(**how), guest="first")
    talk.query(plain, guest="second")
    asked = [message for _, _, message, _ in talk.asker.asked]
    assert asked == [asked[0][:2] + plain.to_wire()[2:]]
    talk.answer(change=address(300))
    assert [reply[3] & 15 for reply in talk.replies] == [dns.rcode.NOERROR] * 2


def test_those_who_wait_are_bounded(talk: Conversation) -> None:
    """A flood of the same question ends in SERVFAIL, not in memory."""
    query = ask_for("www.example")
    for _ in range(GUEST_PENDING_MAXIMUM + 5):
        talk.query(query)
    assert len(talk.replies) == 5
    assert talk.counters["dns.too_many_queries"] == 5
    talk.query(query, guest="another")
    talk.answer(change=address(300))
    assert len(talk.replies) == GUEST_PENDING_MAXIMUM + 6
    assert talk.forwarder._pending == 0
    assert not talk.forwarder._pending_of


def test_an_answer_that_nobody_can_read_is_passed_on_as_it_is(talk: Conversation) -> None:
    """What a guest makes of it is its own affair; it is not kept."""
    talk.query(ask_for("www.example"))
    talk.query(ask_for("www.example"))
    _, _, question, token = talk.asker.asked[0]
    good = dns.message.make_response(dns.message.from_wire(question)).to_wire()
    broken = good[:7] + b"\x01" + good[8:] + b"\xff\xff\xff"
    talk.forwarder.on_answer(token, broken, 0.0)
    assert [reply[2:] for reply in talk.replies] == [broken[2:]] * 2
    assert again(talk, ask_for("www.example"), 0.0) is None


# What is kept is what came


_owners = st.sampled_from(["www.example.", "a.example.", "example.", "other.test."])
_rdata = st.sampled_from(
    [
        ("A", "192.0.2.1"),
        ("AAAA", "2001:db8::1"),
        ("CNAME", "cdn.www.example."),
        ("MX", "10 mail.example."),
        ("TXT", '"some text"'),
        ("SOA", f"{SOA} 1234"),
        ("TYPE65399", r"\# 3 abcdef"),
    ]
)
_ttls = st.sampled_from([0, 1, 60, 3599, 86400, 86401, (1 << 31) - 1])
_rrsets = st.builds(
    lambda owner, ttl, rdata: dns.rrset.from_text(owner, ttl, "IN", *rdata), _owners, _ttls, _rdata
)


@given(
    st.lists(_rrsets, max_size=4),
    st.lists(_rrsets, max_size=3),
    st.lists(_rrsets, max_size=3),
    st.booleans(),
    st.integers(0, 100_000),
)
def test_what_is_kept_is_what_came(
    answer: list[dns.rrset.RRset],
    authority: list[dns.rrset.RRset],
    additional: list[dns.rrset.RRset],
    has_edns: bool,
    age: int,
) -> None:
    """Every section, as dnspython reads it, but for EDNS and the seconds that have passed."""
    query = ask_for("www.example", edns=1232 if has_edns else None)
    message = dns.message.make_response(query, True)
    message.answer.extend(answer)
    message.authority.extend(authority)
    message.additional.extend(additional)
    read = read_query(query.to_wire())
    kept = read_answer(read, message.to_wire())
    assert kept is not None
    told = dns.message.from_wire(kept.for_query(read, age), one_rr_per_rrset=True)
    came = dns.message.from_wire(message.to_wire(), one_rr_per_rrset=True)
    assert told.sections == came.sections
    assert told.edns == came.edns
    for one, other in zip(_all(told), _all(came), strict=True):
        ttl = min(other.ttl, TTL_MAXIMUM)
        is_authority = any(other is rrset for rrset in came.authority)
        if is_authority and other.rdtype == dns.rdatatype.SOA:
            ttl = min(ttl, other[0].minimum, ABSENCE_MAXIMUM)
        assert one.ttl == max(0, ttl - age)


def _all(message: dns.message.Message) -> list[dns.rrset.RRset]:
    return [*message.answer, *message.authority, *message.additional]


@given(st.binary(max_size=120), st.integers(12, 60), st.booleans())
def test_any_bytes_are_an_answer_or_none(junk: bytes, at: int, replaces: bool) -> None:
    """No exception, whatever an upstream sends."""
    query = ask_for("www.example", edns=1232)
    message = dns.message.make_response(query, True)
    address(60)(message)
    wire = message.to_wire()
    read_answer(read_query(query.to_wire()), wire[:at] + junk + wire[at + replaces * len(junk) :])


# The bounds, beside a model


class Keeping(RuleBasedStateMachine):
    """A cache of five, and a list of what came that is searched from its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.counters = Counters()
        self.cache = DnsCache(self.counters, entries_maximum=5)
        self.used: list[tuple[bytes, int, bool]] = []
        self.known: dict[tuple[bytes, int, bool], tuple[int, float, str]] = {}

    def _query(self, number: int) -> Query:
        return read_query(ask_for(f"n{number}.example").to_wire())

    @rule(number=st.integers(0, 7), ttl=st.sampled_from([0, 1, 5, 30]), last=st.integers(1, 250))
    def an_answer_comes(self, number: int, ttl: int, last: int) -> None:
        query = self._query(number)
        message = dns.message.make_response(ask_for(f"n{number}.example"), True)
        address(ttl, f"192.0.2.{last}")(message)
        answer = read_answer(query, message.to_wire())
        assert answer is not None
        self.cache.put(query, answer, self.now)
        if ttl:
            self.known[query.key] = ttl, self.now, f"192.0.2.{last}"
            self._use(query.key)
            for key in self.used[:-5]:
                self.used.remove(key)
                del self.known[key]

    def _use(self, key: tuple[bytes, int, bool]) -> None:
        if key in self.used:
            self.used.remove(key)
        self.used.append(key)

    @rule(number=st.integers(0, 7))
    def somebody_asks(self, number: int) -> None:
        query = self._query(number)
        wire = self.cache.get(query, self.now)
        ttl, since, text = self.known.get(query.key, (0, 0.0, ""))
        if query.key in self.known and since + ttl > self.now:
            assert wire is not None
            rrset = dns.message.from_wire(wire).answer[0]
            assert rrset[0].to_text() == text
            left = since + ttl - self.now
            assert left - 1 < rrset.ttl <= left
            self._use(query.key)
        else:
            assert wire is None
            if query.key in self.known:
                del self.known[query.key]
                self.used.remove(query.key)

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.5, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_resolvers_change(self) -> None:
        self.cache.clear()
        self.known.clear()
        self.used.clear()

    @invariant()
    def it_is_bounded(self) -> None:
        assert len(self.cache) == len(self.known) <= 5
        assert bool(self.cache._bytes) == bool(self.known)


TestKeeping = Keeping.TestCase


def test_what_is_asked_for_is_kept_longest() -> None:
    """A guest that asks for thousands of names once does not make others wait for theirs."""
    cache = DnsCache(Counters(), entries_maximum=2)
    often, once, new = (read_query(ask_for(f"{name}.example").to_wire()) for name in "abc")
    for query in (often, once):
        cache.put(query, Answer(bytes(8), 0, b"", [], 3600), 0.0)
    assert cache.get(often, 0.0)
    cache.put(new, Answer(bytes(8), 0, b"", [], 3600), 0.0)
    assert cache.get(often, 0.0)
    assert not cache.get(once, 0.0)


def test_large_answers_are_bounded_together() -> None:
    """Answers of 60 KB, as a hostile zone would give, do not add up beyond the bound."""
    counters = Counters()
    cache = DnsCache(counters)
    for number in range(400):
        query = read_query(ask_for(f"n{number}.example", "TXT").to_wire())
        answer = Answer(bytes(8), 0, bytes(60_000), [], 3600)
        cache.put(query, answer, 0.0)
    assert cache._bytes <= BYTES_MAXIMUM
    assert 100 < len(cache) < 150
    assert counters["dns.cache_full"] == 400 - len(cache)
