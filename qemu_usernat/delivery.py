"""The way to the guests: everything the router, the gateway and the NAT say leaves here.

It owns how a packet becomes frames on the port of the guest it is for, and the addresses
that stand for others: with `host_loopback` the guest knows the host's 127.0.0.1 as the
gateway. It decides nothing about flows.
"""

from itertools import count

from attrs import define, evolve, field

from qemu_usernat.admission import Guest
from qemu_usernat.gateway.icmp import ErrorLimiter
from qemu_usernat.lan.port import QUEUE_LIMIT, Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.primitives.addresses import Address, FlowKey, MacAddress, is_loopback
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.emit import SegmentTemplate
from qemu_usernat.wire.icmp import DESTINATION_UNREACHABLE, QUOTE_MAXIMUM, icmp_error
from qemu_usernat.wire.ipv4 import HEADER as IP_HEADER
from qemu_usernat.wire.ipv4 import ipv4_frames, ipv4_header
from qemu_usernat.wire.packets import ICMP, UDP, Buffer, IpPacket
from qemu_usernat.wire.udp import udp_datagram

UNUSED = bytes(4)
"""The second word of an ICMP error that has no use for it (RFC 792)."""


NEIGHBOURS_MAXIMUM = 4096
"""Guests' addresses remembered; the one heard first is forgotten first."""

ETHERNET_MTU = 1500  # bytes of IP packet (RFC 894): what every guest takes


@define(eq=False)
class Delivery:
    """Packets to guests, by MAC address."""

    switch: Switch
    gateway_mac: MacAddress
    gateway_address: Address
    mtu: int
    limiter: ErrorLimiter
    counters: Counters
    _neighbours: dict[Address, MacAddress] = field(factory=dict)
    """Where a guest's address was heard last; oldest first."""
    _identifications: "count[int]" = field(factory=count)
    """Of packets that leave whole, where nobody looks at them unless a guest routes them on."""
    _identifications_of_fragments: "count[int]" = field(factory=count)
    """Those of small packets would soon come round (RFC 4963), with fragments still under way."""

    def packet(
        self,
        mac: MacAddress,
        source: Address,
        destination: Address,
        protocol: int,
        payload: Buffer,
    ) -> None:
        """One IP packet to one guest, or to all of them if `mac` is a group; fragmented to the
        MTU."""
        port = None if mac[0] & 1 else self.switch.port_of(mac)
        mtu = min(self.mtu, port.shown_mtu if port is not None else ETHERNET_MTU)
        fits = IP_HEADER + len(payload) <= mtu
        identifications = self._identifications if fits else self._identifications_of_fragments
        frames = ipv4_frames(
            self.gateway_mac,
            mac,
            source,
            destination,
            protocol,
            payload,
            mtu,
            next(identifications) & 0xFFFF,
        )
        self.frame(mac, *frames)

    def on_neighbour(self, address: Address, mac: MacAddress) -> None:
        """A guest has spoken from `address`: whoever has it now gets what is sent to it.

        An address outlives its machine: a new one may have it while old flows still end.
        """
        if self._neighbours.get(address) != mac:
            if len(self._neighbours) >= NEIGHBOURS_MAXIMUM:
                del self._neighbours[next(iter(self._neighbours))]
            self._neighbours[address] = mac

    def mac_of(self, address: Address) -> MacAddress | None:
        """Where `address` was heard last."""
        return self._neighbours.get(address)

    def guest_at(self, mac: MacAddress, address: Address) -> Guest:
        """Who speaks, for those who ask who it is."""
        port = self.switch.port_of(mac)
        return Guest(mac, "" if port is None else port.name, address)

    def link_of(self, address: Address) -> str:
        """The name of the link at which `address` was heard last; "" where it is gone."""
        mac = self._neighbours.get(address)
        return "" if mac is None else self.guest_at(mac, address).link

    def on_shown_mtu(self, mac: MacAddress, mtu: int) -> None:
        """The guest at `mac` has sent, or has said that it takes, an IP packet of `mtu` bytes."""
        port = self.switch.port_of(mac)
        if port is not None and mtu > port.shown_mtu:
            port.shown_mtu = mtu

    def frame(self, mac: MacAddress, *frames: bytes) -> None:
        """One frame, stream length in front, or the fragments of one packet, all of them or none;
        to one guest, or to everybody."""
        if mac[0] & 1:
            self.switch.broadcast(*frames)
            return
        port = self.switch.port_of(mac)
        if port is None:
            self.counters.count("lan.guest_absent")
        else:
            port.send(*frames)

    def datagram(
        self,
        mac: MacAddress,
        source: Address,
        source_port: int,
        destination: Address,
        destination_port: int,
        payload: Buffer,
    ) -> None:
        """One UDP datagram to one guest."""
        datagram = udp_datagram(source, source_port, destination, destination_port, payload)
        self.packet(mac, source, destination, UDP, datagram)

    def unreachable(
        self, mac: MacAddress, about: IpPacket, code: int, now: float, source: Address | None = None
    ) -> None:
        """ICMP destination unreachable, where it is allowed (RFC 1122, 3.2.2).

        It comes from the address the guest asked for if `source` says so, else from the gateway.
        """
        self.error(mac, about, DESTINATION_UNREACHABLE, code, now, source)

    def error(
        self,
        mac: MacAddress,
        about: IpPacket,
        type_: int,
        code: int,
        now: float,
        source: Address | None = None,
    ) -> None:
        """An ICMP error about a packet of the guest."""
        if not self.limiter.may_report(about):
            return
        if not self.limiter.may_send(now):
            self.counters.count("icmp.error_limited")
            return
        message = icmp_error(type_, code, UNUSED, about.header + about.payload)
        self.packet(mac, source or self.gateway_address, about.source, ICMP, message)

    def as_guest_sees(self, address: Address) -> Address:
        """The guest's name for an address of the host's world."""
        return self.gateway_address if is_loopback(address) else address

    def reset(self, mac: MacAddress, key: FlowKey, sequence: int, acknowledgment: int,
              flags: int) -> None:  # fmt: skip
        """A segment of no flow: the answer to what belongs to none."""
        port = self.switch.port_of(mac)
        if port is not None and port.queued < QUEUE_LIMIT:
            template = _template(self, mac, key)
            port.queued += template.append(port.outbox, sequence, acknowledgment, flags, 0)


