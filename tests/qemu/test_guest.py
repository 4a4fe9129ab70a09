"""A real Linux under QEMU does over our network what a person would do first."""

import re

import pytest

from qemu_usernat.testing import services
from tests.qemu.room import LONG_TEXT, Guest

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]  # the first builds the image

GATEWAY = "10.0.2.2"
LARGE = 64 << 20  # bytes


def test_lease(guest: Guest) -> None:
    """The guest has the first address of the pool, a default route and the name server."""
    assert "inet 10.0.2.15/24" in guest.run("ip addr show eth0")
    assert f"default via {GATEWAY}" in guest.run("ip route")
    assert "nameserver 10.0.2.3" in guest.run("cat /etc/resolv.conf")


def test_mtu(guest: Guest) -> None:
    """DHCP told the largest MTU, and the guest has taken it."""
    assert "mtu=65520" in guest.run("cat /run/lease")
    assert guest.run("cat /sys/class/net/eth0/mtu") == "65520"


@pytest.mark.parametrize("size", [0, 56, 1473, 8000, 65_492, 65_493, 65_507])
def test_ping_of_the_gateway(guest: Guest, size: int) -> None:
    """Echo replies come at every size, in one frame or in fragments."""
    assert " 0% packet loss" in guest.run(f"ping -c 2 -i 0.2 -W 5 -s {size} {GATEWAY}")


def test_names_over_udp(guest: Guest) -> None:
    """A name of the host's resolver, one of our own zone, and one that is not there."""
    assert guest.run("dig +short a.example") == "192.0.2.1"
    assert guest.run("dig +short gateway.internal") == GATEWAY
    assert "status: NXDOMAIN" in guest.run("dig missing.example")


def test_names_over_tcp(guest: Guest) -> None:
    """TCP is asked for by hand, and by itself for an answer that fits no datagram."""
    assert guest.run("dig +tcp +short a.example") == "192.0.2.1"
    answer = guest.run("dig +bufsize=512 long.example TXT")
    assert "retrying in TCP mode" in answer
    assert answer.count(LONG_TEXT) == 20


def test_http(guest: Guest) -> None:
    """A page, by address and by name, with two programs."""
    greeting = services.GREETING.decode().strip()
    port = guest.ports.http
    assert guest.run(f"curl -sS -m 20 http://{GATEWAY}:{port}/") == greeting
    assert guest.run(f"curl -sS -m 20 http://server.example:{port}/") == greeting
    assert guest.run(f"wget -q -T 20 -O - http://{GATEWAY}:{port}/") == greeting


def test_https(guest: Guest) -> None:
    """TLS holds: a certificate that the guest trusts is accepted, an unknown one is not."""
    url = f"https://{GATEWAY}:{guest.ports.https}/"
    greeting = services.GREETING.decode().strip()
    assert guest.run(f"curl -sS -m 30 --cacert /tmp/ca.pem {url}") == greeting
    status, output = guest.exec(f"curl -sS -m 30 {url}")
    assert status == 60, output  # curl: the peer's certificate cannot be verified


def test_large_transfers(guest: Guest) -> None:
    """64 MiB down and up again, with equal hashes."""
    url = f"http://{GATEWAY}:{guest.ports.http}"
    guest.run(f"curl -sS -m 120 -o /tmp/large {url}/bytes/{LARGE}", timeout=150)
    assert services.digest(LARGE) in guest.run("openssl dgst -sha256 /tmp/large")
    answer = guest.run(f"curl -sS -m 120 -H Expect: -T /tmp/large {url}/", timeout=150)
    assert answer == services.digest(LARGE)
    guest.run("rm /tmp/large")


def test_fifty_connections_at_once(guest: Guest) -> None:
    """Fifty downloads side by side, each whole."""
    size = 1_000_003
    url = f"http://{GATEWAY}:{guest.ports.http}/bytes/{size}"
    urls = " ".join(f"-o /tmp/part.{number} {url}" for number in range(50))
    guest.run(f"curl -sS -m 120 --parallel --parallel-immediate --parallel-max 50 {urls}", 150)
    digests = guest.run(
        "cat /tmp/part.* | wc -c; sha256sum /tmp/part.* | cut -d ' ' -f 1 | sort -u"
    )
    assert digests.split() == [str(50 * size), services.digest(size)]
    guest.run("rm /tmp/part.*")


def test_a_refused_port_is_refused_fast(guest: Guest) -> None:
    """Connecting to a closed port of the host is an error at once, not after a time-out."""
    status, output = guest.exec(f"curl -sS -m 20 http://{GATEWAY}:{guest.ports.refused}/")
    took = re.search(rb"after (\d+) ms", output)
    assert took, output
    assert (status, int(took[1]) < 1000) == (7, True), output
    assert b"refused" in guest.exec(f"socat - TCP:{GATEWAY}:{guest.ports.refused}").output


def test_half_close(guest: Guest) -> None:
    """The guest ends its side; what the host says only then still arrives, and its end too."""
    command = f"head -c 300000 /dev/zero | socat -t 20 - TCP:{GATEWAY}:{guest.ports.count}"
    assert guest.run(command) == "300000 bytes"


@pytest.mark.parametrize("size", [1, 1472, 1473, 9000, 65_507])
def test_datagrams_both_ways(guest: Guest, size: int) -> None:
    """A datagram of any size goes out and its echo comes back the same."""
    guest.run(f"head -c {size} /dev/urandom >/tmp/out")
    address = f"UDP:{GATEWAY}:{guest.ports.udp},so-sndbuf=262144,so-rcvbuf=262144"
    guest.run(f"socat -b 70000 -T 2 -t 2 - {address} </tmp/out >/tmp/in; cmp /tmp/out /tmp/in")


def test_a_closed_port_for_datagrams(guest: Guest) -> None:
    """A closed UDP port of the host is told to the guest, which tells its program."""
    words = "(echo one; sleep 0.5; echo two; sleep 0.5)"
    status, output = guest.exec(f"{words} | socat -t 2 - UDP:{GATEWAY}:{guest.ports.refused}")
    assert (status, b"refused" in output) == (1, True), output


def test_the_console_is_alive_at_the_end(guest: Guest) -> None:
    """After all of it the guest answers, and its kernel has nothing to complain about."""
    assert guest.run("echo alive") == "alive"
    complaints = re.compile("WATCHDOG|timed out|BUG|Oops|hung")
    log = (guest.machine.folder / "kernel.log").read_text(errors="replace")
    assert not complaints.search(log), log
