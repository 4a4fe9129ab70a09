"""What a policy says about a flow: the model's sentences, by example and by a plain reading."""

import sys
from ipaddress import ip_network
from types import FrameType
from typing import Any, TypeAlias

import pytest
from attrs import evolve
from hypothesis import assume, example, given
from hypothesis import strategies as st

from qemu_usernat.policy.groups import FLOOR, PUBLIC, Groups, is_martian, names_group, unwrapped
from qemu_usernat.policy.judge import (
    UNREAD,
    Finding,
    Flight,
    FlowRequest,
    Judge,
    Match,
    Speech,
    Verdict,
    Why,
)
from qemu_usernat.policy.places import (
    AnyPlace,
    GroupPlace,
    NamePlace,
    NetworkPlace,
    Place,
    RangePlace,
    parse_place,
)
from qemu_usernat.policy.rules import ALLOW, DENY, LOG, NetworkPolicy, Rule
from qemu_usernat.primitives.addresses import parse_address
from tests.policy.policies import (
    GROUPS_HERE,
    NAMES,
    ODD_NAME,
    OWN_NAMES,
    cases,
    packed,
    policies,
    read_flights,
    requests,
)

TLS, HTTP, OTHER, UNREADABLE = Speech.TLS, Speech.HTTP, Speech.OTHER, Speech.UNREADABLE

Case: TypeAlias = tuple[NetworkPolicy, FlowRequest]

deny_all, allow_all = NetworkPolicy.deny_all(), NetworkPolicy.allow_all()


def flow(
    to: str,
    *names: str,
    speech: Speech = Speech.OPEN,
    says: str | None = None,
    possible: set[Speech] | None = None,
) -> FlowRequest:
    """``tcp 8.8.8.8:443`` to an address that the guest was given for `names`."""
    protocol, _, place = to.partition(" ")
    address, _, port = place.rpartition(":") if protocol != "icmp" else (place, "", "0")
    flight = Flight(speech, says) if possible is None else Flight(possible=frozenset(possible))
    return FlowRequest(protocol, parse_address(address), int(port), frozenset(names), flight)


def judged(policy: NetworkPolicy, request: FlowRequest, groups: Groups = GROUPS_HERE) -> Verdict:
    """The verdict of `policy`."""
    return Judge(policy, groups).judge(request)


def said(policy: NetworkPolicy, request: FlowRequest) -> tuple[str | None, Why]:
    """What is done, and why."""
    verdict = judged(policy, request)
    return verdict.action, verdict.why


# -- 1: order


def test_the_first_rule_that_matches_decides() -> None:
    """And where none does, the default."""
    policy = deny_all.deny_ip("8.8.8.8").allow_ip("8.8.0.0/16").deny_ip("8.0.0.0/8")
    verdicts = [judged(policy, flow(f"tcp {to}:22")) for to in ("8.8.8.8", "8.8.4.5", "8.1.1.1")]
    assert [verdict.action for verdict in verdicts] == [DENY, ALLOW, DENY]
    assert [verdict.rule for verdict in verdicts] == list(policy.rules)
    assert judged(policy, flow("tcp 9.9.9.9:22")) == Verdict(DENY, Why.DEFAULT)


def test_log_notes_and_goes_on() -> None:
    """A rule that logs decides nothing, before and after what decides."""
    policy = deny_all.rule("a: log any").rule("b: allow any on tcp/22").rule("c: log any")
    verdict = judged(policy, flow("tcp 8.8.8.8:22"))
    assert (verdict.action, verdict.rule) == (ALLOW, policy.rules[1])
    assert verdict.logged == policy.rules[:1]
    assert judged(policy, flow("tcp 8.8.8.8:23")).logged == (policy.rules[0], policy.rules[2])


def test_log_by_name_notes_what_is_pinned_and_what_is_said() -> None:
    """Whichever of the two has the name."""
    policy = allow_all.log_domain("*.a.example")
    pinned = judged(policy, flow("tcp 8.8.8.8:22", "b.a.example"))
    spoken = judged(policy, flow("tcp 8.8.8.8:443", speech=TLS, says="b.a.example"))
    assert pinned.logged == spoken.logged == policy.rules
    assert judged(policy, flow("tcp 8.8.8.8:22", "a.example")).logged == ()


# -- 2: floor

FLOOR_ADDRESSES = {
    "host": ["10.0.2.2", "10.1.2.3", "8.8.4.4", "169.254.7.7", "::ffff:8.8.4.4"],
    "loopback": ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1"],
    "link-local": ["169.254.1.1", "fe80::1"],
    "metadata": ["169.254.169.254", "fd00:ec2::254", "168.63.129.16", "::ffff:169.254.169.254"],
    "multicast": ["224.0.0.251", "255.255.255.255", "10.0.2.255", "ff02::1"],
    "reserved": ["0.0.0.0", "::", "240.0.0.1", "192.0.2.1", "::127.0.0.1", "2002:7f00:1::"],
}

