"""The table [policy]: there and back, and what is said of every mistake in it."""

import tomllib
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.policy.flows import parse_flow
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.rules import NetworkPolicy, parse_rule
from qemu_usernat.policy.settings import (
    Expect,
    PolicySettings,
    read_settings,
    settings_of_rules,
    to_toml,
)
from qemu_usernat.primitives.errors import UserError
from tests.policy.policies import policies

THE_MODELS = """
    [policy]
    default = "deny"                          # required once [policy] exists
    [[policy.rule]]
    name  = "code"
    allow = ["*.github.com", "pypi.org"]
    on    = "tcp/443"
    [[policy.rule]]
    allow = "dns"                             # any name resolves: a way out for data
    [[policy.rule]]
    deny  = ["*.corp.example", "private"]
"""


def read(text: str) -> PolicySettings:
    """The value of a file's table."""
    return read_settings(tomllib.loads(text)["policy"], "net.toml: ")


def test_the_models_table_is_the_models_policy() -> None:
    """It loads exactly as it is shown there."""
    assert read(THE_MODELS) == PolicySettings(
        policy=NetworkPolicy.deny_all()
        .allow_https("*.github.com", "pypi.org")
        .named("code")
        .allow_dns()
        .rule("deny *.corp.example, private")
    )


def test_everything_may_be_said() -> None:
    """Modes, guests by MAC address and by link, and what is expected."""
    settings = read(
        """
        [policy]
        default = "allow"
        mode = "learn"
        on-deny = "drop"
        [[policy.rule]]
        log = "10.0.0.1-10.0.0.9"
        on = ["tcp", "udp/53"]
        [[policy.expect]]
        flow = "tcp github.com:443"
        verdict = "allow"
        [policy.guest."52-54-00-12-34-5A"]
        default = "deny"
        [[policy.guest."52-54-00-12-34-5A".rule]]
        allow = "any"
        [policy.guest.unix-3]
        default = "deny"
        """
    )
    assert settings == PolicySettings(
        policy=NetworkPolicy.allow_all().rule("log 10.0.0.1-10.0.0.9 on tcp, udp/53"),
        guests={
            "52:54:00:12:34:5a": NetworkPolicy.deny_all().rule("allow any"),
            "unix-3": NetworkPolicy.deny_all(),
        },
        mode="learn",
        on_deny="drop",
        expects=(Expect(parse_flow("tcp github.com:443"), "allow"),),
    )


FLOWS = st.sampled_from(
    ("tcp a.example:443", "udp 8.8.8.8:53", "icmp ::1", "tcp [2001:db8::1]:22", "dns a.example")
)


