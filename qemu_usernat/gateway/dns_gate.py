"""The gate before the name server: which questions of a guest go on, and what it is told.

A question goes upstream only if a rule could admit its name (`Judge.judge_name`), and then as a
question of our own making: nothing of the guest's but name and type leaves. HTTPS and SVCB, which
would carry other addresses and keys past us, have no records here. Of an answer the guest gets the
chain from its name to addresses, without those that it may not be told of, and each address is
pinned to the name before the answer is sent. A chain that leads through a denied name is refused.

Own names (`Zone`) are the operator's, and exempt.
"""

from collections.abc import Iterator
from functools import partial
from struct import Struct

import dns.exception
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from attrs import define

from qemu_usernat.admission import Admission, Decision, Guest
from qemu_usernat.gateway import dns_message
from qemu_usernat.gateway.dns import ZONE_TRANSFERS, DnsForwarder, ReplyCallback
from qemu_usernat.gateway.dns_message import Query
from qemu_usernat.policy.judge import FlowRequest, Verdict, Why
from qemu_usernat.policy.rules import ALLOW, DENY
from qemu_usernat.primitives.addresses import parse_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed

BLOCKED = 15  # extended DNS error (RFC 8914, 4.16)

NEGATIVE_TTL = 5  # seconds: a policy may change

ALIASES_MAXIMUM = 16
"""CNAMEs in one answer."""

_WITHOUT_RECORDS = frozenset({64, 65, 255})  # SVCB, HTTPS (RFC 9460), ANY (RFC 8482)
_ADDRESSES = frozenset({dns.rdatatype.A, dns.rdatatype.AAAA})

# What says how long to believe in none (RFC 2308): mname, rname, and five numbers.
_SOA = b"\0\0" + Struct(">5L").pack(1, 3600, 600, 86_400, NEGATIVE_TTL)


@define(eq=False)
class DnsGate:
    """One segment's."""

    forwarder: DnsForwarder
    admission: Admission
    counters: Counters

    def on_query(
        self, guest: Guest, message: bytes, transport: str, reply: ReplyCallback, now: float
    ) -> bool:
        """As `DnsForwarder.on_query`, of this guest."""
        forward = partial(self.forwarder.on_query, guest=guest.link)
        if not self.admission.guards_names:
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
        own = self.forwarder.zone.answer(query)
        if own is not None:
            self._pin_own(guest, query, own, now)
            return forward(message, transport, reply, now)
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
            reply(dns_message.reply(query, dns_message.NOERROR, [], [_soa(query)]))
        else:
            on_answer = partial(self._on_answer, guest, query, name, reply, now)
            return forward(_own(query), transport, on_answer, now)
        return True

    def _told(self, guest: Guest, name: str, verdict: Verdict, now: float) -> Verdict:
        request = FlowRequest("dns", b"", 53)
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
                query, dns_message.NXDOMAIN, [], [_soa(query)], extended_error=(BLOCKED, text)
            )
        )

    def _on_answer(
        self,
        guest: Guest,
        query: Query,
        name: str,
        reply: ReplyCallback,
        now: float,
        message: bytes,
    ) -> None:
        """Of an upstream, or the forwarder's own that it has none."""
        rcode = dns_message.rcode_of(message)
        if rcode not in (dns_message.NOERROR, dns_message.NXDOMAIN):
            reply(dns_message.reply(query, rcode))
            return
        if message[2] << 8 & dns_message.TC:
            reply(
                dns_message.truncated(
                    query, dns_message.reply(query, rcode), dns_message.UDP_SIZE_MINIMUM
                )
            )
            return
        try:
            answer = dns.message.from_wire(message, ignore_trailing=True)
            chain = list(_chain(answer, query))
        except (dns.exception.DNSException, ValueError):
            self.counters.count("dns.unreadable_answer")
            reply(dns_message.reply(query, dns_message.SERVFAIL))
            return
        judge = self.admission.judge_of(guest)
        aliases = [rrset for rrset in chain if rrset.rdtype == dns.rdatatype.CNAME]
        for target in (_text(item.target) for rrset in aliases for item in rrset):
            verdict = judge.judge_name(target)
            if verdict.action == DENY and verdict.rule is not None:
                verdict = self._told(guest, target, verdict, now)
                if verdict.action == DENY:
                    self._refuse(query, verdict, reply)
                    return
        records = []
        for rrset in chain:
            for item in rrset:
                if rrset.rdtype in _ADDRESSES and not self._pin(
                    guest, name, item.address, rrset.ttl, now
                ):
                    continue
                data = item.to_wire() or b""
                records.append(dns_message.record(rrset.rdtype, rrset.ttl, data, rrset.name))
        authority = [] if records else [_soa(query)]
        reply(dns_message.reply(query, rcode, records, authority))

    def _pin_own(self, guest: Guest, query: Query, message: bytes, now: float) -> None:
        """What the operator says of a name is believed, wherever it leads."""
        for rrset in _chain(dns.message.from_wire(message), query):
            if rrset.rdtype in _ADDRESSES:
                for item in rrset:
                    address = parse_address(item.address)
                    self.admission.pins(guest).add(_text(query.name), address, rrset.ttl, now)

    def _pin(self, guest: Guest, name: str, text: str, ttl: int, now: float) -> bool:
        """Pin an address, if the guest may be told of it."""
        address = parse_address(text)
        if not self.admission.judge_of(guest).may_be_told(address):
            self.counters.count("dns.inward_answer")
            return False
        self.admission.pins(guest).add(name, address, ttl, now)
        return True


def _chain(answer: dns.message.Message, query: Query) -> Iterator[dns.rrset.RRset]:
    """The records that answer the question: CNAMEs from its name on, and what is at their end."""
    owner = query.name
    for _ in range(ALIASES_MAXIMUM):
        kinds = {rrset.rdtype: rrset for rrset in answer.answer if rrset.name == owner}
        found = kinds.get(dns.rdatatype.RdataType(query.record_type))
        if found is not None:
            yield found
            return
        alias = kinds.get(dns.rdatatype.CNAME)
        if alias is None:
            return
        yield alias
        owner = alias[0].target


def _text(name: dns.name.Name) -> str:
    """As names are compared."""
    return name.to_text(omit_final_dot=True).lower()


def _own(query: Query) -> bytes:
    """The same question in our words: no octet of the guest's but name and type."""
    flags = query.flags & (dns_message.RD | dns_message.CD)
    question = query.name.to_wire() or b"\0"
    return dns_message.question(
        query.identifier,
        flags,
        question.lower(),
        query.record_type,
        query.udp_size if query.has_edns else None,
    )


def _soa(query: Query) -> bytes:
    """Of the zone that does not have it: the name's own."""
    return dns_message.record(dns.rdatatype.SOA, NEGATIVE_TTL, _SOA, query.name)
