"""The way to the guests: to whom, how large, and what happens when there is no room."""

import pytest

from qemu_usernat.delivery import ETHERNET_MTU, Delivery
from qemu_usernat.gateway.icmp import ErrorLimiter
from qemu_usernat.guest_wires import TcpWire, UdpWire
from qemu_usernat.lan.port import QUEUE_LIMIT, STALLED_AT, Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.opening import TcpSettings, open_flow
from qemu_usernat.primitives.addresses import LOOPBACK_IPV4
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.decoder import decode, decode_transport
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import ACK, RST, UDP, Arp, IpPacket, TcpSegment, UdpDatagram
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    OTHER_MAC,
    SERVER,
    ethernet,
    packed,
)

MTU = 9000
KEY = (packed(GUEST), 40000, packed(SERVER), 80)


class Room:
    """A delivery, a switch, and two ports: one guest has spoken, the other never has."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.switch = Switch(GATEWAY_MAC, lambda frame, now: None, self.counters)
        self.port, self.silent = Port("guest", self.counters), Port("silent", self.counters)
        self.switch.attach(self.port)
        self.switch.attach(self.silent)
        self.switch.on_frame(self.port, memoryview(ethernet(b"", GUEST_MAC)), 0.0)
        limiter = ErrorLimiter(packed("10.0.2.255"))
        self.delivery = Delivery(
            self.switch, GATEWAY_MAC, packed(GATEWAY), MTU, limiter, self.counters
        )

    def heard(self, port: Port) -> list[IpPacket]:
        stream = b"".join(port.outbox)
        assert len(stream) == port.queued
        packets = []
        while stream:
            end = 4 + int.from_bytes(stream[:4], "big")
            frame = decode(stream[4:end])
            assert not isinstance(frame.content, Arp)
            packets.append(frame.content)
            stream = stream[end:]
        port.outbox.clear()
        port.queued = 0
        return packets


@pytest.fixture
def room() -> Room:
    return Room()


def says(room: Room, payload: bytes, mac: bytes = GUEST_MAC) -> None:
    room.delivery.packet(mac, packed(SERVER), packed(GUEST), UDP, payload)


def test_a_packet_goes_to_its_guest_alone(room: Room) -> None:
    """One guest's packet is on one guest's wire."""
    says(room, b"hello")
    assert [packet.payload for packet in room.heard(room.port)] == [b"hello"]
    assert room.heard(room.silent) == []


def test_a_packet_for_a_group_goes_to_everybody(room: Room) -> None:
    """A broadcast answer, as of DHCP, reaches also those who have never spoken."""
    says(room, b"hello", BROADCAST_MAC)
    assert len(room.heard(room.port)) == len(room.heard(room.silent)) == 1


def test_a_packet_for_a_guest_that_is_not_there_is_counted(room: Room) -> None:
    """It is lost, as on any wire, and the counter says why."""
    says(room, b"hello", OTHER_MAC)
    assert room.counters["lan.guest_absent"] == 1


def test_packets_are_cut_to_what_the_guest_has_shown_that_it_takes(room: Room) -> None:
    """Ethernet's 1500 until it has sent more or said so, and never more than our own MTU."""
    for shown, largest in ((0, ETHERNET_MTU), (4000, 4000), (2000, 4000), (65535, MTU)):
        room.delivery.on_shown_mtu(GUEST_MAC, shown)
        says(room, bytes(20000))
        packets = room.heard(room.port)
        assert b"".join(packet.payload for packet in packets) == bytes(20000)
        assert largest - 8 < max(len(packet.payload) + 20 for packet in packets) <= largest
        assert len({packet.identification for packet in packets}) == 1


def test_fragments_of_two_packets_cannot_be_mixed(room: Room) -> None:
    """Each packet has an identification of its own."""
    for _ in range(3):
        says(room, bytes(3000))
    assert len({packet.identification for packet in room.heard(room.port)}) == 3


