"""A capture tells what passed, fails where it cannot know, and can be read by others."""

import json
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.testing.capture import FRAME_COST, Capture
from qemu_usernat.testing.filters import arp, icmp, tcp, to_guest, udp
from qemu_usernat.wire.packets import ACK, SYN
from tests.testing.sample_frames import (
    FRAMES,
    arp_frame,
    numbered,
    ping_frame,
    tcp_frame,
    udp_frame,
)


def capture_of(*frames: bytes, guest: str = "one") -> Capture:
    capture = Capture()
    for number, octets in enumerate(frames):
        capture.see(octets, guest, from_guest=True, now=1000 + number / 4)
    return capture


def test_frames_in_order_with_time_and_direction() -> None:
    """The oldest first; time counts from the first one."""
    capture = capture_of(arp_frame(), tcp_frame())
    capture.see(udp_frame(), "one", from_guest=False, now=1002.0)
    first, second, third = capture.frames()
    assert [first.time, second.time, third.time] == [0, 0.25, 2]
    assert capture.frames(to_guest) == [third]
    assert second.tcp is not None
    assert second.tcp.syn
    assert second.ip is not None
    assert second.ip.source == "10.0.2.15"


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (
            tcp_frame(payload=b"12345", flags=SYN | ACK),
            "IP 10.0.2.15.40000 > 198.51.100.7.443: Flags [S.], seq 7:12, ack 0, win 64000, "
            "length 5",
        ),
        (udp_frame(), "IP 10.0.2.15.5000 > 198.51.100.7.9: UDP, length 5"),
        (ping_frame(), "IP 10.0.2.15 > 10.0.2.2: ICMP echo request, length 12"),
        (arp_frame(), "ARP, Request who-has 10.0.2.2 tell 10.0.2.15"),
        (tcp_frame()[:-1] + b"\1", "IP 10.0.2.15 > 198.51.100.7: tcp.bad_checksum, length 20"),
    ],
)
def test_a_frame_says_itself_in_one_line(octets: bytes, said: str) -> None:
    """As tcpdump would, with its time, its direction and its guest."""
    (frame,) = capture_of(octets).frames()
    assert repr(frame) == f"0.000000 from one: {said}"
    frame.fate = "dropped"
    assert repr(frame).endswith(" [dropped]")


# -- assertions


def test_none_and_some() -> None:
    """Both hold where they are true; some gives the frames for closer looks."""
    capture = capture_of(arp_frame(), tcp_frame(), tcp_frame(dport=80))
    capture.assert_none(udp)
    assert [frame.tcp is not None for frame in capture.assert_some(tcp, count=2)] == [True, True]
    assert len(capture.assert_some(arp)) == 1


def test_what_should_not_be_there_is_listed() -> None:
    """The failure shows the very frames."""
    with pytest.raises(AssertionError, match=r"1 frames match arp(.|\n)*who-has 10\.0\.2\.2"):
        capture_of(arp_frame()).assert_none(arp)


def test_what_is_not_there_is_told_by_what_is_near() -> None:
    """A wrong port is seen at once: the segment to the other port is told, not the noise."""
    noise = [arp_frame()] * 20
    capture = capture_of(*noise, tcp_frame(dport=8443), *noise)
    with pytest.raises(AssertionError, match=r"no frame matches tcp.port == 443(.|\n)*\.8443"):
        capture.assert_some(tcp.port == 443)
    with pytest.raises(AssertionError, match="nothing has passed the wire at all"):
        Capture().assert_some(tcp)


def test_another_number_than_was_said() -> None:
    """Both too many and too few fail, and list what there is."""
    capture = capture_of(arp_frame(), arp_frame())
    for count in (1, 3):
        with pytest.raises(AssertionError, match=f"2 frames match arp, and {count} should"):
            capture.assert_some(arp, count)
    capture.assert_some(udp, count=0)


def test_only_filters_filter() -> None:
    """A comparison that has become True or False by mistake is told."""
    with pytest.raises(TypeError, match="True is not a filter"):
        capture_of(arp_frame()).frames(True)  # type: ignore[arg-type]


# -- its bound


