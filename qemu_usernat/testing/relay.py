"""A wire that does harm: a relay between guest and server that loses, repeats and bends frames.

`Harm` says what is done to one direction, `HarmfulWire` does it (sans-IO: frames and time in,
frames out), `Relay` is the thread that carries bytes between two sockets through one wire each
way. All chance comes from one seed, so the same frames meet the same fate.

Each harm does one thing. Delay and jitter keep the order, as a queue does; reordering holds a
frame back while others overtake it; corruption turns one bit of the packet inside the frame, and
leaves the Ethernet header alone: on real Ethernet its checksum guards that, and on this wire
nothing would.
"""

import heapq
import random
import selectors
import socket
import threading
import time
from collections import Counter, deque
from types import TracebackType

from attrs import define, field, frozen

from qemu_usernat.qemu.framing import FrameBuffer

REORDER_TIME = 0.005  # seconds by which a frame may be overtaken: many frames on a busy wire
ETHERNET_HEADER = 14  # bytes
WRITE_AT_ONCE = 256 * 1024  # bytes joined for one write
BACKLOG_LIMIT = 4 << 20  # bytes waiting for a side that does not read; what follows is lost


@frozen(kw_only=True)
class Harm:
    """What befalls the frames of one direction; probabilities from 0 to 1, times in seconds."""

    loss: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    """At most so much is added to the delay."""


@define
class HarmfulWire:
    """One direction. `counts` tells how many frames came, and what was done to them."""

    harm: Harm
    random: random.Random
    counts: Counter[str] = field(factory=Counter)
    _latest: float = 0.0
    _waiting: list[tuple[float, int, bytes]] = field(factory=list)
    _taken: int = 0

    def take(self, frame: bytes, now: float) -> None:
        """A frame enters."""
        self.counts["frames"] += 1
        harm = self.harm
        if self._happens("lost", harm.loss):
            return
        if self._happens("corrupted", harm.corrupt):
            frame = self._bent(frame)
        copies = 2 if self._happens("repeated", harm.repeat) else 1
        due = now
        if harm.delay or harm.jitter:
            due += harm.delay + self.random.uniform(0.0, harm.jitter)
        due = max(due, self._latest)
        if self._happens("reordered", harm.reorder):
            due += self.random.uniform(0.0, REORDER_TIME)
        else:
            self._latest = due
        for _ in range(copies):
            self._taken += 1
            heapq.heappush(self._waiting, (due, self._taken, frame))

    def _happens(self, what: str, probability: float) -> bool:
        if not probability or self.random.random() >= probability:
            return False
        self.counts[what] += 1
        return True

    def _bent(self, frame: bytes) -> bytes:
        bent = bytearray(frame)
        bent[self.random.randrange(ETHERNET_HEADER, len(bent))] ^= 1 << self.random.randrange(8)
        return bytes(bent)

    def deadline(self) -> float | None:
        """When the next frame leaves; None if none is on the wire."""
        return self._waiting[0][0] if self._waiting else None

    def leave(self, now: float) -> list[bytes]:
        """The frames that have reached the other end, in the order in which they do."""
        arrived = []
        while self._waiting and self._waiting[0][0] <= now:
            arrived.append(heapq.heappop(self._waiting)[2])
        return arrived


class _End:
    """One of the two sockets, with what waits to be written to it."""

    def __init__(self, sock: socket.socket, wire: HarmfulWire) -> None:
        self.sock = sock
        self.wire = wire  # of the frames that come from here
        self.frames = FrameBuffer()
        self.backlog: deque[bytes] = deque()
        self.backlog_size = 0
        sock.setblocking(False)

    def read(self, now: float) -> bool:
        """Take what has come into the wire; False at the end of the stream."""
        try:
            received = self.sock.recv_into(self.frames.free())
        except BlockingIOError:
            return True
        self.frames.take(received, lambda frame: self.wire.take(frame.tobytes(), now))
        return received > 0

    def queue(self, frames: list[bytes], counts: Counter[str]) -> None:
        """Frames that have come over a wire to this end."""
        for frame in frames:
            if self.backlog_size >= BACKLOG_LIMIT:
                counts["overflowed"] += 1
                continue
            octets = len(frame).to_bytes(4, "big") + frame
            self.backlog.append(octets)
            self.backlog_size += len(octets)

    def write(self) -> None:
        """As much of the backlog as the socket takes now."""
        while self.backlog:
            pieces = [self.backlog.popleft()]
            size = len(pieces[0])
            while self.backlog and size < WRITE_AT_ONCE:
                pieces.append(self.backlog.popleft())
                size += len(pieces[-1])
            octets = b"".join(pieces)
            try:
                sent = self.sock.send(octets)
            except BlockingIOError:
                sent = 0
            self.backlog_size -= sent
            if sent < size:
                self.backlog.appendleft(octets[sent:])
                return


class Relay:
    """Two connected stream sockets joined by harmful wires, for the length of a ``with``.

    The sockets are closed at the end, and as soon as either side closes. `to_host` and
    `to_guest` are the two wires, whose counts may be read at any time.
    """

    def __init__(
        self,
        guest: socket.socket,
        server: socket.socket,
        *,
        to_host: Harm = Harm(),
        to_guest: Harm = Harm(),
        seed: int = 0,
    ) -> None:
        chance = random.Random(seed)
        self.to_host = HarmfulWire(to_host, random.Random(chance.random()))
        self.to_guest = HarmfulWire(to_guest, random.Random(chance.random()))
        self._guest = _End(guest, self.to_host)
        self._server = _End(server, self.to_guest)
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> "Relay":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end in (self._guest, self._server):
            try:
                end.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
            except OSError:
                continue  # the thread has closed it
        self._thread.join()

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                for end in (self._guest, self._server):
                    selector.register(end.sock, selectors.EVENT_READ, end)
                while self._turn(selector):
                    pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # one side has gone
        finally:
            self._guest.sock.close()
            self._server.sock.close()

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        ready = selector.select(self._patience())
        now = time.monotonic()
        for key, events in ready:
            if events & selectors.EVENT_READ and not key.data.read(now):
                return False
        for source, sink in ((self._guest, self._server), (self._server, self._guest)):
            sink.queue(source.wire.leave(now), source.wire.counts)
            sink.write()
            events = selectors.EVENT_READ | selectors.EVENT_WRITE * bool(sink.backlog)
            if events != selector.get_key(sink.sock).events:
                selector.modify(sink.sock, events, sink)
        return True

    def _patience(self) -> float | None:
        """Seconds until the next frame leaves a wire; None: until something comes."""
        deadlines = (self.to_host.deadline(), self.to_guest.deadline())
        known = [deadline for deadline in deadlines if deadline is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None
