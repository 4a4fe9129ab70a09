"""Addresses as the wire carries them: packed, network order, 4 bytes or 16.

The length is the family, so a flow key, a table or a counter written today for
IPv4 holds IPv6 tomorrow. Text appears only where a person reads; `ipaddress`
objects only in the configuration, which hands over ``.packed``.
"""

from ipaddress import ip_address
from typing import TypeAlias

Address: TypeAlias = bytes
"""4 bytes (IPv4) or 16 bytes (IPv6), network order."""

MacAddress: TypeAlias = bytes
"""6 bytes, EUI-48."""

FlowKey: TypeAlias = tuple[Address, int, Address, int]
"""(guest address, guest port, host address, host port), as the guest sees them."""

DNS_PORT = 53  # RFC 1035, 4.2

BROADCAST_MAC: MacAddress = b"\xff" * 6

ANY_IPV4: Address = b"\0\0\0\0"
BROADCAST_IPV4: Address = b"\xff\xff\xff\xff"
LOOPBACK_IPV4: Address = b"\x7f\0\0\x01"


def format_address(address: Address) -> str:
    """The text form of a packed address: ``10.0.2.15``, ``fd00::1``."""
    if len(address) == 4:
        return "{}.{}.{}.{}".format(*address)
    return str(ip_address(address))


def parse_address(text: str) -> Address:
    """The packed form of a textual address; ValueError where it is none."""
    return ip_address(text).packed


def format_mac(mac: MacAddress) -> str:
    """The text form of a MAC address: ``52:54:00:12:34:56``."""
    return mac.hex(":")


def parse_mac(text: str) -> MacAddress:
    """The packed form of ``52:54:00:12:34:56``; ValueError where it is none."""
    parts = text.replace("-", ":").split(":")
    if len(parts) != 6 or not all(len(part) == 2 for part in parts):
        raise ValueError(f"{text!r} is not a MAC address of the form 52:54:00:12:34:56")
    return bytes(int(part, 16) for part in parts)


def is_loopback(address: Address) -> bool:
    """127/8 (RFC 1122, 3.2.1.3) or ::1."""
    if len(address) == 4:
        return address[0] == 127
    return address == b"\0" * 15 + b"\x01"


def is_multicast_or_broadcast(address: Address) -> bool:
    """224/4 (RFC 1112), 255.255.255.255 (RFC 919), ff00::/8 (RFC 4291)."""
    if len(address) == 4:
        return address[0] >> 4 == 14 or address == BROADCAST_IPV4
    return address[0] == 0xFF


def is_unspecified_network(address: Address) -> bool:
    """0/8 (RFC 1122, 3.2.1.3: "this network"; dialling 0.0.0.0 reaches loopback) or ::."""
    if len(address) == 4:
        return address[0] == 0
    return address == b"\0" * 16
