"""The heart, sans-IO: frames of guests in, events of the host in, time in; one turn each.

It owns the fast way of a frame, to the flow, mapping or ping that it is of, and who is woken when;
whatever is new or unusual goes aside, to `inspection`. It decides nothing about a flow once that
exists, and it knows neither sockets nor clocks: `HostEdge` opens sockets, and ``now`` is an
argument.

A turn is any number of ``on_…`` calls and then one `end_turn`, in which every flow that was
touched pays what it owes and every port sends.
"""

from typing import Protocol

from attrs import define, field

from qemu_usernat.admission import Admission
from qemu_usernat.arrivals import Arrivals
from qemu_usernat.config.network import Network
from qemu_usernat.connections import Connections, TcpEdge
from qemu_usernat.datagrams import Datagrams
from qemu_usernat.delivery import ETHERNET_MTU, Delivery
from qemu_usernat.gate import Gate
from qemu_usernat.gateway.dhcp import DhcpServer
from qemu_usernat.gateway.dns import DnsForwarder
from qemu_usernat.gateway.dns_gate import DnsGate
from qemu_usernat.gateway.icmp import ErrorLimiter
from qemu_usernat.gateway.tftp import OpenFile
from qemu_usernat.inspection import Inspection
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.joins import Joins, server_identifier
from qemu_usernat.lan.port import Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.lan_gate import LanGate
from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.echo import QUOTED, EchoFlow
from qemu_usernat.nat.faces import Faces
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.opening import TcpSettings
from qemu_usernat.nat.udp import QUOTED_PAYLOAD, UdpMapping
from qemu_usernat.pings import Pings
from qemu_usernat.primitives.addresses import (
    DNS_PORT,
    LOOPBACK_IPV4,
    Address,
    MacAddress,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import BugCallback, Malformed, surface
from qemu_usernat.services import SERVICE_PORTS, Services
from qemu_usernat.visits import Visits
from qemu_usernat.whereabouts import Whereabouts
from qemu_usernat.wire.emit import ETHERNET_HEADER
from qemu_usernat.wire.headers import Peeked, peek
from qemu_usernat.wire.ipv4 import HEADER as IP_HEADER
from qemu_usernat.wire.packets import (
    ICMP,
    TCP,
)

_GROUP = 1
"""Of the first byte of a MAC address: it is a group's (IEEE 802.3, 3.2.3)."""


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
    arrivals: Arrivals = field(init=False)
    visits: Visits = field(init=False)
    alarms: Alarms = field(factory=Alarms)
    joins: Joins = field(init=False)
    _delivery: Delivery = field(init=False)
    _services: Services = field(init=False)
    _inspection: Inspection = field(init=False)
    _whereabouts: Whereabouts = field(init=False)
    _lan_gate: LanGate = field(init=False)

    def __attrs_post_init__(self) -> None:
        network, counters = self.network, self.counters
        addressing = Addressing(network)
        gateway = network.gateway.packed
        outward = {gateway: LOOPBACK_IPV4} if network.host_loopback else {}
        self.switch = Switch(network.gateway_mac, self.on_frame, counters)
        self.switch.isolated = network.isolate
        self.switch.guard_sources(self._guards(self.admission.guards_names))
        self.switch.guard.is_guest = addressing.is_guest
        self.switch.guard.is_leased_here = network.leases
        self.switch.guard.on_owner = self._on_owner
        self.switch.guard.reserved = {
            each.address.packed: each.mac for each in network.reservations
        }
        limiter = ErrorLimiter(network.subnet.broadcast_address.packed)
        self._delivery = Delivery(
            self.switch, network.gateway_mac, gateway, network.mtu, limiter, counters
        )
        self.dns_gate = DnsGate(
            self.dns, self.admission, counters, self.switch.port_of, network.isolate
        )
        self.datagrams = Datagrams(
            self._delivery,
            self.edge.open_udp,
            addressing,
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
            addressing,
            outward,
            self.alarms,
            counters,
            self.on_bug,
        )
        self.pings = Pings(
            self._delivery, self.edge.open_echo, self.admission, self.alarms, counters
        )
        self._lan_gate = LanGate(
            addressing, self.switch.guard, self._delivery, self.admission, counters
        )
        self.switch.lets_pass = self._lan_gate.lets_pass
        self.joins = Joins(network, server_identifier(self.secret), self.switch, counters)
        self._services = Services(
            addressing,
            self.switch,
            self.joins,
            self._delivery,
            self.dns_gate,
            self.admission,
            counters,
            self.open_file,
        )
        where = Whereabouts(addressing, self.switch, self._delivery, self._services)
        faces = Faces(addressing, network.publish_source)
        self._whereabouts = where
        self.arrivals = Arrivals(where, self.connections, faces, counters)
        self.visits = Visits(where, self._delivery, self.datagrams, faces, counters)
        self.joins.told = self._services.told
        self._inspection = Inspection(
            addressing,
            self.switch,
            self._delivery,
            self._services,
            self.connections,
            self.datagrams,
            self.visits,
            self.pings,
            self.admission,
            counters,
        )

    # -- the turn

    def touch(self, flow: TcpFlow) -> None:
        """Something happened to `flow`: flush it at the end of the turn."""
        self.connections.touch(flow)

    def end_turn(self, now: float) -> None:
        """Let every touched flow pay what it owes, and every port send."""
        if now >= self.switch.next_look:
            self.switch.look(now)
            self._delivery.look()
        if self._whereabouts.news(now):
            self.arrivals.on_news(now)
            self.visits.on_news(now)
            self.joins.look(self.dhcp.version)
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
            if port.waiting and port.queued < port.stalled_at:
                self._wake(port)

    def _wake(self, port: Port) -> None:
        """The flows that stopped for a stalled port go on."""
        while port.waiting:
            self.connections.touch(port.waiting.pop())

    def on_link_down(self, port: Port, now: float) -> None:
        """A guest's link is gone; its flows go on for when it comes back."""
        self._wake(port)
        self.switch.guard.forget(port.addresses)
        self._services.on_link_down(port, now)
        self._delivery.on_link_down(port)
        self._whereabouts.on_link_down(port, now)
        self._lan_gate.on_link_down(port)

    def on_join_down(self, port: Port, now: float) -> None:
        """Another server is gone, and its guests with it, but for those that have come to us."""
        machines = self.switch.guard.leave(port) | port.addresses.keys()
        self.switch.guard.forget(each for each in machines if self.switch.port_of(each) is None)
        self._lan_gate.on_link_down(port)

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        return min(
            self.alarms.earliest(),
            self._inspection.deadline(),
            self.dns.deadline(),
            self._services.deadline(),
            self.arrivals.deadline(),
            self.visits.deadline(),
            self.joins.deadline(),
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
        if self._inspection.deadline() <= now:
            self._inspection.on_deadline(now)
        if self.dns.deadline() <= now:
            self.dns.on_deadline(now)
        self._services.on_deadline(now)
        self.arrivals.on_deadline(now)
        self.visits.on_deadline(now)
        if self.joins.deadline() <= now:
            self.joins.on_deadline(now)

    def _on_owner(self, address: Address, mac: MacAddress) -> None:
        """What another machine has begun from the address of this one is not this one's; at another
        link it is another, whatever its MAC address."""
        owner = self._delivery.guest_at(mac, address)
        self.connections.end_others(owner)
        self.datagrams.end_others(owner)
        self.visits.end_others(owner)
        self.pings.end_others(owner)

    def on_policy(self, guarded: bool, now: float) -> None:
        """The policy has changed: what it does not allow any more ends now."""
        was_guarded = self.switch.guard.on
        self.switch.guard_sources(self._guards(guarded))
        if self.switch.guard.on and not was_guarded:
            for lease in self.dhcp.leases(now):
                self.switch.guard.bind(lease.address, lease.mac)
        self.connections.judge_again(now)
        self.datagrams.judge_again()
        self.pings.judge_again()
        self._lan_gate.on_policy(guarded)

    def _guards(self, has_policy: bool) -> bool:
        """Whether it is looked at who speaks: where something depends on that."""
        return has_policy or self.network.isolate

    def close(self) -> None:
        """Give every descriptor of the host back."""
        self.arrivals.close_all()
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
            elif self._on_plain(protocol, frame, peeked, now):
                return
        try:
            self._inspection.on_frame(frame, now)
        except Malformed as error:
            self.counters.count(error.reason)
        except Exception as error:
            self.on_bug(error)

    def _on_plain(self, protocol: int, frame: memoryview, peeked: Peeked, now: float) -> bool:
        try:
            if protocol == ICMP:
                return self._on_plain_ping(frame, peeked, now)
            return self._on_plain_datagram(frame, peeked, now)
        except Malformed as error:
            self.counters.count(error.reason)
        except Exception as error:
            self.on_bug(error)
        return True

    def _on_plain_datagram(self, frame: memoryview, peeked: Peeked, now: float) -> bool:
        """A datagram of a mapping that has sent there before, or one for a service of ours; False
        for any other."""
        _, source, source_port, destination, destination_port, start, end, *_ = peeked
        guard = self.switch.guard
        if guard.on and not guard.is_owner(source, self.switch.speaker):
            return False
        key = (source, source_port, destination, destination_port)
        if key in self.visits.by_key:
            return self.visits.on_reply(key, frame[start:end], frame[6:12].tobytes(), now)
        if self._services.tftp is not None and self._services.on_known(key, frame[start:end], now):
            return True
        if destination_port not in SERVICE_PORTS:
            return self.datagrams.on_known(
                source, source_port, destination, destination_port, frame[start:end],
                frame[14 : min(end, start + QUOTED_PAYLOAD)], frame[6:12], now,
            )  # fmt: skip
        if destination_port != DNS_PORT or end > ETHERNET_HEADER + ETHERNET_MTU:
            return False
        return self._services.on_question(
            source, source_port, destination, frame[start:end], frame[6:12], now
        )

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

    # -- who is who

    @property
    def dhcp(self) -> DhcpServer:
        """Who has which address, and what it is called."""
        return self._services.dhcp

    def link_of(self, address: Address) -> str:
        """The name of the link whose guest speaks from `address`; "" where none does."""
        return self._delivery.link_of(address)
