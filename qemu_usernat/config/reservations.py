"""Addresses that are kept for machines: the tables ``[[reservation]]``.

Owns how one is written, and what may stand beside what; whether an address is one of the network
is for `network` to say.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any

import attrs

from qemu_usernat.config.tables import check_keys, read_tables
from qemu_usernat.primitives.addresses import MacAddress, format_mac, parse_mac
from qemu_usernat.primitives.errors import UserError

ALLOWED = 'tables with "mac", "address" and perhaps "name"'

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@attrs.frozen
class Reservation:
    """The machine with that MAC address has that address, and perhaps that name."""

    mac: MacAddress
    address: IPv4Address
    name: str = ""


def read_reservations(raw: Any) -> tuple[Reservation, ...]:
    """What a TOML file has; UserError says which table is wrong, and what is allowed."""
    read = read_tables(raw, _read)
    _check_different(read)
    return read


def _read(number: int, table: dict[str, Any]) -> Reservation:
    check_keys(number, table, _READERS, ("mac", "address"), ALLOWED)
    return Reservation(**{key: _value(number, key, value) for key, value in table.items()})


def _value(number: int, key: str, raw: Any) -> Any:
    reader, allowed = _READERS[key]
    try:
        if not isinstance(raw, str):
            raise ValueError
        return reader(raw)
    except ValueError as error:
        shown = f'"{raw}"' if isinstance(raw, str) else f"{raw}"
        raise UserError(f'number {number}: "{key}" is {shown}; allowed: {allowed}') from error


def _mac(text: str) -> MacAddress:
    mac = parse_mac(text)
    if mac[0] & 1 or not any(mac):
        raise ValueError("not of one machine")
    return mac


def _name(text: str) -> str:
    if not LABEL.fullmatch(text.lower()):
        raise ValueError("not a label")
    return text.lower()  # RFC 4343: names compare without case


_READERS: dict[str, tuple[Any, str]] = {
    "mac": (_mac, "the MAC address of one machine, like 52:54:00:12:34:56"),
    "address": (IPv4Address, "an IPv4 address, like 10.0.2.10"),
    "name": (_name, "one label of letters, digits and inner dashes, at most 63, like web-1"),
}


def _check_different(reservations: Iterable[Reservation]) -> None:
    seen: dict[object, int] = {}
    for number, each in enumerate(reservations, 1):
        shown = {"mac": format_mac(each.mac), "address": str(each.address), "name": each.name}
        for key, text in shown.items():
            first = seen.setdefault((key, text), number)
            if text and first != number:
                raise UserError(
                    f'number {number}: "{key}" is "{text}", as in number {first}; '
                    "allowed: each only once"
                )
