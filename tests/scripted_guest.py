"""A small network to talk in: guests that say frames, a host that is a script, and a clock.

What guests send is packed here with struct, and what they hear is read by the decoder's
impacket, so that a mistake of our own builders is seen. Nothing here waits: time is `now`.
"""

import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from attrs import define, evolve, field, frozen
from dns import name

from qemu_usernat.admission import Admission
from qemu_usernat.config.configuration import implicit_policy
from qemu_usernat.config.network import Network
from qemu_usernat.gateway.dns import DnsForwarder, Upstream
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.gateway.tftp import OpenFile
from qemu_usernat.lan.port import Port
from qemu_usernat.nat.echo import EchoFlow
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.udp import UdpMapping
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.redirects import Redirects
from qemu_usernat.primitives.addresses import Address, format_address, parse_mac
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import difference
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.router import Router
from qemu_usernat.testing.internet.world import TEST_NETWORKS
from qemu_usernat.wire.decoder import decode, decode_transport
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import (
    ACK,
    ICMP,
    SYN,
    TCP,
    UDP,
    Arp,
    Buffer,
    IcmpMessage,
    IpPacket,
    TcpSegment,
    UdpDatagram,
)

GATEWAY_MAC = parse_mac("52:55:0a:00:02:02")
GUEST_MAC = parse_mac("52:54:00:12:34:56")
OTHER_MAC = parse_mac("52:54:00:12:34:57")
BROADCAST_MAC = b"\xff" * 6

GATEWAY = "10.0.2.2"
NAMESERVER = "10.0.2.3"
GUEST = "10.0.2.15"
OTHER = "10.0.2.16"
SERVER = "198.51.100.7"

WINDOW = 64000  # what the scripted guest offers, in octets


def packed(address: str) -> Address:
    return ip_address(address).packed


# -- frames, by struct alone


def internet_checksum(octets: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for (word,) in struct.iter_unpack(">H", octets + b"\0" * (len(octets) % 2)):
        total += word
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(
    payload: bytes, source: bytes, destination: bytes = GATEWAY_MAC, ethertype: int = 0x0800
) -> bytes:
    return destination + source + struct.pack(">H", ethertype) + payload


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    identification: int = 7,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    length = 20 + len(options) + len(payload)
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x45 + len(options) // 4,
        0,
        length,
        identification,
        fragment,
        ttl,
        protocol,
        0,
        packed(source),
        packed(destination),
    )
    header += options
    return header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:] + payload


def pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    return packed(source) + packed(destination) + struct.pack(">BBH", 0, protocol, length)


def udp(source: str, sport: int, destination: str, dport: int, payload: bytes) -> bytes:
    header = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0)
    covered = pseudo(source, destination, UDP, 8 + len(payload)) + header + payload
    return header[:6] + struct.pack(">H", internet_checksum(covered) or 0xFFFF) + payload


