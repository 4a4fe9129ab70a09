"""How one value is read as TOML holds it: text, numbers, addresses, endpoints.

Each reader raises ValueError for what is not allowed, perhaps with a reason, or UserError where it
knows better words. Which key has which reader is for `settings` to say.
"""

import re
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import Any

from qemu_usernat.config.endpoints import (
    Endpoint,
    FdEndpoint,
    JoinEndpoint,
    UnixEndpoint,
    is_decimal,
    parse_endpoint,
)
from qemu_usernat.config.network import Upstream
from qemu_usernat.primitives.addresses import DNS_PORT, MacAddress, parse_mac


def show(raw: Any) -> str:
    """A value as TOML would write it, near enough for a message."""
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, str):
        return f'"{raw}"'
    if isinstance(raw, dict):
        return "a table"
    if isinstance(raw, (list, tuple)):
        return "[" + ", ".join(map(show, raw)) + "]"
    return str(raw)


def read_text(raw: Any) -> str:
    """A string."""
    if not isinstance(raw, str):
        raise ValueError
    return raw


def read_path(raw: Any) -> Path:
    """A path that is not empty."""
    text = read_text(raw)
    if not text:
        raise ValueError("it is empty")
    return Path(text)


def read_texts(raw: Any) -> tuple[str, ...]:
    """One string or a list of them: most people have one socket and one resolver."""
    if isinstance(raw, str):
        return (raw,)
    if not isinstance(raw, (list, tuple)):
        raise ValueError
    return tuple(read_text(item) for item in raw)


def read_whole_number(raw: Any) -> int:
    """An integer, which true is not."""
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise ValueError
    return raw


def read_truth(raw: Any) -> bool:
    """True or false."""
    if not isinstance(raw, bool):
        raise ValueError
    return raw


def read_endpoints(raw: Any) -> tuple[Endpoint, ...]:
    """One endpoint or a list of them."""
    return tuple(parse_endpoint(text) for text in read_texts(raw))


def read_unix_endpoints(raw: Any) -> tuple[UnixEndpoint, ...]:
    """The same, and nothing but unix sockets."""
    endpoints = read_endpoints(raw)
    unix = tuple(endpoint for endpoint in endpoints if isinstance(endpoint, UnixEndpoint))
    if len(unix) != len(endpoints):
        raise ValueError
    return unix


def read_joins(raw: Any) -> tuple[JoinEndpoint, ...]:
    """One place of another server or a list of them, which are no inherited descriptors."""
    endpoints = read_endpoints(raw)
    joins = tuple(each for each in endpoints if not isinstance(each, FdEndpoint))
    if len(joins) != len(endpoints):
        raise ValueError
    return joins


def read_subnet(raw: Any) -> IPv4Network:
    """A subnet by its own address and a number of bits."""
    text = read_text(raw)
    if "/" not in text:
        raise ValueError("the prefix length is missing")
    network = IPv4Network(text, strict=False)
    if not is_decimal(text.partition("/")[2]):
        raise ValueError("the prefix is not a number of bits")
    if str(network.network_address) != text.partition("/")[0]:
        raise ValueError(f"an address inside {network}, not the subnet itself")
    return network


def read_address(raw: Any) -> IPv4Address:
    """An IPv4 address."""
    return IPv4Address(read_text(raw))


def read_addresses(raw: Any) -> tuple[IPv4Address, ...]:
    """One IPv4 address or a list of them."""
    return tuple(IPv4Address(text) for text in read_texts(raw))


def read_mac(raw: Any) -> MacAddress:
    """A MAC address."""
    return parse_mac(read_text(raw))


def read_domain(raw: Any) -> str:
    """A domain name."""
    return read_text(raw).lower()  # RFC 4343: names compare without case


def read_domains(raw: Any) -> tuple[str, ...]:
    """One domain name or a list of them; each once."""
    return tuple(dict.fromkeys(read_domain(text) for text in read_texts(raw)))


def read_upstreams(raw: Any) -> tuple[Upstream, ...]:
    """One resolver or a list of them, each with a port perhaps."""
    return tuple(_read_upstream(text) for text in read_texts(raw))


def _read_upstream(text: str) -> Upstream:
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
