"""What two servers that join a segment tell each other: one Ethernet frame of JSON.

It owns the form, and the bounds of what is read; what follows from it is for `lan.joins` to say.
"""

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from attrs import frozen

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.packets import Buffer

HELLO = b"\x88\xb5"  # as an Ethernet type: IEEE 802, local experimental 1
VERSION = 1

SERVERS_MAXIMUM = 64
GUESTS_MAXIMUM = 512
SIZE_MAXIMUM = 48 * 1024  # bytes: more than all of these can fill

_EVERYBODY = b"\xff" * 6
_HEADER = 14  # bytes
_SERVER = re.compile("[0-9a-f]{16}")
_NAME = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?")

T = TypeVar("T")


@frozen
class Member:
    """A server of the segment, and which addresses it leases."""

    server: str
    """Its identifier, chosen by chance at each start."""
    first: Address
    last: Address

    def overlaps(self, other: "Member") -> bool:
        """Whether both may lease the same address."""
        return self.first <= other.last and other.first <= self.last


@frozen(kw_only=True)
class Hello:
    """Who speaks, and what there is behind it."""

    speaker: Member
    reaches: tuple[Member, ...] = ()
    """By its other joins."""
    subnet: IPv4Network
    gateways: tuple[Address, ...]
    mtu: int
    guests: tuple[tuple[Address, str], ...] = ()
    """Addresses that it has given away, and names, where they have one."""

    def frame(self, source: MacAddress) -> bytes:
        """As a frame of that sender."""
        told = {
            "version": VERSION,
            "speaker": _written(self.speaker),
            "reaches": [_written(each) for each in self.reaches[:SERVERS_MAXIMUM]],
            "subnet": str(self.subnet),
            "gateways": [str(IPv4Address(each)) for each in self.gateways],
            "mtu": self.mtu,
            "guests": [
                [str(IPv4Address(address)), name] for address, name in self.guests[:GUESTS_MAXIMUM]
            ],
        }
        text = json.dumps(told, separators=(",", ":")).encode()
        return (_EVERYBODY + source + HELLO + text).ljust(60)


def parse_hello(frame: Buffer) -> Hello:
    """Of a frame of that type; Malformed."""
    octets = bytes(frame)[_HEADER:]
    if len(octets) > SIZE_MAXIMUM:
        raise Malformed("join.bad_hello")
    try:
        told = json.loads(octets)
        if told["version"] != VERSION:
            raise Malformed("join.other_version")
        return Hello(
            speaker=_member(told["speaker"]),
            reaches=_list(told["reaches"], SERVERS_MAXIMUM, _member),
            subnet=IPv4Network(_text(told["subnet"])),
            gateways=_list(told["gateways"], 2, _address),
            mtu=_number(told["mtu"]),
            guests=_list(told["guests"], GUESTS_MAXIMUM, _guest),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Malformed("join.bad_hello") from error


def _written(member: Member) -> list[str]:
    return [member.server, str(IPv4Address(member.first)), str(IPv4Address(member.last))]


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError
    return raw


def _number(raw: Any) -> int:
    if not isinstance(raw, int):
        raise ValueError  # 1e999 is a number of JSON, too
    return raw


def _address(raw: Any) -> Address:
    return IPv4Address(_text(raw)).packed


def _member(raw: Any) -> Member:
    server, first, last = raw
    if not _SERVER.fullmatch(_text(server)):
        raise ValueError
    return Member(server, _address(first), _address(last))


def _guest(raw: Any) -> tuple[Address, str]:
    address, name = raw
    if not _NAME.fullmatch(_text(name)):
        raise ValueError
    return _address(address), name


def _list(raw: Any, maximum: int, read: Callable[[Any], T]) -> tuple[T, ...]:
    if not isinstance(raw, list) or len(raw) > maximum:
        raise ValueError
    return tuple(map(read, raw))
