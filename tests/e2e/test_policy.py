"""Policies, as a real guest with curl and wget meets them: what is allowed works, what is denied
fails at once and says why, and the console answers all the while.

Each refusal is asserted where the world ends: the servers saw nothing. `arrives` is its twin: the
same command, without the policy.
"""

import pytest

from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.testing import Internet
from qemu_usernat.testing.blocking import Console, Network

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

SHARED, OTHER = "203.0.113.10", "203.0.113.20"
NAMES = ("good.example", "api.good.example", "bad.example")

deny_all, allow_all = NetworkPolicy.deny_all, NetworkPolicy.allow_all


@pytest.fixture(autouse=True)
def world(internet: Internet) -> Internet:
    """Several names on one address, and a host beside them."""
    first, *others = NAMES
    shared = internet.host(first, SHARED, aliases=others)
    other = internet.host("other.example", OTHER)
    for host in (shared, other):
        host.http(lambda request: f"hello {request.headers['host']}")
        host.https(lambda request: f"hello {request.headers['host']}")
    shared.http("hello 8080", port=8080)
    return internet


def requests(internet: Internet) -> int:
    """How many requests any server has seen."""
    return sum(len(host.requests) for host in internet.hosts)


def fetch(console: Console, url: str, program: str = "curl -sS -m 20") -> str:
    """A page, or what the program says instead."""
    return console.exec(f"{program} {url}").text


def arrives(usernat: Network, internet: Internet, console: Console, url: str) -> None:
    """Without a policy the very same comes through."""
    usernat.set_policy(None)
    before = requests(internet)
    assert "hello" in fetch(console, url)
    assert requests(internet) == before + 1


def denied(usernat: Network, internet: Internet, console: Console, url: str, *words: str) -> None:
    """Refused in these words, and not by waiting for 20 seconds; no server has seen an octet; its
    twin arrives."""
    policy, before = usernat.policy, requests(internet)
    already = sum(flow.sent for flow in usernat.flows)
    said = fetch(console, url)
    assert any(word in said for word in words), said
    assert requests(internet) == before
    assert sum(flow.sent for flow in usernat.flows) == already
    arrives(usernat, internet, console, url)
    usernat.set_policy(policy)


REFUSED = "Couldn't connect to server"  # curl's word for a reset
NO_NAME = "Could not resolve host"


def test_policy_allow_https_only(console: Console, usernat: Network, internet: Internet) -> None:
    """What hung in the ancestor: HTTPS works, by curl and wget, and so does the console."""
    usernat.set_policy(deny_all().allow_dns().allow_https())
    assert fetch(console, "https://good.example/") == "hello good.example"
    wget = "wget -q -T 20 -O -"
    assert fetch(console, "https://good.example/", wget) == "hello good.example"
    denied(usernat, internet, console, "http://good.example/", REFUSED)
    for number in range(10):
        assert console.exec(f"echo {number}", timeout=10).text == f"{number}"


def test_policy_deny_specific_port(console: Console, usernat: Network, internet: Internet) -> None:
    """That one, and no other."""
    usernat.set_policy(allow_all().deny_port(8080))
    denied(usernat, internet, console, "http://good.example:8080/", REFUSED)
    assert fetch(console, "http://good.example/") == "hello good.example"


def test_policy_deny_all(console: Console, usernat: Network, internet: Internet) -> None:
    """Not even a name; the gateway answers its pings."""
    usernat.set_policy(deny_all())
    denied(usernat, internet, console, "http://good.example/", NO_NAME)
    denied(usernat, internet, console, f"http://{SHARED}/", REFUSED)
    assert "Packet filtered" in console.exec(f"ping -c 1 -W 5 {SHARED}").text
    assert console.exec("ping -c 1 -W 5 10.0.2.2").status == 0
    assert not usernat.dns_queries.where(name="x.good.example")


def test_policy_allow_dns_only(console: Console, usernat: Network, internet: Internet) -> None:
    """Names, and nothing else."""
    usernat.set_policy(deny_all().allow_dns())
    assert console.exec("dig +short good.example").text == SHARED
    denied(usernat, internet, console, "https://good.example/", REFUSED)


def test_policy_allow_ip(console: Console, usernat: Network, internet: Internet) -> None:
    """One address, whoever it is."""
    usernat.set_policy(deny_all().allow_ip(OTHER))
    assert fetch(console, f"http://{OTHER}/").startswith("hello")
    denied(usernat, internet, console, f"http://{SHARED}/", REFUSED)


def test_policy_allow_all(console: Console, usernat: Network, internet: Internet) -> None:
    """Everything but the floor."""
    usernat.set_policy(allow_all())
    assert fetch(console, "https://bad.example/") == "hello bad.example"
    assert REFUSED in fetch(console, "http://169.254.169.254/latest/meta-data/")
    assert not usernat.flows.where(address="169.254.169.254")


def test_policy_domain_exact(console: Console, usernat: Network, internet: Internet) -> None:
    """The name; neither what is below it nor its neighbour on the same address."""
    usernat.set_policy(deny_all().allow_domain("good.example"))
    assert fetch(console, "https://good.example/") == "hello good.example"
    assert fetch(console, "http://good.example/") == "hello good.example"
    denied(usernat, internet, console, "https://api.good.example/", NO_NAME)
    resolved = f"--resolve bad.example:443:{SHARED} https://bad.example/"
    denied(usernat, internet, console, resolved, "access denied")
    forged = "-H 'Host: bad.example' http://good.example/"
    before = requests(internet)
    assert "Denied by the network policy: bad.example." in fetch(console, forged)
    assert requests(internet) == before


def test_policy_domain_wildcard(console: Console, usernat: Network, internet: Internet) -> None:
    """What is below the name, but not the name itself."""
    usernat.set_policy(deny_all().allow_domain("*.good.example"))
    assert fetch(console, "https://api.good.example/") == "hello api.good.example"
    denied(usernat, internet, console, "https://good.example/", NO_NAME)


def test_policy_domain_with_port(console: Console, usernat: Network, internet: Internet) -> None:
    """On that port only."""
    usernat.set_policy(deny_all().allow_domain("good.example", on="tcp/8080"))
    assert fetch(console, "http://good.example:8080/") == "hello 8080"
    denied(usernat, internet, console, "http://good.example/", REFUSED)


def test_policy_log_then_allow(console: Console, usernat: Network, internet: Internet) -> None:
    """A rule that only notes decides nothing."""
    usernat.set_policy(deny_all().log_domain("good.example").allow_domain("good.example"))
    assert fetch(console, "https://good.example/") == "hello good.example"
    assert usernat.verdicts.where(name="good.example", port=443)[-1].allowed
    usernat.set_policy(deny_all().allow_dns().log_domain("good.example"))
    denied(usernat, internet, console, "https://good.example/", REFUSED)


def test_policy_mixed(console: Console, usernat: Network, internet: Internet) -> None:
    """An address and a name; each by itself."""
    usernat.set_policy(deny_all().allow_ip(OTHER, on="tcp/80").allow_https("good.example"))
    assert fetch(console, f"http://{OTHER}/").startswith("hello")
    assert fetch(console, "https://good.example/") == "hello good.example"
    denied(usernat, internet, console, f"https://{OTHER}/ -k", REFUSED)
    denied(usernat, internet, console, "https://other.example/", NO_NAME)
