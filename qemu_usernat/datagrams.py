"""UDP between the guests and the host's world: which mapping a datagram takes, and who opens one.

It owns the table of mappings, its bound, and what a guest is told that gets none. What the gateway
itself answers, DHCP and DNS, never comes here; whom a mapping lets in is for `nat.udp` to know.
"""

from collections.abc import Callable, Mapping

from attrs import define, field

from qemu_usernat.admission import Admission
from qemu_usernat.delivery import Delivery
from qemu_usernat.guest_wires import UdpWire
from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.udp import QUOTED_PAYLOAD, UdpMapping
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.primitives.addresses import Address, MacAddress, is_loopback
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.icmp import ADMINISTRATIVELY_PROHIBITED, PORT_UNREACHABLE
from qemu_usernat.wire.packets import Buffer, IpPacket, UdpDatagram

UDP_HEADER = 8  # bytes (RFC 768)

MAPPINGS_MAXIMUM = 16384
"""UDP mappings, each with a descriptor; beyond it new ones are refused."""


@define(eq=False)
class Datagrams:
    """The UDP mappings of one network."""

    delivery: Delivery
    open_udp: Callable[[UdpMapping], None]
    """Set the mapping's `host`; OSError if there is no descriptor."""
    own: frozenset[Address]
    """Addresses of the gateway itself."""
    outward: Mapping[Address, Address]
    """Those of them that stand for others."""
    admission: Admission
    alarms: Alarms
    counters: Counters
    mappings: dict[tuple[Address, int], UdpMapping] = field(factory=dict)

    def on_known(
        self,
        source: Address,
        source_port: int,
        destination: Address,
        destination_port: int,
        payload: Buffer,
        head: memoryview,
        mac: memoryview,
        now: float,
    ) -> bool:
        """The fast way: send where this mapping has sent before; False if that is not the case."""
        mapping = self.mappings.get((source, source_port))
        outward = self.outward.get(destination, destination)
        if (
            mapping is None
            or is_loopback(destination)  # which `outward` may be, but no guest names
            or not mapping.is_admitted(outward, destination_port)
        ):
            return False
        self.delivery.on_neighbour(source, mac.tobytes())
        mapping.on_guest_datagram(payload, outward, destination_port, head.tobytes(), now)
        return True

    def on_datagram(
        self, datagram: UdpDatagram, packet: IpPacket, mac: MacAddress, now: float
    ) -> None:
        """A datagram for the host's world, of a mapping or the first of one; its guest is told
        where it cannot go."""
        destination = packet.destination
        if destination in self.own and destination not in self.outward:
            self.counters.count("udp.closed_port")
            guest = self.delivery.guest_at(mac, packet.source)
            request = FlowRequest("udp", destination, datagram.destination_port)
            self.admission.on_stray(guest, request, now)
            self.delivery.unreachable(mac, packet, PORT_UNREACHABLE, now, destination)
            return
        outward, port = self.outward.get(destination, destination), datagram.destination_port
        mapping = self.mappings.get((packet.source, datagram.source_port))
        if mapping is None or not mapping.is_admitted(outward, port):
            guest = self.delivery.guest_at(mac, packet.source)
            decision = self.admission.admit(guest, "udp", destination, port, now)
            if decision.verdict.action != ALLOW:
                self._deny(packet, mac, now)
                return
            mapping = self._mapping(packet.source, datagram.source_port, mac, now)
            if mapping is not None:
                mapping.filters_ports = self.admission.guards_names
                mapping.admit(outward, port, decision)
        if mapping is None:
            self.delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)
        else:
            head = packet.header + packet.payload[: UDP_HEADER + QUOTED_PAYLOAD]
            mapping.on_guest_datagram(datagram.payload, outward, port, head, now)
            self.alarms.arm(mapping)

    def _deny(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        if self.admission.drops:
            self.counters.count("policy.dropped")
        else:
            self.counters.count("policy.denied")
            self.delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)

    def end_others(self, address: Address, mac: MacAddress) -> None:
        """Mappings of `address` that another machine than `mac` has opened."""
        for mapping in tuple(self.mappings.values()):
            if mapping.key[0] == address and any(
                decision.guest.mac != mac for _, decision in mapping.admitted()
            ):
                self.close(mapping)

    def judge_again(self) -> None:
        """The policy has changed: what it does not allow any more is not carried any more."""
        for mapping in self.mappings.values():
            mapping.filters_ports = self.admission.guards_names
            for peer, decision in mapping.admitted():
                if not self.admission.still_allows(decision):
                    self.counters.count("policy.revoked")
                    mapping.revoke(*peer)

    def on_deadline(self, mapping: UdpMapping, now: float) -> None:
        """The mapping's alarm has rung: its time is over, or has been put off."""
        if mapping.expired(now):
            self.close(mapping)
        else:
            self.alarms.arm(mapping)

    def close(self, mapping: UdpMapping) -> None:
        """Forget the mapping and give its descriptor back."""
        self.alarms.forget(mapping)
        del self.mappings[mapping.key]
        mapping.host.close()

    def _mapping(
        self, address: Address, port: int, mac: MacAddress, now: float
    ) -> UdpMapping | None:
        """The mapping of a guest's address and port, opened if it is new; None if it cannot be."""
        key = (address, port)
        mapping = self.mappings.get(key)
        if mapping is not None:
            return mapping
        if len(self.mappings) >= MAPPINGS_MAXIMUM:
            self.counters.count("udp.mappings_full")
            return None
        mapping = UdpMapping(key, UdpWire(self.delivery, mac, address, port), self.counters, now)
        try:
            self.open_udp(mapping)
        except OSError:
            self.counters.count("udp.no_descriptor")
            return None
        self.mappings[key] = mapping
        return mapping
