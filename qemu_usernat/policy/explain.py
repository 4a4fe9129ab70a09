"""Explain: a verdict rule by rule, for a person. It asks the judge itself, and adds words.

1  code: allow *.github.com, pypi.org on tcp/443
      perhaps: the guest's TLS must name pypi.org
"""

from collections.abc import Iterator, Sequence

from attrs import evolve

from qemu_usernat.policy.flows import (
    WrittenFlow,
    described,
    flight_of,
    judge_flow,
    judge_for,
    request_of,
)
from qemu_usernat.policy.groups import FLOOR, LAN, MULTICAST, Groups
from qemu_usernat.policy.judge import (
    HTTP_PORT,
    HTTPS_PORT,
    Finding,
    Flight,
    FlowRequest,
    Judge,
    Match,
    Speech,
    Verdict,
)
from qemu_usernat.policy.neighbours import judge_neighbour
from qemu_usernat.policy.places import NamePlace
from qemu_usernat.policy.rules import ALLOW, LOG, NetworkPolicy, Rule
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import BROADCAST_IPV4, DNS_PORT

SOMEONE_ELSE = "someone-else.example"

WORDS = {
    Why.FLOOR: "it does not reach the floor: a rule has to name that group, or the very address",
    Why.NOT_PINNED: "the guest was not given this address for that name",
    Why.OTHER_NAME: "the guest speaks to another name there",
    Why.NO_NAME: "the guest does not say whom it speaks to",
    Why.UNREADABLE: "what the guest says first cannot be read",
    Why.NOT_TLS: "on port 443 the guest has to speak TLS",
    Why.NOT_HTTP: "on port 80 the guest has to speak HTTP/1",
    Why.QUIC: "QUIC hides the name: the client falls back to TCP",
    Why.PROTOCOL: 'a name admits TCP only; others have to be said, like "on udp/123"',
    Why.INWARD: "the address is not public: a rule for the address has to open it",
    Why.PIN: "the address is of its name, and what is spoken says none",
}


def explain(policy: NetworkPolicy, groups: Groups, flow: WrittenFlow) -> Iterator[str]:
    """Lines that say what becomes of `flow`, and why."""
    judge = judge_for(policy, groups)
    taken = described(flow, groups)
    yield f"{flow}, at {taken}" if taken else str(flow)
    if flow.protocol == "dns":
        yield from _explain_name(judge, flow)
        return
    request = request_of(flow, judge.groups)
    group = judge.groups.of(request.destination)
    if request.destination == BROADCAST_IPV4 and judge.groups.lan:  # it reaches the same guests
        everybody = judge.groups.lan[0].broadcast_address.packed
        request = evolve(request, destination=everybody)
    if group == LAN:
        request, _ = judge_neighbour(judge, request)
    yield f"  the address is of the group {group}" + (", of the floor" if group in FLOOR else "")
    for number, (rule, finding) in enumerate(judge.findings(request), 1):
        yield f"  {number}  {rule}"
        yield f"       {_finding(rule, finding, request)}"
    yield f"     default {policy.default}"
    yield from _verdicts(judge, flow, request)


def _explain_name(judge: Judge, flow: WrittenFlow) -> Iterator[str]:
    if judge.groups.is_own_name(flow.name or ""):
        yield "verdict: answered by the gateway itself"
        return
    verdict = judge.judge_name(flow.name or "")
    for number, rule in enumerate(judge.policy.rules, 1):
        if rule == verdict.rule or rule in verdict.logged:
            yield f"  {number}  {rule}"
            yield "       notes it" if rule.action == LOG else "       decides"
    yield f"     default {judge.policy.default}"
    yield f"verdict: {_told(verdict)}"


def _finding(rule: Rule, finding: Finding, request: FlowRequest) -> str:
    """Whether a rule matches, or why not, or what else is needed."""
    if finding.match is Match.YES:
        words = WORDS.get(finding.why) if finding.why is not None else None
        return f"matches: {words}" if words else "matches"
    if finding.match is Match.MAYBE:
        if rule.action != ALLOW:
            return "perhaps: if the guest's first octets name it, or cannot be read"
        matched = sorted(
            name
            for name in request.names
            if any(isinstance(place, NamePlace) and place.matches(name) for place in rule.places)
        )
        return f"perhaps: the guest's {_speech(request.port)} must name {' or '.join(matched)}"
    if finding.why is not None:
        return f"no: {WORDS[finding.why]}"
    if rule.services and not any(
        service.covers(request.protocol, request.port) for service in rule.services
    ):
        return "no: another service"
    for place in rule.places:
        if isinstance(place, NamePlace) and place.wildcard and place.name in request.names:
            return f"no: {place} is never {place.name} itself"
    return "no: another place"


def _speech(port: int) -> str:
    return {HTTPS_PORT: "TLS", HTTP_PORT: "HTTP"}.get(port, "TLS or HTTP, if it speaks either,")


def _verdicts(judge: Judge, flow: WrittenFlow, request: FlowRequest) -> Iterator[str]:
    """The verdict; where the first octets decide, one for each kind of them."""
    if flow.name is not None and not judge.groups.is_own_name(flow.name):
        asked = judge.judge_name(flow.name)
        if asked.action != ALLOW:
            yield f"the name is not looked up: {_told(asked)}"
    if judge.groups.of(request.destination) == MULTICAST:
        verdict = judge.judge(request)
        if request.protocol != "udp" or verdict.action != ALLOW:
            yield f"verdict: dropped: {_told(verdict)}"
        else:
            yield f"verdict: to other guests: {_told(verdict)}; to the world nothing is carried"
        return
    if flow.port == DNS_PORT and not judge.is_named(request):
        yield "verdict: answered by the gateway; each name that is asked for is judged"
        return
    verdict = judge.judge(request)
    if not verdict.hold:
        whole = judge_flow(judge, flow)
        yield f"verdict: {_told(whole if whole.action != verdict.action else verdict)}"
        return
    yield "verdict: held until the guest's first octets are read; then"
    for what, flight in _flights(flow):
        yield f"  {what}: {_told(judge.judge(evolve(request, flight=flight)))}"


def _flights(flow: WrittenFlow) -> Sequence[tuple[str, Flight]]:
    speech = Speech.HTTP if flow.port == HTTP_PORT else Speech.TLS
    word = "HTTP" if speech is Speech.HTTP else "TLS"
    return [
        *([(f"{word} that names {flow.name}", flight_of(flow))] if flow.name else []),
        (f"{word} that names another", Flight(speech, SOMEONE_ELSE)),
        (f"{word} without a name", Flight(speech)),
        ("another protocol", Flight(Speech.OTHER)),
        ("what cannot be read", Flight(Speech.UNREADABLE)),
    ]


def _told(verdict: Verdict) -> str:
    """A verdict in a line."""
    why = "" if verdict.why is Why.RULE else verdict.why.value
    rule = f"rule {verdict.rule.name or verdict.rule}" if verdict.rule is not None else ""
    reason = ", ".join(filter(None, (why, rule)))
    logged = ", ".join(rule.name or str(rule) for rule in verdict.logged)
    return f"{verdict.action} ({reason})" + (f"; noted by {logged}" if logged else "")
