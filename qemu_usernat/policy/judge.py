"""The judge: what a policy says about a flow. One pure function, for enforcement and for `explain`.

It answers in three values. A name is believed only where the guest was told so (`names`) and where
the first octets that the guest sends agree; until these are read an answer may be open, and is
given as soon as every first flight that is still possible leads to the same one.

- A rule that *allows* by name needs the pin and the first flight: over TCP the name that TLS or
  HTTP says has to be one that the rule matches and that is pinned to this very address. Port 443
  wants TLS, port 80 HTTP; elsewhere a protocol that says no name passes on the pin alone.
- A rule that *denies* or logs by name matches the name that is said; where none is, the names of
  the address.
- Over UDP and ICMP there is no first flight: names count where the rule says the protocol, and
  never for UDP to port 443, so that clients of QUIC fall back to TCP.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from attrs import define, field, frozen

from qemu_usernat.policy.groups import FLOOR, PUBLIC, Groups, unwrapped
from qemu_usernat.policy.places import (
    AnyPlace,
    DnsPlace,
    GroupPlace,
    NamePlace,
    NetworkPlace,
    Place,
    Service,
)
from qemu_usernat.policy.rules import ALLOW, DENY, LOG, NetworkPolicy, Rule
from qemu_usernat.policy.tables import NameTable, Network, PrefixTable
from qemu_usernat.primitives.addresses import Address

HTTPS_PORT, HTTP_PORT = 443, 80
QUIC_PORT = 443


class Why(Enum):
    """Why a verdict is what it is: the closed list."""

    RULE = "rule"
    """The rule that is named matches."""
    DEFAULT = "default"
    """No rule matches."""
    FLOOR = "floor"
    """No rule names the group of the address, and no default reaches it."""
    HELD = "held"
    """What the guest says first will decide."""
    NOT_PINNED = "not_pinned"
    """A rule names what the guest says, but the guest was not given this address for it."""
    OTHER_NAME = "other_name"
    """The address is of an allowed name, but the guest speaks to another one there."""
    NO_NAME = "no_name"
    """The address is of an allowed name, but the guest does not say whom it speaks to."""
    UNREADABLE = "unreadable"
    """What the guest says first cannot be read."""
    NOT_TLS = "not_tls"
    """The address is of an allowed name, but on port 443 the guest does not speak TLS."""
    NOT_HTTP = "not_http"
    """The address is of an allowed name, but on port 80 the guest does not speak HTTP/1."""
    QUIC = "quic"
    """UDP to port 443, where a name decides: the client falls back to TCP."""
    PROTOCOL = "protocol"
    """The address is of an allowed name, but the rule does not say this protocol."""


class Speech(Enum):
    """What a guest speaks first on a connection."""

    OPEN = "open"
    """Not known yet."""
    TLS = "tls"
    HTTP = "http"
    OTHER = "other"
    """A protocol that says no name."""
    UNREADABLE = "unreadable"
    """Malformed, too long, or never finished."""


@frozen
class Flight:
    """What is known of the first octets of a connection."""

    speech: Speech = Speech.OPEN
    name: str | None = None
    """Whom TLS or HTTP names; None if it names nobody."""
    possible: frozenset[Speech] = frozenset(Speech) - {Speech.OPEN}
    """While it is open: what it may still become."""


UNREAD = Flight()


@frozen
class FlowRequest:
    """A flow that is to be judged."""

    protocol: str
    """``tcp``, ``udp`` or ``icmp``."""
    destination: Address
    port: int
    """0 for ICMP."""
    names: frozenset[str] = frozenset()
    """Those that this guest was given `destination` for."""
    flight: Flight = UNREAD
    """Of TCP only."""


@frozen
class Verdict:
    """What is done with a flow."""

    action: str | None
    """``allow`` or ``deny``; None while it is held."""
    why: Why
    rule: Rule | None = None
    """The rule that has decided, or, with other reasons, the one that nearly did."""
    logged: tuple[Rule, ...] = ()
    """The rules that only note."""

    @property
    def hold(self) -> bool:
        """Whether no octet of the guest may pass yet."""
        return self.action is None


class Match(Enum):
    """Whether a rule matches."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"
    """The first flight will tell."""


@frozen
class Finding:
    """Whether a rule matches, and if it nearly did, what it lacks."""

    match: Match
    lacks: Why | None = None


_YES, _NO, _MAYBE = Finding(Match.YES), Finding(Match.NO), Finding(Match.MAYBE, Why.HELD)


@frozen
class _Hits:
    """What of a request is in the tables."""

    group: str
    by_address: frozenset[int]
    """Rules that name the address, its group, or any."""
    by_name: Mapping[int, frozenset[str]]
    """Rules that name a name of the request, and which names."""


