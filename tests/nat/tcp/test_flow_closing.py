"""How a connection ends in order: each direction by itself, and nothing acknowledged is lost."""

import pytest

from qemu_usernat.nat.tcp.guest_half import TIME_WAIT
from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN
from tests.nat.tcp.conversation import GUEST_ISN, MSS, Conversation, in_state

G, H = GuestState, HostState


def test_the_guest_ends_first() -> None:
    """RFC 9293, 3.6, figure 12, from the other side: CLOSE-WAIT, LAST-ACK, CLOSED."""
    talk = Conversation.open()
    talk.guest.sends(FIN | ACK)
    talk.guest.gets(ACK, ack=1)
    assert talk.host.socket.shut
    assert talk.states == (G.CLOSE_WAIT, H.WRITE_SHUT)
    talk.host.ends()
    talk.guest.gets(FIN | ACK, at=0)
    assert talk.states == (G.LAST_ACK, H.CLOSED)
    talk.guest.sends(ACK)
    talk.guest.gets_nothing()
    talk.assert_over()
    assert not talk.host.socket.was_reset


def test_the_server_ends_first() -> None:
    """FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT, CLOSED."""
    talk = Conversation.open()
    talk.host.ends()
    talk.guest.gets(FIN | ACK, at=0, ack=0)
    assert talk.states == (G.FIN_WAIT_1, H.READ_EOF)
    talk.guest.sends(ACK)
    assert talk.flow.guest_state is G.FIN_WAIT_2
    talk.guest.sends(FIN | ACK)
    talk.guest.gets(ACK, ack=1)
    assert talk.states == (G.TIME_WAIT, H.CLOSED)
    talk.advance(TIME_WAIT + 0.1)
    talk.guest.gets_nothing()
    talk.assert_over()


def test_both_end_at_once() -> None:
    """RFC 9293, 3.6, figure 13: the FINs cross, CLOSING, TIME-WAIT."""
    talk = Conversation.open()
    talk.host.ends()
    talk.guest.sends(FIN | ACK, ack=0)
    talk.guest.gets(FIN | ACK, at=0, ack=0)
    talk.guest.gets(ACK, at=1, ack=1)
    assert talk.states == (G.CLOSING, H.CLOSED)
    talk.guest.sends(ACK)
    assert talk.flow.guest_state is G.TIME_WAIT


def test_a_fin_and_the_ack_of_ours_in_one_segment() -> None:
    """What most kernels send: FIN-WAIT-1 to TIME-WAIT in one step."""
    talk = Conversation.open()
    talk.host.ends()
    talk.guest.gets(FIN | ACK)
    talk.guest.sends(FIN | ACK)
    talk.guest.gets(ACK, ack=1)
    assert talk.flow.guest_state is G.TIME_WAIT


def test_the_guests_fin_is_acknowledged_each_time() -> None:
    """Our ACK was lost."""
    talk = in_state(G.CLOSE_WAIT)
    for _ in range(3):
        talk.guest.sends(FIN | ACK, at=0)
        talk.guest.gets(ACK, ack=1)
    assert talk.flow.guest_state is G.CLOSE_WAIT


def test_a_fin_that_overtakes_its_data_waits() -> None:
    """The server hears of the end when it has heard all before it."""
    talk = Conversation.open()
    talk.guest.sends(FIN | ACK, at=5)
    talk.guest.gets(ACK, ack=0)
    assert not talk.host.socket.shut
    talk.guest.sends(PSH | ACK, b"hello", at=0)
    talk.guest.gets(ACK, ack=6)
    assert talk.host.received == b"hello"
    assert talk.host.socket.shut


def test_what_was_acknowledged_is_delivered_after_the_guest_has_gone() -> None:
    """The guest has closed, has been acknowledged, has forgotten; the server still reads."""
    talk = Conversation.open()
    talk.host.takes(0)
    talk.guest.sends(ACK, bytes(range(250)) * 40)
    talk.host.ends()
    talk.guest.loses_everything()
    talk.guest.expects = 1
    talk.guest.sends(FIN | ACK)
    talk.guest.gets(ACK, ack=10_001)
    talk.advance(2 * TIME_WAIT)
    assert talk.flow.guest_state is G.CLOSED
    assert not talk.flow.finished
    talk.advance(3600)
    talk.host.takes(5000)
    assert not talk.host.socket.shut
    talk.host.takes(5000)
    assert talk.host.received == bytes(range(250)) * 40
    assert talk.host.socket.shut
    assert not talk.host.socket.was_reset
    talk.assert_over()


