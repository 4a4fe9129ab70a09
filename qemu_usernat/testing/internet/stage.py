"""What is behind the gateway at this moment: what the test has defined, and what has happened.

The test's face (`internet`) fills it, and each network's `world` plays on it. It outlives every
server: one that is stopped and started again finds the same internet.
"""

from ipaddress import IPv4Network

import trio
from attrs import define, field

from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.testing.internet.hosts import InternetHost
from qemu_usernat.testing.internet.names import Names
from qemu_usernat.testing.internet.records import HandlerFailure, Peer, Unexpected
from qemu_usernat.testing.internet.timing import Timeline


@define(eq=False)
class Stage:
    """Hosts, names, time, and the nursery in which handlers run."""

    names: Names
    timeline: Timeline = field(factory=Timeline)
    hosts: dict[Address, InternetHost] = field(factory=dict)
    unexpected: list[Unexpected] = field(factory=list)
    unusual: list[Unexpected] = field(factory=list)
    failures: list[HandlerFailure] = field(factory=list)
    dns_latency: float = 0.0
    nursery: trio.Nursery | None = None
    """None while the internet does not run."""
    subnets: set[IPv4Network] = field(factory=set)
    """Those of the networks that were given a world: no host has an address in them."""
    gateways: set[str] = field(factory=set)
    """Theirs."""

    guests: dict[str, str] = field(factory=dict)
    """Addresses to the names of the guests that were heard from them last."""

    def on_unexpected(
        self, protocol: str, destination: Address, port: int | None, source: Peer
    ) -> None:
        """A guest reaches for what nobody has defined."""
        self.note(self.unexpected, protocol, destination, port, source)

    def note(
        self,
        notes: list[Unexpected],
        protocol: str,
        destination: Address,
        port: int | None,
        source: Peer,
    ) -> None:
        """The same, of what may be another list."""
        host = self.hosts.get(destination)
        name = host.name if host is not None else self.names.name_of(destination)
        text = format_address(destination)
        now = trio.current_time()
        guest = self.guests.get(source[0], "")
        notes.append(Unexpected(protocol, text, port, name, guest, source, now))