@given(st.lists(st.integers(14, 200), max_size=40), st.integers(1, 2000))
def test_the_oldest_leave(sizes: list[int], maximum: int) -> None:
    """What is kept is within the bound, the latest of all, and the others are counted."""
    capture = Capture(maximum)
    frames = [numbered(number, size) for number, size in enumerate(sizes)]
    for octets in frames:
        capture.see(octets, "one", from_guest=True, now=0.0)
    kept = [frame.octets for frame in capture.frames()]
    assert kept == frames[len(frames) - len(kept) :]
    assert capture.left == len(frames) - len(kept)
    assert len(kept) <= 1 or sum(map(len, kept)) + FRAME_COST * len(kept) <= maximum


def test_nothing_is_said_of_what_has_left() -> None:
    """That there was none cannot be known any more, so the assertion fails."""
    capture = Capture(octets_maximum=1)
    for octets in (arp_frame(), udp_frame()):
        capture.see(octets, "one", from_guest=True, now=0.0)
    with pytest.raises(AssertionError, match="1 older ones have left the capture"):
        capture.assert_none(arp)
    with pytest.raises(ValueError, match="octets_maximum"):
        Capture(0)


# -- waiting


async def test_waiting_for_a_frame(autojump_clock: trio.abc.Clock) -> None:
    """What has passed already counts, and what comes later is waited for."""
    capture = capture_of(arp_frame())
    (first,) = capture.frames()
    assert await capture.wait_for(arp) is first

    async def later() -> None:
        await trio.sleep(3)
        capture.see(udp_frame(), "one", from_guest=True, now=0)
        capture.see(arp_frame(), "one", from_guest=True, now=0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        again = await capture.wait_for(arp, after=first)
        assert again is capture.frames()[-1]
        assert trio.current_time() == 3


async def test_waiting_ends(autojump_clock: trio.abc.Clock) -> None:
    """After its time it says what it waited for, and what came nearest."""
    capture = capture_of(arp_frame(), ping_frame())
    with pytest.raises(TimeoutError, match=r"icmp.type == 3 within 5 s(.|\n)*echo request"):
        await capture.wait_for(icmp.type == 3, timeout=5)
    assert trio.current_time() == 5


# -- as a file


@pytest.mark.skipif(shutil.which("tshark") is None, reason="there is no tshark to read it")
def test_tshark_reads_the_file_as_we_do(tmp_path: Path) -> None:
    """Addresses, ports, times, directions, guests and comments, by a stranger's reading."""
    capture = capture_of(arp_frame(), udp_frame(), tcp_frame(dport=81), bytes(17))
    frame = capture.see(ping_frame(), "two", from_guest=False, now=1003.000000001)
    frame.fate = "delayed"
    capture.write(tmp_path / "frames.pcapng")
    command = ["tshark", "-n", "-r", str(tmp_path / "frames.pcapng"), "-T", "json"]
    packets = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    layers = [packet["_source"]["layers"] for packet in packets]
    assert layers[0]["arp"]["arp.dst.proto_ipv4"] == "10.0.2.2"
    assert layers[1]["udp"]["udp.dstport"] == "9"
    assert layers[2]["tcp"]["tcp.dstport"] == "81"
    assert layers[3]["frame"]["frame.len"] == "17"
    last = layers[4]["frame"]
    assert layers[4]["icmp"]["icmp.type"] == "8"
    assert last["frame.time_relative"].startswith("3.000000")
    assert last["frame.interface_id_tree"]["frame.interface_name"] == "two"
    assert last["frame.packet_flags_tree"]["frame.packet_flags_direction"] == "0x00000001"
    assert "delayed" in json.dumps(layers[4])


@given(st.lists(FRAMES, max_size=5))
def test_any_frames_make_a_file(frames: list[bytes]) -> None:
    """Broken ones, too; each block is a multiple of four octets, with its length at both ends."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "frames.pcapng")
        capture_of(*frames).write(path)
        octets = path.read_bytes()
    at = blocks = 0
    while at < len(octets):
        length = int.from_bytes(octets[at + 4 : at + 8], "little")
        assert length % 4 == 0
        assert octets[at + length - 4 : at + length] == octets[at + 4 : at + 8]
        at += length
        blocks += 1
    assert blocks == 1 + bool(frames) + len(frames)
