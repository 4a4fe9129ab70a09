"""Addresses in their two forms, and the networks that are special."""

import pytest

from qemu_usernat.primitives.addresses import (
    format_address,
    format_mac,
    is_loopback,
    is_multicast_or_broadcast,
    is_unspecified_network,
    parse_address,
    parse_mac,
)


@pytest.mark.parametrize("text", ["10.0.2.15", "255.255.255.255", "fd00::1", "::"])
def test_addresses_come_back_as_they_were_written(text: str) -> None:
    """Text to bytes and back; the length tells the family."""
    assert format_address(parse_address(text)) == text
    assert len(parse_address(text)) == (16 if ":" in text else 4)


def test_mac_addresses_come_back_as_they_were_written() -> None:
    """With colons or dashes, in either case."""
    assert format_mac(parse_mac("52:54:00:12:34:56")) == "52:54:00:12:34:56"
    assert parse_mac("AA-BB-CC-DD-EE-FF") == b"\xaa\xbb\xcc\xdd\xee\xff"


@pytest.mark.parametrize("text", ["", "52:54:00:12:34", "52:54:0:12:34:56", "52:54:00:12:34:5g"])
def test_what_is_no_mac_address_is_refused(text: str) -> None:
    """A mistake of the user is an error, not another address."""
    with pytest.raises(ValueError, match=r"MAC address|invalid literal"):
        parse_mac(text)


@pytest.mark.parametrize(
    ("text", "loopback", "group", "unspecified"),
    [
        ("127.0.0.1", True, False, False),
        ("127.255.255.255", True, False, False),
        ("128.0.0.1", False, False, False),
        ("0.0.0.0", False, False, True),
        ("0.255.0.1", False, False, True),
        ("1.0.0.0", False, False, False),
        ("223.255.255.255", False, False, False),
        ("224.0.0.1", False, True, False),
        ("239.255.255.255", False, True, False),
        ("240.0.0.1", False, False, False),
        ("255.255.255.255", False, True, False),
        ("255.255.255.254", False, False, False),
        ("10.0.2.255", False, False, False),
        ("::1", True, False, False),
        ("::", False, False, True),
        ("ff02::1", False, True, False),
        ("fd00::1", False, False, False),
    ],
)
def test_special_networks_are_known(
    text: str, loopback: bool, group: bool, unspecified: bool
) -> None:
    """Loopback, groups and "this network" are recognised, and their neighbours are not."""
    address = parse_address(text)
    assert is_loopback(address) is loopback
    assert is_multicast_or_broadcast(address) is group
    assert is_unspecified_network(address) is unspecified