BROAD = [
    allow_all,
    deny_all.rule("allow any"),
    deny_all.allow_https().allow_http().allow_ssh().allow_ping().allow_port(443).allow_port(80),
    deny_all.allow_ip("0.0.0.0/0", "::/0"),
    deny_all.allow_ip_range("0.0.0.0", "255.255.255.255").allow_ip_range("::", "ffff::"),
    deny_all.allow_group("public", "private", "lan"),
    deny_all.allow_ip_range("169.254.169.0", "169.254.169.254").allow_ip("168.63.0.0/16"),
]


@pytest.mark.parametrize("policy", BROAD, ids=str)
@pytest.mark.parametrize("address", [each for some in FLOOR_ADDRESSES.values() for each in some])
def test_nothing_broad_reaches_the_floor(policy: NetworkPolicy, address: str) -> None:
    """No `any`, no default, no shortcut, no wide network and no range, by any protocol."""
    for request in (
        flow(f"tcp {address}:443"),
        flow(f"tcp {address}:80", "a.example", speech=HTTP, says="a.example"),
        flow(f"udp {address}:53"),
        flow(f"icmp {address}"),
    ):
        assert judged(policy, request).action == DENY


@pytest.mark.parametrize(
    ("group", "address"),
    [(group, each) for group, some in FLOOR_ADDRESSES.items() for each in some],
)
def test_a_rule_that_names_it_reaches_it(group: str, address: str) -> None:
    """By the group, or by the very address, and neither by another group; but nothing is sent to
    this host or to no host, whatever a rule says."""
    request = flow(f"tcp {address}:80")
    if is_martian(request.destination):
        assert judged(deny_all.allow_group(group).allow_ip(address), request).why is Why.MARTIAN
        return
    assert judged(deny_all.allow_group(group), request).action == ALLOW
    assert judged(deny_all.allow_ip(address), request).action == ALLOW
    others = deny_all.allow_group(*(FLOOR - {group}))
    assert judged(others, request).action == DENY


def test_a_denied_network_denies_all_that_is_in_it() -> None:
    """The floor holds nothing back from a rule that denies: it is meant to be strict."""
    policy = deny_all.deny_ip("10.0.0.0/8").allow_group("host")
    assert judged(policy, flow("tcp 10.1.2.3:80")).rule == policy.rules[0]
    assert judged(policy, flow("tcp 8.8.4.4:80")).action == ALLOW


def test_the_floor_says_so() -> None:
    """Who wonders why a wide rule does not reach the gateway is told which one."""
    policy = deny_all.rule("allow any on tcp/80")
    assert judged(policy, flow("tcp 10.0.2.2:80")) == Verdict(DENY, Why.FLOOR, policy.rules[0])
    assert said(allow_all, flow("tcp 10.0.2.2:80")) == (DENY, Why.FLOOR)
    assert said(policy, flow("tcp 10.0.2.2:81")) == (DENY, Why.DEFAULT)


# -- 5, 6, 7: names

ONE = deny_all.allow_https("a.example")
TO = "tcp 8.8.8.8:443"


@pytest.mark.parametrize(
    ("request_", "verdict"),
    [
        (flow(TO, "a.example", speech=TLS, says="a.example"), (ALLOW, Why.RULE)),
        (flow(TO, "a.example", "b.example", speech=TLS, says="a.example"), (ALLOW, Why.RULE)),
        (flow(TO), (DENY, Why.DEFAULT)),
        (flow(TO, speech=TLS, says="a.example"), (DENY, Why.NOT_PINNED)),
        (flow(TO, "b.example", speech=TLS, says="a.example"), (DENY, Why.NOT_PINNED)),
        (flow(TO, "b.example", speech=TLS, says="b.example"), (DENY, Why.DEFAULT)),
        (flow(TO, "a.example", speech=TLS, says="b.example"), (DENY, Why.OTHER_NAME)),
        (flow(TO, "a.example", "b.example", speech=TLS, says="b.example"), (DENY, Why.OTHER_NAME)),
        (flow(TO, "a.example", speech=TLS), (DENY, Why.NO_NAME)),
        (flow(TO, "a.example", speech=HTTP, says="a.example"), (DENY, Why.NOT_TLS)),
        (flow(TO, "a.example", speech=OTHER), (DENY, Why.NOT_TLS)),
        (flow(TO, "a.example", speech=UNREADABLE), (DENY, Why.UNREADABLE)),
        (flow("tcp 8.8.8.8:8443", "a.example", speech=TLS, says="a.example"), (DENY, Why.DEFAULT)),
        (flow("udp 8.8.8.8:443", "a.example"), (DENY, Why.DEFAULT)),
        (flow("icmp 8.8.8.8", "a.example"), (DENY, Why.DEFAULT)),
        (flow(TO, "a.example"), (None, Why.HELD)),
        (flow(TO, "a.example", possible={TLS, UNREADABLE}), (None, Why.HELD)),
        (flow(TO, "a.example", possible={HTTP, OTHER, UNREADABLE}), (DENY, Why.NOT_TLS)),
        (flow("tcp 10.0.0.1:443", "a.example", speech=TLS, says="a.example"), (DENY, Why.INWARD)),
        (flow("tcp 10.0.2.2:443", "a.example", speech=TLS, says="a.example"), (DENY, Why.INWARD)),
    ],
)
def test_a_name_needs_the_pin_and_the_word(
    request_: FlowRequest, verdict: tuple[str | None, Why]
) -> None:
    """Right name and right address, said in TLS on port 443; and nothing less."""
    assert said(ONE, request_) == verdict


