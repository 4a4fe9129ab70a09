"""The wire between one QEMU and the server, inside the test: seen by a capture, bent by faults.

It owns the two sockets and the frames that are between them. Each frame is seen by the capture as
it enters, and then judged by the rules of `faults`. A side that does not read holds the other one
back, as on a direct connection; nothing is lost but what a rule drops, and what the guest says
while there is no server.

Ends cross: where one side closes, what is on its way has a second to arrive, and then the other
side is closed. A wire that is told to try again keeps QEMU's side when the server goes, and comes
back to the server when that has been started again.
"""

import heapq
import math
import socket
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Literal

import trio

from qemu_usernat.primitives.errors import Malformed, UserError
from qemu_usernat.qemu.framing import FrameBuffer
from qemu_usernat.testing.backlog import Backlog
from qemu_usernat.testing.capture import Capture
from qemu_usernat.testing.faults import Faults
from qemu_usernat.wire.packets import Buffer

HELD_MAXIMUM = 16 << 20
"""Octets that are delayed, or wait for a side that does not read, before the other is held back."""

END_TIME = 1.0  # seconds in which what is on its way may arrive when one side has closed
FIRST_PATIENCE, PATIENCE_MAXIMUM = 0.01, 1.0  # seconds until the server is tried again; doubles
SOCKET_BUFFER = 2 << 20  # bytes that the kernel may hold, as `qemu.link.SEND_BUFFER`

_length = Struct(">I").pack


class Lane:
    """One direction of a wire, without sockets: frames and time in, octets of the stream out."""

    def __init__(self, guest: str, capture: Capture, faults: Faults, *, from_guest: bool) -> None:
        self.held = 0
        """Octets on the wire."""
        self._guest, self._from_guest = guest, from_guest
        self._capture, self._faults = capture, faults
        self._ready: list[bytes] = []
        self._delayed: list[tuple[float, int, bytes]] = []
        self._entered = 0

    def enter(self, octets: bytes, now: float, lost: str = "") -> None:
        """A frame; `lost` says why it cannot pass, if it cannot."""
        frame = self._capture.see(octets, self._guest, from_guest=self._from_guest, now=now)
        if lost:
            frame.fate = lost
        elif not self._faults.rules:
            self._ready.append(octets)
            self.held += len(octets)
        else:
            passage = self._faults.judge(frame, now)
            for _ in range(passage.copies):
                self._pass(passage.octets, passage.due, now)

    def _pass(self, octets: bytes, due: float, now: float) -> None:
        self.held += len(octets)
        if due <= now:
            self._ready.append(octets)
        else:
            self._entered += 1
            heapq.heappush(self._delayed, (due, self._entered, octets))

    def deadline(self) -> float:
        """When the next frame reaches the other end."""
        if self._ready:
            return -math.inf
        return self._delayed[0][0] if self._delayed else math.inf

    def leave(self, now: float) -> list[Buffer]:
        """What has reached the other end by now, as the stream carries it."""
        arrived: list[bytes] = []
        while self._delayed and self._delayed[0][0] <= now:
            arrived.append(heapq.heappop(self._delayed)[2])
        arrived += self._ready
        self._ready.clear()
        pieces: list[Buffer] = []
        for octets in arrived:
            self.held -= len(octets)
            pieces.append(_length(len(octets)))
            pieces.append(octets)
        return pieces


class _Bell:
    """Rung by one task, heard by others; ringing that nobody waits for is kept once."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


class _End:
    """One of the two sockets, with what waits to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self.sock = sock
        self.backlog = Backlog(sock)
        self.broken = False
        """Nothing can be written any more; the reader hears of it, too."""

    def write(self, pieces: list[Buffer]) -> None:
        if self.broken:
            return
        try:
            self.backlog.write(pieces)
        except OSError:
            self.broken = True
            self.backlog = Backlog(self.sock)


