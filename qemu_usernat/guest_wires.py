"""The ways to a guest: what a flow, a mapping or a ping says to its guest takes one of these.

They own addresses and headers of one conversation; where the guest is at the moment, and whether
its link takes anything, they ask `Delivery`.
"""

from attrs import define, evolve

from qemu_usernat.delivery import Delivery
from qemu_usernat.lan.port import Port
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.primitives.addresses import Address, FlowKey, MacAddress
from qemu_usernat.wire.emit import DatagramTemplate
from qemu_usernat.wire.icmp import ECHO_REPLY, QUOTE_MAXIMUM, IcmpError, icmp_message
from qemu_usernat.wire.packets import ICMP, Buffer, IpPacket


class TcpWire:
    """The way to the guest of one TCP flow: a `GuestWire`."""

    __slots__ = ("_delivery", "_flow", "_key", "_mac", "_mac_of", "_port_of", "_syn", "_template")

    def __init__(
        self, delivery: Delivery, mac: MacAddress, key: FlowKey, syn: IpPacket | None = None
    ) -> None:
        """`syn` is kept to be quoted, as far as an ICMP error quotes it; None if it was ours."""
        self._delivery = delivery
        self._port_of = delivery.switch.port_of
        self._mac_of = delivery.mac_of
        self._key = key
        self._mac = mac
        self._template = delivery.template(mac, key)
        self._syn = None
        if syn is not None:
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
            self._template = self._delivery.template(mac, self._key)
        port = self._port_of(self._mac)
        if port is None:
            self._delivery.counters.count("lan.guest_absent")
        elif port.queued >= port.limit:
            self._delivery.counters.count("link.queue_full")
        else:
            return port
        return None

    def refuse(self, error: IcmpError, now: float) -> None:
        """An ICMP error about the SYN."""
        assert self._syn is not None, "only who has called can be refused"
        self._delivery.error(self._mac, self._syn, error, now)

    def stalled(self) -> bool:
        """Whether the guest's port takes no more for now; then the flow is noted for later."""
        port = self._port_of(self._mac)
        if port is None or not port.stalled():
            return False
        port.waiting.add(self._flow)
        return True


_HEADERS = 28  # bytes of IP and UDP


@define(eq=False)
class UdpWire:
    """The way to the guest of one UDP mapping: a `GuestDatagrams`."""

    delivery: Delivery
    mac: MacAddress
    """Where it was when it opened the mapping."""
    address: Address
    port: int
    _template: DatagramTemplate | None = None
    _template_mac: MacAddress = b""
    """For which the template is."""

    def deliver(self, payload: Buffer, source: Address, source_port: int) -> None:
        """A datagram from `source` to the guest: the short way if it fits into one frame."""
        delivery, address = self.delivery, self.address
        seen = delivery.as_guest_sees(source)
        mac = delivery.mac_of(address) or self.mac
        port = delivery.switch.port_of(mac)
        if port is None or _HEADERS + len(payload) > delivery.mtu_to(mac, address):
            delivery.datagram(mac, seen, source_port, address, self.port, payload)
            return
        if port.queued >= port.limit:
            delivery.counters.count("link.queue_full")
            return
        template = self._template
        if template is None or mac != self._template_mac:
            template = DatagramTemplate(mac, delivery.gateway_mac, address, self.port)
            self._template, self._template_mac = template, mac
        port.queued += template.append(
            port.outbox, seen, source_port, delivery.next_identification(), payload
        )

    def refuse(self, error: IcmpError, peer: Address, port: int, quoted: bytes, now: float) -> None:
        """An ICMP error about a datagram of the guest, as the guest sent it (RFC 5508, 7.2)."""
        mac = self.delivery.mac_of(self.address) or self.mac
        self.delivery.quoting(mac, self.address, error, quoted, now)


@define(eq=False)
class EchoWire:
    """The way to the guest of one echo flow: a `GuestEcho`."""

    delivery: Delivery
    mac: MacAddress
    address: Address
    identifier: int

    def deliver(self, payload: Buffer, source: Address, sequence: int, ttl: int) -> None:
        """An echo reply from `source` to the guest, with `ttl` hops left."""
        rest = self.identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big")
        echo = icmp_message(ECHO_REPLY, 0, rest, payload)
        mac = self.delivery.mac_of(self.address) or self.mac
        self.delivery.packet(mac, source, self.address, ICMP, echo, ttl)

    def refuse(
        self, error: IcmpError, peer: Address, sequence: int, quoted: bytes, now: float
    ) -> None:
        """An ICMP error about a request of the guest, as the guest sent it (RFC 5508, 4.2)."""
        mac = self.delivery.mac_of(self.address) or self.mac
        self.delivery.quoting(mac, self.address, error, quoted, now)
