"""Segments for the guest, read back by impacket and by the checksum loop."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impacket.ImpactDecoder import EthDecoder

from qemu_usernat.wire.checksum import checksum, pseudo_header
from qemu_usernat.wire.emit import DatagramTemplate, SegmentTemplate, framed
from qemu_usernat.wire.headers import peek
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import ACK, PSH, SYN, TCP, UDP, Buffer
from qemu_usernat.wire.udp import udp_datagram

GUEST_MAC = bytes.fromhex("525400123456")
GATEWAY_MAC = bytes.fromhex("52550a000202")
HOST, HOST_PORT = bytes([192, 0, 2, 1]), 443
GUEST, GUEST_PORT = bytes([10, 0, 2, 15]), 40000

PORTS = st.integers(0, 0xFFFF)
NUMBERS = st.integers(0, 0xFFFFFFFF)
ADDRESSES = st.binary(min_size=4, max_size=4)


@pytest.fixture
def template() -> SegmentTemplate:
    return SegmentTemplate(GUEST_MAC, GATEWAY_MAC, HOST, HOST_PORT, GUEST, GUEST_PORT)


@given(
    host=st.tuples(ADDRESSES, PORTS),
    guest=st.tuples(ADDRESSES, PORTS),
    sequence=NUMBERS,
    acknowledgment=NUMBERS,
    flags=st.integers(0, 255),
    window=PORTS,
    payload=st.binary(max_size=3000),
    options=st.sampled_from([b"", b"\x02\x04\x05\xb4", b"\x02\x04\xff\xc8\x01\x03\x03\x09"]),
)
def test_impacket_reads_what_was_meant(
    host: tuple[bytes, int],
    guest: tuple[bytes, int],
    sequence: int,
    acknowledgment: int,
    flags: int,
    window: int,
    payload: bytes,
    options: bytes,
) -> None:
    """Another implementation finds every field where the RFCs put it, and both checksums right."""
    out: list[Buffer] = []
    template = SegmentTemplate(GUEST_MAC, GATEWAY_MAC, *host, *guest)
    appended = template.append(out, sequence, acknowledgment, flags, window, payload, options)
    wire = b"".join(out)
    frame = wire[4:]

    assert appended == len(wire)
    assert wire[:4] == len(frame).to_bytes(4, "big")
    assert len(frame) >= 60

    ethernet = EthDecoder().decode(frame)
    ip = ethernet.child()
    tcp = ip.child()
    assert bytes(ethernet.get_ether_dhost()) == GUEST_MAC
    assert bytes(ethernet.get_ether_shost()) == GATEWAY_MAC
    assert ip.get_ip_len() == 40 + len(options) + len(payload)
    assert (ip.get_ip_df(), ip.get_ip_mf(), ip.get_ip_offmask()) == (0x4000, 0, 0)
    assert (ip.get_ip_ttl(), ip.get_ip_p(), ip.get_ip_id()) == (64, TCP, 0)
    assert bytes(ip.get_bytes()[12:20]) == host[0] + guest[0]
    assert (tcp.get_th_sport(), tcp.get_th_dport()) == (host[1], guest[1])
    assert (tcp.get_th_seq(), tcp.get_th_ack()) == (sequence, acknowledgment)
    assert (tcp.get_th_flags(), tcp.get_th_win()) == (flags, window)
    assert tcp.get_th_off() * 4 == 20 + len(options)
    assert bytes(tcp.get_padded_options()) == options
    assert (tcp.get_data_as_string() or b"") == payload

    end = 14 + ip.get_ip_len()
    assert checksum(frame[14:34]) == 0
    assert checksum(frame[34:end], pseudo_header(host[0], guest[0], TCP, end - 34)) == 0
    assert frame[end:] == bytes(len(frame) - end)


def test_a_pure_acknowledgment_is_padded_to_the_minimum(template: SegmentTemplate) -> None:
    """54 bytes of headers become a frame of 60, in one buffer, padded with zeros."""
    out: list[Buffer] = []
    assert template.append(out, 1, 2, ACK, 65535) == 64
    (only,) = out
    assert only[:4] == b"\0\0\0\x3c"
    assert only[58:] == bytes(6)


@pytest.mark.parametrize(
    ("options", "payload"), list(product([0, 4, 8], [0, 1, 2, 5, 6, 7, 255, 256, 1460, 65480]))
)
def test_the_bytes_counted_are_the_bytes_appended(
    template: SegmentTemplate, options: int, payload: int
) -> None:
    """Whatever the sizes, the count is right and the stream's length is that of the frame."""
    out: list[Buffer] = []
    appended = template.append(out, 1, 2, ACK, 3, bytes(payload), b"\x01" * options)
    wire = b"".join(out)
    assert appended == len(wire) == 4 + int.from_bytes(wire[:4], "big")
    assert len(wire) == 4 + max(60, 54 + options + payload)


def test_a_large_payload_is_not_copied(template: SegmentTemplate) -> None:
    """The very buffer that came from the host's socket goes to the guest."""
    payload = memoryview(bytearray(b"x" * 1460))
    out: list[Buffer] = []
    template.append(out, 1, 2, ACK | PSH, 3, payload)
    assert out[1] is payload


