"""A guest's place on the segment: what is queued for it, and what its link said last.

The port owns the bounded queue towards the guest; the link that empties it gives it
`transmit`. Everybody who sends to a guest appends to `outbox` and accounts in `queued`.
"""

from collections.abc import Callable
from typing import Any

from attrs import define, field

from qemu_usernat.primitives.addresses import MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.packets import Buffer

KIB = 1024

STALLED_AT = 512 * KIB
"""Bytes queued from which flows stop reading their host sockets."""

QUEUE_LIMIT = 2048 * KIB
"""Bytes queued from which frames are dropped: what nobody can hold back, as UDP and echo."""


def _nowhere() -> None:
    """A port whose link has gone sends nothing."""


@define(eq=False)
class Port:
    """One attachment to the segment."""

    name: str
    counters: Counters
    outbox: list[Buffer] = field(factory=list)
    """Frames as the stream carries them, each with its length in front, in pieces."""
    queued: int = 0
    """Bytes in `outbox`."""
    shown_mtu: int = 1500
    """Bytes of IP packet that this guest has shown it can take: a network card may refuse the MTU
    that DHCP tells. Ethernet's own (RFC 894) until it shows more."""
    transmit: Callable[[], None] = _nowhere
    """Set by the link: write as much of `outbox` as the guest takes now."""
    waiting: set[Any] = field(factory=set)
    """Flows that stopped reading because this port is stalled."""
    addresses: dict[MacAddress, None] = field(factory=dict)
    """MAC addresses learned here, oldest first."""
    familiar: bytes = b""
    """Destination and source of the last frame for the gateway: the next is nearly always alike."""
    speaker: MacAddress = b""
    """That source."""

    def send(self, *frames: Buffer) -> None:
        """Queue one frame, or several that are of no use without each other; drop them all where
        the queue is full."""
        if self.queued >= QUEUE_LIMIT:
            self.counters.count("link.queue_full", len(frames))
            return
        self.outbox += frames
        self.queued += sum(map(len, frames))

    def stalled(self) -> bool:
        """Whether the guest has stopped taking frames; tries it before saying so."""
        if self.queued >= STALLED_AT:
            self.transmit()
            return self.queued >= STALLED_AT
        return False
