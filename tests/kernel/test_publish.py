"""Published ports between three kernels: a client's, the host's, and a guest's behind our server.

The client is on another machine than the server, so that it has an address of its own to be seen.
"""

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import dns.message
import dns.rrset
import pytest
from attrs import define, field

from qemu_usernat.testing.namespace import SOCKET_TIMEOUT, NamespaceGuest, connect_unix
from qemu_usernat.testing.tap import DEVICE
from tests.kernel.laboratory import (
    MIB,
    ServerProcess,
    carry,
    receive,
    some_octets,
    until,
)
from tests.kernel.routers import Kernel, kernel, wire

pytestmark = pytest.mark.kernel

HOST, CLIENT = "172.20.7.1", "172.20.7.2"
SECOND_HOST = "172.20.7.9"
GATEWAY, GUEST = "10.0.2.2", "10.0.2.15"


@define(eq=False)
class Place:
    """The host with our server on it, and the client's machine beside it."""

    folder: Path
    ends: ExitStack
    host: Kernel = field(init=False)
    client: Kernel = field(init=False)
    device: str = field(init=False)
    server: ServerProcess = field(init=False)
    resident: NamespaceGuest = field(init=False)
    """A guest that is there before the test, where there is one."""

    def __attrs_post_init__(self) -> None:
        self.host, self.client = kernel(self.ends), kernel(self.ends)
        self.device = wire(self.host, f"{HOST}/24", self.client, f"{CLIENT}/24")

    def serve(self, *options: str, mtu: int = 1500) -> None:
        """With these options; in the host's namespace."""
        self.server = ServerProcess(self.folder, mtu, options, tuple(self.host.command(())))
        self.server.start()
        self.ends.callback(self.server.end)

    def guest(self, address: str | None = f"{GUEST}/24") -> NamespaceGuest:
        links = self.server.words().count("guest connected")
        wire = connect_unix(self.server.path)
        guest = self.ends.enter_context(NamespaceGuest(wire, self.server.mtu, address))
        until(lambda: self.server.words().count("guest connected") > links, "the guest's link")
        return guest

    def connect(self, port: int, where: Kernel | None = None, to: str = HOST) -> socket.socket:
        """A client's connection; OSError as connect(2) has it."""
        sock = self.ends.enter_context((where or self.client).open_socket())
        sock.connect((to, port))
        return sock

    def listening(self, guest: NamespaceGuest, port: int = 80) -> socket.socket:
        """A server in the guest."""
        server = self.ends.enter_context(guest.open_socket())
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen(512)
        return server

    def accept(self, server: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
        """The next of its clients."""
        connection, peer = server.accept()
        connection.settimeout(SOCKET_TIMEOUT)
        return self.ends.enter_context(connection), peer


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """For one test."""
    with ExitStack() as ends:
        yield Place(tmp_path, ends)


@pytest.fixture(scope="module")
def _town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as ends:
        town = Place(tmp_path_factory.mktemp("town"), ends)
        town.host.ip(f"address add {SECOND_HOST}/24 dev {town.device}")
        tcp = ("8080:80", "8081:81", "5353:53")
        udp = ("udp:7007:7", "udp:5353:53", "udp:6767:67", "udp:6868:68")
        town.serve(*(word for each in (*tcp, *udp) for word in ("--publish", each)))
        town.resident = town.guest()
        yield town


@pytest.fixture
def town(_town: Place) -> Iterator[Place]:
    """With a server and a guest that tests share; what one of them opens ends with it."""
    kept = _town.ends
    with ExitStack() as _town.ends:
        yield _town
    _town.ends = kept


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_the_guest_sees_its_clients_address(town: Place) -> None:
    """Address and port, as the client has them itself; and octets go both ways."""
    server = town.listening(town.resident)
    ours = town.connect(8080)
    theirs, peer = town.accept(server)
    assert peer == ours.getsockname() == (CLIENT, ours.getsockname()[1])
    assert theirs.getsockname() == (GUEST, 80)
    ours.sendall(b"question")
    assert receive(theirs, 8) == b"question"
    theirs.sendall(b"answer")
    assert receive(ours, 6) == b"answer"


def test_on_request_and_from_the_hosts_loopback_it_sees_the_gateway(town: Place) -> None:
    """127.0.0.1 is the guest's own; and who asks for it hides all clients."""
    server = town.listening(town.resident)
    town.connect(8080, town.host, "127.0.0.1")
    assert town.accept(server)[1][0] == GATEWAY
    town.connect(8080, town.host, HOST)  # an address of the host's that is seen as it is
    assert town.accept(server)[1][0] == HOST


def test_hidden_clients(place: Place) -> None:
    """All of them are the gateway, each at a port of its own, and also of a path."""
    path = place.folder / "web.sock"
    place.serve(
        "--publish-source", "gateway", "--publish", "8080:80", "--publish", f"unix:{path}:80"
    )
    guest = place.guest()
    server = place.listening(guest)
    peers = []
    for _ in range(2):
        place.connect(8080)
        peers.append(place.accept(server))
    with connect_unix(path) as ours:
        peers.append(place.accept(server))
        assert {peer[0] for _, peer in peers} == {GATEWAY}
        assert len({peer[1] for _, peer in peers}) == 3
        carry(some_octets(MIB), ours, peers[2][0])
        carry(some_octets(MIB), peers[2][0], ours)
    assert path.stat().st_mode & 0o777 == 0o600


def _carries_both_ways(place: Place, guest: NamespaceGuest, octets: bytes) -> None:
    server = place.listening(guest)
    ours = place.connect(8080)
    theirs, _ = place.accept(server)
    carry(octets, ours, theirs)
    carry(octets, theirs, ours)
    assert theirs.recv(1) == ours.recv(1) == b""


def test_megabytes_arrive_as_they_were_sent(town: Place) -> None:
    """Both ways, each with its own end; the other way goes on meanwhile."""
    _carries_both_ways(town, town.resident, some_octets(8 * MIB))


def test_megabytes_arrive_in_large_frames(place: Place) -> None:
    """At an MTU of 65520."""
    place.serve("--publish", "8080:80", mtu=65520)
    _carries_both_ways(place, place.guest(), some_octets(32 * MIB))


def test_200_clients_at_once(town: Place) -> None:
    """Each hears its own words, and nothing of them is left afterwards."""
    server = town.listening(town.resident)

    def echo(connection: socket.socket) -> None:
        while words := connection.recv(65536):
            connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)

    def answer_all() -> None:
        for _ in range(200):
            connection, _ = town.accept(server)
            threading.Thread(target=echo, args=[connection]).start()

    serving = threading.Thread(target=answer_all)
    serving.start()
    clients = [town.connect(8080) for _ in range(200)]

    def talk(number: int) -> bytes:
        clients[number].sendall(f"{number:05}".encode() * 1000)
        clients[number].shutdown(socket.SHUT_WR)
        return receive(clients[number], 5000) + clients[number].recv(1)

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(talk, range(200))) == [
            f"{number:05}".encode() * 1000 for number in range(200)
        ]
    serving.join()
    until(lambda: not town.server.report()["flows.ESTABLISHED"], "the end of all flows")


