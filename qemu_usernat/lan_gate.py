"""What guests say to each other, where a policy holds: whose frame may go to whom.

It owns who may begin what on the segment, and what a guest is told that may not; what was let in
is `lan_flows`'s to remember. Between guests pass ARP, by the one that it names, and of IPv4 TCP,
UDP and ping, from a guest's own address to one that the machine it is for has. Nothing is said
there that is the gateway's to say: a guest that answers for the gateway, leases addresses or
redirects its neighbours would have their packets.

A flow is judged by the policy of the guest that begins it, before its first packet is passed on;
what belongs to it passes then, both ways, and so do errors about it. What is denied fails at once:
TCP is reset in the neighbour's name, UDP and pings are told by the gateway. What is for a group is
judged alike, and dropped without a word where it may not pass.

Of fragments the first has to say all that is judged, and the others pass only behind it.
"""

from collections import OrderedDict
from struct import Struct
from typing import TypeAlias

from attrs import define, field, frozen

from qemu_usernat.admission import Admission, Decision, Guest
from qemu_usernat.delivery import Delivery
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.guard import SourceGuard
from qemu_usernat.lan.port import JoinPort, Port
from qemu_usernat.lan_flows import LanFlow, LanFlows, LanKey, Side
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import (
    ANY_IPV4,
    BROADCAST_IPV4,
    DNS_PORT,
    Address,
    MacAddress,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.primitives.sequence import add
from qemu_usernat.primitives.time import SECOND
from qemu_usernat.wire.decoder import decode
from qemu_usernat.wire.headers import Located, locate
from qemu_usernat.wire.icmp import (
    ADMINISTRATIVELY_PROHIBITED,
    DESTINATION_UNREACHABLE,
    ECHO_REPLY,
    ECHO_REQUEST,
    PARAMETER_PROBLEM,
    PROTOCOL_UNREACHABLE,
    TIME_EXCEEDED,
    read_quote,
)
from qemu_usernat.wire.packets import ACK, FIN, ICMP, RST, SYN, TCP, UDP, Arp, IpPacket

_GROUP = 1
"""Of the first byte of a MAC address: it is a group's (IEEE 802.3, 3.2.3)."""

_DHCP_SERVER_PORT = 67  # RFC 2131, 4.1

_ARP_END = 42  # bytes, with the Ethernet header (RFC 826)

_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}

_HEADERS = {ICMP: 8, TCP: 20, UDP: 8}
"""Bytes that a packet has to have before it is judged, all in its first fragment (RFC 1858)."""

_ERRORS = frozenset({DESTINATION_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM})
"""What guests may tell each other of a flow; a redirect would lead a neighbour astray."""

FRAGMENTS_TIME = 30 * SECOND  # as Linux waits for the rest (ipfrag_time)

DATAGRAMS_MAXIMUM = 256
"""Datagrams of one guest whose first fragment was let in; of more, the first is forgotten, and
what it still lacks is lost."""

_Datagram: TypeAlias = tuple[Address, Address, int, int]
"""Source, destination, protocol and identification (RFC 791)."""

_MORE, _OFFSET = 0x2000, 0x1FFF

_tcp = Struct(">HHIIBB").unpack_from


@frozen
class _Said:
    """What there is to judge in a packet of a guest's for another."""

    mac: MacAddress
    port: Port
    target: Port | None
    """None where it is for a group."""
    target_mac: MacAddress
    protocol: int
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    frame: memoryview
    at: int
    """Where its payload begins in the frame, and `end` where it ends."""
    end: int

    @property
    def key(self) -> LanKey:
        return (
            self.protocol, self.source, self.source_port, self.destination, self.destination_port
        )  # fmt: skip

    @property
    def answer(self) -> LanKey:
        """The key of what answers it."""
        if self.protocol == ICMP:
            return ICMP, self.destination, self.source_port, self.source, ECHO_REPLY
        return (
            self.protocol, self.destination, self.destination_port, self.source, self.source_port
        )  # fmt: skip


def _is_for_dhcp_server(frame: memoryview, located: Located | None) -> bool:
    """Whether a guest looks for one, as all do that have no address yet."""
    is_group = bool(frame[0] & _GROUP)
    if not is_group or located is None or located[0] != UDP or located[4] & _OFFSET:
        return False
    start = located[5]
    return frame[start + 2 : start + 4] == _DHCP_SERVER_PORT.to_bytes(2, "big")


