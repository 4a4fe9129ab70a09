"""UDP between the guests and the host's world: which mapping a datagram takes, and who opens one.

It owns who may open a mapping, and what a guest is told that gets none. What the gateway itself
answers, DHCP and DNS, never comes here; whom a mapping lets in is for `nat.udp` to know, and which
gives way for another for `nat.udp_table`.

A guest that writes to the host's own address, at the port of a mapping of ours, means the guest
behind that (hairpinning, RFC 4787, REQ-9). The host's kernel brings it there, with the sender's
mapping as its source; here it only has to be let out, which is asked for each datagram anew: the
port may be somebody else's in the next moment. Under a policy that is for its rules to say.
"""

from collections.abc import Callable, Mapping
from functools import partial

from attrs import define, field

from qemu_usernat.admission import Admission, Decision, Guest
from qemu_usernat.delivery import Delivery
from qemu_usernat.guest_wires import UdpWire
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.port import Port
from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.udp import ADDRESS, QUOTED_PAYLOAD, UdpMapping, Where
from qemu_usernat.nat.udp_table import UdpTable
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.redirects import HostTarget
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.primitives.addresses import Address, MacAddress, is_loopback
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.icmp import ADMINISTRATIVELY_PROHIBITED, PORT_UNREACHABLE
from qemu_usernat.wire.packets import Buffer, IpPacket, UdpDatagram

UDP_HEADER = 8  # bytes (RFC 768)


