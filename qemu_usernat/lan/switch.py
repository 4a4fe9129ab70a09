"""The learning switch that joins the guests and the gateway (IEEE 802.1D, without trees).

It knows MAC addresses and ports, and nothing above them. A frame for the gateway goes to
`gateway`, a broadcast goes there and to every other guest, one for a guest goes to its
port; one for nobody goes nowhere.
"""

from collections.abc import Callable

from attrs import define, field

from qemu_usernat.lan.guard import SourceGuard
from qemu_usernat.lan.port import Port
from qemu_usernat.primitives.addresses import MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.packets import Buffer

ADDRESSES_PER_PORT = 256
"""MAC addresses remembered for one guest; it may run bridges, but cannot fill our memory."""

_LENGTH = 4  # bytes of the stream's length field


@define(eq=False)
class Switch:
    """One Ethernet segment."""

    gateway_mac: MacAddress
    gateway: Callable[[memoryview, float], None]
    """Takes a frame for the gateway: ``gateway(frame, now)``; the view is good for the turn."""
    counters: Counters
    guard: SourceGuard = field(factory=SourceGuard)
    speaker: MacAddress = b""
    """Who has sent the frame that is looked at."""
    ports: list[Port] = field(factory=list)
    _port_of: dict[MacAddress, Port] = field(factory=dict)
    """The ports' `addresses`, the other way round: always both change."""

    def attach(self, port: Port) -> None:
        """A guest's link has come up."""
        self.ports.append(port)

    def detach(self, port: Port) -> None:
        """A guest's link is gone; what was queued for it is dropped."""
        self.ports.remove(port)
        for mac in port.addresses:
            del self._port_of[mac]
        port.outbox.clear()
        port.queued = 0

    def port_of(self, mac: MacAddress) -> Port | None:
        """Where a guest is; None while it is nowhere."""
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
        if not self._learn(source, port):
            self.counters.count("ethernet.spoofed_source")
            return
        if destination == self.gateway_mac:
            port.familiar, port.speaker = addresses, source
            self.gateway(frame, now)
        elif destination[0] & 1:
            if len(self.ports) > 1 and self._may_reach_guests(frame):
                self.broadcast(_framed(frame), except_port=port)
            self.gateway(frame, now)
        else:
            target = self._port_of.get(destination)
            if target is None:
                self.counters.count("ethernet.unknown_destination")
            elif target is not port and self._may_reach_guests(frame):
                target.send(_framed(frame))

    def _may_reach_guests(self, frame: memoryview) -> bool:
        may = self.guard.may_reach_guests(frame)
        if not may:
            self.counters.count("ethernet.guarded")
        return may

    def guard_sources(self, on: bool) -> None:
        """Begin to look at who speaks, or stop. Of the addresses that a link has shown by then,
        the first is its own."""
        if on and not self.guard.on:
            for port in self.ports:
                for mac in tuple(port.addresses)[1:]:
                    del port.addresses[mac]
                    del self._port_of[mac]
                port.familiar = b""
        self.guard.on = on

    def _learn(self, mac: MacAddress, port: Port) -> bool:
        """Remember where a guest is; False if it may not be there."""
        known = self._port_of.get(mac)
        if not self.guard.may_show(mac, port, known):
            return False
        if known is port:
            return True
        if known is not None:
            del known.addresses[mac]
            known.familiar = b""
        if len(port.addresses) >= ADDRESSES_PER_PORT:
            forgotten = next(iter(port.addresses))
            del port.addresses[forgotten]
            del self._port_of[forgotten]
            port.familiar = b""
        port.addresses[mac] = None
        self._port_of[mac] = port
        return True


def _framed(frame: memoryview) -> bytes:
    """A guest's frame for another guest, padded to 60 bytes as every frame that we send."""
    octets = frame.tobytes().ljust(60, b"\0")
    return len(octets).to_bytes(_LENGTH, "big") + octets
