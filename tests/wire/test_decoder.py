"""The slow tier: what well-made frames mean, and that no frame at all makes it stumble.

`plain_reading` is a second decoder, made of `struct` alone and of nothing from `wire` but the
values it returns: on every frame both must say the same, or both refuse.
"""

import struct
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.decoder import decode, decode_transport
from qemu_usernat.wire.packets import (
    ACK,
    ARP_REQUEST,
    ICMP,
    SYN,
    TCP,
    UDP,
    Arp,
    Buffer,
    Frame,
    IcmpMessage,
    IpPacket,
    TcpSegment,
    UdpDatagram,
)

ETHERNET = bytes.fromhex("52550a000202 525400123456 0800")
GUEST = bytes([10, 0, 2, 15])
HOST = bytes([192, 0, 2, 1])

# Maximum segment size 65480, SACK permitted, timestamps, no operation, window scale 7.
SYN_OPTIONS = bytes.fromhex("0204ffc8 0402 080a0102030400000000 01 030307")

Transport = TcpSegment | UdpDatagram | IcmpMessage


def sum16(data: bytes) -> int:
    """The checksum by the book (RFC 1071, 4.1)."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def with_checksum(data: bytes, at: int, before: bytes = b"") -> bytes:
    """`data` with the two bytes at `at` made right."""
    blank = data[:at] + b"\0\0" + data[at + 2 :]
    return data[:at] + sum16(before + blank).to_bytes(2, "big") + data[at + 2 :]


def pseudo(protocol: int, length: int) -> bytes:
    """The pseudo header between guest and host (RFC 9293, 3.1)."""
    return GUEST + HOST + struct.pack(">HH", protocol, length)


def ipv4(
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    total: int | None = None,
    ttl: int = 64,
    version: int = 4,
) -> bytes:
    """A frame from the guest to the host; `total` may lie."""
    header = struct.pack(
        ">BBHHHBBH4s4s", version << 4 | 5 + len(options) // 4, 0,
        20 + len(options) + len(payload) if total is None else total,
        0x1234, fragment, ttl, protocol, 0, GUEST, HOST,
    )  # fmt: skip
    return ETHERNET + with_checksum(header + options, 10) + payload


def tcp(payload: bytes = b"", *, flags: int = ACK, options: bytes = b"", offset: int = 0) -> bytes:
    """A segment with a right checksum; `offset` may lie."""
    control = (offset or 5 + len(options) // 4) << 12 | flags
    segment = struct.pack(">HHIIHHHH", 40000, 443, 1000, 2000, control, 500, 0, 0)
    segment += options + payload
    return with_checksum(segment, 16, pseudo(TCP, len(segment)))


def udp(payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A datagram with a right checksum; `length` may lie."""
    size = 8 + len(payload) if length is None else length
    datagram = struct.pack(">HHHH", 40000, 53, size, 0) + payload
    return with_checksum(datagram[:size], 6, pseudo(UDP, size)) + datagram[size:]


def icmp(payload: bytes = b"", *, type: int = 8) -> bytes:  # noqa: A002
    """A message with a right checksum."""
    return with_checksum(struct.pack(">BBHHH", type, 0, 0, 7, 1) + payload, 2)


def arp(*, hardware: int = 1, protocol: int = 0x0800, sizes: tuple[int, int] = (6, 4)) -> bytes:
    """The guest asks who has the gateway's address."""
    packet = struct.pack(">HHBBH", hardware, protocol, *sizes, ARP_REQUEST)
    packet += bytes.fromhex("525400123456") + GUEST + bytes(6) + bytes([10, 0, 2, 2])
    return ETHERNET[:12] + b"\x08\x06" + packet


def decode_ip(frame: Buffer) -> IpPacket:
    """The packet in a frame that must have one."""
    content = decode(frame).content
    assert isinstance(content, IpPacket)
    return content


# --- what well-made frames mean -----------------------------------------------------------------


def test_a_syn_and_its_options() -> None:
    """All that a Linux guest's first segment says is understood, timestamps are skipped."""
    frame = ipv4(TCP, tcp(flags=SYN, options=SYN_OPTIONS), fragment=0x4000)
    packet = decode_ip(frame)
    assert packet == IpPacket(
        GUEST, HOST, TCP, 64, 0x1234, True, False, 0, frame[14:34], frame[34:]
    )
    assert decode_transport(packet) == TcpSegment(
        40000, 443, 1000, 2000, SYN, 500, 65480, 7, True, b""
    )