class _Way:
    """A lane, and who is to be woken."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.news = _Bell()
        """For the writer: there is something, or it is due at another time."""
        self.room = _Bell()
        """For the reader: something has left."""

    def waiting(self, sink: _End | None) -> int:
        """Octets between the two sockets."""
        return self.lane.held + (0 if sink is None else sink.backlog.size)


class Wire:
    """One guest's wire; it serves one QEMU at a time.

    `dial` gives a connected socket to the server, or raises OSError while there is none. With
    `server_ends="retry"` QEMU's side stays when the server goes, and `dial` is asked again until
    there is one; meanwhile what the guest says is lost, as on a wire that was pulled. With
    "disconnect" QEMU's side is closed, as without this wire.
    """

    def __init__(
        self,
        guest: str,
        dial: Callable[[], socket.socket],
        capture: Capture,
        faults: Faults | None = None,
        *,
        server_ends: Literal["disconnect", "retry"] = "disconnect",
    ) -> None:
        if server_ends not in ("disconnect", "retry"):
            raise ValueError(f'server_ends is "disconnect" or "retry", not {server_ends!r}')
        self.guest = guest
        self.capture = capture
        self.faults = Faults() if faults is None else faults
        for each in (self.capture, self.faults):
            each.guests[guest] = None
        self.connections = 0
        """How many QEMUs have come."""
        self._dial = dial
        self._retry = server_ends == "retry"
        self._life: trio.CancelScope | None = None
        self._qemu: _End | None = None
        self._server: _End | None = None
        self._changed = trio.Event()

    def __repr__(self) -> str:
        ends = [("QEMU", self._qemu), ("server", self._server)]
        missing = " and ".join(f"no {what}" for what, end in ends if end is None)
        return f"<Wire of {self.guest}, {missing or 'connected'}>"

    # -- for tests

    @property
    def connected(self) -> bool:
        """Whether there are both a QEMU and a server."""
        return self._qemu is not None and self._server is not None

    async def wait_connected(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Until there are; TimeoutError says who is missing."""
        with trio.move_on_after(timeout):
            while not self.connected:
                await self._changed.wait()
            return
        raise TimeoutError(f"{self!r} after {timeout:g} s")

    def disconnect(self) -> None:
        """Close QEMU's side, and with it the server's; what is on its way is lost.

        A QEMU with `reconnect` comes again.
        """
        if self._life is not None:
            self._life.cancel()

    # -- carrying

    async def listen(
        self, path: Path | str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve one QEMU after the other at a unix socket, for ever; the file is ours."""
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(path))
            except OSError as error:
                raise UserError(f"the wire cannot listen at {path}: {error}") from error
            try:
                listener.setblocking(False)
                listener.listen()
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    try:
                        qemu, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    await self.run(qemu)
            finally:
                _remove(path)

    async def run(self, qemu: socket.socket) -> None:
        """Carry between a connected QEMU and the server until either ends; closes the socket."""
        if self._qemu is not None:
            raise ValueError(f"{self!r} has a QEMU already; it carries one at a time")
        guest = _End(qemu)
        out, back = (
            _Way(Lane(self.guest, self.capture, self.faults, from_guest=from_guest))
            for from_guest in (True, False)
        )
        self.connections += 1
        self._set(qemu=guest)
        try:
            with trio.CancelScope() as self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, back, guest)
                    nursery.start_soon(self._keep_server, guest, out, back)
                    await self._read(guest, out, lambda: self._server)
                    await self._drain(out, self._server)
                    nursery.cancel_scope.cancel()
        finally:
            self._life = None
            self._set()
            qemu.close()

    def _set(self, qemu: _End | None = None, server: _End | None = None) -> None:
        self._qemu, self._server = qemu, server
        self._changed.set()
        self._changed = trio.Event()

    async def _keep_server(self, guest: _End, out: _Way, back: _Way) -> None:
        """Carry to and from one server after the other."""
        patience = FIRST_PATIENCE
        while True:
            try:
                sock = self._dial()
            except OSError:
                pass
            else:
                began = trio.current_time()
                with sock:
                    await self._carry(_End(sock), guest, out, back)
                if trio.current_time() > began + PATIENCE_MAXIMUM:
                    patience = FIRST_PATIENCE
            if not self._retry:
                await self._drain(back, guest)
                self.disconnect()
                return
            await trio.sleep(patience)
            patience = min(2 * patience, PATIENCE_MAXIMUM)

    async def _carry(self, server: _End, guest: _End, out: _Way, back: _Way) -> None:
        self._set(guest, server)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, out, server)
                await self._read(server, back, lambda: guest)
                nursery.cancel_scope.cancel()
        finally:
            self._set(guest)

    async def _read(self, end: _End, way: _Way, sink: Callable[[], _End | None]) -> None:
        """Frames from `end` enter the wire, until it ends or says what is no frame."""
        frames = FrameBuffer()
        while True:
            await self.faults.passing()
            while way.waiting(sink()) >= HELD_MAXIMUM:
                await way.room.wait()
            await trio.lowlevel.wait_readable(end.sock)
            if self.faults.paused:
                continue
            try:
                received = end.sock.recv_into(frames.free())
            except BlockingIOError:
                continue
            except OSError:
                return
            if not received or not self._take(frames, received, way, sink()):
                return

    def _take(self, frames: FrameBuffer, received: int, way: _Way, sink: _End | None) -> bool:
        now = trio.current_time()
        lost = "" if sink is not None else "no server"

        def on_frame(view: memoryview) -> None:
            way.lane.enter(bytes(view), now, lost)

        whole = True
        try:
            while frames.take(received, on_frame):
                received = 0
        except Malformed:
            whole = False  # nobody can tell where the next frame begins
        if sink is not None:
            sink.write(way.lane.leave(now))
            if way.waiting(sink):
                way.news.ring()
        return whole

    async def _write(self, way: _Way, sink: _End) -> None:
        """What is on the wire reaches `sink`, for ever."""
        while True:
            if sink.backlog.size:
                await trio.lowlevel.wait_writable(sink.sock)
            else:
                with trio.move_on_at(way.lane.deadline()):
                    await way.news.wait()
            await self.faults.passing()
            sink.write(way.lane.leave(trio.current_time()))
            way.room.ring()

    async def _drain(self, way: _Way, sink: _End | None) -> None:
        """What is on its way arrives, or a second is over."""
        with trio.move_on_after(END_TIME):
            while sink is not None and not sink.broken and way.waiting(sink):
                await way.room.wait()


def _remove(path: Path | str) -> None:
    Path(path).unlink(missing_ok=True)
