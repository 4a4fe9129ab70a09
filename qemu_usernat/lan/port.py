"""A guest's place on the segment: what is queued for it, and what its link said last.

The port owns the bounded queue towards the guest; the link that empties it gives it
`transmit`. Everybody who sends to a guest appends to `outbox` and accounts in `queued`.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import define, field

from qemu_usernat.primitives.addresses import MacAddress
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.packets import Buffer

KIB = 1024

STALLED_AT = 512 * KIB
"""Bytes queued from which flows stop reading their host sockets, of one port."""

QUEUE_LIMIT = 2048 * KIB
"""Bytes queued from which frames are dropped, of one port: what nobody can hold back, as UDP and
echo."""

QUEUES_LIMIT = 128 * 1024 * KIB
"""The same of all ports: where there are many, each has its share."""


def _nowhere() -> None:
    """A port whose link has gone sends nothing."""


@define(eq=False)
class Port:
    """One attachment to the segment."""

    peer: ClassVar[str] = "QEMU"
    """Who is at the other end of the stream."""

    name: str
    counters: Counters
    outbox: list[Buffer] = field(factory=list)
    """Frames as the stream carries them, each with its length in front, in pieces."""
    queued: int = 0
    """Bytes in `outbox`."""
    limit: int = QUEUE_LIMIT
    """Bytes queued from which frames are dropped, and `stalled_at` from which flows stop."""
    stalled_at: int = STALLED_AT
    shown_mtu: int = 1500
    """Bytes of IP packet that this guest has shown it can take: a network card may refuse the MTU
    that DHCP tells. Ethernet's own (RFC 894) until it shows more."""
    transmit: Callable[[], None] = _nowhere
    """Set by the link: write as much of `outbox` as the guest takes now."""
    waiting: set[Any] = field(factory=set)
    """Flows that stopped reading because this port is stalled."""
    addresses: Mapping[MacAddress, float] = field(factory=dict)
    """MAC addresses learned here, and when each was heard; the longest silent in front."""
    first: MacAddress = b""
    """The one that was shown first, of these."""
    familiar: bytes = b""
    """Destination and source of the last frame for the gateway: the next is nearly always alike."""
    speaker: MacAddress = b""
    """That source."""

    def share(self, ports: int) -> None:
        """There are so many ports, and bytes for all of them."""
        self.limit = min(QUEUE_LIMIT, QUEUES_LIMIT // ports)
        self.stalled_at = min(STALLED_AT, self.limit // 4)

    def send(self, *frames: Buffer) -> None:
        """Queue one frame, or several that are of no use without each other; drop them all where
        the queue is full."""
        if self.queued >= self.limit:
            self.counters.count("link.queue_full", len(frames))
            return
        self.outbox += frames
        self.queued += sum(map(len, frames))

    def stalled(self) -> bool:
        """Whether the guest has stopped taking frames; tries it before saying so."""
        if self.queued >= self.stalled_at:
            self.transmit()
            return self.queued >= self.stalled_at
        return False


def _nothing_crosses(frame: memoryview) -> bool:
    """Nobody has said yet what does."""
    return False


def _nobody_ends(reason: str) -> None:
    """There is no link."""


def _nobody_cares() -> None:
    """There is no link."""


@define(eq=False)
class JoinPort(Port):
    """The attachment of another server, with guests of its own behind it."""

    peer: ClassVar[str] = "the other server"

    crosses: Callable[[memoryview], bool] = _nothing_crosses
    """Whether a frame is for the other side at all."""
    accepted: bool = False
    """Whether the other side has said who it is, and fits."""
    confirmed: bool = False
    """Whether it has spoken again: so it has nothing against us."""
    end: Callable[[str], None] = _nobody_ends
    """Set with the link: it is no more wanted, and why."""
    welcome: Callable[[], None] = _nobody_cares
    """Set with the link: it is confirmed."""

    def send(self, *frames: Buffer) -> None:
        """As to a guest, but for what is a gateway's affair."""
        if self.accepted and all(self.crosses(memoryview(frame)[4:]) for frame in frames):
            super().send(*frames)

    def say(self, frame: bytes) -> None:
        """A word to the other server itself, for which there is room however full the queue is."""
        if self.queued < 2 * self.limit:
            self.outbox.append(frame)
            self.queued += len(frame)
        else:
            self.counters.count("link.queue_full")
        if not self.accepted:  # it is not on the segment, which would send it
            self.transmit()