def test_a_selective_acknowledgment() -> None:
    """What the guest has beyond a gap: the edges of each block, in the option's order."""
    options = bytes.fromhex("080a0102030400000000 0512 0000000700000009 fffffff000000010")
    segment = decode_transport(decode_ip(ipv4(TCP, tcp(b"data", options=options))))
    assert isinstance(segment, TcpSegment)
    assert segment.selective == (7, 9, 0xFFFFFFF0, 16)
    assert segment.payload == b"data"


def test_an_early_end_of_options_does_not_move_the_payload() -> None:
    """The data offset says where data begins, not the options that were found."""
    options = b"\0\xff\xff\xff" + b"\x02\x04\x05\xb4"
    segment = decode_transport(decode_ip(ipv4(TCP, tcp(b"data", options=options))))
    assert isinstance(segment, TcpSegment)
    assert segment.payload == b"data"
    assert segment.maximum_segment_size is None


def test_an_early_end_of_ip_options_does_not_move_the_ports() -> None:
    """Nor does it in the IP header, where the ports would be read from the options."""
    frame = ipv4(UDP, udp(b"data"), options=b"\0\0\0\0\0\x50\0\x50")
    packet = decode_ip(frame)
    assert packet.header == frame[14:42]
    assert decode_transport(packet) == UdpDatagram(40000, 53, b"data")


def test_padding_is_not_payload() -> None:
    """Total length and UDP length say where data ends; Ethernet's zeros are not part of it."""
    frame = ipv4(UDP, udp(b"abc")).ljust(60, b"\0")
    assert decode_transport(decode_ip(frame)) == UdpDatagram(40000, 53, b"abc")
    frame = ipv4(UDP, udp(b"abc") + b"after the datagram")
    assert decode_transport(decode_ip(frame)) == UdpDatagram(40000, 53, b"abc")


def test_a_fragment_is_told_by_flags_and_offset() -> None:
    """The offset is in bytes, and the bit that nobody may set (RFC 791) means nothing."""
    packet = decode_ip(ipv4(UDP, b"later", fragment=0x8000 | 0x2000 | 185))
    assert (packet.more_fragments, packet.fragment_offset) == (True, 1480)
    assert not packet.dont_fragment
    assert packet.payload == b"later"


def test_an_echo_request() -> None:
    """Identifier and sequence number are in the four bytes after the checksum."""
    packet = decode_ip(ipv4(ICMP, icmp(b"ping")))
    assert decode_transport(packet) == IcmpMessage(8, 0, b"\0\x07\0\x01", b"ping")


@pytest.mark.parametrize("type_", [13, 14, 17, 18])
def test_every_icmp_type_has_its_payload_at_the_same_place(type_: int) -> None:
    """impacket gives timestamps and masks longer headers; here each has four bytes."""
    message = decode_transport(decode_ip(ipv4(ICMP, icmp(b"0123456789ab", type=type_))))
    assert message == IcmpMessage(type_, 0, b"\0\x07\0\x01", b"0123456789ab")


@pytest.mark.parametrize("padding", [0, 18])
def test_an_arp_request(padding: int) -> None:
    """42 bytes are enough, 60 are usual."""
    content = decode(arp() + bytes(padding)).content
    sender = bytes.fromhex("525400123456")
    assert content == Arp(ARP_REQUEST, sender, GUEST, bytes(6), bytes([10, 0, 2, 2]))


def test_a_udp_checksum_of_zero_is_none() -> None:
    """RFC 768: the sender did not compute one."""
    datagram = udp(b"data")
    frame = ipv4(UDP, datagram[:6] + b"\0\0" + datagram[8:])
    assert decode_transport(decode_ip(frame)) == UdpDatagram(40000, 53, b"data")


def test_a_view_is_as_good_as_bytes() -> None:
    """The frame may lie in the link's buffer; what comes out does not."""
    buffer = bytearray(ipv4(UDP, udp(b"data")))
    packet = decode_ip(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert decode_transport(packet) == UdpDatagram(40000, 53, b"data")


# --- what is refused, and under which name ------------------------------------------------------


def flipped(frame: bytes, at: int) -> bytes:
    """The frame with one bit wrong."""
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]


FREEZES_UNGUARDED_IMPACKET = ipv4(TCP, tcp(), options=b"\x07\0\0\0")

