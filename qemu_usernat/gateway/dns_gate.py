"""The gate before the name server: which questions of a guest go on, and what it is told.

A question goes upstream only if a rule could admit its name (`Judge.judge_name`), and then as a
question of our own making: nothing of the guest's but name and type leaves. HTTPS and SVCB, which
would carry other addresses and keys past us, have no records here. Of an answer the guest gets the
chain from its name to addresses, without those that it may not be told of, and each address that
it is told of is pinned to the name before the answer is sent. A chain that leads through a denied
name is refused.

Own names (`Zone`) are the operator's, and exempt; what outside they lead to is judged as what an
upstream leads to.
"""

import re
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import lru_cache, partial

import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from attrs import define

from qemu_usernat.admission import Admission, Decision, Guest
from qemu_usernat.gateway import dns_message
from qemu_usernat.gateway.dns import ZONE_TRANSFERS, DnsForwarder, ReplyCallback
from qemu_usernat.gateway.dns_message import Query
from qemu_usernat.gateway.dns_weight import is_light
from qemu_usernat.policy.judge import FlowRequest, Judge, Verdict, Why
from qemu_usernat.policy.rules import ALLOW, DENY
from qemu_usernat.primitives.addresses import DNS_PORT, Address, MacAddress, parse_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed

BLOCKED = 15  # extended DNS error (RFC 8914, 4.16)

NEGATIVE_TTL = 5  # seconds: a policy may change

ANSWERS_REMEMBERED = 256
"""Answers whose reading is remembered: dnspython takes some 200 µs for one."""

REMEMBERED_MAXIMUM = 1232
"""Bytes of such an answer; larger ones are rare, and would make much of a little memory."""

ALIASES_MAXIMUM = 16
"""CNAMEs in one answer."""

_WITHOUT_RECORDS = frozenset({64, 65, 255})  # SVCB, HTTPS (RFC 9460), ANY (RFC 8482)
_ADDRESSES = frozenset({dns.rdatatype.A, dns.rdatatype.AAAA})

_UNUSUAL = re.compile(rb"[^a-z0-9_-]")
"""What labels of host names do not have."""

# What says how long to believe in none (RFC 2308): mname, rname, and five numbers. It is of the
# zone that does not have it: the name's own.
_SOA_DATA = b"\0\0" + struct.pack(">5L", 1, 3600, 600, 86_400, NEGATIVE_TTL)
_SOA = dns_message.record(dns.rdatatype.SOA, NEGATIVE_TTL, _SOA_DATA)


