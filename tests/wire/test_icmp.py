"""ICMP messages for the guest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impacket.ImpactPacket import ICMP as ImpacketIcmp  # noqa: N811 - two of the same name

from qemu_usernat.wire.checksum import checksum
from qemu_usernat.wire.icmp import (
    DESTINATION_UNREACHABLE,
    ECHO_REPLY,
    FRAGMENTATION_NEEDED,
    icmp_error,
    icmp_message,
)

BYTE = st.integers(0, 255)


@given(BYTE, BYTE, st.binary(min_size=4, max_size=4), st.binary(max_size=2000))
def test_impacket_reads_what_was_meant(type: int, code: int, rest: bytes, payload: bytes) -> None:  # noqa: A002
    """Type, code, the four bytes and the payload in their places, and a right checksum."""
    message = icmp_message(type, code, rest, payload)
    icmp = ImpacketIcmp(message)
    assert (icmp.get_icmp_type(), icmp.get_icmp_code()) == (type, code)
    assert icmp.get_icmp_void() == int.from_bytes(rest, "big")
    assert message[8:] == payload
    assert checksum(message) == 0


def test_a_message_of_nothing_but_zeros_has_a_checksum() -> None:
    """An echo reply with id 0, sequence 0 and zeros: Linux accepts ffff and drops 0000."""
    assert icmp_message(ECHO_REPLY, 0, bytes(4), bytes(56))[2:4] == b"\xff\xff"


@pytest.mark.parametrize("size", [20, 28, 548, 549, 65535])
def test_an_error_quotes_only_what_is_there_and_fits(size: int) -> None:
    """As much of the packet as keeps the error's own at 576 bytes, header included."""
    quoted = bytes(range(256)) * 256
    error = icmp_error(
        DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, b"\0\0\x05\xdc", quoted[:size]
    )
    assert error[8:] == quoted[: min(size, 548)]
    assert 20 + len(error) <= 576
    assert ImpacketIcmp(error).get_icmp_nextmtu() == 1500
    assert checksum(error) == 0