def test_a_closed_port_is_a_reset_and_so_is_a_guest_that_hangs_up(town: Place) -> None:
    """Our kernel has accepted the client before we know; what it hears is the guest's word."""
    server = town.listening(town.resident)
    with pytest.raises(ConnectionResetError):
        town.connect(8081).recv(1)
    ours = town.connect(8080)
    theirs, _ = town.accept(server)
    reset(theirs)
    with pytest.raises(ConnectionResetError):
        ours.recv(1)
    ours = town.connect(8080)
    theirs, _ = town.accept(server)
    reset(ours)
    with theirs, pytest.raises(ConnectionResetError):
        theirs.recv(1)


def test_a_client_waits_for_a_guest_that_comes(place: Place) -> None:
    """It has connected before there is any guest; the guest has said nothing, and is asked for."""
    place.serve("--publish", "8080:80")
    ours = place.connect(8080)
    ours.sendall(b"early")
    until(lambda: place.server.report()["publish_waiting"] == 1, "a client that waits")
    guest = place.guest(address=None)
    lines = f"address add 10.0.2.77/24 dev {DEVICE}\nroute add default via {GATEWAY}"
    guest.run(["ip", "-batch", "-"], input=lines)
    theirs, peer = place.accept(place.listening(guest))
    assert receive(theirs, 5) == b"early"
    assert peer[0] == CLIENT


