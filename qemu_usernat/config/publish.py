"""Ports of guests that the host's world may call: `--publish`, and the tables ``[[publish]]``.

Owns how one is written and what may stand beside what; whether a guest can have an address is
for `network` to say. Text and table are the same two halves: where on the host, and where at the
guest.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import attrs

from qemu_usernat.config.endpoints import check_unix_path, is_decimal
from qemu_usernat.config.reservations import LABEL
from qemu_usernat.config.tables import check_keys, read_tables
from qemu_usernat.primitives.errors import UserError

HOST_FORMS = (
    "[tcp:|udp:][ADDRESS:]PORT[-END] (an IPv6 address in brackets; port 0 is one that the system "
    "chooses), or unix:PATH"
)
GUEST_FORMS = "[ADDRESS or NAME:]PORT"
ALLOWED = (
    f'tables with "host", {HOST_FORMS}, and "guest", {GUEST_FORMS}, like host = "127.0.0.1:8080" '
    "and guest = 80"
)
OPTION_FORMS = (
    "[tcp:|udp:][HOST_ADDR:]HOST_PORT[-END]:[GUEST_ADDR:]GUEST_PORT or "
    "unix:PATH:[GUEST_ADDR:]GUEST_PORT, like 127.0.0.1:8080:80"
)

SOURCES = ("client", "gateway")
"""Whom a guest sees: whoever has called, where that can be, or the gateway."""
SOURCE_ALLOWED = " or ".join(SOURCES)

TCP, UDP = "tcp", "udp"
PORT_MAXIMUM = 65535
EVERYWHERE = IPv4Address("0.0.0.0")
_FORMS = (TCP, UDP, "unix")
_KEYS = ("host", "guest")

_BARE_IPV6 = re.compile(r"(tcp:|udp:)?[0-9a-f:]*::[0-9a-f:]*:[0-9]", re.IGNORECASE)
"""An address and a port begin it: "8080::80" is none, but lacks a guest."""


@attrs.frozen(kw_only=True)
class Publication:
    """A place of the host, and the port of a guest to which it leads.

    The place is `count` ports from `host_port` on, which lead to as many from `guest_port` on; or,
    with `path`, a unix stream socket. Host port 0 is one that the system chooses. `guest` is an
    address, or a name in the network's domain; without it, whichever guest is there is meant, the
    one whose link came first if there are several.
    """

    guest_port: int
    host_port: int = 0
    host_address: IPv4Address | IPv6Address = EVERYWHERE
    protocol: str = TCP
    path: str = ""
    guest: IPv4Address | str = ""
    count: int = 1

    @property
    def address(self) -> tuple[str, int]:
        """Where a client connects to, as `socket` takes it; UserError where that is a path."""
        if self.path:
            raise UserError(f"{self.place} has no address; its `path` is where to connect to")
        return str(self.host_address), self.host_port

    @property
    def place(self) -> str:
        """Where it is on the host, as a person writes it."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host_address}]" if self.host_address.version == 6 else self.host_address
        return f"{self.protocol}:{host}:{_ports(self.host_port, self.count)}"

    def __str__(self) -> str:
        guest = self.guest or "the guest"
        return f"{self.place} to port {_ports(self.guest_port, self.count)} of {guest}"

    def overlaps(self, other: "Publication") -> bool:
        """Whether both want the same place, as far as that can be told before they have it."""
        if self.path or other.path:
            return self.path == other.path
        first, second = self.host_address, other.host_address
        return (
            self.protocol == other.protocol
            and first.version == second.version
            and (first == second or first.is_unspecified or second.is_unspecified)
            and 0 not in (self.host_port, other.host_port)
            and self.host_port < other.host_port + other.count
            and other.host_port < self.host_port + self.count
        )


