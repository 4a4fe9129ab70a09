"""What the state machines share: streams, a socket with troubles, and what holds of any flow.

Nothing here draws anything: a machine decides what happens, and asks here whether it was right.
"""

import random
from collections.abc import Sequence

from attrs import define, field

from qemu_usernat.nat.tcp.congestion import FLIGHT_MAXIMUM
from qemu_usernat.nat.tcp.flow import SYN_RETRANSMISSIONS, TcpFlow
from qemu_usernat.nat.tcp.receiver import CAPACITY_MAXIMUM, OUT_OF_ORDER_RUNS, ROUNDING_ROOM
from qemu_usernat.nat.tcp.retained import JOINED_BELOW
from qemu_usernat.nat.tcp.rtt import RTO_MAXIMUM
from qemu_usernat.nat.tcp.scoreboard import DELIVERED, IN_FLIGHT, LOST
from qemu_usernat.nat.tcp.states import GUEST_GONE, GuestState
from qemu_usernat.wire.packets import RST, SYN, Buffer
from tests.nat.tcp.conversation import Line, Segment, Socket

_RANDOM = random.Random(5961)
FROM_GUEST = _RANDOM.randbytes(1 << 22)
FROM_HOST = _RANDOM.randbytes(1 << 22)
"""The two streams: without a period, so that an octet in the wrong place is seen."""

ROUND_TRIP = 0.01
"""Seconds of a healed wire. Were it none, a thousand rounds would go by before any timer rings."""

R2 = 100.0  # seconds; RFC 9293, 3.8.3: nobody is given up sooner
CALLS_UNHEARD = 8
"""Nor before so many segments, at least, had no answer: a SYN eight, nine keepalives, fifteen
repetitions."""
ACK_DELAY_MAXIMUM = 0.5  # seconds; RFC 9293, 3.8.6.3

CALLS = ("send", "shutdown", "watch")
"""The calls of a host's socket that can fail."""


@define(eq=False)
class TroubledSocket(Socket):
    """The socket of the conversations, where any call may fail: then the socket is broken."""

    failing: set[str] = field(factory=set)
    """Of `CALLS`, those that fail when they are made."""
    _touched: bool = False
    """The flow is to be flushed once more."""

    def send(self, buffers: list[Buffer], now: float) -> int:
        if "send" in self.failing:
            self.broken = True
        if self.broken:  # what the server said before is still there, and is said first
            while self.flow.room() > 0 and self.incoming:
                self._read(now)
        return super().send(buffers, now)

    def shutdown(self) -> None:
        if "shutdown" in self.failing:
            self.broken = self.shut_fails = True
        super().shutdown()

    def watch(self, read: bool, write: bool, now: float) -> None:
        super().watch(read, write, now)
        if "watch" in self.failing:
            self.broken = self._touched = True
            self.flow.on_host_failed(None, now)

    @property
    def ended_in_order(self) -> bool:
        """Whether both FINs have gone through it."""
        return self.shut and self._eof_read

    def ready(self) -> bool:
        return self._touched or super().ready()

    def report(self, now: float) -> None:
        if self._touched:
            self._touched = False
        else:
            super().report(now)

    def _read(self, now: float) -> None:
        octets = bytes(self.incoming[: self.flow.room()])
        del self.incoming[: len(octets)]
        self.flow.on_host_data(octets, len(octets), now)


@define(eq=False)
class WatchedLine(Line):
    """The line of the conversations, which knows the flow: not one octet of window is taken back.

    But by a queue that is full beyond its capacity, of octets that came one by one: there what
    the scale cannot express is not given away.
    """

    flow: TcpFlow | None = None
    was_reset: bool = False
    """By the flow, or by whoever is on the other side."""

    def check_farewell(self) -> None:
        """Whoever is reset is told so."""
        if self.flow is not None and self.flow.guest_state is GuestState.RESET:
            told = any(segment.flags & RST for segment in self.segments)
            self.was_reset = self.was_reset or told or bool(self.refusals)
            assert self.was_reset, "a connection forgotten without a word"

    def _check_promises(self, segment: Segment, unit: int) -> None:
        shown = self.edge
        super()._check_promises(segment, unit)
        if self.flow is not None and not segment.flags & SYN:
            receiver = self.flow.receiver
            wanted = receiver.position + receiver.capacity - receiver.queued
            full = shown + unit > wanted + ROUNDING_ROOM
            assert segment.ack + segment.window >= shown or full, "window taken back"


