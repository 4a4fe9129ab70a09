"""Datagrams for the guest."""

from hypothesis import given
from hypothesis import strategies as st
from impacket.ImpactPacket import UDP as ImpacketUdp  # noqa: N811 - two of the same name

from qemu_usernat.wire.checksum import checksum, partial, pseudo_header
from qemu_usernat.wire.packets import UDP
from qemu_usernat.wire.udp import udp_datagram

PORTS = st.integers(0, 0xFFFF)
PAIRS = st.sampled_from([4, 16]).flatmap(
    lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 2)
)


@given(PAIRS, PORTS, PORTS, st.binary(max_size=2000))
def test_impacket_reads_what_was_meant(
    addresses: tuple[bytes, bytes], source_port: int, destination_port: int, payload: bytes
) -> None:
    """Ports, length and payload in their places, and a checksum right for either family."""
    datagram = udp_datagram(addresses[0], source_port, addresses[1], destination_port, payload)
    udp = ImpacketUdp(datagram[:8])
    assert (udp.get_uh_sport(), udp.get_uh_dport()) == (source_port, destination_port)
    assert udp.get_uh_ulen() == len(datagram) == 8 + len(payload)
    assert udp.get_uh_sum() != 0
    assert datagram[8:] == payload
    assert checksum(datagram, pseudo_header(*addresses, UDP, len(datagram))) == 0


def test_a_checksum_of_zero_is_sent_as_its_other_form() -> None:
    """0 would say "not computed" (RFC 768), so a sum that gives it goes out as ffff."""
    host, guest = bytes([192, 0, 2, 1]), bytes([10, 0, 2, 15])
    before = udp_datagram(host, 53, guest, 4000, b"\0\0")
    sum_before = partial(before[:6] + before[8:]) + pseudo_header(host, guest, UDP, len(before))
    completing = (-sum_before % 0xFFFF).to_bytes(2, "big")
    assert udp_datagram(host, 53, guest, 4000, completing)[6:8] == b"\xff\xff"


def test_the_largest_datagram() -> None:
    """65507 bytes of payload are 65515 of datagram."""
    assert len(udp_datagram(bytes(4), 1, bytes(4), 2, memoryview(bytes(65507)))) == 65515
