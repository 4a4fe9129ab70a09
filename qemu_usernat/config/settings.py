"""Every key of the configuration: where it stands, how its value is read, and what is allowed.

One table for the file and for the options of the command line, so that they cannot differ and a
mistake reads the same from both.
"""

import difflib
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, TypeAlias

import attrs

from qemu_usernat.config.boot import ALLOWED as ALLOWED_BOOTFILES
from qemu_usernat.config.boot import read_bootfiles
from qemu_usernat.config.network import CONGESTION_ALLOWED, UDP_FILTERING_ALLOWED
from qemu_usernat.config.publish import ALLOWED as ALLOWED_PUBLICATIONS
from qemu_usernat.config.publish import SOURCE_ALLOWED, read_publications
from qemu_usernat.config.records import ALLOWED as ALLOWED_RECORDS
from qemu_usernat.config.records import read_records
from qemu_usernat.config.redirects import ALLOWED as ALLOWED_REDIRECTS
from qemu_usernat.config.redirects import read_redirects
from qemu_usernat.config.reservations import ALLOWED as ALLOWED_RESERVATIONS
from qemu_usernat.config.reservations import read_reservations
from qemu_usernat.config.values import (
    read_address,
    read_addresses,
    read_domain,
    read_domains,
    read_endpoints,
    read_joins,
    read_mac,
    read_path,
    read_subnet,
    read_text,
    read_truth,
    read_unix_endpoints,
    read_upstreams,
    read_whole_number,
    show,
)
from qemu_usernat.policy import settings as policy_settings
from qemu_usernat.primitives.errors import UserError

TABLE = "network"
NAME = "name"
POLICY = policy_settings.TABLE
LISTS = {
    "reservation": "reservations",
    "record": "records",
    "redirect": "redirects",
    "publish": "publications",
}
"""Keys of the top that are lists of tables, and the fields of `Network` that they fill."""

APART = ("listen", "connect", "verbose", "audit", "lease_file", "join", "join_listen")
"""Keys that are no field of `Network`."""

Given: TypeAlias = dict[str, tuple[str, Any]]
"""Of each key that was given: what to call it in a message, and its raw value."""


class Scope(Enum):
    """Of a key where there are several networks."""

    SERVER = auto()
    """Of all of them together: it stands above them."""
    SHARED = auto()
    """Of each, and what stands above them holds for those that do not say otherwise."""
    OWN = auto()
    """Of one alone: two cannot have the same."""


@attrs.frozen
class Setting:
    """A key: its table in the file ("" for the top), its reader, what it allows.

    The reader raises ValueError for what is not allowed, or UserError where it knows
    better words.
    """

    table: str
    read: Callable[[Any], Any]
    allowed: str
    scope: Scope = Scope.OWN


def read_setting(key: str, origin: str, raw: Any) -> Any:
    """The value of a key; UserError that begins with `origin` where it is not allowed."""
    setting = SETTINGS[key]
    try:
        return setting.read(raw)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    except ValueError as error:
        why = f" ({error})" if str(error) else ""
        message = f"{origin} is {show(raw)}{why}; allowed: {setting.allowed}"
        raise UserError(message) from error


_ENDPOINTS = "endpoints, each as one string, or a list of them"
_RESOLVERS = "ADDRESS or ADDRESS:PORT ([IPV6]:PORT), or a list of them"
_JOINS = "unix:PATH or tcp:HOST:PORT, or a list of such strings"
_IPV4 = "an IPv4 address, like 10.0.2.2"

