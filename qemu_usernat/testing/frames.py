"""A frame as a test sees it: when it passed, which way, and what it says, in plain values.

It owns the reading of whole frames for people: addresses are text, and whatever a frame does not
carry is None. The reading is that of the server (`wire.decoder`), done when it is first asked for,
and it never raises: what a reader of the RFCs would refuse is told as `Frame.malformed`, what the
server does not speak (IPv6, VLANs, IGMP) as `Frame.unknown`.
"""

from attrs import asdict, define, field, frozen
from dns import rcode, rdatatype
from dns.message import Message, from_wire

from qemu_usernat.primitives.addresses import DNS_PORT, format_address, format_mac
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.decoder import decode, decode_transport
from qemu_usernat.wire.dhcp import DhcpMessage, parse_dhcp
from qemu_usernat.wire.packets import (
    ACK,
    ARP_REQUEST,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    Arp,
    IcmpMessage,
    IpPacket,
    TcpSegment,
    UdpDatagram,
)

DHCP_PORTS = frozenset({67, 68})  # RFC 2131, 4.1

UNKNOWN = frozenset(
    {
        "ethernet.ipv6_not_supported",
        "ethernet.vlan",
        "ethernet.802_3",
        "ethernet.unknown_type",
        "arp.not_ipv4_over_ethernet",
        "ipv4.unknown_protocol",
    }
)
"""What the decoder refuses because it is another protocol, and not because it is broken."""

_FLAGS = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (URG, "U"), (ACK, "."))

_ICMP_NAMES = {
    (0, 0): "echo reply",
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 4): "fragmentation needed",
    (3, 9): "network administratively prohibited",
    (3, 10): "host administratively prohibited",
    (3, 13): "communication administratively prohibited",
    (8, 0): "echo request",
    (11, 0): "time to live exceeded",
    (11, 1): "reassembly time exceeded",
}

_DHCP_NAMES = {
    bytes((number,)): name
    for number, name in enumerate(
        ("Discover", "Offer", "Request", "Decline", "ACK", "NAK", "Release", "Inform"), start=1
    )
}


def icmp_name(type: int, code: int) -> str:  # noqa: A002 - the RFC's word
    """What an ICMP message is called: ``host unreachable``, ``echo request``."""
    return _ICMP_NAMES.get((type, code), f"type {type}, code {code}")


@frozen
class ArpFields:
    """An ARP packet (RFC 826), addresses as text."""

    operation: int
    sender_mac: str
    sender_address: str
    target_mac: str
    target_address: str

    @property
    def is_request(self) -> bool:
        """Who has `target_address`? Otherwise it is an answer."""
        return self.operation == ARP_REQUEST


@frozen
class IpFields:
    """An IPv4 header (RFC 791), addresses as text; `fragment_offset` is in bytes."""

    source: str
    destination: str
    protocol: int
    ttl: int
    identification: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int
    payload: bytes

    @property
    def is_fragment(self) -> bool:
        """Whether this is a part of a packet; of what is in it nothing is read then."""
        return self.more_fragments or self.fragment_offset > 0


@frozen
class TcpFields(TcpSegment):
    """A TCP segment (RFC 9293, 3.1) with its flags by name."""

    @property
    def syn(self) -> bool:
        """It opens."""
        return bool(self.flags & SYN)

    @property
    def ack(self) -> bool:
        """It acknowledges."""
        return bool(self.flags & ACK)

    @property
    def fin(self) -> bool:
        """Its sender has said all."""
        return bool(self.flags & FIN)

    @property
    def rst(self) -> bool:
        """It resets."""
        return bool(self.flags & RST)

    @property
    def psh(self) -> bool:
        """It ends what was written in one go."""
        return bool(self.flags & PSH)


