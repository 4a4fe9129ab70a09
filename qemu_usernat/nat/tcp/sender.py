"""The sending side of the guest half: the host's bytes, until the guest has acknowledged them.

It owns the sequence space of the host's direction: what is unacknowledged (RFC 9293,
3.8), the guest's window and its probing (3.8.6), loss and its repair (RFC 6298, RFC 5681
section 3.2, RFC 6582), and our FIN. It does not know states, headers, or where bytes come
from.

It never holds bytes that it may not send: `room` says how many the guest would take now,
and only so many are read from the host. What it retains is what is in flight.

Positions are octets since our SYN, plain integers that never wrap; our FIN occupies the
position after the last octet.
"""

from collections import deque
from typing import Protocol

from attrs import Factory, define, field

from qemu_usernat.nat.tcp.congestion import DUPLICATE_ACKS, Reno
from qemu_usernat.nat.tcp.rtt import RTO_MAXIMUM, RoundTripTime
from qemu_usernat.primitives.sequence import add, difference
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.packets import FIN, PSH, Buffer

RETRANSMISSIONS_MAXIMUM = 15
"""R2 of RFC 9293, 3.8.3 (at least 100 s): some nine minutes at our timeouts."""

JOINED_BELOW = 4096
"""Octets below which neighbours are retained as one: a server that writes octet by octet costs
neither an object for each, nor a segment for each when they are repeated."""


class Transmit(Protocol):
    """How the sender puts a segment on the wire; the flow adds ports, ACK and window."""

    def __call__(self, position: int, payload: Buffer, flags: int) -> None: ...


