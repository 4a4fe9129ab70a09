"""The judge: what a policy says about a flow. One pure function, for enforcement and for `explain`.

A name is believed only where the guest was told so (`names`) and where the first octets that the
guest sends agree. What follows from a first flight that has been read is plain: the first rule that
matches decides. While it is not read, the verdict is what every first flight that is still possible
leads to; if they lead to different ones, it is open, and the flow is held. So an early verdict
cannot be wrong.

- A rule that *allows* by name needs the pin and the first flight: over TCP the name that TLS or
  HTTP says has to be one that the rule matches and that is pinned to this very address. Port 443
  wants TLS, port 80 HTTP; elsewhere a protocol that says no name passes on the pin alone. The
  address has to be public, unless the name is of our own zone: what others answer opens no way
  inward, not even where another rule lets the address be told.
  A name that no host may have (it was looked up with a dot or a space in a label) is allowed
  nothing by its name.
- A rule that *denies* by name matches the name that is said; where none is, the names of the
  address. What cannot be read (a malformed flight, QUIC) may say any name, and is denied.
- Over UDP and ICMP there is no first flight: names count where the rule says the protocol, and
  never for UDP to port 443, so that clients of QUIC fall back to TCP.
"""

from collections.abc import Iterator
from enum import Enum

from attrs import define, field, frozen

from qemu_usernat.policy.groups import FLOOR, PUBLIC, Groups, is_martian, names_group, unwrapped
from qemu_usernat.policy.places import (
    AnyPlace,
    DnsPlace,
    GroupPlace,
    NamePlace,
    NetworkPlace,
    Place,
    RangePlace,
    Service,
)
from qemu_usernat.policy.reading import is_host_name
from qemu_usernat.policy.redirects import Target
from qemu_usernat.policy.rules import ALLOW, DENY, LOG, NetworkPolicy, Rule
from qemu_usernat.policy.tables import NameTable, PrefixTable
from qemu_usernat.policy.why import Why as Why
from qemu_usernat.primitives.addresses import Address

HTTPS_PORT, HTTP_PORT = 443, 80
QUIC_PORT = 443

NAME_SERVICE_PORTS = frozenset({137, 853, 5353, 5355})
"""NetBIOS, DNS over TLS (RFC 7858) and QUIC, mDNS, LLMNR: ways around the judgment of names."""


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
    redirect: Target | None = None
    """Where it goes instead: no affair of a judge, but of whoever is told."""


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
    """Whether a rule matches; and why, or what it lacks if it nearly does."""

    match: Match
    why: Why | None = None


_YES, _NO = Finding(Match.YES, Why.RULE), Finding(Match.NO)


def _lacks(why: Why) -> Finding:
    return Finding(Match.NO, why)


@frozen
class _Hits:
    """What of a request is in the tables, as numbers of rules: it does not change with what the
    guest says."""

    group: str
    by_address: frozenset[int]
    """They name the address, its group, or any."""
    by_floor: frozenset[int]
    """They would allow it, but for the floor."""
    by_some_name: frozenset[int]
    """They name some name of the address."""
    by_all_names: frozenset[int]
    """They name every one."""
    by_belief: frozenset[int]
    """They name one that may allow this address."""
    believed: frozenset[str]
    """The names that may allow this address."""


@frozen
class _Case:
    """A first flight that may come, or has."""

    speech: Speech
    name: str | None
    named: frozenset[int] = frozenset()
    """Rules that name that name."""


_SOMEONE_ELSE = ""
"""A name that no address is pinned to, and which it is does not matter."""

_WORDLESS = _Case(Speech.OTHER, None)


