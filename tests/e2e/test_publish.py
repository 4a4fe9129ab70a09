"""Ports of a real guest, called from this host: what the ancestor's stubs promised.

Each test names in its marker `feature` what it is about; `test_sabotage` switches that off and
expects the test to fail.
"""

import socket
import urllib.request
from contextlib import ExitStack

import dns.message
import dns.query
import pytest

from qemu_usernat import NetworkPolicy
from qemu_usernat.testing import Internet, Outcome
from qemu_usernat.testing.blocking import Console, Machine, Network
from qemu_usernat.testing.namespace import why_not
from tests.kernel.laboratory import MIB, carry, receive, some_octets
from tests.kernel.routers import kernel, this_kernel, wire

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]  # the first builds the image

GATEWAY = "10.0.2.2"
SITE = "203.0.113.10"
NAME_SERVER = rb"""
# The question comes back with one A record: the identifier, a response of no error, one of each.
cat >/tmp/question
{
    head -c 2 /tmp/question
    printf '\201\200\0\1\0\1\0\0\0\0'
    tail -c +13 /tmp/question
    printf '\300\014\0\1\0\1\0\0\0\074\0\4\300\0\2\120'
} >/tmp/answer
cat /tmp/answer
"""
HERE, CLIENT = "172.20.8.1", "172.20.8.2"


def says(console: Console, command: str) -> str:
    """The output of a command that must succeed."""
    result = console.exec(command)
    assert result.status == 0, f"{command}: status {result.status}: {result.text}"
    return result.text


def serves(console: Console, port: int, text: str) -> None:
    """A web server in the guest, with a log."""
    says(console, f"mkdir -p /tmp/{port}; echo -n {text} > /tmp/{port}/index.html")
    says(console, f"busybox httpd -f -vv -p {port} -h /tmp/{port} > /tmp/{port}.log 2>&1 &")
    says(console, f"until busybox netstat -ltn | grep -q ':{port} '; do sleep 0.1; done")


def fetch(address: tuple[str, int]) -> str:
    """The page at a published address."""
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/", timeout=30) as page:
        return str(page.read().decode())


@pytest.mark.feature("published tcp")
def test_port_forward_tcp(console: Console, usernat: Network) -> None:
    """A page of the guest; its log has who came. Once it is taken back nobody comes in."""
    serves(console, 8001, "hello")
    published = usernat.publish(8001)
    assert fetch(published.address) == "hello"
    assert GATEWAY in says(console, "cat /tmp/8001.log")
    usernat.unpublish(published)
    with pytest.raises(OSError, match="refused"):
        fetch(published.address)


@pytest.mark.feature("published udp")
def test_port_forward_udp(console: Console, usernat: Network) -> None:
    """Its echo, of one octet and of a datagram in fragments; two clients hear their own."""
    says(console, "socat UDP-LISTEN:8002,fork EXEC:cat >/dev/null 2>&1 &")
    says(console, "until busybox netstat -lun | grep -q ':8002 '; do sleep 0.1; done")
    address = usernat.publish(8002, protocol="udp").address
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        for client, payload in ((one, b"1"), (two, b"2" * 4000)):
            client.settimeout(20)
            client.connect(address)
            client.send(payload)
            assert client.recv(65535) == payload
        one.send(b"again")
        assert one.recv(65535) == b"again"


@pytest.mark.feature("published udp")
def test_a_name_server_in_the_guest_is_asked_from_outside(
    console: Console, usernat: Network
) -> None:
    """Its own DNS, at a port of the host; the gateway's is the guest's as before."""
    console.write_file("/tmp/names", NAME_SERVER)
    says(console, "socat UDP-RECVFROM:8012,fork EXEC:'sh /tmp/names' >/dev/null 2>&1 &")
    says(console, "until busybox netstat -lun | grep -q ':8012 '; do sleep 0.1; done")
    host, port = usernat.publish(8012, protocol="udp").address
    question = dns.message.make_query("web.test", "A")
    answer = dns.query.udp(question, host, timeout=20, port=port)
    assert [item.address for item in answer.answer[0]] == ["192.0.2.80"]
    assert GATEWAY in says(console, "nslookup gateway.internal")


