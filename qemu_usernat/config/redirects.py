"""Where guests are led to other places than they ask for: the tables ``[[redirect]]``.

Owns how one is written; what it means is for `policy.redirects` to say.

    [[redirect]]
    from = ["pypi.org", "files.pythonhosted.org"]
    on   = "tcp/443"
    to   = "127.0.0.1:3141"
"""

from ipaddress import ip_address
from typing import Any

from qemu_usernat.config.endpoints import is_decimal, parse_endpoint
from qemu_usernat.config.tables import check_keys, read_tables
from qemu_usernat.config.values import show
from qemu_usernat.policy.places import (
    PORT_MAXIMUM,
    Place,
    Service,
    parse_place,
    parse_service,
)
from qemu_usernat.policy.redirects import (
    PLACES_ALLOWED,
    REDIRECTED,
    HostTarget,
    Redirect,
    Target,
    UnixTarget,
)
from qemu_usernat.primitives.errors import UserError

ALLOWED = 'tables with "from", "to" and perhaps "on"'

TARGETS_ALLOWED = "ADDRESS, ADDRESS:PORT ([IPV6]:PORT), or unix:PATH with an absolute path"

SERVICES_ALLOWED = '"tcp/443", "udp/1000-2000", "443" (tcp and udp), "tcp" or "udp"'


def read_redirects(raw: Any) -> tuple[Redirect, ...]:
    """What a TOML file has; UserError says which table is wrong, and what is allowed."""
    return read_tables(raw, _read)


def _read(number: int, table: dict[str, Any]) -> Redirect:
    check_keys(number, table, ("from", "on", "to"), ("from", "to"), ALLOWED)
    places = tuple(_place(number, text) for text in _texts(number, "from", table["from"]))
    on = _texts(number, "on", table["on"]) if "on" in table else []
    services = tuple(_service(number, text) for text in on)
    target = _target(number, table["to"])
    _check_together(number, services, target)
    return Redirect(places, services, target)


def _texts(number: int, key: str, raw: Any) -> list[str]:
    texts = [raw] if isinstance(raw, str) else raw
    allowed = PLACES_ALLOWED if key == "from" else SERVICES_ALLOWED
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) for each in texts):
        raise UserError(
            f'number {number}: "{key}" is {show(raw)}; allowed: {allowed}, or a list of such'
        )
    return texts


def _place(number: int, text: str) -> Place:
    mistake = f'number {number}: "from" is "{text}"; allowed: {PLACES_ALLOWED}'
    try:
        place = parse_place(text)
    except UserError as error:
        raise UserError(f"{mistake} ({error})") from error
    if not isinstance(place, REDIRECTED):
        raise UserError(mistake)
    return place


def _service(number: int, text: str) -> Service:
    mistake = f'number {number}: "on" is "{text}"; allowed: {SERVICES_ALLOWED}'
    try:
        service = parse_service(text)
    except UserError as error:
        raise UserError(mistake) from error
    if service.protocol == "icmp":
        raise UserError(mistake)
    return service


def _target(number: int, raw: Any) -> Target:
    mistake = UserError(f'number {number}: "to" is {show(raw)}; allowed: {TARGETS_ALLOWED}')
    if not isinstance(raw, str):
        raise mistake
    if raw.startswith("unix:"):
        path = raw.removeprefix("unix:")
        if not path.startswith("/"):
            raise mistake
        try:
            parse_endpoint(raw)
        except UserError as error:
            raise UserError(f'number {number}: "to": {error}') from error
        return UnixTarget(path)
    host, port = raw, "0"
    if raw.startswith("[") and "]" in raw:
        host, _, port = raw[1:].partition("]")
        port = port.removeprefix(":") if port else "0"
    elif raw.count(":") == 1:
        host, port = raw.split(":")
    given = port != "0" or raw.endswith(":0")
    try:
        address = ip_address(host)
    except ValueError as error:
        raise mistake from error
    if not is_decimal(port) or int(port) > PORT_MAXIMUM or (given and int(port) == 0):
        raise mistake
    if address.is_unspecified or address.is_multicast or "%" in host:
        raise mistake
    return HostTarget(address.packed, int(port))


def _check_together(number: int, services: tuple[Service, ...], target: Target) -> None:
    only_tcp = bool(services) and all(each.protocol == "tcp" for each in services)
    if isinstance(target, UnixTarget) and services and not only_tcp:
        raise UserError(
            f'number {number}: "to" is "{target}", to which only TCP goes; allowed beside it for '
            '"on": "tcp" or "tcp/PORT"'
        )
    if isinstance(target, HostTarget) and len(target.address) != 4 and not only_tcp:
        raise UserError(
            f'number {number}: "to" is "{target}", and over IPv6 only TCP goes; allowed beside it '
            'for "on": "tcp" or "tcp/PORT"'
        )
