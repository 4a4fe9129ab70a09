"""A TCP flow against a model of a correct guest, over a wire that does its worst.

The guest's kernel is modelled from RFC 9293 alone, with positions that never wrap; the host
is the `Socket` of the conversations: short writes, no room, an end, an error of any call. The
wire between guest and flow loses, repeats, delays, reorders and re-cuts. What must hold at every
step:

- bytes in are bytes out, in order, once, in both directions;
- no octet is new beyond the window that the guest has offered;
- nothing is acknowledged selectively that has not arrived, and the guest may rely on it;
- what we have offered is never taken back, and is accepted;
- there is a deadline, and it is near, whenever something is owed;
- what a flow keeps is bounded by its windows;
- a FIN stands for the whole stream: what was cut short ends with a reset, on both sides;
- once the wire is healed and both sides close, the flow ends and all has arrived.
"""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qemu_usernat.nat.tcp.opening import TcpSettings, open_flow
from qemu_usernat.nat.tcp.receiver import WINDOW_SCALE
from qemu_usernat.nat.tcp.states import HostState
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import MODULUS, add
from qemu_usernat.wire.icmp import unreachable
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, TcpSegment
from tests.nat.tcp.conversation import KEY, SECRET, Segment
from tests.nat.tcp.guest_model import GUEST_TIMEOUT, Guest
from tests.nat.tcp.machinery import (
    CALLS,
    FROM_GUEST,
    FROM_HOST,
    ROUND_TRIP,
    TroubledSocket,
    WatchedLine,
    check_deadline,
    check_gave_up,
    check_memory,
    promised,
)


