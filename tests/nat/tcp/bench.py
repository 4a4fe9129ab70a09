"""A sender alone on a bench: what it transmits is kept, and a guest acknowledges by hand."""

import random

from attrs import define, field

from qemu_usernat.nat.tcp.congestion import CONTROLS
from qemu_usernat.nat.tcp.sender import Sender
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.packets import PSH

MSS = 1000
STREAM = random.Random(6298).randbytes(1 << 20)


@define
class Bench:
    """A sender, what it has transmitted, and a guest that acknowledges by hand."""

    sender: Sender
    now: float = 100.0
    sent: list[tuple[int, bytes, int]] = field(factory=list)
    ack_number: int = 0

    def transmit(self, position: int, payload: memoryview, flags: int) -> None:
        for start in range(0, len(payload) or 1, MSS):
            last = start + MSS >= len(payload)
            piece = bytes(payload[start : start + MSS])
            self.sent.append((position + start, piece, flags if last else flags & ~PSH))

    def host_says(self, length: int) -> int:
        """At most `length` octets, as many as there is room for."""
        length = min(length, self.sender.room())
        if length:
            start = self.sender.end
            self.sender.take(STREAM[start : start + length], length)
            self.pump()
        return length

    def pump(self) -> None:
        self.sender.pump(self.transmit, self.now)

    def acknowledges(self, position: int, window: int, *blocks: tuple[int, int]) -> None:
        """A segment of the guest, in order, as the flow hands it on; then the turn's pump."""
        sender = self.sender
        if position > sender.acknowledged:
            sender.on_window(1, position, window)
            sender.on_acknowledgment(position, self.now)
        else:
            if not sender.on_window(1, position, window):
                sender.on_duplicate_acknowledgment(self.now)
            sender.on_alive()
        if blocks:
            edges = tuple(sender.sequence_of(edge) for block in blocks for edge in block)
            sender.on_selective(position, edges, self.now)
        self.pump()
        sender.arm_probe(self.now)

    def times_out(self) -> bool:
        assert self.sender.retransmit_at != NEVER
        self.now = self.sender.retransmit_at
        return self.sender.on_retransmission_timeout(self.transmit, self.now)

    def lengths(self) -> list[tuple[int, int]]:
        """(position, length) of everything sent since the last look."""
        seen = [(position, len(payload)) for position, payload, _ in self.sent]
        self.sent.clear()
        return seen


def bench(
    window: int = 10 * MSS,
    isn: int = 0,
    scale: int = 0,
    *,
    selective: bool = False,
    congestion: str = "none",
) -> Bench:
    sender = Sender(isn, MSS, CONTROLS[congestion], Counters())
    sender.begin(0, window, MSS, scale, selective)
    return Bench(sender)
