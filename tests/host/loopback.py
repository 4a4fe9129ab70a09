"""Scripted guests over the host's real sockets: the gateway stands for 127.0.0.1."""

import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from qemu_usernat.host import tcp
from qemu_usernat.host.addresses import HostAddresses
from qemu_usernat.host.error_queue import ErrorReader
from qemu_usernat.host.icmp import HostPings
from qemu_usernat.host.udp import UdpSockets
from qemu_usernat.nat.echo import EchoFlow
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.udp import UdpMapping
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import Address
from qemu_usernat.wire.packets import ACK
from tests.scripted_guest import ScriptedConnection, ScriptedGuest, ScriptedNetwork, packed

WAIT = 5.0
"""Seconds until a test gives up on its own sockets; nothing waits that long when all is well."""


class LoopbackRoom:
    """A scripted network whose host edge is the real one."""

    def __init__(self, **settings: Any) -> None:
        self.poller = Poller()
        self.stack = ExitStack()
        self.network = ScriptedNetwork(host_loopback=True, **settings)
        self.network.router.edge = self.network.router.connections.edge = self
        self.network.router.datagrams.open_udp = self.open_udp
        self.network.router.pings.open_echo = self.open_echo
        self.counters = self.network.counters
        self.errors = ErrorReader(HostAddresses(clock=lambda: self.network.now))
        self.pings = HostPings(self.poller, self.counters, self.errors)
        self.datagrams = UdpSockets(self.poller, self.counters, self.errors)
        self.guest: ScriptedGuest = self.network.guest()

    # HostEdge

    def dial(self, flow: TcpFlow, address: Address, port: int, ttl: int) -> None:
        assert address == packed("127.0.0.1")
        tcp.dial(flow, address, port, ttl, self.poller, self.network.router.touch, self.errors)

    def dial_unix(self, flow: TcpFlow, path: str) -> None:
        tcp.dial_unix(flow, path, self.poller, self.network.router.touch, self.errors)

    def open_udp(self, mapping: UdpMapping) -> None:
        self.datagrams.open(mapping)

    def open_echo(self, flow: EchoFlow) -> None:
        self.pings.open(flow)

    def flush(self, now: float) -> None:
        self.datagrams.flush(now)

    # turns

    def turn(self) -> None:
        """Wait until a socket is ready, and serve all that are."""
        ready = self.poller.wait(WAIT)
        assert ready, "nothing happens any more"
        self.poller.dispatch(ready, self.network.now)
        self.network.end_turn()

    def is_idle(self) -> bool:
        return not self.poller.wait()

    def settle(self, turns: int = 100) -> None:
        """Turns until nothing is ready: it must come to that."""
        while not self.is_idle():
            self.turn()
            turns -= 1
            assert turns, "the same readiness again and again"

    # servers

    def listen(self, backlog: int = 5) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        listener.settimeout(WAIT)
        return self.stack.enter_context(listener)

    def accept(self, listener: socket.socket) -> socket.socket:
        server, _ = listener.accept()
        server.settimeout(WAIT)
        return self.stack.enter_context(server)

    def udp_server(self) -> socket.socket:
        sock = self.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(WAIT)
        sock.bind(("127.0.0.1", 0))
        return sock

    def connect(
        self, listener: socket.socket, sport: int = 40000
    ) -> tuple[ScriptedConnection, socket.socket]:
        """The guest's end and the server's, after the handshake."""
        port = listener.getsockname()[1]
        connection = ScriptedConnection(self.guest, sport, "10.0.2.2", port)
        self.guest.sends(connection.syn())
        self.turn()
        connection.received = self.guest.hears_one().tcp.sequence + 1
        self.guest.sends(connection.segment(ACK))
        return connection, self.accept(listener)

    def close(self) -> None:
        self.network.router.close()
        self.stack.close()
        self.poller.close()


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def closed_port() -> int:
    """A port of the loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return port_of(listener)


def fails_with(error: int) -> Callable[..., Any]:
    """A system call that fails, whatever it is asked."""

    def call(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    return call


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@contextmanager
def no_descriptors() -> Iterator[None]:
    """The process may open nothing more."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