@define
class Judge:
    """A policy on one network, in tables: what a flow costs does not grow with its places."""

    policy: NetworkPolicy
    groups: Groups
    guards_names: bool = True
    """Whether names are looked up by us alone; not where nobody has given a policy."""
    _networks: PrefixTable[tuple[int, NetworkPlace | RangePlace]] = field(
        factory=PrefixTable, init=False
    )
    _names: NameTable[int] = field(factory=NameTable, init=False)
    _groups: dict[str, list[int]] = field(factory=dict, init=False)
    _any: list[int] = field(factory=list, init=False)
    _dns: list[int] = field(factory=list, init=False)
    _denying: list[int] = field(factory=list, init=False)
    """Rules that deny by name, whichever: of those with the same services the first is enough."""

    def __attrs_post_init__(self) -> None:
        seen: set[tuple[Service, ...]] = set()
        for number, rule in enumerate(self.policy.rules):
            for place in rule.places:
                self._add(place, number)
            names = any(isinstance(place, NamePlace) for place in rule.places)
            if names and rule.action == DENY and rule.services not in seen:
                seen.add(rule.services)
                self._denying.append(number)

    def _add(self, place: Place, number: int) -> None:
        match place:
            case NetworkPlace() | RangePlace():
                for network in place.networks():
                    self._networks.add(network, (number, place))
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
        if is_martian(request.destination):
            return Verdict(DENY, Why.MARTIAN)
        if self.guards_names and request.port in NAME_SERVICE_PORTS and not self.is_named(request):
            return Verdict(DENY, Why.NAME_SERVICE)
        hits = self._hits(request)
        verdicts = [self._decide(request, hits, case) for case in self._cases(request, hits)]
        if len({verdict.action for verdict in verdicts}) == 1:
            return verdicts[0]
        rule = next((verdict.rule for verdict in verdicts if verdict.rule), None)
        return Verdict(None, Why.HELD, rule)

    def findings(self, request: FlowRequest) -> Iterator[tuple[Rule, Finding]]:
        """For `explain`: what the judge finds of each rule, in order; it stops at none."""
        hits = self._hits(request)
        cases = self._cases(request, hits)
        for number, rule in enumerate(self.policy.rules):
            found = [self._finding(number, request, hits, case) for case in cases]
            if len({finding.match for finding in found}) == 1:
                yield rule, found[0]
            else:
                yield rule, Finding(Match.MAYBE, Why.HELD)

    def is_named(self, request: FlowRequest) -> bool:
        """Whether the first address rule that covers the flow and lists its network allows it."""
        numbers = {number for number, _ in self._networks.find(unwrapped(request.destination))}
        for number in sorted(numbers):
            rule = self.policy.rules[number]
            if rule.action != LOG and _covers(rule, request):
                return rule.action == ALLOW
        return False

    def _hits(self, request: FlowRequest) -> _Hits:
        address = unwrapped(request.destination)
        group = self.groups.of(address)
        by_address, by_floor = set(self._groups.get(group, ())), set[int]()
        (by_floor if group in FLOOR else by_address).update(self._any)
        for number, place in self._networks.find(address):
            allows = self.policy.rules[number].action == ALLOW
            if allows and group in FLOOR and not names_group(group, *place.bounds()):
                by_floor.add(number)
            else:
                by_address.add(number)
        believed = frozenset(filter(is_host_name, request.names))
        if group != PUBLIC:
            believed = frozenset(filter(self.groups.is_own_name, believed))
        named = {name: frozenset(self._names.find(name)) for name in request.names}
        none = frozenset[int]()
        return _Hits(
            group,
            frozenset(by_address),
            frozenset(by_floor) - by_address,
            none.union(*named.values()),
            frozenset.intersection(*named.values()) if named else none,
            none.union(*(named[name] for name in believed)),
            believed,
        )

    def _cases(self, request: FlowRequest, hits: _Hits) -> list[_Case]:
        """What the guest has said; while that is open, one case for each verdict it may lead to."""
        flight = request.flight
        if request.protocol != "tcp":
            return [_WORDLESS]
        if flight.speech is not Speech.OPEN:
            if flight.name is None or flight.speech not in (Speech.TLS, Speech.HTTP):
                return [_Case(flight.speech, None)]
            return [_Case(flight.speech, flight.name, frozenset(self._names.find(flight.name)))]
        denying = next((n for n in self._denying if _covers(self.policy.rules[n], request)), None)
        if not hits.by_some_name and denying is None:
            return [_WORDLESS]  # no rule cares
        names: dict[tuple[frozenset[int], bool], str] = {}  # one of those that lead to the same
        for name in request.names:
            names[frozenset(self._names.find(name)), name in hits.believed] = name
        said: list[tuple[str | None, frozenset[int]]] = [
            *((name, named) for (named, _), name in names.items()),
            (None, frozenset()),
            (_SOMEONE_ELSE, frozenset()),
        ]
        if denying is not None:
            said.append((_SOMEONE_ELSE, frozenset({denying})))
        cases: list[_Case] = []
        for speech in filter(flight.possible.__contains__, Speech):
            if speech in (Speech.TLS, Speech.HTTP):
                cases += (_Case(speech, name, named) for name, named in said)
            else:
                cases.append(_Case(speech, None))
        return cases

    def _decide(self, request: FlowRequest, hits: _Hits, case: _Case) -> Verdict:
        """The first rule that matches decides."""
        candidates = hits.by_address.union(hits.by_floor, hits.by_some_name, case.named)
        if _is_blind(request, case):
            candidates = candidates.union(self._denying)
        logged: list[Rule] = []
        near: tuple[Why, Rule | None] | None = None
        for number in sorted(candidates):
            rule = self.policy.rules[number]
            finding = self._finding(number, request, hits, case)
            if finding.match is Match.NO:
                if near is None and finding.why is not None:
                    near = finding.why, rule
            elif rule.action == LOG:
                logged.append(rule)
            else:
                return Verdict(rule.action, finding.why or Why.RULE, rule, tuple(logged))
        if self.policy.default == ALLOW:
            if hits.group not in FLOOR:
                return Verdict(ALLOW, Why.DEFAULT, None, tuple(logged))
            near = near or (Why.FLOOR, None)
        return Verdict(DENY, *(near or (Why.DEFAULT, None)), tuple(logged))

    def _finding(self, number: int, request: FlowRequest, hits: _Hits, case: _Case) -> Finding:
        """Whether a rule matches, in one case: yes or no."""
        rule = self.policy.rules[number]
        if not _covers(rule, request):
            return _NO
        if number in hits.by_address:
            return _YES
        if rule.action == ALLOW:
            if number in hits.by_floor:
                return _lacks(Why.FLOOR)
            return _allows_by_name(number, rule, request, hits, case)
        if rule.action == LOG:  # too much is noted rather than too little
            return _YES if number in hits.by_some_name or number in case.named else _NO
        return _denies_by_name(number, rule, request, hits, case)

    # -- names

    def judge_name(self, name: str) -> Verdict:
        """Whether `name` may be looked up: if a rule could admit it, or names are free."""
        name = name.removesuffix(".").lower()
        logged: list[Rule] = []
        named = set(self._names.find(name))
        if not is_host_name(name):  # those that deny it count all the same
            named = {number for number in named if self.policy.rules[number].action != ALLOW}
        for number in sorted(named.union(self._dns)):
            rule = self.policy.rules[number]
            if rule.action == LOG:
                logged.append(rule)
            elif rule.action == ALLOW or not rule.services:
                return Verdict(rule.action, Why.RULE, rule, tuple(logged))
        return Verdict(self.policy.default, Why.DEFAULT, None, tuple(logged))

    def may_be_told(self, address: Address) -> bool:
        """Whether an answer may hold this address: it is public, or may be reached on its own."""
        if is_martian(address):
            return False
        hits = self._hits(FlowRequest("", address, 0))
        if hits.group == PUBLIC:
            return True
        for number in sorted(hits.by_address):
            rule = self.policy.rules[number]
            if rule.action == ALLOW:
                return True
            if rule.action == DENY and not rule.services:
                return False
        return self.policy.default == ALLOW and hits.group not in FLOOR