def test_a_small_payload_may_be_reused_at_once(template: SegmentTemplate) -> None:
    """A few bytes are joined to their header; their buffer is the caller's again."""
    payload = bytearray(b"hello")
    out: list[Buffer] = []
    template.append(out, 1, 2, ACK | PSH, 3, payload)
    payload[:] = b"XXXXX"
    assert bytes(out[0]).rstrip(b"\0").endswith(b"hello")


def test_what_is_appended_is_what_peek_sees(template: SegmentTemplate) -> None:
    """The two fast paths agree about where the payload of a segment lies."""
    out: list[Buffer] = []
    template.append(out, 7, 8, ACK, 9, b"data")
    frame = memoryview(b"".join(out))[4:]
    expected = (TCP, HOST, HOST_PORT, GUEST, GUEST_PORT, 54, 58, 7, 8, ACK, 9, ())
    assert peek(frame) == expected
    assert bytes(frame[54:58]) == b"data"


def test_a_syn_carries_its_options(template: SegmentTemplate) -> None:
    """An MSS of 65480 and a window scale of 9, as a SYN-ACK would say them."""
    out: list[Buffer] = []
    template.append(out, 0, 1, SYN | ACK, 65535, options=b"\x02\x04\xff\xc8\x01\x03\x03\x09")
    tcp = EthDecoder().decode(bytes(out[0][4:])).child().child()
    mss, _, scale = tcp.get_options()
    assert mss.get_mss() == 65480
    assert scale.get_shift_cnt() == 9


@pytest.mark.parametrize("size", [0, 1, 45, 46, 47, 1500])
def test_any_content_is_framed_and_padded(size: int) -> None:
    """Length, addresses, type, content; zeros up to 60 bytes and none beyond."""
    wire = framed(GUEST_MAC, GATEWAY_MAC, 0x0800, b"a" * size)
    expected = GUEST_MAC + GATEWAY_MAC + b"\x08\0" + b"a" * size + bytes(max(0, 46 - size))
    assert wire == len(expected).to_bytes(4, "big") + expected


@given(
    data=st.one_of(st.binary(min_size=1, max_size=5000), st.integers(1, 5000).map(bytes)),
    size=st.integers(44, 750).map(lambda half: 2 * half),
    sequence=st.sampled_from([0, 77, (1 << 32) - 1, (1 << 32) - 1500]),
    flags=st.sampled_from([ACK, ACK | PSH]),
    offset=st.integers(0, 3),
)
def test_many_segments_at_once_are_those_made_one_by_one(
    data: bytes, size: int, sequence: int, flags: int, offset: int
) -> None:
    """To the bit, at every size, alignment and content; only the last one has PSH."""
    made = SegmentTemplate(GUEST_MAC, GATEWAY_MAC, HOST, 443, GUEST, 40000)
    payload = memoryview(b"x" * offset + data)[offset:]
    at_once: list[Buffer] = []
    one_by_one: list[Buffer] = []
    count = made.append_each(at_once, sequence, 99, flags, 512, payload, size)
    expected = 0
    for start in range(0, len(data), size):
        piece = payload[start : start + size]
        last = start + size >= len(data)
        number = (sequence + start) % (1 << 32)
        pushed = flags if last else flags & ~PSH
        expected += made.append(one_by_one, number, 99, pushed, 512, piece)
    assert b"".join(at_once) == b"".join(one_by_one)
    assert count == expected == sum(map(len, at_once))


@given(
    st.one_of(
        st.binary(max_size=40), st.sampled_from([17, 18, 19, 255, 256, 1472, 65507]).map(bytes)
    ),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.binary(min_size=4, max_size=4),
)
def test_a_datagram_of_a_template_is_one_made_step_by_step(
    payload: bytes, port: int, identification: int, source: bytes
) -> None:
    """To the bit, padding and both checksums included: UDP's is never 0, whatever it sums to."""
    made = DatagramTemplate(GUEST_MAC, GATEWAY_MAC, GUEST, GUEST_PORT)
    out: list[Buffer] = []
    count = made.append(out, source, port, identification, payload)
    datagram = udp_datagram(source, port, GUEST, GUEST_PORT, payload)
    frames = ipv4_frames(
        GATEWAY_MAC, GUEST_MAC, source, GUEST, UDP, datagram, 65535, identification
    )
    assert b"".join(out) == frames[0]
    assert count == len(frames[0])


def test_a_datagram_s_checksum_is_never_none() -> None:
    """Of all ports one makes the sum come out as 0, which would say that there is no checksum."""
    made = DatagramTemplate(GUEST_MAC, GATEWAY_MAC, GUEST, GUEST_PORT)
    sums = []
    for port in range(0x10000):
        out: list[Buffer] = []
        made.append(out, HOST, port, 0, b"")
        sums.append(bytes(out[0][44:46]))
    assert sums.count(b"\xff\xff") >= 1
    assert b"\0\0" not in sums