@define
class Judge:
    """A policy on one network, in tables: what a flow costs does not grow with its places."""

    policy: NetworkPolicy
    groups: Groups
    _networks: PrefixTable[tuple[int, Network]] = field(factory=PrefixTable, init=False)
    _names: NameTable[int] = field(factory=NameTable, init=False)
    _groups: dict[str, list[int]] = field(factory=dict, init=False)
    _any: list[int] = field(factory=list, init=False)
    _dns: list[int] = field(factory=list, init=False)
    _by_speech: list[int] = field(factory=list, init=False)
    """Rules that deny or log by name, which may match whatever is said first: of each kind the
    first is enough to know what is possible."""

    def __attrs_post_init__(self) -> None:
        kinds: set[tuple[str, tuple[Service, ...]]] = set()
        for number, rule in enumerate(self.policy.rules):
            for place in rule.places:
                self._add(place, number)
            kind = rule.action, rule.services
            names = any(isinstance(place, NamePlace) for place in rule.places)
            if names and rule.action != ALLOW and kind not in kinds:
                kinds.add(kind)
                self._by_speech.append(number)

    def _add(self, place: Place, number: int) -> None:
        match place:
            case NetworkPlace(network):
                self._networks.add(network, (number, network))
            case NamePlace(name, wildcard):
                self._names.add(name, number, wildcard)
            case GroupPlace(group):
                self._groups.setdefault(group, []).append(number)
            case AnyPlace():
                self._any.append(number)
            case DnsPlace():
                self._dns.append(number)

    # -- flows

    def judge(self, request: FlowRequest) -> Verdict:
        """The verdict, or that it is held until more of the first flight is read."""
        hits = self._hits(request)
        candidates = {*hits.by_address, *hits.by_name}
        if request.protocol == "tcp" and request.flight.speech is Speech.OPEN:
            candidates.update(self._by_speech)
        rules = self.policy.rules
        logged: list[Rule] = []
        possible: dict[str, Rule] = {}
        near = self._floor(request, hits)
        for number in sorted(candidates):
            rule = rules[number]
            finding = self._finding(number, request, hits)
            if finding.match is Match.NO:
                if near is None and finding.lacks is not None:
                    near = finding.lacks, rule
            elif rule.action == LOG:
                if finding.match is Match.YES:
                    logged.append(rule)
            else:
                possible.setdefault(rule.action, rule)
                if finding.match is Match.YES:
                    return _verdict(possible, Why.RULE, logged)
        default, why, rule_near = self._default(hits, near)
        if possible and default not in possible:
            return Verdict(None, Why.HELD, next(iter(possible.values())), tuple(logged))
        if possible:
            return _verdict(possible, Why.RULE, logged)
        return Verdict(default, why, rule_near, tuple(logged))

    def _default(
        self, hits: _Hits, near: tuple[Why, Rule | None] | None
    ) -> tuple[str, Why, Rule | None]:
        """What is done where no rule matches."""
        if self.policy.default == ALLOW and hits.group not in FLOOR:
            return ALLOW, Why.DEFAULT, None
        why, rule = near or (Why.DEFAULT, None)
        return DENY, why, rule

    def _floor(self, request: FlowRequest, hits: _Hits) -> tuple[Why, Rule | None] | None:
        """If the floor is what keeps the flow from a default or from a rule for any address."""
        if hits.group not in FLOOR:
            return None
        if self.policy.default == ALLOW:
            return Why.FLOOR, None
        for number in self._any:
            rule = self.policy.rules[number]
            if rule.action == ALLOW and _covers(rule, request):
                return Why.FLOOR, rule
        return None

    def findings(self, request: FlowRequest) -> Iterator[tuple[Rule, Finding]]:
        """For `explain`: what the judge finds of each rule, in order; it stops at none."""
        hits = self._hits(request)
        for number, rule in enumerate(self.policy.rules):
            yield rule, self._finding(number, request, hits)

    def _hits(self, request: FlowRequest) -> _Hits:
        address = unwrapped(request.destination)
        group = self.groups.of(address)
        by_address = set(self._groups.get(group, ()))
        if group not in FLOOR:
            by_address.update(self._any)
        for number, network in self._networks.find(address):
            if group not in FLOOR or self.groups.is_named(group, network):
                by_address.add(number)
        by_name: dict[int, set[str]] = {}
        spoken = request.flight.name
        for name in request.names if spoken is None else request.names | {spoken}:
            for number in self._names.find(name):
                by_name.setdefault(number, set()).add(name)
        frozen_names = {number: frozenset(names) for number, names in by_name.items()}
        return _Hits(group, frozenset(by_address), frozen_names)

    def _finding(self, number: int, request: FlowRequest, hits: _Hits) -> Finding:
        rule = self.policy.rules[number]
        named = hits.by_name.get(number, frozenset())
        if not _covers(rule, request):
            return _NO
        if number in hits.by_address:
            return _YES
        if rule.action != ALLOW:
            return _denied_by_name(request, named)
        if request.protocol != "tcp":
            return _allowed_datagrams(rule, request, named)
        return _allowed_by_name(request, named)

    def is_named(self, request: FlowRequest) -> bool:
        """Whether the first address rule that covers the flow and lists its network allows it."""
        numbers = {number for number, _ in self._networks.find(unwrapped(request.destination))}
        for number in sorted(numbers):
            rule = self.policy.rules[number]
            if rule.action != LOG and _covers(rule, request):
                return rule.action == ALLOW
        return False

    # -- names

    def judge_name(self, name: str) -> Verdict:
        """Whether `name` may be looked up: if a rule could admit it, or names are free."""
        logged: list[Rule] = []
        for number in sorted({*self._names.find(name), *self._dns}):
            rule = self.policy.rules[number]
            if rule.action == LOG:
                logged.append(rule)
            elif rule.action == ALLOW or not rule.services:
                return Verdict(rule.action, Why.RULE, rule, tuple(logged))
        return Verdict(self.policy.default, Why.DEFAULT, None, tuple(logged))

    def may_be_told(self, address: Address) -> bool:
        """Whether an answer may hold this address: it is public, or may be reached on its own."""
        request = FlowRequest("", address, 0)
        hits = self._hits(request)
        if hits.group == PUBLIC:
            return True
        for number in sorted(hits.by_address):
            rule = self.policy.rules[number]
            if rule.action == ALLOW:
                return True
            if rule.action == DENY and not rule.services:
                return False
        return self.policy.default == ALLOW and hits.group not in FLOOR