@define
class Sender:
    """The host's octets on their way to the guest."""

    initial_sequence: int
    maximum_segment_size: int
    """The smaller of the guest's option and our MTU less 40 (RFC 9293, 3.7.1)."""
    scale: int
    """Shift of the windows that the guest sends; 0 where it did not offer one."""
    round_trip: RoundTripTime = Factory(RoundTripTime)
    congestion: Reno = Factory(lambda self: Reno(self.maximum_segment_size), takes_self=True)

    acknowledged: int = 0
    """SND.UNA."""
    next: int = 0
    """SND.NXT; after a timeout it is behind `highest`."""
    highest: int = 0
    """One past the last position ever sent."""
    end: int = 0
    """Octets taken from the host; all of them sent, but for a rewound or shrunk window."""
    window_edge: int = 0
    """SND.UNA + SND.WND: may move back, for guests do shrink their windows."""
    largest_window: int = 0
    fin_queued: bool = False
    data_waiting: bool = False
    """The host has bytes that the guest's window does not admit: the window must be probed."""

    retransmit_at: float = NEVER
    probe_at: float = NEVER
    retransmissions: int = 0
    probes: int = 0

    _chunks: deque[tuple[int, memoryview]] = field(factory=deque)
    _window_sequence: int = 0
    """SND.WL1."""
    _window_acknowledgment: int = 0
    """SND.WL2."""
    _duplicate_acks: int = 0
    _recovery_point: int | None = None
    _repairing: bool = False
    """Between duplicate ACKs and the recovery point: partial acknowledgments name holes."""
    _timed_position: int | None = None
    _timed_at: float = 0.0

    # -- from the host

    def room(self) -> int:
        """How many octets from the host the guest would take now, in one go.

        Zero rather than a silly few while more window is on its way (RFC 9293, 3.8.6.2.1).
        """
        if self.fin_queued or self.next != self.end:
            return 0
        usable = min(self.window_edge, self.acknowledged + self.congestion.window) - self.next
        if usable >= self.maximum_segment_size:
            return usable
        if usable <= 0:
            return 0
        if self.next == self.acknowledged or usable * 2 >= self.largest_window:
            return usable
        return 0

    def take(self, payload: Buffer, length: int) -> None:
        """Retain `length` octets from the host until they are acknowledged."""
        chunks = self._chunks
        if length < JOINED_BELOW and chunks and len(chunks[-1][1]) < JOINED_BELOW:
            start, last = chunks.pop()
            chunks.append((start, memoryview(b"".join((last, payload)))))
        else:
            chunks.append((self.end, memoryview(payload)))
        self.end += length
        self.data_waiting = False

    # -- to the guest

    def pump(self, transmit: Transmit, now: float) -> None:
        """Send what may be sent: octets from `next` on, then our FIN."""
        limit = min(self.end, self.window_edge, self.acknowledged + self.congestion.window)
        while self.next < limit:
            length = self._send_one(self.next, limit, transmit)
            if not length:
                break
            if self._timed_position is None and self.next >= self.highest:
                self._timed_position, self._timed_at = self.next + length, now
            self._advance(length, now)
        if self.fin_queued and self.next == self.end and self._may_send_fin():
            transmit(self.end, b"", FIN)
            self._advance(1, now)

    def _may_send_fin(self) -> bool:
        # A FIN into a closed window, with nothing else in flight, is its own probe.
        return self.window_edge > self.end or self.acknowledged == self.next

    def _advance(self, length: int, now: float) -> None:
        self.next += length
        if self.next > self.highest:
            self.highest = self.next
        if self.retransmit_at == NEVER:
            self.retransmit_at = now + self.round_trip.timeout
        self.probe_at = NEVER

    def _send_one(self, position: int, limit: int, transmit: Transmit) -> int:
        """Send one segment that starts at `position`; its length, or 0 to avoid a silly one."""
        start, chunk = self._chunk_at(position)
        offset = position - start
        length = min(self.maximum_segment_size, len(chunk) - offset, limit - position)
        short_of_window = length == limit - position and limit < self.end
        if short_of_window and length < self.maximum_segment_size and position > self.acknowledged:
            return 0
        stop = position + length
        payload = chunk if length == len(chunk) else chunk[offset : offset + length]
        transmit(position, payload, PSH if stop == self.end or stop == limit else 0)
        return length

    def _chunk_at(self, position: int) -> tuple[int, memoryview]:
        """The retained chunk that holds `position`; nearly always the last."""
        oldest = position == self.acknowledged
        for chunk in self._chunks if oldest else reversed(self._chunks):
            if chunk[0] <= position < chunk[0] + len(chunk[1]):
                return chunk
        raise LookupError(position)

    # -- the guest's acknowledgments

    def sequence_of(self, position: int) -> int:
        """The sequence number of a position."""
        return add(self.initial_sequence, 1 + position)

    def position_of(self, acknowledgment: int) -> int:
        """The position that an acknowledgment number stands for."""
        return self.acknowledged + difference(acknowledgment, self.sequence_of(self.acknowledged))

    def on_window(self, sequence: int, position: int, window: int, *, first: bool = False) -> bool:
        """The guest's window field, still unscaled; True if the window changed.

        Only from a segment that is not older than the last one used (RFC 9293, 3.10.7.4,
        fifth: SND.WL1 and SND.WL2).
        """
        if not first:
            newer = difference(sequence, self._window_sequence)
            if newer < 0 or (newer == 0 and position < self._window_acknowledgment):
                return False
        self._window_sequence, self._window_acknowledgment = sequence, position
        size = window if first else window << self.scale  # RFC 7323, 2.2: a SYN's is not scaled
        edge = position + size
        changed = edge != self.window_edge
        self.window_edge = edge
        if size > self.largest_window:
            self.largest_window = size
        return changed

    def on_acknowledgment(self, position: int, transmit: Transmit, now: float) -> None:
        """The guest acknowledges everything before `position`, which is beyond SND.UNA."""
        gained = position - self.acknowledged
        self.acknowledged = position
        self.next = max(self.next, position)
        chunks = self._chunks
        while chunks and chunks[0][0] + len(chunks[0][1]) <= position:
            chunks.popleft()
        self.retransmissions = self.probes = self._duplicate_acks = 0
        if self._timed_position is not None and position >= self._timed_position:
            self.round_trip.sample(now - self._timed_at)
            self._timed_position = None
        self.retransmit_at = NEVER
        if self.acknowledged < self.highest:
            self.retransmit_at = now + self.round_trip.timeout
        recovered = self._recovery_point is not None and position >= self._recovery_point
        if not self._repairing:
            self.congestion.on_acknowledged(gained)
        elif recovered:
            self.congestion.on_recovered(self.highest - position)
        else:
            self.congestion.on_partial(gained)
            self._retransmit_first(transmit)
        if recovered:
            self._recovery_point = None
            self._repairing = False

    def on_duplicate_acknowledgment(self, transmit: Transmit) -> bool:
        """An ACK of SND.UNA again; the third one repeats the first segment. True if it did."""
        self._duplicate_acks += 1
        if self._repairing:
            self.congestion.on_duplicate()
        if self._duplicate_acks != DUPLICATE_ACKS or self._recovery_point is not None:
            return False
        self.congestion.on_loss(self.highest - self.acknowledged)
        self._repairing = True
        self._recovery_point = self.highest
        self._retransmit_first(transmit)
        return True

    def _retransmit_first(self, transmit: Transmit) -> None:
        self._timed_position = None  # Karn: RFC 6298, 3
        if self.acknowledged < self.end:
            self._send_one(self.acknowledged, self.end, transmit)
        elif self.fin_queued and self.highest > self.end:
            transmit(self.end, b"", FIN)

    def on_alive(self) -> None:
        """An acceptable ACK while the window is closed: the guest lives, keep probing it."""
        self.probes = 0
        if self.window_edge <= self.acknowledged:
            self.retransmissions = 0

    # -- time

    @property
    def in_flight(self) -> bool:
        """Whether anything sent is not acknowledged."""
        return self.acknowledged < self.highest

    def on_retransmission_timeout(self, transmit: Transmit, now: float) -> bool:
        """Go back to SND.UNA and start again slowly (RFC 6298, 5.4 to 5.6); False to give up."""
        self.retransmissions += 1
        if self.retransmissions > RETRANSMISSIONS_MAXIMUM:
            return False
        self.round_trip.back_off()
        self._timed_position = None
        if self.retransmissions == 1:  # and not one more of the same silence (RFC 5681, 3.1)
            self.congestion.on_timeout(self.next - self.acknowledged)
        self._recovery_point = self.highest
        self._repairing = False
        self._duplicate_acks = 0
        self.next = self.acknowledged
        self.retransmit_at = now + self.round_trip.timeout
        if self.window_edge <= self.acknowledged:
            # The window closed over what is in flight: the first segment is the probe.
            self._retransmit_first(transmit)
        else:
            self.pump(transmit, now)
        return True

    def arm_probe(self, now: float) -> None:
        """Start the persist timer if the guest's window keeps something waiting (3.8.6.1)."""
        stuck = self.data_waiting or self.next < self.end
        if not stuck or self.in_flight or self.room():
            self.probe_at = NEVER
        elif self.probe_at == NEVER:
            self.probe_at = now + min(self.round_trip.timeout * 2**self.probes, RTO_MAXIMUM)

    def on_probe_sent(self, now: float) -> bool:
        """The flow has probed; later the next time. False when nothing ever answered."""
        self.probes += 1
        self.probe_at = now + min(self.round_trip.timeout * 2**self.probes, RTO_MAXIMUM)
        return self.probes <= RETRANSMISSIONS_MAXIMUM
