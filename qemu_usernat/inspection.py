"""The way aside: a frame that the fast way does not know is read whole, and goes to whom it is for.

It owns what makes a packet one that is carried at all: its addresses, its hops, its fragments, its
protocol; and who is told of one that is not. What it asks for is for the other rooms to judge.
"""

from attrs import define, field

from qemu_usernat.admission import Admission
from qemu_usernat.connections import Connections
from qemu_usernat.datagrams import Datagrams
from qemu_usernat.delivery import Delivery
from qemu_usernat.gateway.dhcp import SERVER_PORT
from qemu_usernat.gateway.icmp import ERROR_TYPES
from qemu_usernat.guest_errors import GuestErrors
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.switch import Switch
from qemu_usernat.nat.fragments import Reassembler
from qemu_usernat.pings import Pings
from qemu_usernat.policy.groups import is_martian
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import ANY_IPV4, MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.services import Services
from qemu_usernat.visits import Visits
from qemu_usernat.wire.decoder import decode, decode_transport
from qemu_usernat.wire.headers import peek_fragment
from qemu_usernat.wire.icmp import (
    ADMINISTRATIVELY_PROHIBITED,
    HOST_UNREACHABLE,
    PROTOCOL_UNREACHABLE,
    REASSEMBLY_TIME_EXCEEDED,
    TIME_EXCEEDED,
    TTL_EXCEEDED,
    IcmpError,
)
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


