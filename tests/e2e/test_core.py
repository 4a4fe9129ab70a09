"""What a guest must be able to do, by the test harness that we ship, and what it must not.

Each test names in its marker `feature` what it is about; `test_sabotage` switches that off and
expects the test to fail.
"""

import ssl
from contextlib import suppress

import pytest
import trio
import trustme

from qemu_usernat.testing import Internet, Outcome, arp, dhcp, dns, from_guest, icmp, tcp
from qemu_usernat.testing.blocking import Console, Network

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]  # the first builds the image

GATEWAY = "10.0.2.2"
SITE = "203.0.113.10"
NAME = "site.example"


def says(console: Console, command: str) -> str:
    """The output of a command that must succeed."""
    result = console.exec(command)
    assert result.status == 0, f"{command}: status {result.status}: {result.text}"
    return result.text


@pytest.mark.feature("dhcp")
def test_lease(console: Console, usernat: Network) -> None:
    """The guest has the first address of the pool, a default route and the name server."""
    assert "inet 10.0.2.15/24" in says(console, "ip addr show eth0")
    assert f"default via {GATEWAY}" in says(console, "ip route")
    assert "nameserver 10.0.2.3" in says(console, "cat /etc/resolv.conf")
    lease = "udhcpc -i eth0 -s /etc/dhcp.sh -x hostname:guest -n -q -t 3 -T 2"
    assert "lease of 10.0.2.15 obtained" in says(console, lease)
    usernat.capture.assert_some(dhcp)


@pytest.mark.feature("arp")
def test_the_gateway_is_found(console: Console, usernat: Network) -> None:
    """By ARP, anew."""
    says(console, f"ip neigh flush all; arping -c 1 -w 5 -I eth0 {GATEWAY}")
    usernat.capture.assert_some(arp & from_guest)


@pytest.mark.feature("ping of the gateway")
def test_ping_of_the_gateway(console: Console, usernat: Network) -> None:
    """Nobody outside hears of it."""
    assert " 0% packet loss" in says(console, f"ping -c 2 -i 0.2 -W 5 {GATEWAY}")
    assert not usernat.flows


@pytest.mark.feature("ping")
def test_ping_of_a_host(console: Console, internet: Internet, usernat: Network) -> None:
    """A host that answers, its twin that does not, and one that is not there."""
    internet.host(None, SITE)
    internet.host(None, "203.0.113.11").answers_ping = False
    assert " 0% packet loss" in says(console, f"ping -c 2 -i 0.2 -W 5 {SITE}")
    assert "100% packet loss" in console.exec("ping -c 1 -W 1 203.0.113.11").text
    nobody = console.exec("ping -c 1 -W 5 198.51.100.7")
    assert nobody.status != 0
    assert "Packet filtered" in nobody.text
    assert [flow.address for flow in usernat.flows.where(outcome=Outcome.OPEN)] == [SITE]
    assert [note.destination for note in internet.unexpected] == ["198.51.100.7"]


@pytest.mark.feature("dns")
def test_names(console: Console, internet: Internet, usernat: Network) -> None:
    """Over UDP and TCP; one that is not there does not exist, and is told of."""
    internet.host(NAME, SITE)
    internet.dns("long.example", "TXT", *[f'"{number:0200d}"' for number in range(20)])
    assert says(console, f"dig +tries=1 +short {NAME}") == SITE
    assert says(console, f"dig +tcp +short {NAME}") == SITE
    answer = says(console, "dig +bufsize=512 long.example TXT")
    assert "retrying in TCP mode" in answer
    assert answer.count(f"{19:0200d}") == 1
    assert "status: NXDOMAIN" in says(console, "dig missing.example")
    assert {query.transport for query in usernat.dns_queries.where(name=NAME)} == {"udp", "tcp"}
    assert [note.destination for note in internet.unexpected] == ["missing.example"]
    usernat.capture.assert_some(dns & from_guest)


@pytest.mark.feature("tcp")
def test_http(console: Console, internet: Internet, usernat: Network) -> None:
    """A page, by address and by name, with two programs; the site has seen all of them."""
    site = internet.host(NAME, SITE)
    site.http("hello")
    assert says(console, f"curl -sS -m 20 http://{SITE}/") == "hello"
    assert says(console, f"curl -sS -m 20 http://{NAME}/by-name") == "hello"
    assert says(console, f"wget -q -T 20 -O - http://{NAME}/by-wget") == "hello"
    assert [request.path for request in site.requests] == ["/", "/by-name", "/by-wget"]
    assert len(usernat.flows.where(port=80, outcome=Outcome.ENDED)) == 3
    internet.assert_nothing_unexpected()


@pytest.mark.feature("tcp")
def test_https(console: Console, internet: Internet) -> None:
    """TLS holds: the certificate of the internet is trusted, another authority's is not."""
    internet.host(NAME, SITE).https({"/": "hello over TLS"})
    other = internet.host("other.example", "203.0.113.11")
    certificate = trustme.CA().issue_cert("other.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def stranger(stream: trio.abc.HalfCloseableStream) -> None:
        with suppress(trio.BrokenResourceError):  # the guest does not trust it, and says so
            await trio.SSLStream(stream, context, server_side=True).do_handshake()

    other.tcp(443, stranger)
    assert says(console, f"curl -sS -m 30 https://{NAME}/") == "hello over TLS"
    refused = console.exec("curl -sS -m 30 https://other.example/")
    assert refused.status == 60, refused.text  # the peer's certificate cannot be verified


@pytest.mark.feature("refusal")
def test_what_is_not_there_is_refused_at_once(
    console: Console, internet: Internet, usernat: Network
) -> None:
    """A closed port is an error within a second; its twin, once it is open, is none."""
    site = internet.host(NAME, SITE)
    command = f"curl -sS -m 5 -w '%{{time_total}}' http://{SITE}/"
    refused = console.exec(command)
    assert refused.status == 7, refused.text  # could not connect
    assert float(refused.text.split()[-1]) < 1
    usernat.capture.assert_some(tcp.rst & (tcp.port == 80))
    assert [note.port for note in internet.unexpected] == [80]
    site.http("hello")
    assert says(console, command).startswith("hello")


@pytest.mark.feature("udp")
def test_datagrams(console: Console, internet: Internet) -> None:
    """One goes out, its echo comes back; a closed port is told to the program."""
    host = internet.host(None, SITE)
    host.udp(7, lambda payload, source: payload)
    assert (
        says(console, f"echo there and back | socat -T 2 -t 2 - UDP:{SITE}:7") == "there and back"
    )
    words = "(echo one; sleep 0.5; echo two; sleep 0.5)"
    refused = console.exec(f"{words} | socat -t 2 - UDP:{SITE}:9")
    assert refused.status == 1, refused.text
    assert "refused" in refused.text


@pytest.mark.feature("icmp errors")
def test_a_reserved_address_is_refused_by_name(console: Console, usernat: Network) -> None:
    """The gateway says so itself, and nobody outside hears of it."""
    answer = console.exec("ping -c 1 -W 3 240.0.0.1")
    assert "Packet filtered" in answer.text, answer.text
    (verdict,) = usernat.verdicts.where(allowed=False)
    assert (verdict.address, verdict.why) == ("240.0.0.1", "martian")
    assert not usernat.flows
    usernat.capture.assert_some(icmp.code == 13)