@pytest.mark.parametrize(
    ("port", "speech", "says", "verdict"),
    [
        (80, HTTP, "a.example", (ALLOW, Why.RULE)),
        (80, HTTP, "b.example", (DENY, Why.OTHER_NAME)),
        (80, HTTP, None, (DENY, Why.NO_NAME)),
        (80, TLS, "a.example", (DENY, Why.NOT_HTTP)),
        (80, OTHER, None, (DENY, Why.NOT_HTTP)),
        (22, OTHER, None, (ALLOW, Why.PIN)),
        (22, UNREADABLE, None, (DENY, Why.UNREADABLE)),
        (8443, TLS, "a.example", (ALLOW, Why.RULE)),
        (8443, TLS, "b.example", (DENY, Why.OTHER_NAME)),
        (8443, TLS, None, (DENY, Why.NO_NAME)),
        (8080, HTTP, "a.example", (ALLOW, Why.RULE)),
        (8080, HTTP, "b.example", (DENY, Why.OTHER_NAME)),
    ],
)
def test_each_port_has_its_speech(
    port: int, speech: Speech, says: str | None, verdict: tuple[str, Why]
) -> None:
    """80 is HTTP; on others a protocol without a name passes on the pin, and that is said."""
    policy = deny_all.allow_domain("a.example")
    request = flow(f"tcp 8.8.8.8:{port}", "a.example", speech=speech, says=says)
    assert said(policy, request) == verdict


@pytest.mark.parametrize("name", ["evila.example", "a.example", "a.example.evil.example"])
def test_a_wildcard_wants_its_dot_and_never_the_apex(name: str) -> None:
    """The guest owns evila.example, and was told so, and says so."""
    policy = deny_all.allow_https("*.a.example")
    assert said(policy, flow(TO, name, speech=TLS, says=name)) == (DENY, Why.DEFAULT)
    for good in ("b.a.example", "c.b.a.example"):
        assert said(policy, flow(TO, good, speech=TLS, says=good)) == (ALLOW, Why.RULE)


@pytest.mark.parametrize("rule", ["allow *.a.example", "allow b.a.example, c.b.a.example"])
@pytest.mark.parametrize(("port", "speech"), [(443, TLS), (80, HTTP), (8443, TLS), (8080, HTTP)])
def test_the_name_that_is_said_needs_a_pin_of_its_own(rule: str, port: int, speech: Speech) -> None:
    """Allowed name, address of another allowed name: two tenants of one network, and only one of
    them was looked up."""
    request = flow(f"tcp 8.8.8.8:{port}", "b.a.example", speech=speech, says="c.b.a.example")
    assert said(deny_all.rule(rule), request) == (DENY, Why.NOT_PINNED)
    assert said(deny_all.rule(rule), evolve(request, names=request.names | {"c.b.a.example"})) == (
        ALLOW,
        Why.RULE,
    )


def test_a_name_opens_no_way_inward() -> None:
    """A rule lets a private address be told; an allowed name's owner answers with that address,
    and does not widen what the rule has opened there."""
    policy = deny_all.allow_domain("*.a.example").allow_group("private", on="tcp/22")
    judge = Judge(policy, GROUPS_HERE)
    assert judge.may_be_told(packed("10.0.0.1"))
    assert judge.judge(flow("tcp 10.0.0.1:22", "b.a.example")).action == ALLOW
    request = flow("tcp 10.0.0.1:443", "b.a.example", speech=TLS, says="b.a.example")
    assert said(policy, request) == (DENY, Why.INWARD)
    assert said(policy, evolve(request, flight=UNREAD)) == (DENY, Why.INWARD)