@define(eq=False)
class Inspection:
    """Of all that the guests of one network send for the first time, or in an unusual way."""

    addressing: Addressing
    switch: Switch
    delivery: Delivery
    services: Services
    connections: Connections
    datagrams: Datagrams
    visits: Visits
    pings: Pings
    admission: Admission
    counters: Counters
    guest_errors: GuestErrors = field(init=False)
    _reassembler: Reassembler = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.guest_errors = GuestErrors(
            self.delivery,
            self.connections,
            self.datagrams,
            self.visits,
            self.pings,
            self.counters,
        )
        self._reassembler = Reassembler(self.counters)

    # -- time

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        return self._reassembler.deadline()

    def on_deadline(self, now: float) -> None:
        """Give up what has waited too long for the rest of its fragments."""
        for first, mac in self._reassembler.expire(now):
            error = IcmpError(TIME_EXCEEDED, REASSEMBLY_TIME_EXCEEDED)
            self.delivery.error(mac, first, error, now)

    # -- frames

    def on_frame(self, frame: memoryview, now: float) -> None:
        """A frame of at least 14 bytes, for the gateway's MAC address or for everybody. Malformed
        if it is none."""
        packet = None if frame[0] & _GROUP else peek_fragment(frame)
        if packet is not None:
            self._on_packet(packet, frame[6:12].tobytes(), now)
        elif frame[12:14] == IPV6:
            self._on_ipv6(frame.tobytes(), now)
        else:
            self._on_decoded(decode(frame), now)

    def _on_decoded(self, frame: Frame, now: float) -> None:
        packet = frame.content
        if isinstance(packet, Arp):
            self.services.on_arp(packet, frame.source, now)
        elif frame.destination[0] & _GROUP and not self.addressing.is_group(packet.destination):
            # RFC 1122, 3.3.6, and RFC 1812, 5.3.4: meant for nobody, or for a fool.
            self.counters.count("ipv4.unicast_to_everybody")
        else:
            self._on_packet(packet, frame.source, now)

    def _on_ipv6(self, octets: bytes, now: float) -> None:
        """There is none yet; whoever wants to know hears whom it was for."""
        self.counters.count("ethernet.ipv6_not_supported")
        protocol, source, destination, port = addressee(octets)
        if seeks_router(octets):
            self.services.on_router_sought(octets[6:12])
        guest = self.delivery.guest_at(octets[6:12], source)
        self.admission.on_stray(guest, FlowRequest(protocol, destination, port), now)

    def _on_packet(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        """A packet whose header is right, from the guest at `mac`."""
        self.delivery.on_shown_mtu(mac, len(packet.header) + len(packet.payload))
        if not self.addressing.is_guest(packet.source):
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
        self.delivery.on_neighbour(packet.source, mac, now)
        whole: IpPacket | None = packet
        if self.addressing.is_for_gateway(packet.destination) or self._may_leave(packet, mac, now):
            if packet.more_fragments or packet.fragment_offset:
                whole = self._reassembler.add(packet, mac, self.switch.port_of(mac), now)
            if whole is not None:
                self._on_whole_packet(whole, mac, now)

    def _on_packet_of_nobody(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        """From 0.0.0.0: a guest without an address, which may speak DHCP only."""
        content = decode_transport(packet)
        if isinstance(content, UdpDatagram) and content.destination_port == SERVER_PORT:
            self.services.on_dhcp(content.payload, mac, now)
        else:
            self.counters.count("ipv4.martian_source")

    def _may_leave(self, packet: IpPacket, mac: MacAddress, now: float) -> bool:
        """Whether a packet may go on to the host's world; says no to the guest where it may not."""
        destination = packet.destination
        if is_martian(destination):  # 0.0.0.0 would dial the host's loopback
            self.counters.count("ipv4.martian_destination")
            self._tell_refusal(packet, mac, Why.MARTIAN, now)
            self.delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)
            return False
        if self.addressing.is_local(destination) and self.switch.isolated:
            # No host unreachable: that is a passing trouble, and would be a lie of one who is here.
            self.counters.count("ipv4.isolated")
            self._tell_refusal(packet, mac, Why.ISOLATED, now)
            self.delivery.unreachable(mac, packet, ADMINISTRATIVELY_PROHIBITED, now)
            return False
        if self.addressing.is_local(destination):
            self.counters.count("ipv4.no_such_guest")
            if not self.services.is_here(destination, now):
                self._tell_stray(packet, mac, now)
            self.delivery.unreachable(mac, packet, HOST_UNREACHABLE, now)
            return False
        if packet.ttl <= 1:
            self.counters.count("ipv4.ttl_exceeded")
            self.delivery.error(mac, packet, IcmpError(TIME_EXCEEDED, TTL_EXCEEDED), now)
            return False
        return True

    def _tell_refusal(self, packet: IpPacket, mac: MacAddress, why: Why, now: float) -> None:
        """Whoever audits hears of it."""
        guest = self.delivery.guest_at(mac, packet.source)
        self.admission.refuse(guest, _request(packet), why, now)

    def _tell_stray(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        """Whoever wants to know hears that nobody is there."""
        guest = self.delivery.guest_at(mac, packet.source)
        self.admission.on_stray(guest, _request(packet), now)

    def _on_whole_packet(self, packet: IpPacket, mac: MacAddress, now: float) -> None:
        if packet.protocol not in (ICMP, TCP, UDP):
            self.counters.count("ipv4.unknown_protocol")
            self._tell_refusal(packet, mac, Why.UNCARRIED, now)
            if not self.admission.drops:
                self.delivery.unreachable(mac, packet, PROTOCOL_UNREACHABLE, now)
            return
        content = decode_transport(packet)
        group = self.addressing.is_group(packet.destination)
        if isinstance(content, UdpDatagram):
            ends = packet.source, content.source_port, packet.destination, content.destination_port
            if self.visits.on_reply(ends, content.payload, mac, now):
                return
            if self.services.on_datagram(content, packet, mac, now):
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
            self.guest_errors.on_error(content, packet)
        elif isinstance(content, TcpSegment):
            self.connections.on_segment(content, packet, mac, now)
        elif packet.destination in self.addressing.ours:
            self.services.on_icmp(content, packet, mac, now)
        else:
            self.pings.on_message(content, packet, mac, now)


def _request(packet: IpPacket) -> FlowRequest:
    """Whom it is for; a fragment but the first has no port."""
    protocol = PROTOCOLS.get(packet.protocol, f"{packet.protocol}")
    has_port = packet.protocol in (TCP, UDP) and not packet.fragment_offset
    port = int.from_bytes(packet.payload[2:4], "big") if has_port else 0
    return FlowRequest(protocol, packet.destination, port)
