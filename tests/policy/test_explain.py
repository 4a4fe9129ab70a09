"""Explain: what the judge finds, in words."""

import pytest
from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st

from qemu_usernat.config.configuration import groups_of, read_config
from qemu_usernat.policy.explain import WORDS, explain
from qemu_usernat.policy.flows import SOMEWHERE, WrittenFlow, judge_flow, judge_for, parse_flow
from qemu_usernat.policy.groups import MULTICAST
from qemu_usernat.policy.judge import Flight, FlowRequest, Judge, Speech, Why
from qemu_usernat.policy.rules import ALLOW, NetworkPolicy
from tests.policy.policies import ADDRESSES, GROUPS_HERE, NAMES, PORTS, packed, policies

deny_all = NetworkPolicy.deny_all()

POLICY = (
    deny_all.allow_https("*.github.com", "pypi.org")
    .named("code")
    .rule("allow public on tcp/22")
    .rule("time: allow time.example on udp/123")
)


def explained(policy: NetworkPolicy, flow: str, address: str | None = None) -> list[str]:
    """The lines, without the spaces before them."""
    lines = explain(policy, GROUPS_HERE, parse_flow(flow).at(address))
    return [line.strip() for line in lines]


def test_a_name_is_explained_rule_by_rule() -> None:
    """Matched or why not, and what else is needed."""
    assert explained(POLICY, "tcp api.github.com:443") == [
        "tcp api.github.com:443, at a public address that the guest was given for api.github.com",
        "the address is of the group public",
        "1  code: allow *.github.com, pypi.org on tcp/443",
        "perhaps: the guest's TLS must name api.github.com",
        "2  allow public on tcp/22",
        "no: another service",
        "3  time: allow time.example on udp/123",
        "no: another service",
        "default deny",
        "verdict: held until the guest's first octets are read; then",
        "TLS that names api.github.com: allow (rule code)",
        "TLS that names another: deny (other_name, rule code)",
        "TLS without a name: deny (no_name, rule code)",
        "another protocol: deny (not_tls, rule code)",
        "what cannot be read: deny (unreadable, rule code)",
    ]


def test_the_apex_is_told_that_it_is_one() -> None:
    """The commonest surprise of wildcards; and the name is not even looked up."""
    lines = explained(POLICY, "tcp github.com:443")
    assert "no: *.github.com is never github.com itself" in lines
    assert lines[-2:] == ["the name is not looked up: deny (default)", "verdict: deny (default)"]


def test_an_address_is_explained_with_its_group() -> None:
    """And the floor says what it wants."""
    lines = explained(deny_all.rule("allow any on tcp/80"), "tcp 10.0.2.2:80")
    assert lines[1] == "the address is of the group host, of the floor"
    assert lines[3].startswith("no: it does not reach the floor")
    assert lines[-1] == "verdict: deny (floor, rule allow any on tcp/80)"


def test_a_name_with_an_inward_address_is_told_so() -> None:
    """A person may say which address the name has."""
    lines = explained(POLICY, "tcp pypi.org:443", "10.0.0.1")
    assert lines[0] == "tcp pypi.org:443, at 10.0.0.1 that the guest was given for pypi.org"
    assert "no: the address is not public: a rule for the address has to open it" in lines
    assert lines[-1] == "verdict: deny (inward, rule code)"


def test_udp_is_told_what_it_lacks() -> None:
    """QUIC falls back, and other protocols have to be said."""
    policy = deny_all.rule("allow pypi.org")
    assert "no: QUIC hides the name: the client falls back to TCP" in explained(
        policy, "udp pypi.org:443"
    )
    assert any(
        line.startswith("no: a name admits TCP only") for line in explained(policy, "icmp pypi.org")
    )
    assert explained(POLICY, "udp time.example:123")[-1] == "verdict: allow (rule time)"


def test_another_port_may_speak_anything() -> None:
    """What says no name passes on the pin."""
    lines = explained(deny_all.allow_ssh("git.example"), "tcp git.example:22")
    assert "another protocol: allow (pin, rule allow git.example on tcp/22)" in lines
    assert "perhaps: the guest's TLS or HTTP, if it speaks either, must name git.example" in lines


def test_a_denied_name_is_told_what_may_still_deny() -> None:
    """A rule that denies by name waits for the first octets of all."""
    policy = (
        NetworkPolicy.allow_all().deny_domain("*.ads.example").log_domain("a.example").named("note")
    )
    lines = explained(policy, "tcp a.example:80")
    assert "perhaps: if the guest's first octets name it, or cannot be read" in lines
    assert "HTTP that names a.example: allow (default); noted by note" in lines
    assert explained(policy, "udp 8.8.8.8:443")[3].startswith("matches: QUIC hides the name")


def test_a_question_is_explained_by_the_rules_that_it_meets() -> None:
    """Those that note it, and the one that decides."""
    policy = deny_all.log_domain("*.a.example").rule("allow any").allow_domain("b.a.example")
    assert explained(policy, "dns b.a.example") == [
        "dns b.a.example",
        "1  log *.a.example",
        "notes it",
        "3  allow b.a.example",
        "decides",
        "default deny",
        "verdict: allow (rule allow b.a.example); noted by log *.a.example",
    ]


def test_what_the_gateway_answers_itself_is_told() -> None:
    """Another resolver is never reached, but by a rule for its address."""
    policy = deny_all.allow_dns()
    assert explained(policy, "udp 8.8.8.8:53")[-1] == (
        "verdict: answered by the gateway; each name that is asked for is judged"
    )
    assert explained(policy.allow_ip("8.8.8.8"), "udp 8.8.8.8:53")[-1].startswith("verdict: allow")
    assert explained(policy.rule("allow any"), "tcp 8.8.8.8:853")[-1] == (
        "verdict: deny (name_service)"
    )