def test_a_name_of_our_own_zone_may_be_inward() -> None:
    """The operator says what host.internal is, and a rule may name it."""
    policy = deny_all.allow_domain("host.internal", on="tcp/8000")
    request = flow("tcp 10.0.2.2:8000", "host.internal")
    assert judged(policy, request).hold
    assert said(policy, evolve(request, flight=Flight(OTHER))) == (ALLOW, Why.PIN)
    assert said(policy, evolve(request, flight=Flight(HTTP, "host.internal")))[0] == ALLOW
    assert said(policy, evolve(request, flight=Flight(HTTP, "b.example")))[0] == DENY


# -- deny by name

NO_ADS = allow_all.deny_domain("*.ads.example", "ads.example")


@pytest.mark.parametrize(
    ("request_", "verdict"),
    [
        (flow(TO, speech=TLS, says="x.ads.example"), (DENY, Why.RULE)),
        (flow("tcp 8.8.8.8:80", speech=HTTP, says="ads.example"), (DENY, Why.RULE)),
        (flow(TO, "a.example", speech=TLS, says="x.ads.example"), (DENY, Why.RULE)),
        (flow(TO, "ads.example", speech=TLS, says="a.example"), (DENY, Why.RULE)),
        (flow(TO, "ads.example", "a.example", speech=TLS, says="a.example"), (ALLOW, Why.DEFAULT)),
        (flow(TO, "ads.example", "a.example", speech=TLS), (DENY, Why.RULE)),
        (flow("tcp 8.8.8.8:22", "ads.example", "a.example", speech=OTHER), (DENY, Why.RULE)),
        (flow("udp 8.8.8.8:4000", "ads.example", "a.example"), (DENY, Why.RULE)),
        (flow("udp 8.8.8.8:4000", "a.example"), (ALLOW, Why.DEFAULT)),
        (flow("udp 8.8.8.8:443"), (DENY, Why.QUIC)),
        (flow("udp 8.8.8.8:443", "a.example"), (DENY, Why.QUIC)),
        (flow(TO, speech=UNREADABLE), (DENY, Why.UNREADABLE)),
        (flow(TO, speech=TLS), (ALLOW, Why.DEFAULT)),
        (flow(TO, speech=TLS, says="xads.example"), (ALLOW, Why.DEFAULT)),
        (flow("tcp 8.8.8.8:22", speech=OTHER), (ALLOW, Why.DEFAULT)),
        (flow(TO), (None, Why.HELD)),
        (flow(TO, possible={TLS}), (None, Why.HELD)),
        (flow(TO, possible={OTHER}), (ALLOW, Why.DEFAULT)),
        (flow(TO, "ads.example"), (DENY, Why.RULE)),
        (flow("icmp 8.8.8.8"), (ALLOW, Why.DEFAULT)),
    ],
)
def test_a_denied_name_is_what_is_said_and_what_may_be(
    request_: FlowRequest, verdict: tuple[str | None, Why]
) -> None:
    """An address that was not asked for does not help, nor a hello that nobody can read."""
    assert said(NO_ADS, request_) == verdict


# -- 8: as early as possible


def test_nothing_is_held_where_no_name_can_matter() -> None:
    """No name of a rule is the address's, and none is denied: the first octets do not matter."""
    policy = deny_all.allow_https("a.example").allow_ip("8.8.8.8")
    assert said(policy, flow(TO, "b.example")) == (ALLOW, Why.RULE)
    assert said(deny_all.allow_https("a.example"), flow(TO, "b.example")) == (DENY, Why.DEFAULT)


@pytest.mark.parametrize(("port", "speech"), [(443, TLS), (80, HTTP), (22, TLS), (22, HTTP)])
def test_what_may_still_name_someone_is_waited_for(port: int, speech: Speech) -> None:
    """TLS or HTTP has begun: which name it says is open."""
    policy = deny_all.allow_domain("a.example")
    assert judged(policy, flow(f"tcp 8.8.8.8:{port}", "a.example", possible={speech})).hold


def test_a_verdict_is_early_where_all_ways_lead_to_it() -> None:
    """By name or by address, the flow is let through: so it need not wait."""
    policy = deny_all.allow_domain("a.example").rule("allow any on tcp/443")
    assert judged(policy, flow(TO, "a.example")).action == ALLOW
    closed = NO_ADS.rule("deny any on tcp/443")
    assert judged(NetworkPolicy(ALLOW, closed.rules), flow(TO)).action == DENY
    same = deny_all.deny_domain("*.a.example").allow_domain("b.a.example")
    assert judged(same, flow("tcp 8.8.8.8:443", "b.a.example")).action == DENY


