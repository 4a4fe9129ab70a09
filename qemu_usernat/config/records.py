"""Names of the user's own: the tables ``[[record]]``.

Owns how one is written, which is as in a zone file (RFC 1035, 5.1), but for two things that people
get wrong there. A name with a dot in it is whole, with or without another dot at its end; a name
without any is one of the network's domain. And text (TXT) need not stand in quotes, and then is one
text. dnspython reads names and data; what may stand beside what is for `network` to say.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

import attrs
import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
from dns.rdtypes.ANY.TXT import TXT

from qemu_usernat.config.tables import check_keys, read_tables
from qemu_usernat.primitives.errors import UserError

ALLOWED = 'tables with "name", "type", "data" and perhaps "ttl"'

TTL = 60
"""Seconds, of records that do not say: whoever edits a file wants to see it soon."""

TTL_MAXIMUM = (1 << 31) - 1  # seconds (RFC 2181, 8)

RECORDS_MAXIMUM = 64
"""Of one name and type: what any guest can take in one answer."""

OCTETS_MAXIMUM = 16384
"""Bytes of the data of one name and type: it has to fit into an answer (RFC 1035, 4.2.2), together
with what leads to it."""

_LABEL = re.compile(r"\*|[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

_TEXT_MAXIMUM = 255  # bytes of one string of a text (RFC 1035, 3.3.14)

_EXAMPLES = {
    "A": "an IPv4 address, like 192.168.1.5",
    "AAAA": "an IPv6 address, like fd00::5",
    "CNAME": "one name, like web or www.example.com",
    "TXT": "a text of ASCII, in quotes or without",
    "SRV": "priority, weight, port and name, like 0 5 5060 sip.example.com",
    "PTR": "a name, like web or www.example.com",
}
"""Type to what its data are."""


@attrs.frozen
class Record:
    """All records of one name and type; relative names are of the network's domain."""

    name: dns.name.Name
    type: dns.rdatatype.RdataType
    data: tuple[dns.rdata.Rdata, ...]
    ttl: int = TTL

    def within(self, domain: dns.name.Name) -> "Record":
        """The same with whole names, as they are in that domain."""
        data = tuple(
            _with_target(each, lambda name: name.derelativize(domain)) for each in self.data
        )
        return attrs.evolve(self, name=self.name.derelativize(domain), data=data)


def read_records(raw: Any) -> tuple[Record, ...]:
    """What a TOML file has; UserError says which table is wrong, and what is allowed."""
    return read_tables(raw, _read)


def _read(number: int, table: dict[str, Any]) -> Record:
    required = ("name", "type", "data")
    check_keys(number, table, (*required, "ttl"), required, ALLOWED)
    kind = _type(number, table["type"])
    allowed = "a name of letters, digits, - and _, like web, www.example.com or *.test"
    if kind == "PTR":
        allowed += "; of a PTR an address, like 192.168.1.5"
    return Record(
        _value(number, "name", partial(_name, kind), table["name"], allowed),
        dns.rdatatype.from_text(kind),
        _data(number, kind, table["data"]),
        _ttl(number, table.get("ttl", TTL)),
    )


def _type(number: int, raw: Any) -> str:
    if not isinstance(raw, str) or raw.upper() not in _EXAMPLES:
        raise _error(number, "type", raw, ", ".join(_EXAMPLES))
    return raw.upper()


