"""A server with the hermetic internet behind it, and a guest whose kernel is a few lines of TCP.

All in one process and on one clock: the wire is a socket pair, which loses nothing.
"""

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

from qemu_usernat.config.configuration import Config
from qemu_usernat.config.network import Network
from qemu_usernat.primitives.sequence import difference
from qemu_usernat.server import Server
from qemu_usernat.testing.internet import Internet
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, TcpSegment
from tests.scripted_guest import GUEST, GUEST_MAC, Heard, ScriptedGuest, ScriptedNetwork

WAIT = 600.0
"""Seconds, mostly of a clock that jumps, until a test gives up."""

ADDRESS = "203.0.113.10"  # of example.com
SEGMENT = 1460  # octets
WINDOW = 64000  # octets that the guest offers


Test = TypeVar("Test", bound=Callable[..., Awaitable[None]])


def jumping(test: Test) -> Callable[..., None]:
    """An asynchronous test, on a clock that jumps to whatever happens next."""

    @wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        trio.run(partial(test, *arguments, **fixtures), clock=MockClock(autojump_threshold=0))

    return run


class Guest:
    """A guest's kernel at its end of the wire."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.says: ScriptedGuest = ScriptedNetwork(mtu=1500).guest(GUEST_MAC, GUEST)
        self.connections: dict[tuple[str, int, int], GuestConnection] = {}
        self._stream = stream
        self._sending = trio.Lock()
        self._put, self._heard = trio.open_memory_channel[Heard](math.inf)
        self._ports = iter(range(40000, 60000))

    async def run(self) -> None:
        """Listen, for ever."""
        async for octets in self._stream:
            self.says.stream += octets
            whole = _whole_frames(self.says.stream)
            rest = self.says.stream[whole:]
            del self.says.stream[whole:]
            for heard in self.says.hears():
                await self._on_heard(heard)
            self.says.stream += rest

    async def _on_heard(self, heard: Heard) -> None:
        if isinstance(heard.content, TcpSegment):
            segment = heard.content
            key = heard.source, segment.source_port, segment.destination_port
            await self.connections[key].on_segment(segment)
        else:
            self._put.send_nowait(heard)

    async def sends(self, *frames: bytes) -> None:
        octets = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
        async with self._sending:
            await self._stream.send_all(octets)

    async def hears(self) -> Heard:
        """The next packet that is not TCP."""
        return await self._heard.receive()

    async def connects(
        self, port: int, address: str = ADDRESS, window: int = WINDOW
    ) -> "GuestConnection":
        """A handshake; `was_reset` says that it was refused."""
        connection = await self.begins_to_connect(port, address, window)
        await connection.until(lambda: connection.established or connection.was_reset)
        return connection

    async def begins_to_connect(
        self, port: int, address: str = ADDRESS, window: int = WINDOW
    ) -> "GuestConnection":
        connection = GuestConnection(self, next(self._ports), address, port, window)
        self.connections[address, port, connection.sport] = connection
        await connection.says(SYN, options=b"\2\4" + SEGMENT.to_bytes(2, "big"))
        connection.sent += 1
        return connection


def _whole_frames(stream: bytearray) -> int:
    """Octets of `stream` up to the end of its last whole frame."""
    at = 0
    while at + 4 <= len(stream):
        end = at + 4 + int.from_bytes(stream[at : at + 4], "big")
        if end > len(stream):
            break
        at = end
    return at


class GuestConnection:
    """One end of a TCP connection on a wire that loses nothing."""

    def __init__(self, guest: Guest, sport: int, address: str, port: int, window: int) -> None:
        self.guest = guest
        self.sport, self.address, self.port = sport, address, port
        self.window = window
        self.sent = self._acknowledged = 1000
        self._edge = 0
        """The sequence number before which we may send."""
        self._next = 0
        """That which we expect next."""
        self.received = bytearray()
        self.established = self.was_reset = self.ended = False
        self.heard = trio.Event()

    async def says(self, flags: int, payload: bytes = b"", options: bytes = b"") -> None:
        frame = self.guest.says.segment(
            self.sport, self.address, self.port, flags, self.sent, self._next, self.window, payload,
            options=options,
        )  # fmt: skip
        await self.guest.sends(frame)

    async def on_segment(self, segment: TcpSegment) -> None:
        self._take(segment)
        if not self.was_reset and (
            segment.payload or segment.flags & (SYN | FIN) or segment.sequence != self._next
        ):
            await self.says(ACK)
        self.heard.set()
        self.heard = trio.Event()

    def _take(self, segment: TcpSegment) -> None:
        if segment.flags & RST:
            self.was_reset = True
            return
        if segment.flags & SYN:
            self.established = True
            self._next = segment.sequence + 1
        self._acknowledged = max(self._acknowledged, segment.acknowledgment)
        self._edge = max(self._edge, segment.acknowledgment + segment.window)
        ahead = difference(segment.sequence, self._next)
        assert ahead <= 0 or segment.flags & SYN, "a gap"
        if segment.flags & SYN or self.ended:
            return
        fresh = segment.payload[-ahead:] if ahead else segment.payload
        if fresh and self.window:
            self.received += fresh
            self._next = (self._next + len(fresh)) % (1 << 32)
        if segment.flags & FIN and (self.window or not fresh):
            self.ended = True
            self._next = (self._next + 1) % (1 << 32)

    # what a program in the guest does

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.heard.wait()

    async def send_all(self, octets: bytes) -> None:
        """Within the window that we are offered."""
        while octets and not self.was_reset:
            room = min(self._edge - self.sent, SEGMENT)
            if room <= 0:
                await self.heard.wait()
                continue
            piece, octets = octets[:room], octets[room:]
            await self.says(ACK | PSH, piece)
            self.sent += len(piece)

    async def send_eof(self) -> None:
        await self.says(ACK | FIN)
        self.sent += 1

    async def resets(self) -> None:
        await self.says(RST | ACK)
        self.was_reset = True
        self.heard.set()

    async def opens_window(self, window: int = WINDOW) -> None:
        self.window = window
        await self.says(ACK)

    async def receives(self, length: int) -> bytes:
        """Exactly so many octets."""
        await self.until(lambda: len(self.received) >= length or self.ended or self.was_reset)
        octets = bytes(self.received[:length])
        del self.received[:length]
        return octets

    async def receives_until(self, end: bytes) -> bytes:
        """Up to the first `end`."""
        await self.until(lambda: end in self.received or self.ended or self.was_reset)
        return await self.receives(self.received.index(end) + len(end))

    async def receives_anything(self) -> None:
        await self.until(lambda: bool(self.received) or self.ended or self.was_reset)

    async def receives_all(self) -> bytes:
        """What comes until the server's end, or its reset."""
        await self.until(lambda: self.ended or self.was_reset)
        return bytes(self.received)