# -- 10: UDP must be said


@pytest.mark.parametrize(
    ("rule", "to", "verdict"),
    [
        ("allow a.example", "udp 8.8.8.8:123", (DENY, Why.PROTOCOL)),
        ("allow a.example on 123", "udp 8.8.8.8:123", (DENY, Why.PROTOCOL)),
        ("allow a.example on udp/123", "udp 8.8.8.8:123", (ALLOW, Why.RULE)),
        ("allow a.example on udp/123", "udp 8.8.8.8:124", (DENY, Why.DEFAULT)),
        ("allow a.example on tcp/123, udp", "udp 8.8.8.8:124", (ALLOW, Why.RULE)),
        ("allow a.example on udp", "udp 8.8.8.8:443", (DENY, Why.QUIC)),
        ("allow a.example on udp/443", "udp 8.8.8.8:443", (DENY, Why.QUIC)),
        ("allow a.example on 443", "udp 8.8.8.8:443", (DENY, Why.QUIC)),
        ("allow a.example", "icmp 8.8.8.8", (DENY, Why.PROTOCOL)),
        ("allow a.example on icmp", "icmp 8.8.8.8", (ALLOW, Why.RULE)),
        ("allow 8.8.8.8 on udp/443", "udp 8.8.8.8:443", (ALLOW, Why.RULE)),
        ("allow any", "udp 8.8.8.8:443", (ALLOW, Why.RULE)),
    ],
)
def test_udp_must_be_said(rule: str, to: str, verdict: tuple[str, Why]) -> None:
    """A name admits TCP; QUIC hides the name, and is refused where a name decides."""
    assert said(deny_all.rule(rule), flow(to, "a.example")) == verdict


def test_an_unpinned_address_has_no_udp_either() -> None:
    """The rule that says udp does not say which address."""
    policy = deny_all.rule("allow a.example on udp/123, icmp")
    assert said(policy, flow("udp 8.8.8.8:123")) == (DENY, Why.DEFAULT)
    assert said(policy, flow("icmp 8.8.8.8", "b.example")) == (DENY, Why.DEFAULT)


# -- 11, 12: names and answers


@pytest.mark.parametrize(
    ("policy", "allowed", "denied"),
    [
        (deny_all, "", "a.example ."),
        (deny_all.allow_https(), "", "a.example"),
        (deny_all.allow_ip("0.0.0.0/0"), "", "a.example"),
        (deny_all.allow_dns(), "a.example x.corp.example .", ""),
        (
            deny_all.allow_https("a.example"),
            "a.example A.Example a.example.",
            "b.a.example xa.example",
        ),
        (deny_all.allow_https("*.a.example"), "b.a.example C.b.A.example.", "a.example xa.example"),
        (deny_all.rule("allow a.example on udp/123"), "a.example", "b.example"),
        (deny_all.log_domain("a.example"), "", "a.example"),
        (allow_all, "a.example", ""),
        (
            deny_all.allow_domain("*.a.example"),
            "",
            r"x\046a.example x\046y.a.example x\032y.a.example",
        ),
        (deny_all.allow_domain("*.a.example").allow_dns(), r"x\046y.a.example", ""),
        (allow_all.deny_domain("*.a.example"), r"x\046a.example", r"x\046y.a.example"),
        (NO_ADS, "a.example xads.example", "ads.example X.ADS.example. _a.b.ads.example"),
        (allow_all.deny_domain("a.example", on="tcp/80"), "a.example", ""),
        (deny_all.deny_domain("*.corp.example").allow_dns(), "a.example", "x.corp.example"),
        (deny_all.allow_dns().deny_domain("*.corp.example"), "x.corp.example", ""),
        (allow_all.rule("deny dns"), "", "a.example"),
        (allow_all.allow_domain("a.example").rule("deny dns"), "a.example", "b.example"),
    ],
)
def test_a_name_is_looked_up_only_if_a_rule_could_admit_it(
    policy: NetworkPolicy, allowed: str, denied: str
) -> None:
    """An address rule makes no name known: names are a way out for data."""
    judge = Judge(policy, GROUPS_HERE)
    for names, action in ((allowed, ALLOW), (denied, DENY)):
        for name in names.split(" ") if names else ():
            assert judge.judge_name(name).action == action, name


