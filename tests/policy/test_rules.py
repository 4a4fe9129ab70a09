"""A policy as a value: built by calls, written as text, and read again without a loss."""

import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.policy.places import DnsPlace, parse_place
from qemu_usernat.policy.rules import ALLOW, NetworkPolicy, Rule, parse_rule
from qemu_usernat.primitives.errors import UserError
from tests.policy.policies import policies, rules


def text_of(policy: NetworkPolicy) -> list[str]:
    """Its lines."""
    return str(policy).splitlines()


def test_the_builder_reads_as_the_model_says() -> None:
    """The three lines of the model are programs."""
    assert text_of(NetworkPolicy.deny_all().allow_dns().allow_https()) == [
        "allow dns",
        "allow any on tcp/443",
        "default deny",
    ]
    assert text_of(NetworkPolicy.deny_all().allow_https("*.github.com", "pypi.org")) == [
        "allow *.github.com, pypi.org on tcp/443",
        "default deny",
    ]
    assert text_of(
        NetworkPolicy.allow_all().deny_domain("*.ads.example").deny_ip("10.0.0.0/8")
    ) == [
        "deny *.ads.example",
        "deny 10.0.0.0/8",
        "default allow",
    ]


def test_every_call_is_a_rule_and_their_order_is_kept() -> None:
    """Each call adds one rule at the end; the policy it is called on stays as it was."""
    empty = NetworkPolicy.deny_all()
    policy = (
        empty.allow_ip("192.0.2.7", "10.0.0.0/8", on="tcp/22")
        .deny_ip("10.0.0.1-10.0.0.9", on=["tcp", "udp/53"])
        .allow_ip_range("192.0.2.1", "192.0.2.99")
        .allow_port(123, "udp")
        .deny_port(25)
        .allow_https("PyPI.org")
        .allow_http()
        .allow_ssh("git.example")
        .allow_dns()
        .allow_ping("public")
        .allow_domain("a.example")
        .deny_domain("*.a.example", on="tcp/80")
        .log_domain("b.example")
        .allow_group("private", on="tcp/443")
        .deny_group("lan", "host")
        .rule("mirror: log public on udp/1000-2000")
        .allow_ip("::1")
        .named("mine")
    )
    assert text_of(policy) == [
        "allow 192.0.2.7, 10.0.0.0/8 on tcp/22",
        "deny 10.0.0.1-10.0.0.9 on tcp, udp/53",
        "allow 192.0.2.1-192.0.2.99",
        "allow any on udp/123",
        "deny any on 25",
        "allow pypi.org on tcp/443",
        "allow any on tcp/80",
        "allow git.example on tcp/22",
        "allow dns",
        "allow public on icmp",
        "allow a.example",
        "deny *.a.example on tcp/80",
        "log b.example",
        "allow private on tcp/443",
        "deny lan, host",
        "mirror: log public on udp/1000-2000",
        "mine: allow ::1",
        "default deny",
    ]
    assert empty == NetworkPolicy.deny_all()


@given(policies())
def test_text_and_value_are_the_same(policy: NetworkPolicy) -> None:
    """What is written is read; an ancestor lost the `*.` on the way."""
    assert NetworkPolicy.parse(str(policy)) == policy


@given(policies())
def test_a_policy_is_a_value(policy: NetworkPolicy) -> None:
    """It can be hashed, compared and sent away."""
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(NetworkPolicy.parse(str(policy))) == hash(policy)


@given(rules())
def test_a_rule_is_read_as_it_is_written(rule: Rule) -> None:
    """One rule is one line."""
    assert parse_rule(str(rule)) == rule


@given(st.text())
def test_any_text_is_a_policy_or_a_mistake_of_the_user(text: str) -> None:
    """Nothing else comes of it."""
    try:
        policy = NetworkPolicy.parse(text)
    except UserError:
        return
    assert NetworkPolicy.parse(str(policy)) == policy


def test_comments_and_empty_lines_are_left_out() -> None:
    """A person may explain what they wrote."""
    text = "# who may what\n\nallow pypi.org   on  tcp/443 # packages\n  default   deny\n\n"
    assert NetworkPolicy.parse(text) == NetworkPolicy.deny_all().allow_https("pypi.org")


