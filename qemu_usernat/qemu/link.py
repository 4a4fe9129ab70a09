"""The link to one guest: a stream socket to its QEMU, and its port on the segment.

It owns the descriptor. It reads frames into the switch and writes what the port has
queued; when the guest's QEMU does not read, the port's queue is the bound.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Protocol

from qemu_usernat.lan.port import Port
from qemu_usernat.poller import BUSY, Poller
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.qemu.framing import FrameBuffer

_IOV_MAXIMUM = 1024  # buffers for one sendmsg (IOV_MAX on Linux and macOS)

SEND_BUFFER = 2 * 1024 * 1024
"""Bytes that the kernel may hold for a guest, as far as net.core.wmem_max allows. The usual
209 KB are three frames: with them QEMU and we take turns instead of working at once (measured:
`down65520` of the benchmark, docs/measurements.md)."""


class Segment(Protocol):
    """What the link is attached to."""

    def attach(self, port: Port) -> None: ...

    def detach(self, port: Port) -> None: ...

    def on_frame(self, port: Port, frame: memoryview, now: float) -> None: ...


def _port(name: str, counters: Counters, transmit: Callable[[], None]) -> Port:
    return Port(name, counters, transmit=transmit)


class Link:
    """One connection of a QEMU; a `Handler` of the poller."""

    __slots__ = (
        "_counters",
        "_floods",
        "_frames",
        "_more",
        "_now",
        "_on_close",
        "_poller",
        "_sock",
        "_switch",
        "_taken_in",
        "_writing",
        "port",
    )

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        switch: "Segment",
        poller: Poller,
        counters: Counters,
        on_close: Callable[["Link", str], None],
        make_port: Callable[[str, Counters, Callable[[], None]], Port] = _port,
    ) -> None:
        """Attach a connected, non-blocking socket. `on_close` is told once, with the reason.

        OSError if the socket cannot be watched: then there is no link, and it is the caller's.
        """
        poller.watch(sock, self, read=True)
        with contextlib.suppress(OSError):  # a wish, and not one that every kind of socket grants
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        poller.links += 1
        self._sock: socket.socket | None = sock
        self._switch = switch
        self._poller = poller
        self._counters = counters
        self._on_close = on_close
        self._frames = FrameBuffer()
        self._more = self._writing = False
        self._floods = False
        """It had more to say, last time, than there was time for; so it waits for its turn behind
        those who have not."""
        self._now = 0.0
        self._taken_in = -1
        """The round in which frames were last handed out."""
        self.port = make_port(name, counters, self.transmit)
        switch.attach(self.port)

    # -- Handler

    def on_readable(self, now: float) -> None:
        """Frames of the guest, or its end; first those that have been read already, and not over
        those that this turn has taken."""
        if self._sock is None or self._more or self._taken_in == self._poller.rounds:
            return
        if self._floods:
            self._more = True
            self._poller.again(self, self._read_in_turn)
        else:
            self._read(now)

    def _read_in_turn(self, now: float) -> None:
        self._more = self._floods = False
        if self._sock is not None:
            self._read(now)

    def _read(self, now: float) -> None:
        assert self._sock is not None
        try:
            received = self._sock.recv_into(self._frames.free())
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if received:
            self._take(received, now)
        else:
            self._hung_up()

    def _take(self, received: int, now: float) -> None:
        """Hand frames to the switch; the rest in a later round, so that others have theirs."""
        self._now = now
        self._taken_in = self._poller.rounds
        until = time.perf_counter() + self._poller.link_time()
        try:
            more = self._frames.take(received, self._on_frame)
            while more and time.perf_counter() < until:
                more = self._frames.take(0, self._on_frame)
        except Malformed as error:
            self._counters.count(error.reason)
            self.close(f"{error.reason}: not a stream of Ethernet frames")
            return
        self._more = more
        if more:
            self._floods = True
            self._poller.again(self, self._take_more)

    def _take_more(self, now: float) -> None:
        if self._sock is not None:
            self._take(0, now)

    def _on_frame(self, frame: memoryview) -> None:
        if self._sock is not None:  # else one before it has shown that QEMU is gone
            self._switch.on_frame(self.port, frame, self._now)

    def on_writable(self, now: float) -> None:
        """QEMU reads again."""
        self.transmit()

    def on_bug(self, now: float) -> None:
        """Where the stream goes on nobody knows: QEMU may connect anew."""
        self.close("an internal error")

    # -- to the guest

    def transmit(self) -> None:
        """Write as much of the port's queue as QEMU takes now."""
        port = self.port
        while port.outbox and self._sock is not None:
            pieces = port.outbox[:_IOV_MAXIMUM]
            try:
                sent = self._sock.sendmsg(pieces)
            except OSError as error:
                if error.errno in BUSY:
                    break
                self._fail(error)
                return
            port.queued -= sent
            if not port.queued:
                port.outbox.clear()
                break
            self._drop_sent(sent)
        if self._sock is not None and bool(port.outbox) is not self._writing:
            self._writing = not self._writing
            try:
                self._poller.change(self._sock, read=True, write=self._writing)
            except OSError as error:
                self.close(str(error))

    def _drop_sent(self, sent: int) -> None:
        """Take the first `sent` bytes off the queue."""
        outbox = self.port.outbox
        whole = 0
        while sent >= len(outbox[whole]):
            sent -= len(outbox[whole])
            whole += 1
        del outbox[:whole]
        if sent:
            outbox[0] = memoryview(outbox[0])[sent:]

    def _fail(self, error: OSError) -> None:
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            self._hung_up()  # before it had read all that was said to it
        else:
            self.close(str(error))

    def _hung_up(self) -> None:
        self.close(f"{self.port.peer} closed the connection")

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._sock is None

    def close(self, reason: str) -> None:
        """Detach from the segment and give the descriptor back; the VM may come again."""
        if self._sock is None:
            return
        self._poller.forget(self._sock)
        self._poller.links -= 1
        self._sock.close()
        self._sock = None
        self._switch.detach(self.port)
        self._on_close(self, reason)
