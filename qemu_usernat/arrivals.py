"""Clients of published TCP ports: from the accepted connection to the flow that it becomes.

Our kernel has accepted a client before anybody knows whether its guest will, so nothing is read
from it until the guest has answered. A client whose guest is not there waits, for a guest may be
booting or its link be coming back; it is called in the very turn in which it shows, and the client
is reset if it does not come. It owns who waits, and when that ends; the call itself is a flow of
`connections`, with us as the client of the guest (RFC 9293, 3.10.1, active OPEN).
"""

from collections import deque
from functools import partial
from typing import Protocol
from weakref import WeakSet, ref

from attrs import define, field

from qemu_usernat.admission import Guest
from qemu_usernat.config.publish import Publication
from qemu_usernat.connections import Connections
from qemu_usernat.nat.faces import Face, Faces
from qemu_usernat.nat.tcp.flow import CONNECT_TIMEOUT, TcpFlow
from qemu_usernat.nat.tcp.sinks import HostStream
from qemu_usernat.nat.tcp.states import GuestState
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import MS, NEVER, SECOND
from qemu_usernat.whereabouts import ASK_INTERVAL, FailedCallback, Whereabouts, nobody_minds

GUEST_WAIT = 10 * SECOND
"""How long a client waits for a guest that is not there: a link that comes back, the end of a
boot. A person has given up by then, and a program tries again."""

WAITING_PER_PORT, WAITING_MAXIMUM = 256, 1024
"""Clients that wait for a guest, at one published port and at all; each holds a descriptor. At all,
the last of the port where most of them wait makes room for one of another port."""

CALLS_PER_PORT = 1024
"""Clients of one published port that its guest has not answered: a quarter of what it may have of
them in all, so that a port that is flooded leaves room for others."""

FULL_TIME = 100 * MS
"""Between two looks at whether a port still has so many."""

CALLS_TIDIED = 64
"""Calls that are kept, however few still last: beyond twice those they are looked through."""

_CALLING = frozenset({GuestState.SYN_SENT, GuestState.SYN_RECEIVED})


class Caller(HostStream, Protocol):
    """A client's connection, which our kernel has accepted."""

    client: Face | None
    """Its address and port; None where it has none."""

    def begin(self, flow: TcpFlow) -> None:
        """It has become the host half of `flow`; before this it only can be reset."""


@define(eq=False)
class Door:
    """One published TCP port, or unix socket."""

    publication: Publication
    guest_port: int
    """The one of the publication's ports that it leads to."""
    waiting: int = 0
    flows: "WeakSet[TcpFlow]" = field(factory=WeakSet)
    """Those that came in here, while they last."""
    calls: "list[ref[TcpFlow]]" = field(factory=list)
    """Of these, all that the guest has not answered, and some that it has."""
    full_until: float = -NEVER
    """When it is to be looked at whether they still are too many."""

    def has_room(self, now: float) -> bool:
        """Whether the guest may be called once more."""
        if len(self.calls) >= CALLS_PER_PORT and now >= self.full_until:
            self.calls = [each for each in self.calls if _is_calling(each())]
            self.full_until = now + FULL_TIME
        return len(self.calls) < CALLS_PER_PORT


@define(eq=False)
class _Waiting:
    caller: Caller
    door: Door
    until: float


