"""The fake guest's IP stack: who it is, where others are, and to whom a packet goes.

It owns the addresses, the neighbours and what is waited for. A packet is checked in full, lengths
and checksums, and one that is broken ends the guest, and with it the test, by `MalformedFrame`.

Everything happens in turns, as in the server: frames in or something asked for, and then one
`end_turn`, in which TCP pays what it owes, frames leave, and those who wait look again.
"""

import errno
import os
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Interface
from typing import Protocol, TypeVar

import trio
from attrs import define, field

from qemu_usernat.nat.fragments import Reassembler
from qemu_usernat.primitives.addresses import (
    ANY_IPV4,
    BROADCAST_IPV4,
    BROADCAST_MAC,
    Address,
    MacAddress,
    format_address,
    parse_address,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.testing.fake_guest.link import Link, MalformedFrame
from qemu_usernat.testing.frames import UNKNOWN, Frame, icmp_name
from qemu_usernat.wire.arp import arp_frame
from qemu_usernat.wire.decoder import decode, decode_transport
from qemu_usernat.wire.icmp import (
    DESTINATION_UNREACHABLE,
    ECHO_REPLY,
    ECHO_REQUEST,
    PARAMETER_PROBLEM,
    PORT_UNREACHABLE,
    TIME_EXCEEDED,
    icmp_error,
    icmp_message,
)
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import (
    ARP_REPLY,
    ARP_REQUEST,
    ICMP,
    Arp,
    Buffer,
    IcmpMessage,
    IpPacket,
    TcpSegment,
    UdpDatagram,
)

FRAME_MINIMUM = 60  # bytes: QEMU's newer network cards drop what is shorter
FRAMES_KEPT = 4096  # frames that wait to be taken by `receive_frame`
ARP_INTERVAL = 1.0  # seconds (RFC 1122, 2.3.2.1)
HOP_TIME = 5.0  # seconds in which the next hop has to answer

_ERRORS = (DESTINATION_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)
_ERRNO = {  # as Linux tells them (icmp_err_convert), by the code of destination unreachable
    0: errno.ENETUNREACH,
    1: errno.EHOSTUNREACH,
    2: errno.ENOPROTOOPT,
    3: errno.ECONNREFUSED,
    4: errno.EMSGSIZE,
    9: errno.ENETUNREACH,
    10: errno.EHOSTUNREACH,
    13: errno.EHOSTUNREACH,
}

T = TypeVar("T")


class Transport(Protocol):
    """TCP or UDP, as the stack knows them."""

    def on_error(self, ports: tuple[int, int], remote: Address, error: OSError) -> None:
        """An ICMP error about what was sent between (our port, their port)."""


@define(eq=False)
class Stack:
    """One guest's addresses, neighbours and packets."""

    mac: MacAddress
    link: Link
    strict: bool
    on_tcp: Callable[[TcpSegment, IpPacket, MacAddress], None] = field(init=False)
    on_udp: Callable[[UdpDatagram, IpPacket], bool] = field(init=False)
    """False where nobody has the port."""
    transports: dict[int, Transport] = field(factory=dict)
    """By protocol number: who is told of ICMP errors."""
    flush: Callable[[float], None] = field(init=False)
    """At the end of a turn: TCP pays what it owes."""
    interface: IPv4Interface | None = None
    gateway: Address | None = None
    nameserver: Address | None = None
    mtu: int = 1500
    counters: Counters = field(factory=Counters)
    malformed: list[MalformedFrame] = field(factory=list)
    """What was broken, where the guest is not strict."""
    arrived: deque[Frame] = field(factory=lambda: deque(maxlen=FRAMES_KEPT))
    neighbours: dict[Address, MacAddress] = field(factory=dict)
    echoes: dict[tuple[int, int], IcmpMessage | OSError | None] = field(factory=dict)
    """What became of our echo requests, by (identifier, sequence number); None yet."""
    _reassembler: Reassembler = field(init=False)
    _changed: trio.Event = field(factory=trio.Event)
    _identification: int = 0

    def __attrs_post_init__(self) -> None:
        self._reassembler = Reassembler(self.counters)

    @property
    def address(self) -> Address:
        """Ours; 0.0.0.0 until there is one."""
        return ANY_IPV4 if self.interface is None else self.interface.packed

    # -- turns, and waiting

    def end_turn(self) -> None:
        """Whatever happened is paid for, and told."""
        self.flush(trio.current_time())
        self.link.kick()
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, look: Callable[[], T | None], timeout: float, what: str) -> T:  # noqa: ASYNC109
        """The first that `look` finds; TimeoutError says that `what` did not happen.

        BrokenResourceError where the server has closed the connection, as nothing can come.
        """
        with trio.move_on_after(timeout):
            while (found := look()) is None:
                if not self.link.up:
                    raise trio.BrokenResourceError(f"{what}: the server has closed the connection")
                await self._changed.wait()
            return found
        raise TimeoutError(errno.ETIMEDOUT, f"{what}, within {timeout:g} s")

    # -- out

    def send_packet(
        self,
        mac: MacAddress,
        destination: Address,
        protocol: int,
        payload: Buffer,
        source: Address | None = None,
    ) -> None:
        """One packet, in fragments where the MTU asks for them."""
        self._identification = (self._identification + 1) & 0xFFFF
        source = self.address if source is None else source
        for frame in ipv4_frames(
            self.mac, mac, source, destination, protocol, payload, self.mtu, self._identification
        ):
            self.link.send(frame)

    def ask_who_has(self, address: Address) -> None:
        """An ARP request."""
        arp = Arp(ARP_REQUEST, self.mac, self.address, bytes(6), address)
        self.link.send(arp_frame(arp, BROADCAST_MAC, self.mac))

    async def resolve_mac(self, address: Address, timeout: float) -> MacAddress:  # noqa: ASYNC109
        """Where `address` is; asks each second until somebody says."""
        what = f"nobody says who has {format_address(address)}"
        deadline = trio.current_time() + timeout
        while (left := deadline - trio.current_time()) > 0:
            self.ask_who_has(address)
            self.end_turn()
            try:
                return await self.until(
                    lambda: self.neighbours.get(address), min(ARP_INTERVAL, left), what
                )
            except TimeoutError:
                continue
        raise TimeoutError(errno.ETIMEDOUT, f"{what}, within {timeout:g} s")

    async def next_hop(self, destination: Address) -> MacAddress:
        """To whom a packet for `destination` goes; OSError where there is no way."""
        if self.interface is None:
            raise OSError(
                errno.ENETUNREACH, "the guest has no address: await guest.dhcp(), or give it one"
            )
        if destination == BROADCAST_IPV4 or destination == (
            self.interface.network.broadcast_address.packed
        ):
            return BROADCAST_MAC
        near = int.from_bytes(destination, "big") - int(self.interface.network.network_address)
        hop = destination if 0 <= near < self.interface.network.num_addresses else self.gateway
        if hop is None:
            raise OSError(
                errno.ENETUNREACH, f"no gateway, and {format_address(destination)} is not near"
            )
        mac = self.neighbours.get(hop)
        if mac is not None:
            return mac
        try:
            return await self.resolve_mac(hop, HOP_TIME)
        except TimeoutError as error:
            raise OSError(errno.EHOSTUNREACH, error.strerror) from error

    def known_hop(self, destination: Address) -> MacAddress:
        """As `next_hop`, which has been asked before."""
        return self.neighbours.get(destination) or self.neighbours[self.gateway or destination]

    # -- in

    def on_frames(self, frames: list[bytes]) -> None:
        """What the link has read."""
        now = trio.current_time()
        for octets in frames:
            self.arrived.append(Frame(octets, now, from_guest=False))
            try:
                self._on_frame(octets, now)
            except Malformed as error:
                self._on_malformed(error.reason, octets)
        self.end_turn()

    def _on_malformed(self, reason: str, octets: bytes) -> None:
        if reason in UNKNOWN:
            return  # another guest's IPv6: nothing of ours
        error = MalformedFrame(reason, octets)
        if self.strict:
            raise error
        self.malformed.append(error)

    def _on_frame(self, octets: bytes, now: float) -> None:
        if len(octets) < FRAME_MINIMUM:
            raise Malformed("ethernet.too_short")
        if octets[:6] != self.mac and not octets[0] & 1:
            return  # for another station
        frame = decode(octets)
        if isinstance(frame.content, Arp):
            self._on_arp(frame.content)
            return
        packet: IpPacket | None = frame.content
        assert packet is not None
        if self.interface is not None and packet.destination not in (
            self.address,
            BROADCAST_IPV4,
            self.interface.network.broadcast_address.packed,
        ):
            return
        if packet.more_fragments or packet.fragment_offset:
            self._reassembler.expire(now)
            packet = self._reassembler.add(packet, frame.source, "", now)
        if packet is not None:
            self._on_packet(packet, frame.source)

    def _on_arp(self, arp: Arp) -> None:
        if arp.sender_address != ANY_IPV4:
            self.neighbours[arp.sender_address] = arp.sender_mac
        if arp.operation == ARP_REQUEST and arp.target_address == self.address != ANY_IPV4:
            reply = Arp(ARP_REPLY, self.mac, self.address, arp.sender_mac, arp.sender_address)
            self.link.send(arp_frame(reply, arp.sender_mac, self.mac))

    def _on_packet(self, packet: IpPacket, mac: MacAddress) -> None:
        content = decode_transport(packet)
        if isinstance(content, TcpSegment):
            self.on_tcp(content, packet, mac)
        elif isinstance(content, UdpDatagram):
            if not self.on_udp(content, packet) and packet.destination == self.address:
                quoted = packet.header + packet.payload
                error = icmp_error(DESTINATION_UNREACHABLE, PORT_UNREACHABLE, bytes(4), quoted)
                self.send_packet(mac, packet.source, ICMP, error)
        elif content.type == ECHO_REQUEST:
            reply = icmp_message(ECHO_REPLY, 0, content.rest, content.payload)
            self.send_packet(mac, packet.source, ICMP, reply)
        elif content.type == ECHO_REPLY:
            self._on_echo(content.rest, content)
        elif content.type in _ERRORS:
            self._on_error(content)

    def _on_echo(self, rest: bytes, what: IcmpMessage | OSError) -> None:
        key = int.from_bytes(rest[:2], "big"), int.from_bytes(rest[2:], "big")
        if key in self.echoes:
            self.echoes[key] = what

    def _on_error(self, message: IcmpMessage) -> None:
        """An ICMP error; what it quotes has to be a packet of ours (RFC 1122, 3.2.2)."""
        quoted = message.payload
        start = (quoted[0] & 15) * 4 if quoted else 0
        if start < 20 or len(quoted) < start + 8:
            raise Malformed("icmp.too_short")
        if quoted[12:16] != self.address:
            return
        remote, ours = quoted[16:20], quoted[start : start + 8]
        about = f"{format_address(remote)}: ICMP {icmp_name(message.type, message.code)}"
        number = errno.EHOSTUNREACH
        if message.type == DESTINATION_UNREACHABLE:
            number = _ERRNO.get(message.code, errno.EHOSTUNREACH)
        error = OSError(number, f"{os.strerror(number)}: {about}")
        if quoted[9] == ICMP:
            self._on_echo(ours[4:8], error)
        elif quoted[9] in self.transports:
            ports = int.from_bytes(ours[:2], "big"), int.from_bytes(ours[2:4], "big")
            self.transports[quoted[9]].on_error(ports, remote, error)


def as_address(text: str) -> Address | None:
    """The packed IPv4 address, if `text` is one."""
    try:
        packed = parse_address(text)
    except ValueError:
        return None
    return packed if len(packed) == 4 else None
