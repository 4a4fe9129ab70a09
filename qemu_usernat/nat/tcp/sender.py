"""The sending side of the guest half: the host's bytes, until the guest has acknowledged them.

It owns the sequence space of the host's direction: what is unacknowledged (RFC 9293, 3.8), when
what was lost is repeated (RFC 6298, RFC 6675, RFC 8985), and our FIN. What is lost its
`Scoreboard` says, how much may be in flight its `CongestionControl`, and how much the guest takes
its `GuestWindow`. It does not know states, headers, or where bytes come from.

It never holds bytes that it may not send: `room` says how many the guest would take now,
and only so many are read from the host. What it retains is what is in flight.

Positions are octets since our SYN, plain integers that never wrap; our FIN occupies the
position after the last octet.
"""

from collections.abc import Callable
from typing import Protocol

from attrs import Factory, define

from qemu_usernat.nat.tcp.congestion import FLIGHT_MAXIMUM, CongestionControl
from qemu_usernat.nat.tcp.reordering import ReorderingWindow
from qemu_usernat.nat.tcp.retained import Retained
from qemu_usernat.nat.tcp.rtt import RoundTripTime
from qemu_usernat.nat.tcp.scoreboard import Scoreboard
from qemu_usernat.nat.tcp.tail_probe import TailProbe
from qemu_usernat.nat.tcp.window import GuestWindow
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import add, difference
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.packets import FIN, PSH, Buffer

RETRANSMISSIONS_MAXIMUM = 15
"""R2 of RFC 9293, 3.8.3 (at least 100 s): some nine minutes at our timeouts."""

MSS_DEFAULT = 536  # bytes; RFC 9293, 3.7.1 (MUST-15), where the guest's SYN names none
MSS_MINIMUM = 88  # bytes; Linux's floor: smaller ones serve only to cost a segment for each byte

DUPLICATE_ACKS = 3  # RFC 5681, 3.2; DupThresh of RFC 6675

HEADERS = 40  # bytes of IPv4 and TCP headers without options (RFC 6691, 2)

TAKEN_AT_ONCE = 256 * 1024
"""Octets from the host in one go, less what would not fill a segment: of 65,480, four fit."""


class Transmit(Protocol):
    """How the sender puts octets on the wire, in segments of the maximum size; `flags` are the
    last one's. The flow adds ports, ACK and window."""

    def __call__(self, position: int, payload: memoryview, flags: int) -> None: ...


NOTHING = memoryview(b"")