@define
class _Reading:
    """What is in a frame, as far as it can be read."""

    malformed: str | None = None
    unknown: str | None = None
    arp: ArpFields | None = None
    ip: IpFields | None = None
    tcp: TcpFields | None = None
    udp: UdpDatagram | None = None
    icmp: IcmpMessage | None = None
    dns: Message | None = None
    dhcp: DhcpMessage | None = None

    def refuse(self, reason: str) -> None:
        if reason in UNKNOWN:
            self.unknown = reason
        else:
            self.malformed = reason

    def read(self, octets: bytes) -> None:
        try:
            content = decode(octets).content
            if isinstance(content, Arp):
                self.arp = _arp(content)
                return
            self.ip = _ip(content)
            if not self.ip.is_fragment:
                self._read_transport(content)
        except Malformed as error:
            self.refuse(error.reason)

    def _read_transport(self, packet: IpPacket) -> None:
        content = decode_transport(packet)
        if isinstance(content, TcpSegment):
            self.tcp = TcpFields(**asdict(content, recurse=False))
            if DNS_PORT in (content.source_port, content.destination_port):
                # A message in a segment of its own, as all but the longest are; RFC 1035, 4.2.2.
                length = int.from_bytes(content.payload[:2], "big")
                if 0 < length == len(content.payload) - 2:
                    self.dns = _dns(content.payload[2:])
        elif isinstance(content, UdpDatagram):
            self.udp = content
            ports = {content.source_port, content.destination_port}
            if DNS_PORT in ports:
                self.dns = _dns(content.payload)
            elif ports <= DHCP_PORTS:
                self.dhcp = parse_dhcp(content.payload)
        else:
            self.icmp = content


@define(eq=False, repr=False)
class Frame:
    """One Ethernet frame that passed a wire."""

    octets: bytes
    """All of it, from the destination's MAC address on."""
    time: float
    """Seconds since the first frame of the capture."""
    from_guest: bool
    """The direction: whether the guest sent it, or it is on its way to the guest."""
    guest: str = "guest"
    """Whose wire it was."""
    fate: str = ""
    """What befell it on the wire (``dropped``, ``delayed``), if anything did."""
    _reading: _Reading | None = field(default=None, init=False)

    @property
    def _read(self) -> _Reading:
        if self._reading is None:
            self._reading = _Reading()
            self._reading.read(self.octets)
        return self._reading

    @property
    def to_guest(self) -> bool:
        """Whether it is on its way to the guest."""
        return not self.from_guest

    @property
    def source(self) -> str:
        """The MAC address that it comes from."""
        return format_mac(self.octets[6:12])

    @property
    def destination(self) -> str:
        """The MAC address that it is for."""
        return format_mac(self.octets[:6])

    @property
    def ethertype(self) -> int:
        """What it carries: 0x0800 is IPv4, 0x0806 ARP, 0x86dd IPv6."""
        return int.from_bytes(self.octets[12:14], "big")

    @property
    def malformed(self) -> str | None:
        """What is broken in it: ``tcp.bad_checksum``. The server drops and counts such a frame."""
        return self._read.malformed

    @property
    def unknown(self) -> str | None:
        """Which protocol it is that the server does not speak: ``ethernet.ipv6_not_supported``."""
        return self._read.unknown

    @property
    def arp(self) -> ArpFields | None:
        """The ARP packet."""
        return self._read.arp

    @property
    def ip(self) -> IpFields | None:
        """The IPv4 header."""
        return self._read.ip

    @property
    def tcp(self) -> TcpFields | None:
        """The TCP segment."""
        return self._read.tcp

    @property
    def udp(self) -> UdpDatagram | None:
        """The UDP datagram."""
        return self._read.udp

    @property
    def icmp(self) -> IcmpMessage | None:
        """The ICMP message."""
        return self._read.icmp

    @property
    def dns(self) -> Message | None:
        """The DNS message, of UDP or of a single TCP segment."""
        return self._read.dns

    @property
    def dhcp(self) -> DhcpMessage | None:
        """The DHCP message."""
        return self._read.dhcp

    @property
    def payload(self) -> bytes:
        """What TCP or UDP carries; nothing where it is neither."""
        content = self.tcp or self.udp
        return b"" if content is None else content.payload

    def __len__(self) -> int:
        return len(self.octets)

    def __repr__(self) -> str:
        way = "from" if self.from_guest else "to"
        fate = f" [{self.fate}]" if self.fate else ""
        return f"{self.time:.6f} {way} {self.guest}: {self._summary()}{fate}"

    def _summary(self) -> str:
        """What tcpdump would say."""
        reading = self._read
        if reading.arp is not None:
            return _arp_summary(reading.arp)
        if reading.ip is not None:
            return _ip_summary(reading, reading.ip)
        what = reading.malformed or reading.unknown
        return f"{self.source} > {self.destination}, {what}, length {len(self)}"


