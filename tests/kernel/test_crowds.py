"""Many connections, at once and one after another: nobody waits for others, nothing is left."""

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio

from qemu_usernat.app import Server
from qemu_usernat.config.configuration import Config
from qemu_usernat.config.network import Network
from qemu_usernat.testing.namespace import NamespaceGuest
from tests.kernel.laboratory import GATEWAY, MIB, Laboratory, listen, until

pytestmark = pytest.mark.kernel

BLACK_HOLES = 500


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
                while server.router.flows:  # noqa: ASYNC110 - the router tells nobody
                    await trio.sleep(0.001)
            assert server.router.alarms.earliest() == float("inf")
            assert server.router.datagrams.mappings == {}
        nursery.cancel_scope.cancel()
    server.close()


def test_no_descriptor_is_left_of_200_connections(lab: Laboratory) -> None:
    """The process has as many descriptors afterwards as it had before."""
    server = lab.own_server(1500)
    guest = lab.guest(1500, server=server)
    before = server.descriptors()
    with listen() as host:
        _one_after_another(guest, host, 200)
    until(lambda: server.descriptors() == before, "all descriptors given back")


@pytest.mark.deep
def test_no_memory_is_left_of_20000_connections(lab: Laboratory) -> None:
    """After the first thousand, twenty thousand more cost no memory and no descriptor."""
    server = lab.own_server(1500)
    guest = lab.guest(1500, server=server)
    with listen() as host:
        _one_after_another(guest, host, 1_000)
        descriptors, resident = server.descriptors(), server.resident()
        _one_after_another(guest, host, 20_000)
    until(lambda: server.descriptors() <= descriptors, "all descriptors given back")
    assert server.resident() - resident < 2 * MIB
