"""The two ways a setting arrives, TOML and command line, joined into one `Config`.

One table, `_SETTINGS`, says of each key where it stands, how its value is read and what
is allowed; file and options go through it alike, so that they cannot differ and a
mistake reads the same from both. An option wins over the file, key by key. The table
``[policy]`` is read by `qemu_usernat.policy.settings`; rules of the command line come before it.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import Any

import attrs

from qemu_usernat.config.boot import ALLOWED as ALLOWED_BOOTFILES
from qemu_usernat.config.boot import Boot, read_bootfiles
from qemu_usernat.config.endpoints import (
    Endpoint,
    FdEndpoint,
    UnixEndpoint,
    default_endpoint,
    is_decimal,
    parse_endpoint,
)
from qemu_usernat.config.network import (
    CONGESTION_ALLOWED,
    UDP_FILTERING_ALLOWED,
    Network,
    SettingError,
    Upstream,
)
from qemu_usernat.config.records import ALLOWED as ALLOWED_RECORDS
from qemu_usernat.config.records import read_records
from qemu_usernat.config.reservations import ALLOWED as ALLOWED_RESERVATIONS
from qemu_usernat.config.reservations import read_reservations
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.rules import Rule, parse_rule
from qemu_usernat.policy.settings import TABLE as _POLICY
from qemu_usernat.policy.settings import PolicySettings, read_settings, settings_of_rules
from qemu_usernat.primitives.addresses import DNS_PORT, MacAddress, parse_mac
from qemu_usernat.primitives.errors import UserError

_TABLE = "network"
_LISTS = ("reservation", "record")
"""Keys of the top that are lists of tables."""


@attrs.frozen(kw_only=True)
class Config:
    """All that the user asked for, checked."""

    listen: tuple[Endpoint, ...] = ()
    connect: tuple[UnixEndpoint, ...] = ()
    verbose: bool = False
    network: Network = attrs.Factory(Network)
    policy: PolicySettings | None = None
    """None: no policy was asked for."""
    audit: Path | None = None
    """Where each verdict becomes a line."""
    lease_file: Path | None = None
    """Where leases outlive the server."""

    def check_links(self) -> None:
        """UserError for a policy of a guest on a link that there will never be."""
        endpoints = (*self.listen, *self.connect)
        if self.policy is None or any(isinstance(where, FdEndpoint) for where in endpoints):
            return  # where an inherited socket is, it says itself
        self.policy.check_guests([str(where) for where in endpoints])


def read_config(
    file: Path | None,
    options: Mapping[str, Any],
    *,
    listen: Endpoint | None = None,
    policy_file: Path | None = None,
    rules: Sequence[str] = (),
) -> Config:
    """The configuration that `file` and the command line's `options` make together.

    `options` maps a key's name to its raw value as TOML would hold it, and holds only
    what was given. `listen` is the endpoint where neither names one; without it, the
    user's default endpoint, unless there is something to connect to instead. `policy_file`
    holds a table ``[policy]`` and nothing else; `rules` are lines that come before its rules.

    UserError for every mistake: the file cannot be read or is not TOML, a key is
    unknown, a value is not allowed, values do not go together.
    """
    given, policy = _from_file(file) if file else ({}, None)
    top, network = _checked(given)  # also what an option is about to replace
    if options:
        given |= {key: (f"--{key.replace('_', '-')}", value) for key, value in options.items()}
        top, network = _checked(given)
    if not top.get("listen"):
        if listen is not None:
            top["listen"] = (listen,)
        elif not top.get("connect"):
            top["listen"] = (default_endpoint(os.environ, os.getuid()),)
    if policy_file is not None:
        if policy is not None:
            raise UserError(f"--policy and the table [{_POLICY}] of {file} exclude each other")
        policy = policy_file, _policy_table(policy_file)
    return Config(network=network, policy=_policy(policy, rules, network), **top)


def groups_of(network: Network) -> Groups:
    """Which group an address is of, as far as the configuration says."""
    return Groups(
        lan=(network.subnet,),
        gateway=frozenset({network.gateway.packed, network.nameserver.packed}),
    )


def _policy(
    raw: tuple[Path, Any] | None, rules: Sequence[str], network: Network
) -> PolicySettings | None:
    """Of a file and of the command line; every ``[[policy.expect]]`` holds."""
    first = [_option_rule(text) for text in rules]
    if raw is None:
        return settings_of_rules(first) if first else None
    origin = f"{raw[0]}: "
    settings = read_settings(raw[1], origin).preceded_by(first)
    settings.check_expects(groups_of(network), origin)
    return settings


def _option_rule(text: str) -> Rule:
    """Of ``--allow`` or ``--deny``, which is the first word."""
    option = f"--{text.partition(' ')[0]}"
    try:
        rule = parse_rule(text)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    if rule.name is not None:
        raise UserError(f'{option}: "{text}" has a name; allowed: places, and perhaps "on"')
    return rule


def _policy_table(path: Path) -> Any:
    """Of a file that has nothing else: what it said besides would be lost."""
    document = _parse_toml(path)
    for key in document:
        if key != _POLICY:
            raise UserError(
                f'{path}: key "{key}" is not known; allowed here: [{_POLICY}], and in the file of '
                "--config everything"
            )
    if _POLICY not in document:
        raise UserError(f"{path}: has no table [{_POLICY}]")
    return document[_POLICY]


def _checked(given: Mapping[str, tuple[str, Any]]) -> tuple[dict[str, Any], Network]:
    """The values of the keys that are no network's, and the network of the others."""
    values = {key: _read(_SETTINGS[key], *raw) for key, raw in given.items()}
    apart = ("listen", "connect", "verbose", "audit", "lease_file")
    top: dict[str, Any] = {key: values.pop(key) for key in apart if key in values}
    for key in _LISTS:
        if key in values:
            values[f"{key}s"] = values.pop(key)
    boot = Boot(values.pop("tftp", None), values.pop("bootfile", {}))
    try:
        return top, Network(boot=boot, **values)
    except SettingError as error:
        # A default is never wrong by itself: it clashes with something that was given.
        origin = given[error.key][0] if error.key in given else f"{error.key} (by default)"
        raise UserError(f"{origin} is {error.value}; allowed: {error.allowed}") from error


