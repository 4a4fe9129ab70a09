"""The values that a test may ask for: checked where they are written, and made comparable.

A port of 70000, a protocol "TCP" or a name with a space in it is met by nothing, so an assertion
that nothing has it could not fail. Each function here takes the name of a field and the value that
was written, and returns it as records and frames have it; TypeError or ValueError say what is
allowed. What means the same is the same: names in any case, with or without the final dot.
"""

import math
from collections.abc import Callable, Iterable
from enum import Enum
from ipaddress import ip_address
from typing import Any

import dns.exception
from dns import rcode as dns_rcode
from dns import rdatatype

from qemu_usernat.primitives.addresses import format_mac, parse_mac

Accept = Callable[[str, Any], Any]

NO_ANSWER = "no answer"
"""In place of a response code."""


def number(maximum: int) -> Callable[[str, Any], int]:
    """From 0 to `maximum`."""

    def accept(name: str, value: Any) -> int:
        allowed = f"a number from 0 to {maximum}"
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; allowed: {allowed}")
        if not 0 <= value <= maximum:
            raise ValueError(f"{name} is {value}; allowed: {allowed}")
        return value

    return accept


octet = number(0xFF)
port = number(0xFFFF)
size = number((1 << 63) - 1)


def moment(name: str, value: Any) -> float:
    """Seconds of trio's clock."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{name} is {value!r}; allowed: seconds, as a number")
    return value


def truth(name: str, value: Any) -> bool:
    """Yes or no, and nothing that is merely like it."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; allowed: True or False")
    return value


def text(name: str, value: Any) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; allowed: text")
    return value


def octets(name: str, value: Any) -> bytes:
    """Any octets."""
    if not isinstance(value, bytes):
        raise TypeError(f"{name} is {value!r}; allowed: bytes")
    return value


def one_of(words: Iterable[str]) -> Callable[[str, Any], str]:
    """One of these, letter by letter."""
    allowed = tuple(words)

    def accept(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            error = ValueError if isinstance(value, str) else TypeError
            raise error(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
        return value

    return accept


def member(kind: type[Enum]) -> Callable[[str, Any], Enum]:
    """A member of an enumeration, or its text."""

    def accept(name: str, value: Any) -> Enum:
        if isinstance(value, kind):
            return value
        for each in kind:
            if isinstance(value, str) and value == each.value:
                return each
        members = ", ".join(f"{kind.__name__}.{each.name}" for each in kind)
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} is {value!r}; allowed: {members}")

    return accept


def protocol(name: str, value: Any) -> str:
    """What a verdict may be about."""
    words = ("tcp", "udp", "icmp", "dns")
    found = text(name, value)
    if found in words or (found.isdecimal() and int(found) <= 0xFF):
        return found
    raise ValueError(
        f"{name} is {value!r}; allowed: {', '.join(map(repr, words))}, or the number of another, "
        "like '132'"
    )


def address(name: str, value: Any) -> str:
    """An IP address as text."""
    return _as_text(_address, name, value, 'an address, like "203.0.113.10"')


def mac(name: str, value: Any) -> str:
    """A MAC address as text."""
    allowed = 'a MAC address, like "52:54:00:12:34:56"'
    return _as_text(lambda found: format_mac(parse_mac(found)), name, value, allowed)


def domain(name: str, value: Any) -> str:
    """A domain name, in lower case and without the final dot."""
    return _as_text(_domain, name, value, 'a domain name alone, like "www.example.com"')


def host(name: str, value: Any) -> str:
    """A domain name or an address."""
    allowed = 'a name or an address alone, like "www.example.com" or "203.0.113.10"'
    return _as_text(_host, name, value, allowed)


def record_type(name: str, value: Any) -> str:
    """A type of DNS records."""
    allowed = "a type of DNS records, like 'AAAA'"
    return _as_text(
        lambda found: rdatatype.to_text(rdatatype.from_text(found)), name, value, allowed
    )


def response_code(name: str, value: Any) -> str:
    """A response code of DNS."""
    allowed = "a response code of DNS, like 'NXDOMAIN'"
    return _as_text(
        lambda found: dns_rcode.to_text(dns_rcode.from_text(found)), name, value, allowed
    )


def _as_text(parse: Callable[[str], str], name: str, value: Any, allowed: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; allowed: {allowed}")
    try:
        return parse(value)
    except (ValueError, dns.exception.DNSException) as error:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}") from error


def _address(found: str) -> str:
    return str(ip_address(found))


def _domain(found: str) -> str:
    name = found.removesuffix(".").lower()
    labels = name.split(".")
    if (
        not all(0 < len(label) <= 63 for label in labels)
        or any(letter.isspace() or letter in "/:@" for letter in name)
        or labels[-1].isdigit()  # an address, or what should have been one
    ):
        raise ValueError("no domain name")
    return name


def _host(found: str) -> str:
    try:
        return _address(found)
    except ValueError:
        return _domain(found)


def name_or_none(name: str, value: Any) -> str | None:
    """A domain name; None where there is none."""
    return None if value is None else domain(name, value)


def dns_outcome(name: str, value: Any) -> str:
    """A response code, or that there was none."""
    return NO_ANSWER if value == NO_ANSWER else response_code(name, value)


def peer(name: str, value: Any) -> tuple[str, int]:
    """Address and port."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(
            f'{name} is {value!r}; allowed: address and port, like ("203.0.113.10", 443)'
        )
    return address(f"the address of {name}", value[0]), port(f"the port of {name}", value[1])


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Several texts."""
    if not isinstance(value, (tuple, list)) or not all(isinstance(each, str) for each in value):
        raise TypeError(f'{name} is {value!r}; allowed: a tuple of texts, like ("203.0.113.10",)')
    return tuple(value)