REFUSED = [
    ("ethernet.too_short", b""),
    ("ethernet.too_short", ETHERNET[:13]),
    ("ethernet.ipv6_not_supported", ETHERNET[:12] + b"\x86\xdd" + bytes(40)),
    ("ethernet.vlan", ETHERNET[:12] + b"\x81\0\0\x05" + ipv4(UDP, udp())[12:]),
    ("ethernet.vlan", ETHERNET[:12] + b"\x88\xa8" * 600),
    ("ethernet.802_3", ETHERNET[:12] + b"\0\x26" + b"\x42\x42\x03" + bytes(43)),
    ("ethernet.802_3", ETHERNET[:12] + b"\x05\xff" + bytes(46)),
    ("ethernet.unknown_type", ETHERNET[:12] + b"\x88\x8e" + bytes(46)),
    ("arp.too_short", arp()[:41]),
    ("arp.not_ipv4_over_ethernet", arp(hardware=6)),
    ("arp.not_ipv4_over_ethernet", arp(protocol=0x86DD)),
    ("arp.not_ipv4_over_ethernet", arp(sizes=(255, 4))),
    ("arp.not_ipv4_over_ethernet", arp(sizes=(6, 16))),
    ("ipv4.too_short", ipv4(UDP, udp())[:33]),
    ("ipv4.bad_version", ipv4(UDP, udp(), version=6)),
    ("ipv4.bad_header_length", ETHERNET + b"\x44" + ipv4(UDP, udp())[15:]),
    ("ipv4.bad_total_length", ipv4(UDP, udp(), total=0)),
    ("ipv4.bad_total_length", ipv4(UDP, udp(), total=19)),
    ("ipv4.bad_total_length", ipv4(UDP, udp(), total=29)),
    ("ipv4.bad_total_length", ipv4(UDP, udp(), options=bytes(4), total=23)),
    ("ipv4.bad_checksum", flipped(ipv4(UDP, udp()), 30)),
    ("ipv4.bad_option", FREEZES_UNGUARDED_IMPACKET),
    ("ipv4.bad_option", ipv4(UDP, udp(), options=b"\x83\x01\0\0")),
    ("ipv4.bad_option", ipv4(UDP, udp(), options=b"\x01\x01\x01\x44")),
    ("ipv4.bad_option", ipv4(UDP, udp(), options=b"\x07\x05\0\0")),
    ("ipv4.unknown_protocol", ipv4(132, bytes(20))),
    ("tcp.too_short", ipv4(TCP, tcp()[:19])),
    ("tcp.too_short", ipv4(TCP, b"")),
    ("tcp.bad_data_offset", ipv4(TCP, tcp(offset=4))),
    ("tcp.bad_data_offset", ipv4(TCP, tcp(b"abc", offset=6))),
    ("tcp.bad_checksum", flipped(ipv4(TCP, tcp(b"data")), 55)),
    ("tcp.bad_option", ipv4(TCP, tcp(flags=SYN, options=b"\x02\0\x05\xb4"))),
    ("tcp.bad_option", ipv4(TCP, tcp(flags=SYN, options=b"\xfe\x01\0\0"))),
    ("tcp.bad_option", ipv4(TCP, tcp(flags=SYN, options=b"\x01\x02\x04\x05"))),
    ("tcp.bad_option", ipv4(TCP, tcp(flags=SYN, options=b"\x02\x03\x05\0"))),
    ("tcp.bad_option", ipv4(TCP, tcp(flags=SYN, options=b"\x03\x04\x07\0"))),
    ("tcp.bad_option", ipv4(TCP, tcp(flags=SYN, options=b"\x01\x01\x01\x08"))),
    ("tcp.bad_option", ipv4(TCP, tcp(options=b"\x05\x02\x01\x01"))),
    ("tcp.bad_option", ipv4(TCP, tcp(options=b"\x05\x0e123456789012" + b"\x01\x01"))),
    ("tcp.bad_option", ipv4(TCP, tcp(options=b"\x01\x01\x05\x12" + bytes(8)))),
    ("udp.too_short", ipv4(UDP, udp()[:7])),
    ("udp.bad_length", ipv4(UDP, udp(b"data", length=7))),
    ("udp.bad_length", ipv4(UDP, udp(b"data", length=13))),
    ("udp.bad_checksum", flipped(ipv4(UDP, udp(b"data")), 43)),
    ("icmp.too_short", ipv4(ICMP, icmp()[:7])),
    ("icmp.bad_checksum", flipped(ipv4(ICMP, icmp(b"ping")), 43)),
    ("icmp.bad_checksum", ipv4(ICMP, bytes(8))),
]


@pytest.mark.parametrize(("reason", "frame"), REFUSED, ids=[reason for reason, _ in REFUSED])
def test_a_malformed_frame_is_refused_by_name(reason: str, frame: bytes) -> None:
    """Each way of being wrong has its own counter."""
    with pytest.raises(Malformed) as refusal:
        decode_transport(decode_ip(frame))
    assert refusal.value.reason == str(refusal.value) == reason