@pytest.mark.parametrize(
    ("policy", "told", "kept"),
    [
        (deny_all.allow_domain("a.example"), "8.8.8.8 2001:4860::1", "10.0.0.1 10.0.2.15 10.0.2.2"),
        (deny_all.allow_group("private"), "10.0.0.1 fd00::1", "10.0.2.15 127.0.0.1 169.254.1.1"),
        (deny_all.allow_ip("10.0.0.0/24", on="tcp/22"), "10.0.0.1 ::ffff:10.0.0.1", "10.0.1.1"),
        (deny_all.deny_ip("10.0.0.1").allow_group("private"), "10.0.0.2", "10.0.0.1"),
        (deny_all.rule("deny 10.0.0.1 on tcp/22").allow_group("private"), "10.0.0.1", ""),
        (allow_all.rule("deny private on tcp/22"), "10.0.0.1", ""),
        (
            allow_all,
            "8.8.8.8 10.0.0.1",
            "127.0.0.1 ::1 0.0.0.0 169.254.169.254 8.8.4.4 ::ffff:7f00:1",
        ),
        (allow_all.deny_group("private"), "8.8.8.8", "10.0.0.1 64:ff9b::10.0.0.1"),
        (deny_all.allow_ip("0.0.0.0/0"), "10.0.0.1", "169.254.169.254 10.0.2.2"),
    ],
)
def test_no_answer_points_inward(policy: NetworkPolicy, told: str, kept: str) -> None:
    """Rebinding: what is not public is told only if a rule opens that address."""
    judge = Judge(policy, GROUPS_HERE)
    assert [text for text in told.split() if not judge.may_be_told(packed(text))] == []
    assert [text for text in kept.split() if judge.may_be_told(packed(text))] == []


# -- a plain reading of the model


def names_place(place: Place, request: FlowRequest, allows: bool) -> bool:
    """Whether a place is the request's address."""
    address = unwrapped(request.destination)
    group = GROUPS_HERE.of(address)
    match place:
        case AnyPlace():
            return group not in FLOOR
        case GroupPlace(name):
            return group == name
        case NetworkPlace() | RangePlace():
            first, last = place.bounds()
            inside = len(first.packed) == len(address) and first.packed <= address <= last.packed
            return inside and not (
                allows and group in FLOOR and not names_group(group, first, last)
            )
    return False


def matches(rule: Rule, request: FlowRequest) -> bool:
    """Whether a rule matches a flow whose first flight has been read, read from the model."""
    protocol, port, flight = request.protocol, request.port, request.flight
    if rule.services and not any(service.covers(protocol, port) for service in rule.services):
        return False
    if any(names_place(place, request, rule.action == ALLOW) for place in rule.places):
        return True
    wanted = [place for place in rule.places if isinstance(place, NamePlace)]
    public = GROUPS_HERE.of(request.destination) == PUBLIC
    name = flight.name if flight.speech in (TLS, HTTP) and protocol == "tcp" else None
    spoken = name is not None and any(place.matches(name) for place in wanted)
    pinned = {each for each in request.names if any(place.matches(each) for place in wanted)}
    quic = (protocol, port) == ("udp", 443)
    unreadable = protocol == "tcp" and flight.speech is UNREADABLE
    if rule.action == LOG:
        return bool(pinned) or spoken
    if rule.action == DENY:
        if pinned and pinned == request.names:
            return True
        return spoken if name is not None else bool(pinned or (wanted and (quic or unreadable)))
    believed = {each for each in pinned - {ODD_NAME} if public or each in OWN_NAMES}
    if not believed or quic or unreadable:
        return False
    if protocol != "tcp":
        return any(service.protocol == protocol for service in rule.services)
    if port in (443, 80) and flight.speech is not (TLS if port == 443 else HTTP):
        return False
    return flight.speech is OTHER or name in believed


def plainly(policy: NetworkPolicy, request: FlowRequest) -> str:
    """What is done with a flow whose first flight has been read."""
    if is_martian(request.destination):
        return DENY
    for rule in policy.rules:
        if rule.action != LOG and matches(rule, request):
            return rule.action
    return DENY if GROUPS_HERE.of(request.destination) in FLOOR else policy.default


EVERYONE = (*NAMES, "z.example", "z.a.example", "z.b.a.example", "z.b.example", "z.xa.example")
ALL_FLIGHTS = [
    *(
        Flight(speech, name)
        for speech in (TLS, HTTP)
        for name in (None, *EVERYONE, "z.c.b.a.example")
    ),
    *(Flight(speech, "z.host.internal") for speech in (TLS, HTTP)),
    Flight(OTHER),
    Flight(UNREADABLE),
]


@given(cases())
def test_tables_agree_with_a_plain_reading(case: Case) -> None:
    """Rule after rule and place after place, as the model says it, gives the same verdict."""
    policy, request = case
    assert judged(policy, request).action == plainly(policy, request)