@define(eq=False)
class Arrivals:
    """The clients of one network's published TCP ports."""

    whereabouts: Whereabouts
    connections: Connections
    faces: Faces
    counters: Counters
    waiting: list[_Waiting] = field(factory=list)
    """The longest first."""
    on_failed: FailedCallback = nobody_minds
    """Told of each client that found no guest, and as what it was counted."""
    _ask_at: float = NEVER
    _calls: "deque[tuple[float, ref[TcpFlow], Door]]" = field(factory=deque)
    """When each that we have called must have answered."""
    _tidy_at: int = CALLS_TIDIED

    def on_caller(self, caller: Caller, door: Door, now: float) -> None:
        """A client has connected."""
        guest = self.whereabouts.find(door.publication, now)
        if guest is not None:
            self._call(caller, door, guest, now)
        elif door.waiting >= WAITING_PER_PORT or not self._has_room(door, now):
            self._refuse(caller, door, "publish.waiting_full", now)
        else:
            if not door.waiting:
                self.whereabouts.ask(door.publication, now)
            self._ask_at = min(self._ask_at, now + ASK_INTERVAL)
            door.waiting += 1
            self.waiting.append(_Waiting(caller, door, now + GUEST_WAIT))

    def _has_room(self, door: Door, now: float) -> bool:
        """Whether one more may wait at `door`."""
        if len(self.waiting) < WAITING_MAXIMUM:
            return True
        last = max(reversed(self.waiting), key=lambda each: each.door.waiting)
        if last.door.waiting <= door.waiting + 1:
            return False
        self._leave(last)
        self._refuse(last.caller, last.door, "publish.waiting_full", now)
        return True

    def on_news(self, now: float) -> None:
        """Somebody has come: perhaps the one that is waited for."""
        doors = {each.door for each in self.waiting}
        found = {door: self.whereabouts.find(door.publication, now) for door in doors}
        if not any(found.values()):
            return
        for each in tuple(self.waiting):
            guest = found[each.door]
            if guest is not None:
                self._leave(each)
                self._call(each.caller, each.door, guest, now)

    def close(self, door: Door, cut: bool = False) -> None:
        """Nobody comes in there any more; with `cut` who has come is reset, and the guest, too."""
        for each in [each for each in self.waiting if each.door is door]:
            self._leave(each)
            each.caller.reset()
        if cut:
            for flow in tuple(door.flows):
                self.connections.cut(flow)

    def close_all(self) -> None:
        """The network ends."""
        for each in self.waiting:
            each.caller.reset()
        self.waiting.clear()

    # -- time

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        if not self._calls and not self.waiting:
            return NEVER
        while self._calls and not _is_calling(self._calls[0][1]()):
            self._calls.popleft()
        call = self._calls[0][0] if self._calls else NEVER
        return min(call, self._ask_at, self.waiting[0].until) if self.waiting else call

    def on_deadline(self, now: float) -> None:
        """Ask again for those who wait, and end what has taken too long."""
        while self._calls and self._calls[0][0] <= now:
            _, called, door = self._calls.popleft()
            flow = called()
            if flow is not None and _is_calling(flow):
                self.counters.count("publish.no_answer")
                self.on_failed(door.publication, "publish.no_answer", now)
                self.connections.cut(flow)
        while self.waiting and self.waiting[0].until <= now:
            waiting = self.waiting[0]
            self._leave(waiting)
            self._refuse(waiting.caller, waiting.door, "publish.no_guest", now)
        if self.waiting and self._ask_at <= now:
            self._ask_at = now + ASK_INTERVAL
            self.on_news(now)
            for publication in dict.fromkeys(each.door.publication for each in self.waiting):
                self.whereabouts.ask(publication, now)

    # -- the call

    def _leave(self, waiting: _Waiting) -> None:
        self.waiting.remove(waiting)
        waiting.door.waiting -= 1
        if not self.waiting:
            self._ask_at = NEVER

    def _call(self, caller: Caller, door: Door, guest: Guest, now: float) -> None:
        face = self.faces.choose(caller.client, partial(self._is_free, guest, door.guest_port))
        if face is None:
            self._refuse(caller, door, "publish.no_port", now)
            return
        key = (guest.address, door.guest_port, *face)
        flow = None
        if door.has_room(now):
            flow = self.connections.call(key, caller, guest, now)
        if flow is None:
            self._refuse(caller, door, "publish.calls_full", now)
            return
        caller.begin(flow)
        door.flows.add(flow)
        door.calls.append(ref(flow))
        self._calls.append((now + CONNECT_TIMEOUT, ref(flow), door))
        if len(self._calls) >= self._tidy_at:
            self._calls = deque(each for each in self._calls if _is_calling(each[1]()))
            self._tidy_at = CALLS_TIDIED + 2 * len(self._calls)

    def _is_free(self, guest: Guest, port: int, face: Face) -> bool:
        """Whether no connection of the guest has that four-tuple, nor had it a moment ago."""
        return (guest.address, port, *face) not in self.connections.flows

    def _refuse(self, caller: Caller, door: Door, why: str, now: float) -> None:
        self.counters.count(why)
        self.on_failed(door.publication, why, now)
        caller.reset()


def _is_calling(flow: TcpFlow | None) -> bool:
    return flow is not None and flow.guest_state in _CALLING
