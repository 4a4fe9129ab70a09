"""A correct guest, modelled from RFC 9293 alone, with positions that never wrap.

It checks what it is sent as it takes it in: each octet in its place, no segment beyond its size,
no acknowledgment of what was never sent.
"""

from attrs import define, field

from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN
from tests.nat.tcp.conversation import Segment
from tests.nat.tcp.machinery import FROM_GUEST, FROM_HOST

GUEST_TIMEOUT = 1.0  # seconds between the guest's repetitions


@define(eq=False)
class Guest:
    """A correct TCP of the guest's side, as simple as correctness allows."""

    mss: int
    """What it takes at most in one segment."""
    scale: int | None
    capacity: int
    our_mss: int
    selective: bool
    wire: list[Segment] = field(factory=list)
    """Segments on their way to the flow."""
    open: bool = False
    reset: bool = False

    # its stream to the server
    written: int = 0
    closing: bool = False
    acknowledged: int = 0
    next: int = 0
    highest: int = 0
    edge: int = 0
    cut: int = 1460
    repeat_at: float = 0.0
    repetitions: int = 0
    told: list[tuple[int, int]] = field(factory=list)
    """Blocks that were acknowledged selectively: never sent again."""

    # the server's stream
    received: int = 0
    unread: int = 0
    early: list[tuple[int, int]] = field(factory=list)
    """What stands beyond gaps, (start, end), in order and merged."""
    came_twice: tuple[int, int] | None = None
    finished: bool = False
    offered: int = 0
    """The furthest right edge that it has ever offered."""
    _window_of: tuple[int, int] = (-1, -1)

    @property
    def window(self) -> int:
        """What its field can say of the room that it has."""
        if self.scale is None or not self.open:
            return min(self.capacity, 0xFFFF)
        room = max(0, self.capacity - self.unread)
        return min(room >> self.scale, 0xFFFF) << self.scale

    def emit(self, flags: int, at: int, payload: bytes = b"") -> None:
        window = self.window
        ack = self.received + self.finished
        if flags & (SYN | RST) == 0:
            self.offered = max(self.offered, self.received + window)
        self.wire.append(Segment(flags, at, ack, window, payload, b"", self.blocks()))

    def blocks(self) -> tuple[tuple[int, int], ...]:
        """What came twice, then what stands beyond gaps (RFC 2018, RFC 2883)."""
        if not self.selective:
            return ()
        found = [self.came_twice] if self.came_twice else []
        self.came_twice = None
        return tuple((found + self.early)[:4])

    def sends_syn(self, now: float) -> None:
        self.offered = self.window
        self.repeat_at = now + GUEST_TIMEOUT
        self.wire.append(Segment(SYN, -1, 0, self.window))

    def sends_ack(self) -> None:
        if self.open and not self.reset:
            self.emit(ACK, self.highest)

    def transmits(self, now: float) -> None:
        """All that the window admits, in pieces of `cut`; then the FIN."""
        if not self.open or self.reset:
            return
        while self.next < self.written and self.next < self.edge:
            self._send_from(self.next, now)
        if self.closing and self.next == self.written and self.next <= self.edge:
            self._send_from(self.next, now)

    def _send_from(self, start: int, now: float) -> None:
        # Not so small that it would take a thousand segments to say what is said.
        cut = max(self.cut, (self.written - self.acknowledged) // 50)
        size = min(cut, self.our_mss, self.written - start, max(1, self.edge - start))
        for block, _ in self.told:
            if block > start:
                size = min(size, block - start)
        stop = start + size
        last = self.closing and stop == self.written
        flags = ACK | (PSH if stop == self.written else 0) | (FIN if last else 0)
        if size or last:
            self.emit(flags, start, FROM_GUEST[start:stop])
        self.next = max(self.next, stop + last)
        self.highest = max(self.highest, self.next)
        if self.repeat_at == float("inf"):
            self.repeat_at = now + GUEST_TIMEOUT

    @property
    def wants(self) -> bool:
        """Whether it waits for an answer, to its SYN, to octets, or to a closed window."""
        owed = self.written + self.closing > self.acknowledged
        return not self.reset and (not self.open or owed)

    def on_time(self, now: float) -> None:
        if not self.wants or now < self.repeat_at:
            return
        self.repeat_at = now + GUEST_TIMEOUT
        self.repetitions += 1
        if not self.open:
            self.sends_syn(now)
        elif self.acknowledged < self.highest or self.repetitions % 2:
            self._send_from(self.acknowledged, now)  # perhaps an octet into a closed window
        else:
            self.emit(ACK, self.acknowledged - 1)

    def on_segment(self, segment: Segment, now: float) -> None:
        if segment.flags & RST:
            self.reset = True
            return
        if self.reset:
            self.wire.append(Segment(RST, segment.ack, 0, 0))
            return
        if segment.flags & SYN:
            assert segment.ack == 0
            if not self.open:
                self.open = True
                self.edge = segment.window
                self.repeat_at = float("inf")
            self.sends_ack()
            return
        if not self.open:
            return
        assert segment.flags & ACK
        self._on_ack(segment, now)
        if segment.payload or segment.flags & FIN or segment.at < self.received:
            self._on_octets(segment)
            self.sends_ack()

    def _on_ack(self, segment: Segment, now: float) -> None:
        assert segment.ack <= self.highest, "an acknowledgment of what was never sent"
        for start, end in segment.selective:
            if start > segment.ack:
                self.told = [block for block in self.told if block[0] < start or end < block[1]]
                self.told.append((start, end))
        self.told = [block for block in self.told if block[1] > max(segment.ack, self.acknowledged)]
        if segment.ack > self.acknowledged:
            self.acknowledged = segment.ack
            self.next = max(self.next, segment.ack)
            self.repeat_at = now + GUEST_TIMEOUT if self.wants else float("inf")
        if segment.ack == self.acknowledged and (segment.at, segment.ack) >= self._window_of:
            self._window_of = segment.at, segment.ack
            self.edge = segment.ack + segment.window
            if self.wants and self.repeat_at == float("inf"):
                self.repeat_at = now + GUEST_TIMEOUT

    def _on_octets(self, segment: Segment) -> None:
        """What there is no room for is thrown away: only after the window was shrunk."""
        assert len(segment.payload) <= self.mss
        assert segment.payload == FROM_HOST[segment.at : segment.end], "not the server's octets"
        room = self.received + max(0, self.capacity - self.unread)
        if segment.payload and segment.end <= self.received:
            self.came_twice = (segment.at, segment.end)
        self._keep(segment.at, min(segment.end, room))
        if self.early and self.early[0][0] <= self.received:
            _, end = self.early.pop(0)
            self.unread += max(0, end - self.received)
            self.received = max(self.received, end)
        if segment.flags & FIN and segment.end == self.received:
            self.finished = True

    def _keep(self, start: int, end: int) -> None:
        if start < end:
            apart = [block for block in self.early if block[1] < start or end < block[0]]
            touching = [block for block in self.early if block not in apart]
            start = min(start, *(block[0] for block in touching), start)
            end = max(end, *(block[1] for block in touching), end)
            self.early = sorted([*apart, (start, end)])