@given(
    st.builds(
        PolicySettings,
        policy=policies(),
        guests=st.dictionaries(
            st.one_of(
                st.just("52:54:00:12:34:57"),
                st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            ),
            policies(),
            max_size=2,
        ),
        mode=st.sampled_from(("enforce", "learn")),
        on_deny=st.sampled_from(("refuse", "drop")),
        expects=st.lists(
            st.builds(Expect, FLOWS.map(parse_flow), st.sampled_from(("allow", "deny"))), max_size=2
        ).map(tuple),
    )
)
def test_text_table_and_value_are_the_same(settings: PolicySettings) -> None:
    """What is written as TOML is read as the same value, and its policy as text as well."""
    assert read(to_toml(settings)) == settings
    assert NetworkPolicy.parse(str(settings.policy)) == settings.policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy = 1", 'key "policy" is 1; allowed: a table [policy]'),
        ("[policy]", 'key "policy.default" is missing; allowed: "deny" or "allow", which has'),
        ("[policy]\ndefault = 'maybe'", 'key "policy.default" is "maybe"; allowed: "deny"'),
        ("[policy]\ndefault = true", 'key "policy.default" is true; allowed: "deny"'),
        (
            "[policy]\ndefault = 'deny'\nrules = []",
            '"policy.rules" is not known; did you mean "rule"',
        ),
        (
            "[policy]\ndefault = 'deny'\nmode = 'lax'",
            'key "policy.mode" is "lax"; allowed: "enforce"',
        ),
        (
            "[policy]\ndefault = 'deny'\non_deny = ''",
            'key "policy.on_deny" is ""; allowed: "refuse"',
        ),
        (
            "[policy]\ndefault = 'deny'\non_deny = 'drop'\non-deny = 'drop'",
            "is given twice, with a dash and with an underscore",
        ),
        (
            "[policy]\ndefault = 'deny'\nrule = 'allow any'",
            'key "policy.rule" is "allow any"; allowed: t',
        ),
        ("[policy]\ndefault = 'deny'\nrule = [1]", 'key "policy.rule[1]" is 1; allowed: a table'),
        ("[policy]\ndefault = 'deny'\nguest = []", 'key "policy.guest" is []; allowed: a table'),
        (
            "[policy]\ndefault = 'deny'\n[policy.guest.a]",
            'key "policy.guest."a".default" is missing',
        ),
        (
            "[policy]\ndefault = 'deny'\n[policy.guest.a]\ndefault = 'deny'\nmode = 'learn'",
            'key "policy.guest."a".mode" is not known; allowed in here: default, rule',
        ),
        (
            "[policy]\ndefault = 'deny'\n[policy.guest.'']\ndefault = 'deny'",
            "is empty; allowed: a MAC address, or the name of a link",
        ),
        (
            "[policy]\ndefault='deny'\n[policy.guest.'52:54:00:00:00:0a']\ndefault='deny'\n"
            "[policy.guest.'52-54-00-00-00-0A']\ndefault='allow'",
            "is given twice, in two ways of writing",
        ),
    ],
)
def test_a_mistake_says_file_key_and_what_is_allowed(text: str, message: str) -> None:
    """Nothing is taken of a table that has a mistake."""
    with pytest.raises(UserError) as caught:
        read(text)
    assert str(caught.value).startswith("net.toml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "allow = []",
            'key "policy.rule[2].allow" is an empty list; allowed: at least one of places',
        ),
        (
            "allow = 'any'\non = []",
            'key "policy.rule[2].on" is an empty list; allowed: at least one',
        ),
        ("allow = ''", 'key "policy.rule[2]": "" is no place'),
        ("allow = ['any', 7]", 'key "policy.rule[2].allow" is ["any", 7]; allowed: places'),
        ("allow = 'any'\non = 443", 'key "policy.rule[2].on" is 443; allowed: services'),
        (
            "allow = 'a.example, b.example'",
            'key "policy.rule[2]": "a.example, b.example" is no place',
        ),
        (
            "allow = 'any'\ndeny = 'lan'",
            'key "policy.rule[2]" has allow and deny; allowed: exactly one',
        ),
        (
            "on = 'tcp'",
            'key "policy.rule[2]" has no action; allowed: exactly one of allow, deny, log',
        ),
        ("alow = 'any'", 'key "policy.rule[2].alow" is not known; did you mean "allow"?'),
        ("allow = 'any'\nname = 3", 'key "policy.rule[2].name" is 3; allowed: a string'),
        ("allow = 'any'\nname = 'a:b'", 'key "policy.rule[2]": "a:b" is no name of a rule'),
        ("allow = 'any'\nname = 'one'", 'key "policy.rule": two rules have the name "one"'),
        ("allow = '*.com'", 'key "policy.rule[2]": "*.com" would match a whole top-level domain'),
        ("allow = ['dns', 'any']", 'key "policy.rule[2]": "dns" stands alone'),
    ],
)
def test_a_mistake_in_a_rule_says_which(rule: str, message: str) -> None:
    """Rules are counted from 1."""
    one = "[policy]\ndefault='deny'\n[[policy.rule]]\nname='one'\nallow='any'\n"
    text = f"{one}[[policy.rule]]\n{rule}"
    with pytest.raises(UserError) as caught:
        read(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        (
            "flow = 'tcp a.example:443'",
            'key "policy.expect[1].verdict" is missing; allowed: a string',
        ),
        ("verdict = 'allow'", 'key "policy.expect[1].flow" is missing'),
        (
            "flow = 'tcp a.example'\nverdict = 'allow'",
            'key "policy.expect[1]": "tcp a.example" is no flow',
        ),
        (
            "flow = 'icmp ::1'\nverdict = 'log'",
            'key "policy.expect[1]": verdict is "log"; allowed: "all',
        ),
        (
            "flow = 'icmp ::1'\nverdict = 'deny'\nwhy = ''",
            'key "policy.expect[1].why" is not known',
        ),
    ],
)
def test_a_mistake_in_an_expectation_says_which(expect: str, message: str) -> None:
    """They are read before they are checked."""
    with pytest.raises(UserError) as caught:
        read(f"[policy]\ndefault='deny'\n[[policy.expect]]\n{expect}")
    assert message in str(caught.value)