def test_the_frame_that_freezes_impacket_has_58_bytes() -> None:
    """A record-route option of length 0, in an otherwise blameless ACK: refused above, at once."""
    assert len(FREEZES_UNGUARDED_IMPACKET) == 58


@pytest.mark.parametrize("option", [b"\x99\x02\x01\x01", b"\x07\x03\x04\0", b"\x94\x04\0\0"])
def test_an_ip_option_of_no_interest_is_ignored(option: bytes) -> None:
    """RFC 1122, 3.2.1.8: an option not understood does not cost the packet."""
    packet = decode_ip(ipv4(UDP, udp(b"data"), options=option))
    assert decode_transport(packet) == UdpDatagram(40000, 53, b"data")


# --- any bytes at all ---------------------------------------------------------------------------


def walk(options: bytes) -> list[bytes] | None:
    """The options before their end, or None where one does not fit."""
    found = []
    while options and options[0] != 0:
        size = 1 if options[0] == 1 else options[1] if len(options) > 1 else 0
        if size > len(options) or (options[0] != 1 and size < 2):
            return None
        found.append(options[:size])
        options = options[size:]
    return found


def plain_reading(frame: bytes) -> tuple[Frame, Transport | None] | None:
    """The second decoder; None where the frame or its IP header is refused."""
    if len(frame) < 14:
        return None
    destination, source, ethertype = struct.unpack_from(">6s6sH", frame)
    body = frame[14:]
    if ethertype == 0x0806:
        if len(body) < 28 or body[:6] != bytes.fromhex("000108000604"):
            return None
        return Frame(destination, source, Arp(*struct.unpack_from(">H6s4s6s4s", body, 6))), None
    if ethertype != 0x0800 or len(body) < 20:
        return None
    first, _, total, identification, word, ttl, protocol, _, src, dst = struct.unpack_from(
        ">BBHHHBBH4s4s", body
    )
    size = first % 16 * 4
    if first >> 4 != 4 or not 20 <= size <= total <= len(body) or sum16(body[:size]):
        return None
    if walk(body[20:size]) is None:
        return None
    packet = IpPacket(
        src, dst, protocol, ttl, identification, bool(word & 0x4000), bool(word & 0x2000),
        (word & 0x1FFF) * 8, body[:size], body[size:total],
    )  # fmt: skip
    return Frame(destination, source, packet), plain_transport(packet)


def plain_transport(packet: IpPacket) -> Transport | None:
    """What the packet carries; None where that is refused."""
    data = packet.payload
    addresses = packet.source + packet.destination
    if packet.protocol == ICMP and len(data) >= 8 and sum16(data) == 0:
        return IcmpMessage(data[0], data[1], data[4:8], data[8:])
    if packet.protocol == UDP and len(data) >= 8:
        source, destination, size, sum_ = struct.unpack_from(">HHHH", data)
        if 8 <= size <= len(data) and not (
            sum_ and sum16(addresses + struct.pack(">HH", UDP, size) + data[:size])
        ):
            return UdpDatagram(source, destination, data[8:size])
    if packet.protocol == TCP and len(data) >= 20:
        source, destination, sequence, acknowledgment, control, window = struct.unpack_from(
            ">HHIIHH", data
        )
        size = (control >> 12) * 4
        options = walk(data[20:size])
        if 20 <= size <= len(data) and options is not None and not sum16(
            addresses + struct.pack(">HH", TCP, len(data)) + data
        ):  # fmt: skip
            lengths = {2: (4,), 3: (3,), 4: (2,), 5: (10, 18, 26, 34)}
            if any(len(it) not in lengths.get(it[0], (len(it),)) for it in options):
                return None
            blocks = next((it[2:] for it in options if it[0] == 5), b"")
            said = {option[0]: int.from_bytes(option[2:], "big") for option in options}
            return TcpSegment(
                source, destination, sequence, acknowledgment, control & 255, window,
                said.get(2), said.get(3), 4 in said, data[size:],
                struct.unpack(f">{len(blocks) // 4}I", blocks),
            )  # fmt: skip
    return None


def full_reading(frame: bytes) -> tuple[Frame, Transport | None] | None:
    """The slow tier in the same shape. Nothing but Malformed is caught: all else is a bug."""
    try:
        decoded = decode(frame)
    except Malformed:
        return None
    if isinstance(decoded.content, Arp):
        return decoded, None
    try:
        return decoded, decode_transport(decoded.content)
    except Malformed:
        return decoded, None