@define(eq=False)
class DnsGate:
    """One segment's."""

    forwarder: DnsForwarder
    admission: Admission
    counters: Counters
    port_of: Callable[[MacAddress], Hashable]
    """Where a guest is attached: who pays for its questions."""
    isolated: bool = False
    """Whether each guest is told of itself alone."""

    def on_query(
        self, guest: Guest, message: bytes, transport: str, reply: ReplyCallback, now: float
    ) -> bool:
        """As `DnsForwarder.on_query`, of this guest."""
        port = self.port_of(guest.mac)
        alone = guest.address if self.isolated else None
        forward = partial(self.forwarder.on_query, guest=guest.link, port=port, alone=alone)
        if not self.admission.guards_names:
            if self.admission.redirects.know_names:
                reply = self._noting(guest, message, reply, now)
            return forward(message, transport, reply, now)
        if (
            len(message) < dns_message.HEADER_LENGTH
            or dns_message.is_response(message)
            or not dns_message.is_standard_query(message)
        ):
            return forward(message, transport, reply, now)  # which answers it itself
        try:
            query = dns_message.read_query(message)
        except Malformed:
            return forward(message, transport, reply, now)
        zone = self.forwarder.zone
        own = zone.answer(query, now, alone) if zone.may_know(query) else None
        if own is not None and own.outside is None:
            # What the operator says of a name is believed, wherever it leads; what a guest calls
            # itself makes no address a name's.
            if own.is_given:
                self._pin(guest, query, own.rrsets, now)
            return forward(message, transport, reply, now)
        if own is not None:
            on_answer = partial(self._on_answer, guest, query, transport, reply, now)
            return forward(_own(query), transport, on_answer, now)
        name = _text(query.name)
        if query.record_type in ZONE_TRANSFERS:
            self._told(guest, name, Verdict(DENY, Why.QUESTION), now)
            return forward(message, transport, reply, now)  # which refuses it
        verdict = self.admission.judge_of(guest).judge_name(name)
        if query.record_class != dns.rdataclass.IN:
            verdict = Verdict(DENY, Why.QUESTION)
        verdict = self._told(guest, name, verdict, now)
        if verdict.action != ALLOW:
            self._refuse(query, verdict, reply)
        elif query.record_type in _WITHOUT_RECORDS:
            self.counters.count("dns.without_records")
            reply(dns_message.reply(query, dns_message.NOERROR, [], [_SOA]))
        else:
            on_answer = partial(self._on_answer, guest, query, transport, reply, now)
            return forward(_own(query), transport, on_answer, now)
        return True

    def _noting(
        self, guest: Guest, message: bytes, reply: ReplyCallback, now: float
    ) -> ReplyCallback:
        """The same, but what the guest is told is noted before, for redirects by name; not what
        guests call themselves, for a policy may come that goes by names."""
        try:
            query = dns_message.read_query(message)
        except Malformed:
            return reply
        zone = self.forwarder.zone
        own = zone.answer(query, now) if zone.may_know(query) else None
        if query.record_type not in _ADDRESSES or (own is not None and not own.is_given):
            return reply

        def note(answer: bytes) -> None:
            try:
                if is_light(answer):
                    self._pin(guest, query, _read(answer), now)
            except (dns.exception.DNSException, ValueError, struct.error):
                self.counters.count("dns.unreadable_answer")
            reply(answer)

        return note

    def _told(self, guest: Guest, name: str, verdict: Verdict, now: float) -> Verdict:
        request = FlowRequest("dns", b"", DNS_PORT)
        return self.admission.told(Decision(guest, request, verdict, name), now).verdict

    def _refuse(self, query: Query, verdict: Verdict, reply: ReplyCallback) -> None:
        """NXDOMAIN, and why."""
        if self.admission.drops:
            self.counters.count("policy.dropped")
            return
        self.counters.count("dns.denied")
        rule = f" by rule {verdict.rule.name}" if verdict.rule and verdict.rule.name else ""
        text = f"denied by the network policy{rule}"
        reply(
            dns_message.reply(
                query, dns_message.NXDOMAIN, [], [_SOA], extended_error=(BLOCKED, text)
            )
        )

    def _on_answer(
        self,
        guest: Guest,
        query: Query,
        transport: str,
        reply: ReplyCallback,
        now: float,
        message: bytes,
    ) -> None:
        """Of an upstream, or the forwarder's own that it has none."""
        rcode = dns_message.rcode_of(message)
        if rcode not in (dns_message.NOERROR, dns_message.NXDOMAIN):
            reply(dns_message.reply(query, rcode))
            return
        if not is_light(message):
            self.counters.count("dns.unreadable_answer")
            reply(dns_message.reply(query, dns_message.SERVFAIL))
            return
        if message[2] << 8 & dns_message.TC:
            reply(
                dns_message.truncated(
                    query, dns_message.reply(query, rcode), dns_message.UDP_SIZE_MINIMUM
                )
            )
            return
        judge = self.admission.judge_of(guest)
        try:
            chain = self._without_inward(judge, _read(message))
            records = dns_message.chain(query, chain)
        except (dns.exception.DNSException, ValueError, struct.error):
            self.counters.count("dns.unreadable_answer")
            reply(dns_message.reply(query, dns_message.SERVFAIL))
            return
        aliases = [rrset for rrset in chain if rrset.rdtype == dns.rdatatype.CNAME]
        for target in (_text(item.target) for rrset in aliases for item in rrset):
            verdict = judge.judge_name(target)
            if verdict.action == DENY and verdict.rule is not None:
                verdict = self._told(guest, target, verdict, now)
                if verdict.action == DENY:
                    self._refuse(query, verdict, reply)
                    return
        authority = [] if records else [_SOA]
        whole = dns_message.reply(query, rcode, records, authority)
        fitting = dns_message.fitting(query, whole, transport)
        if fitting is whole:
            self._pin(guest, query, chain, now)
        reply(fitting)

    def _without_inward(
        self, judge: Judge, chain: Iterable[dns.rrset.RRset]
    ) -> list[dns.rrset.RRset]:
        """The same without the addresses that the guest may not be told of."""
        kept = []
        for rrset in chain:
            inward = {item for item, found in _addresses(rrset) if not judge.may_be_told(found)}
            if not inward:
                kept.append(rrset)
                continue
            self.counters.count("dns.inward_answer", len(inward))
            others = [item for item in rrset if item not in inward]
            if others:
                kept.append(dns.rrset.from_rdata_list(rrset.name, rrset.ttl, others))
        return kept

    def _pin(
        self, guest: Guest, query: Query, chain: Iterable[dns.rrset.RRset], now: float
    ) -> None:
        """The guest is about to be told of these addresses."""
        pins, name = self.admission.pins(guest), _text(query.name)
        for rrset in chain:
            for _, address in _addresses(rrset):
                pins.add(name, address, rrset.ttl, now)