def test_names_of_rules_that_look_like_something_else_survive() -> None:
    """A rule may be called "default deny", or "allow any", without becoming one."""
    for name in ("default deny", "allow any", "on", "a on b", "deny"):
        policy = NetworkPolicy.allow_all().deny_port(25).named(name)
        assert NetworkPolicy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no default"),
        ("allow any", "there is no default"),
        ("default maybe", 'default is "maybe"'),
        ("default", "no rule"),
        ("default deny\nallow any", 'line 2: the line "default …" is the last one'),
        ("default deny\ndefault deny", "line 2"),
        ("allow\ndefault deny", "line 1: .* is no rule"),
        ("allow on tcp/443\ndefault deny", "line 1"),
        ("allow any on\ndefault deny", "line 1"),
        ("allow any on ,\ndefault deny", "line 1"),
        ("allow a.example,, b.example\ndefault deny", "line 1"),
        ("permit any\ndefault deny", "line 1: .* is no rule"),
        ("Allow any\ndefault deny", "line 1: .* is no rule"),
        ("allow *.com\ndefault deny", "line 1: .*top-level"),
        ("allow dns, pypi.org\ndefault deny", 'line 1: "dns" stands alone'),
        ("allow dns on udp/53\ndefault deny", "line 1: .* has no services"),
        ("x: allow any\nx: deny any\ndefault deny", 'two rules have the name "x"'),
        ("-: allow any\ndefault deny", "no name of a rule"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, words: str) -> None:
    """A policy with a mistake does not load, and says where."""
    with pytest.raises(UserError, match=words):
        NetworkPolicy.parse(text)


def test_an_empty_list_is_a_mistake_and_not_all() -> None:
    """The commonest flaw of filters is a list that has become empty, and means everything."""
    policy = NetworkPolicy.deny_all()
    calls: list[Callable[[], object]] = [
        lambda: policy.allow_ip(),
        lambda: policy.allow_domain(),
        lambda: policy.deny_domain(),
        lambda: policy.allow_group(),
        lambda: policy.allow_domain("pypi.org", on=[]),
        lambda: policy.allow_ip("10.0.0.1", on=()),
    ]
    for call in calls:
        with pytest.raises(UserError, match="empty list"):
            call()


def test_a_call_takes_what_its_name_says() -> None:
    """A name is no address, a network no name, and a group one that exists."""
    policy = NetworkPolicy.deny_all()
    calls: list[Callable[[], object]] = [
        lambda: policy.allow_ip("pypi.org"),
        lambda: policy.allow_ip("public"),
        lambda: policy.allow_domain("10.0.0.1"),
        lambda: policy.allow_domain("any"),
        lambda: policy.allow_group("any"),
        lambda: policy.allow_port(65536),
        lambda: policy.allow_port(80, "icmp"),
        lambda: policy.allow_ip_range("10.0.0.9", "10.0.0.1"),
        lambda: policy.named("too early"),
        lambda: policy.allow_dns().named("x").allow_dns().named("x"),
        lambda: Rule("maybe", (parse_place("any"),)),
        lambda: Rule(ALLOW, (DnsPlace(), parse_place("any"))),
        lambda: NetworkPolicy("maybe"),
    ]
    for call in calls:
        with pytest.raises(UserError):
            call()


def test_what_is_said_twice_in_a_rule_is_said_once() -> None:
    """By text and by calls alike."""
    policy = NetworkPolicy.deny_all().allow_ip("10.0.0.1", "10.0.0.1", on=["tcp", "tcp"])
    assert text_of(policy) == ["allow 10.0.0.1 on tcp", "default deny"]


def test_the_name_is_at_the_top_and_costs_nothing_until_it_is_used() -> None:
    """`from qemu_usernat import NetworkPolicy`; the package alone brings nothing with it."""
    script = (
        "import sys, qemu_usernat; assert 'attrs' not in sys.modules; "
        "from qemu_usernat import NetworkPolicy; print(NetworkPolicy.deny_all()); "
        "assert not {'trio', 'impacket', 'numpy', 'publicsuffixlist'} & set(sys.modules); "
        "qemu_usernat.NetworkPolice"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.stdout == "default deny\n"
    assert answer.stderr.endswith("module 'qemu_usernat' has no attribute 'NetworkPolice'\n")