@define
class Sender:
    """The host's octets on their way to the guest."""

    initial_sequence: int
    maximum_segment_size: int
    """The smaller of the guest's option and our MTU less 40 (RFC 9293, 3.7.1)."""
    control: Callable[[int], CongestionControl]
    """Makes the control for that size."""
    counters: Counters
    congestion: CongestionControl = Factory(
        lambda self: self.control(self.maximum_segment_size), takes_self=True
    )
    selective: bool = False
    """Whether the guest acknowledges selectively (RFC 2018)."""
    round_trip: RoundTripTime = Factory(RoundTripTime)
    scoreboard: Scoreboard = Factory(Scoreboard)
    reordering: ReorderingWindow = Factory(ReorderingWindow)
    tail_probe: TailProbe = Factory(TailProbe)
    window: GuestWindow = Factory(GuestWindow)
    retained: Retained = Factory(Retained)

    acknowledged: int = 0
    """SND.UNA."""
    next: int = 0
    """SND.NXT: one past the last position ever sent."""
    end: int = 0
    """Octets taken from the host; all of them sent, unless the window was shrunk meanwhile."""
    fin_queued: bool = False
    data_waiting: bool = False
    """The host has bytes that the guest's window does not admit: the window must be probed."""

    retransmit_at: float = NEVER
    retransmissions: int = 0

    _duplicate_acks: int = 0
    _recovery_point: int | None = None
    """Where the repair that is going on will have ended."""
    _slow: bool = False
    """The repair began with a timeout: the window grows again meanwhile."""

    def begin(
        self,
        sequence: int,
        window: int,
        maximum_segment_size: int | None,
        window_scale: int | None,
        selective: bool,
    ) -> None:
        """The guest's SYN has come, with what it offers; None and False where it does not."""
        offered = max(maximum_segment_size or MSS_DEFAULT, MSS_MINIMUM)
        # Even, so that the checksums of many segments can be summed at once.
        self.maximum_segment_size = min(offered, self.maximum_segment_size) & ~1
        self.selective = selective
        self.congestion = self.control(self.maximum_segment_size)
        self.window.begin(sequence, window, window_scale)

    @property
    def outstanding(self) -> int:
        """Octets retained: those that the guest has not acknowledged."""
        octets = self.end - self.acknowledged
        return octets if octets > 0 else 0  # an acknowledged FIN is one ahead

    # -- from the host

    def room(self) -> int:
        """How many octets from the host the guest would take now, in one go.

        Zero rather than a silly few while more window is on its way (RFC 9293, 3.8.6.2.1).
        """
        if self.next != self.end or self.scoreboard.lost or self.scoreboard.full:
            return 0
        usable = max(0, self._limit() - self.next)
        if usable >= TAKEN_AT_ONCE:
            return TAKEN_AT_ONCE - TAKEN_AT_ONCE % self.maximum_segment_size
        if usable >= self.maximum_segment_size:
            return usable
        if self.next == self.acknowledged or usable * 2 >= self.window.largest:
            return usable
        return 0

    def _limit(self) -> int:
        """The position before which everything may be sent."""
        return min(
            self.window.edge,
            self.next + self.congestion.window - self._in_flight(),
            self.acknowledged + FLIGHT_MAXIMUM,
        )

    def _in_flight(self) -> int:
        """Octets on their way; each duplicate ACK says that a segment has left it."""
        left = self._duplicate_acks * self.maximum_segment_size
        return max(0, self.scoreboard.in_flight - left)

    def take(self, payload: Buffer, length: int) -> None:
        """Retain `length` octets from the host until they are acknowledged."""
        self.retained.append(self.end, payload, length)
        self.end += length
        self.data_waiting = False

    # -- to the guest

    def pump(self, transmit: Transmit, now: float) -> None:
        """Send what may be sent: what was lost, octets that are new, then our FIN."""
        flight = self.tail_probe.take_loss(self.acknowledged)
        if flight is not None:
            self.congestion.on_loss(flight, now)  # one like any other: RFC 8985, 7.4
        if self.next > self.acknowledged:
            self._repair(transmit, now)
        first = self.next
        if not self.scoreboard.lost:
            limit = min(self.end, self._limit())
            while self.next < limit:
                length = self._send_new(limit, transmit)
                if not length:
                    break
                self.next += length
            if self.fin_queued and self.next == self.end and self._may_send_fin():
                transmit(self.end, NOTHING, FIN)
                self.next += 1
        if self.next > first:
            self.scoreboard.sent(first, self.next, now)
            self.window.probe_at = NEVER
            if self.retransmit_at == NEVER:
                self.retransmit_at = now + self.round_trip.timeout
            self._arm_tail_probe(now)

    def _may_send_fin(self) -> bool:
        # A FIN into a closed window, with nothing else in flight, is its own probe.
        return self.window.edge > self.end or self.acknowledged == self.next

    def _send_new(self, limit: int, transmit: Transmit) -> int:
        """Send the octets from `next` on that lie in one chunk; how many, or 0 to avoid a silly
        segment at the end of the window (RFC 9293, 3.8.6.2.1)."""
        position = self.next
        start, chunk = self.retained.chunk_at(position)
        offset = position - start
        length = len(chunk) - offset
        pushed = 0
        if length >= limit - position:
            length = limit - position
            pushed = PSH
            rest = length % self.maximum_segment_size
            if limit < self.end and rest and (length > rest or position > self.acknowledged):
                length -= rest
                if not length:
                    return 0
        transmit(position, chunk[offset : offset + length], pushed)
        return length

    def _send_again(self, start: int, end: int, transmit: Transmit, now: float) -> None:
        """Repeat one segment of the octets from `start` to before `end`.

        The octets of a segment are those of one run; our FIN travels alone.
        """
        self.counters.count("tcp.retransmitted")
        if start == self.end:
            transmit(start, NOTHING, FIN)
            stop = start + 1
        else:
            position, chunk = self.retained.chunk_at(start)
            offset = start - position
            length = min(self.maximum_segment_size, len(chunk) - offset, end - start)
            stop = start + length
            transmit(start, chunk[offset : offset + length], PSH if stop == self.end else 0)
        self.scoreboard.sent_again(start, stop, now)
        if start == self.acknowledged:  # the timer watches over the first octets: RFC 6298, 5
            self.retransmit_at = now + self.round_trip.timeout

    # -- the guest's acknowledgments

    def sequence_of(self, position: int) -> int:
        """The sequence number of a position."""
        return add(self.initial_sequence, 1 + position)

    def position_of(self, acknowledgment: int) -> int:
        """The position that an acknowledgment number stands for."""
        return self.acknowledged + difference(acknowledgment, self.sequence_of(self.acknowledged))

    def on_window(self, sequence: int, position: int, window: int) -> bool:
        """The guest's window field, still unscaled; True if the window changed."""
        closed = self.window.edge <= self.acknowledged
        changed = self.window.take(sequence, position, window)
        if closed and self._slow and self.window.edge > self.acknowledged:
            # What was repeated into a closed window, as a probe, is not on its way.
            self.scoreboard.lose_first(self.maximum_segment_size)
        return changed

    def on_keepalive(self, position: int, window: int) -> None:
        """A guest's keepalive, with an old number and maybe a new window."""
        if position == self.acknowledged:
            self.window.take_late(position, window)

    def on_acknowledgment(self, position: int, now: float) -> None:
        """The guest acknowledges everything before `position`, which is beyond SND.UNA."""
        gained = position - self.acknowledged
        in_use = 2 * self.scoreboard.in_flight >= self.congestion.window
        sample = self.scoreboard.acknowledged(position, now)
        if sample is not None:
            self.round_trip.sample(sample)
        self.acknowledged = position
        self.retained.drop_before(position)
        self.retransmissions = self.window.unanswered = 0
        if position < self.next:
            self.retransmit_at = now + self.round_trip.timeout
            self._arm_tail_probe(now)
        else:
            self.retransmit_at = self.tail_probe.at = NEVER
        # A window that is not in use is not known to be good (RFC 7661, 4.4).
        if in_use and (self._recovery_point is None or self._slow):
            self.congestion.on_acknowledged(gained, self.round_trip.smoothed or 0.0, now)
        if self._recovery_point is None or position >= self._recovery_point:
            self._end_repair()
        elif not self.selective and not self._slow:
            # A partial acknowledgment names the next hole (RFC 6582, 3.2, step 3).
            arrived = gained // self.maximum_segment_size - 1
            self._duplicate_acks = max(0, self._duplicate_acks - max(0, arrived))
            self.scoreboard.lose_first(self.maximum_segment_size)

    def on_duplicate_acknowledgment(self, now: float) -> None:
        """An ACK of SND.UNA again, with nothing else in it: a segment has arrived beyond a gap."""
        self.tail_probe.on_needless(self.acknowledged)
        if self.selective or not self.in_flight:
            return  # which one, the blocks say
        self._duplicate_acks += 1
        if self._duplicate_acks == DUPLICATE_ACKS and self._recovery_point is None:
            self._begin_repair(now)
            self.scoreboard.lose_first(self.maximum_segment_size)

    def on_selective(self, position: int, edges: tuple[int, ...], now: float) -> None:
        """The blocks beside an acknowledgment of `position`, as sequence numbers: left, right, …"""
        base, origin = self.acknowledged, self.sequence_of(self.acknowledged)
        positions = [base + difference(edge, origin) for edge in edges]
        blocks = list(zip(positions[::2], positions[1::2], strict=False))
        start, end = blocks[0]
        within_second = any(left <= start and end <= right for left, right in blocks[1:2])
        if start < end and (end <= position or within_second):
            self._on_told_twice(start, end)
        for left, right in sorted(blocks):  # the newest stands first, and has overtaken nothing
            if left >= right or right > self.next:
                self.counters.count("tcp.bad_selective_acknowledgment")
            elif left > self.acknowledged:  # or an ACK that others have overtaken
                self.scoreboard.selected(left, right, now)

    def on_path_mtu(self, mtu: int) -> None:
        """Packets above `mtu` bytes do not arrive: what is under way goes again, in smaller
        segments, and that is no congestion (RFC 1191, 6.4)."""
        size = max(mtu - HEADERS, MSS_MINIMUM) & ~1
        if size < self.maximum_segment_size:
            self.maximum_segment_size = size
            self.scoreboard.lose_everything()
            self._recovery_point = self.next

    # -- loss

    @property
    def in_flight(self) -> bool:
        """Whether anything sent is not acknowledged."""
        return self.acknowledged < self.next

    def _repair(self, transmit: Transmit, now: float) -> None:
        """Repeat what is lost, as far as the congestion window goes."""
        scoreboard = self.scoreboard
        if self.selective:
            news = scoreboard.judge(self._patience(), now)
            if news and self._recovery_point is None:
                self._begin_repair(now)
        while scoreboard.lost:
            start, end = scoreboard.first_lost()
            if start >= self.window.edge:
                return  # the window was shrunk; the timer probes
            if start > self.acknowledged and self._in_flight() >= self.congestion.window:
                return  # only the first hole never waits: RFC 6675, 5, step 4.3
            self._send_again(start, min(end, self.window.edge), transmit, now)

    def _patience(self) -> float:
        """How long something may be overtaken before it counts as lost: RFC 8985, 6.2, 4."""
        scoreboard = self.scoreboard
        if not scoreboard.reordered and (
            self._recovery_point is not None
            or scoreboard.delivered > (DUPLICATE_ACKS - 1) * self.maximum_segment_size
        ):
            return 0.0
        smoothed = self.round_trip.smoothed or self.round_trip.timeout
        return self.reordering.seconds(scoreboard.smallest_round_trip, smoothed)

    def _flight_size(self) -> int:
        """What the window was used for (RFC 5681, 2): with what is lost, or beyond a gap, but
        without what went out in the place of these."""
        return min(self.next - self.acknowledged, self.congestion.window)

    def _begin_repair(self, now: float) -> None:
        self.counters.count("tcp.loss_recovery")
        self.congestion.on_loss(self._flight_size(), now)
        self._recovery_point = self.next

    def _end_repair(self) -> None:
        self._duplicate_acks = 0
        if self._recovery_point is None:
            return
        self._recovery_point = None
        self._slow = False
        self.reordering.on_recovered()

    def _on_told_twice(self, start: int, end: int) -> None:
        """The guest got something twice (RFC 2883): next time it is waited for longer."""
        self.counters.count("tcp.repeated_needlessly")
        self.tail_probe.on_needless(end)
        scoreboard = self.scoreboard
        if self.reordering.on_told_twice(
            end - start, scoreboard.repeated, self.acknowledged, self.next
        ):
            scoreboard.reordered = True

    # -- time

    def deadline(self) -> float:
        """When the first of the timers rings."""
        return min(
            self.retransmit_at,
            self.window.probe_at,
            self.tail_probe.at,
            self.scoreboard.judge_at,
        )

    def on_retransmission_timeout(self, transmit: Transmit, now: float) -> bool:
        """Nothing came back: all counts as lost, the first segment goes again, and the next
        timeout is later (RFC 6298, 5.4 to 5.6); False to give up."""
        self.retransmissions += 1
        if self.retransmissions > RETRANSMISSIONS_MAXIMUM:
            return False
        self.round_trip.back_off()
        if self.retransmissions == 1:  # and not one more of the same silence (RFC 5681, 3.1)
            self.congestion.on_timeout(self._flight_size(), now)
        if self.scoreboard.lose_everything():
            self.counters.count("tcp.reneged")
        self._recovery_point = self.next
        self._slow = True
        self._duplicate_acks = 0
        self.tail_probe.forget()
        # Into a window that has closed over it, too: then it is the probe.
        self._send_again(*self.scoreboard.first_lost(), transmit, now)
        return True

    def _arm_tail_probe(self, now: float) -> None:
        """Look after the last segments sooner than the timeout does (RFC 8985, 7.2)."""
        smoothed = self.round_trip.smoothed
        if (
            not self.selective
            or smoothed is None
            or self._recovery_point is not None
            or self.tail_probe.awaited
        ):
            self.tail_probe.at = NEVER
            return
        alone = self.next - self.acknowledged <= self.maximum_segment_size
        self.tail_probe.arm(smoothed, alone, self.retransmit_at, now)

    def on_tail_probe(self, transmit: Transmit, now: float) -> None:
        """Repeat the last segment, so that its ACK tells of those before it (RFC 8985, 7.3)."""
        self.tail_probe.at = NEVER
        scoreboard = self.scoreboard
        if scoreboard.lost or scoreboard.delivered:
            return
        if self.window.edge < self.next:
            return
        self.counters.count("tcp.tail_probe")
        start = self.end  # of our FIN, if it was sent
        if self.next <= self.end:
            start = max(
                scoreboard.last_start(),
                self.next - self.maximum_segment_size,
                self.retained.chunk_at(self.next - 1)[0],
            )
        self.tail_probe.on_sent(self.next, self._flight_size())
        self._send_again(start, self.next, transmit, now)
        self.retransmit_at = now + self.round_trip.timeout

    def on_alive(self) -> None:
        """An acceptable ACK while the window is closed: the guest lives, keep probing it."""
        self.window.unanswered = 0
        if self.window.edge <= self.acknowledged:
            self.retransmissions = 0

    def arm_probe(self, now: float) -> None:
        """See to it that a window which keeps something waiting is asked for (3.8.6.1)."""
        stuck = self.data_waiting or self.next < self.end
        waits = stuck and not self.in_flight and not self.room()
        self.window.arm(waits, self.round_trip.timeout, now)

    def on_probe_sent(self, now: float) -> bool:
        """The flow has probed. False when nothing ever answered."""
        return self.window.on_probe_sent(self.round_trip.timeout, now)
