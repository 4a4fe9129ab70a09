"""The fast tier: what it knows, what it leaves alone, and that the slow tier says the same."""

from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.checksum import checksum, pseudo_header
from qemu_usernat.wire.decoder import decode, decode_transport
from qemu_usernat.wire.emit import SegmentTemplate
from qemu_usernat.wire.headers import Peeked, locate, peek, peek_fragment
from qemu_usernat.wire.icmp import ECHO_REQUEST, icmp_message
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import (
    ACK,
    FIN,
    ICMP,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    Buffer,
    IpPacket,
    TcpSegment,
    UdpDatagram,
)
from qemu_usernat.wire.tcp_options import selective_option
from qemu_usernat.wire.udp import udp_datagram

GUEST_MAC = bytes.fromhex("525400123456")
GATEWAY_MAC = bytes.fromhex("52550a000202")
GUEST = bytes([10, 0, 2, 15])
HOST = bytes([192, 0, 2, 1])


def segment(payload: bytes = b"", flags: int = ACK, options: bytes = b"") -> bytes:
    """A frame from the guest with a TCP segment."""
    out: list[Buffer] = []
    template = SegmentTemplate(GATEWAY_MAC, GUEST_MAC, GUEST, 40000, HOST, 443)
    template.append(out, 1000, 2000, flags, 500, payload, options)
    return b"".join(out)[4:]


def datagram(payload: bytes = b"", ttl: int = 64) -> bytes:
    """A frame from the guest with a UDP datagram, not padded."""
    content = udp_datagram(GUEST, 40000, HOST, 53, payload)
    (wire,) = ipv4_frames(
        GUEST_MAC, GATEWAY_MAC, GUEST, HOST, UDP, content, 65535, identification=7, ttl=ttl
    )
    return wire[4 : 4 + 34 + len(content)]


def echo(payload: bytes = b"", kind: int = 8, code: int = 0) -> bytes:
    """A frame from the guest with an ICMP message of echo's shape, not padded."""
    content = icmp_message(kind, code, b"\x12\x34\x00\x07", payload)
    (wire,) = ipv4_frames(GUEST_MAC, GATEWAY_MAC, GUEST, HOST, ICMP, content, 65535, 7)
    return wire[4 : 4 + 34 + len(content)]


def repaired(frame: bytes) -> bytes:
    """The frame with the checksums made right that its lengths say it has, if they can be."""
    changed = bytearray(frame)
    if len(changed) < 42 or not 28 <= int.from_bytes(changed[16:18], "big") <= len(changed) - 14:
        return frame
    changed[24:26] = bytes(2)
    changed[24:26] = checksum(changed[14:34]).to_bytes(2, "big")
    total, protocol = int.from_bytes(changed[16:18], "big"), changed[23]
    length = int.from_bytes(changed[38:40], "big") if protocol == UDP else total - 20
    at = 40 if protocol == UDP else 36 if protocol == ICMP else 50
    if at + 2 <= 34 + length <= len(changed):
        changed[at : at + 2] = bytes(2)
        start = 0
        if protocol != ICMP:
            start = pseudo_header(bytes(changed[26:30]), bytes(changed[30:34]), protocol, length)
        changed[at : at + 2] = checksum(changed[34 : 34 + length], start).to_bytes(2, "big")
    return bytes(changed)


def only_selective(options: bytes) -> bool:
    """Whether it is two NOPs and one SACK option of whole blocks, and nothing else."""
    return options[:3] == b"\1\1\5" and options[3] + 2 == len(options) in (12, 20, 28, 36)