def _template(delivery: Delivery, mac: MacAddress, key: FlowKey) -> SegmentTemplate:
    guest_address, guest_port, host_address, host_port = key
    return SegmentTemplate(
        mac, delivery.gateway_mac, host_address, host_port, guest_address, guest_port
    )


class TcpWire:
    """The way to the guest of one TCP flow: a `GuestWire`."""

    __slots__ = ("_delivery", "_flow", "_key", "_mac", "_mac_of", "_port_of", "_syn", "_template")

    def __init__(self, delivery: Delivery, mac: MacAddress, key: FlowKey, syn: IpPacket) -> None:
        """`syn` is kept to be quoted, as far as an ICMP error quotes it."""
        self._delivery = delivery
        self._port_of = delivery.switch.port_of
        self._mac_of = delivery.mac_of
        self._key = key
        self._mac = mac
        self._template = _template(delivery, mac, key)
        self._syn = evolve(syn, payload=syn.payload[: QUOTE_MAXIMUM - len(syn.header)])
        self._flow: TcpFlow | None = None

    def bind(self, flow: TcpFlow) -> None:
        """The flow to wake when a stalled port takes frames again."""
        self._flow = flow

    def send(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: Buffer = b"",
        options: bytes = b"",
    ) -> None:
        """Queue a segment; one that finds no room is lost, as on any wire."""
        port = self._port()
        if port is not None:
            port.queued += self._template.append(
                port.outbox, sequence, acknowledgment, flags, window, payload, options
            )

    def send_each(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: memoryview,
        size: int,
    ) -> None:
        """Queue `payload` in segments of `size` octets; all of them or none."""
        port = self._port()
        if port is not None:
            port.queued += self._template.append_each(
                port.outbox, sequence, acknowledgment, flags, window, payload, size
            )

    def _port(self) -> Port | None:
        """The guest's port if it takes anything; sees to it that the template has its address."""
        mac = self._mac_of(self._key[0])
        if mac is not None and mac != self._mac:
            self._mac = mac
            self._template = _template(self._delivery, mac, self._key)
        port = self._port_of(self._mac)
        if port is None:
            self._delivery.counters.count("lan.guest_absent")
        elif port.queued >= QUEUE_LIMIT:
            self._delivery.counters.count("link.queue_full")
        else:
            return port
        return None

    def refuse(self, code: int, now: float) -> None:
        """ICMP destination unreachable about the SYN."""
        self._delivery.unreachable(self._mac, self._syn, code, now)

    def stalled(self) -> bool:
        """Whether the guest's port takes no more for now; then the flow is noted for later."""
        port = self._port_of(self._mac)
        if port is None or not port.stalled():
            return False
        port.waiting.add(self._flow)
        return True


@define(eq=False)
class UdpWire:
    """The way to the guest of one UDP mapping: a `GuestDatagrams`."""

    delivery: Delivery
    mac: MacAddress
    address: Address
    port: int

    def deliver(self, payload: Buffer, source: Address, source_port: int) -> None:
        """A datagram from `source` to the guest."""
        delivery = self.delivery
        seen = delivery.as_guest_sees(source)
        mac = delivery.mac_of(self.address) or self.mac
        delivery.datagram(mac, seen, source_port, self.address, self.port, payload)

    def unreachable(
        self,
        icmp: tuple[int, int, bytes],
        offender: Address,
        peer: Address,
        port: int,
        sent: bytes,
    ) -> None:
        """The host's ICMP error, about the datagram as the guest sent it (RFC 5508, 7.2)."""
        delivery = self.delivery
        seen = delivery.as_guest_sees(peer)
        datagram = udp_datagram(self.address, self.port, seen, port, sent)
        header = ipv4_header(self.address, seen, UDP, len(datagram), 0, 64)
        message = icmp_error(*icmp, header + datagram)
        mac = delivery.mac_of(self.address) or self.mac
        delivery.packet(mac, delivery.as_guest_sees(offender), self.address, ICMP, message)
