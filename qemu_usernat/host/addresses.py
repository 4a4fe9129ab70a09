"""The host's own addresses, as the kernel has them at this moment.

Linux lists them in /proc: those of IPv4 in the table of local routes, those of IPv6 by interface.
Reading costs some hundred microseconds, so what was read counts for a second.
"""

import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import trio
from attrs import define, field

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.time import NEVER, SECOND

FRESH = 1 * SECOND

_ROUTES = Path("/proc/net/fib_trie")
_INTERFACES = Path("/proc/net/if_inet6")
_LOCAL = re.compile(r"^ +\|-- ([0-9.]+)\n +/32 host LOCAL$", re.M)


@define
class HostAddresses:
    """Asked for one address at a time."""

    clock: Callable[[], float] = trio.current_time
    _known: frozenset[Address] = frozenset()
    _read_at: float = field(default=-NEVER)

    def __call__(self, address: Address) -> bool:
        """Whether the host has it."""
        now = self.clock()
        if now - self._read_at > FRESH:
            self._known, self._read_at = read_addresses(), now
        return address in self._known


def read_addresses() -> frozenset[Address]:
    """All of them, loopback included; none where there is no /proc."""
    try:
        found = [ip_address(text).packed for text in _LOCAL.findall(_ROUTES.read_text())]
    except OSError:
        found = []
    try:
        lines = _INTERFACES.read_text().splitlines()
    except OSError:
        lines = []
    return frozenset([*found, *(bytes.fromhex(line.split()[0]) for line in lines)])
