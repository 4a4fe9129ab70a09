"""Two of our own engines, each of which is the other's guest, over a wire that does its worst.

A client of one end's host calls; the other end is called and dials its server (RFC 9293,
figure 6), or both call each other at once (figure 8). Nothing here models TCP: one engine is
held against the other, and against what any two ends must keep, whoever wrote them:

- what a server says is what the other reads, in order, once, and a FIN stands for the whole;
- no octet is new beyond the window that the other end has shown, and no window is taken back;
- nothing is acknowledged, or acknowledged selectively, that has not arrived;
- there is a deadline whenever something is owed, and what is kept is bounded;
- once the wire is healed and both hosts end, both flows end: in order, with all delivered, or
  with the reset of one side having become a reset on the other.
"""

from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from qemu_usernat.nat.tcp.congestion import CONTROLS
from qemu_usernat.nat.tcp.flow import SYN_RETRANSMISSIONS, TcpFlow
from qemu_usernat.nat.tcp.opening import TcpSettings, call_guest, initial_sequence, open_flow
from qemu_usernat.nat.tcp.receiver import WINDOW_SCALE
from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import MODULUS, add, difference
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, TcpSegment
from qemu_usernat.wire.tcp_options import (
    END_OF_OPTIONS,
    MAXIMUM_SEGMENT_SIZE,
    NO_OPERATION,
    SACK_PERMITTED,
    selective_edges,
)
from qemu_usernat.wire.tcp_options import WINDOW_SCALE as WINDOW_SCALE_OPTION
from tests.nat.tcp.conversation import KEY, Line, Segment
from tests.nat.tcp.machinery import (
    CALLS,
    FROM_GUEST,
    FROM_HOST,
    R2,
    TroubledSocket,
    check_deadline,
    check_memory,
)

START = 1000.0
TICKS = 250_000  # RFC 6528, 3: an initial sequence number grows by as many a second

ENDS = st.sampled_from([0, 1])
ISNS = st.sampled_from([0, MODULUS - 1, MODULUS - 2, MODULUS - 3000, 77])
SIZES = st.sampled_from([1, 100, 1460, 5000, 5000, 70_000, 300_000])
MTUS = st.sampled_from([128, 576, 1500, 65520])


@define(eq=False)
class End:
    """One engine, the host that it serves, and the way into the wire."""

    settings: TcpSettings
    isn: int
    clock: float
    """Seconds by which its clock is ahead: it makes the initial sequence number."""
    line: Line
    """Segments that are on their way to the other end."""
    words: bytes
    """What its host may say."""
    flow: TcpFlow | None = None
    socket: TroubledSocket = field(factory=TroubledSocket)
    counters: Counters = field(factory=Counters)
    wire: list[Segment] = field(factory=list)
    said: int = 0
    sent: int = 0
    """One past the furthest position that it has sent."""
    edge: int = 0
    """The position up to which it has heard that it may send."""
    heard_at: float = START
    read: int = 0
    """How much of what its host reads has been compared."""
    arrived: bytearray = field(factory=lambda: bytearray(len(FROM_HOST)))
    """Which of the other's octets have reached it."""
    given_up: bool = False
    """It was refused, or nobody answered for long enough."""

    @property
    def is_over(self) -> bool:
        return self.flow is not None and self.flow.finished

    @property
    def is_dialling(self) -> bool:
        return self.flow is not None and self.flow.host_state is HostState.DIALING

    def deadline(self) -> float:
        return float("inf") if self.flow is None else self.flow.deadline() - self.clock


def end_at(isn: int, secret: bytes, mtu: int, congestion: str, words: bytes, peer: int) -> End:
    """An end whose clock makes `isn` its number, and whose other end's is `peer`."""
    clock = ((isn - initial_sequence(KEY, secret, START)) % MODULUS) / TICKS
    line = Line(peer, isn, WINDOW_SCALE)
    return End(TcpSettings(mtu, secret, congestion), isn, clock, line, words)