option_lists = st.one_of(
    st.binary(max_size=40),
    st.lists(
        st.sampled_from(
            [b"\0", b"\1", b"\2\4\5\xb4", b"\2\4\0\0", b"\3\3\7", b"\4\2", b"\5\x0a12345678",
             b"\5\x12abcdefghijklmnop", b"\5\2", b"\5\x0b123456789",
             b"\x08\x0a12345678", b"\x07\x07\x041234", b"\x44\0", b"\x83\0", b"\x89\x01",
             b"\xfe\x03x"]
        ), max_size=10,
    ).map(b"".join),
).map(lambda options: options[:40].ljust(len(options[:40]) + 3 & ~3, b"\0"))  # fmt: skip
payloads = st.binary(max_size=80)
transports: st.SearchStrategy[tuple[int, bytes]] = st.one_of(
    st.tuples(
        st.just(TCP),
        st.builds(
            lambda payload, flags, options, offset: tcp(
                payload, flags=flags, options=options, offset=offset
            ),
            payloads, st.integers(0, 0xFFF), option_lists, st.just(0) | st.integers(0, 15),
        ),
    ),
    st.tuples(
        st.just(UDP),
        st.builds(
            lambda payload, length: udp(payload, length=length),
            payloads, st.none() | st.integers(0, 100),
        ),
    ),
    st.tuples(
        st.just(ICMP),
        st.builds(lambda payload, kind: icmp(payload, type=kind), payloads, st.integers(0, 255)),
    ),
    st.tuples(st.integers(0, 255), payloads),
)  # fmt: skip
ip_frames = st.builds(
    lambda carried, options, fragment, total, ttl, padding: (
        ipv4(*carried, options=options, fragment=fragment, total=total, ttl=ttl) + padding
    ),
    transports,
    st.just(b"") | option_lists,
    st.sampled_from([0, 0x4000, 0x8000, 0x2000, 1, 185]) | st.integers(0, 0xFFFF),
    st.none() | st.integers(0, 200),
    st.integers(0, 255),
    st.binary(max_size=20),
)
some_frames = st.one_of(
    ip_frames,
    st.builds(lambda padding: arp() + padding, st.binary(max_size=20)),
    st.builds(lambda type_, body: ETHERNET[:12] + type_ + body,
              st.sampled_from([b"\x08\0", b"\x08\6", b"\x81\0", b"\x86\xdd"]), st.binary()),
    st.binary(max_size=100),
)  # fmt: skip


def replaced(at: int, value: int) -> Callable[[bytes], bytes]:
    """Write one byte, where the frame has it."""
    return lambda frame: frame[:at] + bytes([value]) + frame[at + 1 :] if at < len(frame) else frame


mutations = st.one_of(
    st.builds(replaced, st.integers(0, 100), st.integers(0, 255)),
    st.builds(lambda size: lambda frame: frame[:size], st.integers(0, 100)),
    st.builds(lambda more: lambda frame: frame + more, st.binary(max_size=10)),
)


@settings(max_examples=1000, deadline=timedelta(seconds=1))
@given(some_frames, st.lists(mutations, max_size=4))
def test_both_readings_agree(frame: bytes, changes: list[Callable[[bytes], bytes]]) -> None:
    """impacket behind its guard and a plain struct reading: same fields or both refuse, in time."""
    for change in changes:
        frame = change(frame)
    assert full_reading(frame) == plain_reading(frame)


SEEDS = {
    "syn": ipv4(TCP, tcp(flags=SYN, options=SYN_OPTIONS)),
    "data": ipv4(TCP, tcp(b"hello"), options=b"\x94\x04\0\0"),
    "datagram": ipv4(UDP, udp(b"hello")),
    "echo": ipv4(ICMP, icmp(b"hello")),
    "arp": arp(),
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
def test_every_single_byte_mutation_and_every_truncation(seed: bytes) -> None:
    """Each byte set to each of 256 values, the IP checksum repaired or not, and each cut."""
    assert full_reading(seed) is not None
    for at in range(len(seed)):
        assert full_reading(seed[:at]) == plain_reading(seed[:at])
        for value in range(256):
            frame = seed[:at] + bytes([value]) + seed[at + 1 :]
            assert full_reading(frame) == plain_reading(frame)
            if 14 <= at < 34 and seed[12:14] == b"\x08\0":
                size = max(20, frame[14] % 16 * 4)
                frame = ETHERNET + with_checksum(frame[14 : 14 + size], 10) + frame[14 + size :]
                assert full_reading(frame) == plain_reading(frame)
