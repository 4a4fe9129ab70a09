"""Two servers that are one LAN, each on a host of its own, and a guest's kernel at each.

The hosts are network namespaces; the servers are joined over the wire between these, or by a socket
file, which both can reach.
"""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path

import pytest
from attrs import frozen

from qemu_usernat.testing.namespace import SOCKET_TIMEOUT, NamespaceGuest, connect_unix
from tests.kernel.laboratory import (
    GATEWAY,
    HOST,
    MIB,
    ServerProcess,
    carry,
    receive,
    some_octets,
    until,
)
from tests.kernel.routers import Kernel, kernel, wire

pytestmark = pytest.mark.kernel

MTU = 65520
ADDRESSES = ("10.0.2.15", "10.0.2.150")
"""Each of the half of the subnet that its server leases."""
PORT = 7000
OCTETS = some_octets(MIB)


@frozen
class Side:
    """A host, the server on it, and the guest of that."""

    host: Kernel
    server: ServerProcess
    guest: NamespaceGuest
    address: str


@pytest.fixture(scope="module", params=["unix", "tcp"])
def sides(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Side, Side]]:
    """Joined, with a guest at each."""
    folder = tmp_path_factory.mktemp("joined")
    where = f"unix:{folder}/join" if request.param == "unix" else f"tcp:172.20.0.1:{PORT}"
    with ExitStack() as ends:
        hosts = kernel(ends), kernel(ends)
        wire(hosts[0], "172.20.0.1/30", hosts[1], "172.20.0.2/30")
        options = f"--join-listen={where}", f"--join={where}"
        folders = folder / "one", folder / "two"
        with ThreadPoolExecutor() as pool:
            servers = list(pool.map(started, repeat(ends), folders, hosts, options))
        for server in servers:
            until(lambda each=server: "joined a server" in each.words(), "a join")  # type: ignore[misc]
        guests = [
            ends.enter_context(NamespaceGuest(connect_unix(server.path), MTU, f"{address}/24"))
            for server, address in zip(servers, ADDRESSES, strict=True)
        ]
        one, two = map(Side, hosts, servers, guests, ADDRESSES)
        yield one, two


def started(ends: ExitStack, folder: Path, host: Kernel, option: str) -> ServerProcess:
    """A server on that host."""
    folder.mkdir()
    server = ServerProcess(folder, MTU, (option,), tuple(host.command(())))
    server.start()
    ends.callback(server.end)
    return server


def connection(caller: Side, called: Side) -> tuple[socket.socket, socket.socket]:
    """From one guest to the other: (the caller's end, the other's end)."""
    with called.guest.open_socket() as server:
        server.bind((called.address, 0))
        server.listen()
        ours = caller.guest.connect(server.getsockname())
        theirs, _ = server.accept()
    theirs.settimeout(SOCKET_TIMEOUT)
    return ours, theirs


@pytest.mark.parametrize("way", [1, -1])
def test_guests_ping_each_other(sides: tuple[Side, Side], way: int) -> None:
    """Also with packets as large as the MTU allows, which nobody may break."""
    here, there = sides[::way]
    for size in (56, MTU - 28):
        command = ["ping", "-c", "3", "-i", "0.01", "-M", "do", "-s", str(size), there.address]
        assert " 0% packet loss" in here.guest.run(command)
    said = here.guest.run(["ping", "-c", "1", there.address])
    assert re.search(r"ttl=64 ", said), "there is no router between them"


@pytest.mark.parametrize("way", [1, -1])
def test_a_stream_is_whole_both_ways(sides: tuple[Side, Side], way: int) -> None:
    """Byte for byte, and the other way goes on when the first has ended."""
    ours, theirs = connection(*sides[::way])
    with ours, theirs:
        assert ours.getpeername()[0] == sides[::way][1].address
        assert theirs.getpeername()[0] == sides[::way][0].address
        carry(OCTETS, ours, theirs)
        carry(OCTETS, theirs, ours)


def test_datagrams_are_whole(sides: tuple[Side, Side]) -> None:
    """Of any size; and a port where nobody is says so."""
    here, there = sides
    with there.guest.open_socket(socket.SOCK_DGRAM) as server:
        server.bind((there.address, 0))
        with here.guest.connect(server.getsockname(), socket.SOCK_DGRAM) as client:
            for size in (0, 1, 1472, 9000, MTU - 28):
                client.send(OCTETS[:size])
                octets, peer = server.recvfrom(MTU)
                assert (octets, peer[0]) == (OCTETS[:size], here.address)
                server.sendto(octets, peer)
                assert client.recv(MTU) == octets
            server.close()
            client.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                client.recv(MTU)


def test_each_leaves_by_its_own_host(sides: tuple[Side, Side]) -> None:
    """The gateway has one address at both, and leads each guest to the host of its own server."""
    for number, side in enumerate(sides):
        with side.host.open_socket() as server:
            server.bind((HOST, PORT + 1))
            server.listen()
            for guest in (each.guest for each in sides):
                if guest is side.guest:
                    with guest.connect((GATEWAY, PORT + 1)) as client:
                        accepted, _ = server.accept()
                        with accepted:
                            accepted.sendall(b"%d" % number)
                            assert receive(client, 1) == b"%d" % number
                else:
                    with pytest.raises(ConnectionRefusedError):
                        guest.connect((GATEWAY, PORT + 1))
    for side in sides:
        assert " 0% packet loss" in side.guest.run(["ping", "-c", "1", GATEWAY])
