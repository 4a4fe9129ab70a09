"""The gate before the forwarder: what a guest is told of an upstream's answer, and what is pinned.

Enforcement as a guest meets it is in `tests/policy`; here are the answers themselves.
"""

from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from qemu_usernat.admission import Admission, Guest
from qemu_usernat.config.records import Record, read_records
from qemu_usernat.gateway.dns_gate import DnsGate
from qemu_usernat.gateway.dns_zone import LOOK_INTERVAL
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.addresses import parse_address, parse_mac
from tests.gateway.test_dns import FIRST, Conversation, ask_for

GUEST = Guest(parse_mac("52:54:00:12:34:56"), "guest", parse_address("10.0.2.15"))
LONG = ".".join(("a" * 60, "b" * 60, "c" * 60, "wild.example"))
LONGEST = ".".join(("a" * 63, "b" * 63, "c" * 63, "d" * 48, "wild.example"))

Change = Callable[[dns.message.Message], None]


class Gated(Conversation):
    """A guest's conversation under a policy."""

    def __init__(self, policy: NetworkPolicy, *records: Record) -> None:
        super().__init__(FIRST, records=records)
        settings = PolicySettings(policy=policy)
        self.admission = Admission(Groups(), settings=settings)
        self.gate = DnsGate(self.forwarder, self.admission, self.counters, lambda mac: None)

    def query(
        self,
        message: dns.message.Message | bytes,
        transport: str = "udp",
        now: float = 0.0,
        guest: str = "",
    ) -> bool:
        wire = message if isinstance(message, bytes) else message.to_wire()
        return self.gate.on_query(GUEST, wire, transport, self.replies.append, now)

    def told(
        self, query: dns.message.QueryMessage, change: Change, transport: str = "udp"
    ) -> tuple[dns.message.Message, int]:
        """What the guest is told of such an answer, and how much longer that is."""
        self.replies.clear()
        self.query(query, transport)
        wire = self.answer(change=change)
        reply = self.reply()
        assert query.is_response(reply)
        return reply, len(self.replies[0]) - len(wire)

    def is_pinned(self, address: str) -> bool:
        return bool(self.admission.pins(GUEST).names(parse_address(address), 0.0))


@pytest.fixture
def talk() -> Gated:
    """Names below one are allowed."""
    return Gated(NetworkPolicy.deny_all().allow_domain("*.wild.example"))


def with_answers(*rrsets: tuple[str, str, str, list[str]]) -> Change:
    """An upstream that says these: owner, class, type and values."""

    def add(message: dns.message.Message) -> None:
        for owner, rdclass, rdtype, texts in rrsets:
            message.answer.append(dns.rrset.from_text_list(f"{owner}.", 60, rdclass, rdtype, texts))

    return add


def addresses(count: int) -> list[str]:
    return [f"8.8.{n >> 8}.{n & 255}" for n in range(count)]


def test_an_answer_is_no_larger_than_the_upstream_s(talk: Gated) -> None:
    """A name is written once, though the guest's answer is one of our making."""
    many = with_answers((LONG, "IN", "A", addresses(16)))
    reply, more = talk.told(ask_for(LONG), many)
    assert {item.address for item in reply.answer[0]} == set(addresses(16))
    assert str(reply.answer[0].name) == f"{LONG}."
    assert more <= 0


def test_a_chain_is_read_as_it_was_written(talk: Gated) -> None:
    """Each owner behind an alias is a pointer to the name in it."""
    chain = with_answers(
        ("www.wild.example", "IN", "CNAME", [f"{LONG}."]),
        (LONG, "IN", "CNAME", ["end.example."]),
        ("end.example", "IN", "AAAA", ["2001:4860::1", "2001:4860::2"]),
    )
    reply, more = talk.told(ask_for("www.wild.example", "AAAA"), chain)
    expected = dns.message.make_response(ask_for("www.wild.example", "AAAA"))
    chain(expected)
    assert reply.answer == expected.answer
    assert more < 20  # a target is written in full
    assert talk.is_pinned("2001:4860::2")


@pytest.mark.parametrize(("edns", "fits"), [(None, False), (1232, False), (2000, True)])
def test_over_udp_the_guest_s_size_counts(talk: Gated, edns: int | None, fits: bool) -> None:
    """What it does not take is cut as the forwarder cuts it, and no address of it is pinned."""
    exchanges = [f"10 m{n:02}.{LONG}." for n in range(7)]
    mail = with_answers((LONG, "IN", "MX", exchanges))
    reply, _ = talk.told(ask_for(LONG, "MX", edns=edns), mail)
    assert bool(reply.flags & dns.flags.TC) is not fits
    assert len(reply.answer) == fits
    assert reply.edns == (-1 if edns is None else 0)
    assert len(talk.replies[0]) <= (edns or 512)


def test_only_what_the_guest_is_told_is_pinned(talk: Gated) -> None:
    """Not what was cut away: the guest comes back over TCP, and then is told."""
    chain = [(f"n{n}.{LONG}", "IN", "CNAME", [f"n{n + 1}.{LONG}."]) for n in range(2)]
    change = with_answers(*chain, (f"n2.{LONG}", "IN", "A", ["8.8.8.8"]))
    for transport in ("udp", "tcp"):
        reply, _ = talk.told(ask_for(f"n0.{LONG}"), change, transport)
        whole = transport == "tcp"
        assert bool(reply.flags & dns.flags.TC) is not whole
        assert talk.is_pinned("8.8.8.8") is whole


