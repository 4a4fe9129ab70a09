"""What the test holds of a connection of the fake guest, and what the engine holds of it.

`Socket` is the engine's host half: two buffers in memory where a kernel's would be. `TcpStream` is
the test's end of these buffers.
"""

import errno
import operator
import os
from collections.abc import Callable

import trio

from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.primitives.addresses import format_address
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.testing.fake_guest.stack import Stack
from qemu_usernat.wire.packets import Buffer

RECEIVE_BUFFER = 256 * 1024
"""Octets that wait to be read before the window closes."""

SEND_BUFFER = 256 * 1024
"""Octets that `send_all` leaves to the engine without waiting for it."""

_WRITTEN_AT_ONCE = 64 * 1024  # octets copied in one go


class Socket:
    """A flow's host half, in memory: a `HostStream`."""

    def __init__(self) -> None:
        self.flow: TcpFlow
        self.incoming = bytearray()
        """What has come and was not yet read."""
        self.outgoing = bytearray()
        """What was written and the engine has not yet taken."""
        self.at_end = False
        """The other end has said all."""
        self.ended = False
        """We have said all."""
        self.error: OSError | None = None
        """Why the connection is no more, if it was broken."""
        self.hung_up = False
        """Nobody hears what is written, as the other end has reset after its last word."""
        self.deaf = False
        """The test has closed: what still comes is answered by a reset."""
        self._told_end = self._closed = self._reading = self._writing = False

    # -- HostStream

    def send(self, buffers: list[Buffer], now: float) -> int:
        """Octets have come; how many were taken."""
        if self.deaf:
            self.flow.on_host_failed(None, now)
            return 0
        before = len(self.incoming)
        for octets in buffers:
            self.incoming += octets[: RECEIVE_BUFFER - len(self.incoming)]
        return len(self.incoming) - before

    def shutdown(self) -> None:
        """The other end's FIN, after its last octet."""
        self.at_end = True

    def reset(self) -> None:
        """The other end's reset, or nobody has answered for minutes."""
        gave_up = self.flow.counters["tcp.gave_up"]
        self._break(errno.ETIMEDOUT if gave_up else errno.ECONNRESET)

    def hang_up(self) -> None:
        """The other end's reset, after its FIN."""
        self.hung_up = True

    def close(self) -> None:
        """The engine needs it no more."""
        self._closed = True

    def watch(self, read: bool, write: bool, now: float) -> None:
        """What the engine waits for."""
        self._reading, self._writing = read, write

    def _break(self, number: int) -> None:
        if self.error is None:
            self.error = OSError(number, os.strerror(number))
            self.outgoing.clear()

    # -- for the table: what a poller would do

    def ready(self) -> bool:
        """Whether the engine wants to hear what has happened here."""
        if self._closed:
            return False
        readable = self.outgoing or (self.ended and not self._told_end)
        takes = self.deaf or len(self.incoming) < RECEIVE_BUFFER
        return bool((self._reading and readable) or (self._writing and takes))

    def report(self, now: float) -> None:
        """Tell the engine once; it is flushed afterwards."""
        flow = self.flow
        if not self._reading:
            return  # it writes when it is flushed
        room = flow.room()
        if self.outgoing and room > 0:
            octets = bytes(self.outgoing[:room])
            del self.outgoing[: len(octets)]
            flow.on_host_data(octets, len(octets), now)
        elif self.outgoing:
            flow.on_host_waiting()
        elif self.ended and not self._told_end:
            self._told_end = True
            flow.on_host_eof(now)


class TcpStream(trio.abc.HalfCloseableStream):
    """A connection of the fake guest's.

    One task may write and another may read. A reset is BrokenResourceError, from the
    ConnectionResetError that says so; what came before it is read first.
    """

    def __init__(
        self, flow: TcpFlow, sock: Socket, stack: Stack, touch: Callable[[TcpFlow], None]
    ) -> None:
        self._flow = flow
        self._sock = sock
        self._stack = stack
        self._touch = touch
        self._sending = self._receiving = False

    @property
    def local(self) -> tuple[str, int]:
        """The guest's address and port."""
        return format_address(self._flow.key[2]), self._flow.key[3]

    @property
    def peer(self) -> tuple[str, int]:
        """The other end's address and port."""
        return format_address(self._flow.key[0]), self._flow.key[1]

    def __repr__(self) -> str:
        state = "closed" if self._sock.deaf else self._flow.guest_state.value
        return f"<TcpStream {self.local} to {self.peer}, {state}>"

    # -- writing

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Return when all of `data` is the engine's, or waits closely before it."""
        if self._sending:
            raise trio.BusyResourceError(f"another task is writing to {self!r}")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            view, at = memoryview(data).cast("B"), 0
            self._check_sending()
            while at < len(view):
                await self._room()
                room = SEND_BUFFER - len(self._sock.outgoing)
                piece = view[at : at + min(room, _WRITTEN_AT_ONCE)]
                self._sock.outgoing += piece
                at += len(piece)
                self._turn()
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Until there is room for at least one octet."""
        if self._sending:
            raise trio.BusyResourceError(f"another task is writing to {self!r}")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            await self._room()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """FIN, after all that was written; reading goes on."""
        if self._sending:
            raise trio.BusyResourceError(f"another task is writing to {self!r}")
        await trio.lowlevel.checkpoint()
        if self._sock.ended and not self._sock.deaf:
            return
        self._check_sending()
        self._sock.ended = True
        self._turn()

    async def _room(self) -> None:
        def look() -> bool | None:
            self._check_sending()
            return len(self._sock.outgoing) < SEND_BUFFER or None

        await self._stack.until(look, NEVER, f"{self!r} takes no more")

    def _check_sending(self) -> None:
        if self._sock.deaf:
            raise trio.ClosedResourceError(f"{self!r} has been closed")
        if self._sock.hung_up:
            self._broken(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        if self._sock.error is not None:
            self._broken(self._sock.error)
        if self._sock.ended:
            raise trio.ClosedResourceError(f"{self!r} has sent its end")

    def _broken(self, error: OSError) -> None:
        raise trio.BrokenResourceError(f"{self!r}: {error.strerror}") from error

    # -- reading

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come, at most `max_bytes`; b"" at the end."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes is at least 1, not {max_bytes}")
        if self._receiving:
            raise trio.BusyResourceError(f"another task is reading from {self!r}")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            return await self._stack.until(
                lambda: self._take(max_bytes), NEVER, f"{self!r} says nothing"
            )
        finally:
            self._receiving = False

    def _take(self, maximum: int | None) -> bytes | None:
        sock = self._sock
        if sock.deaf:
            raise trio.ClosedResourceError(f"{self!r} has been closed")
        if sock.incoming:
            octets = bytes(sock.incoming[:maximum])
            del sock.incoming[: len(octets)]
            self._turn()
            return octets
        if sock.error is not None:
            self._broken(sock.error)
        return b"" if sock.at_end else None

    # -- ending

    async def aclose(self) -> None:
        """Close as a kernel's socket does: in order, or by a reset if anything is unread.

        What was written is still delivered; what comes from now on is answered by a reset.
        """
        sock = self._sock
        if not sock.deaf:
            sock.deaf = sock.ended = True
            if sock.incoming:
                self.reset()
            self._turn()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Break the connection off (RST)."""
        self._sock.deaf = self._sock.ended = True
        self._sock.incoming.clear()
        self._sock.outgoing.clear()
        self._flow.on_host_failed(None, trio.current_time())
        self._turn()

    def _turn(self) -> None:
        self._touch(self._flow)
        self._stack.end_turn()
