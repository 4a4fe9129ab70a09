"""Clients of published UDP ports: a visit for each, for as long as it or its guest says something.

A visit is what NAT is outward, turned round: the guest sees the client at an address and a port,
and what it sends there from the published port goes to that client, out of the socket that the
client wrote to. It is no way out for anything else: the four addresses and ports have to be the
visit's. What comes for a guest that is not heard of yet is held for a moment, until ARP has
answered.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from functools import partial
from typing import Protocol

from attrs import define, field

from qemu_usernat.admission import Guest
from qemu_usernat.config.publish import Publication
from qemu_usernat.datagrams import Datagrams
from qemu_usernat.delivery import Delivery
from qemu_usernat.guest_wires import UdpWire
from qemu_usernat.nat.faces import Face, Faces
from qemu_usernat.nat.udp import IDLE_TIME
from qemu_usernat.primitives.addresses import FlowKey, MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER, SECOND
from qemu_usernat.whereabouts import FailedCallback, Whereabouts, nobody_minds
from qemu_usernat.wire.packets import Buffer

VISITS_PER_PORT, VISITS_MAXIMUM = 4096, 16384
"""At one published port, and at all: the one that was silent for longest gives way. At all, it is
one of the guest that has most of them, at the port where it has most: whoever calls one port under
many addresses ends no visit to another."""

HOLD_TIME = 1 * SECOND
"""How long a datagram waits for its guest: a client that got no answer asks again."""

SURE_TIME = 30 * SECOND
"""After so long without a word of the guest it is looked for anew: it may have another address."""

HELD_MAXIMUM = 64
"""Datagrams that wait; the first at the port where most of them do gives way to another port's."""


class Outlet(Protocol):
    """The published socket."""

    def send(self, payload: Buffer, client: Hashable) -> None:
        """To `client`, as it was named when it came; what the system does not take is dropped."""


@define(eq=False)
class UdpDoor:
    """One published UDP port."""

    publication: Publication
    guest_port: int
    """The one of the publication's ports that it leads to."""
    outlet: Outlet
    visits: "OrderedDict[Hashable, Visit]" = field(factory=OrderedDict, repr=False)
    """By the client, as the outlet knows it; the one that spoke last at the end."""


@define(eq=False)
class Visit:
    """A client at a guest."""

    key: FlowKey
    guest: Guest
    wire: UdpWire
    door: UdpDoor
    client: Hashable
    spoke_at: float
    sure_at: float
    """When the guest was last heard in it, or looked for."""


@define(eq=False)
class _Held:
    door: UdpDoor
    client: Hashable
    face: Face
    payload: bytes
    until: float


