"""The DNS forwarder (RFC 1035, 5452, 7766): the guest's queries, asked of the host's resolvers.

It answers what is its zone's and what is no proper query, and passes on the rest: a query's bytes
go upstream as they came but for the identifier, an answer's bytes come back but for identifier
and capitals. Where there is a cache (`dns_cache`), what several ask at once is asked once, and what
one was told is told to the others for as long as it is valid, if nothing in the query but its
question has a say in that. Such a question goes upstream in our own words, so that nobody spoils
an answer for others by how he asks.

Sockets are the asker's affair: it sees that an answer comes from the address that was asked, at
the port that asked. Here identifier and question are compared.

An upstream that does not answer in `PATIENCE` is not given up, the next one is asked as well and
the first good answer wins; for a while the silent one is asked after the others. One that fails,
or answers SERVFAIL or REFUSED, is given up for this query. A sole upstream is asked twice, in case
a datagram was lost.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from attrs import define, field, frozen

from qemu_usernat.gateway import dns_message
from qemu_usernat.gateway.dns_cache import DnsCache, read_answer
from qemu_usernat.gateway.dns_message import Key, Query
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.primitives.time import NEVER, SECOND

PATIENCE = 2 * SECOND
"""How long one upstream is waited for before the next is asked: less than a guest's own 5 s
(resolv.conf), so that the second is heard in time."""

SILENCE = 30 * SECOND
"""How long an upstream that did not answer is asked after the others: a resolver that is down costs
one query its patience, not every query."""

PENDING_MAXIMUM = 4096
"""Queries that wait at once: 10,000 a second of which each takes 400 ms."""

GUEST_PENDING_MAXIMUM = 1024
"""Of them, those of one guest, at whatever addresses: however many it asks, others are answered."""

ZONE_TRANSFERS = frozenset({251, 252})  # IXFR (RFC 1995), AXFR (RFC 5936)

Upstream = tuple[Address, int] | tuple[Address, int, str]
"""Address and port of a resolver; and of a link-local one, at which interface of the host's."""

ReplyCallback = Callable[[bytes], None]


class Asker(Protocol):
    """Puts queries to upstreams, and tells the forwarder by `DnsForwarder.on_answer`."""

    def ask(self, upstream: Upstream, transport: str, message: bytes, token: int) -> bool:
        """Send `message`; False if it could not even be sent, and then nothing is told.

        Else every message that comes from there is told, until `forget`; None in its place, and
        the question is forgotten, if it is known that none will come.
        """

    def forget(self, token: int) -> None:
        """No answer is wanted any more; a token unknown by now is no mistake."""


@frozen
class _Question:
    """One query to one upstream."""

    pending: "_Pending"
    upstream: Upstream
    identifier: int


_Same = tuple[Key, str, int, bool]
"""What is asked, over which transport, for an answer of which size, and whether with EDNS, which
there are servers that refuse."""


@define(eq=False)
class _Pending:
    """A guest's query that waits: who is still to be asked, who was, and until when; and those of
    others who ask the same."""

    query: Query
    message: bytes
    transport: str
    reply: ReplyCallback
    untried: list[Upstream]
    guest: str
    port: Hashable
    same: _Same | None = None
    others: list[tuple[Query, ReplyCallback, Hashable]] = field(factory=list)
    tokens: set[int] = field(factory=set)
    refusal: bytes | None = None
    deadline: float = NEVER