def test_a_port_survives_the_guests_link(place: Place) -> None:
    """A link that is gone takes its guest with it; who comes at another is found there."""
    place.serve("--publish", "8080:80")
    for address in ("10.0.2.15/24", "10.0.2.16/24"):
        guest = place.guest(address)
        server = place.listening(guest)
        gone = place.server.words().count("guest disconnected")
        place.connect(8080)
        theirs, _ = place.accept(server)
        assert theirs.getsockname()[0] == address[:-3]
        guest.__exit__(None, None, None)
        until(
            lambda: place.server.words().count("guest disconnected") > gone,  # noqa: B023
            "the end of the link",
        )


def test_a_port_that_is_in_use_names_who_holds_it(place: Place) -> None:
    """The server does not start, and says what a person can do."""
    with place.host.open_socket() as other:
        other.bind(("", 8080))
        other.listen()
        serve = [sys.executable, "-m", "qemu_usernat", "serve", "--listen"]
        words = [*serve, f"unix:{place.folder}/a.sock", "--publish", "127.0.0.1:8080:80"]
        done = subprocess.run(place.host.command(words), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    holder = Path("/proc/self/comm").read_text().strip()
    assert (
        f"cannot publish tcp:127.0.0.1:8080: in use by {holder} (pid {os.getpid()}); end that, "
        "or choose another port" in done.stderr
    )


def test_datagrams_find_their_clients(town: Place) -> None:
    """An echo in the guest sees each client's address; the answer comes from where it wrote to,
    also where the host has several addresses, and at any size."""
    echo = town.ends.enter_context(town.resident.open_socket(socket.SOCK_DGRAM))
    echo.bind(("", 7))
    for kernel_of, to, seen in (
        (town.client, HOST, CLIENT),
        (town.client, SECOND_HOST, CLIENT),
        (town.host, "127.0.0.1", GATEWAY),
    ):
        ours = town.ends.enter_context(kernel_of.open_socket(socket.SOCK_DGRAM))
        ours.connect((to, 7007))  # hears nobody else
        for size in (1, 1400, 65507):
            ours.send(some_octets(size))
            octets, peer = echo.recvfrom(65535)
            assert peer[0] == seen
            echo.sendto(octets, peer)
            assert ours.recv(65535) == some_octets(size)
    assert town.server.report()["visits"] >= 3


def test_dns_of_a_guest_and_dns_for_it(town: Place) -> None:
    """Its own name server is asked from outside, while the guest asks ours; so are DHCP's ports."""
    guest = town.resident
    datagrams = town.ends.enter_context(guest.open_socket(socket.SOCK_DGRAM))
    datagrams.bind(("", 53))
    streams = town.listening(guest, 53)

    def name_server() -> None:
        question, peer = datagrams.recvfrom(65535)
        datagrams.sendto(_answer(question), peer)
        stream, _ = town.accept(streams)
        question = receive(stream, int.from_bytes(receive(stream, 2), "big"))
        answer = _answer(question)
        stream.sendall(len(answer).to_bytes(2, "big") + answer)

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(name_server)
        dig = ["dig", f"@{HOST}", "-p", "5353", "+short", "+tries=1", "+time=10", "web.test"]
        assert town.client.run(*dig).strip() == "192.0.2.80"
        assert town.client.run(*dig, "+tcp").strip() == "192.0.2.80"
        serving.result()
    own = ["dig", f"@{GATEWAY}", "+short", "+tries=1", "gateway.internal"]
    assert guest.run(own).strip() == GATEWAY
    guest.run(["ping", "-c", "1", "-W", "5", GATEWAY])


def _answer(question: bytes) -> bytes:
    query = dns.message.from_wire(question)
    response = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text("web.test.", 60, "IN", "A", "192.0.2.80"))
    return response.to_wire()


@pytest.mark.deep
def test_a_gibibyte_arrives_as_it_was_sent(place: Place) -> None:
    """Both ways, on one connection."""
    place.serve("--publish", "8080:80", mtu=65520)
    server = place.listening(place.guest())
    ours = place.connect(8080)
    theirs, _ = place.accept(server)
    octets = some_octets(32 * MIB)
    for source, sink in ((ours, theirs), (theirs, ours)):
        for _ in range(32):
            carry(octets, source, sink, end=False)
