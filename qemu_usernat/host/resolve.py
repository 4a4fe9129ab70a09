"""The host's resolvers: which they are at this moment (resolv.conf(5))."""

import contextlib
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from attrs import define, field

from qemu_usernat.gateway.dns import Upstream
from qemu_usernat.primitives.addresses import DNS_PORT
from qemu_usernat.primitives.time import NEVER, SECOND

RESOLVERS_MAXIMUM = 3
"""Resolvers used of those listed, as the C library does (resolv.conf(5), MAXNS)."""

LOOK_INTERVAL = 1 * SECOND
"""How often at most the host's list of resolvers is looked at."""


@define
class SystemResolvers:
    """The resolvers that the host uses, in its order; called for those of the moment.

    The file is followed, through links, too: a server may be up before its host's network, and a
    laptop moves from one network to the next. A file that cannot be read changes nothing, nor does
    one that names nobody until it does so at two looks: it may be half written. `clock` is in
    seconds.

    Where the file names systemd-resolved's stub (127.0.0.53), the stub is asked, and not those
    whom it would ask (/run/systemd/resolve/resolv.conf): it alone knows which of them a VPN has
    for which names, so that a guest finds what its host finds. libslirp and passt do the same.
    Programs in containers read the other file, because there the stub cannot be reached.
    """

    path: Path = Path("/etc/resolv.conf")
    clock: Callable[[], float] = time.monotonic
    _resolvers: list[Upstream] = field(factory=list, init=False)
    _version: tuple[int, ...] = field(default=(), init=False)
    _empty: tuple[int, ...] = field(default=(), init=False)
    """The version that named nobody at the last look."""
    _next_look: float = field(default=-NEVER, init=False)

    def __call__(self) -> list[Upstream]:
        """Those that the file named when it was last looked at; none if there was never one."""
        now = self.clock()
        if now >= self._next_look:
            self._next_look = now + LOOK_INTERVAL
            with contextlib.suppress(OSError):
                self._look()
        return self._resolvers

    def _look(self) -> None:
        status = self.path.stat()
        # The time alone does not tell two changes within one tick of the kernel's from each other.
        version = status.st_mtime_ns, status.st_ino, status.st_size
        if version != self._version:
            resolvers = _read_resolvers(self.path)
            if resolvers or version == self._empty or not self._resolvers:
                self._resolvers, self._version = resolvers, version
            self._empty = () if resolvers else version


def _read_resolvers(path: Path) -> list[Upstream]:
    """The name servers of a resolv.conf; OSError where it cannot be read.

    Lines that are no name server's are skipped. A router that speaks IPv6 is often known by its
    link-local address (RFC 8106), which means something only with its interface.
    """
    resolvers: list[Upstream] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        with contextlib.suppress(ValueError):
            address = ip_address(words[1])
            scope = getattr(address, "scope_id", None)
            where = address.packed, DNS_PORT
            resolvers.append((*where, scope) if scope else where)
    return resolvers[:RESOLVERS_MAXIMUM]