@pytest.mark.feature("published tcp")
def test_port_forward_multiple(console: Console, usernat: Network) -> None:
    """Several ports, each to its own server; one that is closed in the guest is a reset."""
    pages = {8003: "three", 8004: "four", 8005: "five"}
    for port, text in pages.items():
        serves(console, port, text)
    published = {port: usernat.publish(port) for port in pages}
    assert {port: fetch(each.address) for port, each in published.items()} == pages
    with (
        socket.create_connection(usernat.publish(9999).address, 10) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.recv(1)


@pytest.mark.feature("published tcp")
def test_port_forward_with_policy(console: Console, internet: Internet, usernat: Network) -> None:
    """The guest may reach nobody, and its server is reached; its own way out stays shut."""
    internet.host(None, SITE).http("outside")
    usernat.set_policy(NetworkPolicy.deny_all())
    serves(console, 8006, "inside")
    assert fetch(usernat.publish(8006).address) == "inside"
    assert console.exec(f"curl -sS -m 5 http://{SITE}/").status != 0
    assert not usernat.flows.where(outcome=Outcome.ENDED)
    usernat.set_policy(None)
    assert says(console, f"curl -sS -m 20 http://{SITE}/") == "outside"


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "")
@pytest.mark.feature("published tcp")
def test_the_guests_log_has_its_clients_address(console: Console, usernat: Network) -> None:
    """The client is on another machine, a namespace with an address of its own."""
    serves(console, 8008, "hello")
    with ExitStack() as ends:
        other = kernel(ends)
        wire(this_kernel(ends), f"{HERE}/24", other, f"{CLIENT}/24")
        address = usernat.publish(8008, host=(HERE, 0)).address
        with other.open_socket() as client:
            client.connect(address)
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"hello")
    log = says(console, "cat /tmp/8008.log")
    assert CLIENT in log
    assert GATEWAY not in log


@pytest.mark.feature("published tcp")
def test_who_has_come_is_cut_where_that_is_asked_for(console: Console, usernat: Network) -> None:
    """A connection to the guest of that name goes on when its port is taken back, or is reset; the
    guest's end, too."""
    says(console, "socat TCP4-LISTEN:8009,fork EXEC:cat >/dev/null 2>&1 &")
    says(console, "until busybox netstat -ltn | grep -q ':8009 '; do sleep 0.1; done")
    for cut in (False, True):
        published = usernat.publish(8009, guest=usernat.guests[0])
        with socket.create_connection(published.address, 20) as client:
            client.sendall(b"1")
            assert client.recv(1) == b"1"
            usernat.unpublish(published, cut=cut)
            if cut:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            else:
                client.sendall(b"2")
                assert client.recv(1) == b"2"
    says(console, "while busybox netstat -tn | grep ':8009 .*ESTAB'; do sleep 0.1; done")


def echoes(console: Console, port: int) -> None:
    """A server in the guest that says again what it hears."""
    says(console, f"socat TCP4-LISTEN:{port},fork,backlog=256 EXEC:cat,nofork >/dev/null 2>&1 &")
    says(console, f"until busybox netstat -ltn | grep -q ':{port} '; do sleep 0.1; done")


def test_two_hundred_clients_at_once(console: Console, usernat: Network) -> None:
    """They connect before any of them speaks, and each has its own answer."""
    echoes(console, 8010)
    address = usernat.publish(8010).address
    with ExitStack() as ends:
        clients = [ends.enter_context(socket.create_connection(address, 60)) for _ in range(200)]
        words = [f"I am client {number} of 200.".encode() for number in range(200)]
        for client, word in zip(clients, words, strict=True):
            client.sendall(word)
        for client, word in zip(clients, words, strict=True):
            assert receive(client, len(word)) == word


def test_a_gibibyte_goes_in_and_comes_out(console: Console, usernat: Network) -> None:
    """At the same time, on one connection, octet by octet as it was sent."""
    echoes(console, 8011)
    octets = some_octets(32 * MIB)
    with socket.create_connection(usernat.publish(8011).address, 60) as client:
        for _ in range(32):
            carry(octets, client, client, end=False)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


@pytest.mark.feature("published tcp")
def test_a_published_port_survives_qemu_and_the_guest(
    console: Console, vm: Machine, usernat: Network
) -> None:
    """QEMU is disconnected, its card is plugged in again, and a client that came meanwhile is
    served; so is one after a reboot."""
    serves(console, 8007, "before")
    address = usernat.publish(8007).address
    assert fetch(address) == "before"
    usernat.disconnect()
    vm.wait_for_event("NETDEV_STREAM_DISCONNECTED")
    vm.detach_network()
    with socket.create_connection(address, 30) as early:
        early.sendall(b"GET / HTTP/1.0\r\n\r\n")
        vm.attach_network()
        usernat.wait_connected()
        appears = "until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done; ip link set eth0 up"
        says(console, f"{appears}; udhcpc -i eth0 -s /etc/dhcp.sh -n -q -t 5 -T 2")
        assert early.makefile("rb").read().endswith(b"before")
    vm.reset()
    serves(console, 8007, "after")
    assert fetch(address) == "after"
