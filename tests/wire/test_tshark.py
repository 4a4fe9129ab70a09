"""Our datagrams and fragments, read by tshark."""

from pathlib import Path

import pytest

from qemu_usernat.wire.icmp import ECHO_REPLY, UNUSED, icmp_error, icmp_message
from qemu_usernat.wire.ipv4 import ipv4_frames, ipv4_header
from qemu_usernat.wire.packets import ICMP, UDP
from qemu_usernat.wire.udp import udp_datagram
from tests.scripted_guest import GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, SERVER, packed
from tests.tshark import complaints, fields, needs_tshark

SIZES = (0, 1, 17, 548, 549, 1472, 1473, 3000, 65507)

pytestmark = needs_tshark


def frames_of(mtu: int) -> list[bytes]:
    """UDP and echo of each size, as a guest with that MTU gets them."""
    source, guest = packed(SERVER), packed(GUEST)
    frames: list[bytes] = []
    for number, size in enumerate(SIZES):
        octets = (bytes(range(256)) * 256)[:size]
        datagram = udp_datagram(source, 9, guest, 40000, octets)
        reply = icmp_message(ECHO_REPLY, 0, bytes([0, 7, 0, number]), octets)
        for protocol, payload in ((UDP, datagram), (ICMP, reply)):
            frames += ipv4_frames(
                GATEWAY_MAC, GUEST_MAC, source, guest, protocol, payload, mtu, len(frames)
            )
    return [frame[4:] for frame in frames]


@pytest.mark.parametrize("mtu", [576, 1500])
def test_tshark_has_nothing_to_complain_of(mtu: int, tmp_path: Path) -> None:
    """Lengths, checksums and reassembly are right to somebody who has read none of our code."""
    frames = frames_of(mtu)
    assert complaints(frames, tmp_path) == []
    read = fields(frames, tmp_path, "ip.reassembled.length", "udp.length", "icmp.type")
    assert [int(length) for _, length, _ in read if length] == [8 + size for size in SIZES]
    assert [kind for _, _, kind in read if kind] == ["0"] * len(SIZES)
    whole = [int(length) for length, _, _ in read if length]
    assert whole == [8 + size for size in SIZES for _ in (UDP, ICMP) if 28 + size > mtu]


def test_tshark_does_complain_of_what_is_wrong(tmp_path: Path) -> None:
    """A test that cannot fail shows nothing: a wrong checksum, and a datagram cut short."""
    frames = frames_of(1500)
    assert complaints([frames[0][:-20], frames[2][:50] + b"\xff" + frames[2][51:]], tmp_path)


def test_tshark_reads_our_errors(tmp_path: Path) -> None:
    """Each kind that there is, with the packet that it quotes, whole or cut."""
    datagram = udp_datagram(packed(GUEST), 40000, packed(SERVER), 9, bytes(600))
    quoted = ipv4_header(packed(GUEST), packed(SERVER), UDP, len(datagram), 7, 1) + datagram
    frames = []
    for kind, code, rest in ((3, 3, UNUSED), (3, 13, UNUSED), (11, 0, UNUSED), (3, 4, b"\0\0\5\0")):
        for length in (28, 60, len(quoted)):
            message = icmp_error(kind, code, rest, quoted[:length])
            frames += ipv4_frames(
                GATEWAY_MAC, GUEST_MAC, packed(GATEWAY), packed(GUEST), ICMP, message, 576, 1
            )
    frames = [frame[4:] for frame in frames]
    said = complaints(frames, tmp_path)
    assert not [line for line in said if "Malformed" in line or "checksum" in line]
    read = fields(frames, tmp_path, "icmp.type", "icmp.code", "icmp.mtu", "udp.dstport")
    assert read[::3] == [
        ["3", "3", "", "9"], ["3", "13", "", "9"], ["11", "0", "", "9"], ["3", "4", "1280", "9"],
    ]  # fmt: skip