def test_over_tcp_there_is_room_for_what_the_upstream_said(talk: Gated) -> None:
    """Hundreds of addresses of a long name; but reading more takes time that is the others'."""
    many = with_answers((LONG, "IN", "A", addresses(500)))
    reply, more = talk.told(ask_for(LONG), many, "tcp")
    assert len(reply.answer[0]) == 500
    assert more <= 0
    reply, _ = talk.told(ask_for(LONG), with_answers((LONG, "IN", "A", addresses(600))), "tcp")
    assert (reply.rcode(), reply.answer) == (dns.rcode.SERVFAIL, [])


def test_what_does_not_fit_over_tcp_is_servfail(talk: Gated) -> None:
    """Names that the upstream could shorten more than we do: an answer all the same."""
    servers = with_answers((LONG, "IN", "NS", [f"n{n:03}.{LONG}." for n in range(400)]))
    reply, _ = talk.told(ask_for(LONG, "NS"), servers, "tcp")
    assert (reply.rcode(), reply.answer) == (dns.rcode.SERVFAIL, [])


def test_records_of_another_class_are_left_out(talk: Gated) -> None:
    """What was asked is the internet's."""
    name = "a.wild.example"
    ours, chaos = (name, "IN", "A", ["8.8.8.8"]), (name, "CH", "A", ["chaos. 1234"])
    for change in (with_answers(ours, chaos), with_answers(chaos, ours)):
        reply, _ = talk.told(ask_for(name), change)
        assert [rrset.to_text() for rrset in reply.answer] == [f"{name}. 60 IN A 8.8.8.8"]
    reply, _ = talk.told(ask_for(name), with_answers(chaos))
    assert reply.answer == []


@pytest.mark.parametrize("edns", [None, 512])
@pytest.mark.parametrize("rdtype", ["A", "HTTPS"])
def test_a_no_fits_whatever_the_name(rdtype: str, edns: int | None) -> None:
    """The longest of all: NXDOMAIN, or no records, with the SOA of that very name."""
    policy = NetworkPolicy.allow_all()
    if rdtype == "A":
        policy = policy.deny_domain("*.wild.example").named("x" * 64)
    talk = Gated(policy)
    query = ask_for(LONGEST, rdtype, edns=edns)
    talk.query(query)
    reply = talk.reply()
    assert query.is_response(reply)
    assert reply.rcode() == (dns.rcode.NXDOMAIN if rdtype == "A" else dns.rcode.NOERROR)
    assert str(reply.authority[0].name) == f"{LONGEST}."
    assert len(talk.replies[0]) <= 512


# Names of our own


def own(name: str, kind: str, data: str) -> Record:
    return read_records([{"name": name, "type": kind, "data": data}])[0]


def test_the_operator_s_own_names_are_told_and_believed() -> None:
    """Their addresses are the name's, as if a resolver had said so; rules judge what follows."""
    talk = Gated(NetworkPolicy.deny_all(), own("db.internal", "A", "192.168.1.5"))
    talk.query(ask_for("db.internal"))
    assert talk.reply().answer[0][0].to_text() == "192.168.1.5"
    assert talk.admission.pins(GUEST).names(parse_address("192.168.1.5"), 0.0) == {"db.internal"}


def test_what_a_guest_calls_itself_makes_no_address_a_name_s() -> None:
    """A neighbour's name is told, and lets nobody through a rule for that name."""
    talk = Gated(NetworkPolicy.deny_all().allow_domain("web.internal"))
    talk.forwarder.zone.guests = lambda now: [(parse_address("10.0.2.99"), "web")]
    talk.query(ask_for("web.internal"), now=LOOK_INTERVAL)
    assert talk.reply().answer[0][0].to_text() == "10.0.2.99"
    assert not talk.is_pinned("10.0.2.99")


@pytest.mark.parametrize("is_denied", [False, True])
def test_where_an_own_name_leads_outside_is_judged(is_denied: bool) -> None:
    """An alias of the operator's goes where it says, unless a rule denies that; inward addresses
    are left out, and what the guest is told belongs to the name that it asked for."""
    policy = NetworkPolicy.deny_all()
    if is_denied:
        policy = policy.deny_domain("*.cdn.example")
    talk = Gated(policy, own("www.internal", "CNAME", "a.cdn.example"))
    talk.query(ask_for("www.internal"))
    question = dns.message.from_wire(talk.asker.asked[0][2]).question[0]
    assert question.to_text() == "a.cdn.example. IN A"
    talk.answer(change=with_answers(("a.cdn.example", "IN", "A", ["8.8.8.8", "127.0.0.1"])))
    reply = talk.reply()
    if is_denied:
        assert reply.rcode() == dns.rcode.NXDOMAIN
        assert not talk.is_pinned("8.8.8.8")
    else:
        assert [item.to_text() for rrset in reply.answer for item in rrset] == [
            "a.cdn.example.",
            "8.8.8.8",
        ]
        names = talk.admission.pins(GUEST).names(parse_address("8.8.8.8"), 0.0)
        assert names == {"www.internal"}


def test_what_one_guest_may_not_be_told_another_may(talk: Gated) -> None:
    """The same answer twice: what was left out for one judge is still there for the next."""
    change = with_answers(("a.wild.example", "IN", "A", ["8.8.8.8", "192.168.1.9"]))
    query = ask_for("a.wild.example")
    reply, _ = talk.told(query, change)
    assert [item.to_text() for item in reply.answer[0]] == ["8.8.8.8"]
    policy = NetworkPolicy.allow_all().allow_ip("192.168.1.9")
    talk.admission.replace(PolicySettings(policy=policy))
    reply, _ = talk.told(query, change)
    assert {item.to_text() for item in reply.answer[0]} == {"8.8.8.8", "192.168.1.9"}