def promised(flow: TcpFlow, line: Line, segment: Segment) -> int:
    """How far the flow will have the other's octets, when it has heard this segment."""
    receiver, sender = flow.receiver, flow.sender
    if (
        flow.guest_state is not GuestState.ESTABLISHED
        or segment.flags & (SYN | RST)
        or segment.at > receiver.position
        or segment.end > line.edge
        or segment.ack < sender.acknowledged - 0xFFFF  # RFC 5961, 5.2: too old to be believed
    ):
        return 0
    return segment.end


def check_gave_up(flow: TcpFlow, silence: float, unheard: int) -> None:
    """Whoever is given up was silent for long enough, in seconds, to enough segments."""
    if flow.sender.retransmissions > SYN_RETRANSMISSIONS:
        return  # a guest may repeat its SYN for ever while none of our answers arrives
    assert silence >= R2
    assert unheard >= CALLS_UNHEARD, "given up without having been asked"


def check_memory(flow: TcpFlow) -> None:
    """What a flow keeps is no more than the windows let it be sent."""
    receiver = flow.receiver
    ends = [start + len(octets) for start, octets in receiver.out_of_order]
    starts = [start for start, _ in receiver.out_of_order]
    held = receiver.queued + sum(ends) - sum(starts)
    assert held <= CAPACITY_MAXIMUM + ROUNDING_ROOM
    assert len(starts) <= OUT_OF_ORDER_RUNS
    _check_order([receiver.position, *ends], [*starts, max(receiver.right_edge, receiver.position)])

    sender = flow.sender
    window = min(max(sender.window.largest, 1), FLIGHT_MAXIMUM)
    assert sender.end - sender.acknowledged <= window
    chunks = sender.retained.chunks
    retained = sum(len(chunk) for _, chunk in chunks)
    assert not chunks or chunks[0][0] + len(chunks[0][1]) > sender.acknowledged, "not let go"
    assert retained <= 2 * window + JOINED_BELOW
    assert len(chunks) <= 2 * (retained // JOINED_BELOW) + 2
    _check_scoreboard(flow, window)


def _check_order(ends: Sequence[int], starts: Sequence[int]) -> None:
    assert all(end <= start for end, start in zip(ends, starts, strict=True))


def _check_scoreboard(flow: TcpFlow, window: int) -> None:
    """Each octet in flight has one fate, and the sums are those of the runs."""
    sender, scoreboard = flow.sender, flow.sender.scoreboard
    runs = scoreboard._runs
    edges = [sender.acknowledged, *(run.end for run in runs)]
    assert [run.start for run in runs] == edges[:-1], "a hole"
    assert edges[-1] == sender.next
    assert all(run.start < run.end for run in runs)
    sums = {IN_FLIGHT: 0, DELIVERED: 0, LOST: 0}
    for run in runs:
        sums[run.fate] += run.end - run.start
    assert sums == {
        IN_FLIGHT: scoreboard.in_flight,
        DELIVERED: scoreboard.delivered,
        LOST: scoreboard.lost,
    }
    # Each octet was sent, sent again, and perhaps probed for; what is judged is forgotten.
    octets = sum(sent.end - sent.start for sent in scoreboard._transmissions)
    assert octets <= 4 * (window + 1), "transmissions that nobody waits for"


def check_deadline(flow: TcpFlow, server: Socket, line: Line, sent: int, now: float) -> None:
    """Whatever is owed has a deadline, and it is near; `sent` is one past the last position."""
    if flow.finished:
        return
    deadline, soon = flow.deadline(), now + RTO_MAXIMUM
    if flow.guest_state in GUEST_GONE:
        assert deadline < float("inf")
        return
    in_flight = flow.sender.acknowledged < sent
    waiting = (
        server.incoming
        and not server.reading
        and not line.is_stalled
        and flow.guest_state is GuestState.ESTABLISHED
    )
    unanswered = flow.guest_state in (GuestState.SYN_SENT, GuestState.SYN_RECEIVED)
    if in_flight or waiting or unanswered:
        assert deadline <= soon, "nobody will look after what was sent"
    receiver = flow.receiver
    open_again = (
        flow.guest_state is GuestState.ESTABLISHED
        and not receiver.queued
        and line.edge <= receiver.position
    )
    if receiver.position + receiver.fin_consumed > line.acknowledged >= 0 or open_again:
        assert deadline <= now + ACK_DELAY_MAXIMUM, "an ACK is owed"
