"""One of two ends: an engine of ours whose guest is another, and all that may be seen of it.

An end checks what it sends before the other one hears it. Positions are those of the
conversations: 0 is the first octet after a SYN, in either direction.
"""

from typing import Any

from attrs import define, field

from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.opening import TcpSettings, call_guest, initial_sequence, open_flow
from qemu_usernat.nat.tcp.receiver import WINDOW_SCALE
from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import MODULUS, add, difference
from qemu_usernat.wire import tcp_options
from qemu_usernat.wire.packets import ACK, FIN, RST, SYN, TcpSegment
from tests.nat.tcp.conversation import KEY, Segment
from tests.nat.tcp.machinery import (
    FROM_HOST,
    TroubledSocket,
    WatchedLine,
    check_deadline,
    check_gave_up,
    check_memory,
    promised,
)

START = 1000.0  # seconds: when every story begins
TICKS = 250_000  # RFC 6528, 3: an initial sequence number grows by as many a second


def read_syn(options: bytes) -> dict[str, Any]:
    """The options of a SYN, as `TcpSegment` names them (RFC 9293, 3.1)."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(options):
        if options[at] == tcp_options.NO_OPERATION:
            at += 1
            continue
        value = options[at + 2 : at + options[at + 1]]
        match options[at]:
            case tcp_options.MAXIMUM_SEGMENT_SIZE:
                found["maximum_segment_size"] = int.from_bytes(value, "big")
            case tcp_options.WINDOW_SCALE:
                found["window_scale"] = value[0]
            case tcp_options.SACK_PERMITTED:
                found["sack_permitted"] = True
        at += options[at + 1]
    return found


@define(eq=False)
class End:
    """One engine, the host that it serves, and its way into the wire."""

    settings: TcpSettings
    wanted: int
    """The initial sequence number that its clock is to make, or one beside it."""
    words: bytes
    """What its host may say."""
    clock: float = field(init=False)
    """Seconds by which its clock is ahead of the other's."""
    isn: int = field(init=False)
    peer: "End" = field(init=False)
    line: WatchedLine = field(init=False)
    flow: TcpFlow | None = None
    socket: TroubledSocket = field(factory=TroubledSocket)
    counters: Counters = field(factory=Counters)
    wire: list[Segment] = field(factory=list)
    """Segments that are on their way to the other end."""
    said: int = 0
    sent: int = 0
    """One past the furthest position that it has sent."""
    edge: int = 0
    """The position up to which it has heard that it may send."""
    heard_at: float = START
    unheard: int = 0
    """Segments that it has sent since."""
    read: int = 0
    """How much of what its host reads has been compared."""
    arrived: bytearray = field(factory=lambda: bytearray(len(FROM_HOST)))
    """Which of the other's octets have reached it."""
    given_up: bool = False
    """It was refused, or nobody answered for long enough."""

    def __attrs_post_init__(self) -> None:
        behind = self.wanted - initial_sequence(KEY, self.settings.secret, START)
        self.clock = behind % MODULUS / TICKS
        self.isn = initial_sequence(KEY, self.settings.secret, START + self.clock)

    def meets(self, peer: "End") -> None:
        self.peer = peer
        self.line = WatchedLine(peer.isn, self.isn, WINDOW_SCALE)

    # -- its host

    @property
    def is_dialling(self) -> bool:
        return self.flow is not None and self.flow.host_state is HostState.DIALING

    @property
    def is_connected(self) -> bool:
        return self.flow is not None and not self.is_dialling

    @property
    def is_over(self) -> bool:
        return self.flow is None or self.flow.finished

    @property
    def had_reason(self) -> bool:
        """Not to let the connection end in order."""
        return self.given_up or self.socket.broken

    def calls(self, now: float) -> None:
        """A client has connected: the other end is called."""
        now += self.clock
        self.flow = call_guest(KEY, self.line, self.socket, self.settings, self.counters, now)
        self.socket.flow = self.line.flow = self.flow
        assert self.flow.sender.initial_sequence == self.isn

    def accepts(self, now: float) -> None:
        """The server that was dialled does."""
        if self.flow is not None and self.is_dialling:
            self.flow.on_host_connected(now + self.clock)

    def says(self, size: int) -> None:
        if not (self.socket.ended or self.socket.closed or self.socket.broken):
            words = self.words[self.said : self.said + size]
            self.socket.incoming += words
            self.said += len(words)

    # -- its turn

    def ends_turn(self, now: float) -> None:
        if self.flow is None:
            return
        for _ in range(10_000):
            self.flow.flush(now + self.clock)
            if not self.socket.ready():
                break
            self.socket.report(now + self.clock)
        else:
            raise AssertionError("the poller reports for ever")
        self.line.check_farewell()
        while self.line.segments:
            segment = self.line.segments.popleft()
            if not segment.flags & RST:
                self._check_sent(segment)
            self.wire.append(segment)

    def _check_sent(self, segment: Segment) -> None:
        assert segment.end <= self.said + 1  # our FIN
        if segment.payload:
            assert segment.payload == self.words[segment.at : segment.end], "not its host's words"
            assert len(segment.payload) <= min(self.settings.mtu, self.peer.settings.mtu) - 40
            assert segment.end <= max(self.edge, self.sent), "beyond the window"
        self.unheard += 1
        self.sent = max(self.sent, segment.end + bool(segment.flags & FIN))
        if segment.flags & ACK:
            assert segment.ack <= self.peer.sent, "an acknowledgment of what was never sent"
        for start, stop in segment.selective:
            assert 0 <= start < stop
            assert self.arrived.find(0, start, stop) == -1, f"{segment} tells of {start} to {stop}"

    def deadline(self) -> float:
        """On the clock that both share."""
        return float("inf") if self.flow is None else self.flow.deadline() - self.clock

    def rings(self, now: float) -> None:
        assert self.flow is not None
        gave_up = self.counters["tcp.gave_up"]
        # The clocks differ, so that what is due on one may be a rounding away on the other.
        self.flow.on_deadline(max(now + self.clock, self.flow.deadline()))
        if self.counters["tcp.gave_up"] > gave_up:
            check_gave_up(self.flow, now - self.heard_at, self.unheard)
            self.given_up = True
        elif self.counters["tcp.connect_timeout"]:
            self.given_up = True
        self.ends_turn(now)
        assert self.deadline() > now, "an alarm that rings for ever"

    # -- the wire's other side

    def hears(self, segment: Segment, now: float) -> None:
        """As the router does: it is for the flow, for nobody, or a call."""
        self.heard_at = now
        self.unheard = 0
        if segment.flags & RST:
            self.line.was_reset = True
        else:
            acknowledged = segment.ack if segment.flags & ACK else 0
            self.edge = max(self.edge, acknowledged + segment.window)
        now += self.clock
        if self.flow is None and segment.flags & (SYN | ACK | RST | FIN) == SYN:
            syn = self._packet(segment)
            self.flow = open_flow(KEY, syn, self.line, self.settings, self.counters, now)
            self.flow.sender.initial_sequence = self.isn
            self.socket.flow = self.line.flow = self.flow
            self.flow.dial(self.socket)
        elif self.flow is None or self.flow.finished:
            self._answer_for_nobody(segment)
        elif self.flow.guest_state is GuestState.SYN_SENT and segment.flags & SYN:
            self.flow.on_answer(self._packet(segment), now)
        else:
            self._hand_over(self.flow, segment, now)

    def _packet(self, segment: Segment) -> TcpSegment:
        return TcpSegment(
            KEY[1],
            KEY[3],
            add(self.peer.isn, 1 + segment.at),
            add(self.isn, 1 + segment.ack) if segment.flags & ACK else 0,
            segment.flags,
            segment.window,
            **read_syn(segment.options),
        )

    def _hand_over(self, flow: TcpFlow, segment: Segment, now: float) -> None:
        opens = segment.flags & SYN
        taken = promised(flow, self.line, segment)
        flow.on_segment(
            add(self.peer.isn, 1 + segment.at),
            add(self.isn, 1 + segment.ack),
            segment.flags,
            segment.window >> (0 if opens else WINDOW_SCALE),
            memoryview(segment.payload),
            len(segment.payload),
            now,
            () if opens else tcp_options.selective_edges(segment.options),
        )
        assert flow.receiver.position >= taken, "offered, and not accepted"
        if segment.payload:
            self.arrived[segment.at : segment.end] = b"\1" * len(segment.payload)

    def _answer_for_nobody(self, segment: Segment) -> None:
        """RFC 9293, 3.10.7.1."""
        if segment.flags & ACK and not segment.flags & RST:
            self.wire.append(Segment(RST, segment.ack, 0, 0))
        elif not segment.flags & RST:
            zero = difference(0, add(self.isn, 1))
            after = segment.end + bool(segment.flags & SYN) + bool(segment.flags & FIN)
            self.wire.append(Segment(RST | ACK, zero, after, 0))

    # -- what must hold

    def check(self, now: float, *, in_order: bool) -> None:
        """At any time; `in_order`: nobody has had a reason for a reset."""
        if self.flow is None:
            return
        self._check_stream(self.flow, in_order)
        check_memory(self.flow)
        check_deadline(self.flow, self.socket, self.line, self.sent, now + self.clock)

    def _check_stream(self, flow: TcpFlow, in_order: bool) -> None:
        """What its host reads, or will: all that was acknowledged to the other end."""
        received = self.socket.received
        assert received[self.read :] == self.peer.words[self.read : len(received)]
        self.read = len(received)
        if self.socket.shut:
            assert self.peer.socket.ended, "a FIN that the other host has not sent"
            assert self.read == self.peer.said, "a FIN before the last octet"
        if in_order and self.line.acknowledged >= 0:
            acknowledged = self.line.acknowledged - flow.receiver.fin_consumed
            assert acknowledged <= self.read + flow.receiver.queued

    def check_end(self, *, in_order: bool) -> None:
        """When both hosts have ended, and the wire was good for long enough."""
        if self.flow is None:
            assert self.peer.had_reason, "the call never came"
            return
        states = f"{self.flow.guest_state}, {self.flow.host_state}"
        assert self.flow.finished, f"{states}: no end"
        assert self.socket.closed, "a descriptor is lost"
        if in_order:
            assert self.socket.ended_in_order, "no FIN"
            assert not self.socket.was_reset
        elif not self.socket.ended_in_order:
            failed = self.flow.host_state is HostState.FAILED
            assert failed or self.socket.was_reset, "a reset that got lost"
