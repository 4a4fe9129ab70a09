"""Packets for the guest: headers, and fragments where the MTU asks for them."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impacket.ImpactDecoder import EthDecoder

from qemu_usernat.nat.fragments import Reassembler
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.checksum import checksum
from qemu_usernat.wire.decoder import decode
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import IpPacket

GATEWAY_MAC = bytes.fromhex("52550a000202")
GUEST_MAC = bytes.fromhex("525400123456")
HOST = bytes([192, 0, 2, 1])
GUEST = bytes([10, 0, 2, 15])
SOME_PROTOCOL = 132


def sent(payload: bytes, mtu: int, *, dont_fragment: bool = False) -> list[bytes]:
    """The frames without their stream length, which is checked on the way."""
    frames = []
    for wire in ipv4_frames(
        GATEWAY_MAC, GUEST_MAC, HOST, GUEST, SOME_PROTOCOL, payload, mtu, 77, 63, dont_fragment
    ):
        assert wire[:4] == (len(wire) - 4).to_bytes(4, "big")
        frames.append(wire[4:])
    return frames


def test_a_packet_that_fits_is_one_frame() -> None:
    """Every field where impacket looks for it, no fragment, checksum right."""
    (frame,) = sent(b"p" * 1480, 1500)
    ethernet = EthDecoder().decode(frame)
    ip = ethernet.child()
    assert bytes(ethernet.get_ether_dhost()) == GUEST_MAC
    assert bytes(ethernet.get_ether_shost()) == GATEWAY_MAC
    assert (ip.get_ip_v(), ip.get_ip_hl(), ip.get_ip_len()) == (4, 5, 1500)
    assert (ip.get_ip_id(), ip.get_ip_off(), ip.get_ip_ttl()) == (77, 0, 63)
    assert (ip.get_ip_p(), ip.get_ip_src(), ip.get_ip_dst()) == (132, "192.0.2.1", "10.0.2.15")
    assert checksum(frame[14:34]) == 0
    assert frame[34:] == b"p" * 1480


def test_do_not_fragment_is_said() -> None:
    """DF is set when asked for."""
    (frame,) = sent(b"p", 1500, dont_fragment=True)
    assert EthDecoder().decode(frame).child().get_ip_df()


@given(st.integers(0, 65515).flatmap(lambda size: st.tuples(st.just(size), st.integers(28, 65535))))
def test_fragments_are_a_whole_again(size_and_mtu: tuple[int, int]) -> None:
    """In order, without gaps, none above the MTU, and only the last one says so."""
    size, mtu = size_and_mtu
    mtu = max(mtu, size // 200)  # a few hundred fragments at most: patience
    payload = (b"0123456789abcdef" * 4096)[:size]
    packets = []
    for frame in sent(payload, mtu):
        packet = decode(frame).content
        assert isinstance(packet, IpPacket)
        packets.append(packet)
    offset = 0
    for packet in packets:
        assert 20 + len(packet.payload) <= mtu
        assert packet.fragment_offset == offset
        assert packet.more_fragments == (packet is not packets[-1])
        assert (packet.identification, packet.protocol) == (77, SOME_PROTOCOL)
        offset += len(packet.payload)
    assert b"".join(packet.payload for packet in packets) == payload


@given(st.integers(576, 65520), st.integers(0, 65515), st.randoms(use_true_random=False))
def test_at_every_mtu_a_guest_gets_what_was_sent(mtu: int, size: int, chance: Random) -> None:
    """Every header as impacket reads it, no fragment beyond the MTU, and a whole again for our own
    reassembler and for a buffer with holes."""
    payload = (bytes(range(251)) * 262)[:size]
    frames = sent(payload, mtu)
    hole, octets, reassembled = bytearray(b"\1" * size), bytearray(size), []
    reassembler = Reassembler(Counters())
    for frame in chance.sample(frames, len(frames)):
        ip = EthDecoder().decode(frame).child()
        start, length = ip.get_ip_offmask() * 8, ip.get_ip_len() - 20
        assert checksum(frame[14:34]) == 0
        assert 20 + length <= mtu
        assert len(frame) == max(60, 34 + length)
        is_last = start + length == size
        assert ip.get_ip_mf() != is_last
        assert is_last or length == (mtu - 20) // 8 * 8
        assert all(hole[start : start + length])
        hole[start : start + length] = bytes(length)
        octets[start : start + length] = frame[34 : 34 + length]
        packet = decode(frame).content
        assert isinstance(packet, IpPacket)
        if len(frames) == 1:
            reassembled.append(packet)
        elif (whole := reassembler.add(packet, GUEST_MAC, "", 0.0)) is not None:
            reassembled.append(whole)
    assert not any(hole)
    assert bytes(octets) == payload
    assert [whole.payload for whole in reassembled] == [payload]


@pytest.mark.parametrize(
    ("size", "mtu", "count"),
    [(1480, 1500, 1), (1481, 1500, 2), (0, 28, 1), (2960, 1500, 2), (65515, 65520, 2)],
)
def test_no_fragment_more_than_needed(size: int, mtu: int, count: int) -> None:
    """A payload that just fits is not cut, one byte more is cut once."""
    assert len(sent(bytes(size), mtu)) == count


def test_what_no_packet_can_hold_is_refused() -> None:
    """65516 bytes do not fit into 65535 with a header; nor 1481 into 1500 with DF."""
    with pytest.raises(ValueError, match="65516"):
        sent(bytes(65516), 1500)
    with pytest.raises(ValueError, match="1481"):
        sent(bytes(1481), 1500, dont_fragment=True)
