"""The host's own addresses, as the kernel has them at this moment.

Linux lists them in /proc: those of IPv4 in the table of local routes, those of IPv6 by interface.
Reading costs some hundred microseconds, so what was read counts for a second. Where it cannot be
read, as no descriptor is left, what was known goes on to be: else a guest that uses them up would
reach the host itself.
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
    _known: frozenset[Address] = field(factory=lambda: read_addresses() or frozenset())
    """Read at once, while there are descriptors."""
    _read_at: float = field(default=-NEVER)

    def __call__(self, address: Address) -> bool:
        """Whether the host has it."""
        now = self.clock()
        if now - self._read_at > FRESH:
            self._known, self._read_at = read_addresses() or self._known, now
        return address in self._known


def read_addresses() -> frozenset[Address] | None:
    """All of them, loopback included; None where they cannot be read."""
    try:
        routes = _ROUTES.read_text()
        interfaces = _INTERFACES.read_text() if _INTERFACES.exists() else ""
    except OSError:
        return None
    found = [ip_address(text).packed for text in _LOCAL.findall(routes)]
    found += [bytes.fromhex(line.split()[0]) for line in interfaces.splitlines()]
    return frozenset(found)