@pytest.mark.parametrize("address", ["224.0.0.251", "255.255.255.255", "10.0.2.255"])
def test_groups_are_told_to_be_other_guests_only(address: str) -> None:
    """A rule for multicast reads well, and lets nothing out of the LAN: whoever wrote it is to
    know."""
    policy = deny_all.rule("allow multicast")
    assert explained(policy, f"udp {address}:1900")[-1] == (
        "verdict: to other guests: allow (rule allow multicast); to the world nothing is carried"
    )
    assert explained(policy, f"tcp {address}:80")[-1].startswith("verdict: dropped")
    assert explained(deny_all.rule("allow any"), f"udp {address}:1900")[-1] == (
        "verdict: dropped: deny (floor, rule allow any)"
    )


def test_a_flow_to_another_guest_is_never_held() -> None:
    """Its first octets pass by: a name counts as our resolver told it."""
    policy = deny_all.rule("allow host.internal on tcp/443").rule("deny bad.example")
    flow = parse_flow("tcp host.internal:443").at("10.0.2.15")
    lines = list(explain(policy, GROUPS_HERE, flow))
    assert "the address is of the group lan" in lines[1]
    assert lines[-1] == "verdict: allow (rule allow host.internal on tcp/443)"
    assert explained(policy, "tcp 10.0.2.15:443")[-1] == "verdict: deny (default)"


@given(
    policies(),
    st.sampled_from(("tcp", "udp", "icmp")),
    st.one_of(
        st.sampled_from(NAMES).map(lambda name: (name, None)),
        st.sampled_from(ADDRESSES).map(lambda text: (None, packed(text))),
        st.tuples(st.sampled_from(NAMES), st.sampled_from(ADDRESSES).map(packed)),
    ),
    st.sampled_from(PORTS),
)
def test_explain_says_what_is_enforced(
    policy: NetworkPolicy, protocol: str, place: tuple[str | None, bytes | None], port: int
) -> None:
    """For any policy and flow: the last lines are the verdicts of the judge that enforces."""
    name, address = place
    flow = WrittenFlow(protocol, 0 if protocol == "icmp" else port, name, address)
    assume(name not in ("host.internal",) or address is not None)
    lines = list(explain(policy, GROUPS_HERE, flow))
    judge = Judge(policy, evolve(GROUPS_HERE, public=(SOMEWHERE,)))
    names = frozenset({name} - {None}) if name else frozenset[str]()
    destination = address or SOMEWHERE.network_address.packed
    request = FlowRequest(protocol, destination, flow.port, frozenset(names))
    verdict = judge.judge(request)
    final = next(line for line in lines if line.startswith("verdict: "))
    if judge.groups.of(destination) == MULTICAST:
        assert final.startswith("verdict: dropped")
    elif flow.port == 53 and not judge.is_named(request):
        assert final.startswith("verdict: answered by the gateway")
    elif verdict.hold:
        unreadable = judge.judge(evolve(request, flight=Flight(Speech.UNREADABLE)))
        assert final.startswith("verdict: held")
        assert lines[-1].startswith(f"  what cannot be read: {unreadable.action} (")
    elif not any(line.startswith("the name is not looked up") for line in lines):
        assert final.startswith(f"verdict: {verdict.action} (")
    elif verdict.action == ALLOW:
        whole = judge_flow(judge_for(policy, GROUPS_HERE), flow)
        assert final.startswith(f"verdict: {whole.action} (")


def test_every_reason_that_a_rule_may_lack_has_words() -> None:
    """Nobody is left with a word of the code's."""
    judges = {Why.RULE, Why.DEFAULT, Why.HELD, Why.MARTIAN, Why.NAME_SERVICE}
    before = {Why.SPOOFED, Why.ISOLATED, Why.UNCARRIED, Why.QUESTION}
    after = {Why.CONNECT, Why.UPGRADE, Why.FRAMING}
    assert set(Why) - judges - before - after == set(WORDS)


def test_what_guests_call_themselves_is_explained_as_what_it_is() -> None:
    """As an address of their network, which no rule by name means."""
    config = read_config(
        None,
        {
            "listen": ["unix:/x"],
            "reservation": [
                {"mac": "52:54:00:00:00:01", "address": "10.0.2.30", "name": "carol"},
            ],
            "record": [{"name": "db", "type": "A", "data": "10.0.2.40"}],
        },
    )
    groups = groups_of(config.network)
    policy = NetworkPolicy.deny_all().allow_group("lan", on="tcp/22")
    policy = policy.rule("allow carol.internal, db.internal, gateway.internal")

    def said(flow: str, address: str | None = None) -> tuple[str, str]:
        first, *_, last = explain(policy, groups, parse_flow(flow).at(address))
        return first.partition(", at ")[2], last

    guests = "of the guests' network: no rule by name means what guests are called"
    assert said("tcp carol.internal:80") == (f"an address {guests}", "verdict: deny (default)")
    assert said("tcp carol.internal:80", "10.0.2.30")[0] == f"10.0.2.30 {guests}"
    assert said("tcp bob.internal:22")[1].startswith("verdict: allow (rule allow lan")
    at_gateway = "an address of the gateway that the guest was given for"
    assert said("udp gateway.internal:99")[0] == f"{at_gateway} gateway.internal"
    assert said("tcp db.internal:99", "10.0.2.40")[1].startswith("verdict: allow")