class GuestStream(trio.abc.Stream):
    """A connection as a stream, for what trio lays over one."""

    def __init__(self, connection: GuestConnection) -> None:
        self.connection = connection

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.connection.send_all(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self.connection.receives_anything()
        return await self.connection.receives(len(self.connection.received))

    async def aclose(self) -> None:
        await self.connection.send_eof()


@asynccontextmanager
async def guest_of(server: Server) -> AsyncIterator[Guest]:
    """A guest plugged into `server`, until the block ends."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    server.on_connection(theirs, "guest")
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    guest = Guest(stream)
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(guest.run)
        yield guest
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def server_of(internet: Internet) -> AsyncIterator[Server]:
    """A network with `internet` behind it, until the block ends."""
    server = Server(Config(network=Network(mtu=1500)), make_world=internet.make_world)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_sockets)
            nursery.start_soon(server.serve_deadlines)
            yield server
            nursery.cancel_scope.cancel()
    finally:
        server.close()
    assert server.counters["server.bug"] == 0


@asynccontextmanager
async def guest_with(internet: Internet) -> AsyncIterator[Guest]:
    """A guest whose world is `internet`."""
    with trio.fail_after(WAIT):
        async with internet.running(), server_of(internet) as server, guest_of(server) as guest:
            yield guest
