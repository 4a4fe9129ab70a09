"""The learning switch that joins the guests and the gateway (IEEE 802.1D, without trees).

It knows MAC addresses and ports, and nothing above them. A frame for the gateway goes to
`gateway`, a broadcast goes there and to every other guest, one for a guest goes to its port; one
for somebody who was never heard, or not for long, is flooded as a broadcast is. What is flooded
is limited for each guest; what the gateway hears of it is not, so that whoever shouts too much
finds it all the same.

Isolated guests see the gateway and nobody else: no frame of one reaches another.
"""

from collections.abc import Callable
from typing import TypeAlias

from attrs import define, field

from qemu_usernat.lan.allowance import Allowance
from qemu_usernat.lan.guard import SourceGuard
from qemu_usernat.lan.places import AGING_TIME, LOOK_INTERVAL, Places
from qemu_usernat.lan.port import JoinPort, Port
from qemu_usernat.primitives.addresses import MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.hello import HELLO
from qemu_usernat.wire.packets import Buffer

FLOODS_PER_SECOND = 1000.0
"""Frames of one guest that go to all others, sustained: what looks for addresses and services says
a few dozen, and a stream of music to a group some hundred."""

FLOODS_AT_ONCE = 1000.0
"""The same back to back: a scan of a /22 for its machines."""

_LENGTH = 4  # bytes of the stream's length field


Gate: TypeAlias = Callable[[memoryview, Port, Port | None, float], memoryview | None]


def _lets_all_pass(
    frame: memoryview, port: Port, target: Port | None, now: float
) -> memoryview | None:
    """There is nobody who judges."""
    return frame