def _ttl(number: int, raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= TTL_MAXIMUM:
        raise _error(number, "ttl", raw, f"seconds from 0 to {TTL_MAXIMUM}")
    return raw


def _data(number: int, kind: str, raw: Any) -> tuple[dns.rdata.Rdata, ...]:
    texts = [raw] if isinstance(raw, str) else raw
    allowed = _EXAMPLES[kind] if kind == "CNAME" else f"{_EXAMPLES[kind]}; or a list of such"
    if not isinstance(texts, list) or not texts:
        raise _error(number, "data", raw, allowed)
    if kind == "CNAME" and len(texts) > 1:
        raise _error(number, "data", raw, f"{_EXAMPLES[kind]}: a name is an alias of one other")
    if len(texts) > RECORDS_MAXIMUM:
        raise _error(number, "data", f"{len(texts)} items", f"at most {RECORDS_MAXIMUM}")
    reader = partial(_rdata, kind)
    data = tuple(dict.fromkeys(_value(number, "data", reader, text, allowed) for text in texts))
    octets = sum(len(each.to_wire(origin=dns.name.root) or b"") for each in data)
    if octets > OCTETS_MAXIMUM:
        raise _error(number, "data", f"{octets} bytes", f"at most {OCTETS_MAXIMUM} bytes in all")
    return data


def _value(number: int, key: str, reader: Callable[[str], Any], raw: Any, allowed: str) -> Any:
    try:
        if not isinstance(raw, str) or not raw:
            raise ValueError
        return reader(raw)
    except (ValueError, dns.exception.DNSException) as error:
        raise _error(number, key, raw, allowed) from error


def _error(number: int, key: str, raw: Any, allowed: str) -> UserError:
    shown = f'"{raw}"' if isinstance(raw, str) else f"{raw}"
    return UserError(f'number {number}: "{key}" is {shown}; allowed: {allowed}')


def _name(kind: str, text: str) -> dns.name.Name:
    with suppress(ValueError):
        if kind == "PTR":
            return dns.reversename.from_address(str(ip_address(text)))
    if text != "@":
        labels = text.removesuffix(".").split(".")
        if not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdecimal():
            raise ValueError("no name of a host or a service")
    return _whole(dns.name.from_text(text, None))


def _whole(name: dns.name.Name) -> dns.name.Name:
    """A name with a dot in it lacks nothing, but for a service's, which always has (RFC 2782)."""
    if name.is_absolute() or len(name) < 2 or name[-1].startswith(b"_"):
        return name
    return name.concatenate(dns.name.root)


def _rdata(kind: str, text: str) -> dns.rdata.Rdata:
    if kind == "TXT" and not text.startswith('"'):
        octets = text.encode("ascii")
        pieces = [octets[at : at + _TEXT_MAXIMUM] for at in range(0, len(octets), _TEXT_MAXIMUM)]
        return TXT(dns.rdataclass.IN, dns.rdatatype.TXT, pieces)
    rdata = dns.rdata.from_text(dns.rdataclass.IN, kind, text, relativize=False)
    return _with_target(rdata, _whole)


def _with_target(
    rdata: dns.rdata.Rdata, change: Callable[[dns.name.Name], dns.name.Name]
) -> dns.rdata.Rdata:
    target = getattr(rdata, "target", None)
    return rdata if target is None else rdata.replace(target=change(target))


# ---- beside each other


INTERNAL = dns.name.from_text("internal")
"""Whose names are nobody's outside: ICANN keeps it free for such use."""

LOCALHOST = dns.name.from_text("localhost")  # RFC 6761, 6.3

OWN = ("gateway", "host", "dns")
"""What the gateway calls itself, in `INTERNAL` and in the network's domain."""


def own_names(domain: dns.name.Name) -> list[dns.name.Name]:
    """The gateway's, in the network's domain and in `INTERNAL`."""
    relative = [dns.name.from_text(label, None) for label in OWN]
    return [name.derelativize(origin) for origin in (INTERNAL, domain) for name in relative]


def mistake(records: tuple[Record, ...], domain: dns.name.Name) -> tuple[str, str] | None:
    """What is not allowed of these together, and what is; None where all is well."""
    ours = {*own_names(domain), INTERNAL}
    seen: dict[dns.name.Name, dict[str, int]] = {}
    aliases = {}
    for number, each in enumerate(records, 1):
        whole = each.within(domain)
        name, kind = whole.name, dns.rdatatype.to_text(each.type)
        what = f'number {number}, {kind} of "{name.to_text(omit_final_dot=True)}"'
        if name in ours or name.is_subdomain(LOCALHOST):
            return what, "names that are not the gateway's own, nor below localhost"
        others = seen.setdefault(name, {})
        if kind in others:
            return what, f"one table for a name and type (see number {others[kind]}), with a list"
        if others and "CNAME" in (kind, *others):
            number = next(iter(others.values()))
            return what, f"nothing beside a CNAME (see number {number}; RFC 1034, 3.6.2)"
        others[kind] = number
        if kind == "CNAME":
            aliases[name] = getattr(whole.data[0], "target", name)
            end, steps = name, 0
            while end in aliases and steps <= len(aliases):
                end, steps = aliases[end], steps + 1
            if end in aliases:
                return what, "a CNAME that does not lead back to itself"
    return None