def test_a_server_that_reads_slowly_for_hours_gets_everything() -> None:
    """It takes a little every hour: that is slow, not dead."""
    talk = Conversation.open()
    talk.host.takes(0)
    talk.guest.sends(ACK, bytes(1000))
    talk.host.ends()
    talk.guest.loses_everything()
    talk.guest.expects = 1
    talk.guest.sends(FIN | ACK)
    for _ in range(10):
        talk.advance(3600)
        talk.host.takes(100)
    assert len(talk.host.received) == 1000
    assert not talk.host.socket.was_reset
    talk.assert_over()


def test_a_server_that_never_reads_is_given_up_at_last() -> None:
    """A descriptor is not kept for ever."""
    talk = Conversation.open()
    talk.host.takes(0)
    talk.guest.sends(ACK, bytes(1000))
    talk.host.ends()
    talk.guest.loses_everything()
    talk.guest.expects = 1
    talk.guest.sends(FIN | ACK)
    talk.advance(3 * 3600)
    assert talk.host.socket.was_reset
    talk.assert_over()


def test_a_failed_shutdown_when_the_server_has_ended_too() -> None:
    """Both directions had ended for the guest as well: it is told nothing new."""
    talk = in_state(G.FIN_WAIT_2)
    talk.host.socket.shut_fails = True
    talk.guest.sends(FIN | ACK)
    talk.guest.gets(ACK, ack=1)
    assert talk.states == (G.TIME_WAIT, H.FAILED)
    talk.advance(2 * TIME_WAIT)
    talk.assert_over()


def test_time_wait_answers_the_fin_that_comes_again_and_starts_anew() -> None:
    """RFC 9293, 3.10.7.4, eighth: our last ACK was lost."""
    talk = in_state(G.TIME_WAIT)
    talk.advance(9)
    talk.guest.sends(FIN | ACK, at=0)
    talk.guest.gets(ACK, at=1, ack=1)
    talk.advance(9.5)
    assert talk.flow.guest_state is G.TIME_WAIT
    talk.advance(1.1)
    talk.assert_over()


@pytest.mark.parametrize(
    ("flags", "at"),
    [(ACK, 1), (SYN, -1), (RST | ACK, 1), (FIN | ACK, 1), (FIN | ACK, -5000), (FIN | RST | ACK, 0)],
)
def test_time_wait_ends_in_time_whatever_else_comes(flags: int, at: int) -> None:
    """RFC 9293, 3.10.7.4: what may come is the guest's FIN again, and only that starts anew."""
    talk = in_state(G.TIME_WAIT)
    for _ in range(3):
        talk.advance(3)
        talk.guest.sends(flags, at=at)
        assert talk.states[0] is G.TIME_WAIT
    talk.advance(1.001)
    talk.assert_over()


def test_time_wait_is_not_assassinated() -> None:
    """RFC 1337: a RST does not shorten it."""
    talk = in_state(G.TIME_WAIT)
    talk.guest.sends(RST)
    assert talk.flow.guest_state is G.TIME_WAIT


def test_time_wait_yields_to_a_later_syn_only() -> None:
    """RFC 9293, 3.10.7.4 (MAY-2): a new incarnation begins beyond the old one."""
    talk = in_state(G.TIME_WAIT)
    fin = GUEST_ISN + 1
    for sequence in (fin - 500, GUEST_ISN, fin, fin + 1):
        assert not talk.flow.yields_to_syn(sequence, talk.now)
    assert talk.flow.yields_to_syn(fin + 2, talk.now)
    talk.assert_over()


def test_time_wait_ends_early_when_the_room_is_needed() -> None:
    """And only TIME-WAIT."""
    talk = in_state(G.TIME_WAIT)
    talk.flow.end_time_wait()
    talk.assert_over()
    other = in_state(G.FIN_WAIT_2)
    other.flow.end_time_wait()
    assert other.flow.guest_state is G.FIN_WAIT_2