@given(
    cases(), st.frozensets(st.sampled_from((TLS, HTTP, OTHER, UNREADABLE)), min_size=1, max_size=2)
)
@example(
    (NetworkPolicy.allow_all().deny_domain("a.example"), FlowRequest("tcp", b"\x08" * 4, 443)),
    frozenset({TLS}),
)
def test_an_early_verdict_is_the_late_one(case: Case, possible: frozenset[Speech]) -> None:
    """Given before the guest has spoken, it is what every possible word would have led to."""
    policy, request = case
    assume(request.protocol == "tcp")
    judge = Judge(policy, GROUPS_HERE)
    early = judge.judge(evolve(request, flight=Flight(possible=possible)))
    late = {
        plainly(policy, evolve(request, flight=flight))
        for flight in ALL_FLIGHTS
        if flight.speech in possible
    }
    if not early.hold:
        assert late == {early.action}
    smaller = judge.judge(
        evolve(request, flight=Flight(possible=frozenset([min(possible, key=str)])))
    )
    assert early.hold or smaller.action == early.action
    exact = {
        place.name
        for rule in policy.rules
        if rule.action == DENY
        for place in rule.places
        if isinstance(place, NamePlace) and not place.wildcard
    }
    if len(late) == 1 and not exact & request.names:
        assert not early.hold, "it could have been given"


@given(cases())
def test_no_name_rule_admits_an_unpinned_address(case: Case) -> None:
    """Whatever the guest says: without a pin, only rules for addresses let it through."""
    policy, request = case
    only = tuple(
        rule
        for rule in policy.rules
        if rule.action != ALLOW or all(isinstance(place, NamePlace) for place in rule.places)
    )
    stranger = evolve(request, names=frozenset())
    assert judged(NetworkPolicy(DENY, only), stranger).action == DENY


@given(cases(), st.booleans(), st.data())
def test_removing_an_allow_admits_nothing_more(case: Case, read: bool, data: st.DataObject) -> None:
    """Flows, names and answers: without a rule that allows there is less, never more."""
    policy, request = case
    allows = [number for number, rule in enumerate(policy.rules) if rule.action == ALLOW]
    assume(allows)
    gone = data.draw(st.sampled_from(allows))
    rules = policy.rules
    less = Judge(NetworkPolicy(policy.default, rules[:gone] + rules[gone + 1 :]), GROUPS_HERE)
    more = Judge(policy, GROUPS_HERE)
    if not read:
        request = evolve(request, flight=UNREAD)
    if less.judge(request).action == ALLOW:
        assert more.judge(request).action == ALLOW
    for name in NAMES:
        assert more.judge_name(name).action == ALLOW or less.judge_name(name).action == DENY
    assert more.may_be_told(request.destination) or not less.may_be_told(request.destination)


@given(policies(), requests())
def test_no_policy_reaches_the_floor_that_does_not_name_it(
    policy: NetworkPolicy, request: FlowRequest
) -> None:
    """An address of the floor is reached by a rule with its group, its network or itself."""
    verdict = judged(policy, request)
    group = GROUPS_HERE.of(request.destination)
    if group in FLOOR and verdict.action == ALLOW:
        assert verdict.rule is not None
        own = bool(request.names & OWN_NAMES) and any(
            isinstance(place, NamePlace) for place in verdict.rule.places
        )
        assert own or any(names_place(place, request, True) for place in verdict.rule.places)
        assert (
            not any(isinstance(place, AnyPlace) for place in verdict.rule.places)
            or len(verdict.rule.places) > 1
        )


@given(cases(), st.booleans())
def test_findings_explain_the_verdict(case: Case, read: bool) -> None:
    """The first rule that is found to match, and has none before it, is the verdict's."""
    policy, request = case
    if not read:
        request = evolve(request, flight=UNREAD)
    judge = Judge(policy, GROUPS_HERE)
    found = [(rule, finding) for rule, finding in judge.findings(request) if rule.action != LOG]
    first = next(((r, f) for r, f in found if f.match is not Match.NO), None)
    verdict = judge.judge(request)
    assert [rule for rule, _ in judge.findings(request)] == list(policy.rules)
    if is_martian(request.destination):
        assert verdict.why is Why.MARTIAN
    elif first is None:
        assert verdict.action in (policy.default, DENY)
        assert verdict.why not in (Why.RULE, Why.HELD)
    elif first[1].match is Match.YES:
        assert verdict.rule == first[0]
        assert (verdict.action, verdict.why) == (first[0].action, first[1].why)


