"""What one half of a flow owes the other, in each state in which the debt can fall due.

`test_states` compares the tables with themselves; here a server that takes nothing holds the last
octets of a guest that goes on closing, so that each of these states has something to lose.
"""

import pytest

from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.wire.packets import ACK, FIN, RST
from tests.nat.tcp.conversation import Conversation

G, H = GuestState, HostState

SERVER_FIRST = (G.FIN_WAIT_1, G.FIN_WAIT_2, G.CLOSING, G.TIME_WAIT)
GUEST_FIRST = (G.CLOSE_WAIT, G.LAST_ACK, G.CLOSED)
FINISHED = (*GUEST_FIRST, G.CLOSING, G.TIME_WAIT)


def with_octets_left(state: GuestState) -> Conversation:
    """The guest has said hello, the server has not taken it, and the guest half is in `state`."""
    talk = Conversation.open()
    guest, host = talk.guest, talk.host
    host.takes(0)
    guest.sends(ACK, b"hello")
    if state in SERVER_FIRST:
        host.ends()
        if state in (G.FIN_WAIT_2, G.TIME_WAIT):
            guest.sends(ACK, ack=1)
        if state is G.TIME_WAIT:
            guest.sends(FIN | ACK, ack=1)
        if state is G.CLOSING:
            guest.sends(FIN | ACK, ack=0)
    if state in GUEST_FIRST:
        guest.sends(FIN | ACK)
        if state is not G.CLOSE_WAIT:
            host.ends()
        if state is G.CLOSED:
            guest.sends(ACK, ack=1)
    assert talk.flow.guest_state is state
    guest.loses_everything()
    return talk


@pytest.mark.parametrize("state", [G.ESTABLISHED, *SERVER_FIRST[:3], *GUEST_FIRST[:2]])
def test_a_server_that_fails_is_a_reset_while_the_guest_can_hear_one(state: GuestState) -> None:
    """Its hello is lost, and no FIN that it has sent or got makes that an orderly end."""
    talk = with_octets_left(state)
    talk.host.fails()
    talk.guest.gets(RST | ACK)
    assert talk.states == (G.RESET, H.FAILED)
    talk.assert_over()


@pytest.mark.parametrize("state", FINISHED)
def test_the_guests_fin_follows_its_last_octet_from_every_state(state: GuestState) -> None:
    """However far the closing has come on the guest's side, the server gets all, and the end."""
    talk = with_octets_left(state)
    assert not talk.host.socket.shut
    talk.host.takes(100)
    assert talk.host.received == b"hello"
    assert talk.host.socket.shut
