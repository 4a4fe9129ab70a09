"""Many connections, at once and one after another: nobody waits for others, nothing is left."""

import errno
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio

from qemu_usernat.app import raise_descriptor_limit
from qemu_usernat.config.configuration import Config
from qemu_usernat.config.network import Network
from qemu_usernat.server import Server
from qemu_usernat.testing.namespace import SOCKET_TIMEOUT, NamespaceGuest
from tests.kernel.laboratory import (
    GATEWAY,
    MIB,
    Laboratory,
    ServerProcess,
    carry,
    listen,
    receive,
    some_octets,
    until,
)

pytestmark = pytest.mark.kernel

BLACK_HOLES = 500
AT_ONCE = 2_000


def _alone(lab: Laboratory) -> tuple[ServerProcess, NamespaceGuest]:
    """A server that nobody else uses, with a guest that it knows.

    It may hold a few more descriptors than later: as it starts it asks QEMU for its version.
    """
    server = lab.own_server(1500)
    guest = lab.guest(1500, server=server)
    until(lambda: "guest connected" in server.words(), "the guest's link")
    return server, guest


@contextmanager
def black_hole() -> Iterator[int]:
    """A port of the host that never answers: its queue is full, and nobody accepts."""
    with ExitStack() as ends:
        server = ends.enter_context(listen(backlog=0))
        address = server.getsockname()
        while True:
            filler = ends.enter_context(socket.socket())
            filler.settimeout(0.2)  # a handshake on loopback takes microseconds
            try:
                filler.connect(address)
            except TimeoutError:
                break
        yield address[1]


def test_black_holes_hold_nobody_up(lab: Laboratory) -> None:
    """Five hundred connections that go nowhere, and the next one is made at once."""
    guest = lab.guest(server=lab.own_server(65520))
    with black_hole() as port:
        for _ in range(BLACK_HOLES):
            lost = lab.ends.enter_context(guest.open_socket())
            lost.setblocking(False)
            assert lost.connect_ex((GATEWAY, port)) == errno.EINPROGRESS
        started = time.monotonic()
        ours, theirs = lab.pair(guest)
        ours.sendall(b"hello")
        assert theirs.recv(5) == b"hello"
        assert time.monotonic() - started < 1


def _one_after_another(guest: NamespaceGuest, server: socket.socket, count: int) -> None:
    for _ in range(count):
        with guest.connect((GATEWAY, server.getsockname()[1])) as ours:
            theirs, _ = server.accept()
            with theirs:
                ours.sendall(b"ping")
                assert theirs.recv(4) == b"ping"
                theirs.sendall(b"pong")
                assert ours.recv(4) == b"pong"
                ours.shutdown(socket.SHUT_WR)  # the guest ends first: no TIME-WAIT with us
                assert theirs.recv(1) == b""


async def test_nothing_is_left_of_200_connections() -> None:
    """When its connections have ended, the server holds neither flows nor timers for them."""
    server = Server(Config(network=Network(host_loopback=True), listen=()))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_sockets)
        nursery.start_soon(server.serve_deadlines)
        server.on_connection(ours, "the guest")
        with ExitStack() as ends:
            guest = NamespaceGuest(theirs)
            await trio.to_thread.run_sync(ends.enter_context, guest)
            host = ends.enter_context(listen())
            await trio.to_thread.run_sync(_one_after_another, guest, host, 200)
            with trio.fail_after(5):
                while server.router.connections.flows:  # noqa: ASYNC110 - the router tells nobody
                    await trio.sleep(0.001)
            assert server.router.alarms.earliest() == float("inf")
            assert server.router.datagrams.mappings == {}
        nursery.cancel_scope.cancel()
    server.close()


def test_no_descriptor_is_left_of_200_connections(lab: Laboratory) -> None:
    """The process has as many descriptors afterwards as it had before."""
    server, guest = _alone(lab)
    before = server.descriptors()
    with listen() as host:
        _one_after_another(guest, host, 200)
    until(lambda: server.descriptors() <= before, "all descriptors given back")


def test_2000_connections_at_once(lab: Laboratory) -> None:
    """Two thousand calls at the same moment: each is answered, with its own octets both ways."""
    raise_descriptor_limit()
    server, guest = _alone(lab)
    before = server.descriptors()
    with listen(AT_ONCE) as host, ExitStack() as ends:
        near = [ends.enter_context(guest.open_socket()) for _ in range(AT_ONCE)]
        for ours in near:
            ours.setblocking(False)
            assert ours.connect_ex((GATEWAY, host.getsockname()[1])) == errno.EINPROGRESS
        far = [ends.enter_context(host.accept()[0]) for _ in range(AT_ONCE)]
        for number, ours in enumerate(near):
            ours.settimeout(SOCKET_TIMEOUT)
            ours.sendall(number.to_bytes(2, "big") * 1_000)
        for theirs in far:
            said = receive(theirs, 2_000)
            assert said == said[:2] * 1_000
            theirs.sendall(said * 5)
        for number, ours in enumerate(near):
            assert receive(ours, 10_000) == number.to_bytes(2, "big") * 5_000
    until(lambda: server.descriptors() <= before, "all descriptors given back")


def test_a_frozen_guest_costs_no_memory(lab: Laboratory) -> None:
    """While a paused machine takes nothing, its downloads wait with their servers, not here."""
    server, guest = _alone(lab)
    pairs = [lab.pair(guest) for _ in range(50)]
    for ours, theirs in pairs:  # long enough for the guest's windows to have opened
        carry(some_octets(2 * MIB), theirs, ours, end=False)
    resident = server.resident()
    guest.stop_reading()
    for _, theirs in pairs:
        theirs.setblocking(False)
    silent_since = time.monotonic()
    while time.monotonic() - silent_since < 0.5:
        for theirs in select.select([], [theirs for _, theirs in pairs], [], 0.1)[1]:
            theirs.send(bytes(MIB))
            silent_since = time.monotonic()
    assert server.resident() - resident < 8 * MIB
    assert server.report()["link.queue_full"] == 0
    guest.resume_reading()


def _open_every_port(guest: NamespaceGuest) -> None:
    """A guest that ends first cannot use the port again for a minute; it has 28,000 otherwise."""
    guest.run(["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"])


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_nothing_is_left_of_50000_connections(lab: Laboratory) -> None:
    """Once the interpreter has settled, which takes it 2 MiB and some 15,000 connections (as
    measured), fifty thousand more cost no memory and no descriptor."""
    server, guest = _alone(lab)
    _open_every_port(guest)
    with listen() as host:
        _one_after_another(guest, host, 20_000)
        descriptors, resident = server.descriptors(), server.resident()
        _one_after_another(guest, host, 50_000)
    until(lambda: server.descriptors() <= descriptors, "all descriptors given back")
    assert server.resident() - resident < MIB