def slow(frame: bytes) -> Peeked | None:
    """What the slow tier has to say in the fast tier's words; None for all that is not plain."""
    try:
        packet = decode(frame).content
        if not isinstance(packet, IpPacket) or len(packet.header) != 20 or packet.ttl < 2:
            return None
        if packet.more_fragments or packet.fragment_offset:
            return None
        content = decode_transport(packet)
    except Malformed:
        return None
    numbers = (0, 0, 0, 0)
    selective: tuple[int, ...] = ()
    if isinstance(content, TcpSegment):
        options = packet.payload[20 : len(packet.payload) - len(content.payload)]
        if content.flags & (SYN | URG) or not (options == b"" or only_selective(options)):
            return None
        start = 54 + len(options)
        numbers = (content.sequence, content.acknowledgment, content.flags, content.window)
        selective = content.selective
    elif isinstance(content, UdpDatagram):
        start = 42
    elif (content.type, content.code) == (ECHO_REQUEST, 0):
        words = int.from_bytes(content.rest[:2], "big"), int.from_bytes(content.rest[2:], "big")
        content, start = UdpDatagram(*words, content.payload), 42
    else:
        return None
    end = start + len(content.payload)
    assert content.payload == frame[start:end]
    return (packet.protocol, packet.source, content.source_port, packet.destination,
            content.destination_port, start, end, *numbers, selective)  # fmt: skip


def slow_place(frame: bytes) -> tuple[int, bytes, bytes, int, int, int] | None:
    """What the slow tier says of where a packet is, but for options that it does not like."""
    try:
        packet = decode(frame).content
    except Malformed as error:
        located = locate(memoryview(frame))
        return located[:6] if located and error.reason == "ipv4.bad_option" else None
    if not isinstance(packet, IpPacket):
        return None
    word = int.from_bytes(frame[20:22], "big")
    start = 14 + len(packet.header)
    return (
        packet.protocol, packet.source, packet.destination, packet.identification, word, start
    )  # fmt: skip


def slow_fragment(frame: bytes) -> IpPacket | None:
    """The fragment that the slow tier reads, if it is a plain one."""
    try:
        packet = decode(frame).content
    except Malformed:
        return None
    if not isinstance(packet, IpPacket) or len(packet.header) != 20 or packet.ttl < 2:
        return None
    return packet if packet.more_fragments or packet.fragment_offset else None


def assert_tiers_agree(frame: bytes) -> None:
    assert peek(memoryview(frame)) == slow(frame)
    assert peek_fragment(memoryview(frame)) == slow_fragment(frame)
    located = locate(memoryview(frame))
    assert (None if located is None else located[:6]) == slow_place(frame)
    assert located is None or located[6] == 14 + int.from_bytes(frame[16:18], "big")


def fragment(payload: bytes, word: int = 0x2000) -> bytes:
    """A frame with a fragment; `word` is flags and offset."""
    return changed(datagram(payload), 20, word.to_bytes(2, "big"))


@pytest.mark.parametrize("word", [0x2000, 0x6000, 0x2001, 0x1FFF, 0x0001, 0x4001])
@pytest.mark.parametrize("padding", [0, 18])
def test_a_plain_fragment(word: int, padding: int) -> None:
    """First, middle or last, with DF or without, padded or not: as the decoder has it."""
    frame = fragment(b"sixteen octets!!", word)
    read = peek_fragment(memoryview(frame + bytes(padding)))
    assert read == slow_fragment(frame)
    assert read is not None
    assert (read.fragment_offset, read.payload) == ((word & 0x1FFF) * 8, frame[34:])


def test_a_plain_segment() -> None:
    """The addresses, the ports, where the payload lies, and the four numbers of TCP."""
    frame = segment(b"hello, world", ACK | PSH)
    expected = (TCP, GUEST, 40000, HOST, 443, 54, 66, 1000, 2000, ACK | PSH, 500, ())
    assert peek(memoryview(frame)) == expected
    assert frame[54:66] == b"hello, world"


def test_a_pure_acknowledgment_padded_or_not() -> None:
    """54 bytes from a virtio guest, 60 from a card that pads: no payload in either."""
    frame = segment()
    assert len(frame) == 60
    for view in (memoryview(frame), memoryview(frame)[:54]):
        assert peek(view) == (TCP, GUEST, 40000, HOST, 443, 54, 54, 1000, 2000, ACK, 500, ())


