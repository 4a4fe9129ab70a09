"""What the gateway answers itself: ARP, DHCP, TFTP, names over UDP, and those who ping it.

It owns which packet is for which service, and how an answer leaves. What is answered is for the
classes in `gateway/` to know; names over TCP are connections, and come by `dns_service`.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from math import inf

from attrs import define, field, frozen

from qemu_usernat.admission import Admission
from qemu_usernat.config.network import Network
from qemu_usernat.config.records import INTERNAL
from qemu_usernat.delivery import Delivery
from qemu_usernat.gateway.arp import ArpResponder
from qemu_usernat.gateway.dhcp import CLIENT_PORT, SERVER_PORT, DhcpServer, is_lease
from qemu_usernat.gateway.dhcp_options import DhcpSettings
from qemu_usernat.gateway.dns_gate import DnsGate
from qemu_usernat.gateway.icmp import EchoResponder
from qemu_usernat.gateway.leases import HeldLease
from qemu_usernat.gateway.tftp import TFTP_PORT, OpenFile, TftpServer
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.joins import Joins
from qemu_usernat.lan.port import Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import DNS_PORT, Address, FlowKey, MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.arp import arp_frame
from qemu_usernat.wire.dhcp import parse_dhcp
from qemu_usernat.wire.icmp import icmp_message
from qemu_usernat.wire.ipv6 import no_router_here
from qemu_usernat.wire.packets import (
    ARP_REQUEST,
    ICMP,
    Arp,
    Buffer,
    IcmpMessage,
    IpPacket,
    UdpDatagram,
)

SERVICE_PORTS = frozenset({DNS_PORT, SERVER_PORT, TFTP_PORT})
"""UDP ports at which the gateway itself may be meant."""

NEVER_CHOSEN = frozenset({"localhost", "wpad", "isatap"})
"""Names that no guest can give itself: by the last two machines find by themselves whom to send
all that they say through."""


@frozen
class _Names:
    """Guests and their names, as the leases of one version say under one policy or none."""

    names: tuple[tuple[Address, str], ...]
    version: tuple[int, int]
    """Of the leases, and of what other servers say."""
    guards: bool
    until: float
    """When the first of the leases ends."""


@define(eq=False)
class Services:
    """The gateway's own services in one network."""

    addressing: Addressing
    switch: Switch
    joins: Joins
    delivery: Delivery
    dns_gate: DnsGate
    admission: Admission
    counters: Counters
    open_file: OpenFile | None = None
    """The files that guests may read by TFTP; without it there is no such server."""
    tftp: TftpServer | None = field(init=False)
    _arp: ArpResponder = field(init=False)
    _echo: EchoResponder = field(factory=EchoResponder)
    dhcp: DhcpServer = field(init=False)
    _reserved: dict[str, MacAddress] = field(init=False)
    """Names that are kept for machines."""
    _names: _Names | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        network = self.addressing.network
        self._arp = ArpResponder(network.gateway_mac, self.addressing.ours)
        self.dhcp = DhcpServer(_dhcp_settings(network), self.counters)
        self.dns_gate.forwarder.zone.guests = self._guest_names
        self._reserved = {each.name: each.mac for each in network.reservations if each.name}
        self.tftp = None
        if self.open_file is not None:
            self.tftp = TftpServer(self.open_file, self._send_tftp, self.counters)

    def on_link_down(self, port: Port, now: float) -> None:
        """The guest at `port` is gone."""
        self.dhcp.on_gone(port.addresses, now)
        if self.tftp is not None:
            self.tftp.on_gone(port)

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        return inf if self.tftp is None else self.tftp.deadline()

    def on_deadline(self, now: float) -> None:
        """Say again what was not heard."""
        if self.tftp is not None and self.tftp.deadline() <= now:
            self.tftp.on_deadline(now)

    def close(self) -> None:
        """Give every descriptor of the host back."""
        if self.tftp is not None:
            self.tftp.close()

    def is_here(self, address: Address, now: float) -> bool:
        """Whether it is ours, or of a guest that has spoken from it or has leased it."""
        known = address in self.addressing.ours or self.delivery.mac_of(address) is not None
        return known or self.dhcp.has_leased(address, now)

    def guest_named(self, label: str, now: float) -> Address | None:
        """Who has that name in the network's domain, or is to have it."""
        found = self.dns_gate.forwarder.zone.guest(label, now)
        if found is None:
            reserved = self.addressing.network.reservations
            found = next((each.address.packed for each in reserved if each.name == label), None)
        return found

    def _guest_names(self, now: float) -> Sequence[tuple[Address, str]]:
        """The guests that have an address and a name: the same object until that may change."""
        known = self._names
        version = self.dhcp.version, self.joins.version
        guards = self.admission.guards_names
        if (
            known is None
            or (known.version, known.guards) != (version, guards)
            or now >= known.until
        ):
            leases = self.dhcp.leases(now)
            until = min((lease.expires for lease in leases), default=inf)
            known = self._names = _Names(
                (*self._named(leases), *self._of_others(leases)), version, guards, until
            )
        return known.names

    def told(self, now: float) -> Sequence[tuple[Address, str]]:
        """What other servers are told: addresses that are given away here, and names."""
        leases = self.dhcp.leases(now)
        names = dict(self._named(leases))
        kept = {each.address.packed: each.name for each in self.addressing.network.reservations}
        return tuple(
            (kept | {each.address: names.get(each.address, "") for each in leases}).items()
        )

    def _of_others(self, leases: Iterable[HeldLease]) -> Iterator[tuple[Address, str]]:
        """Guests of other servers, by names that nobody has here and that are kept for nobody."""
        here = {name for _, name in self._named(leases)} | NEVER_CHOSEN | self._reserved.keys()
        if self._may_choose():
            for address, name in self.joins.guests():
                if name and name not in here and self.addressing.is_guest(address):
                    yield address, name

    def _named(self, leases: Iterable[HeldLease]) -> Iterator[tuple[Address, str]]:
        """Those that may have the names that they have given themselves, or were given.

        Where a policy holds, one chooses its own name below `.internal` only: in a domain that the
        world has, too, it would be to its neighbours what is somebody else's there.
        """
        may_choose = self._may_choose()
        for lease in leases:
            owner = self._reserved.get(lease.name)
            if lease.name and (
                owner == lease.mac
                or (owner is None and may_choose and lease.name not in NEVER_CHOSEN)
            ):
                yield lease.address, lease.name

    def _may_choose(self) -> bool:
        domain = self.dns_gate.forwarder.zone.domain
        return domain.is_subdomain(INTERNAL) or not self.admission.guards_names

    # -- neighbours

    def on_arp(self, arp: Arp, mac: MacAddress, now: float) -> None:
        """A guest looks for somebody, or says who it is."""
        if self.addressing.is_guest(arp.sender_address):
            guard = self.switch.guard
            is_its_own = arp.sender_mac == mac or not guard.on
            if not is_its_own or not guard.may_use(arp.sender_address, mac):
                self.counters.count("arp.spoofed_sender")
                guest = self.delivery.guest_at(mac, arp.sender_address)
                request = FlowRequest("arp", arp.target_address, 0)
                self.admission.refuse(guest, request, Why.SPOOFED, now)
                return
            self.delivery.on_neighbour(arp.sender_address, arp.sender_mac, now)
        answer = self._arp.answer(arp, now)
        if answer is not None:
            to = answer.target_mac
            self.delivery.frame(to, arp_frame(answer, to, self.switch.gateway_mac))
        elif (
            arp.operation == ARP_REQUEST
            and self.addressing.is_guest(arp.sender_address)
            and not self.is_here(arp.target_address, now)
        ):
            guest = self.delivery.guest_at(mac, arp.sender_address)
            self.admission.on_stray(guest, FlowRequest("arp", arp.target_address, 0), now)

    def on_router_sought(self, mac: MacAddress) -> None:
        """Say that there is no IPv6, where machines boot: iPXE waits 16 s for a word of that.

        It is said to the one that asks; systems of their own that are here go on as they were.
        """
        if self.addressing.network.boot.files:
            self.delivery.frame(mac, no_router_here(self.switch.gateway_mac))

    # -- datagrams

    def on_datagram(
        self, datagram: UdpDatagram, packet: IpPacket, mac: MacAddress, now: float
    ) -> bool:
        """Answer it; False if no service of ours is meant."""
        port, destination = datagram.destination_port, packet.destination
        if port == SERVER_PORT and self.addressing.is_for_gateway(destination):
            self.on_dhcp(datagram.payload, mac, now)
        elif port == DNS_PORT and self._answers_dns(packet, mac):
            self._on_dns(
                mac, packet.source, datagram.source_port, destination, datagram.payload, now
            )
        elif destination in self.addressing.own and self.tftp is not None:
            key = (packet.source, datagram.source_port, destination, port)
            if port == TFTP_PORT:
                mtu, link = self.delivery.mtu_towards(mac), self.switch.port_of(mac)
                self.tftp.on_request(link, mac, key, datagram.payload, mtu, now)
            else:
                return self.on_known(key, datagram.payload, now)
        else:
            return False
        return True

    def on_known(self, key: FlowKey, payload: Buffer, now: float) -> bool:
        """A datagram of a transfer of ours; False if there is none such."""
        if self.tftp is None or key not in self.tftp.transfers:
            return False
        self.tftp.on_packet(key, payload, now)
        return True

    def _send_tftp(self, mac: MacAddress, key: FlowKey, packet: bytes) -> None:
        link = self.switch.port_of(mac)
        if link is not None and link.stalled():
            self.counters.count("tftp.held_back")  # it is sent again when its time has come
            return
        guest, guest_port, ours, port = key
        self.delivery.datagram(mac, ours, port, guest, guest_port, packet)

    def on_dhcp(self, payload: bytes, mac: MacAddress, now: float) -> None:
        """A message to the DHCP server."""
        message, guard = parse_dhcp(payload), self.switch.guard
        if guard.on and message.client_mac != mac:
            self.counters.count("dhcp.spoofed_client")
            return
        is_taken = partial(guard.is_of_another, mac) if guard.on else None
        port = self.switch.port_of(mac)
        reply = self.dhcp.answer(message, now, is_taken, port)
        if reply is None:
            return
        if guard.on and is_lease(reply.message):
            guard.bind(reply.message.your_address, mac)
        self.delivery.datagram(
            reply.destination_mac,
            self.dhcp.settings.server_address,
            SERVER_PORT,
            reply.destination,
            CLIENT_PORT,
            reply.payload(),
            port,  # also what is for everybody, as one without an address asks for: it has asked
        )

    def _answers_dns(self, packet: IpPacket, mac: MacAddress) -> bool:
        if self.addressing.is_group(packet.destination):
            return False
        guest = self.delivery.guest_at(mac, packet.source)
        return packet.destination in self.addressing.own or self.admission.answers_dns(
            guest, "udp", packet.destination
        )

    def on_question(
        self,
        source: Address,
        source_port: int,
        destination: Address,
        message: memoryview,
        mac: memoryview,
        now: float,
    ) -> bool:
        """The fast way of a plain datagram for port 53, of a guest that may speak as it does; False
        if it is not for our own name server."""
        if destination not in self.addressing.own or not self.addressing.is_guest(source):
            return False
        guest = mac.tobytes()
        self.delivery.on_neighbour(source, guest, now)
        self._on_dns(guest, source, source_port, destination, message.tobytes(), now)
        return True

    def _on_dns(
        self,
        mac: MacAddress,
        source: Address,
        source_port: int,
        destination: Address,
        message: bytes,
        now: float,
    ) -> None:
        def reply(answer: Buffer) -> None:
            self.delivery.datagram(mac, destination, DNS_PORT, source, source_port, answer)

        guest = self.delivery.guest_at(mac, source)
        self.dns_gate.on_query(guest, message, "udp", reply, now)

    # -- ping

    def on_icmp(self, message: IcmpMessage, packet: IpPacket, mac: MacAddress, now: float) -> None:
        """A message to one of our own addresses."""
        answer = self._echo.answer(message, now)
        if answer is None:
            self.counters.count("icmp.ignored")
            return
        echo = icmp_message(answer.type, answer.code, answer.rest, answer.payload)
        self.delivery.packet(mac, packet.destination, packet.source, ICMP, echo)


def _dhcp_settings(network: Network) -> DhcpSettings:
    gateway, nameserver = network.gateway.packed, network.nameserver.packed
    return DhcpSettings(
        server_address=gateway,
        prefix_length=network.subnet.prefixlen,
        router=gateway,
        dns_servers=(nameserver,),
        first=network.first_lease.packed,
        last=network.last_lease.packed,
        reserved=frozenset({gateway, nameserver, *network.stand_ins}),
        mtu=network.mtu,
        lease_time=network.lease_time,
        domain=network.domain,
        search=network.search,
        ntp_servers=tuple(address.packed for address in network.ntp),
        reservations=network.reservations,
        boot=network.boot,
    )