def _arp(arp: Arp) -> ArpFields:
    return ArpFields(
        arp.operation,
        format_mac(arp.sender_mac),
        format_address(arp.sender_address),
        format_mac(arp.target_mac),
        format_address(arp.target_address),
    )


def _ip(packet: IpPacket) -> IpFields:
    return IpFields(
        format_address(packet.source),
        format_address(packet.destination),
        packet.protocol,
        packet.ttl,
        packet.identification,
        packet.dont_fragment,
        packet.more_fragments,
        packet.fragment_offset,
        packet.payload,
    )


def _dns(octets: bytes) -> Message | None:
    try:
        return from_wire(octets)
    except Exception:  # a guest may send anything there, and dnspython raises many things
        return None


def _arp_summary(arp: ArpFields) -> str:
    if arp.is_request:
        return f"ARP, Request who-has {arp.target_address} tell {arp.sender_address}"
    return f"ARP, Reply {arp.sender_address} is-at {arp.sender_mac}"


def _ip_summary(reading: _Reading, ip: IpFields) -> str:
    content = reading.tcp or reading.udp
    if content is not None:
        ends = f"{ip.source}.{content.source_port} > {ip.destination}.{content.destination_port}"
    else:
        ends = f"{ip.source} > {ip.destination}"
    return f"IP {ends}: {_content_summary(reading, ip)}"


def _content_summary(reading: _Reading, ip: IpFields) -> str:
    if reading.malformed or reading.unknown:
        return f"{reading.malformed or reading.unknown}, length {len(ip.payload)}"
    if ip.is_fragment:
        start = ip.fragment_offset
        return f"protocol {ip.protocol}, octets {start} to {start + len(ip.payload)} of a packet"
    if reading.tcp is not None:
        return _tcp_summary(reading.tcp)
    if reading.icmp is not None:
        return f"ICMP {icmp_name(reading.icmp.type, reading.icmp.code)}, length {len(ip.payload)}"
    if reading.dns is not None:
        return _dns_summary(reading.dns)
    if reading.dhcp is not None:
        kind = reading.dhcp.options.get(53, b"")  # RFC 2132, 9.6
        return f"DHCP {_DHCP_NAMES.get(kind, 'message')} of {format_mac(reading.dhcp.client_mac)}"
    return f"UDP, length {len(ip.payload) - 8}"


def _tcp_summary(segment: TcpFields) -> str:
    flags = "".join(letter for bit, letter in _FLAGS if segment.flags & bit)
    length = len(segment.payload)
    parts = [f"Flags [{flags}]", f"seq {segment.sequence}"]
    if length:
        parts[1] += f":{segment.sequence + length & 0xFFFF_FFFF}"
    if segment.ack:
        parts.append(f"ack {segment.acknowledgment}")
    return ", ".join((*parts, f"win {segment.window}", f"length {length}"))


def _dns_summary(message: Message) -> str:
    question = " ".join(
        f"{rdatatype.to_text(asked.rdtype)}? {asked.name}" for asked in message.question
    )
    if not message.flags & 0x8000:  # QR (RFC 1035, 4.1.1)
        return f"DNS {message.id} {question}"
    if message.rcode():
        return f"DNS {message.id} {question} {rcode.to_text(message.rcode())}"
    answers = ", ".join(
        f"{rdatatype.to_text(answer.rdtype)} {record}"
        for answer in message.answer
        for record in answer
    )
    return f"DNS {message.id} {question} answer {answers or 'of no records'}"