@define(eq=False)
class LanGate:
    """Between the guests of one network, under a policy."""

    addressing: Addressing
    guard: SourceGuard
    delivery: Delivery
    admission: Admission
    counters: Counters
    flows: LanFlows = field(factory=LanFlows)
    _fragments: "dict[Port, OrderedDict[_Datagram, float]]" = field(factory=dict)
    """By sender: datagrams whose first fragment was let in, and until when the others may come."""

    def lets_pass(
        self, frame: memoryview, port: Port, target: Port | None, now: float
    ) -> memoryview | None:
        """What of a frame of the guest at `port` may go on to the one at `target`, or to all where
        that is None: its packet, and nothing behind that, for nobody has looked there."""
        located = locate(frame)
        if _is_for_dhcp_server(frame, located):
            return None  # which is the gateway, and hears it: nobody else need
        try:
            if self._lets_pass(frame, located, port, target, now):
                return frame[: _ARP_END if located is None else located[-1]]
        except Malformed:
            pass
        self.counters.count("ethernet.guarded")
        return None

    def _lets_pass(
        self,
        frame: memoryview,
        located: Located | None,
        port: Port,
        target: Port | None,
        now: float,
    ) -> bool:
        mac = frame[6:12].tobytes()
        if located is None:
            content = decode(frame).content  # Malformed of all that is neither IPv4 nor ARP
            return isinstance(content, Arp) and self._may_ask(content, mac, port)
        protocol, source, destination, identification, word, start, end = located
        if source == ANY_IPV4 or not self._is_its_own(source, mac, port):
            return False
        is_group = bool(frame[0] & _GROUP)
        target_mac = frame[:6].tobytes()
        if is_group:
            if not self.addressing.is_group(destination):
                return False
        elif not (
            self.addressing.is_guest(destination) and self.guard.is_owner(destination, target_mac)
        ):
            return False
        offset = (word & _OFFSET) * 8
        datagram = source, destination, protocol, identification
        if offset:
            return offset >= _HEADERS.get(protocol, 0) and self._is_begun(port, datagram, now)
        if protocol not in _HEADERS:
            self._refuse_protocol(frame, mac, source, protocol, is_group, now)
            return False
        if end - start < _HEADERS[protocol]:
            return False
        if protocol == ICMP:
            kind, code = frame[start], frame[start + 1]
            ports = int.from_bytes(frame[start + 4 : start + 6], "big"), kind
            if kind not in (ECHO_REQUEST, ECHO_REPLY) or code:
                return kind in _ERRORS and self._is_about_known(
                    frame, source, destination, start, end
                )
        else:
            ports = (
                int.from_bytes(frame[start : start + 2], "big"),
                int.from_bytes(frame[start + 2 : start + 4], "big"),
            )
        said = _Said(
            mac, port, target, target_mac, protocol, source, ports[0], destination, ports[1],
            frame, start, end,
        )  # fmt: skip
        passes = self._is_let_in(said, now)
        if passes and word & _MORE:
            own = self._fragments.setdefault(port, OrderedDict())
            own[datagram] = now + FRAGMENTS_TIME
            if len(own) > DATAGRAMS_MAXIMUM:
                own.popitem(last=False)
        return passes

    def _is_begun(self, port: Port, datagram: _Datagram, now: float) -> bool:
        """Whether its first fragment was let in."""
        own = self._fragments.get(port)
        return own is not None and now < own.get(datagram, 0.0)

    def _is_its_own(self, address: Address, mac: MacAddress, port: Port) -> bool:
        join = port if isinstance(port, JoinPort) else None
        return self.addressing.is_guest(address) and self.guard.may_use(address, mac, join)

    def _may_ask(self, arp: Arp, mac: MacAddress, port: Port) -> bool:
        """It says who it is, and has that address, or none yet (RFC 5227: it asks first)."""
        address = arp.sender_address
        return arp.sender_mac == mac and (
            address == ANY_IPV4 or self._is_its_own(address, mac, port)
        )

    def _is_about_known(
        self, frame: memoryview, source: Address, destination: Address, start: int, end: int
    ) -> bool:
        """Whether an ICMP error is about what this guest was told by that one."""
        quote = read_quote(frame[start + 8 : end].tobytes())
        ports = quote.ports
        if quote.protocol == ICMP:
            ports = int.from_bytes(quote.beginning[4:6], "big"), quote.beginning[0]
        key = quote.protocol, quote.source, ports[0], quote.destination, ports[1]
        is_between = (quote.source, quote.destination) == (destination, source)
        return is_between and self.flows.is_known(key)

    # -- flows

    def _is_let_in(self, said: _Said, now: float) -> bool:
        side = self.flows.find(said.key, said.port, said.mac, now)
        if said.protocol == TCP:
            return said.target is not None and self._is_segment_let_in(said, side, now)
        if side is not None:
            return True
        if said.protocol == ICMP and (said.target is None or said.destination_port == ECHO_REPLY):
            return False
        if said.protocol == UDP and _DHCP_SERVER_PORT in (said.source_port, said.destination_port):
            return False  # leases are the gateway's to give
        return self._begin(said, now) is not None

    def _is_segment_let_in(self, said: _Said, side: Side | None, now: float) -> bool:
        _, _, _, acknowledgment, _, flags = _tcp(said.frame, said.at)
        if flags & (SYN | ACK | RST) == SYN:
            goes_on = side is not None and side is side.flow.opener and not side.flow.has_ended
            return goes_on or self._begin(said, now) is not None
        if side is None:
            if not flags & RST:
                self.counters.count("tcp.unknown_flow")
                self._reset(said)
            return False
        if flags & RST:
            self.flows.remove(side.flow)
        if flags & ACK:
            side.acknowledged = acknowledgment
        side.has_ended = side.has_ended or bool(flags & FIN)
        return True

    def _begin(self, said: _Said, now: float) -> LanFlow | None:
        """Judge it; the flow, if it may begin, else None, and the guest is told."""
        guest = Guest(said.mac, said.port.name, said.source)
        decision = self._judge(guest, said, now)
        if decision is None or decision.verdict.action != ALLOW:
            self._deny(said, now)
            return None
        flow = LanFlow(decision, now)
        flow.opener = Side(flow, said.key, guest, said.port)
        if said.target is not None:
            other = Guest(said.target_mac, said.target.name, said.destination)
            flow.target = Side(flow, said.answer, other, said.target)
        if self.flows.make_room(said.port):
            self.counters.count("lan.flow_gave_way")
        self.flows.add(flow, said.port)
        return flow

    def _judge(self, guest: Guest, said: _Said, now: float) -> Decision | None:
        """None where it is no matter of the rules: names are asked of the gateway."""
        protocol, destination = _NAMES[said.protocol], said.destination
        port = 0 if said.protocol == ICMP else said.destination_port
        if said.target is None:
            if destination == BROADCAST_IPV4:  # it reaches whom the subnet's own reaches
                destination = self.addressing.network.subnet.broadcast_address.packed
            return self.admission.admit(guest, protocol, destination, port, now)
        if port == DNS_PORT and self.admission.answers_dns(guest, protocol, destination):
            request = FlowRequest(protocol, destination, port)
            self.admission.refuse(guest, request, Why.NAME_SERVICE, now)
            return None
        return self.admission.admit_neighbour(guest, protocol, destination, port, now)

    # -- refusals

    def _deny(self, said: _Said, now: float) -> None:
        if self.admission.drops:
            self.counters.count("policy.dropped")
            return
        self.counters.count("policy.denied")
        if said.protocol == TCP:
            self._reset(said)
        elif said.target is not None:
            self._unreachable(said.frame, said.mac, ADMINISTRATIVELY_PROHIBITED, now)

    def _reset(self, said: _Said) -> None:
        """A segment of nothing is reset, in the name of whom it was for (RFC 9293, 3.10.7.1)."""
        _, _, sequence, acknowledgment, offset, flags = _tcp(said.frame, said.at)
        key = said.source, said.source_port, said.destination, said.destination_port
        if flags & ACK:
            self.delivery.reset(said.mac, key, acknowledgment, 0, RST, said.target_mac)
            return
        length = max(0, said.end - said.at - 4 * (offset >> 4))
        beyond = add(sequence, length + bool(flags & SYN) + bool(flags & FIN))
        self.delivery.reset(said.mac, key, 0, beyond, RST | ACK, said.target_mac)

    def _refuse_protocol(
        self, frame: memoryview, mac: MacAddress, source: Address, protocol: int, is_group: bool,
        now: float,
    ) -> None:  # fmt: skip
        """Neither TCP, UDP nor ICMP; to groups systems say such things by themselves (IGMP)."""
        self.counters.count("ipv4.unknown_protocol")
        if is_group:
            return
        request = FlowRequest(f"{protocol}", frame[30:34].tobytes(), 0)
        guest = self.delivery.guest_at(mac, source)
        self.admission.refuse(guest, request, Why.UNCARRIED, now)
        if not self.admission.drops:
            self._unreachable(frame, mac, PROTOCOL_UNREACHABLE, now)

    def _unreachable(self, frame: memoryview, mac: MacAddress, code: int, now: float) -> None:
        packet = decode(frame).content
        if isinstance(packet, IpPacket):
            self.delivery.unreachable(mac, packet, code, now)

    # -- what happens around it

    def on_link_down(self, port: Port) -> None:
        """Its guest is gone, perhaps for a moment."""
        self.flows.leave(port)
        self._fragments.pop(port, None)

    def on_policy(self, guarded: bool) -> None:
        """Another policy, or none: what it does not allow any more is reset, both ways."""
        self._fragments.clear()
        if not guarded:
            self.flows.clear()
            return
        for flow in self.flows.all():
            if not self.admission.still_allows(flow.decision):
                self.counters.count("policy.revoked")
                self.flows.remove(flow)
                if flow.opener.key[0] == TCP and flow.target is not None:
                    self._reset_side(flow.opener, flow.target)
                    self._reset_side(flow.target, flow.opener)

    def _reset_side(self, side: Side, other: Side) -> None:
        """In the name of the other; to one that has not said what it expects, once it speaks."""
        if side.acknowledged is not None:
            _, source, source_port, destination, destination_port = side.key
            key = source, source_port, destination, destination_port
            self.delivery.reset(side.guest.mac, key, side.acknowledged, 0, RST, other.guest.mac)