@define(eq=False)
class Switch:
    """One Ethernet segment."""

    gateway_mac: MacAddress
    gateway: Callable[[memoryview, float], None]
    """Takes a frame for the gateway: ``gateway(frame, now)``; the view is good for the turn."""
    counters: Counters
    guard: SourceGuard = field(factory=SourceGuard)
    lets_pass: Gate = _lets_all_pass
    """What of a frame may go from one guest to another, or to all; None if nothing. Asked where
    sources are guarded."""
    isolated: bool = False
    speaker: MacAddress = b""
    """Who has sent the frame that is looked at."""
    ports: list[Port] = field(factory=list)
    next_look: float = -NEVER
    """When `look` is next to be called; it is no reason to wake up."""
    _places: Places[MacAddress] = field(init=False)
    _port_of: dict[MacAddress, Port] = field(init=False)
    """The very table of `_places`."""
    _floods: dict[Port, Allowance] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._places = Places(_is_no_more_familiar)
        self._port_of = self._places.port_of

    def attach(self, port: Port) -> None:
        """A guest's link has come up."""
        self.ports.append(port)
        self._share()
        port.addresses = self._places.join(port)
        self._floods[port] = Allowance(FLOODS_PER_SECOND, FLOODS_AT_ONCE)

    def detach(self, port: Port) -> None:
        """A guest's link is gone; what was queued for it is dropped."""
        self.ports.remove(port)
        self._share()
        self._places.leave(port)
        del self._floods[port]
        port.outbox.clear()
        port.queued = 0

    def _share(self) -> None:
        for port in self.ports:
            port.share(len(self.ports))

    def look(self, now: float) -> None:
        """From now on it is noted anew who is heard."""
        self.next_look = now + LOOK_INTERVAL
        for port in self.ports:
            port.familiar = b""

    def port_of(self, mac: MacAddress) -> Port | None:
        """Where a guest is; None while it is nowhere, or with another server."""
        port = self._port_of.get(mac)
        return None if isinstance(port, JoinPort) else port

    def place_of(self, mac: MacAddress) -> Port | None:
        """Where frames for a guest go, be it here or with another server."""
        return self._port_of.get(mac)

    def broadcast(self, *frames: Buffer, except_port: Port | None = None) -> None:
        """Queue frames, stream length in front, for every guest."""
        for port in self.ports:
            if port is not except_port:
                port.send(*frames)

    def on_frame(self, port: Port, frame: memoryview, now: float) -> None:
        """A frame of at least 14 bytes from a guest."""
        addresses = frame[:12].tobytes()
        if addresses == port.familiar:
            self.speaker = port.speaker
            self.gateway(frame, now)
            return
        destination, source = addresses[:6], addresses[6:]
        self.speaker = source
        if source[0] & 1:
            self.counters.count("ethernet.group_source")  # IEEE 802.3: a source is one station
            return
        if source == self.gateway_mac:
            self.counters.count("ethernet.gateway_source")
            return
        heard = port.addresses.get(source)
        if (heard is None or now - heard >= LOOK_INTERVAL) and not self._learn(source, port, now):
            return
        if destination == self.gateway_mac:
            port.familiar, port.speaker = addresses, source
            self.gateway(frame, now)
        elif destination[0] & 1:
            if len(self.ports) > 1:
                self._flood(self._for_guests(frame, port, None, now), port, now)
            self.gateway(frame, now)
        else:
            self._pass_on(destination, frame, port, now)

    def on_joined_frame(self, port: JoinPort, frame: memoryview, now: float) -> None:
        """A frame from another server, for guests: the gateway never hears of it."""
        destination, source = frame[:6].tobytes(), frame[6:12].tobytes()
        if source[0] & 1:
            self.counters.count("ethernet.group_source")
            return
        heard = port.addresses.get(source)
        if (heard is None or now - heard >= LOOK_INTERVAL) and not self._learn(source, port, now):
            return
        if destination[0] & 1:
            self._flood(self._for_guests(frame, port, None, now), port, now)
        else:
            self._pass_on(destination, frame, port, now)

    def _pass_on(self, destination: MacAddress, frame: memoryview, port: Port, now: float) -> None:
        """A frame for another guest, or for nobody."""
        target = self._port_of.get(destination)
        if target is None or now - target.addresses[destination] >= AGING_TIME:
            self._look_for(target, port, frame, now)
        elif target is not port:
            passes = self._for_guests(frame, port, target, now)
            if passes is not None:
                target.send(_framed(passes))

    def _look_for(self, target: Port | None, port: Port, frame: memoryview, now: float) -> None:
        """A frame for somebody who was not heard for long, or never: to where that was, and to all
        the others, too."""
        if target is None:
            self.counters.count("ethernet.unknown_destination")
            if self.guard.on and not self.isolated:
                return  # who was never heard there is nobody
        passes = None if target is port else self._for_guests(frame, port, target, now)
        if target is not None and passes is not None:
            target.send(_framed(passes))
        if not self.guard.on:  # else it can be nowhere else
            self._flood(passes, port, now, but=target)

    def _flood(
        self, frame: memoryview | None, port: Port, now: float, but: Port | None = None
    ) -> None:
        """To all the others, within what this guest may do; `but` one that has it already."""
        if frame is None:
            return
        if not self._floods[port].take(now):
            self.counters.count("ethernet.flood_limited")
            return
        framed = _framed(frame)
        for other in self.ports:
            if other is not port and other is not but:
                other.send(framed)

    def _for_guests(
        self, frame: memoryview, port: Port, target: Port | None, now: float
    ) -> memoryview | None:
        """What other guests may have of it; None if nothing."""
        if frame[12:14] == HELLO:
            self.counters.count("join.hello_of_guest")
            return None
        if self.isolated:
            self.counters.count("ethernet.isolated")
            return None
        return self.lets_pass(frame, port, target, now) if self.guard.on else frame

    def guard_sources(self, on: bool) -> None:
        """Begin to look at who speaks, or stop. Of the addresses that a link has shown by then,
        the first is its own."""
        if on and not self.guard.on:
            for port in self.ports:
                others = () if isinstance(port, JoinPort) else tuple(port.addresses)
                for mac in others:
                    if mac != port.first:
                        self._places.forget(mac)
        self.guard.on = on

    def _learn(self, mac: MacAddress, port: Port, now: float) -> bool:
        """Note where a guest is; False if it may not be there.

        Whoever finds no room is not heard at all: nobody could answer it.
        """
        known = self._port_of.get(mac)
        silent = known is not None and now - known.addresses[mac] >= AGING_TIME
        if not self.guard.may_show(mac, port, known, silent):
            self.counters.count("ethernet.spoofed_source")
            return False
        if not self._places.learn(mac, port, now):
            self.counters.count("ethernet.table_full")
            return False
        if port.first not in port.addresses:
            port.first = mac
        return True


def _is_no_more_familiar(mac: MacAddress, port: Port) -> None:
    """Its next frame is to be learned from."""
    port.familiar = b""


def _framed(frame: memoryview) -> bytes:
    """A guest's frame for another guest, padded to 60 bytes as every frame that we send."""
    octets = frame.tobytes().ljust(60, b"\0")
    return len(octets).to_bytes(_LENGTH, "big") + octets
