"""The tables of the TCP flow hold together, and the flow can do nothing that is not in them."""

import ast
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import pytest

import qemu_usernat
from qemu_usernat.nat.tcp import flow as flow_module
from qemu_usernat.nat.tcp import guest_half
from qemu_usernat.nat.tcp.guest_half import TIME_WAIT
from qemu_usernat.nat.tcp.opening import TcpSettings, open_flow
from qemu_usernat.nat.tcp.states import (
    DUTIES,
    GUEST_FINISHED,
    GUEST_GONE,
    GUEST_TABLE,
    GUEST_TRANSITIONS,
    HOST_HOLDS_SOCKET,
    HOST_TABLE,
    HOST_TRANSITIONS,
    JOINT_RULES,
    SYNCHRONISED,
    Duty,
    GuestEvent,
    GuestState,
    HostEvent,
    HostState,
    Transition,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import InternalError
from qemu_usernat.primitives.time import HOUR
from qemu_usernat.wire.packets import ACK, FIN, RST, SYN, TcpSegment
from tests.nat.tcp.conversation import KEY, SECRET, Conversation, Line, in_state

G, H = GuestState, HostState
StateT = TypeVar("StateT", bound=Enum)
EventT = TypeVar("EventT", bound=Enum)


def reachable(table: Mapping[tuple[StateT, EventT], StateT], *starts: StateT) -> set[StateT]:
    """Every state that some events lead to."""
    found, fresh = set(starts), list(starts)
    while fresh:
        state = fresh.pop()
        for (source, _), target in table.items():
            if source is state and target not in found:
                found.add(target)
                fresh.append(target)
    return found


def test_no_row_stands_twice() -> None:
    """A pair of state and event has one row: nobody has to guess which of two counts."""
    assert len(GUEST_TABLE) == len(GUEST_TRANSITIONS)
    assert len(HOST_TABLE) == len(HOST_TRANSITIONS)
    rules = [(rule.guest, rule.host, rule.duty) for rule in JOINT_RULES]
    assert len(set(rules)) == len(rules)


def test_every_state_is_reached_from_the_start() -> None:
    """No row is dead: each state of a row can be come to from where flows begin."""
    assert reachable(GUEST_TABLE, G.SYN_HELD, G.SYN_SENT) == set(GuestState)
    assert reachable(HOST_TABLE, H.IDLE) == set(HostState)


def test_every_event_is_of_use() -> None:
    """An event without a row would be one that the flow can never take."""
    assert {row.event for row in GUEST_TRANSITIONS} == set(GuestEvent)
    assert {row.event for row in HOST_TRANSITIONS} == set(HostEvent)
    assert {rule.duty for rule in JOINT_RULES} == set(Duty)


def test_every_row_says_why() -> None:
    """Whoever reads the page made from the tables learns the reason for each row."""
    assert all(row.reason for row in GUEST_TRANSITIONS)
    assert all(row.reason for row in HOST_TRANSITIONS)
    assert all(rule.reason for rule in JOINT_RULES)


@pytest.mark.parametrize("state", GuestState)
def test_the_guest_half_can_always_end(state: GuestState) -> None:
    """From each state there is a way to the end, and from the end there is none."""
    ends = reachable(GUEST_TABLE, state) & GUEST_GONE
    assert ends
    if state in GUEST_GONE:
        assert reachable(GUEST_TABLE, state) == {state}


@pytest.mark.parametrize("state", HostState)
def test_the_host_half_can_always_end(state: HostState) -> None:
    """Whoever holds a socket can fail, give it up, and thereby end."""
    if state in HOST_HOLDS_SOCKET:
        assert HOST_TABLE[state, HostEvent.FAILED] is H.FAILED
        assert HOST_TABLE[state, HostEvent.DROPPED] is H.CLOSED
    elif state is not H.IDLE:
        assert reachable(HOST_TABLE, state) == {state}


@pytest.mark.parametrize("state", sorted(SYNCHRONISED, key=str))
def test_a_reset_ends_every_connection(state: GuestState) -> None:
    """RFC 9293, 3.10.7.4, second, and 3.10.5: whoever resets, the connection is gone.

    Only what the guest had said to its end is still delivered.
    """
    after = G.CLOSED if state in GUEST_FINISHED else G.RESET
    assert GUEST_TABLE[state, GuestEvent.RST_RECEIVED] is after
    assert GUEST_TABLE[state, GuestEvent.ABORTED] is G.RESET


def test_the_guest_half_is_rfc_9293() -> None:
    """The orderly rows are figure 5 of RFC 9293, of a server whose accept waits, or a client."""
    orderly = {
        (row.state, row.event, row.target)
        for row in GUEST_TRANSITIONS
        if row.event not in (GuestEvent.RST_RECEIVED, GuestEvent.ABORTED)
    }
    events = GuestEvent
    assert orderly == {
        (G.SYN_HELD, events.SYN_ANSWERED, G.SYN_RECEIVED),
        (G.SYN_RECEIVED, events.SYN_ACKED, G.ESTABLISHED),
        (G.SYN_SENT, events.SYN_ACCEPTED, G.ESTABLISHED),
        (G.SYN_SENT, events.SYN_CROSSED, G.SYN_RECEIVED),
        (G.ESTABLISHED, events.FIN_SENT, G.FIN_WAIT_1),
        (G.FIN_WAIT_1, events.FIN_ACKED, G.FIN_WAIT_2),
        (G.FIN_WAIT_1, events.FIN_RECEIVED, G.CLOSING),
        (G.FIN_WAIT_2, events.FIN_RECEIVED, G.TIME_WAIT),
        (G.CLOSING, events.FIN_ACKED, G.TIME_WAIT),
        (G.TIME_WAIT, events.TIME_WAIT_OVER, G.CLOSED),
        (G.ESTABLISHED, events.FIN_RECEIVED, G.CLOSE_WAIT),
        (G.CLOSE_WAIT, events.FIN_SENT, G.LAST_ACK),
        (G.LAST_ACK, events.FIN_ACKED, G.CLOSED),
    }


@pytest.mark.parametrize("event", GuestEvent)
@pytest.mark.parametrize("state", GuestState)
def test_the_guest_half_moves_by_its_table_alone(state: GuestState, event: GuestEvent) -> None:
    """Each pair is in the table or refused by name: there is no third way."""
    flow = Conversation().flow
    flow.guest_state = state
    target = GUEST_TABLE.get((state, event))
    if target is None:
        with pytest.raises(InternalError) as refusal:
            flow._move_guest(event)
        assert str(state) in str(refusal.value)
        assert str(event) in str(refusal.value)
        assert flow.guest_state is state
    else:
        flow._move_guest(event)
        assert flow.guest_state is target


@pytest.mark.parametrize("event", HostEvent)
@pytest.mark.parametrize("state", HostState)
def test_the_host_half_moves_by_its_table_alone(state: HostState, event: HostEvent) -> None:
    """As for the guest half; and the descriptor is given back where the target holds none."""
    talk = Conversation()
    flow = talk.flow
    flow.host_state = state
    target = HOST_TABLE.get((state, event))
    if target is None:
        with pytest.raises(InternalError) as refusal:
            flow._move_host(event)
        assert str(state) in str(refusal.value)
        assert str(event) in str(refusal.value)
    else:
        flow._move_host(event)
        assert flow.host_state is target
        held = state in HOST_HOLDS_SOCKET and target not in HOST_HOLDS_SOCKET
        assert talk.host.socket.closed is held


def assignments(source: str) -> Iterator[tuple[str, str]]:
    """Where a half's state is set: the function, and which of the two."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    yield function.name, node.attr


def test_nothing_but_the_tables_moves_a_state() -> None:
    """Every transition that is ever taken has been looked up; a call of ours begins elsewhere."""
    sources = (file.read_text() for file in Path(qemu_usernat.__file__).parent.rglob("*.py"))
    found = [place for source in sources for place in assignments(source)]
    assert sorted(place for place in found if place[1] in ("guest_state", "host_state")) == [
        ("_move_guest", "guest_state"),
        ("_move_host", "host_state"),
        ("call", "guest_state"),
    ]


@pytest.mark.parametrize("host", HostState)
@pytest.mark.parametrize("guest", GuestState)
def test_each_pair_owes_what_it_should(guest: GuestState, host: HostState) -> None:
    """What one half owes the other, said once more in plain conditions."""
    duties = DUTIES[guest, host]
    assert (Duty.ANSWER_SYN in duties) == (guest is G.SYN_HELD and host is H.OPEN)
    assert (Duty.REFUSE_SYN in duties) == (guest is G.SYN_HELD and host is H.FAILED)
    has_a_connection = guest in SYNCHRONISED or guest is G.SYN_SENT
    assert (Duty.RESET_GUEST in duties) == (has_a_connection and host is H.FAILED)
    assert (Duty.HANG_UP in duties) == (guest is G.CLOSED and host is H.WRITE_SHUT)
    assert (Duty.RESET_HOST in duties) == (guest is G.RESET and host in HOST_HOLDS_SOCKET)
    server_has_ended = host in (H.READ_EOF, H.CLOSED)
    fin_unsent = guest in (G.ESTABLISHED, G.CLOSE_WAIT)
    assert (Duty.SEND_FIN in duties) == (server_has_ended and fin_unsent)
    assert (Duty.SHUT_HOST in duties) == (guest in GUEST_FINISHED and host in (H.OPEN, H.READ_EOF))


def test_what_is_over_owes_nothing() -> None:
    """When both halves have ended no duty is left: the flow can be forgotten."""
    for guest in GUEST_GONE:
        for host in set(HostState) - HOST_HOLDS_SOCKET:
            assert DUTIES[guest, host] == ()


class Recorder(dict[tuple[Any, Any], Any]):
    """A table that remembers which of its rows were taken."""

    def __init__(self, table: Mapping[tuple[Any, Any], Any]) -> None:
        super().__init__(table)
        self.taken: set[tuple[Any, Any]] = set()

    def get(self, key: tuple[Any, Any], default: Any = None) -> Any:
        self.taken.add(key)
        return super().get(key, default)


GUEST_STORIES: dict[GuestEvent, Callable[[Conversation], None]] = {
    GuestEvent.SYN_ANSWERED: lambda talk: talk.host.connects(),
    GuestEvent.SYN_ACKED: lambda talk: talk.guest.sends(ACK),
    GuestEvent.SYN_ACCEPTED: lambda talk: talk.guest.sends(SYN | ACK),
    GuestEvent.SYN_CROSSED: lambda talk: talk.guest.sends(SYN),
    GuestEvent.FIN_RECEIVED: lambda talk: talk.guest.sends(FIN | ACK, ack=talk.flow.sender.end),
    GuestEvent.FIN_SENT: lambda talk: talk.host.ends(),
    GuestEvent.FIN_ACKED: lambda talk: talk.guest.sends(ACK),
    GuestEvent.RST_RECEIVED: lambda talk: talk.guest.sends(RST | ACK),
    GuestEvent.TIME_WAIT_OVER: lambda talk: talk.advance(TIME_WAIT),
}
"""What brings each event about, from outside."""


def abort(talk: Conversation) -> None:
    """The server breaks the connection; where it has no socket any more, the guest falls silent."""
    talk.host.fails()
    talk.advance(HOUR)


@pytest.mark.parametrize("row", GUEST_TRANSITIONS, ids=lambda row: f"{row.state} {row.event}")
def test_each_row_of_the_guest_half_is_taken_by_a_conversation(
    row: Transition[GuestState, GuestEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is there for completeness: guests, servers and time make each of them happen."""
    talk = in_state(row.state)
    taken = Recorder(GUEST_TABLE)
    monkeypatch.setattr(guest_half, "GUEST_TABLE", taken)
    GUEST_STORIES.get(row.event, abort)(talk)
    assert (row.state, row.event) in taken.taken


def host_in(state: HostState) -> Conversation:
    """A conversation whose host half has come to `state`."""
    if state in (H.IDLE, H.DIALING):
        return Conversation()
    talk = Conversation.open()
    if state is H.READ_EOF:
        talk.host.ends()
    elif state is H.WRITE_SHUT:
        talk.guest.sends(FIN | ACK)
    assert talk.flow.host_state is state
    return talk


HOST_STORIES: dict[HostEvent, Callable[[Conversation], None]] = {
    HostEvent.CONNECTED: lambda talk: talk.host.connects(),
    HostEvent.FAILED: lambda talk: talk.host.fails(),
    HostEvent.EOF: lambda talk: talk.host.ends(),
    HostEvent.SHUT: lambda talk: talk.guest.sends(FIN | ACK),
    HostEvent.DROPPED: lambda talk: talk.guest.sends(RST | ACK),
}


@pytest.mark.parametrize("row", HOST_TRANSITIONS, ids=lambda row: f"{row.state} {row.event}")
def test_each_row_of_the_host_half_is_taken_by_a_conversation(
    row: Transition[HostState, HostEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the guest half; a flow that nobody has dialled for yet is the owner's to fail."""
    taken = Recorder(HOST_TABLE)
    if row.state is H.IDLE:
        monkeypatch.setattr(flow_module, "HOST_TABLE", taken)
        if row.event is HostEvent.FAILED:
            settings = TcpSettings(1500, SECRET)
            syn = TcpSegment(40000, 80, 0, 0, SYN, 65535)
            flow = open_flow(KEY, syn, Line(0, 0, 0), settings, Counters(), 0.0)
            flow.on_host_failed(None, 0.0)
        else:
            Conversation(calling=row.event is HostEvent.ACCEPTED)
    else:
        talk = host_in(row.state)
        monkeypatch.setattr(flow_module, "HOST_TABLE", taken)
        HOST_STORIES[row.event](talk)
    assert (row.state, row.event) in taken.taken