def _verdict(possible: Mapping[str, Rule], why: Why, logged: Sequence[Rule]) -> Verdict:
    """Of the actions that are possible: the one, or that it is open."""
    if len(possible) > 1:
        return Verdict(None, Why.HELD, next(iter(possible.values())), tuple(logged))
    ((action, rule),) = possible.items()
    return Verdict(action, why, rule, tuple(logged))


def _covers(rule: Rule, request: FlowRequest) -> bool:
    return not rule.services or any(
        service.covers(request.protocol, request.port) for service in rule.services
    )


def _allowed_datagrams(rule: Rule, request: FlowRequest, named: frozenset[str]) -> Finding:
    """A rule that allows by name, and a flow without a first flight that is read."""
    if not named & request.names:
        return _NO
    if request.protocol == "udp" and request.port == QUIC_PORT:
        return Finding(Match.NO, Why.QUIC)
    said = any(service.protocol == request.protocol for service in rule.services)
    return _YES if said else Finding(Match.NO, Why.PROTOCOL)


def _allowed_by_name(request: FlowRequest, named: frozenset[str]) -> Finding:
    """A rule that allows by name, and a connection."""
    flight, pinned = request.flight, named & request.names
    if not pinned:
        return Finding(Match.NO, Why.NOT_PINNED) if named else _NO
    if flight.speech is not Speech.OPEN:
        return _allowed_speech(flight.speech, flight.name, request.port, pinned, named)
    outcomes = [
        _MAYBE
        if speech in (Speech.TLS, Speech.HTTP) and _fits(speech, request.port) is None
        else _allowed_speech(speech, None, request.port, pinned, named)
        for speech in sorted(flight.possible, key=lambda speech: speech.value)
    ]
    matches = {outcome.match for outcome in outcomes}
    return outcomes[0] if len(matches) == 1 else _MAYBE


def _allowed_speech(
    speech: Speech, name: str | None, port: int, pinned: frozenset[str], named: frozenset[str]
) -> Finding:
    if speech is Speech.UNREADABLE:
        return Finding(Match.NO, Why.UNREADABLE)
    lacks = _fits(speech, port)
    if lacks is not None:
        return Finding(Match.NO, lacks)
    if speech is Speech.OTHER or name in pinned:
        return _YES
    if name is None:
        return Finding(Match.NO, Why.NO_NAME)
    return Finding(Match.NO, Why.NOT_PINNED if name in named else Why.OTHER_NAME)


def _fits(speech: Speech, port: int) -> Why | None:
    """What is wrong with speaking this at that port, under a name."""
    if port == HTTPS_PORT and speech is not Speech.TLS:
        return Why.NOT_TLS
    if port == HTTP_PORT and speech is not Speech.HTTP:
        return Why.NOT_HTTP
    return None


def _denied_by_name(request: FlowRequest, named: frozenset[str]) -> Finding:
    """A rule that denies or logs by name: by the one that is said, else by those of the address."""
    flight, pinned = request.flight, bool(named & request.names)
    if pinned and named >= request.names:
        return _YES  # the address has no other name
    if request.protocol != "tcp":
        return _YES if pinned else _NO
    if flight.name is not None:
        return _YES if flight.name in named else _NO
    if flight.speech is not Speech.OPEN:
        return _YES if pinned else _NO
    if flight.possible & {Speech.TLS, Speech.HTTP}:
        return _MAYBE
    return _YES if pinned else _NO
