"""TCP between the guests and the host's world: the table of flows, who opens one, how one ends.

It owns the table, who is to be flushed at the end of a turn, and what a segment of no flow is told.
What a segment means to its flow is for `nat.tcp` to know; what all flows of a guest may hold, for
`nat.holdings`; where octets come from and go to, for the host edge.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from attrs import define, field

from qemu_usernat.admission import Admission, Decision, Guest
from qemu_usernat.delivery import Delivery
from qemu_usernat.dns_service import DnsService
from qemu_usernat.gate import Gate
from qemu_usernat.gateway.dns_gate import DnsGate
from qemu_usernat.guest_wires import TcpWire
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.port import Port
from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.holdings import Holdings
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.opening import TcpSettings, new_flow, open_flow
from qemu_usernat.nat.tcp.sender import HEADERS
from qemu_usernat.nat.tcp.sinks import HostStream
from qemu_usernat.nat.tcp.states import HOST_HOLDS_SOCKET, GuestState
from qemu_usernat.policy.first_flight import FirstFlightReader
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.redirects import HostTarget, UnixTarget
from qemu_usernat.policy.rules import DENY
from qemu_usernat.primitives.addresses import DNS_PORT, Address, FlowKey, MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import BugCallback
from qemu_usernat.primitives.sequence import add
from qemu_usernat.wire.packets import ACK, FIN, RST, SYN, IpPacket, TcpSegment

TIME_WAITS_MAXIMUM = 4096
"""Flows kept in TIME-WAIT; the oldest leaves early."""


class TcpEdge(Protocol):
    """What is asked of the host for a connection."""

    def dial(self, flow: TcpFlow, address: Address, port: int, ttl: int) -> None:
        """Begin to connect; `flow.dial` is called before this returns. OSError if there is no
        descriptor."""

    def dial_unix(self, flow: TcpFlow, path: str) -> None:
        """The same, to a unix socket of the host."""


@define(eq=False)
class Connections:
    """The TCP flows of one network."""

    delivery: Delivery
    edge: TcpEdge
    dns: DnsGate
    admission: Admission
    settings: TcpSettings
    addressing: Addressing
    outward: Mapping[Address, Address]
    """Those of them that stand for others."""
    alarms: Alarms
    counters: Counters
    on_bug: BugCallback
    flows: dict[FlowKey, TcpFlow] = field(factory=dict)
    touched: list[TcpFlow] = field(factory=list)
    """Those that are to be flushed at the end of the turn."""
    everybody: Holdings = field(factory=Holdings)
    """What all flows hold that guests have begun."""
    called: Holdings = field(factory=Holdings)
    """What those hold in which guests are called: however many clients come from outside, guests
    have the room that is theirs."""
    _holdings: dict[tuple[Port | None, bool], Holdings] = field(factory=dict)
    """The same for each guest that has any, and apart for the clients that call it: what they hold
    is none of what it may."""
    _of_address: dict[Address, dict[TcpFlow, None]] = field(factory=dict)
    """All flows by their guest's address, with those whose place in the table another has taken."""
    _time_waits: dict[TcpFlow, None] = field(factory=dict)
    """Those in TIME-WAIT, the oldest first."""
    _uses: dict[TcpFlow, Callable[[], None]] = field(factory=dict)
    """What ends the use of a pinned address, of each flow that has begun it."""

    # -- the turn

    def touch(self, flow: TcpFlow) -> None:
        """Something happened to `flow`: flush it at the end of the turn."""
        if not flow.touched:
            flow.touched = True
            self.touched.append(flow)

    def flush(self, now: float) -> None:
        """Let every touched flow pay what it owes; that may touch others."""
        touched, self.touched = self.touched, []
        for flow in touched:
            flow.touched = False
            try:
                flow.flush(now)
            except Exception as error:
                self.break_off(flow, error)
            else:
                self._settle(flow)

    def on_deadline(self, flow: TcpFlow, now: float) -> None:
        """The flow's alarm has rung."""
        self.touch(flow)
        try:
            flow.on_deadline(now)
        except Exception as error:
            self.break_off(flow, error)

    def _settle(self, flow: TcpFlow) -> None:
        """Set the flow's alarm, or forget the flow if it has ended."""
        if flow.finished:
            self._forget(flow)
            return
        flow.account()
        self.alarms.arm(flow)
        if flow.guest_state is GuestState.TIME_WAIT and flow not in self._time_waits:
            self._time_waits[flow] = None
            if len(self._time_waits) > TIME_WAITS_MAXIMUM:
                self.counters.count("tcp.time_waits_full")
                oldest = next(iter(self._time_waits))
                del self._time_waits[oldest]
                oldest.end_time_wait()
                self.touch(oldest)

    def _forget(self, flow: TcpFlow) -> None:
        if self.flows.get(flow.key) is flow:
            del self.flows[flow.key]
        of_address = self._of_address.get(flow.key[0], {})
        if flow in of_address:
            del of_address[flow]
            if not of_address:
                del self._of_address[flow.key[0]]
            flow.release()
        self._time_waits.pop(flow, None)
        self.alarms.forget(flow)
        release = self._uses.pop(flow, None)
        if release is not None:
            release()
        for port in self.delivery.switch.ports:
            port.waiting.discard(flow)

    def break_off(self, flow: TcpFlow, error: Exception) -> None:
        """A bug of ours has shown in `flow`: it ends, whatever its state, and no other."""
        self.on_bug(error)
        try:
            flow.break_off()
        except Exception as another:
            self.on_bug(another)
        self._forget(flow)

    # -- segments that the fast way did not take

    def on_segment(
        self, segment: TcpSegment, packet: IpPacket, mac: MacAddress, now: float
    ) -> None:
        """Of a flow, of none, or the start of one; from the guest at `mac`."""
        key = (packet.source, segment.source_port, packet.destination, segment.destination_port)
        flow = self.flows.get(key)
        opens = segment.flags & (SYN | ACK | RST | FIN) == SYN
        beyond = None
        if flow is not None and opens and flow.yields_to_syn(segment.sequence, now):
            self.touch(flow)  # what it still owes the host is paid outside the table
            beyond = flow.sender.sequence_of(flow.sender.next)
            flow = None
        if flow is not None:
            self.touch(flow)
            try:
                _tell(flow, segment, now)
            except Exception as error:
                self.break_off(flow, error)
        elif opens:
            self._open(key, segment, packet, mac, now, beyond)
        elif not segment.flags & RST:
            self._refuse(key, segment, mac)

    def end_others(self, owner: Guest) -> None:
        """Flows from the address of `owner` whose guest is another machine."""
        for flow in tuple(self._of_address.get(owner.address, ())):
            if flow.owner != owner:
                flow.break_off()
                self._forget(flow)

    def judge_again(self, now: float) -> None:
        """The policy has changed: flows that it does not allow any more are reset, both ways."""
        for flow in [flow for each in self._of_address.values() for flow in each]:
            decision = flow.decision
            if decision is not None and not self.admission.still_allows(decision):
                self.counters.count("policy.revoked")
                flow.break_off()
                self._forget(flow)
            elif isinstance(flow.host, Gate):
                flow.host.on_policy(now)
                self.touch(flow)

    def _open(
        self,
        key: FlowKey,
        syn: TcpSegment,
        packet: IpPacket,
        mac: MacAddress,
        now: float,
        beyond: int | None,
    ) -> None:
        destination, port = packet.destination, syn.destination_port
        guest = self.delivery.guest_at(mac, packet.source)
        own = destination in self.addressing.own
        dns = port == DNS_PORT and (own or self.admission.answers_dns(guest, "tcp", destination))
        closed = destination in self.addressing.ours and destination not in self.outward
        if closed:
            closed = self.admission.target_of(guest, "tcp", destination, port, now) is None
        decision = None
        if not dns and not closed:
            decision = self.admission.admit(guest, "tcp", destination, port, now)
            if decision.verdict.action == DENY and self.admission.drops:
                self.counters.count("policy.dropped")
                return
        if syn.maximum_segment_size:
            self.delivery.on_shown_mtu(mac, syn.maximum_segment_size + HEADERS)
        wire = TcpWire(self.delivery, mac, key, packet)
        flow = open_flow(key, syn, wire, self.settings, self.counters, now, beyond)
        wire.bind(flow)
        holdings = self._holdings_of(guest, called=False)
        refused = holdings.refuses_flow()
        self._begin(flow, guest, holdings)
        if refused is not None:
            self.counters.count(refused)
            flow.on_host_failed(None, now)
        elif dns:
            DnsService(flow, partial(self.dns.on_query, guest), self.touch, now)
        elif decision is None:
            self.admission.on_stray(guest, FlowRequest("tcp", destination, port), now)
            flow.on_host_failed(None, now)
        elif decision.verdict.action == DENY:
            self.counters.count("policy.denied")
            flow.on_host_failed(None, now)
        else:
            self._dial(flow, decision, packet.ttl - 1, now)  # one hop is ours (RFC 1812, 5.3.1)

    def _holdings_of(self, owner: Guest, called: bool) -> Holdings:
        """What those flows of a guest hold that it has begun, or those in which it is called."""
        whose = self.delivery.switch.port_of(owner.mac), called
        holdings = self._holdings.get(whose)
        if holdings is None:
            self._holdings = {at: each for at, each in self._holdings.items() if each.flows}
            everybody = self.called if called else self.everybody
            holdings = self._holdings[whose] = Holdings(everybody)
        return holdings

    def _begin(self, flow: TcpFlow, owner: Guest, holdings: Holdings) -> None:
        """A new flow of `owner` takes its place."""
        flow.begin(owner, holdings)
        self.flows[flow.key] = flow
        self._of_address.setdefault(flow.key[0], {})[flow] = None
        self.touch(flow)

    def _dial(self, flow: TcpFlow, decision: Decision, ttl: int, now: float) -> None:
        """Call the server; while the policy listens to what the guest says, a gate is before it."""
        flow.decision = decision
        destination, port = decision.request.destination, decision.request.port
        try:
            match decision.request.redirect:
                case UnixTarget(path):
                    self.edge.dial_unix(flow, path)
                case HostTarget(address, its_port):
                    self.edge.dial(flow, address, its_port, ttl)
                case None:
                    self.edge.dial(flow, self.outward.get(destination, destination), port, ttl)
        except OSError:
            self.counters.count("tcp.no_descriptor")
            flow.on_host_failed(None, now)
            return
        if decision.request.names:
            self._uses[flow] = self.admission.pins(decision.guest).use(destination)
        if decision.verdict.hold and flow.host_state in HOST_HOLDS_SOCKET:
            reader = FirstFlightReader(port)
            flow.host = Gate(
                flow, flow.host, decision, self.admission, reader, self.alarms, self.touch
            )

    def call(self, key: FlowKey, host: HostStream, guest: Guest, now: float) -> TcpFlow | None:
        """Call `guest` at its end of `key`, for the client of `host`; None where there are as many
        flows as there may be."""
        holdings = self._holdings_of(guest, called=True)
        refused = holdings.refuses_flow()
        if refused is not None:
            self.counters.count(refused)
            return None
        wire = TcpWire(self.delivery, guest.mac, key)
        flow = new_flow(key, wire, self.settings, self.counters, now)
        wire.bind(flow)
        self._begin(flow, guest, holdings)
        flow.call(host, now)
        flow.account()
        return flow

    def cut(self, flow: TcpFlow) -> None:
        """End it for both sides, whatever its state."""
        flow.break_off()
        self._forget(flow)

    def _refuse(self, key: FlowKey, segment: TcpSegment, mac: MacAddress) -> None:
        """A segment of a flow that does not exist is reset (RFC 9293, 3.10.7.1)."""
        self.counters.count("tcp.unknown_flow")
        if segment.flags & ACK:
            self.delivery.reset(mac, key, segment.acknowledgment, 0, RST)
            return
        length = len(segment.payload) + bool(segment.flags & SYN) + bool(segment.flags & FIN)
        self.delivery.reset(mac, key, 0, add(segment.sequence, length), RST | ACK)


def _tell(flow: TcpFlow, segment: TcpSegment, now: float) -> None:
    if flow.guest_state is GuestState.SYN_SENT and segment.flags & SYN:
        flow.on_answer(segment, now)
        return
    flow.on_segment(
        segment.sequence,
        segment.acknowledgment,
        segment.flags,
        segment.window,
        segment.payload,
        len(segment.payload),
        now,
        segment.selective,
    )