class TcpMachine(RuleBasedStateMachine):
    """Any story of a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.counters = Counters()
        self.said = 0
        self.ending = False
        self.to_guest: list[Segment] = []
        self.delivered_edge = 0
        self.sent_highest = 0
        self.arrived = bytearray(len(FROM_GUEST))
        """Which of the guest's octets have reached the flow."""
        self.read = 0
        """How much of the guest's stream the server has compared."""
        self.given_up = False
        self.heard_at = self.now
        self.unheard = 0
        """Segments of the flow since it heard the guest last."""

    # -- the beginning

    @initialize(
        guest_isn=st.sampled_from([0, MODULUS - 1, MODULUS - 2, MODULUS - 3000, 77]),
        our_isn=st.sampled_from([0, MODULUS - 1, MODULUS - 2, MODULUS - 3000, 77]),
        mss=st.sampled_from([88, 536, 1460, 8960, 65480]),
        mtu=st.sampled_from([576, 1500, 65520]),
        selective=st.booleans(),
        congestion=st.sampled_from(["none", "none", "reno", "cubic"]),
        scale=st.sampled_from([None, 0, 1, 7, 14]),
        capacity=st.sampled_from([0, 1, 500, 5000, 65535, 1 << 18, 1 << 21]),
        handshake=st.sampled_from([True, True, True, False]),
        peaceful=st.sampled_from([True, True, True, False]),
        speech=st.sampled_from([0, 1, 5000, 200_000]),
        answer=st.sampled_from([0, 1, 5000, 200_000]),
        takes=st.sampled_from([float("inf"), float("inf"), 1000, 0]),
    )
    def begin(
        self,
        guest_isn: int,
        our_isn: int,
        mss: int,
        mtu: int,
        selective: bool,
        congestion: str,
        scale: int | None,
        capacity: int,
        handshake: bool,
        peaceful: bool,
        speech: int,
        answer: int,
        takes: float,
    ) -> None:
        """Mostly with a handshake that goes well: what comes after it is more of a story."""
        self.guest_isn, self.our_isn = guest_isn, our_isn
        self.guest = Guest(mss, scale, capacity, mtu - 40, selective)
        self.shift = scale or 0
        window = self.guest.window
        syn = TcpSegment(40000, 80, guest_isn, 0, SYN, window, mss, scale, selective)
        self.line = WatchedLine(guest_isn, our_isn, 0 if scale is None else WINDOW_SCALE)
        settings = TcpSettings(mtu, SECRET, congestion)
        self.flow = open_flow(KEY, syn, self.line, settings, self.counters, self.now)
        self.flow.sender.initial_sequence = our_isn
        self.delivered_edge = self.guest.offered = window
        self.guest.repeat_at = self.now + GUEST_TIMEOUT
        self.server = TroubledSocket(takes=takes)
        self.server.flow = self.line.flow = self.flow
        self.flow.dial(self.server)
        self.end_turn()
        self.peaceful = peaceful
        self.guest.written = speech
        self.the_server_says(answer)
        if handshake:
            self.the_server_accepts()
            self.a_round_goes_well()

    def end_turn(self) -> None:
        for _ in range(10_000):
            self.flow.flush(self.now)
            if not self.server.ready():
                break
            self.server.report(self.now)
        else:
            raise AssertionError("the poller reports for ever")
        self.line.check_farewell()
        while self.line.segments:
            segment = self.line.segments.popleft()
            self._check_sent(segment)
            self.to_guest.append(segment)

    def _check_sent(self, segment: Segment) -> None:
        for start, end in segment.selective:
            assert self.guest.selective
            assert 0 <= start < end
            assert self.arrived.find(0, start, end) == -1, f"{segment} tells of {start} to {end}"
        if segment.flags & RST:
            return
        self.unheard += 1
        assert segment.end <= self.said + 1
        if segment.payload:
            assert len(segment.payload) <= min(self.guest.mss, self.guest.our_mss)
            assert segment.end <= max(self.delivered_edge, self.sent_highest), (
                f"{segment} goes beyond the window, {self.delivered_edge}"
            )
        self.sent_highest = max(self.sent_highest, segment.end + bool(segment.flags & FIN))

    @property
    def is_connected(self) -> bool:
        return self.flow.host_state not in (HostState.IDLE, HostState.DIALING)

    @property
    def resets(self) -> bool:
        """Whether anybody had a reason not to let the connection end in order."""
        return self.given_up or self.guest.reset or self.server.broken

    # -- the server

    @precondition(lambda self: not self.is_connected)
    @rule()
    def the_server_accepts(self) -> None:
        self.flow.on_host_connected(self.now)
        self.heard_at = self.now
        self.end_turn()

    @precondition(lambda self: not self.ending)
    @rule(size=st.sampled_from([1, 100, 1460, 5000, 70_000]))
    def the_server_says(self, size: int) -> None:
        if not self.server.closed and not self.server.broken:
            words = FROM_HOST[self.said : self.said + size]
            self.server.incoming += words
            self.said += len(words)
            self.end_turn()

    @rule(size=st.sampled_from([0, 1, 1000, 100_000]))
    def the_server_reads(self, size: int) -> None:
        self.server.takes = size
        self.end_turn()

    @rule(size=st.sampled_from([1000, 30_000]))
    def writes_are_short(self, size: int) -> None:
        self.server.most = size
        self.end_turn()

    @rule()
    def the_server_ends(self) -> None:
        if not self.server.broken:
            self.ending = self.server.ended = True
            self.end_turn()

    @precondition(lambda self: not self.peaceful and self.is_connected and not self.server.closed)
    @rule()
    def the_server_resets(self) -> None:
        self.server.broken = True
        self.end_turn()

    @precondition(lambda self: not self.peaceful and self.is_connected)
    @rule(call=st.sampled_from(CALLS))
    def a_call_will_fail(self, call: str) -> None:
        self.server.failing.add(call)
        self.end_turn()

    @precondition(lambda self: not self.peaceful and not self.is_connected)
    @rule(code=st.sampled_from([None, 1, 3]))
    def the_server_refuses(self, code: int | None) -> None:
        """A guest that waits for its SYN,ACK hears of it by a reset, or by ICMP (RFC 1122)."""
        self.given_up = True
        self.flow.on_host_failed(None if code is None else unreachable(code), self.now)
        self.end_turn()
        self.guest.reset = self.guest.reset or bool(self.line.refusals)

    # -- the guest

    @precondition(lambda self: not self.guest.closing)
    @rule(size=st.sampled_from([1, 100, 1460, 5000, 70_000]))
    def the_guest_says(self, size: int) -> None:
        self.guest.written = min(self.guest.written + size, len(FROM_GUEST))
        self.guest.transmits(self.now)

    @rule(cut=st.sampled_from([1, 100, 536, 1460, 65480]))
    def the_guest_cuts(self, cut: int) -> None:
        self.guest.cut = cut
        self.guest.transmits(self.now)

    @rule(size=st.sampled_from([1, 1000, 1 << 20]))
    def the_guest_reads(self, size: int) -> None:
        self.guest.unread -= min(self.guest.unread, size)
        self.guest.sends_ack()

    @rule(capacity=st.sampled_from([0, 1, 500, 5000, 65535, 1 << 18]))
    def the_guest_has_another_buffer(self, capacity: int) -> None:
        """Its window may shrink with it, as Linux's does under memory pressure."""
        self.guest.capacity = capacity
        self.guest.sends_ack()

    @precondition(lambda self: self.to_guest)
    @rule(data=st.data(), mtu=st.sampled_from([68, 300, 576, 1280, 9000]))
    def a_way_behind_the_guest_is_narrow(self, data: st.DataObject, mtu: int) -> None:
        """It says so of a segment under way (RFC 1191): none of the octets is lost by that."""
        segment = data.draw(st.sampled_from(self.to_guest))
        self.flow.on_path_mtu(self.flow.sender.sequence_of(segment.at), mtu)
        self.end_turn()

    @rule()
    def the_guest_reneges(self) -> None:
        """It throws away what it has told of, as it may (RFC 2018, 8)."""
        self.guest.early.clear()

    @rule()
    def the_guest_acknowledges(self) -> None:
        self.guest.sends_ack()

    @rule()
    def the_guest_ends(self) -> None:
        self.guest.closing = True
        if self.guest.open:
            self.guest.transmits(self.now)

    @precondition(lambda self: not self.peaceful and self.guest.open and not self.guest.reset)
    @rule()
    def the_guest_resets(self) -> None:
        self.guest.reset = True
        self.guest.emit(RST | ACK, self.guest.highest)

    # -- the wire

    @rule()
    def a_round_goes_well(self) -> None:
        """All that is on its way arrives, first at the guest."""
        batch, self.to_guest = self.to_guest, []
        for segment in batch:
            self.deliver_to_guest(segment)
        batch, self.guest.wire = self.guest.wire, []
        for segment in batch:
            self.deliver_to_flow(segment)
        self.end_turn()

    @precondition(lambda self: self.guest.wire)
    @rule(data=st.data(), count=st.integers(1, 20), together=st.booleans())
    def the_flow_hears(self, data: st.DataObject, count: int, together: bool) -> None:
        """Some segments in order, from a place of choice: one turn for all, or one for each."""
        wire = self.guest.wire
        first = data.draw(st.integers(0, len(wire) - 1))
        batch, wire[first : first + count] = wire[first : first + count], []
        for segment in batch:
            self.deliver_to_flow(segment)
            if not together:
                self.end_turn()
        self.end_turn()

    @precondition(lambda self: self.guest.wire)
    @rule(data=st.data())
    def the_flow_hears_it_cut_anew(self, data: st.DataObject) -> None:
        """One segment becomes two, which may change their order."""
        wire = self.guest.wire
        segment = wire.pop(data.draw(st.integers(0, len(wire) - 1)))
        if len(segment.payload) > 1:
            middle = data.draw(st.integers(1, len(segment.payload) - 1))
            head = evolve(
                segment, flags=segment.flags & ~(FIN | PSH), payload=segment.payload[:middle]
            )
            tail = evolve(segment, at=segment.at + middle, payload=segment.payload[middle:])
            parts = data.draw(st.permutations([head, tail]))
        else:
            parts = [segment]
        for part in parts:
            self.deliver_to_flow(part)
        self.end_turn()

    @precondition(lambda self: self.to_guest)
    @rule(data=st.data(), count=st.integers(1, 20))
    def the_guest_hears(self, data: st.DataObject, count: int) -> None:
        first = data.draw(st.integers(0, len(self.to_guest) - 1))
        batch, self.to_guest[first : first + count] = self.to_guest[first : first + count], []
        for segment in batch:
            self.deliver_to_guest(segment)

    @rule(data=st.data(), towards_guest=st.booleans(), count=st.integers(1, 10))
    def the_wire_loses(self, data: st.DataObject, towards_guest: bool, count: int) -> None:
        wire = self.to_guest if towards_guest else self.guest.wire
        if wire:
            first = data.draw(st.integers(0, len(wire) - 1))
            del wire[first : first + count]

    @rule(data=st.data(), towards_guest=st.booleans())
    def the_wire_repeats(self, data: st.DataObject, towards_guest: bool) -> None:
        wire = self.to_guest if towards_guest else self.guest.wire
        if wire:
            index = data.draw(st.integers(0, len(wire) - 1))
            wire.insert(data.draw(st.integers(0, len(wire))), wire[index])

    def deliver_to_flow(self, segment: Segment) -> None:
        if self.flow.finished:
            # The owner has forgotten the flow, and resets what belongs to none.
            if not segment.flags & RST:
                self.to_guest.append(Segment(RST, segment.ack, 0, 0))
            return
        self.heard_at = self.now
        self.unheard = 0
        self.line.was_reset = self.line.was_reset or bool(segment.flags & RST)
        if segment.flags & ACK:
            self.delivered_edge = max(self.delivered_edge, segment.ack + segment.window)
        shift = 0 if segment.flags & SYN else self.shift
        buffer = bytearray(segment.payload)
        taken = promised(self.flow, self.line, segment)
        self.flow.on_segment(
            add(self.guest_isn, 1 + segment.at),
            add(self.our_isn, 1 + segment.ack),
            segment.flags,
            segment.window >> shift,
            memoryview(buffer),
            len(buffer),
            self.now,
            tuple(add(self.our_isn, 1 + edge) for block in segment.selective for edge in block),
        )
        if segment.at >= 0:
            self.arrived[segment.at : segment.end] = b"\1" * len(segment.payload)
        assert self.flow.receiver.position >= taken, "offered, and not accepted"

    def deliver_to_guest(self, segment: Segment) -> None:
        self.guest.on_segment(segment, self.now)
        self.guest.transmits(self.now)

    # -- time

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.3, 1.1, 5.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.advance(self.now + seconds)

    def advance(self, end: float) -> None:
        for _ in range(10_000):
            deadline = self.flow.deadline()
            guests = self.guest.repeat_at if self.guest.wants else float("inf")
            due = min(deadline, guests)
            if due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            if deadline <= self.now:
                self._ring()
            else:
                self.guest.on_time(self.now)
        raise AssertionError(f"an alarm rings for ever at {self.now}")

    def _ring(self) -> None:
        gave_up = self.counters["tcp.gave_up"]
        self.flow.on_deadline(self.now)
        if self.counters["tcp.gave_up"] > gave_up:
            check_gave_up(self.flow, self.now - self.heard_at, self.unheard)
            self.given_up = True
        elif self.counters["tcp.connect_timeout"]:
            self.given_up = True
        self.end_turn()
        assert self.flow.deadline() > self.now, "an alarm that rings for ever"

    # -- what always holds

    @invariant()
    def what_always_holds(self) -> None:
        if hasattr(self, "server"):
            self._check_streams()
            self._check_kept()
            check_memory(self.flow)
            check_deadline(self.flow, self.server, self.line, self.sent_highest, self.now)

    def _check_streams(self) -> None:
        """A FIN, on either side, stands for the whole of what was said."""
        received = self.server.received
        assert received[self.read :] == FROM_GUEST[self.read : len(received)]
        self.read = len(received)
        if self.server.shut:
            assert self.guest.closing, "a FIN that the guest has not sent"
            assert self.read == self.guest.written, "a FIN before the last octet"
        if self.guest.finished:
            assert self.ending, "a FIN that the server has not sent"
            assert self.guest.received == self.said, "a FIN before the last octet"

    def _check_kept(self) -> None:
        """What was acknowledged is taken by the server, or queued for it; until a reset."""
        if self.resets or self.line.acknowledged < 0:
            return
        receiver = self.flow.receiver
        acknowledged = self.line.acknowledged - receiver.fin_consumed
        assert acknowledged <= len(self.server.received) + receiver.queued

    # -- the end

    def teardown(self) -> None:
        """Heal everything, close both sides, let time pass: the flow ends with all delivered."""
        if not hasattr(self, "server"):
            return
        if not self.is_connected:
            self.the_server_accepts()
        self.server.takes = self.server.most = float("inf")
        self.ending = self.server.ended = True
        self.guest.capacity, self.guest.closing = 1 << 20, True
        self.guest.cut = 1 << 16
        self.end_turn()
        # A narrow way (28 octets a segment) after a loss: 200,000 octets take thousands of rounds.
        for _ in range(20_000):
            self.guest.unread = 0
            self.guest.transmits(self.now)
            self.a_round_goes_well()
            self.advance(self.now + ROUND_TRIP)
            if not self.guest.wire and not self.to_guest:
                if self.flow.finished and not self.guest.wants:
                    break
                guests = self.guest.repeat_at if self.guest.wants else float("inf")
                self.advance(min(self.flow.deadline(), guests))
        assert self.flow.finished, f"{self.flow.guest_state}, {self.flow.host_state}: no end"
        assert self.server.closed, "a descriptor is lost"
        if self.resets:
            self._check_reset()
        else:
            assert not self.server.was_reset
            assert self.server.received == FROM_GUEST[: self.guest.written]
            assert self.server.ended_in_order
            assert self.guest.received == self.said
            assert self.guest.finished

    def _check_reset(self) -> None:
        """Each side has ended in order, or has heard of the reset if it could."""
        if not self.server.ended_in_order:
            assert self.server.was_reset or self.flow.host_state is HostState.FAILED
        assert self.guest.reset or not self.guest.wants


def run(**limits: Any) -> None:
    run_state_machine_as_test(TcpMachine, settings=settings(deadline=None, **limits))


def test_any_story_of_a_connection_ends_well() -> None:
    """Whatever the wire, the guest and the server do to each other."""
    run(max_examples=500, stateful_step_count=50)


@pytest.mark.deep
@pytest.mark.timeout(0)
def test_many_long_stories_of_a_connection_end_well() -> None:
    """The same for half an hour; in 20 runs, as Hypothesis remembers all of one in memory."""
    for _ in range(20):
        run(max_examples=1_000, stateful_step_count=150)
