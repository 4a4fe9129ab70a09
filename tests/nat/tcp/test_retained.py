"""The octets that may have to be sent again, chunk by chunk."""

import random

import pytest

from qemu_usernat.nat.tcp.retained import JOINED_BELOW, Retained

STREAM = random.Random(4096).randbytes(1 << 15)


def retained(*lengths: int) -> Retained:
    """Reads of these lengths, one after the other."""
    made, position = Retained(), 0
    for length in lengths:
        made.append(position, STREAM[position : position + length], length)
        position += length
    return made


@pytest.mark.parametrize(
    ("lengths", "chunks"),
    [
        ((1, 1, 1), 1),
        ((JOINED_BELOW - 1, JOINED_BELOW - 1), 1),
        ((1, JOINED_BELOW), 2),
        ((JOINED_BELOW, 1), 2),
        ((1, 2 * JOINED_BELOW), 2),
        ((2 * JOINED_BELOW, 1), 2),
        ((2 * JOINED_BELOW, 1, 1), 2),
    ],
)
def test_small_reads_are_joined_and_large_ones_not_copied(
    lengths: tuple[int, ...], chunks: int
) -> None:
    """4096 octets are large."""
    made = retained(*lengths)
    assert len(made.chunks) == chunks
    assert b"".join(octets for _, octets in made.chunks) == STREAM[: sum(lengths)]


def test_each_position_is_found_in_its_chunk() -> None:
    """From its first octet to its last."""
    made = retained(5000, 6000, 7000)
    for position, start in ((0, 0), (4999, 0), (5000, 5000), (10_999, 5000), (11_000, 11_000)):
        assert made.chunk_at(position)[0] == start
    assert made.chunk_at(17_999)[0] == 11_000


@pytest.mark.parametrize(
    ("position", "first"), [(0, 0), (4999, 0), (5000, 5000), (5001, 5000), (10_999, 5000)]
)
def test_a_chunk_is_dropped_with_its_last_octet(position: int, first: int) -> None:
    """And not before."""
    made = retained(5000, 6000)
    made.drop_before(position)
    assert made.chunks[0][0] == first
    made.drop_before(11_000)
    assert not made.chunks
