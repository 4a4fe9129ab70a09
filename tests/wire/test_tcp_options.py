"""TCP's options: what ours look like, and what is read of a guest's."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impacket.ImpactPacket import TCP as ImpacketTcp  # noqa: N811 - two of the same name

from qemu_usernat.wire.tcp_options import selective_edges, selective_option, syn_options

SEQUENCES = st.integers(0, 2**32 - 1)
BLOCKS = st.lists(st.tuples(SEQUENCES, SEQUENCES), max_size=4).map(
    lambda blocks: tuple(edge for block in blocks for edge in block)
)


def impacket_reads(options: bytes) -> list[tuple[int, int | None]]:
    """Kind and value of each option but NOP, by a reader that is not ours."""
    header = struct.pack(">HHIIHHHH", 1, 2, 3, 4, (5 + len(options) // 4) << 12, 5, 0, 0)
    read = []
    for option in ImpacketTcp(header + options).get_options():
        values = {2: "get_mss", 3: "get_shift_cnt"}
        kind = option.get_kind()
        if kind != 1:
            read.append((kind, getattr(option, values[kind])() if kind in values else None))
    return read


@given(st.integers(0, 65535), st.none() | st.integers(0, 14), st.booleans())
def test_the_options_of_a_syn_are_read_as_they_were_meant(
    size: int, scale: int | None, sack: bool
) -> None:
    """Each option that was asked for, once, and no other; whole words of the header."""
    options = syn_options(size, scale, sack)
    assert len(options) % 4 == 0
    expected = [(2, size), *[(4, None)] * sack, *([] if scale is None else [(3, scale)])]
    assert impacket_reads(options) == expected


def test_a_syn_says_it_as_linux_does() -> None:
    """MSS, SACK permitted, window scale, each behind the NOPs that fill its word."""
    assert syn_options(1460, 7, True) == bytes.fromhex("020405b4 01010402 01030307")


def test_no_block_is_no_option() -> None:
    """An ACK that has nothing beyond a gap to tell stays 20 bytes long."""
    assert selective_option(()) == b""


def test_blocks_as_they_stand_on_the_wire() -> None:
    """Two NOPs, kind 5, the length, then left and right edge of each block (RFC 2018, 3)."""
    option = selective_option((5500, 6000, 0xFFFFFFF0, 16))
    assert option == bytes.fromhex("0101 0512 0000157c 00001770 fffffff0 00000010")


@given(BLOCKS)
def test_what_one_end_says_the_other_hears(edges: tuple[int, ...]) -> None:
    """Up to four blocks come back as they were, in their order, and fit into a header."""
    option = selective_option(edges)
    assert len(option) % 4 == 0
    assert len(option) <= 40
    assert selective_edges(option) == selective_edges(memoryview(option)) == edges


@pytest.mark.parametrize(
    ("options", "edges"),
    [
        (bytes.fromhex("080a0000000100000002 050a0000000700000009"), (7, 9)),
        (bytes.fromhex("050a0000000700000009 00 050a"), (7, 9)),
        (bytes.fromhex("050a0000000700000009 050a0000000100000002"), (7, 9)),
        (bytes.fromhex("00 050a0000000700000009 00"), ()),
        (bytes.fromhex("020405b4 04020101"), ()),
        (bytes.fromhex("050a00000007000000"), ()),
        (bytes.fromhex("0502 0502"), ()),
        (bytes.fromhex("050b0000000700000009 00"), ()),
        (bytes.fromhex("fe00fe00"), ()),
        (b"\x05", ()),
        (b"", ()),
    ],
    ids=["behind timestamps", "before the end of the list", "the first of two", "behind the end",
         "a SYN's options", "cut off", "no blocks", "half a block", "a length of 0", "only a kind",
         "nothing"],
)  # fmt: skip
def test_the_blocks_of_a_guest(options: bytes, edges: tuple[int, ...]) -> None:
    """Found wherever they stand; what cannot be read says nothing."""
    assert selective_edges(options) == edges


@given(st.binary(max_size=40))
def test_any_bytes_are_read_without_harm(options: bytes) -> None:
    """Pairs of 32-bit numbers, at most four, or nothing: never an exception, never for ever."""
    edges = selective_edges(options)
    assert len(edges) in (0, 2, 4, 6, 8)
    assert all(0 <= edge < 2**32 for edge in edges)