@define(eq=False)
class Datagrams:
    """The UDP mappings of one network."""

    delivery: Delivery
    open_udp: Callable[[UdpMapping], None]
    """Set the mapping's `host`; OSError if there is no descriptor."""
    addressing: Addressing
    outward: Mapping[Address, Address]
    """Those of them that stand for others."""
    admission: Admission
    alarms: Alarms
    counters: Counters
    filtering: str = ADDRESS
    """One of `UDP_FILTERINGS`."""
    table: UdpTable = field(factory=UdpTable)

    @property
    def mappings(self) -> Mapping[tuple[Address, int], UdpMapping]:
        """By the guest's address and port."""
        return self.table.by_guest_port

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
        mapping = self.table.by_guest_port.get((source, source_port))
        if mapping is None or is_loopback(destination):  # which `outward` may be, but nobody names
            return False
        outward = self.outward.get(destination, destination)
        peer = mapping.redirected(destination, destination_port)
        if peer is not None:
            outward, destination_port = peer
        elif not mapping.is_admitted(outward, destination_port):
            return False
        self.delivery.on_neighbour(source, mac.tobytes(), now)
        mapping.order.move_to_end(mapping)
        mapping.on_guest_datagram(payload, outward, destination_port, head.tobytes(), now)
        return True

    def on_datagram(
        self, datagram: UdpDatagram, packet: IpPacket, mac: MacAddress, now: float
    ) -> None:
        """A datagram for the host's world, of a mapping or the first of one; its guest is told
        where it cannot go."""
        destination, port = packet.destination, datagram.destination_port
        guest = self.delivery.guest_at(mac, packet.source)
        if (
            destination in self.addressing.ours
            and destination not in self.outward
            and self.admission.target_of(guest, "udp", destination, port, now) is None
        ):
            self._closed(packet, guest, port, now)
            return
        mapping = self.mappings.get((packet.source, datagram.source_port))
        peer = None if mapping is None else self._known_peer(mapping, destination, port)
        if mapping is None or peer is None:
            decision = None
            if not self._is_hairpin(destination, port):
                decision = self.admission.admit(guest, "udp", destination, port, now)
                if decision.verdict.action != ALLOW:
                    self._deny(packet, mac, now)
                    return
            mapping = self._mapping(guest, datagram.source_port, now)
            if mapping is None:
                self.delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)
                return
            peer = self._meet(mapping, destination, port, decision)
        head = packet.header + packet.payload[: UDP_HEADER + QUOTED_PAYLOAD]
        mapping.order.move_to_end(mapping)
        mapping.on_guest_datagram(datagram.payload, *peer, head, now)
        self.alarms.arm(mapping)

    def _closed(self, packet: IpPacket, guest: Guest, port: int, now: float) -> None:
        """At an address of ours, where nobody listens."""
        self.counters.count("udp.closed_port")
        destination = packet.destination
        self.admission.on_stray(guest, FlowRequest("udp", destination, port), now)
        self.delivery.unreachable(guest.mac, packet, PORT_UNREACHABLE, now, destination)

    def _known_peer(self, mapping: UdpMapping, destination: Address, port: int) -> Where | None:
        """To whom a datagram goes if its guest need not be asked for; None if it has to be."""
        outward = self.outward.get(destination, destination)
        is_admitted = mapping.is_admitted(outward, port)
        return mapping.redirected(destination, port) or ((outward, port) if is_admitted else None)

    def _meet(
        self, mapping: UdpMapping, destination: Address, port: int, decision: Decision | None
    ) -> Where:
        """The peer of a guest that may write to `destination`."""
        outward = self.outward.get(destination, destination)
        if decision is None:
            return outward, port
        target = decision.request.redirect
        if isinstance(target, HostTarget):
            mapping.redirect((destination, port), (target.address, target.port), decision)
            return target.address, target.port
        mapping.admit(outward, port, decision)
        return outward, port

    def _is_hairpin(self, destination: Address, port: int) -> bool:
        """Whether it is for a mapping of ours, as the host's world sees it, and no policy was
        given that would say."""
        return (
            port in self.table.by_host_port
            and not self.admission.guards_names
            and not self.delivery.switch.isolated
            and self.admission.groups.is_of_host(destination)
        )

    def _is_of_a_guest(self, address: Address, port: int) -> bool:
        """Whether it is a mapping of ours, in the eyes of the host itself."""
        return port in self.table.by_host_port and (
            is_loopback(address) or self.admission.groups.is_of_host(address)
        )

    def _deny(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        if self.admission.drops:
            self.counters.count("policy.dropped")
        else:
            self.counters.count("policy.denied")
            self.delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)

    def end_others(self, owner: Guest) -> None:
        """Mappings of the address of `owner` that another machine has opened."""
        for mapping in self.table.of_address(owner.address):
            if any(decision.guest != owner for _, decision in mapping.admitted()):
                self.close(mapping)

    def judge_again(self) -> None:
        """The policy has changed: what it does not allow any more is not carried any more."""
        for mapping in self.table:
            mapping.is_guarded = self.admission.guards_names
            if mapping.is_guarded:
                mapping.forget_unjudged()
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
        self.table.remove(mapping)
        mapping.host.close()

    # -- new ones

    def _mapping(self, guest: Guest, port: int, now: float) -> UdpMapping | None:
        """The mapping of a guest's address and port, opened if it is new; None if it cannot be."""
        key = (guest.address, port)
        known = self.mappings.get(key)
        if known is not None:
            return known
        owner = self.delivery.switch.port_of(guest.mac)
        if self.table.is_full(owner) and not self._make_room(owner, now):
            self.counters.count("udp.mappings_full")
            return None
        mapping = UdpMapping(
            key,
            UdpWire(self.delivery, guest.mac, guest.address, port),
            self.counters,
            now,
            self.filtering,
            self.admission.guards_names,
            partial(self._admits_stranger, guest),
            self._is_of_a_guest if self.delivery.switch.isolated else None,
        )
        if not self._open(mapping) and not (self._make_room(owner, now) and self._open(mapping)):
            self.counters.count("udp.no_descriptor")
            return None
        self.table.add(mapping, owner)
        return mapping

    def _open(self, mapping: UdpMapping) -> bool:
        try:
            self.open_udp(mapping)
        except OSError:
            return False
        return True

    def _make_room(self, owner: Port | None, now: float) -> bool:
        """Close a mapping that others can do without; False if there is none."""
        mapping = self.table.gives_way(owner, now)
        if mapping is None:
            return False
        self.counters.count("udp.mapping_gave_way")
        self.close(mapping)
        return True

    def _admits_stranger(self, guest: Guest, address: Address, port: int, now: float) -> bool:
        seen = self.delivery.as_guest_sees(address)
        if self._is_hairpin(address, port):
            return True  # a guest of ours, in the eyes of the world
        return self.admission.lets_in(guest, "udp", seen, port, now)
