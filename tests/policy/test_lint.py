"""Lint: what is likely not meant, and nothing that is."""

import pytest
from hypothesis import given

from qemu_usernat.policy.lint import lint
from qemu_usernat.policy.rules import NetworkPolicy
from tests.policy.policies import GROUPS_HERE, policies


def codes(text: str) -> list[str]:
    """What is found in a policy of these lines: number of the rule, and code."""
    policy = NetworkPolicy.parse(text.replace("; ", "\n"))
    return [f"{flaw.number or 'default'} {flaw.code}" for flaw in lint(policy, GROUPS_HERE)]


@pytest.mark.parametrize(
    "text",
    [
        "default deny",
        "allow *.github.com, pypi.org on tcp/443; default deny",
        "deny 10.0.0.1; allow 10.0.0.0/8; default deny",
        "deny 10.0.0.0, 10.255.255.255; allow 10.0.0.0/8; default deny",
        "deny 10.0.0.0/9; allow 10.0.0.0/8 on 22; default deny",
        "deny 10.0.0.0-10.255.255.254; allow 10.0.0.0/8; default deny",
        "deny any on tcp/1-65535; allow 8.8.8.8; default deny",
        "deny *.b.example; allow *.a.example; log *.c.example; default deny",
        "allow a.example; allow *.a.example; default deny",
        "log any; allow 192.0.2.1 on tcp/22; default deny",
        "allow any on tcp/1-442; allow host, metadata on tcp/80; default deny",
        "deny any; allow host; default deny",
        "allow host.internal on tcp/8000; default deny",
        "allow a.example on udp/123, icmp; default deny",
        "allow public on tcp/22; allow git.example on tcp/22; default deny",
        "allow 1.1.1.1, dns.google on tcp/443; default deny",
        "deny *.co.uk; default deny",
        "allow 8.8.8.8 on udp/53; default deny",
        "deny dns; deny any on tcp/443; default allow",
        "allow private, lan; default deny",
        "allow 223.255.255.255, ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff; default deny",
    ],
)
def test_what_is_meant_is_left_alone(text: str) -> None:
    """Each rule decides something, and lets through what it says."""
    assert codes(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("deny 10.0.0.0/8; allow 10.1.0.0/16; default deny", ["2 unreachable"]),
        ("deny 10.0.0.0/9, 10.128.0.0/9; allow 10.0.0.0/8; default deny", ["2 unreachable"]),
        ("deny 10.0.0.0-10.255.255.255; allow 10.0.0.0/8; default deny", ["2 unreachable"]),
        ("allow private; deny private on tcp/22; default deny", ["2 unreachable"]),
        ("deny private; allow 172.16.0.0/12, 8.8.8.8 on tcp/22; default deny", ["2 unreachable"]),
        ("allow *.a.example; deny b.a.example; default deny", ["2 unreachable"]),
        ("deny *.a.example; allow b.a.example; default deny", ["2 unreachable"]),
        ("allow *.a.example; allow *.b.a.example; default deny", ["2 unreachable"]),
        ("deny public; allow a.example on tcp/443; default deny", ["2 unreachable"]),
        ("allow a.example on tcp; allow a.example on tcp; default deny", ["2 unreachable"]),
        (
            "deny tcp.example on tcp, udp, icmp; log tcp.example on tcp/9; default deny",
            ["2 unreachable"],
        ),
        ("allow a.example on udp/443; default deny", ["1 unreachable"]),
        ("deny dns; allow dns; default deny", ["2 unreachable"]),
        ("deny any on 1-65535, 0, icmp; allow public; default deny", ["2 unreachable"]),
        ("deny ::/0; allow fd00::/8; default deny", ["2 unreachable"]),
        ("allow *.co.uk on tcp/443; default deny", ["1 wildcard"]),
        ("allow *.github.io; allow *.s3.amazonaws.com; default deny", ["1 wildcard", "2 wildcard"]),
        ("allow dns; default deny", ["1 dns"]),
        ("allow any on tcp/443; default deny", ["1 dns-over-https"]),
        ("allow 0.0.0.0/1; default deny", ["1 dns", "1 dns-over-https"]),
        ("allow 8.8.0.0/16 on udp/53; default deny", ["1 dns"]),
        ("allow dns; allow public on 443; default deny", ["1 dns", "2 dns-over-https"]),
        ("default allow", ["default dns", "default dns-over-https"]),
        ("deny *.ads.example; default allow", ["default dns", "default dns-over-https"]),
    ],
)
def test_what_is_likely_not_meant_is_found(text: str, found: list[str]) -> None:
    """With the number of the rule, and a word for what it is."""
    assert codes(text) == found


def test_what_is_found_is_a_sentence() -> None:
    """The place that never decides is named, where others of its rule do."""
    policy = NetworkPolicy.deny_all().rule("deny private").rule("allow fd00::/8, 8.8.8.8 on tcp/22")
    (flaw,) = lint(policy, GROUPS_HERE)
    assert str(flaw) == ("rule 2: unreachable: fd00::/8 never decides: other rules do before it")


def test_a_resolver_below_an_allowed_wildcard_is_found() -> None:
    """Whoever allows a provider's whole domain allows its resolver."""
    policy = NetworkPolicy.deny_all().allow_https("*.nextdns.io", "*.opendns.com")
    (flaw,) = lint(policy, GROUPS_HERE)
    assert (flaw.number, flaw.code) == (1, "dns-over-https")
    assert "doh.opendns.com, dns.nextdns.io" in flaw.text


@given(policies())
def test_every_policy_can_be_looked_at(policy: NetworkPolicy) -> None:
    """Whatever it says, there is an answer, and each is about a rule that there is."""
    for flaw in lint(policy, GROUPS_HERE):
        assert flaw.number is None or 1 <= flaw.number <= len(policy.rules)


def test_a_thousand_places_are_looked_at_in_little() -> None:
    """A list of a thousand names and networks is no reason not to look."""
    policy = NetworkPolicy.deny_all().allow_domain(
        *(f"n{number}.a.example" for number in range(1000)), on="tcp/443"
    )
    policy = policy.allow_ip(*(f"11.0.{n >> 8}.{n & 255}" for n in range(1000)), on="tcp/22")
    assert lint(policy, GROUPS_HERE) == []