def test_small_packets_use_up_no_identifications_of_fragments(room: Room) -> None:
    """Sixteen bits come round soon: not while fragments of the same name can be under way, however
    many small packets there are meanwhile (RFC 4963)."""
    seen = set()
    for number in range(0x10001):
        large = number in (0, 0x10000)
        says(room, bytes(3000) if large else b"small")
        seen |= {packet.identification for packet in (room.heard(room.port) if large else ())}
        room.port.outbox.clear()
        room.port.queued = 0
    assert len(seen) == 2


def test_a_packet_in_fragments_is_queued_whole_or_not_at_all(room: Room) -> None:
    """A guest has no use for the half of a datagram, but would keep it for half a minute."""
    room.port.send(bytes(QUEUE_LIMIT - 100))
    says(room, bytes(8000))
    says(room, bytes(8000))
    del room.port.outbox[0]
    room.port.queued -= QUEUE_LIMIT - 100
    packets = room.heard(room.port)
    assert b"".join(packet.payload for packet in packets) == bytes(8000)
    assert room.counters["link.queue_full"] == len(packets)


def test_resets_of_no_flow_have_their_bound(room: Room) -> None:
    """A guest that does not read but sends stray segments does not grow its own queue."""
    for _ in range(2 * QUEUE_LIMIT // 64):
        room.delivery.reset(GUEST_MAC, KEY, 1, 2, RST)
    assert QUEUE_LIMIT <= room.port.queued < QUEUE_LIMIT + 64
    reset = decode_transport(room.heard(room.port)[0])
    assert isinstance(reset, TcpSegment)
    assert (reset.source_port, reset.destination_port, reset.flags) == (80, 40000, RST)


def a_wire(room: Room) -> tuple[TcpWire, TcpFlow]:
    packet = IpPacket(KEY[0], KEY[2], 6, 64, 0, False, False, 0, b"", b"")
    wire = TcpWire(room.delivery, GUEST_MAC, KEY, packet)
    syn = TcpSegment(40000, 80, 1000, 0, 2, 64000)
    flow = open_flow(KEY, syn, wire, TcpSettings(MTU, b"secret" * 4), room.counters, 0.0)
    wire.bind(flow)
    return wire, flow


def test_segments_beyond_the_queue_are_lost_and_counted(room: Room) -> None:
    """TCP repeats them; our memory is the guest's bound, not its goodwill."""
    wire, _ = a_wire(room)
    payload = bytes(8000)
    for _ in range(QUEUE_LIMIT // 8000 + 10):
        wire.send(1, 2, ACK, 100, payload)
    assert QUEUE_LIMIT <= room.port.queued < QUEUE_LIMIT + 9000
    assert room.counters["link.queue_full"] > 0
    room.switch.detach(room.port)
    wire.send(1, 2, ACK, 100)
    assert room.counters["lan.guest_absent"] == 1


def test_a_flow_that_finds_its_guest_stalled_is_noted(room: Room) -> None:
    """Whoever stops for a stalled port is woken by that port, and by no other."""
    wire, flow = a_wire(room)
    assert not wire.stalled()
    assert not room.port.waiting
    room.port.send(bytes(STALLED_AT))
    assert wire.stalled()
    assert room.port.waiting == {flow}
    assert not room.silent.waiting


def test_the_host_s_loopback_is_the_gateway_to_the_guest(room: Room) -> None:
    """A guest has no 127.0.0.1 of ours: neither as source nor in what an error quotes."""
    wire = UdpWire(room.delivery, GUEST_MAC, packed(GUEST), 1234)
    wire.deliver(b"hello", LOOPBACK_IPV4, 99)
    (packet,) = room.heard(room.port)
    assert packet.source == packed(GATEWAY)
    assert decode_transport(packet) == UdpDatagram(99, 1234, b"hello")
    error = IcmpError(3, 3, offender=LOOPBACK_IPV4)
    wire.refuse(error, LOOPBACK_IPV4, 99, b"what the guest has sent", 0.0)
    (packet,) = room.heard(room.port)
    assert packet.source == packed(GATEWAY)
    assert packet.payload[8:] == b"what the guest has sent"
