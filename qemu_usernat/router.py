"""The heart, sans-IO: frames of guests in, events of the host in, time in; one turn each.

It owns the way of a frame: the fast tier and the flow table, and beside them the slow way of
everything that opens, refuses or is answered by the gateway itself. It decides nothing about
a flow once that exists, and it knows neither sockets nor clocks: `HostEdge` opens sockets,
and ``now`` is an argument.

A turn is any number of ``on_…`` calls and then one `end_turn`, in which every flow that was
touched pays what it owes and every port sends.
"""

from typing import Protocol

from attrs import define, field

from qemu_usernat.admission import Admission
from qemu_usernat.config.network import Network
from qemu_usernat.connections import Connections, TcpEdge
from qemu_usernat.datagrams import Datagrams
from qemu_usernat.delivery import ETHERNET_MTU, Delivery
from qemu_usernat.gate import Gate
from qemu_usernat.gateway.dhcp import SERVER_PORT, DhcpServer
from qemu_usernat.gateway.dns import DnsForwarder
from qemu_usernat.gateway.dns_gate import DnsGate
from qemu_usernat.gateway.icmp import ERROR_TYPES, ErrorLimiter
from qemu_usernat.gateway.tftp import OpenFile
from qemu_usernat.guest_errors import GuestErrors
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.port import STALLED_AT, Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.echo import QUOTED, EchoFlow
from qemu_usernat.nat.fragments import Reassembler
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.opening import TcpSettings
from qemu_usernat.nat.udp import QUOTED_PAYLOAD, UdpMapping
from qemu_usernat.pings import Pings
from qemu_usernat.policy.groups import is_martian
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import (
    ANY_IPV4,
    DNS_PORT,
    LOOPBACK_IPV4,
    Address,
    FlowKey,
    MacAddress,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import BugCallback, Malformed, surface
from qemu_usernat.services import SERVICE_PORTS, Services
from qemu_usernat.wire.decoder import decode, decode_transport
from qemu_usernat.wire.emit import ETHERNET_HEADER
from qemu_usernat.wire.headers import Peeked, peek, peek_fragment
from qemu_usernat.wire.icmp import (
    ADMINISTRATIVELY_PROHIBITED,
    HOST_UNREACHABLE,
    PROTOCOL_UNREACHABLE,
    REASSEMBLY_TIME_EXCEEDED,
    TIME_EXCEEDED,
    TTL_EXCEEDED,
    IcmpError,
)
from qemu_usernat.wire.ipv4 import HEADER as IP_HEADER
from qemu_usernat.wire.ipv6 import addressee, seeks_router
from qemu_usernat.wire.packets import (
    ICMP,
    TCP,
    UDP,
    Arp,
    Frame,
    IcmpMessage,
    IpPacket,
    TcpSegment,
    UdpDatagram,
)

_GROUP = 1
"""Of the first byte of a MAC address: it is a group's (IEEE 802.3, 3.2.3)."""

PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}

IPV6 = b"\x86\xdd"  # as an Ethernet type


class HostEdge(TcpEdge, Protocol):
    """What the router asks of the host."""

    def open_udp(self, mapping: UdpMapping) -> None:
        """Set `mapping.host`. OSError if there is no descriptor."""

    def open_echo(self, flow: EchoFlow) -> None:
        """Set `flow.host`. OSError if the host carries no ping."""

    def flush(self, now: float) -> None:
        """The turn ends: send what was kept to be sent together."""


