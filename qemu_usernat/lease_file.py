"""The file in which leases outlive the server: a line each, which a person can read and edit.

It owns the wall clock of leases, and how a file is written so that there is a whole one at every
moment: beside it first, then in its place. That something is to be remembered is the DHCP server's
to say; it is written at most once a second, in a thread, so that no disk keeps the guests waiting.

A line that cannot be read is told of and left out, and the file as it was is kept beside the new
one: one line that somebody has spoilt does not cost the others their addresses. But a file that is
no lease file at all is an error, so that a wrong path does not cost somebody a file.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from math import ceil
from pathlib import Path

import structlog
import trio
from attrs import define, field

from qemu_usernat.config.reservations import LABEL
from qemu_usernat.gateway.dhcp import DhcpServer
from qemu_usernat.gateway.leases import HeldLease
from qemu_usernat.primitives.addresses import format_address, format_mac, parse_address, parse_mac
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import SECOND

HEAD = "# qemu-usernat leases: until, MAC address, address, client identifier, name"
_OURS = "# qemu-usernat leases"
_LINE = "a line like 2026-01-31T12:00:00Z 52:54:00:12:34:56 10.0.2.15 01525400123456 web"

INTERVAL = 1 * SECOND
"""Between one writing and the next."""

TOLD_MAXIMUM = 10
"""Lines that are told of one by one."""

_ENDS_OF_TIME = 0, 253402300799  # seconds since 1970: the years that have four digits
_NO_NAME = "-"

_log = structlog.get_logger()


@define(eq=False)
class LeaseFile:
    """Of one server, whose leases it keeps."""

    path: Path
    dhcp: DhcpServer
    clock: Callable[[], float] = time.time
    """Seconds since 1970."""
    _version: int | None = field(default=None, init=False)
    """What is written; None until it is known that this is a file for leases."""
    _failed: bool = field(default=False, init=False)

    def open(self, now: float) -> None:
        """Restore what is there, and see whether it can be written. UserError."""
        try:
            octets = self._read()
            text = octets.decode("utf-8", "replace")
            leases, flaws = read_leases(text, self.clock(), now)
            if flaws:
                self._keep_aside(octets, flaws, "damaged")
            self.dhcp.restore(leases)
            if foreign := self._foreign(leases, now):
                self._keep_aside(octets, foreign, "foreign")
            self._write(self._text(now))
        except OSError as error:
            raise UserError(
                f"lease_file (--lease-file) is {self.path}: {error.strerror}; allowed: a file that "
                "can be written, in a folder that can"
            ) from error
        self._version = self.dhcp.version

    async def keep(self) -> None:
        """Write what has changed, for ever."""
        while True:
            await trio.sleep(INTERVAL)
            if self.dhcp.version != self._version:
                version, leases = self.dhcp.version, self.dhcp.remembered()
                moment, now = self.clock(), trio.current_time()
                await trio.to_thread.run_sync(self._save, version, leases, moment, now)

    def close(self, now: float) -> None:
        """Write what has changed since, while the guests are still there."""
        if self._version not in (None, self.dhcp.version):
            self._save(self.dhcp.version, self.dhcp.remembered(), self.clock(), now)

    def _text(self, now: float) -> str:
        return write_leases(self.dhcp.remembered(), self.clock(), now)

    def _save(self, version: int, leases: list[HeldLease], moment: float, now: float) -> None:
        try:
            self._write(write_leases(leases, moment, now))
        except OSError as error:
            if not self._failed:  # said once, and tried again
                reason = error.strerror
                _log.error("the leases cannot be written", file=str(self.path), reason=reason)
            self._failed = True
        else:
            self._failed = False
            self._version = version

    def _read(self) -> bytes:
        """What is there, nothing where there is no file yet."""
        try:
            kind = self.path.stat().st_mode
        except FileNotFoundError:
            return b""
        if not stat.S_ISREG(kind):
            raise UserError(
                f"lease_file (--lease-file) is {self.path}: no regular file; allowed: a file"
            )
        octets = self.path.read_bytes()
        if octets.strip() and not octets.startswith(_OURS.encode()):
            raise UserError(
                f"{self.path}:1: is no lease file; allowed: one whose first line begins with "
                f'"{_OURS}", an empty file, or a path where there is none'
            )
        return octets

    def _foreign(self, leases: Iterable[HeldLease], now: float) -> list[str]:
        """Those that still live and could not be restored: of another network, it seems."""
        kept = {(each.client, each.address) for each in self.dhcp.remembered()}
        return [
            f" {format_address(each.address)} of {format_mac(each.mac)} is not to be leased here"
            for each in leases
            if each.expires > now and (each.client, each.address) not in kept
        ]

    def _keep_aside(self, octets: bytes, flaws: list[str], what: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.{what}")
        aside.write_bytes(octets)
        for flaw in flaws[:TOLD_MAXIMUM]:
            _log.error(f"{self.path}:{flaw}")
        _log.error(
            f"lines of the lease file are {what}: the other leases are kept",
            lines=len(flaws),
            as_it_was=str(aside),
        )

    def _write(self, text: str) -> None:
        place = self.path.resolve()  # of a symbolic link what it leads to is replaced
        new = place.with_name(f".{place.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(descriptor)
            new.replace(place)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise


def write_leases(leases: Iterable[HeldLease], moment: float, now: float) -> str:
    """The file for `leases`, where it is `moment` in seconds since 1970, and `now` for them."""
    lines = [
        " ".join(
            (
                _written(moment + lease.expires - now),
                format_mac(lease.mac),
                format_address(lease.address),
                lease.client.hex(),
                lease.name or _NO_NAME,
            )
        )
        for lease in leases
    ]
    return "\n".join([HEAD, *lines, ""])


def read_leases(text: str, moment: float, now: float) -> tuple[list[HeldLease], list[str]]:
    """The leases, and what is wrong: ``LINE: why; allowed: …``."""
    leases, flaws = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            try:
                leases.append(_lease(line, now - moment))
            except ValueError as error:
                flaws.append(f"{number}: {error}; allowed: {_LINE}")
    return leases, flaws


def _lease(line: str, offset: float) -> HeldLease:
    words = line.split()
    if len(words) != 5:
        raise ValueError(f"{len(words)} words")
    until, mac, address, client, name = words
    if name == _NO_NAME:
        name = ""
    elif not LABEL.fullmatch(name):
        raise ValueError(f'"{name}" is not a name of one label in lower case')
    if len(packed := parse_address(address)) != 4:
        raise ValueError(f'"{address}" is not an IPv4 address')
    if not re.fullmatch("([0-9a-f]{2}){2,255}", client):
        raise ValueError(f'"{client}" is not a client identifier')
    return HeldLease(packed, parse_mac(mac), name, bytes.fromhex(client), _read(until) + offset)


def _written(moment: float) -> str:
    first, last = _ENDS_OF_TIME
    # Rounded up: nobody is to lose a part of the last second to somebody else.
    when = datetime.fromtimestamp(min(max(ceil(moment), first), last), UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        raise ValueError(f'"{text}" is not a time') from None