def read_syn(options: bytes) -> dict[str, Any]:
    """The options of a SYN, as `TcpSegment` names them (RFC 9293, 3.1)."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(options) and options[at] != END_OF_OPTIONS:
        if options[at] == NO_OPERATION:
            at += 1
            continue
        value = options[at + 2 : at + options[at + 1]]
        if options[at] == MAXIMUM_SEGMENT_SIZE:
            found["maximum_segment_size"] = int.from_bytes(value, "big")
        elif options[at] == WINDOW_SCALE_OPTION:
            found["window_scale"] = value[0]
        elif options[at] == SACK_PERMITTED:
            found["sack_permitted"] = True
        at += options[at + 1]
    return found


class TwinMachine(RuleBasedStateMachine):
    """Any story of two ends."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.ends: list[End] = []

    @initialize(
        isns=st.tuples(ISNS, ISNS),
        mtus=st.tuples(MTUS, MTUS),
        congestion=st.tuples(*[st.sampled_from(sorted(CONTROLS))] * 2),
        at_once=st.booleans(),
        handshake=st.sampled_from([True, True, False]),
        peaceful=st.sampled_from([True, True, False]),
        speech=st.sampled_from([0, 1, 5000, 100_000]),
        answer=st.sampled_from([0, 1, 5000, 100_000]),
    )
    def begin(
        self,
        isns: tuple[int, int],
        mtus: tuple[int, int],
        congestion: tuple[str, str],
        at_once: bool,
        handshake: bool,
        peaceful: bool,
        speech: int,
        answer: int,
    ) -> None:
        """One end calls, or both do; mostly the handshake goes well."""
        self.mss = min(mtus) - 40
        self.peaceful = peaceful
        secrets = b"the first secret", b"the other secret"
        clocked = [
            end_at(isn, secret, mtu, control, words, 0)
            for isn, secret, mtu, control, words in zip(
                isns, secrets, mtus, congestion, (FROM_GUEST, FROM_HOST), strict=True
            )
        ]
        for end, peer in (clocked, clocked[::-1]):
            # The clock ticks in whole numbers: what it makes may be beside what was asked for.
            end.isn = initial_sequence(KEY, end.settings.secret, START + end.clock)
            end.line.our_isn = peer.line.guest_isn = end.isn
        self.ends = clocked
        self.call(0)
        if at_once:
            self.call(1)
        self.say(0, speech)
        if handshake:
            for _ in range(3):
                self.deliver_everything()
                self.accept()
        self.say(1, answer)

    def call(self, index: int) -> None:
        end = self.ends[index]
        now = self.now + end.clock
        end.flow = call_guest(KEY, end.line, end.socket, end.settings, end.counters, now)
        end.socket.flow = end.flow
        assert end.flow.sender.initial_sequence == end.isn
        self.end_turn(index)

    def accept(self) -> None:
        """The called end's server does, if it was called."""
        end = self.ends[1]
        if end.flow is not None and end.is_dialling:
            end.flow.on_host_connected(self.now + end.clock)
            self.end_turn(1)

    def say(self, index: int, size: int) -> None:
        end = self.ends[index]
        if not end.socket.ended and not end.socket.closed and not end.socket.broken:
            words = end.words[end.said : end.said + size]
            end.socket.incoming += words
            end.said += len(words)
            self.end_turn(index)

    def end_turn(self, index: int) -> None:
        end = self.ends[index]
        if end.flow is None:
            return
        now = self.now + end.clock
        for _ in range(10_000):
            end.flow.flush(now)
            if not end.socket.ready():
                break
            end.socket.report(now)
        else:
            raise AssertionError("the poller reports for ever")
        while end.line.segments:
            segment = end.line.segments.popleft()
            if not segment.flags & RST:
                self.check_sent(end, self.ends[1 - index], segment)
            end.wire.append(segment)
        # An end that is called has no way to hear of ICMP here: it will ask again.
        end.given_up = end.given_up or bool(end.line.refusals)

    def check_sent(self, end: End, peer: End, segment: Segment) -> None:
        if segment.payload:
            assert segment.payload == end.words[segment.at : segment.end], "not its host's octets"
        assert segment.end <= end.said + 1  # our FIN
        assert len(segment.payload) <= self.mss
        assert not segment.payload or segment.end <= max(end.edge, end.sent), "beyond the window"
        end.sent = max(end.sent, segment.end + bool(segment.flags & FIN))
        if segment.flags & ACK:
            assert segment.ack <= peer.sent, "an acknowledgment of what was never sent"
        for start, stop in segment.selective:
            assert 0 <= start < stop
            assert end.arrived.find(0, start, stop) == -1, f"{segment} tells of {start} to {stop}"

    # -- the hosts

    @rule()
    def the_server_accepts(self) -> None:
        self.accept()

    @rule(code=st.sampled_from([None, 1, 3]))
    def the_server_refuses(self, code: int | None) -> None:
        end = self.ends[1]
        if not self.peaceful and end.flow is not None and end.is_dialling:
            end.given_up = True
            end.flow.on_host_failed(code, self.now + end.clock)
            self.end_turn(1)

    @rule(index=ENDS, size=SIZES)
    def a_host_says(self, index: int, size: int) -> None:
        self.say(index, size)

    @rule(index=ENDS, size=st.sampled_from([0, 1, 1000, 100_000, 1 << 22]))
    def a_host_reads(self, index: int, size: int) -> None:
        self.ends[index].socket.takes = size
        self.end_turn(index)

    @rule(index=ENDS, size=st.sampled_from([1000, 30_000]))
    def writes_are_short(self, index: int, size: int) -> None:
        self.ends[index].socket.most = size
        self.end_turn(index)

    @rule(index=ENDS)
    def a_host_ends(self, index: int) -> None:
        if not self.ends[index].socket.broken:
            self.ends[index].socket.ended = True
            self.end_turn(index)

    @rule(index=ENDS)
    def a_host_resets(self, index: int) -> None:
        socket = self.ends[index].socket
        if not self.peaceful and self.is_connected(index) and not socket.closed:
            socket.broken = True
            self.end_turn(index)

    @rule(index=ENDS, call=st.sampled_from(CALLS))
    def a_call_will_fail(self, index: int, call: str) -> None:
        if not self.peaceful and self.is_connected(index):
            self.ends[index].socket.failing.add(call)
            self.end_turn(index)

    def is_connected(self, index: int) -> bool:
        end = self.ends[index]
        return end.flow is not None and not end.is_dialling

    @rule(index=ENDS, stalled=st.booleans())
    def a_link_takes_no_more(self, index: int, stalled: bool) -> None:
        """Or again; then the owner of the flow tells it, by a turn."""
        self.ends[index].line.is_stalled = stalled
        self.end_turn(index)

    # -- the wire

    @rule()
    def a_round_goes_well(self) -> None:
        self.deliver_everything()

    def deliver_everything(self) -> None:
        """All that is on its way arrives, one end after the other."""
        for index in (1, 0):
            wire = self.ends[1 - index].wire
            batch, wire[:] = wire[:], []
            for segment in batch:
                self.deliver(index, segment)
            self.end_turn(index)

    @rule(data=st.data(), index=ENDS, count=st.integers(1, 20), together=st.booleans())
    def an_end_hears(self, data: st.DataObject, index: int, count: int, together: bool) -> None:
        """Some segments in order, from a place of choice: one turn for all, or one for each."""
        wire = self.ends[1 - index].wire
        if not wire:
            return
        first = data.draw(st.integers(0, len(wire) - 1))
        batch, wire[first : first + count] = wire[first : first + count], []
        for segment in batch:
            self.deliver(index, segment)
            if not together:
                self.end_turn(index)
        self.end_turn(index)

    @rule(data=st.data(), index=ENDS)
    def an_end_hears_it_cut_anew(self, data: st.DataObject, index: int) -> None:
        """One segment becomes two, which may change their order."""
        wire = self.ends[1 - index].wire
        if not wire:
            return
        segment = wire.pop(data.draw(st.integers(0, len(wire) - 1)))
        parts = [segment]
        if len(segment.payload) > 1:
            middle = data.draw(st.integers(1, len(segment.payload) - 1))
            flags = segment.flags & ~(FIN | PSH)
            head = evolve(segment, flags=flags, payload=segment.payload[:middle])
            tail = evolve(segment, at=segment.at + middle, payload=segment.payload[middle:])
            parts = data.draw(st.permutations([head, tail]))
        for part in parts:
            self.deliver(index, part)
        self.end_turn(index)

    @rule(data=st.data(), index=ENDS, count=st.integers(1, 10))
    def the_wire_loses(self, data: st.DataObject, index: int, count: int) -> None:
        wire = self.ends[index].wire
        if wire:
            first = data.draw(st.integers(0, len(wire) - 1))
            del wire[first : first + count]

    @rule(data=st.data(), index=ENDS)
    def the_wire_repeats(self, data: st.DataObject, index: int) -> None:
        wire = self.ends[index].wire
        if wire:
            position = data.draw(st.integers(0, len(wire) - 1))
            wire.insert(data.draw(st.integers(0, len(wire))), wire[position])

    def deliver(self, index: int, segment: Segment) -> None:
        """As the router does: to the flow, to nobody, or to whoever is called."""
        end, peer = self.ends[index], self.ends[1 - index]
        now = self.now + end.clock
        opens = segment.flags & (SYN | ACK | RST | FIN) == SYN
        end.heard_at = self.now
        if not segment.flags & RST:
            shown = (segment.ack if segment.flags & ACK else 0) + segment.window
            end.edge = max(end.edge, shown)
        if end.flow is None and opens:
            syn = self.as_packet(end, peer, segment)
            end.flow = open_flow(KEY, syn, end.line, end.settings, end.counters, now)
            end.flow.sender.initial_sequence = end.isn
            end.socket.flow = end.flow
            end.flow.dial(end.socket)
        elif end.flow is None or end.flow.finished:
            self.answer_for_nobody(end, segment)
        elif end.flow.guest_state is GuestState.SYN_SENT and segment.flags & SYN:
            end.flow.on_answer(self.as_packet(end, peer, segment), now)
        else:
            self.hand_over(end, peer, segment, now)

    def as_packet(self, end: End, peer: End, segment: Segment) -> TcpSegment:
        return TcpSegment(
            KEY[1],
            KEY[3],
            add(peer.isn, 1 + segment.at),
            add(end.isn, 1 + segment.ack) if segment.flags & ACK else 0,
            segment.flags,
            segment.window,
            **read_syn(segment.options),
        )

    def hand_over(self, end: End, peer: End, segment: Segment, now: float) -> None:
        assert end.flow is not None
        shift = 0 if segment.flags & SYN else WINDOW_SCALE
        end.flow.on_segment(
            add(peer.isn, 1 + segment.at),
            add(end.isn, 1 + segment.ack),
            segment.flags,
            segment.window >> shift,
            memoryview(segment.payload),
            len(segment.payload),
            now,
            selective_edges(segment.options) if not segment.flags & SYN else (),
        )
        if segment.payload:
            end.arrived[segment.at : segment.end] = b"\1" * len(segment.payload)

    def answer_for_nobody(self, end: End, segment: Segment) -> None:
        """RFC 9293, 3.10.7.1."""
        if segment.flags & RST:
            return
        if segment.flags & ACK:
            end.wire.append(Segment(RST, segment.ack, 0, 0))
        else:
            zero = difference(0, add(end.isn, 1))
            after = segment.end + bool(segment.flags & SYN) + bool(segment.flags & FIN)
            end.wire.append(Segment(RST | ACK, zero, after, 0))

    # -- time

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.3, 1.1, 5.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.advance(self.now + seconds)

    def advance(self, until: float) -> None:
        for _ in range(10_000):
            due = min(end.deadline() for end in self.ends)
            if due > until:
                self.now = until
                return
            self.now = max(self.now, due)
            for index, end in enumerate(self.ends):
                if end.deadline() <= self.now:
                    self.ring(index)
        raise AssertionError(f"an alarm rings for ever at {self.now}")

    def ring(self, index: int) -> None:
        end = self.ends[index]
        assert end.flow is not None
        gave_up = end.counters["tcp.gave_up"]
        # The clocks differ, so that what is due here may be a rounding away there.
        end.flow.on_deadline(max(self.now + end.clock, end.flow.deadline()))
        if end.counters["tcp.gave_up"] > gave_up:
            silent = self.now - end.heard_at >= R2
            assert silent or end.flow.sender.retransmissions > SYN_RETRANSMISSIONS
            end.given_up = True
        elif end.counters["tcp.connect_timeout"]:
            end.given_up = True
        self.end_turn(index)
        assert end.deadline() > self.now, "an alarm that rings for ever"

    # -- what always holds

    @invariant()
    def what_always_holds(self) -> None:
        for end, peer in (self.ends, self.ends[::-1]) if self.ends else ():
            if end.flow is not None:
                self._check_stream(end, peer)
                check_memory(end.flow)
                now = self.now + end.clock
                check_deadline(end.flow, end.socket, end.line, end.sent, now)

    def _check_stream(self, end: End, peer: End) -> None:
        """What this end's host reads, or will: all that was acknowledged to the other."""
        assert end.flow is not None
        received, receiver = end.socket.received, end.flow.receiver
        assert received[end.read :] == peer.words[end.read : len(received)]
        end.read = len(received)
        if end.socket.shut:
            assert peer.socket.ended, "a FIN that the other host has not sent"
            assert end.read == peer.said, "a FIN before the last octet"
        if not self.resets and end.line.acknowledged >= 0:
            acknowledged = end.line.acknowledged - receiver.fin_consumed
            assert acknowledged <= end.read + receiver.queued

    @property
    def resets(self) -> bool:
        """Whether anybody had a reason not to let the connection end in order."""
        return any(end.given_up or end.socket.broken for end in self.ends)

    # -- the end

    def teardown(self) -> None:
        """Heal everything, close both sides, let time pass: both flows end."""
        if not self.ends:
            return
        for index, end in enumerate(self.ends):
            end.socket.takes = end.socket.most = float("inf")
            end.socket.ended = True
            end.line.is_stalled = False
            self.end_turn(index)
        for _ in range(2000):
            self.deliver_everything()
            self.accept()
            if not any(end.wire for end in self.ends):
                if all(end.flow is None or end.is_over for end in self.ends):
                    break
                self.advance(min(end.deadline() for end in self.ends))
        for end, peer in (self.ends, self.ends[::-1]):
            self._check_end(end, peer)

    def _check_end(self, end: End, peer: End) -> None:
        if end.flow is None:
            assert peer.given_up or peer.socket.broken, "the call never came"
            return
        self._check_stream(end, peer)
        states = f"{end.flow.guest_state}, {end.flow.host_state}"
        assert end.flow.finished, f"{states}: no end"
        assert end.socket.closed, "a descriptor is lost"
        if self.resets:
            in_order = end.socket.shut and end.socket.ended
            failed = end.flow.host_state is HostState.FAILED
            assert in_order or failed or end.socket.was_reset, "a reset that got lost"
        else:
            assert end.socket.shut
            assert not end.socket.was_reset
            assert end.read == peer.said


def run(**limits: Any) -> None:
    run_state_machine_as_test(TwinMachine, settings=settings(deadline=None, **limits))


def test_any_story_of_two_ends_ends_well() -> None:
    """Whoever called, whatever the wire and both hosts do."""
    run(max_examples=300, stateful_step_count=50)


@pytest.mark.deep
@pytest.mark.timeout(0)
def test_many_long_stories_of_two_ends_end_well() -> None:
    """The same for half an hour."""
    run(max_examples=10_000, stateful_step_count=150)