def _covers(rule: Rule, request: FlowRequest) -> bool:
    return not rule.services or any(
        service.covers(request.protocol, request.port) for service in rule.services
    )


def _is_blind(request: FlowRequest, case: _Case) -> bool:
    """Whether the guest may be saying any name."""
    return case.speech is Speech.UNREADABLE or _is_quic(request)


def _is_quic(request: FlowRequest) -> bool:
    return request.protocol == "udp" and request.port == QUIC_PORT


def _allows_by_name(
    number: int, rule: Rule, request: FlowRequest, hits: _Hits, case: _Case
) -> Finding:
    """A rule that allows by name: by a pin, and what is said."""
    said = number in case.named
    if number not in hits.by_belief:
        if number in hits.by_some_name and hits.group != PUBLIC:
            return _lacks(Why.INWARD)
        return _lacks(Why.NOT_PINNED) if said else _NO
    if request.protocol != "tcp":
        if _is_quic(request):
            return _lacks(Why.QUIC)
        named = any(service.protocol == request.protocol for service in rule.services)
        return _YES if named else _lacks(Why.PROTOCOL)
    wrong = _misfit(case.speech, request.port)
    if wrong is not None:
        return _lacks(wrong)
    if case.speech is Speech.OTHER:
        return Finding(Match.YES, Why.PIN)
    if said and case.name in hits.believed:
        return _YES
    if case.name is None:
        return _lacks(Why.NO_NAME)
    return _lacks(Why.NOT_PINNED if said else Why.OTHER_NAME)


def _misfit(speech: Speech, port: int) -> Why | None:
    """What is wrong with speaking this at that port, under a name."""
    if speech is Speech.UNREADABLE:
        return Why.UNREADABLE
    if port == HTTPS_PORT and speech is not Speech.TLS:
        return Why.NOT_TLS
    if port == HTTP_PORT and speech is not Speech.HTTP:
        return Why.NOT_HTTP
    return None


def _denies_by_name(
    number: int, rule: Rule, request: FlowRequest, hits: _Hits, case: _Case
) -> Finding:
    """A rule that denies by name: by the one that is said, else by those of the address."""
    if number in hits.by_all_names:
        return _YES  # whatever is said, the address has no other name
    if case.name is not None:
        return _YES if number in case.named else _NO
    if number in hits.by_some_name:
        return _YES
    if _is_blind(request, case) and any(isinstance(place, NamePlace) for place in rule.places):
        return Finding(Match.YES, Why.QUIC if _is_quic(request) else Why.UNREADABLE)
    return _NO
