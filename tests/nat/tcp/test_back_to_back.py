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
from attrs import evolve
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
from qemu_usernat.nat.tcp.opening import TcpSettings
from qemu_usernat.primitives.sequence import MODULUS
from qemu_usernat.wire.icmp import unreachable
from qemu_usernat.wire.packets import FIN, PSH
from tests.nat.tcp.ends import START, End
from tests.nat.tcp.machinery import CALLS, FROM_GUEST, FROM_HOST, ROUND_TRIP

ENDS = st.sampled_from([0, 1])
ISNS = st.sampled_from([0, MODULUS - 1, MODULUS - 2, MODULUS - 3000, 77])
MTUS = st.sampled_from([128, 576, 1500, 65520])
SIZES = st.sampled_from([1, 100, 1460, 5000, 5000, 70_000, 300_000])
CONGESTION = st.sampled_from(sorted(CONTROLS))


class TwinMachine(RuleBasedStateMachine):
    """Any story of two ends."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.ends: list[End] = []

    @initialize(
        isns=st.tuples(ISNS, ISNS),
        mtus=st.tuples(MTUS, MTUS),
        congestion=st.tuples(CONGESTION, CONGESTION),
        at_once=st.booleans(),
        handshake=st.sampled_from([True, True, False]),
        peaceful=st.sampled_from([True, True, False]),
        speech=st.sampled_from([0, 1, 5000, 400_000]),
        answer=st.sampled_from([0, 1, 5000, 100_000]),
        takes=st.sampled_from([float("inf"), float("inf"), 1000, 0]),
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
        takes: float,
    ) -> None:
        """The first end calls, or both do; mostly the handshake goes well."""
        self.peaceful = peaceful
        caller, called = self.ends = [
            End(TcpSettings(mtus[index], secret, congestion[index]), isns[index], words)
            for index, secret, words in (
                (0, b"the first secret", FROM_GUEST),
                (1, b"the other secret", FROM_HOST),
            )
        ]
        called.socket.takes = takes
        caller.meets(called)
        called.meets(caller)
        caller.calls(self.now)
        if at_once:
            called.calls(self.now)
        caller.says(speech)
        self.end_turns()
        if handshake:
            for _ in range(3):
                self.deliver_everything()
                self.the_server_does_accept()
        called.says(answer)
        self.end_turns()

    def end_turns(self) -> None:
        for end in self.ends:
            end.ends_turn(self.now)

    @property
    def in_order(self) -> bool:
        """Whether nobody has had a reason for a reset."""
        return not any(end.had_reason for end in self.ends)

    # -- the hosts

    @rule()
    def the_server_accepts(self) -> None:
        self.the_server_does_accept()

    def the_server_does_accept(self) -> None:
        self.ends[1].accepts(self.now)
        self.ends[1].ends_turn(self.now)

    @rule(code=st.sampled_from([None, 1, 3]))
    def the_server_refuses(self, code: int | None) -> None:
        """By a reset, or by ICMP, which a caller waits through: it asks again, and is reset."""
        end = self.ends[1]
        if not self.peaceful and end.flow is not None and end.is_dialling:
            end.given_up = True
            refusal = None if code is None else unreachable(code)
            end.flow.on_host_failed(refusal, self.now + end.clock)
            end.ends_turn(self.now)

    @rule(index=ENDS, size=SIZES)
    def a_host_says(self, index: int, size: int) -> None:
        self.ends[index].says(size)
        self.ends[index].ends_turn(self.now)

    @rule(index=ENDS, size=st.sampled_from([0, 1000, 100_000, 1 << 22, 1 << 22]))
    def a_host_reads(self, index: int, size: int) -> None:
        self.ends[index].socket.takes = size
        self.ends[index].ends_turn(self.now)

    @rule(index=ENDS, size=st.sampled_from([1000, 30_000]))
    def writes_are_short(self, index: int, size: int) -> None:
        self.ends[index].socket.most = size
        self.ends[index].ends_turn(self.now)

    @rule(index=ENDS)
    def a_host_ends(self, index: int) -> None:
        if not self.ends[index].socket.broken:
            self.ends[index].socket.ended = True
            self.ends[index].ends_turn(self.now)

    @rule(index=ENDS)
    def a_host_resets(self, index: int) -> None:
        end = self.ends[index]
        if not self.peaceful and end.is_connected and not end.socket.closed:
            end.socket.broken = True
            end.ends_turn(self.now)

    @rule(index=ENDS, call=st.sampled_from(CALLS))
    def a_call_will_fail(self, index: int, call: str) -> None:
        end = self.ends[index]
        if not self.peaceful and end.is_connected:
            end.socket.failing.add(call)
            end.ends_turn(self.now)

    @rule(index=ENDS, stalled=st.booleans())
    def a_link_takes_no_more(self, index: int, stalled: bool) -> None:
        """Or again; then the owner of the flow tells it, by a turn."""
        self.ends[index].line.is_stalled = stalled
        self.ends[index].ends_turn(self.now)

    # -- the wire

    @rule()
    def a_round_goes_well(self) -> None:
        self.deliver_everything()

    def deliver_everything(self) -> None:
        """All that is on its way arrives, at one end and then at the other."""
        for end in reversed(self.ends):
            batch, end.peer.wire[:] = end.peer.wire[:], []
            for segment in batch:
                end.hears(segment, self.now)
            end.ends_turn(self.now)

    @rule(data=st.data(), index=ENDS, count=st.integers(1, 20), together=st.booleans())
    def an_end_hears(self, data: st.DataObject, index: int, count: int, together: bool) -> None:
        """Some segments in order, from a place of choice: one turn for all, or one for each."""
        end = self.ends[index]
        wire = end.peer.wire
        if wire:
            first = data.draw(st.integers(0, len(wire) - 1))
            batch, wire[first : first + count] = wire[first : first + count], []
            for segment in batch:
                end.hears(segment, self.now)
                if not together:
                    end.ends_turn(self.now)
            end.ends_turn(self.now)

    @rule(data=st.data(), index=ENDS)
    def an_end_hears_it_cut_anew(self, data: st.DataObject, index: int) -> None:
        """One segment becomes two, which may change their order."""
        end = self.ends[index]
        wire = end.peer.wire
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
            end.hears(part, self.now)
        end.ends_turn(self.now)

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
            for end in self.ends:
                if end.deadline() <= self.now:
                    end.rings(self.now)
        raise AssertionError(f"an alarm rings for ever at {self.now}")

    # -- what always holds, and the end

    @invariant()
    def what_always_holds(self) -> None:
        for end in self.ends:
            end.check(self.now, in_order=self.in_order)

    def teardown(self) -> None:
        """Heal everything, close both sides, let time pass: both flows end."""
        if not self.ends:
            return
        for end in self.ends:
            end.socket.takes = end.socket.most = float("inf")
            end.socket.ended = True
            end.line.is_stalled = False
        self.end_turns()
        for _ in range(2000):
            self.deliver_everything()
            self.the_server_does_accept()
            self.advance(self.now + ROUND_TRIP)
            if not any(end.wire for end in self.ends):
                if all(end.is_over for end in self.ends):
                    break
                self.advance(min(end.deadline() for end in self.ends))
        for end in self.ends:
            end.check(self.now, in_order=self.in_order)
            end.check_end(in_order=self.in_order)


def run(**limits: Any) -> None:
    run_state_machine_as_test(TwinMachine, settings=settings(deadline=None, **limits))


def test_any_story_of_two_ends_ends_well() -> None:
    """Whoever called, whatever the wire and both hosts do."""
    run(max_examples=350, stateful_step_count=50)


def test_a_host_that_reads_again_opens_the_window() -> None:
    """At once, and not when the other end asks: a story too rare to wait for."""
    machine = TwinMachine()
    machine.begin(
        isns=(0, 0),
        mtus=(65520, 65520),
        congestion=("none", "none"),
        at_once=False,
        handshake=True,
        peaceful=True,
        speech=400_000,
        answer=0,
        takes=0,
    )
    machine.deliver_everything()
    machine.deliver_everything()
    reader = machine.ends[1]
    assert reader.line.edge == reader.peer.sent, "closed"
    machine.a_host_reads(index=1, size=1 << 22)
    machine.what_always_holds()
    assert reader.line.edge > reader.peer.sent
    machine.teardown()


@pytest.mark.deep
@pytest.mark.timeout(0)
def test_many_long_stories_of_two_ends_end_well() -> None:
    """The same for half an hour; in 12 runs, as Hypothesis remembers all of one in memory."""
    for _ in range(12):
        run(max_examples=1_000, stateful_step_count=150)
