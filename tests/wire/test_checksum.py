"""The Internet checksum against the loop that RFC 1071 prints."""

import random
from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qemu_usernat.wire.checksum import checksum, partial, partial_each, pseudo_header


def sum_of_rfc_1071(data: bytes) -> int:
    """Section 4.1 in Python: add 16-bit words, fold the carries."""
    total = 0
    for at in range(0, len(data) - 1, 2):
        total += data[at] << 8 | data[at + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_the_rfc() -> None:
    """RFC 1071, section 3: the sum of its eight bytes is ddf2."""
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert partial(data) == 0xDDF2
    assert checksum(data) == 0xFFFF - 0xDDF2


SHORT = range(71)
AROUND_THE_CROSSOVER = range(690, 711)
LONG = (1460, 1461, 9000, 65480, 65535, 1 << 20)


@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
@pytest.mark.parametrize("length", [*SHORT, *AROUND_THE_CROSSOVER, *LONG])
def test_every_length_at_every_alignment(length: int, fill: str) -> None:
    """The same sum as the RFC's loop, wherever in a buffer the data lies."""
    chance = random.Random(length)
    data = {
        "random": chance.randbytes(length),
        "zeros": bytes(length),
        "ones": b"\xff" * length,
    }[fill]
    expected = sum_of_rfc_1071(data)
    assert partial(data) == partial(bytearray(data)) == expected
    for offset in range(8):
        buffer = memoryview(bytes(offset) + data + b"\xff" * 8)
        assert partial(buffer[offset : offset + length]) == expected
        assert checksum(buffer[offset : offset + length]) == 0xFFFF - expected


@given(st.lists(st.binary(max_size=1500).filter(lambda piece: len(piece) % 2 == 0)), st.binary())
def test_pieces_of_even_length_add_up(pieces: list[bytes], last: bytes) -> None:
    """A sum taken piece by piece is the sum of the whole."""
    start = sum(map(partial, pieces))
    assert checksum(last, start) == checksum(b"".join([*pieces, last]))


@given(st.binary(min_size=4, max_size=2000))
@example(bytes(20))
@example(b"\xff" * 20)
def test_data_that_holds_its_checksum_sums_to_zero(data: bytes) -> None:
    """The receiver's side: sum everything, and 0 says that it is right."""
    field = checksum(b"\0\0" + data[2:]).to_bytes(2, "big")
    assert checksum(field + data[2:]) == 0
    broken = bytes([field[0] ^ 0x40]) + field[1:]
    assert checksum(broken + data[2:]) != 0


@pytest.mark.parametrize(
    ("source", "destination", "layout"),
    [("10.0.2.15", "192.0.2.1", "{0}{1}00{2:02x}{3:04x}"),
     ("fd00::15", "2001:db8::1", "{0}{1}{3:08x}000000{2:02x}")],
)  # fmt: skip
def test_the_pseudo_header_of_either_family(source: str, destination: str, layout: str) -> None:
    """RFC 9293, 3.1 and RFC 8200, 8.1, written out and summed."""
    packed = ip_address(source).packed, ip_address(destination).packed
    written = bytes.fromhex(layout.format(packed[0].hex(), packed[1].hex(), 17, 1234))
    assert pseudo_header(*packed, 17, 1234) % 0xFFFF == sum_of_rfc_1071(written) % 0xFFFF


@given(
    data=st.one_of(st.binary(max_size=3000), st.integers(0, 3000).map(bytes)),
    size=st.integers(1, 800).map(lambda half: 2 * half),
)
def test_the_sums_of_many_pieces_are_those_of_each(data: bytes, size: int) -> None:
    """As numbers of ones' complement; and 0 for nothing but zeros, alone."""
    sums = partial_each(data, size)
    pieces = [data[start : start + size] for start in range(0, len(data) - size + 1, size)]
    assert [total % 0xFFFF for total in sums] == [partial(piece) % 0xFFFF for piece in pieces]
    assert [total == 0 for total in sums] == [not any(piece) for piece in pieces]