def _ports(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"


# -- as an option


def parse_publication(text: str) -> Publication:
    """Of ``--publish``; UserError says what is wrong with it, and what is allowed."""
    try:
        _check_form(text)
        host, guest = _halves(text)
        return _joined(_host(host), _guest(guest))
    except ValueError as error:
        raise UserError(f'"{text}" publishes nothing: {error}; allowed: {OPTION_FORMS}') from error


def _check_form(text: str) -> None:
    """ValueError for what other programs take, with how it is written here."""
    if text.startswith("unix:"):
        if not is_decimal(text.rpartition(":")[2]):
            raise ValueError("the guest's port is missing")
        return  # a path may be as it likes
    docker = re.fullmatch(r"(.*:[0-9-]+)/(tcp|udp)", text, re.IGNORECASE)
    if docker:
        raise ValueError(f'the protocol stands in front: "{docker[2].lower()}:{docker[1]}"')
    if _BARE_IPV6.match(text):
        raise ValueError("an IPv6 address stands in brackets, like [::1]:8080:80")


def _halves(text: str) -> tuple[str, str]:
    """Where on the host, and where at the guest."""
    before, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError("the guest's port is missing")
    rest, colon, guest = before.rpartition(":")
    if before.startswith("unix:"):
        # A path may have colons; what has a slash, or is no name, is of the path.
        named = rest != "unix" and (_is_name(guest) or _is_ipv4(guest))
    else:
        form, _, words = before.partition(":")
        if form in (TCP, UDP):
            before = words
        # The host's half ends with a port: what stands behind that is the guest's.
        bare = re.sub(r"^\[[^\]]*\]", "", before)
        parts = bare.split(":")
        named = len(parts) > 1 and _is_range(parts[-2])
    return (rest, f"{guest}:{port}") if named else (text.rpartition(":")[0], port)


def _joined(host: dict[str, Any], guest: dict[str, Any]) -> Publication:
    publication = Publication(**host, **guest)
    if publication.guest_port + publication.count - 1 > PORT_MAXIMUM:
        raise ValueError(
            f"{publication.count} ports from {publication.guest_port} on end beyond {PORT_MAXIMUM}"
        )
    return publication


# -- as a table


def read_publications(raw: Any) -> tuple[Publication, ...]:
    """What a TOML file has as tables, or the options as texts; UserError says which is wrong."""
    if isinstance(raw, tuple) and all(isinstance(each, str) for each in raw):
        read = tuple(map(parse_publication, raw))  # options: a file has lists
    else:
        read = read_tables(raw, _table)
    check_different(read)
    return read


def _table(number: int, table: dict[str, Any]) -> Publication:
    check_keys(number, table, _KEYS, _KEYS, ALLOWED)
    host = _half(number, "host", table["host"])
    guest = _half(number, "guest", table["guest"])
    try:
        return _joined(host, guest)
    except ValueError as error:
        raise UserError(f"number {number}: {error}") from error


def _half(number: int, key: str, raw: Any) -> dict[str, Any]:
    read, allowed = (_host, HOST_FORMS) if key == "host" else (_guest, GUEST_FORMS)
    shown = f'"{raw}"' if isinstance(raw, str) else f"{raw}".lower()
    try:
        if isinstance(raw, bool) or not isinstance(raw, str | int):
            raise ValueError("it is neither text nor a port")
        return read(str(raw))
    except ValueError as error:
        raise UserError(
            f'number {number}: "{key}" is {shown} ({error}); allowed: {allowed}'
        ) from error


def check_different(publications: Iterable[Publication]) -> None:
    """UserError where two want the same place."""
    seen: list[Publication] = []
    for each in publications:
        for other in seen:
            if each.overlaps(other):
                raise UserError(
                    f"{each.place} is published twice, here and as {other.place}; "
                    "allowed: each port of the host, and each path, only once"
                )
        seen.append(each)


# -- the halves


def _host(text: str) -> dict[str, Any]:
    """Where on the host, as fields of a `Publication`; ValueError."""
    form, colon, rest = text.partition(":")
    if colon and form == "unix":
        return {"path": check_unix_path(rest)}
    protocol = TCP
    if colon and form in (TCP, UDP):
        protocol, text = form, rest
    address, colon, ports = text.rpartition(":")
    if "]" in ports:
        raise ValueError("the host's port is missing")
    if address.lower() == "localhost":
        raise ValueError(f'"{address}" is a name: write 127.0.0.1, or [::1]')
    word = address.partition(":")[0]
    if _is_name(word) and not _is_ipv4(word) and not address.startswith("["):
        raise ValueError(
            f'"{word}" is neither a protocol ({TCP}, {UDP}; unix with a path) nor an address of '
            "the host"
        )
    first, count = _range(ports)
    where = _address(address) if colon else EVERYWHERE
    return {"protocol": protocol, "host_address": where, "host_port": first, "count": count}


def _address(text: str) -> IPv4Address | IPv6Address:
    bracketed = re.fullmatch(r"\[(.*)\]", text)
    try:
        address = ip_address(bracketed[1] if bracketed else text)
    except ValueError:
        raise ValueError(f'"{text}" is not an address of the host') from None
    if (address.version == 6) != bool(bracketed):
        raise ValueError(f'"{text}": an IPv6 address stands in brackets, and no other')
    if address.is_multicast:
        raise ValueError(f"{text} is a group's address")
    return address


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not dash:
        return _port(first, 0), 1
    low, high = _port(first, 1), _port(last, 1)
    if high < low:
        raise ValueError(f'"{text}" ends before it begins')
    return low, high - low + 1


def _port(text: str, lowest: int) -> int:
    if not is_decimal(text) or not lowest <= int(text) <= PORT_MAXIMUM:
        raise ValueError(f'"{text}" is not a port from {lowest} to {PORT_MAXIMUM}')
    return int(text)


def _guest(text: str) -> dict[str, Any]:
    """Where at the guest; ValueError."""
    guest, colon, port = text.rpartition(":")
    number = _port(port, 1)
    if not colon:
        return {"guest_port": number}
    if _is_ipv4(guest):
        return {"guest": IPv4Address(guest), "guest_port": number}
    if not _is_name(guest):
        raise ValueError(f'"{guest}" is neither an IPv4 address nor a name of one label')
    if guest.lower() in _FORMS:
        raise ValueError(f'"{guest}" is no guest, but of the form of the host\'s place')
    return {"guest": guest.lower(), "guest_port": number}


def _is_name(text: str) -> bool:
    """What is all digits looks like a port that went astray."""
    return bool(LABEL.fullmatch(text.lower())) and not text.isdigit()


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_range(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]+(-[0-9]+)?", text))