@pytest.mark.parametrize("takes", [0, 1 << 20])
def test_the_network_ends(takes: int) -> None:
    """Descriptors are given back, whatever is queued."""
    talk = Conversation.open()
    talk.host.takes(takes)
    talk.guest.sends(ACK, bytes(MSS))
    talk.flow.abandon()
    talk.flow.abandon()
    assert talk.host.socket.closed


def test_an_ack_of_the_octets_is_no_ack_of_the_fin_behind_them() -> None:
    """RFC 9293, 3.10.7.4, fifth: FIN-WAIT-1 ends with the FIN's own number; until then it comes."""
    talk = Conversation.open()
    talk.host.says(b"hello")
    talk.host.ends()
    talk.guest.loses_everything()
    talk.guest.sends(ACK, ack=5)
    assert talk.states == (G.FIN_WAIT_1, H.READ_EOF)
    talk.advance(0.201)
    talk.guest.gets(FIN | ACK, at=5)
    talk.guest.sends(ACK, ack=6)
    assert talk.states == (G.FIN_WAIT_2, H.READ_EOF)


def test_a_server_that_reads_the_guests_last_words_moves_no_window() -> None:
    """After its FIN the guest sends nothing more: there is nothing to invite."""
    talk = Conversation.open()
    talk.host.takes(0)
    while room := talk.line.edge - talk.guest.position:
        talk.guest.sends(ACK, bytes(min(MSS, room)))
    talk.guest.sends(FIN | ACK)
    talk.guest.loses_everything()
    talk.host.takes(1 << 30)
    talk.guest.gets_nothing()
    assert talk.host.socket.shut


def test_last_words_for_a_server_that_has_failed_are_forgotten() -> None:
    """Both ends had ended, so nobody is reset; but nobody will take the octets either."""
    talk = in_state(G.FIN_WAIT_2)
    talk.host.takes(0)
    talk.guest.sends(PSH | FIN | ACK, b"unread")
    talk.guest.gets(ACK, ack=7)
    talk.host.fails()
    talk.guest.gets_nothing()
    assert talk.states == (G.TIME_WAIT, H.FAILED)
    assert talk.flow.receiver.queued == 0


def test_a_fin_behind_octets_that_have_come_before() -> None:
    """Our ACK was lost; the guest has closed meanwhile, and says all of it in one segment."""
    talk = Conversation.open()
    talk.guest.sends(ACK, b"hello")
    talk.guest.loses_everything()
    talk.guest.sends(PSH | FIN | ACK, b"hello", at=0)
    talk.guest.gets(ACK, ack=6)
    talk.guest.gets_nothing()
    assert talk.counters["tcp.out_of_order"] == 0
    assert talk.host.received == b"hello"
    assert talk.host.socket.shut


@pytest.mark.parametrize("server_ended", [False, True])
def test_a_reset_after_the_guests_fin_takes_nothing_back(server_ended: bool) -> None:
    """The guest has closed and forgotten, and its kernel resets what is told it later: a server
    that reads late reads all that was acknowledged, as it would without us between them."""
    talk = Conversation.open()
    talk.host.takes(0)
    talk.guest.sends(PSH | FIN | ACK, b"order")
    talk.guest.gets(ACK, ack=6)
    if server_ended:
        talk.host.ends()
        talk.guest.gets(FIN | ACK)
    talk.guest.sends(RST)
    talk.host.takes(100)
    assert talk.host.received == b"order"
    assert talk.host.socket.shut
    talk.guest.gets_nothing()
    talk.assert_over()


@pytest.mark.parametrize(
    ("flags", "answer"), [(PSH | ACK, (RST, 1, None)), (PSH, (RST | ACK, None, 12))]
)
def test_a_flow_that_is_over_but_for_its_server_resets(
    flags: int, answer: tuple[int, int | None, int | None]
) -> None:
    """RFC 9293, 3.10.7.1: for the guest it is closed, whatever the server has to read."""
    talk = Conversation.open()
    talk.host.takes(0)
    talk.guest.sends(PSH | FIN | ACK, b"unread")
    talk.host.ends()
    talk.guest.loses_everything()
    talk.guest.expects = 1
    talk.guest.sends(ACK)
    assert talk.flow.guest_state is G.CLOSED
    talk.guest.sends(flags, b"hello")
    expected, at, ack = answer
    talk.guest.gets(expected, b"", at=at, ack=ack)
    assert not talk.flow.finished
