"""A wire that does harm: a relay between guest and server that loses, repeats and bends frames.

`Harm` says what is done to one direction, `HarmfulWire` does it (sans-IO: octets of the stream
and time in, octets out), `Relay` runs a process that carries between two sockets through one
wire each way. All chance comes from one seed, so the same frames meet the same fate.

Each harm does one thing. Delay and jitter keep the order, as a queue does; reordering holds a
frame back while others overtake it; corruption turns one bit of an IPv4 packet inside its frame,
and leaves the Ethernet header and ARP alone: on real Ethernet its checksum guards these, and on
this wire nothing would. Nothing else is lost: where one side does not read, the other is held back.

It should cost as little as it can, for whoever measures over it measures it, too. So it is a
process of its own, harmless frames travel together as they came, and which frame is next to be
harmed is known before it comes.
"""

import heapq
import json
import math
import random
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from struct import Struct
from types import TracebackType

from attrs import asdict, define, field, frozen

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing.backlog import Backlog

REORDER_TIME = 0.005  # seconds by which a frame may be overtaken: many frames on a busy wire
ETHERNET_HEADER = 14  # bytes
READ_AT_ONCE = 512 * 1024  # bytes; more than the longest frame
BACKLOG_LIMIT = 4 << 20  # bytes waiting for a side that does not read, before the other is held
SOCKET_BUFFER = 2 << 20  # bytes that the kernel may hold, as `qemu.link.SEND_BUFFER`
END_TIMEOUT = 5.0  # seconds
LENGTH = Struct(">I")
IPV4 = b"\x08\x00"  # ethertype

_ETHERTYPE = slice(LENGTH.size + 12, LENGTH.size + 14)


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
class _Lot:
    """Which frames one thing befalls: each with the same probability, whatever befell others.

    The gap to the next one is drawn at once (its distribution is geometric), so that the frames
    between cost nothing.
    """

    probability: float
    chance: random.Random
    next: float = math.inf
    """The number of the next frame that it befalls."""

    def __attrs_post_init__(self) -> None:
        self._draw(0)

    def _draw(self, earliest: int) -> None:
        if self.probability >= 1:
            self.next = earliest
        elif self.probability:
            gap = math.log1p(-self.chance.random()) // math.log1p(-self.probability)
            self.next = earliest + gap

    def hits(self, number: int) -> bool:
        """Whether it befalls this frame, which is `next` or comes before it."""
        if number != self.next:
            return False
        self._draw(number + 1)
        return True


@define
class HarmfulWire:
    """One direction. `counts` tells how many frames came, and what was done to them."""

    harm: Harm
    seed: float
    counts: Counter[str] = field(factory=Counter)
    _chance: random.Random = field(init=False)
    _lots: dict[str, _Lot] = field(init=False)
    _harmed: float = field(init=False)
    """The number of the next frame that anything befalls."""
    _number: int = 0
    """Of the next frame to come."""
    _latest: float = 0.0
    _waiting: list[tuple[float, int, bytes]] = field(factory=list)
    _queued: int = 0

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._lots = {
            "lost": _Lot(self.harm.loss, self._chance),
            "corrupted": _Lot(self.harm.corrupt, self._chance),
            "repeated": _Lot(self.harm.repeat, self._chance),
            "reordered": _Lot(self.harm.reorder, self._chance),
        }
        self._harmed = min(lot.next for lot in self._lots.values())

    def take(self, stream: memoryview, now: float) -> int:
        """Octets of the stream enter, whole frames of them; how many were taken."""
        unpack, size, together = LENGTH.unpack_from, LENGTH.size, not self.harm.jitter
        first = at = 0
        number, end = self._number, len(stream)
        while at + size <= end:
            stop = at + size + unpack(stream, at)[0]
            if stop > end:
                break
            if number == self._harmed:
                self._pass(stream[first:at], now)
                self._take_harmed(number, bytes(stream[at:stop]), now)
                first = stop
            elif not together:
                self._pass(stream[at:stop], now)
                first = stop
            number += 1
            at = stop
        self._pass(stream[first:at], now)
        self.counts["frames"] += number - self._number
        self._number = number
        return at

    def _take_harmed(self, number: int, frame: bytes, now: float) -> None:
        hit = {what for what, lot in self._lots.items() if lot.hits(number)}
        self._harmed = min(lot.next for lot in self._lots.values())
        if "lost" in hit:
            self.counts["lost"] += 1
            return
        self.counts.update(hit - {"corrupted"})
        if "corrupted" in hit and frame[_ETHERTYPE] == IPV4:
            self.counts["corrupted"] += 1
            frame = bent(frame, LENGTH.size + ETHERNET_HEADER, self._chance)
        self._pass(frame * 2 if "repeated" in hit else frame, now, held="reordered" in hit)

    def _pass(self, frames: bytes | memoryview, now: float, *, held: bool = False) -> None:
        """Frames, with their lengths, enter the queue together."""
        if not frames:
            return
        harm = self.harm
        due = max(now + harm.delay + self._up_to(harm.jitter), self._latest)
        if held:
            due += self._up_to(REORDER_TIME)
        else:
            self._latest = due
        self._queued += 1
        heapq.heappush(self._waiting, (due, self._queued, bytes(frames)))

    def _up_to(self, seconds: float) -> float:
        return seconds * self._chance.random() if seconds else 0.0

    def deadline(self) -> float | None:
        """When the next frame leaves; None if none is on the wire."""
        return self._waiting[0][0] if self._waiting else None

    def leave(self, now: float) -> list[bytes]:
        """What has reached the other end, whole frames, in the order in which they do."""
        arrived = []
        while self._waiting and self._waiting[0][0] <= now:
            arrived.append(heapq.heappop(self._waiting)[2])
        return arrived


