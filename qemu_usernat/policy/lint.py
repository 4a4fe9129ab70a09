"""Lint: what in a policy is likely not what its writer meant. It asks the judge itself.

Whether something is ever reached is tried: a flow for each way in which the judge could see a
difference. Between the ends of all networks and of all ranges of ports a verdict does not change,
so that few flows stand for all.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from ipaddress import ip_address
from itertools import islice
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from qemu_usernat.policy.flows import SOMEWHERE, judge_for
from qemu_usernat.policy.groups import FLOOR, GROUPS, HOST, Groups, networks_of
from qemu_usernat.policy.judge import (
    HTTP_PORT,
    HTTPS_PORT,
    Flight,
    FlowRequest,
    Judge,
    Speech,
)
from qemu_usernat.policy.places import (
    PORT_MAXIMUM,
    AnyPlace,
    DnsPlace,
    GroupPlace,
    NamePlace,
    NetworkPlace,
    Place,
    RangePlace,
    Service,
)
from qemu_usernat.policy.rules import ALLOW, DENY, LOG, NetworkPolicy, Rule
from qemu_usernat.primitives.addresses import DNS_PORT, Address, parse_address

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

PROBE = "usernat-lint-probe"
"""A label that no rule has."""

TRIALS_MAXIMUM = 5000
"""Flows that are tried for one place."""

RESOLVERS = {
    "dns.google": "8.8.8.8",
    "cloudflare-dns.com": "1.1.1.1",
    "dns.quad9.net": "9.9.9.9",
    "doh.opendns.com": "208.67.222.222",
    "dns.adguard-dns.com": "94.140.14.14",
    "dns.nextdns.io": "45.90.28.0",
    "dns.google.com": "2001:4860:4860::8888",
}
"""Some that answer over HTTPS to everybody; a rule that lets none of them through is not broad."""


@frozen
class Flaw:
    """What is found."""

    code: str
    """``unreachable``, ``wildcard``, ``dns-over-https`` or ``dns``."""
    text: str
    number: int | None = None
    """Of the rule, counted from 1; None: the default."""

    def __str__(self) -> str:
        where = "default" if self.number is None else f"rule {self.number}"
        return f"{where}: {self.code}: {self.text}"


def lint(policy: NetworkPolicy, groups: Groups) -> list[Flaw]:
    """All that is found, in the order of the rules."""
    judge = judge_for(policy, groups)
    found = [*_unreachable(judge), *_wildcards(policy), *_over_https(judge), *_dns(judge)]
    found += _other_resolvers(judge)
    return sorted(found, key=lambda flaw: (flaw.number is None, flaw.number or 0, flaw.code))


# -- what is never reached


def _unreachable(judge: Judge) -> Iterator[Flaw]:
    trials = _Trials(judge)
    seen: set[tuple[object, ...]] = set()
    for number, rule in enumerate(judge.policy.rules, 1):
        sense = rule.action, rule.places, rule.services
        if sense in seen:
            yield Flaw("unreachable", f'"{rule}" stands here a second time', number)
            continue
        seen.add(sense)
        dead = [place for place in rule.places if not trials.reach(rule, place)]
        if len(dead) == len(rule.places):
            yield Flaw("unreachable", f'"{rule}" never decides: others do before it', number)
        elif dead:
            places = ", ".join(map(str, dead))
            yield Flaw("unreachable", f"{places} never decides: other rules do before it", number)


@define
class _Trials:
    """The flows that tell whether a place is reached."""

    judge: Judge
    _points: dict[int, list[int]] = field(init=False)
    """Version of IP → addresses at which something begins."""
    _groups: dict[str, list[Address]] = field(init=False)
    """Group → those of them that are in it."""
    _ports: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        rules = self.judge.policy.rules
        spans = [
            place.bounds()
            for rule in rules
            for place in rule.places
            if isinstance(place, NetworkPlace | RangePlace)
        ]
        networks = [*self.judge.groups.lan, *self.judge.groups.public]
        networks += [network for group in GROUPS for network in networks_of(group)]
        spans += [(network.network_address, network.broadcast_address) for network in networks]
        points: dict[int, set[int]] = {4: {1 << 24}, 6: {0x2400 << 112}}
        for first, last in spans:
            points[first.version] |= {int(first), int(last), int(last) + 1}
        for address in self.judge.groups.gateway:
            points[ip_address(address).version].add(int.from_bytes(address, "big"))
        self._points = {version: sorted(some) for version, some in points.items()}
        self._groups = {}
        for version, some in self._points.items():
            size = 4 if version == 4 else 16
            for point in some:
                if point < 1 << 8 * size:
                    address = point.to_bytes(size, "big")
                    self._groups.setdefault(self.judge.groups.of(address), []).append(address)
        services = [service for rule in rules for service in rule.services]
        ports = {port for service in services for port in (service.first, service.last + 1)}
        self._ports = sorted({HTTPS_PORT, HTTP_PORT, 22, DNS_PORT, *ports} - {PORT_MAXIMUM + 1})

    def reach(self, rule: Rule, place: Place) -> bool:
        """Whether `rule` decides, or notes, any flow to `place`."""
        if isinstance(place, DnsPlace):
            return _decides(rule, self.judge, f"{PROBE}.example")
        allowed = False
        for request in islice(self._requests(rule, place), TRIALS_MAXIMUM):
            verdict = self.judge.judge(request)
            if any(each is rule for each in (verdict.rule, *verdict.logged)) and (
                rule.action in (LOG, verdict.action)
            ):
                return True
            allowed |= verdict.action == ALLOW
        # A name that another rule lets through may need this one to be looked up at all.
        return (
            isinstance(place, NamePlace)
            and rule.action == ALLOW
            and allowed
            and _decides(rule, self.judge, _example(place))
        )

    def _requests(self, rule: Rule, place: Place) -> Iterator[FlowRequest]:
        if isinstance(place, NamePlace):
            yield from self._named(rule, _example(place))
            return
        wordless = Flight(Speech.OTHER)
        for address in self._addresses(place):
            for protocol, port in self._services(rule):
                yield FlowRequest(protocol, address, port, frozenset(), wordless)

    def _named(self, rule: Rule, name: str) -> Iterator[FlowRequest]:
        address = SOMEWHERE.network_address.packed
        if self.judge.groups.is_own_name(name):
            address = min(self.judge.groups.gateway, default=address)
        for protocol, port in self._services(rule):
            if protocol != "tcp" and rule.action == self.judge.policy.default == DENY:
                continue  # the rules before it that allow the name do not mean these either
            speech = Speech.HTTP if port == HTTP_PORT else Speech.TLS
            yield FlowRequest(protocol, address, port, frozenset({name}), Flight(speech, name))

    def _addresses(self, place: Place) -> Iterator[Address]:
        match place:
            case NetworkPlace() | RangePlace():
                first, last = place.bounds()
                yield from (first.packed, last.packed)
                points = self._points[first.version]
                begin, end = (bisect_left(points, int(end)) for end in (first, last))
                for point in points[begin:end]:
                    yield point.to_bytes(len(first.packed), "big")
            case GroupPlace(group):
                yield from self._groups.get(group, ())
                if group == HOST:
                    yield from self.judge.groups.gateway
            case AnyPlace():
                for group in set(GROUPS) - FLOOR:
                    yield from self._groups.get(group, ())

    def _services(self, rule: Rule) -> Iterator[tuple[str, int]]:
        for service in rule.services or (Service(None), Service("icmp")):
            if service.protocol == "icmp":
                yield "icmp", 0
                continue
            ports = [port for port in self._ports if service.first <= port <= service.last]
            for protocol in ("tcp", "udp") if service.protocol is None else (service.protocol,):
                for port in (service.first, *ports):
                    yield protocol, port


def _example(place: NamePlace) -> str:
    return f"{PROBE}.{place.name}" if place.wildcard else place.name


def _decides(rule: Rule, judge: Judge, name: str) -> bool:
    verdict = judge.judge_name(name)
    return any(each is rule for each in (verdict.rule, *verdict.logged))


# -- what is broad


@cache
def _suffixes() -> "PublicSuffixList":
    from publicsuffixlist import PublicSuffixList  # a large table, for this alone

    return PublicSuffixList()


def _wildcards(policy: NetworkPolicy) -> Iterator[Flaw]:
    for number, rule in enumerate(policy.rules, 1):
        for place in rule.places:
            if rule.action != ALLOW or not isinstance(place, NamePlace) or not place.wildcard:
                continue
            if _suffixes().is_public(place.name):
                text = f'below "{place.name}" anybody may register a name: "{place}" allows all'
                yield Flaw("wildcard", text, number)


def _over_https(judge: Judge) -> Iterator[Flaw]:
    """Rules that let a resolver through which they do not name: its answers are not ours."""
    through: dict[int | None, list[str]] = {}
    for name, text in RESOLVERS.items():
        address = parse_address(text)
        for names, flight in (
            (frozenset[str](), Flight(Speech.TLS)),
            (frozenset({name}), Flight(Speech.TLS, name)),
        ):
            if names and judge.judge_name(name).action != ALLOW:
                continue
            verdict = judge.judge(FlowRequest("tcp", address, HTTPS_PORT, names, flight))
            if verdict.action == ALLOW and not _is_meant(verdict.rule, name, address):
                number = _number(judge.policy.rules, verdict.rule)
                through.setdefault(number, []).append(name)
    for number, names_found in through.items():
        some = ", ".join(list(dict.fromkeys(names_found))[:4])
        text = f"lets DNS over HTTPS through, to {some}: what it answers is not checked"
        yield Flaw("dns-over-https", text, number)


def _is_meant(rule: Rule | None, name: str, address: Address) -> bool:
    """Whether the rule says that very resolver."""
    return rule is not None and any(
        (isinstance(place, NamePlace) and not place.wildcard and place.name == name)
        or (isinstance(place, NetworkPlace) and place.bounds() == (ip_address(address),) * 2)
        for place in rule.places
    )


def _dns(judge: Judge) -> Iterator[Flaw]:
    verdict = judge.judge_name(f"{PROBE}.example")
    if verdict.action == ALLOW:
        number = _number(judge.policy.rules, verdict.rule)
        text = "lets any name be looked up: what is in the names reaches whoever owns them"
        yield Flaw("dns", text, number)


def _other_resolvers(judge: Judge) -> Iterator[Flaw]:
    """Networks that are allowed, resolvers included: port 53 there is not the gateway's."""
    for text in RESOLVERS.values():
        address = parse_address(text)
        for protocol in ("udp", "tcp"):
            request = FlowRequest(protocol, address, DNS_PORT, frozenset(), Flight(Speech.OTHER))
            verdict = judge.judge(request)
            if verdict.action != ALLOW or not judge.is_named(request):
                continue
            if not _is_meant(verdict.rule, "", address):
                number = _number(judge.policy.rules, verdict.rule)
                yield Flaw("dns", f"lets other resolvers be asked than ours, like {text}", number)
                return


def _number(rules: Sequence[Rule], wanted: Rule | None) -> int | None:
    return next((number for number, rule in enumerate(rules, 1) if rule is wanted), None)