def tcp(
    source: str,
    sport: int,
    destination: str,
    dport: int,
    flags: int,
    sequence: int = 0,
    acknowledgment: int = 0,
    window: int = WINDOW,
    payload: bytes = b"",
    options: bytes = b"",
    urgent_pointer: int = 0,
) -> bytes:
    control = (5 + len(options) // 4) << 12 | flags
    ports = struct.pack(">HHII", sport, dport, sequence % (1 << 32), acknowledgment % (1 << 32))
    segment = ports + struct.pack(">HHHH", control, window, 0, urgent_pointer) + options + payload
    covered = pseudo(source, destination, TCP, len(segment)) + segment
    return segment[:16] + struct.pack(">H", internet_checksum(covered)) + segment[18:]


def icmp(kind: int, code: int, rest: bytes, payload: bytes) -> bytes:
    message = struct.pack(">BBH4s", kind, code, 0, rest) + payload
    return message[:2] + struct.pack(">H", internet_checksum(message)) + message[4:]


# -- the host


@define(eq=False)
class ScriptedServer:
    """The host half of one flow: what a server got to know, and what it does."""

    flow: TcpFlow
    address: Address
    port: int
    network: "ScriptedNetwork"
    ttl: int
    received: bytearray = field(factory=bytearray)
    takes: int = 1 << 30
    """Octets that the socket's buffer takes before it is full."""
    shut: bool = False
    was_reset: bool = False
    closed: bool = False
    reading: bool = False
    writing: bool = False

    # what the test says

    def accepts(self) -> None:
        self.flow.on_host_connected(self.network.now)
        self._turn()

    def fails(self, refusal: IcmpError | None = None) -> None:
        self.flow.on_host_failed(refusal, self.network.now)
        self._turn()

    def says(self, octets: bytes) -> int:
        """Send; how many octets the flow has read, in one turn for each window of the guest."""
        said = 0
        while said < len(octets) and (room := self.flow.room()) > 0:
            piece = octets[said : said + room]
            self.flow.on_host_data(piece, len(piece), self.network.now)
            said += len(piece)
            self._turn()
        if said < len(octets):
            self.flow.on_host_waiting()
            self._turn()
        return said

    def ends(self) -> None:
        self.flow.on_host_eof(self.network.now)
        self._turn()

    def _turn(self) -> None:
        self.network.router.touch(self.flow)
        self.network.end_turn()

    # HostStream

    def send(self, buffers: list[Buffer], now: float) -> int:
        octets = b"".join(buffers)[: self.takes]
        self.takes -= len(octets)
        self.received += octets
        return len(octets)

    def shutdown(self) -> None:
        self.shut = True

    def reset(self) -> None:
        self.was_reset = self.closed = True

    def hang_up(self) -> None:
        self.was_reset = True

    def close(self) -> None:
        self.closed = True

    def watch(self, read: bool, write: bool, now: float) -> None:
        self.reading, self.writing = read, write


@define(eq=False)
class ScriptedSocket:
    """The host's datagram socket of one mapping."""

    mapping: UdpMapping
    network: "ScriptedNetwork"
    port: int
    """As others see it."""
    sent: list[tuple[bytes, str, int]] = field(factory=list)
    ways: list[tuple[int, bool]] = field(factory=list)
    """TTL and DF bit of each."""
    closed: bool = False

    def hears(self, payload: bytes, source: str, port: int) -> None:
        """Somebody sends to it."""
        self.mapping.on_host_datagram(payload, packed(source), port, self.network.now)
        self.network.end_turn()

    def fails(self, error: IcmpError, peer: str, port: int, payload: bytes = b"") -> None:
        """The network says it against a datagram that began so."""
        self.mapping.on_host_error(error, packed(peer), port, payload, self.network.now)
        self.network.end_turn()

    def send(
        self,
        payload: Buffer,
        address: Address,
        port: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        self.sent.append((bytes(payload), format_address(address), port))
        self.ways.append((ttl, dont_fragment))

    def close(self) -> None:
        self.closed = True
        self.network.host.descriptors += 1


@define(eq=False)
class ScriptedEcho:
    """The host's end of one echo flow."""

    flow: EchoFlow
    network: "ScriptedNetwork"
    sent: list[tuple[bytes, str, int]] = field(factory=list)
    """Payload, destination, sequence number."""
    ways: list[tuple[int, bool]] = field(factory=list)
    """TTL and DF bit of each."""
    closed: bool = False

    def hears(self, payload: bytes, source: str, sequence: int, ttl: int = 64) -> None:
        """An echo reply comes."""
        self.flow.on_host_reply(payload, packed(source), sequence, ttl)
        self.network.end_turn()

    def fails(self, error: IcmpError, peer: str, sequence: int, payload: bytes = b"") -> None:
        """The network says it against a request that began so."""
        self.flow.on_host_error(error, packed(peer), sequence, payload, self.network.now)
        self.network.end_turn()

    def send(
        self,
        payload: Buffer,
        address: Address,
        sequence: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        self.sent.append((bytes(payload), format_address(address), sequence))
        self.ways.append((ttl, dont_fragment))

    def close(self) -> None:
        self.closed = True


@define(eq=False)
class ScriptedHost:
    """The router's `HostEdge`: nothing connects unless the test says so."""

    network: "ScriptedNetwork"
    servers: list[ScriptedServer] = field(factory=list)
    sockets: list[ScriptedSocket] = field(factory=list)
    descriptors: int = 1 << 30
    """How many sockets may still be opened."""
    on_dial: Callable[[ScriptedServer], None] | None = None
    carries_pings: bool = True
    echoes: list[ScriptedEcho] = field(factory=list)

    def dial(self, flow: TcpFlow, address: Address, port: int, ttl: int) -> None:
        self._take_descriptor()
        server = ScriptedServer(flow, address, port, self.network, ttl)
        self.servers.append(server)
        flow.dial(server)
        if self.on_dial is not None:
            self.on_dial(server)

    def dial_unix(self, flow: TcpFlow, path: str) -> None:
        self.dial(flow, path.encode(), 0, 0)

    def open_udp(self, mapping: UdpMapping) -> None:
        self._take_descriptor()
        port = 20000 + len(self.sockets)
        socket = mapping.host = ScriptedSocket(mapping, self.network, port)
        self.sockets.append(socket)

    def flush(self, now: float) -> None:
        """Nothing is kept."""

    def open_echo(self, flow: EchoFlow) -> None:
        if not self.carries_pings:
            raise PermissionError(1, "Operation not permitted")
        self._take_descriptor()
        echo = flow.host = ScriptedEcho(flow, self.network)
        self.echoes.append(echo)

    def _take_descriptor(self) -> None:
        if not self.descriptors:
            raise OSError(24, "Too many open files")
        self.descriptors -= 1


@define
class ScriptedResolvers:
    """The forwarder's way out: notes what is asked and answers nothing by itself."""

    asked: list[tuple[Upstream, str, bytes, int]] = field(factory=list)

    def ask(self, upstream: Upstream, transport: str, message: bytes, token: int) -> bool:
        self.asked.append((upstream, transport, message, token))
        return True

    def forget(self, token: int) -> None:
        """Nothing to give back."""


# -- the guest


@frozen
class Heard:
    """One packet, or ARP, as the guest's kernel got it: whole and verified."""

    content: Arp | TcpSegment | UdpDatagram | IcmpMessage
    source_mac: bytes
    destination_mac: bytes
    source: str = ""
    destination: str = ""
    packet: IpPacket | None = None

    @property
    def tcp(self) -> TcpSegment:
        assert isinstance(self.content, TcpSegment)
        return self.content

    @property
    def udp(self) -> UdpDatagram:
        assert isinstance(self.content, UdpDatagram)
        return self.content

    @property
    def icmp(self) -> IcmpMessage:
        assert isinstance(self.content, IcmpMessage)
        return self.content

    @property
    def arp(self) -> Arp:
        assert isinstance(self.content, Arp)
        return self.content


@define(eq=False)
class ScriptedGuest:
    """One guest at its port: says frames, and reads what arrives there."""

    network: "ScriptedNetwork"
    mac: bytes
    address: str
    port: Port
    reads: bool = True
    stream: bytearray = field(factory=bytearray)
    """What its link has carried and nobody has looked at yet."""

    def transmit(self) -> None:
        """The link: takes everything, unless the guest has stopped reading."""
        if self.reads:
            for piece in self.port.outbox:
                self.stream += piece
            self.port.outbox.clear()
            self.port.queued = 0

    # saying

    def sends(self, *frames: bytes) -> None:
        """All of `frames` in one turn, in a buffer that is used again afterwards."""
        buffer = bytearray(b"".join(frames))
        at, view = 0, memoryview(buffer)
        router, now = self.network.router, self.network.now
        for frame in frames:
            router.switch.on_frame(self.port, view[at : at + len(frame)], now)
            at += len(frame)
        self.network.end_turn()
        buffer[:] = b"\xee" * len(buffer)

    def packet(self, payload: bytes, protocol: int, destination: str, **fields: Any) -> bytes:
        source = fields.pop("source", self.address)
        destination_mac = fields.pop("destination_mac", GATEWAY_MAC)
        octets = ipv4(source, destination, protocol, payload, **fields)
        return ethernet(octets, self.mac, destination_mac)

    def fragments(
        self, payload: bytes, protocol: int, destination: str, size: int = 1480
    ) -> list[bytes]:
        """The frames of one packet cut every `size` bytes."""
        return [
            self.packet(
                payload[start : start + size],
                protocol,
                destination,
                fragment=start // 8 | (0x2000 if start + size < len(payload) else 0),
            )
            for start in range(0, len(payload), size)
        ]

    def ping(self, destination: str, payload: bytes = b"ping", **fields: Any) -> bytes:
        return self.packet(icmp(8, 0, b"\x12\x34\0\1", payload), ICMP, destination, **fields)

    def datagram(
        self, sport: int, destination: str, dport: int, payload: bytes, **fields: Any
    ) -> bytes:
        source = fields.get("source", self.address)
        datagram = udp(source, sport, destination, dport, payload)
        return self.packet(datagram, UDP, destination, **fields)

    def segment(
        self, sport: int, destination: str, dport: int, flags: int, *arguments: Any, **fields: Any
    ) -> bytes:
        """`arguments` and `fields` as those of `tcp`, after the flags."""
        segment = tcp(self.address, sport, destination, dport, flags, *arguments, **fields)
        return self.packet(segment, TCP, destination)

    def asks_who_has(self, target: str) -> bytes:
        arp = struct.pack(
            ">HHBBH6s4s6s4s",
            1,
            0x0800,
            6,
            4,
            1,
            self.mac,
            packed(self.address),
            bytes(6),
            packed(target),
        )
        return ethernet(arp.ljust(46, b"\0"), self.mac, BROADCAST_MAC, 0x0806)

    def answers_who_has(self) -> bytes:
        """That it is here, to the gateway."""
        arp = struct.pack(
            ">HHBBH6s4s6s4s",
            1,
            0x0800,
            6,
            4,
            2,
            self.mac,
            packed(self.address),
            GATEWAY_MAC,
            packed(GATEWAY),
        )
        return ethernet(arp.ljust(46, b"\0"), self.mac, GATEWAY_MAC, 0x0806)

    # hearing

    def frames(self) -> list[bytes]:
        """The frames that have arrived since the last look."""
        frames = []
        while self.stream:
            length = int.from_bytes(self.stream[:4], "big")
            frame = bytes(self.stream[4 : 4 + length])
            assert len(frame) == length >= 60, "an Ethernet frame has 60 bytes at least"
            frames.append(frame)
            del self.stream[: 4 + length]
        return frames

    def hears(self) -> list[Heard]:
        """What has arrived since the last look, fragments put together."""
        heard: list[Heard] = []
        parts: list[IpPacket] = []
        for octets in self.frames():
            frame = decode(octets)
            packet = frame.content
            if isinstance(packet, Arp):
                heard.append(Heard(packet, frame.source, frame.destination))
                continue
            assert 20 + len(packet.payload) <= self.network.settings.mtu, "beyond the MTU"
            if packet.more_fragments or packet.fragment_offset:
                assert packet.fragment_offset == sum(len(part.payload) for part in parts)
                parts.append(packet)
                if packet.more_fragments:
                    continue
                payload = b"".join(part.payload for part in parts)
                packet = evolve(parts[0], more_fragments=False, payload=payload)
                parts = []
            heard.append(
                Heard(
                    decode_transport(packet),
                    frame.source,
                    frame.destination,
                    format_address(packet.source),
                    format_address(packet.destination),
                    packet,
                )
            )
        assert not parts, "a packet without its last fragment"
        return heard

    def hears_one(self) -> Heard:
        heard = self.hears()
        assert len(heard) == 1, heard
        return heard[0]

    # longer exchanges

    def connects(
        self, sport: int = 40000, destination: str = SERVER, dport: int = 80
    ) -> "ScriptedConnection":
        """A whole handshake; whoever is dialled accepts."""
        connection = ScriptedConnection(self, sport, destination, dport)
        servers = len(self.network.host.servers)
        self.sends(connection.syn())
        if len(self.network.host.servers) > servers:
            connection.server = self.network.host.servers[-1]
            connection.server.accepts()
        answer = self.hears_one().tcp
        assert answer.flags == SYN | ACK
        assert answer.acknowledgment == 1001
        connection.received = answer.sequence + 1
        self.sends(connection.segment(ACK))
        assert self.hears() == []
        return connection


@define(eq=False)
class ScriptedConnection:
    """A TCP connection that the guest's test keeps by hand; its first sequence number is 1000."""

    guest: ScriptedGuest
    sport: int
    destination: str
    dport: int
    sent: int = 1001
    received: int = 0
    server: ScriptedServer = field(init=False)

    @property
    def key(self) -> tuple[Address, int, Address, int]:
        return (packed(self.guest.address), self.sport, packed(self.destination), self.dport)

    def syn(self, sequence: int = 1000) -> bytes:
        return self.guest.segment(
            self.sport, self.destination, self.dport, SYN, sequence, options=b"\2\4\x05\xb4"
        )

    def segment(
        self, flags: int, payload: bytes = b"", window: int = WINDOW, options: bytes = b""
    ) -> bytes:
        """The next segment in order."""
        frame = self.guest.segment(
            self.sport, self.destination, self.dport, flags, self.sent, self.received, window,
            payload, options=options,
        )  # fmt: skip
        self.sent += len(payload) + (flags & 1)
        return frame

    def reads(self) -> bytes:
        """What has arrived, in order, acknowledged."""
        octets = b""
        for heard in self.guest.hears():
            segment = heard.tcp
            ahead = difference(segment.sequence, self.received)
            assert ahead <= 0, "a gap"
            if ahead == 0 and (segment.payload or segment.flags & 1):
                octets += segment.payload
                self.received += len(segment.payload) + (segment.flags & 1)
        self.guest.sends(self.segment(ACK))
        return octets


# -- all of it


class ScriptedNetwork:
    """A router between scripted guests and a scripted host, and the time of day."""

    def __init__(
        self, *, dns: Sequence[Upstream] = (), open_file: OpenFile | None = None, **settings: Any
    ) -> None:
        self.settings = Network(**settings)
        self.now = 1000.0
        self.counters = Counters()
        self.host = ScriptedHost(self)
        self.resolvers = ScriptedResolvers()
        domain = name.from_text(self.settings.domain)
        gateway, nameserver = self.settings.gateway.packed, self.settings.nameserver.packed
        zone = Zone(gateway, nameserver, 24, domain, self.settings.records)
        forwarder = DnsForwarder(zone, lambda: dns, self.resolvers, lambda: 0x4242, self.counters)
        redirects = Redirects(self.settings.redirects)
        implicit = implicit_policy(self.settings)
        self.admission = Admission(Groups(public=TEST_NETWORKS), implicit, redirects=redirects)
        self.router = Router(
            self.settings,
            self.host,
            forwarder,
            self.admission,
            b"secret" * 4,
            self.counters,
            open_file=open_file,
        )

    def guest(
        self, mac: bytes = GUEST_MAC, address: str = GUEST, link: str = "guest"
    ) -> ScriptedGuest:
        """A guest whose link has come up."""
        guest = ScriptedGuest(self, mac, address, Port(link, self.counters))
        guest.port.transmit = guest.transmit
        self.router.switch.attach(guest.port)
        return guest

    def end_turn(self) -> None:
        self.router.end_turn(self.now)

    def advance(self, seconds: float) -> int:
        """Let time pass, alarm by alarm; how many rang."""
        end, alarms = self.now + seconds, 0
        while (deadline := self.router.deadline()) <= end:
            self.now = max(self.now, deadline)
            self.router.on_deadline(self.now)
            self.end_turn()
            alarms += 1
            assert alarms < 100_000, f"an alarm rings for ever at {self.now}"
        self.now = end
        return alarms

    def assert_nothing_left(self) -> None:
        """Neither flows nor mappings nor alarms: whatever began has ended."""
        assert not self.router.connections.flows
        assert not self.router.datagrams.mappings
        assert not self.router.pings.flows
        assert not self.router.connections._time_waits
        for held in (self.router.connections.everybody, self.router.connections.called):
            assert (held.flows, held.half_open, held.octets) == (0, 0, 0)
        assert len(self.router.alarms) == 0
        assert self.router.deadline() == NEVER