@define
class DnsForwarder:
    """One segment's name server.

    `upstreams()` gives the resolvers of the moment, the one to ask first first; `random_id()`
    unpredictable identifiers, 0 to 65535. Without a `cache` each query is asked by itself.
    """

    zone: Zone
    upstreams: Callable[[], Sequence[Upstream]]
    asker: Asker
    random_id: Callable[[], int]
    counters: Counters
    cache: DnsCache | None = None
    _questions: dict[int, _Question] = field(factory=dict, init=False)
    # All wait equally long, so the order of asking is the order of deadlines.
    _waiting: dict[_Pending, None] = field(factory=dict, init=False)
    _shared: dict[_Same, _Pending] = field(factory=dict, init=False)
    _pending: int = field(default=0, init=False)
    """How many wait: for what they have asked, or for what another has."""
    _pending_of: Counter[Hashable] = field(factory=Counter, init=False)
    """The same by port."""
    _last_upstreams: tuple[Upstream, ...] = field(default=(), init=False)
    _last_token: int = field(default=0, init=False)
    _silent_until: dict[Upstream, float] = field(factory=dict, init=False)
    """Upstreams that did not answer lately, and until when they are asked last."""

    def on_query(
        self,
        message: bytes,
        transport: str,
        reply: ReplyCallback,
        now: float,
        guest: str = "",
        port: Hashable = None,
        alone: Address | None = None,
    ) -> bool:
        """Answer a guest's message by one call of `reply`, at once or later.

        False if there will be none, because the message is no query at all. `transport` is "udp"
        or "tcp": how it came, how it goes on, and how large an answer may be. `guest` is the name
        of the link it came by, for an asker that wants to know; at `port` is who pays for it: a
        link's name others may have, too. `alone` is its address where it is to know of no other
        guest.
        """
        if len(message) < dns_message.HEADER_LENGTH or dns_message.is_response(message):
            self.counters.count("dns.not_a_query")
            return False
        self._answer_or_forward(message, transport, reply, now, guest, port, alone)
        return True

    def guest_of(self, token: int) -> str:
        """Whose question it is that is asked with `token`."""
        return self._questions[token].pending.guest

    def on_answer(self, token: int, message: bytes | None, now: float) -> bool:
        """An upstream's message, or None: that one failed (refused, unreachable, closed).

        False if it answers something else: somebody may be guessing.
        """
        question = self._questions.get(token)
        if question is None:
            return True
        pending = question.pending
        if message is None:
            self.counters.count("dns.upstream_failed")
            self._give_up(token, now)
        elif not dns_message.is_answer_to(pending.query, question.identifier, message):
            self.counters.count("dns.mismatched_answer")
            # On a connection nothing better follows; a datagram may be anybody's.
            if pending.transport == "tcp":
                self._give_up(token, now)
            return False
        elif dns_message.rcode_of(message) in (dns_message.SERVFAIL, dns_message.REFUSED):
            self.counters.count("dns.upstream_refused")
            pending.refusal = message
            self._give_up(token, now)
        else:
            self._silent_until.pop(question.upstream, None)
            self._finish(pending, message, now)
        return True

    def deadline(self) -> float:
        """When `on_deadline` is due; NEVER while nothing waits."""
        return next((pending.deadline for pending in self._waiting), NEVER)

    def on_deadline(self, now: float) -> None:
        """Ask the next upstream for each query that has waited long enough, or fail it."""
        while self.deadline() <= now:
            pending = next(iter(self._waiting))
            for token in pending.tokens:
                self._silent_until[self._questions[token].upstream] = now + SILENCE
            if not self._ask_next(pending, now):
                self.counters.count("dns.timeout")
                self._finish(pending, pending.refusal, now)

    def _answer_or_forward(
        self,
        message: bytes,
        transport: str,
        reply: ReplyCallback,
        now: float,
        guest: str,
        port: Hashable,
        alone: Address | None,
    ) -> None:
        """The decision about a query, in the order of what can be known of it."""
        if not dns_message.is_standard_query(message):
            self.counters.count("dns.not_implemented")
            reply(dns_message.bare_error(message, dns_message.NOTIMP))
            return
        try:
            query = dns_message.read_query(message)
        except Malformed as malformed:
            self.counters.count(malformed.reason)
            reply(dns_message.bare_error(message, dns_message.FORMERR))
            return
        if query.record_type in ZONE_TRANSFERS:
            self.counters.count("dns.zone_transfer")
            reply(dns_message.reply(query, dns_message.REFUSED))
            return
        own = self.zone.answer(query, now, alone) if self.zone.may_know(query) else None
        if own is None:
            self._forward(query, message, transport, reply, now, guest, port)
        elif own.outside is None:
            reply(dns_message.fitting(query, own.message(query), transport))
        else:

            def follow(answer: bytes) -> None:
                reply(dns_message.fitting(query, own.followed(query, answer), transport))

            name = own.outside.to_wire() or b"\0"
            question = dns_message.question(query.identifier, name, query.record_type)
            asked = dns_message.read_query(question)
            self._forward(asked, question, transport, follow, now, guest, port)

    def _forward(
        self,
        query: Query,
        message: bytes,
        transport: str,
        reply: ReplyCallback,
        now: float,
        guest: str,
        port: Hashable,
    ) -> None:
        upstreams = tuple(dict.fromkeys(self.upstreams()))
        same = None
        if self.cache is not None and query.is_shareable:
            if upstreams != self._last_upstreams:
                # Others are asked now, who may say otherwise.
                self._last_upstreams = upstreams
                self._shared.clear()
                self.cache.clear()
            kept = self.cache.get(query, now)
            if kept is not None:
                self.counters.count("dns.cache_hit")
                reply(dns_message.fitting(query, kept, transport))
                return
            same = query.key, transport, query.udp_size, query.has_edns
            message = dns_message.in_our_words(query)
        if (
            self._pending >= PENDING_MAXIMUM
            or self._pending_of.get(port, 0) >= GUEST_PENDING_MAXIMUM
        ):
            self.counters.count("dns.too_many_queries")
            reply(dns_message.reply(query, dns_message.SERVFAIL))
            return
        self._pending += 1
        self._pending_of[port] += 1
        if same is not None and same in self._shared:
            self.counters.count("dns.joined")
            self._shared[same].others.append((query, reply, port))
            return
        untried = list(upstreams)
        if self._silent_until:
            untried.sort(key=lambda other: self._silent_until.get(other, now) > now)
        if len(untried) == 1:
            untried *= 2
        pending = _Pending(query, message, transport, reply, untried, guest, port, same)
        if same is not None:
            self._shared[same] = pending
        if not self._ask_next(pending, now):
            self.counters.count("dns.no_upstream")
            self._finish(pending, None, now)

    def _ask_next(self, pending: _Pending, now: float) -> bool:
        """Ask the first untried upstream that can be asked; False if there is none."""
        while pending.untried:
            upstream = pending.untried.pop(0)
            self._last_token += 1
            token, identifier = self._last_token, self.random_id()
            message = dns_message.with_identifier(pending.message, identifier)
            self._questions[token] = _Question(pending, upstream, identifier)
            if self.asker.ask(upstream, pending.transport, message, token):
                pending.tokens.add(token)
                self._wait(pending, now)
                return True
            del self._questions[token]
            self.counters.count("dns.upstream_failed")
        return False

    def _wait(self, pending: _Pending, now: float) -> None:
        self._waiting.pop(pending, None)
        self._waiting[pending] = None
        pending.deadline = now + PATIENCE

    def _give_up(self, token: int, now: float) -> None:
        """That upstream is out for this query; the next one, if it was the last hope."""
        question = self._questions[token]
        pending = question.pending
        self._forget(pending, token)
        pending.untried = [other for other in pending.untried if other != question.upstream]
        if not self._ask_next(pending, now) and not pending.tokens:
            self._finish(pending, pending.refusal, now)

    def _finish(self, pending: _Pending, message: bytes | None, now: float) -> None:
        """Answer the guests by an upstream's message, or by SERVFAIL where there is none."""
        self._waiting.pop(pending, None)
        for token in tuple(pending.tokens):
            self._forget(pending, token)
        query, others = pending.query, pending.others
        shared = None
        if self.cache is not None and pending.same is not None:
            shared = read_answer(query, message) if message is not None else None
            if self._shared.get(pending.same) is pending:
                del self._shared[pending.same]
                if shared is not None:
                    self.cache.put(query, shared, now)
        self._done(pending.port)
        self._tell(pending, query, message, pending.reply)
        for other, reply, port in others:
            self._done(port)
            own = message if shared is None else shared.for_query(other)
            self._tell(pending, other, own, reply)

    def _done(self, port: Hashable) -> None:
        self._pending -= 1
        self._pending_of[port] -= 1
        if not self._pending_of[port]:
            del self._pending_of[port]

    def _tell(
        self, pending: _Pending, query: Query, message: bytes | None, reply: ReplyCallback
    ) -> None:
        if message is None:
            reply(dns_message.reply(query, dns_message.SERVFAIL))
        else:
            answer = dns_message.for_guest(query, message)
            reply(dns_message.fitting(query, answer, pending.transport))

    def _forget(self, pending: _Pending, token: int) -> None:
        pending.tokens.discard(token)
        del self._questions[token]
        self.asker.forget(token)
