"""QEMU's stream, cut anywhere: the same frames come out, and a broken length ends it."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.qemu.framing import BUFFER_SIZE, FRAMES_AT_ONCE, FrameBuffer

FRAME_MINIMUM = 14  # bytes: an Ethernet header
FRAME_MAXIMUM = 69632  # bytes: NET_BUFSIZE of QEMU's include/net/net.h, 4096 + 65536


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


class Reader:
    """A frame buffer and the frames that it gave."""

    def __init__(self) -> None:
        self.buffer = FrameBuffer()
        self.frames: list[bytes] = []
        self.views: list[memoryview] = []

    def read(self, octets: bytes) -> None:
        """One read from the socket, `octets` long."""
        self.buffer.free()[: len(octets)] = octets
        self.views = []
        while self.buffer.take(len(octets), self._on_frame):
            octets = b""

    def _on_frame(self, frame: memoryview) -> None:
        self.views.append(frame)
        self.frames.append(bytes(frame))


def pieces(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(edges)]


a_frame = st.one_of(
    st.binary(min_size=FRAME_MINIMUM, max_size=200),
    st.builds(
        lambda length, octet: bytes([octet]) * length,
        st.integers(FRAME_MINIMUM, FRAME_MAXIMUM),
        st.integers(0, 255),
    ),
)


@given(st.lists(a_frame, max_size=6), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_however_the_stream_is_cut_the_frames_are_the_same(
    frames: list[bytes], cuts: list[int]
) -> None:
    """A stream keeps no boundaries: QEMU's frames arrive halved, joined, byte by byte."""
    reader = Reader()
    for piece in pieces(b"".join(map(framed, frames)), cuts):
        reader.read(piece)
        assert len(reader.buffer.free()) >= FRAME_MAXIMUM + 4
    assert reader.frames == frames


def test_one_byte_at_a_time() -> None:
    """The slowest possible writer is understood as well."""
    reader = Reader()
    frames = [b"a" * 14, b"b" * 60, b"c" * 15]
    for octet in b"".join(map(framed, frames)):
        reader.read(bytes([octet]))
    assert reader.frames == frames


def test_frames_of_one_read_stay_whole_until_the_next() -> None:
    """A flow keeps views until its turn ends: half of the next frame must not overwrite them."""
    reader = Reader()
    frames = [b"a" * 1000, b"b" * 1000]
    reader.read(b"".join(map(framed, frames)) + framed(b"c" * 1500)[:1200])
    assert [bytes(view) for view in reader.views] == frames
    reader.read(framed(b"c" * 1500)[1200:])
    assert reader.frames[2] == b"c" * 1500


def test_a_full_buffer_makes_room_again() -> None:
    """Reads as large as the buffer takes never leave it without room for a whole frame."""
    reader = Reader()
    stream = framed(b"x" * FRAME_MAXIMUM) * 20
    while stream:
        room = len(reader.buffer.free())
        assert FRAME_MAXIMUM + 4 <= room <= BUFFER_SIZE
        reader.read(stream[:room])
        stream = stream[room:]
    assert reader.frames == [b"x" * FRAME_MAXIMUM] * 20


def test_so_many_frames_at_once_and_no_more() -> None:
    """One read may hold thousands of tiny frames: the rest is for other turns, in its order."""
    frames = [n.to_bytes(2, "big") * 7 for n in range(2 * FRAMES_AT_ONCE + 1)]
    stream = b"".join(map(framed, frames))
    buffer, heard, turns = FrameBuffer(), list[bytes](), list[int]()
    buffer.free()[: len(stream)] = stream
    more, received = True, len(stream)
    while more:
        more = buffer.take(received, lambda frame: heard.append(bytes(frame)))
        received = 0
        turns.append(len(heard))
    assert turns == [FRAMES_AT_ONCE, 2 * FRAMES_AT_ONCE, len(frames)]
    assert heard == frames


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (0, "link.frame_empty"),
        (1, "link.frame_too_short"),
        (FRAME_MINIMUM - 1, "link.frame_too_short"),
        (FRAME_MAXIMUM + 1, "link.frame_too_long"),
        (0x47455420, "link.frame_too_long"),  # "GET ": somebody speaks HTTP to us
        (0xFFFFFFFF, "link.frame_too_long"),
    ],
)
def test_a_length_that_no_qemu_sends_is_refused_by_name(length: int, reason: str) -> None:
    """Whoever sends such a length is no QEMU; what came whole before it still counts."""
    reader = Reader()
    with pytest.raises(Malformed) as refused:
        reader.read(framed(b"good" * 5) + length.to_bytes(4, "big") + b"rest")
    assert refused.value.reason == reason
    assert reader.frames == [b"good" * 5]


@pytest.mark.parametrize("length", [FRAME_MINIMUM, FRAME_MAXIMUM])
def test_the_shortest_and_the_longest_frame_pass(length: int) -> None:
    """The limits themselves are allowed."""
    reader = Reader()
    reader.read(framed(bytes(length)))
    assert reader.frames == [bytes(length)]