def _addresses(rrset: dns.rrset.RRset) -> list[tuple[dns.rdata.Rdata, Address]]:
    """The records of addresses."""
    if rrset.rdtype not in _ADDRESSES:
        return []
    return [(item, parse_address(item.address)) for item in rrset]


def _read(message: bytes) -> tuple[dns.rrset.RRset, ...]:
    """The chain in an answer; what is asked for often is read once a second, as its TTLs fall."""
    body = message[2:]
    return _read_once(body) if len(body) <= REMEMBERED_MAXIMUM else _read_body(body)


def _read_body(body: bytes) -> tuple[dns.rrset.RRset, ...]:
    """All behind the identifier; DNSException, ValueError or struct.error where it is broken."""
    return tuple(_chain(dns.message.from_wire(b"\0\0" + body, ignore_trailing=True)))


_read_once = lru_cache(ANSWERS_REMEMBERED)(_read_body)


def _chain(answer: dns.message.Message) -> Iterator[dns.rrset.RRset]:
    """The records that answer the question: CNAMEs from its name on, and what is at their end."""
    owner, kind = answer.question[0].name, answer.question[0].rdtype
    records = [rrset for rrset in answer.answer if rrset.rdclass == dns.rdataclass.IN]
    for _ in range(ALIASES_MAXIMUM):
        kinds = {rrset.rdtype: rrset for rrset in records if rrset.name == owner}
        found = kinds.get(kind)
        if found is not None:
            yield found
            return
        alias = kinds.get(dns.rdatatype.CNAME)
        if alias is None:
            return
        yield alias
        owner = alias[0].target


def _text(name: dns.name.Name) -> str:
    """As names are compared: a dot stands between labels and never in one.

    What no host name has is written as a number (RFC 1035, 5.1).
    """
    labels = (_UNUSUAL.sub(_escape, label.lower()) for label in name.labels[:-1])
    return b".".join(labels).decode("ascii") or "."


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\%03d" % ord(found[0])


def _own(query: Query) -> bytes:
    """The same question in our words: no octet of the guest's but name and type."""
    name = (query.name.to_wire() or b"\0").lower()
    return dns_message.question(query.identifier, name, query.record_type)