# ---- the file ----------------------------------------------------------------------


def _from_file(path: Path) -> tuple[dict[str, tuple[str, Any]], tuple[Path, Any] | None]:
    """Key to (what to call it in a message, raw value), for every key of the file; its policy."""
    document = _parse_toml(path)
    policy = (path, document.pop(_POLICY)) if _POLICY in document else None
    table = document.pop(_TABLE, {})
    if not isinstance(table, dict):
        raise UserError(f'{path}: key "{_TABLE}" is {_show(table)}; allowed: a table [{_TABLE}]')
    given = _known_keys(path, "", document.items()) | _known_keys(path, _TABLE, table.items())
    return given, policy


def _parse_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not TOML: not UTF-8 at byte {error.start}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        message = re.sub(r" \(at [^()]*\)$", "", str(error))
        raise UserError(f"{path}:{line}: is not TOML: {message}") from error


def _known_keys(
    path: Path, table: str, items: Iterable[tuple[str, Any]]
) -> dict[str, tuple[str, Any]]:
    here = [key for key, setting in _SETTINGS.items() if setting.table == table]
    known: dict[str, tuple[str, Any]] = {}
    for written, value in items:
        origin = f'{path}: key "{table + "." if table else ""}{written}"'
        key = written.replace("-", "_")
        if key in known:
            raise UserError(f"{origin} is given twice, with a dash and with an underscore")
        if key not in here:
            raise UserError(f"{origin} is not known; {_hint(key, table, here)}")
        known[key] = (origin, value)
    return known


def _hint(key: str, table: str, here: list[str]) -> str:
    """What the writer of an unknown key may have meant, and what is allowed there."""
    keys = sorted(key for key in here if key not in _LISTS)
    tables = [] if table else [f"[{_TABLE}]", f"[{_POLICY}]", *(f"[[{key}]]" for key in _LISTS)]
    allowed = f"allowed {'in ' if table else ''}here: {', '.join(keys + tables)}"
    if key in _SETTINGS:
        place = f"in the table [{_TABLE}]" if _SETTINGS[key].table else f"above [{_TABLE}]"
        return f"it belongs {place}; {allowed}"
    close = difflib.get_close_matches(key, [*here, *([] if table else [_TABLE, _POLICY])], n=1)
    return f'did you mean "{close[0]}"? {allowed}' if close else allowed


# ---- one value ---------------------------------------------------------------------


@attrs.frozen
class _Setting:
    """A key: its table in the file ("" for the top), its reader, what it allows.

    The reader raises ValueError for what is not allowed, or UserError where it knows
    better words.
    """

    table: str
    read: Callable[[Any], Any]
    allowed: str


def _read(setting: _Setting, origin: str, raw: Any) -> Any:
    try:
        return setting.read(raw)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    except ValueError as error:
        why = f" ({error})" if str(error) else ""
        message = f"{origin} is {_show(raw)}{why}; allowed: {setting.allowed}"
        raise UserError(message) from error


def _show(raw: Any) -> str:
    """A value as TOML would write it, near enough for a message."""
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, str):
        return f'"{raw}"'
    if isinstance(raw, dict):
        return "a table"
    if isinstance(raw, (list, tuple)):
        return "[" + ", ".join(map(_show, raw)) + "]"
    return str(raw)


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError
    return raw