@define(eq=False, repr=False)
class Visits:
    """The clients of one network's published UDP ports."""

    whereabouts: Whereabouts
    delivery: Delivery
    datagrams: Datagrams
    faces: Faces
    counters: Counters
    on_failed: FailedCallback = nobody_minds
    """Told of each client that found no guest in time, and as what it was counted."""
    by_key: dict[FlowKey, Visit] = field(factory=dict)
    """As the guest sees them."""
    _order: "OrderedDict[Visit, None]" = field(factory=OrderedDict)
    """The one that spoke last at the end."""
    _held: list[_Held] = field(factory=list)
    """The longest first."""
    _crowds: dict[str, Counter[UdpDoor]] = field(factory=dict)
    """How many visit a guest, by its link, and where."""

    # -- inward

    def on_client(
        self, door: UdpDoor, client: Hashable, face: Face, payload: bytes, now: float
    ) -> None:
        """A datagram has come; `face` is the client's address and port."""
        visit = door.visits.get(client)
        if visit is None or not self._leads_right(visit, now):
            guest = self.whereabouts.find(door.publication, now)
            if guest is None:
                self._hold(_Held(door, client, face, payload, now + HOLD_TIME), now)
                return
            if visit is not None and visit.guest.address == guest.address:
                self._tally(visit, -1)
                visit.guest = guest
                self._tally(visit, 1)
            else:
                if visit is not None:
                    self._end(visit)
                visit = self._begin(door, client, face, guest, now)
                if visit is None:
                    self.counters.count("publish.no_port")
                    return
        self._spoke(visit, now)
        visit.wire.deliver(payload, *visit.key[2:])

    def _leads_right(self, visit: Visit, now: float) -> bool:
        """Whether its guest is still the one that is meant."""
        if not self.whereabouts.is_there(visit.guest):
            return False
        if now - visit.sure_at >= SURE_TIME:
            guest = self.whereabouts.find(visit.door.publication, now)
            if guest is not None and guest != visit.guest:
                return False
            visit.sure_at = now
        return True

    def _begin(
        self, door: UdpDoor, client: Hashable, face: Face, guest: Guest, now: float
    ) -> Visit | None:
        seen = self.faces.choose(face, partial(self._is_free, guest, door.guest_port))
        if seen is None:
            return None
        if len(door.visits) >= VISITS_PER_PORT:
            self._give_way(next(iter(door.visits.values())))
        elif len(self._order) >= VISITS_MAXIMUM:
            self._give_way(self._of_most())
        key = (guest.address, door.guest_port, *seen)
        wire = UdpWire(self.delivery, guest.mac, guest.address, door.guest_port)
        visit = Visit(key, guest, wire, door, client, now, now)
        self.by_key[key] = door.visits[client] = visit
        self._order[visit] = None
        self._tally(visit, 1)
        return visit

    def _tally(self, visit: Visit, more: int) -> None:
        crowd = self._crowds.setdefault(visit.guest.link, Counter())
        crowd[visit.door] += more
        if not crowd[visit.door]:
            del crowd[visit.door]
            if not crowd:
                del self._crowds[visit.guest.link]

    def _of_most(self) -> Visit:
        """The visit that all others can do without first."""
        crowd = max(self._crowds.values(), key=Counter.total)
        door = max(crowd, key=crowd.__getitem__)
        return next(iter(door.visits.values()))

    def _is_free(self, guest: Guest, port: int, face: Face) -> bool:
        """Whether the guest talks to nobody there, from that port."""
        mapping = self.datagrams.mappings.get((guest.address, port))
        return (guest.address, port, *face) not in self.by_key and (
            mapping is None or not mapping.is_admitted(*face)
        )

    def _hold(self, held: _Held, now: float) -> None:
        if len(self._held) >= HELD_MAXIMUM:
            self.counters.count("publish.datagram_lost")
            waiting = Counter(each.door for each in self._held)
            door, most = waiting.most_common(1)[0]
            if waiting[held.door] >= most:
                return
            self._held.remove(next(each for each in self._held if each.door is door))
        if all(each.door is not held.door for each in self._held):
            self.whereabouts.ask(held.door.publication, now)
        self._held.append(held)

    def on_news(self, now: float) -> None:
        """Somebody has come: perhaps the one that is waited for."""
        held, self._held = self._held, []
        for each in held:
            if self.whereabouts.find(each.door.publication, now) is None:
                self._held.append(each)
            else:
                self.on_client(each.door, each.client, each.face, each.payload, now)

    # -- outward

    def on_reply(self, key: FlowKey, payload: Buffer, mac: MacAddress, now: float) -> bool:
        """A datagram of a guest that may speak as it does; False if it is no answer to a client."""
        visit = self.by_key.get(key)
        if visit is None:
            return False
        self.delivery.on_neighbour(key[0], mac, now)
        self._spoke(visit, now)
        visit.sure_at = now
        visit.door.outlet.send(payload, visit.client)
        return True

    def on_guest_refuses(self, key: FlowKey) -> bool:
        """The guest says that nobody listens there, about a datagram of the visit `key`: it ends.
        False if there is none."""
        visit = self.by_key.get(key)
        if visit is None:
            return False
        self.counters.count("publish.visit_refused")
        self._end(visit)
        return True

    # -- the end

    def _spoke(self, visit: Visit, now: float) -> None:
        visit.spoke_at = now
        self._order.move_to_end(visit)
        visit.door.visits.move_to_end(visit.client)

    def _give_way(self, visit: Visit) -> None:
        self.counters.count("publish.visit_gave_way")
        self._end(visit)

    def _end(self, visit: Visit) -> None:
        self._tally(visit, -1)
        del self._order[visit], self.by_key[visit.key], visit.door.visits[visit.client]

    def end_others(self, owner: Guest) -> None:
        """Visits at the address of `owner` that were another machine's."""
        for visit in tuple(self._order):
            if visit.key[0] == owner.address and visit.guest != owner:
                self._end(visit)

    def close(self, door: UdpDoor) -> None:
        """Nobody comes or goes there any more."""
        for visit in tuple(door.visits.values()):
            self._end(visit)
        self._held = [each for each in self._held if each.door is not door]

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        first = next(iter(self._order), None)
        idle = NEVER if first is None else first.spoke_at + IDLE_TIME
        return min(idle, self._held[0].until) if self._held else idle

    def on_deadline(self, now: float) -> None:
        """End what has been silent, or has waited, for too long."""
        while self._held and self._held[0].until <= now:
            self.counters.count("publish.datagram_lost")
            self.on_failed(self._held[0].door.publication, "publish.datagram_lost", now)
            del self._held[0]
        while self._order and (first := next(iter(self._order))).spoke_at + IDLE_TIME <= now:
            self._end(first)