@define(eq=False)
class Router:
    """One network: its segment, its gateway, its flows."""

    network: Network
    edge: HostEdge
    dns: DnsForwarder
    admission: Admission
    secret: bytes
    """Key of the initial sequence numbers (RFC 6528), at least 16 bytes."""
    counters: Counters
    on_bug: BugCallback = surface
    open_file: OpenFile | None = None
    """What guests may read by TFTP."""
    dns_gate: DnsGate = field(init=False)
    switch: Switch = field(init=False)
    connections: Connections = field(init=False)
    datagrams: Datagrams = field(init=False)
    pings: Pings = field(init=False)
    alarms: Alarms = field(factory=Alarms)
    _delivery: Delivery = field(init=False)
    _reassembler: Reassembler = field(init=False)
    _guest_errors: GuestErrors = field(init=False)
    _addressing: Addressing = field(init=False)
    _services: Services = field(init=False)

    def __attrs_post_init__(self) -> None:
        network, counters = self.network, self.counters
        addressing = self._addressing = Addressing(network)
        gateway = network.gateway.packed
        outward = {gateway: LOOPBACK_IPV4} if network.host_loopback else {}
        self.switch = Switch(network.gateway_mac, self.on_frame, counters)
        self.switch.guard.is_guest = addressing.is_guest
        self.switch.guard.on_owner = self._on_owner
        self.switch.guard.reserved = {
            each.address.packed: each.mac for each in network.reservations
        }
        limiter = ErrorLimiter(network.subnet.broadcast_address.packed)
        self._delivery = Delivery(
            self.switch, network.gateway_mac, gateway, network.mtu, limiter, counters
        )
        self.dns_gate = DnsGate(self.dns, self.admission, counters)
        self.datagrams = Datagrams(
            self._delivery,
            self.edge.open_udp,
            addressing.own,
            outward,
            self.admission,
            self.alarms,
            counters,
            network.udp_filtering,
        )
        self.connections = Connections(
            self._delivery,
            self.edge,
            self.dns_gate,
            self.admission,
            TcpSettings(network.mtu, self.secret, network.congestion),
            addressing.own,
            outward,
            self.alarms,
            counters,
            self.on_bug,
        )
        self.pings = Pings(
            self._delivery, self.edge.open_echo, self.admission, self.alarms, counters
        )
        self._guest_errors = GuestErrors(
            self._delivery, self.connections, self.datagrams, self.pings, counters
        )
        self._reassembler = Reassembler(counters)
        self._services = Services(
            addressing,
            self.switch,
            self._delivery,
            self.dns_gate,
            self.admission,
            counters,
            self.open_file,
        )

    # -- the turn

    def touch(self, flow: TcpFlow) -> None:
        """Something happened to `flow`: flush it at the end of the turn."""
        self.connections.touch(flow)

    def end_turn(self, now: float) -> None:
        """Let every touched flow pay what it owes, and every port send."""
        while True:
            self.edge.flush(now)
            self.connections.flush(now)
            self._send()
            if not self.connections.touched:
                return

    def _send(self) -> None:
        for port in tuple(self.switch.ports):
            if port.outbox:
                port.transmit()
            if port.waiting and port.queued < STALLED_AT:
                self._wake(port)

    def _wake(self, port: Port) -> None:
        """The flows that stopped for a stalled port go on."""
        while port.waiting:
            self.connections.touch(port.waiting.pop())

    def on_link_down(self, port: Port, now: float) -> None:
        """A guest's link is gone; its flows go on for when it comes back."""
        self._wake(port)
        self.switch.guard.forget(port.addresses)
        self._services.on_link_down(port.addresses, now)
        self._delivery.limiter.forget(port.name)

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        return min(
            self.alarms.earliest(),
            self._reassembler.deadline(),
            self.dns.deadline(),
            self._services.deadline(),
        )

    def on_deadline(self, now: float) -> None:
        """Wake whoever is due."""
        for sleeper in self.alarms.ring(now):
            if isinstance(sleeper, TcpFlow):
                self.connections.on_deadline(sleeper, now)
            elif isinstance(sleeper, UdpMapping):
                self.datagrams.on_deadline(sleeper, now)
            elif isinstance(sleeper, EchoFlow):
                self.pings.on_deadline(sleeper, now)
            elif isinstance(sleeper, Gate):
                sleeper.on_deadline(now)
        if self._reassembler.deadline() <= now:
            self._expire_fragments(now)
        if self.dns.deadline() <= now:
            self.dns.on_deadline(now)
        self._services.on_deadline(now)

    def _expire_fragments(self, now: float) -> None:
        for first, mac in self._reassembler.expire(now):
            error = IcmpError(TIME_EXCEEDED, REASSEMBLY_TIME_EXCEEDED)
            self._delivery.error(mac, first, error, now)

    def _on_owner(self, address: Address, mac: MacAddress) -> None:
        """What another machine has begun from the address of this one is not this one's."""
        self.connections.end_others(address, mac)
        self.datagrams.end_others(address, mac)
        self.pings.end_others(address, mac)

    def on_policy(self, guarded: bool, now: float) -> None:
        """The policy has changed: what it does not allow any more ends now."""
        self.switch.guard_sources(guarded)
        self.connections.judge_again(now)
        self.datagrams.judge_again()
        self.pings.judge_again()

    def close(self) -> None:
        """Give every descriptor of the host back."""
        for sleeper in tuple(self.alarms):  # every flow and mapping has a deadline
            if isinstance(sleeper, TcpFlow):
                sleeper.abandon()
            elif isinstance(sleeper, UdpMapping):
                self.datagrams.close(sleeper)
            elif isinstance(sleeper, EchoFlow):
                self.pings.close(sleeper)
        self._services.close()

    # -- frames: the fast way

    def on_frame(self, frame: memoryview, now: float) -> None:
        """A frame for the gateway's MAC address, or for everybody; at least 14 bytes."""
        peeked = None if frame[0] & _GROUP else peek(frame)
        if peeked is not None:
            (protocol, source, source_port, destination, destination_port, start, end,
             sequence, acknowledgment, flags, window, selective) = peeked  # fmt: skip
            if protocol == TCP:
                guard = self.switch.guard
                connections = self.connections
                flow = connections.flows.get((source, source_port, destination, destination_port))
                if flow is not None and (
                    not guard.on or guard.is_owner(source, self.switch.speaker)
                ):
                    if not flow.touched:
                        connections.touch(flow)
                    try:
                        flow.on_segment(
                            sequence,
                            acknowledgment,
                            flags,
                            window,
                            frame[start:end],
                            end - start,
                            now,
                            selective,
                        )
                    except Exception as error:
                        connections.break_off(flow, error)
                    return
            elif protocol == ICMP:
                if self._on_plain_ping(frame, peeked, now):
                    return
            elif self._on_plain_datagram(frame, peeked, now):
                return
        self._on_unusual_frame(frame, now)

    def _on_plain_datagram(self, frame: memoryview, peeked: Peeked, now: float) -> bool:
        """A datagram of a mapping that has sent there before, or one for a service of ours; False
        for any other."""
        _, source, source_port, destination, destination_port, start, end, *_ = peeked
        guard = self.switch.guard
        if guard.on and not guard.is_owner(source, self.switch.speaker):
            return False
        key = (source, source_port, destination, destination_port)
        if self._is_service(key, frame[start:end], now):
            return True
        if destination_port not in SERVICE_PORTS:
            return self.datagrams.on_known(
                source, source_port, destination, destination_port, frame[start:end],
                frame[14 : min(end, start + QUOTED_PAYLOAD)], frame[6:12], now,
            )  # fmt: skip
        if destination_port != DNS_PORT or end > ETHERNET_HEADER + ETHERNET_MTU:
            return False
        try:
            return self._services.on_question(
                source, source_port, destination, frame[start:end], frame[6:12], now
            )
        except Exception as error:
            self.on_bug(error)
            return True

    def _on_plain_ping(self, frame: memoryview, peeked: Peeked, now: float) -> bool:
        """A ping of a flow that has asked there before; False for any other."""
        _, source, identifier, destination, sequence, start, end, *_ = peeked
        guard = self.switch.guard
        if guard.on and not guard.is_owner(source, self.switch.speaker):
            return False
        head = frame[ETHERNET_HEADER : min(end, ETHERNET_HEADER + IP_HEADER + QUOTED)]
        return self.pings.on_known(
            source, identifier, destination, sequence, frame[start:end], head, frame[6:12], now
        )

    def _is_service(self, key: FlowKey, payload: memoryview, now: float) -> bool:
        try:
            return self._services.on_known(key, payload, now)
        except Malformed as error:
            self.counters.count(error.reason)
        except Exception as error:
            self.on_bug(error)
        return True

    # -- frames: the way aside

    def _on_unusual_frame(self, frame: memoryview, now: float) -> None:
        try:
            packet = None if frame[0] & _GROUP else peek_fragment(frame)
            if packet is not None:
                self._on_packet(packet, frame[6:12].tobytes(), now)
            elif frame[12:14] == IPV6:
                self._on_ipv6(frame.tobytes(), now)
            else:
                self._on_decoded(decode(frame), now)
        except Malformed as error:
            self.counters.count(error.reason)
        except Exception as error:
            self.on_bug(error)

    def _on_decoded(self, frame: Frame, now: float) -> None:
        packet = frame.content
        if isinstance(packet, Arp):
            self._services.on_arp(packet, frame.source, now)
        elif frame.destination[0] & _GROUP and not self._addressing.is_group(packet.destination):
            # RFC 1122, 3.3.6, and RFC 1812, 5.3.4: meant for nobody, or for a fool.
            self.counters.count("ipv4.unicast_to_everybody")
        else:
            self._on_packet(packet, frame.source, now)

    def _on_ipv6(self, octets: bytes, now: float) -> None:
        """There is none yet; whoever wants to know hears whom it was for."""
        self.counters.count("ethernet.ipv6_not_supported")
        protocol, source, destination, port = addressee(octets)
        if seeks_router(octets):
            self._services.on_router_sought(octets[6:12])
        guest = self._delivery.guest_at(octets[6:12], source)
        self.admission.on_stray(guest, FlowRequest(protocol, destination, port), now)

    def _on_packet(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        """A packet whose header is right, from the guest at `mac`."""
        self._delivery.on_shown_mtu(mac, len(packet.header) + len(packet.payload))
        if not self._addressing.is_guest(packet.source):
            if packet.source == ANY_IPV4 and packet.protocol == UDP:
                self._on_packet_of_nobody(packet, mac, now)
            else:
                self.counters.count("ipv4.martian_source")  # RFC 1812, 5.3.7
                self._tell_stray(packet, mac, now)
            return
        if not self.switch.guard.may_use(packet.source, mac):
            self.counters.count("ipv4.spoofed_source")
            self._tell_refusal(packet, mac, Why.SPOOFED, now)
            return
        self._delivery.on_neighbour(packet.source, mac)
        whole: IpPacket | None = packet
        if self._addressing.is_for_gateway(packet.destination) or self._may_leave(packet, mac, now):
            if packet.more_fragments or packet.fragment_offset:
                whole = self._reassembler.add(packet, mac, self.switch.port_of(mac), now)
            if whole is not None:
                self._on_whole_packet(whole, mac, now)

    def _on_packet_of_nobody(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        """From 0.0.0.0: a guest without an address, which may speak DHCP only."""
        content = decode_transport(packet)
        if isinstance(content, UdpDatagram) and content.destination_port == SERVER_PORT:
            self._services.on_dhcp(content.payload, mac, now)
        else:
            self.counters.count("ipv4.martian_source")

    def _may_leave(self, packet: IpPacket, mac: MacAddress, now: float) -> bool:
        """Whether a packet may go on to the host's world; says no to the guest where it may not."""
        destination = packet.destination
        if is_martian(destination):  # 0.0.0.0 would dial the host's loopback
            self.counters.count("ipv4.martian_destination")
            self._tell_refusal(packet, mac, Why.MARTIAN, now)
            self._delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)
            return False
        if self._addressing.is_local(destination):
            self.counters.count("ipv4.no_such_guest")
            if not self._services.is_here(destination, now):
                self._tell_stray(packet, mac, now)
            self._delivery.unreachable(mac, packet, HOST_UNREACHABLE, now)
            return False
        if packet.ttl <= 1:
            self.counters.count("ipv4.ttl_exceeded")
            self._delivery.error(mac, packet, IcmpError(TIME_EXCEEDED, TTL_EXCEEDED), now)
            return False
        return True

    def _tell_refusal(self, packet: IpPacket, mac: MacAddress, why: Why, now: float) -> None:
        """Whoever audits hears of it."""
        guest = self._delivery.guest_at(mac, packet.source)
        self.admission.refuse(guest, _request(packet), why, now)

    def _tell_stray(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        """Whoever wants to know hears that nobody is there."""
        guest = self._delivery.guest_at(mac, packet.source)
        self.admission.on_stray(guest, _request(packet), now)

    def _on_whole_packet(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        if packet.protocol not in (ICMP, TCP, UDP):
            self.counters.count("ipv4.unknown_protocol")
            self._tell_refusal(packet, mac, Why.UNCARRIED, now)
            self._delivery.unreachable(mac, packet, PROTOCOL_UNREACHABLE, now)
            return
        content = decode_transport(packet)
        group = self._addressing.is_group(packet.destination)
        if isinstance(content, UdpDatagram):
            if self._services.on_datagram(content, packet, mac, now):
                return
            if group:
                self.counters.count("udp.broadcast_or_multicast")
                self._tell_stray(packet, mac, now)
            else:
                self.datagrams.on_datagram(content, packet, mac, now)
        elif group:
            self.counters.count("ipv4.broadcast_or_multicast")
            self._tell_stray(packet, mac, now)
        elif isinstance(content, IcmpMessage) and content.type in ERROR_TYPES:
            self._guest_errors.on_error(content, packet)
        elif isinstance(content, TcpSegment):
            self.connections.on_segment(content, packet, mac, now)
        elif packet.destination in self._addressing.own:
            self._services.on_icmp(content, packet, mac, now)
        else:
            self.pings.on_message(content, packet, mac, now)

    # -- who is who

    @property
    def dhcp(self) -> DhcpServer:
        """Who has which address, and what it is called."""
        return self._services.dhcp

    def link_of(self, address: Address) -> str:
        """The name of the link whose guest speaks from `address`; "" where none does."""
        return self._delivery.link_of(address)


def _request(packet: IpPacket) -> FlowRequest:
    """Whom it is for; a fragment but the first has no port."""
    protocol = PROTOCOLS.get(packet.protocol, f"{packet.protocol}")
    has_port = packet.protocol in (TCP, UDP) and not packet.fragment_offset
    port = int.from_bytes(packet.payload[2:4], "big") if has_port else 0
    return FlowRequest(protocol, packet.destination, port)