@pytest.mark.parametrize("size", [0, 1, 11, 12, 13, 1472, 65507])
def test_a_plain_datagram(size: int) -> None:
    """From the 42 bytes of an empty one to the largest there is."""
    frame = datagram(b"u" * size)
    assert len(frame) == 42 + size
    assert peek(memoryview(frame)) == (UDP, GUEST, 40000, HOST, 53, 42, 42 + size, 0, 0, 0, 0, ())
    padded = memoryview(frame.ljust(60, b"\0"))
    assert peek(padded) == peek(memoryview(frame))


@pytest.mark.parametrize("size", [0, 1, 56, 1472, 65507])
def test_a_plain_ping(size: int) -> None:
    """Its identifier and its sequence number stand where others have ports."""
    frame = echo(b"p" * size)
    expected = (ICMP, GUEST, 0x1234, HOST, 7, 42, 42 + size, 0, 0, 0, 0, ())
    assert peek(memoryview(frame)) == expected
    assert peek(memoryview(frame.ljust(60, b"\0"))) == expected


def test_a_datagram_without_a_checksum() -> None:
    """0 means that there is none (RFC 768)."""
    frame = datagram(b"data")
    assert peek(memoryview(frame[:40] + b"\0\0" + frame[42:])) is not None


@pytest.mark.parametrize("length", [0, 7, 13, 0xFFFF])
def test_a_length_that_lies_is_not_believed_without_a_checksum(length: int) -> None:
    """Where nothing is summed, a UDP length below 8 or beyond the packet is all there is to see."""
    frame = datagram(b"data")
    lying = frame[:38] + length.to_bytes(2, "big") + b"\0\0" + frame[42:]
    assert peek(memoryview(lying)) is None
    assert slow(lying) is None


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, FIN | ACK, RST, RST | ACK, 0, 0xC0 | ACK])
def test_flags_of_an_open_connection_are_plain(flags: int) -> None:
    """Data, FIN and RST take the fast path, with ECN's bits or without."""
    peeked = peek(memoryview(segment(b"x", flags)))
    assert peeked is not None
    assert peeked[9] == flags


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("payload", [b"", b"data as well"])
def test_a_selective_acknowledgment(blocks: int, payload: bytes) -> None:
    """What a guest has beyond a gap, and its payload, if any, behind that."""
    edges = tuple(range(0xFFFFFFF0, 0xFFFFFFF0 + 2 * blocks))
    frame = segment(payload, options=selective_option(edges))
    start = 58 + 8 * blocks
    expected = (TCP, GUEST, 40000, HOST, 443, start, start + len(payload), 1000, 2000, ACK, 500,
                edges)  # fmt: skip
    assert peek(memoryview(frame)) == expected
    assert frame[start : start + len(payload)] == payload


def test_the_blocks_are_under_the_checksum() -> None:
    """One bit of an edge that flipped on the way, and the segment is not believed."""
    frame = segment(options=selective_option((3000, 4000)))
    for at in range(58, 66):
        assert peek(memoryview(frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :])) is None


def changed(frame: bytes, at: int, value: bytes) -> bytes:
    """The frame with some bytes replaced and its checksums right again."""
    return repaired(frame[:at] + value + frame[at + len(value) :])