def expecting(**flows: str) -> PolicySettings:
    """The model's policy, and what is expected of it."""
    expects = tuple(
        Expect(parse_flow(flow), verdict)
        for verdict, some in flows.items()
        for flow in some.split(";")
    )
    return evolve(read(THE_MODELS), expects=expects)


def test_expectations_that_hold_say_nothing() -> None:
    """A name stands for a guest that asks, connects and says it."""
    expecting(
        allow="tcp pypi.org:443;tcp x.y.github.com:443;dns anything.example",
        deny="tcp github.com:443;tcp pypi.org:80;udp pypi.org:443;tcp 8.8.8.8:443;icmp 10.0.0.1",
    ).check_expects(Groups(), "net.toml: ")


def test_every_expectation_that_fails_is_named() -> None:
    """All at once, with what the policy says and why."""
    with pytest.raises(UserError) as caught:
        expecting(
            allow="tcp pypi.org:443;tcp github.com:443", deny="tcp x.github.com:443"
        ).check_expects(Groups(), "net.toml: ")
    assert str(caught.value).splitlines() == [
        'net.toml: key "policy.expect[2]": tcp github.com:443 is expected to allow, but the '
        "policy says deny (default)",
        'net.toml: key "policy.expect[3]": tcp x.github.com:443 is expected to deny, but the '
        "policy says allow (rule code: allow *.github.com, pypi.org on tcp/443)",
    ]


def test_a_name_that_is_not_looked_up_is_denied() -> None:
    """The address rule that would let it through is of no use to who cannot learn the address."""
    settings = read("[policy]\ndefault='deny'\n[[policy.rule]]\nallow='public'\non='tcp/443'")
    expects = (
        Expect(parse_flow("tcp pypi.org:443"), "deny"),
        Expect(parse_flow("tcp 8.8.8.8:443"), "allow"),
    )
    evolve(settings, expects=expects).check_expects(Groups())


def test_rules_of_the_command_line_make_a_policy() -> None:
    """Where one allows, all else is denied; where none does, all else is allowed."""
    lan, code = parse_rule("deny lan"), parse_rule("allow pypi.org on tcp/443")
    assert settings_of_rules([lan, code]).policy == (
        NetworkPolicy.deny_all().deny_group("lan").allow_https("pypi.org")
    )
    assert settings_of_rules([lan]).policy == NetworkPolicy.allow_all().deny_group("lan")


def test_rules_of_the_command_line_come_first_for_every_guest() -> None:
    """What is denied there is denied to the guest with a policy of its own, too."""
    settings = read("[policy]\ndefault='deny'\n[policy.guest.a]\ndefault='allow'\n")
    longer = settings.preceded_by([parse_rule("deny lan")])
    assert longer.policy == NetworkPolicy.deny_all().deny_group("lan")
    assert longer.guests == {"a": NetworkPolicy.allow_all().deny_group("lan")}


def test_a_guest_is_found_by_any_way_of_writing_its_address() -> None:
    """And who has none of its own is told who has."""
    settings = read(
        "[policy]\ndefault='deny'\n[policy.guest.'52:54:00:00:00:0a']\ndefault='allow'\n"
    )
    assert settings.policy_of("52-54-00-00-00-0A") == NetworkPolicy.allow_all()
    assert settings.policy_of(None) == NetworkPolicy.deny_all()
    with pytest.raises(UserError, match="allowed: 52:54:00:00:00:0a"):
        settings.policy_of("x")


@given(
    st.recursive(
        st.one_of(
            st.text(max_size=3),
            st.integers(),
            st.booleans(),
            st.sampled_from(("allow", "deny", "any")),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(
                    ("default", "rule", "guest", "expect", "allow", "on", "flow", "mode", "x")
                ),
                inner,
                max_size=4,
            ),
        ),
    )
)
def test_any_table_is_a_policy_or_a_mistake_of_the_user(table: Any) -> None:
    """Nothing else comes of it."""
    try:
        settings = read_settings(table, "net.toml: ")
    except UserError as error:
        assert str(error).startswith('net.toml: key "policy')  # noqa: PT017
    else:
        assert read(to_toml(settings)) == settings