SETTINGS = {
    "connect": Setting("", read_unix_endpoints, "unix:PATH, or a list of such strings"),
    "congestion": Setting("", read_text, CONGESTION_ALLOWED, Scope.SHARED),
    "udp_filtering": Setting("", read_text, UDP_FILTERING_ALLOWED, Scope.SHARED),
    "dns": Setting("", read_upstreams, _RESOLVERS, Scope.SHARED),
    "host_loopback": Setting("", read_truth, "true or false", Scope.SHARED),
    "isolate": Setting("", read_truth, "true or false", Scope.SHARED),
    "listen": Setting("", read_endpoints, _ENDPOINTS),
    "mtu": Setting("", read_whole_number, "a whole number of bytes", Scope.SHARED),
    "audit": Setting("", read_path, "the path of a file", Scope.SERVER),
    "lease_file": Setting("", read_path, "the path of a file"),
    "verbose": Setting("", read_truth, "true or false", Scope.SERVER),
    "tftp": Setting("", read_path, "the path of a folder", Scope.SHARED),
    "bootfile": Setting("", read_bootfiles, ALLOWED_BOOTFILES, Scope.SHARED),
    "publish": Setting("", read_publications, ALLOWED_PUBLICATIONS),
    "publish_source": Setting("", read_text, SOURCE_ALLOWED, Scope.SHARED),
    "record": Setting("", read_records, ALLOWED_RECORDS, Scope.SHARED),
    "redirect": Setting("", read_redirects, ALLOWED_REDIRECTS, Scope.SHARED),
    "join": Setting("", read_joins, _JOINS),
    "join_listen": Setting("", read_joins, _JOINS),
    "reservation": Setting("", read_reservations, ALLOWED_RESERVATIONS),
    "subnet": Setting(TABLE, read_subnet, "an IPv4 subnet, like 10.0.2.0/24"),
    "gateway": Setting(TABLE, read_address, _IPV4),
    "nameserver": Setting(TABLE, read_address, _IPV4),
    "first_lease": Setting(TABLE, read_address, _IPV4),
    "last_lease": Setting(TABLE, read_address, _IPV4),
    "ntp": Setting(TABLE, read_addresses, f"{_IPV4}, or a list of them"),
    "lease_time": Setting(TABLE, read_whole_number, "a whole number of seconds"),
    "search": Setting(TABLE, read_domains, "a domain name, like example.com, or a list of them"),
    "domain": Setting(TABLE, read_domain, "a domain name, like internal"),
    "gateway_mac": Setting(TABLE, read_mac, "a MAC address, like 52:55:0a:00:02:02"),
}


def _those(which: Callable[[Setting], bool]) -> tuple[str, ...]:
    return tuple(key for key, setting in SETTINGS.items() if which(setting))


@attrs.frozen
class Place:
    """A part of a file: which keys stand there, and what to say of those that do not."""

    keys: tuple[str, ...]
    others: str
    """Where the known keys belong that do not stand here."""
    table: str = ""
    """Written in front of a key, and in front of a table."""
    tables: tuple[str, ...] = ()
    """Those that stand here and are no keys."""
    in_list: bool = False
    """Whether a message has said before which table it is about."""

    def allowed(self) -> str:
        """All that may stand here."""
        dot = f"{self.table}." if self.table else ""
        keys = sorted(key for key in self.keys if key not in LISTS)
        lists = [f"[[{dot}{key}]]" for key in LISTS if key in self.keys]
        here = "in here" if self.table else "here"
        return f"allowed {here}: {', '.join([*keys, *self.tables, *lists])}"

    def hint(self, key: str) -> str:
        """What the writer of a key that does not stand here may have meant."""
        if key in SETTINGS:
            return f"it belongs {self.others}; {self.allowed()}"
        tables = [table.strip("[]").rpartition(".")[2] for table in self.tables]
        close = difflib.get_close_matches(key, [*self.keys, *tables], n=1)
        return f'did you mean "{close[0]}"? {self.allowed()}' if close else self.allowed()


TOP = Place(
    _those(lambda setting: not setting.table),
    f"in the table [{TABLE}]",
    tables=(f"[{TABLE}]", f"[{POLICY}]"),
)
OF_ONE = Place(_those(lambda setting: bool(setting.table)), f"above [{TABLE}]", TABLE)
"""The table of the only network."""
ABOVE_SEVERAL = Place(
    _those(lambda setting: setting.scope is not Scope.OWN),
    f"in a table [[{TABLE}]], as it is one network's own",
    tables=(f"[[{TABLE}]]", f"[{POLICY}]"),
)
ONE_OF_SEVERAL = Place(
    (NAME, *_those(lambda setting: setting.scope is not Scope.SERVER)),
    f"above the tables [[{TABLE}]]",
    TABLE,
    (f"[{TABLE}.{POLICY}]",),
    in_list=True,
)


def known_keys(origin: str, place: Place, table: Mapping[str, Any]) -> Given:
    """The keys of a table; UserError that begins with `origin` for one that is not of it."""
    known: Given = {}
    for written, value in table.items():
        dot = f"{place.table}." if place.table and not place.in_list else ""
        where = f'{origin}key "{dot}{written}"'
        key = written.replace("-", "_")
        if key in known:
            raise UserError(f"{where} is given twice, with a dash and with an underscore")
        if key not in place.keys:
            raise UserError(f"{where} is not known; {place.hint(key)}")
        known[key] = (where, value)
    return known
