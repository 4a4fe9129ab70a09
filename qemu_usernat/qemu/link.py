"""The link to one guest: a stream socket to its QEMU, and its port on the segment.

It owns the descriptor. It reads frames into the switch and writes what the port has
queued; when the guest's QEMU does not read, the port's queue is the bound.
"""

import contextlib
import socket
from collections.abc import Callable

from qemu_usernat.lan.port import Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.poller import BUSY, Poller
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.qemu.framing import FrameBuffer

_IOV_MAXIMUM = 1024  # buffers for one sendmsg (IOV_MAX on Linux and macOS)

SEND_BUFFER = 2 * 1024 * 1024
"""Bytes that the kernel may hold for a guest, as far as net.core.wmem_max allows. The usual
209 KB are three frames: with them QEMU and we take turns instead of working at once (measured:
`down65520` of the benchmark, docs/measurements.md)."""


class Link:
    """One connection of a QEMU; a `Handler` of the poller."""

    __slots__ = (
        "_counters",
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
        switch: Switch,
        poller: Poller,
        counters: Counters,
        on_close: Callable[["Link", str], None],
    ) -> None:
        """Attach a connected, non-blocking socket. `on_close` is told once, with the reason.

        OSError if the socket cannot be watched: then there is no link, and it is the caller's.
        """
        poller.watch(sock, self, read=True)
        with contextlib.suppress(OSError):  # a wish, and not one that every kind of socket grants
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._sock: socket.socket | None = sock
        self._switch = switch
        self._poller = poller
        self._counters = counters
        self._on_close = on_close
        self._frames = FrameBuffer()
        self._more = self._writing = False
        self._now = 0.0
        self._taken_in = -1
        """The round in which frames were last handed out."""
        self.port = Port(name, counters, transmit=self.transmit)
        switch.attach(self.port)

    # -- Handler

    def on_readable(self, now: float) -> None:
        """Frames of the guest, or its end; first those that have been read already, and not over
        those that this turn has taken."""
        if self._sock is None or self._more or self._taken_in == self._poller.rounds:
            return
        try:
            received = self._sock.recv_into(self._frames.free())
        except BlockingIOError:
            return
        except OSError as error:
            self.close(str(error))
            return
        if received:
            self._take(received, now)
        else:
            self.close("QEMU closed the connection")

    def _take(self, received: int, now: float) -> None:
        """Hand frames to the switch; the rest in the next round, so that others have theirs."""
        self._now = now
        self._taken_in = self._poller.rounds
        try:
            self._more = self._frames.take(received, self._on_frame)
        except Malformed as error:
            self._counters.count(error.reason)
            self.close(f"{error.reason}: not a stream of Ethernet frames")
            return
        if self._more:
            self._poller.again(self, self._take_more)

    def _take_more(self, now: float) -> None:
        if self._sock is not None:
            self._take(0, now)

    def _on_frame(self, frame: memoryview) -> None:
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
                self.close(str(error))
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

    def close(self, reason: str) -> None:
        """Detach from the segment and give the descriptor back; the VM may come again."""
        if self._sock is None:
            return
        self._poller.forget(self._sock)
        self._sock.close()
        self._sock = None
        self._switch.detach(self.port)
        self._on_close(self, reason)