def _path(raw: Any) -> Path:
    text = _text(raw)
    if not text:
        raise ValueError("it is empty")
    return Path(text)


def _texts(raw: Any) -> tuple[str, ...]:
    """One string or a list of them: most people have one socket and one resolver."""
    if isinstance(raw, str):
        return (raw,)
    if not isinstance(raw, (list, tuple)):
        raise ValueError
    return tuple(_text(item) for item in raw)


def _whole_number(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise ValueError
    return raw


def _truth(raw: Any) -> bool:
    if not isinstance(raw, bool):
        raise ValueError
    return raw


def _endpoints(raw: Any) -> tuple[Endpoint, ...]:
    return tuple(parse_endpoint(text) for text in _texts(raw))


def _unix_endpoints(raw: Any) -> tuple[UnixEndpoint, ...]:
    endpoints = _endpoints(raw)
    unix = tuple(endpoint for endpoint in endpoints if isinstance(endpoint, UnixEndpoint))
    if len(unix) != len(endpoints):
        raise ValueError
    return unix


def _subnet(raw: Any) -> IPv4Network:
    text = _text(raw)
    if "/" not in text:
        raise ValueError("the prefix length is missing")
    network = IPv4Network(text, strict=False)
    if not is_decimal(text.partition("/")[2]):
        raise ValueError("the prefix is not a number of bits")
    if str(network.network_address) != text.partition("/")[0]:
        raise ValueError(f"an address inside {network}, not the subnet itself")
    return network


def _address(raw: Any) -> IPv4Address:
    return IPv4Address(_text(raw))


def _addresses(raw: Any) -> tuple[IPv4Address, ...]:
    return tuple(IPv4Address(text) for text in _texts(raw))


def _mac(raw: Any) -> MacAddress:
    return parse_mac(_text(raw))


def _domain(raw: Any) -> str:
    return _text(raw).lower()  # RFC 4343: names compare without case


def _domains(raw: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_domain(text) for text in _texts(raw)))


def _upstreams(raw: Any) -> tuple[Upstream, ...]:
    return tuple(_upstream(text) for text in _texts(raw))


def _upstream(text: str) -> Upstream:
    bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", text)
    if bracketed:
        address, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        address, port = text.split(":")
    else:
        address, port = text, None
    if port is None:
        return ip_address(address), DNS_PORT
    if not is_decimal(port):
        raise ValueError(f'"{port}" is not a port')
    return ip_address(address), int(port)


_ENDPOINTS = "endpoints, each as one string, or a list of them"
_IPV4 = "an IPv4 address, like 10.0.2.2"

_SETTINGS = {
    "connect": _Setting("", _unix_endpoints, "unix:PATH, or a list of such strings"),
    "congestion": _Setting("", _text, CONGESTION_ALLOWED),
    "udp_filtering": _Setting("", _text, UDP_FILTERING_ALLOWED),
    "dns": _Setting("", _upstreams, "ADDRESS or ADDRESS:PORT ([IPV6]:PORT), or a list of them"),
    "host_loopback": _Setting("", _truth, "true or false"),
    "listen": _Setting("", _endpoints, _ENDPOINTS),
    "mtu": _Setting("", _whole_number, "a whole number of bytes"),
    "audit": _Setting("", _path, "the path of a file"),
    "lease_file": _Setting("", _path, "the path of a file"),
    "verbose": _Setting("", _truth, "true or false"),
    "tftp": _Setting("", _path, "the path of a folder"),
    "bootfile": _Setting("", read_bootfiles, ALLOWED_BOOTFILES),
    "record": _Setting("", read_records, ALLOWED_RECORDS),
    "reservation": _Setting("", read_reservations, ALLOWED_RESERVATIONS),
    "subnet": _Setting(_TABLE, _subnet, "an IPv4 subnet, like 10.0.2.0/24"),
    "gateway": _Setting(_TABLE, _address, _IPV4),
    "nameserver": _Setting(_TABLE, _address, _IPV4),
    "first_lease": _Setting(_TABLE, _address, _IPV4),
    "last_lease": _Setting(_TABLE, _address, _IPV4),
    "ntp": _Setting(_TABLE, _addresses, f"{_IPV4}, or a list of them"),
    "lease_time": _Setting(_TABLE, _whole_number, "a whole number of seconds"),
    "search": _Setting(_TABLE, _domains, "a domain name, like example.com, or a list of them"),
    "domain": _Setting(_TABLE, _domain, "a domain name, like internal"),
    "gateway_mac": _Setting(_TABLE, _mac, "a MAC address, like 52:55:0a:00:02:02"),
}
