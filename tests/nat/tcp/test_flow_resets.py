"""Resets cross as resets, in every state; and only those that can be no forgery are believed."""

import pytest

from qemu_usernat.nat.tcp.states import (
    GUEST_GONE,
    HOST_HOLDS_SOCKET,
    SYNCHRONISED,
    GuestState,
    HostState,
)
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST
from tests.nat.tcp.conversation import MSS, Conversation, in_state, names

G, H = GuestState, HostState
IN_ALL = pytest.mark.parametrize("state", sorted(SYNCHRONISED, key=str))


@IN_ALL
def test_a_reset_outside_the_window_is_nothing(state: GuestState) -> None:
    """RFC 9293, 3.10.7.4, first: no ACK for it either."""
    talk = in_state(state)
    talk.guest.sends(RST, at=talk.guest.position - 2)
    talk.guest.sends(RST, b"that reaches into it", at=talk.guest.position - 2)
    talk.guest.sends(RST, at=talk.guest.position + (1 << 24))
    talk.guest.gets_nothing()
    assert talk.flow.guest_state is state


def test_a_reset_with_octets_in_flight_stands_behind_them() -> None:
    """The guest's kernel takes it at RCV.NXT, once the octets before it have come."""
    talk = Conversation.open()
    talk.host.says(b"hello")
    talk.host.breaks()
    talk.guest.gets(PSH | ACK, b"hello")
    talk.guest.gets(RST | ACK, at=5)


def test_a_reset_drops_what_the_server_has_not_taken() -> None:
    """The guest took its words back; there is nothing to be delivered and nothing to wait for."""
    talk = Conversation.open()
    talk.host.takes(0)
    talk.guest.sends(ACK, bytes(MSS))
    talk.guest.gets(ACK)
    talk.guest.sends(RST)
    assert talk.host.socket.was_reset
    assert talk.flow.receiver.queued == 0
    talk.assert_over()


def test_a_reset_counts_in_a_closed_window() -> None:
    """RFC 9293, 3.10.7.4: the window may be zero, the number is the same."""
    talk = Conversation.open()
    talk.host.takes(0)
    while talk.line.edge > talk.guest.position:
        talk.guest.sends(ACK, bytes(min(MSS, talk.line.edge - talk.guest.position)))
    talk.guest.loses_everything()
    talk.guest.sends(RST, at=talk.guest.position + 1)
    assert talk.flow.guest_state is G.ESTABLISHED
    talk.guest.sends(RST)
    assert talk.host.socket.was_reset


def test_what_comes_after_a_reset_belongs_to_nobody() -> None:
    """RFC 9293, 3.10.7.1: it is answered by a reset, in the same turn, too."""
    talk = Conversation.open()
    with talk.turn():
        talk.guest.sends(RST)
        talk.guest.sends(PSH | ACK, b"hello", at=0)
        talk.guest.sends(FIN | ACK, at=5)
    talk.guest.gets(RST, at=0)
    talk.guest.gets(RST, at=0)
    talk.guest.gets_nothing()
    assert talk.host.received == b""


def test_a_failure_told_twice_is_told_once() -> None:
    """The poller may report an error on reading and on writing in the same turn."""
    talk = Conversation.open()
    with talk.turn():
        talk.host.fails()
        talk.host.fails()
    talk.guest.gets(RST | ACK)
    talk.guest.gets_nothing()
    talk.assert_over()


@pytest.mark.parametrize(
    ("at", "challenged"), [(1, True), (65_534, True), (65_535, False), (-1, False)]
)
def test_the_borders_of_a_challenge(at: int, challenged: bool) -> None:
    """RFC 5961, 3.2: a RST inside the window, but not at its beginning, is asked about."""
    talk = Conversation.open(scale=None)
    talk.guest.sends(RST, at=at)
    assert talk.flow.guest_state is G.ESTABLISHED
    assert talk.counters["tcp.challenge_ack"] == challenged
    assert talk.counters["tcp.reset_out_of_window"] == (not challenged)


@pytest.mark.parametrize(
    "state", [state for state in GuestState if state not in GUEST_GONE], ids=str
)
def test_a_bug_of_ours_ends_the_flow_in_every_state(state: GuestState) -> None:
    """Both sides hear at once that it is over, and nothing of it is left; nor does it matter
    whether the turn is ended in which it showed."""
    talk = in_state(state)
    held = talk.flow.host_state in HOST_HOLDS_SOCKET
    talk.flow.break_off()
    talk.assert_over()
    talk.end_turn()
    told = [names(segment.flags) for segment in talk.guest.loses_everything()]
    assert told == {G.SYN_SENT: ["RST"], G.TIME_WAIT: []}.get(state, ["RST,ACK"])
    talk.assert_over()
    assert talk.host.socket.was_reset == held


def test_a_bug_after_the_end_of_the_host_half() -> None:
    """A socket that was given back is not given back again."""
    talk = Conversation.open()
    talk.host.breaks()
    talk.guest.gets(RST | ACK)
    talk.flow.break_off()
    talk.assert_over()