@pytest.mark.parametrize(
    "frame",
    [
        segment(flags=SYN),
        segment(flags=SYN | ACK),
        segment(flags=ACK | URG),
        segment(options=b"\x01\x01\x08\x0a12345678"),
        segment(options=b"\x05\x0a12345678\x01\x01"),
        segment(options=b"\x01\x01\x05\x0a12345678" * 2),
        segment(options=b"\x01\x01\x05\x02"),
        segment(options=selective_option((1, 2)), flags=SYN),
        segment(options=selective_option((1, 2)))[:65],
        changed(segment(b"data"), 20, b"\x20\0"),
        changed(segment(b"data"), 20, b"\0\x01"),
        datagram(b"data", ttl=1),
        datagram(b"data", ttl=0),
        datagram()[:41],
        echo(kind=0),
        echo(kind=13),
        echo(code=1),
        echo()[:41],
        segment()[:53],
        b"",
    ],
    ids=["syn", "syn-ack", "urgent", "timestamps", "padding behind",
         "two SACK options", "no blocks", "SACK in a syn", "half an edge", "first fragment",
         "later fragment", "ttl 1",
         "ttl 0", "41 bytes", "echo reply", "timestamp", "ping of another code",
         "41 bytes of a ping", "53 bytes", "nothing"],
)  # fmt: skip
def test_all_else_is_for_the_slow_tier(frame: bytes) -> None:
    """Unusual or broken: the fast tier has no opinion."""
    assert peek(memoryview(frame)) is None


def test_repairing_is_what_makes_a_change_count() -> None:
    """The helper of these tests: a changed port with right checksums is plain again."""
    peeked = peek(memoryview(changed(segment(b"data"), 36, b"\0\x50")))
    assert peeked is not None
    assert peeked[4] == 80


plain_frames = st.one_of(
    st.builds(segment, st.binary(max_size=100), st.integers(0, 255), st.sampled_from(
        [b"", b"", b"\1\1\1\0", b"\2\4\5\xb4", b"\1\1\x08\x0a12345678",
         *(selective_option(tuple(range(2 * blocks))) for blocks in range(1, 5))])),
    st.builds(datagram, st.binary(max_size=100), st.integers(0, 255)),
    st.builds(fragment, st.binary(max_size=100), st.integers(0, 0xFFFF)),
    st.builds(echo, st.binary(max_size=100), st.sampled_from([8, 8, 8, 0, 3])),
)  # fmt: skip
changes = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)), max_size=4)


@settings(max_examples=2000, deadline=timedelta(seconds=1))
@given(plain_frames, changes, st.booleans(), st.integers(0, 170), st.binary(max_size=20))
@example(segment(b"data"), [], False, 170, b"")
@example(datagram(b"data"), [(20, 0x80)], True, 170, b"padding")
def test_both_tiers_say_the_same(
    frame: bytes, changes: list[tuple[int, int]], repair: bool, cut: int, padding: bytes
) -> None:
    """Plain to one is plain to the other, field by field, however the frame was bent."""
    bent = bytearray(frame)
    for at, value in changes:
        if at < len(bent):
            bent[at] = value
    frame = (repaired(bytes(bent)) if repair else bytes(bent))[:cut] + padding
    assert_tiers_agree(frame)


@given(st.binary(max_size=120))
def test_both_tiers_say_the_same_of_garbage(frame: bytes) -> None:
    """Random bytes are no exception, and raise none."""
    assert_tiers_agree(frame)


@pytest.mark.parametrize(
    "frame",
    [segment(b"data"), segment(), segment(options=selective_option((1, 2, 3, 4))),
     datagram(b"data"), datagram(), datagram(b"data")[:20] + b"\x20\1" + datagram(b"data")[22:],
     echo(b"data")],
    ids=["segment", "acknowledgment", "selective one", "datagram", "empty datagram", "fragment",
         "ping"],
)  # fmt: skip
def test_both_tiers_say_the_same_of_every_single_byte_mutation(frame: bytes) -> None:
    """Each byte set to each value, with the checksums as they were and made right."""
    for at in range(len(frame)):
        assert_tiers_agree(frame[:at])
        for value in range(256):
            bent = frame[:at] + bytes([value]) + frame[at + 1 :]
            assert_tiers_agree(bent)
            assert_tiers_agree(repaired(bent))