def bent(frame: bytes, header: int, chance: random.Random) -> bytes:
    """The frame with one bit turned, somewhere behind its first `header` octets."""
    octets = bytearray(frame)
    octets[chance.randrange(header, len(octets))] ^= 1 << chance.randrange(8)
    return bytes(octets)


class _End:
    """One of the two sockets, with what waits to be written to it."""

    def __init__(self, sock: socket.socket, wire: HarmfulWire) -> None:
        self.sock = sock
        self.wire = wire  # of the frames that come from here
        self.backlog = Backlog(sock)
        self._arrived = memoryview(bytearray(READ_AT_ONCE))
        self._have = 0  # octets of a frame that is not yet whole
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)

    def read(self, now: float) -> bool:
        """Take what has come into the wire; False at the end of the stream."""
        try:
            received = self.sock.recv_into(self._arrived[self._have :])
        except BlockingIOError:
            return True
        have = self._have + received
        taken = self.wire.take(self._arrived[:have], now)
        self._have = have - taken
        self._arrived[: self._have] = self._arrived[taken:have]
        return received > 0


class _Joint:
    """What the process does: both ends joined by their wires, until either side closes."""

    def __init__(self, guest: _End, server: _End) -> None:
        self._ways = ((guest, server), (server, guest))
        self._poller = select.poll()

    def run(self) -> None:
        """Carry, and say the counts whenever a line is asked for, until nobody can ask."""
        joined = True
        while True:
            ready = self._wait() if joined else {sys.stdin.fileno(): select.POLLIN}
            if sys.stdin.fileno() in ready and not self._report():
                return
            if joined and not self._turn(ready):
                joined = False
                for end, _ in self._ways:
                    end.sock.close()

    def _report(self) -> bool:
        if not sys.stdin.readline():
            return False
        print(json.dumps([end.wire.counts for end, _ in self._ways]), flush=True)
        return True

    def _wait(self) -> dict[int, int]:
        self._poller.register(sys.stdin, select.POLLIN)
        for end, other in self._ways:
            wanted = select.POLLIN * (other.backlog.size < BACKLOG_LIMIT)
            self._poller.register(end.sock, wanted | select.POLLOUT * bool(end.backlog.size))
        deadlines = [end.wire.deadline() for end, _ in self._ways]
        known = [deadline for deadline in deadlines if deadline is not None]
        patience = max(0.0, min(known) - time.monotonic()) * 1000 if known else None
        return dict(self._poller.poll(patience))

    def _turn(self, ready: dict[int, int]) -> bool:
        """Read what came, write what is due; False when one side has gone."""
        now = time.monotonic()
        try:
            for end, _ in self._ways:
                events = ready.get(end.sock.fileno(), 0)
                if events & ~select.POLLOUT and not end.read(now):
                    return False
            for source, sink in self._ways:
                sink.backlog.write(source.wire.leave(now))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True


@frozen
class Counts:
    """How many frames came over each wire (`frames`), and what befell how many of them."""

    to_host: Counter[str]
    to_guest: Counter[str]


class Relay:
    """Two connected stream sockets joined by harmful wires, for the length of a ``with``.

    The sockets given to it are closed at once here, and for the peers as soon as either of them
    closes, or at the end.
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
        self._sockets = (guest, server)
        self._orders = {"to_host": asdict(to_host), "to_guest": asdict(to_guest), "seed": seed}

    def __enter__(self) -> "Relay":
        guest, server = self._sockets
        with guest, server:
            descriptors = [guest.fileno(), server.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, descriptors), json.dumps(self._orders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=descriptors,
                text=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=END_TIMEOUT)  # ends with its standard input

    def counts(self) -> Counts:
        """What has been done to the frames so far. UserError if the relay has failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise UserError("the relay has ended; see its words on stderr")
        return Counts(*map(Counter, json.loads(line)))


def main() -> None:
    """``python -m qemu_usernat.testing.relay GUEST SERVER ORDERS``: descriptors, and JSON."""
    guest, server = (socket.socket(fileno=int(word)) for word in sys.argv[1:3])
    orders = json.loads(sys.argv[3])
    chance = random.Random(orders["seed"])
    to_host = HarmfulWire(Harm(**orders["to_host"]), chance.random())
    to_guest = HarmfulWire(Harm(**orders["to_guest"]), chance.random())
    _Joint(_End(guest, to_host), _End(server, to_guest)).run()


if __name__ == "__main__":
    main()
