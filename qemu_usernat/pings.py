"""ICMP between the guests and the host's world: which flow a ping takes, and who opens one.

It owns the table of echo flows, its bounds, and what a guest is told that gets none; and what
guests say against packets of ours. Those who ping the gateway itself are for `services`.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from attrs import define, field

from qemu_usernat.admission import Admission, Guest
from qemu_usernat.delivery import Delivery
from qemu_usernat.guest_wires import EchoWire
from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.echo import QUOTED, EchoFlow
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.icmp import ADMINISTRATIVELY_PROHIBITED, ECHO_REQUEST
from qemu_usernat.wire.packets import Buffer, IcmpMessage, IpPacket

FLOWS_MAXIMUM = 1024
"""Echo flows of one network, each with a descriptor; then the guest that has most makes room."""

FLOWS_OF_GUEST_MAXIMUM = 128
"""Those of one guest, whatever its addresses: a flood of identifiers costs others nothing."""


@define(eq=False)
class Pings:
    """The echo flows of one network."""

    delivery: Delivery
    open_echo: Callable[[EchoFlow], None]
    """Set the flow's `host`; OSError if the host carries no ping."""
    admission: Admission
    alarms: Alarms
    counters: Counters
    flows: dict[Address, dict[int, EchoFlow]] = field(factory=dict)
    """By a guest's address and identifier."""
    _flows_of: dict[Hashable, "OrderedDict[EchoFlow, None]"] = field(factory=dict)
    """By a guest's port; the one used last is the last."""
    _count: int = 0

    def on_known(
        self,
        source: Address,
        identifier: int,
        destination: Address,
        sequence: int,
        payload: Buffer,
        head: memoryview,
        mac: memoryview,
        now: float,
    ) -> bool:
        """The fast way: ask whom this flow has asked before; False if that is not the case."""
        flow = self.flows.get(source, {}).get(identifier)
        if flow is None or not flow.is_admitted(destination):
            return False
        self.delivery.on_neighbour(source, mac.tobytes(), now)
        self._is_last(flow)
        flow.on_guest_request(destination, sequence, payload, head.tobytes(), now)
        return True

    def on_message(
        self, message: IcmpMessage, packet: IpPacket, mac: MacAddress, now: float
    ) -> None:
        """To the host's world, and no error; the guest is told what is not carried, not left to
        wait."""
        if message.type != ECHO_REQUEST or message.code != 0:
            self.counters.count("icmp.not_carried")
            guest = self.delivery.guest_at(mac, packet.source)
            request = FlowRequest("icmp", packet.destination, 0)
            self.admission.refuse(guest, request, Why.UNCARRIED, now)
            if not self.admission.drops:
                self.delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)
            return
        identifier = int.from_bytes(message.rest[:2], "big")
        sequence = int.from_bytes(message.rest[2:], "big")
        flow = self.flows.get(packet.source, {}).get(identifier)
        if flow is None or not flow.is_admitted(packet.destination):
            flow = self._admit(flow, identifier, packet, mac, now)
        if flow is not None:
            self._is_last(flow)
            head = packet.header + packet.payload[:QUOTED]
            flow.on_guest_request(packet.destination, sequence, message.payload, head, now)
            self.alarms.arm(flow)

    def _admit(
        self, flow: EchoFlow | None, identifier: int, packet: IpPacket, mac: MacAddress, now: float
    ) -> EchoFlow | None:
        """The flow, opened if it is new, that may ping the packet's destination; or None, and the
        guest is told."""
        guest = self.delivery.guest_at(mac, packet.source)
        decision = self.admission.admit(guest, "icmp", packet.destination, 0, now)
        if decision.verdict.action != ALLOW and self.admission.drops:
            self.counters.count("policy.dropped")
            return None
        if decision.verdict.action != ALLOW:
            self.counters.count("policy.denied")
        elif flow is None:
            flow = self._open(packet.source, identifier, mac, now)
        if decision.verdict.action != ALLOW or flow is None:
            self.delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)
            return None
        flow.admit(packet.destination, decision)
        return flow

    def _open(
        self, address: Address, identifier: int, mac: MacAddress, now: float
    ) -> EchoFlow | None:
        owner = self.delivery.switch.port_of(mac)
        own = self._flows_of.get(owner, ())
        if len(own) >= FLOWS_OF_GUEST_MAXIMUM:
            self._gives_way(owner)
        elif self._count >= FLOWS_MAXIMUM:
            self._gives_way(max(self._flows_of, key=lambda port: len(self._flows_of[port])))
        wire = EchoWire(self.delivery, mac, address, identifier)
        flow = EchoFlow((address, identifier), wire, self.counters, now, owner)
        try:
            self.open_echo(flow)
        except OSError:
            self.counters.count("icmp.no_socket")
            return None
        self.flows.setdefault(address, {})[identifier] = flow
        self._flows_of.setdefault(owner, OrderedDict())[flow] = None
        self._count += 1
        return flow

    def _gives_way(self, owner: Hashable) -> None:
        """Of that guest's flows, the one idle for longest."""
        self.counters.count("icmp.flow_gave_way")
        self.close(next(iter(self._flows_of[owner])))

    def _is_last(self, flow: EchoFlow) -> None:
        self._flows_of[flow.owner].move_to_end(flow)

    def all(self) -> list[EchoFlow]:
        """Every flow."""
        return [flow for own in self.flows.values() for flow in own.values()]

    def end_others(self, owner: Guest) -> None:
        """Flows of the address of `owner` that another machine has opened."""
        for flow in tuple(self.flows.get(owner.address, {}).values()):
            if any(decision.guest != owner for _, decision in flow.admitted()):
                self.close(flow)

    def judge_again(self) -> None:
        """The policy has changed: whom a guest may not ping any more it does not hear any more."""
        for flow in self.all():
            for address, decision in flow.admitted():
                if not self.admission.still_allows(decision):
                    self.counters.count("policy.revoked")
                    flow.revoke(address)

    def on_deadline(self, flow: EchoFlow, now: float) -> None:
        """The flow's alarm has rung: its time is over, or has been put off."""
        if flow.expired(now):
            self.close(flow)
        else:
            self.alarms.arm(flow)

    def close(self, flow: EchoFlow) -> None:
        """Forget the flow and give its descriptor back."""
        address, identifier = flow.key
        self.alarms.forget(flow)
        del self.flows[address][identifier]
        if not self.flows[address]:
            del self.flows[address]
        own = self._flows_of[flow.owner]
        del own[flow]
        if not own:
            del self._flows_of[flow.owner]
        self._count -= 1
        flow.host.close()