@given(requests(), st.sampled_from(["::ffff:", "64:ff9b::"]))
def test_a_wrapped_address_gets_the_verdict_of_the_plain_one(
    request: FlowRequest, prefix: str
) -> None:
    """Mapped and translated forms are no way around."""
    assume(len(request.destination) == 4)
    wrapped = packed(prefix + ".".join(map(str, request.destination)))
    policy = (
        deny_all.deny_ip("8.8.8.8").allow_ip("8.8.0.0/16", "10.0.2.2").allow_domain("a.example")
    )
    assert judged(policy, evolve(request, destination=wrapped)) == judged(policy, request)


# -- every reason


@pytest.mark.parametrize(
    ("policy", "request_", "why"),
    [
        (ONE, flow(TO, "a.example", speech=TLS, says="a.example"), Why.RULE),
        (
            deny_all.allow_ssh("a.example"),
            flow("tcp 8.8.8.8:22", "a.example", speech=OTHER),
            Why.PIN,
        ),
        (ONE, flow(TO), Why.DEFAULT),
        (allow_all, flow("tcp 169.254.169.254:22"), Why.FLOOR),
        (allow_all, flow("tcp 127.0.0.1:22"), Why.MARTIAN),
        (allow_all, flow("udp 8.8.8.8:5353"), Why.NAME_SERVICE),
        (ONE, flow(TO, "a.example"), Why.HELD),
        (ONE, flow(TO, speech=TLS, says="a.example"), Why.NOT_PINNED),
        (ONE, flow(TO, "a.example", speech=TLS, says="b.example"), Why.OTHER_NAME),
        (ONE, flow(TO, "a.example", speech=TLS), Why.NO_NAME),
        (ONE, flow(TO, "a.example", speech=UNREADABLE), Why.UNREADABLE),
        (ONE, flow(TO, "a.example", speech=OTHER), Why.NOT_TLS),
        (
            deny_all.allow_http("a.example"),
            flow("tcp 8.8.8.8:80", "a.example", speech=TLS),
            Why.NOT_HTTP,
        ),
        (deny_all.rule("allow a.example on 443"), flow("udp 8.8.8.8:443", "a.example"), Why.QUIC),
        (deny_all.rule("allow a.example"), flow("icmp 8.8.8.8", "a.example"), Why.PROTOCOL),
        (ONE, flow("tcp 10.0.0.1:443", "a.example"), Why.INWARD),
    ],
    ids=lambda value: value.name if isinstance(value, Why) else "",
)
def test_each_reason_of_the_judge_can_be_met(
    policy: NetworkPolicy, request_: FlowRequest, why: Why
) -> None:
    """The list is closed, and there is nothing in it that nobody sees."""
    assert judged(policy, request_).why is why


# -- cost


def steps(judge: Judge, request: FlowRequest) -> int:
    """How many lines of the policy's code a verdict takes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace if "qemu_usernat" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        judge.judge(request)
        judge.judge_name("n7.a.example")
        judge.may_be_told(request.destination)
    finally:
        sys.settrace(before)
    return count


def large(count: int) -> list[Judge]:
    """Judges of policies with so many names, networks, ranges and rules."""
    names = [f"n{number}.a.example" for number in range(count)]
    networks = [f"11.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(count)]
    return [
        Judge(policy, GROUPS_HERE)
        for policy in (
            allow_all.deny_domain(*names).allow_ip(*networks),
            NetworkPolicy(
                DENY, tuple(Rule(ALLOW, (parse_place(each),)) for each in names + networks)
            ),
        )
    ]


def test_a_hundred_thousand_places_cost_what_ten_do() -> None:
    """Counted in steps and not by the clock."""
    wanted = [
        flow("tcp 11.0.0.7:443", "n7.a.example"),
        flow("tcp 11.0.0.7:443", "n7.a.example", speech=TLS, says="n7.a.example"),
        flow("tcp 8.8.8.8:443", "n7.a.example", "b.example"),
        flow("udp 8.8.8.8:443"),
    ]
    few, many = ([[steps(j, r) for r in wanted] for j in large(n)] for n in (10, 100_000))
    assert few == many


@given(read_flights())
@example(Flight(TLS, "x" * 300))
def test_the_first_flight_of_others_than_tcp_does_not_matter(flight: Flight) -> None:
    """It is of TCP only."""
    policy = NO_ADS.allow_domain("a.example")
    for to in ("udp 8.8.8.8:4000", "icmp 8.8.8.8"):
        request = flow(to, "a.example")
        assert judged(policy, evolve(request, flight=flight)) == judged(policy, request)


def test_a_finding_is_a_plain_value() -> None:
    """Yes, no or perhaps, and for what reason."""
    assert Finding(Match.NO) == Finding(Match.NO, None)
    assert Groups(public=(ip_network("192.0.2.0/24"),)).of(packed("192.0.2.1")) == PUBLIC
