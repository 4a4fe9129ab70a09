"""Policies, flows and places out of Hypothesis: few of each, so that they meet."""

from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from qemu_usernat.policy.groups import GROUPS, Groups
from qemu_usernat.policy.judge import Flight, FlowRequest, Speech
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
from qemu_usernat.policy.rules import ALLOW, DENY, LOG, NetworkPolicy, Rule
from qemu_usernat.primitives.addresses import Address

GATEWAY = ip_address("10.0.2.2").packed
HOST_ADDRESSES = {ip_address(text).packed for text in ("10.1.2.3", "8.8.4.4", "169.254.7.7")}
OWN_NAMES = {"host.internal"}

GROUPS_HERE = Groups(
    lan=(ip_network("10.0.2.0/24"),),
    gateway=frozenset({GATEWAY}),
    is_of_host=HOST_ADDRESSES.__contains__,
    is_own_name=OWN_NAMES.__contains__,
)

NAMES = ("a.example", "b.a.example", "c.b.a.example", "xa.example", "b.example", "host.internal")
ODD_NAME = r"x\046y.a.example"
"""A label of it has a dot: it may be looked up where any name may, and a host has no such name."""

LOOKED_UP = (*NAMES, ODD_NAME)
ADDRESSES = (
    "8.8.8.8",
    "8.8.4.4",
    "10.0.0.1",
    "10.0.2.2",
    "10.0.2.15",
    "10.0.2.255",
    "10.1.2.3",
    "127.0.0.1",
    "169.254.7.7",
    "169.254.169.254",
    "192.0.2.1",
    "224.0.0.1",
    "2001:4860::1",
    "fd00::1",
    "::1",
    "::ffff:8.8.8.8",
    "64:ff9b::10.0.0.1",
)
NETWORKS = (
    "0.0.0.0/0",
    "::/0",
    "8.8.0.0/16",
    "8.8.8.8",
    "10.0.0.0/8",
    "10.0.2.2",
    "10.1.2.3",
    "169.254.0.0/16",
    "169.254.169.254",
    "2001::/16",
    "::ffff:8.8.8.0/120",
)
RANGES = (("8.8.0.0", "9.0.0.0"), ("169.254.169.250", "169.254.169.254"), ("::1", "ffff::"))
PORTS = (0, 22, 53, 80, 443, 8443, 65535)


def packed(text: str) -> Address:
    """The address that a text says."""
    return ip_address(text).packed


def places() -> st.SearchStrategy[Place]:
    """All kinds but `dns`, which stands alone."""
    return st.one_of(
        st.builds(NamePlace, st.sampled_from(NAMES), st.booleans()),
        st.sampled_from(NETWORKS).map(lambda text: NetworkPlace(ip_network(text))),
        st.sampled_from(RANGES).map(lambda ends: RangePlace(*map(ip_address, ends))),
        st.sampled_from(GROUPS).map(GroupPlace),
        st.just(AnyPlace()),
    )


def services() -> st.SearchStrategy[Service]:
    """With ports that the flows have, and ranges between them."""
    protocols = st.sampled_from((None, "tcp", "udp"))
    ends = st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(sorted)
    return st.one_of(
        st.builds(lambda protocol, ends: Service(protocol, *ends), protocols, ends),
        st.just(Service("icmp")),
    )


def rules(names: bool = False) -> st.SearchStrategy[Rule]:
    """Of all kinds; named only by `policies`, where names have to differ."""
    return st.one_of(
        st.builds(
            Rule,
            st.sampled_from((ALLOW, DENY, LOG)),
            st.lists(places(), min_size=1, max_size=3),
            st.lists(services(), max_size=2),
        ),
        st.builds(Rule, st.sampled_from((ALLOW, DENY, LOG)), st.just((DnsPlace(),))),
    )


@st.composite
def policies(draw: st.DrawFn) -> NetworkPolicy:
    """Up to five rules, some of them named."""
    policy = NetworkPolicy(draw(st.sampled_from((ALLOW, DENY))), ())
    given = draw(st.lists(rules(), max_size=5))
    names = draw(
        st.lists(
            st.one_of(
                st.none(), st.from_regex(r"[A-Za-z0-9][a-z ._-]{0,9}[a-z._-]", fullmatch=True)
            ),
            min_size=len(given),
            max_size=len(given),
            unique_by=lambda name: name if name is not None else object(),
        )
    )
    named = [
        Rule(rule.action, rule.places, rule.services, name)
        for rule, name in zip(given, names, strict=True)
    ]
    return NetworkPolicy(policy.default, tuple(named))


def read_flights() -> st.SearchStrategy[Flight]:
    """Flights that are known to the end."""
    said = st.one_of(st.none(), st.sampled_from(NAMES))
    return st.one_of(
        st.builds(Flight, st.sampled_from((Speech.TLS, Speech.HTTP)), said),
        st.builds(Flight, st.sampled_from((Speech.OTHER, Speech.UNREADABLE))),
    )


@st.composite
def requests(draw: st.DrawFn) -> FlowRequest:
    """A flow, and of TCP what was said first."""
    protocol = draw(st.sampled_from(("tcp", "tcp", "udp", "icmp")))
    return FlowRequest(
        protocol,
        packed(draw(st.sampled_from(ADDRESSES))),
        draw(st.sampled_from(PORTS)) if protocol != "icmp" else 0,
        draw(st.frozensets(st.sampled_from(LOOKED_UP), max_size=3)),
        draw(read_flights()) if protocol == "tcp" else Flight(),
    )


def about_names() -> st.SearchStrategy[tuple[NetworkPolicy, FlowRequest]]:
    """Rules that are mostly by name, and connections to one public address that has names."""
    name_rules = st.builds(
        Rule,
        st.sampled_from((ALLOW, ALLOW, DENY, LOG)),
        st.lists(
            st.builds(NamePlace, st.sampled_from(NAMES), st.booleans()), min_size=1, max_size=2
        ),
        st.sampled_from(((), (), (Service("tcp", 443, 443),), (Service("udp"), Service("tcp")))),
    )
    any_rule = st.builds(Rule, st.sampled_from((ALLOW, DENY)), st.just((AnyPlace(),)))
    return st.tuples(
        st.builds(
            NetworkPolicy,
            st.sampled_from((DENY, DENY, ALLOW)),
            st.lists(st.one_of(name_rules, name_rules, any_rule), max_size=4).map(tuple),
        ),
        st.builds(
            FlowRequest,
            st.sampled_from(("tcp", "tcp", "tcp", "udp")),
            st.just(packed("8.8.8.8")),
            st.sampled_from((22, 80, 443)),
            st.frozensets(st.sampled_from(LOOKED_UP), max_size=3),
            read_flights(),
        ),
    )


def cases() -> st.SearchStrategy[tuple[NetworkPolicy, FlowRequest]]:
    """A policy and a flow: of any kind, or such that names decide."""
    return st.one_of(st.tuples(policies(), requests()), about_names())
