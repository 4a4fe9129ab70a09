"""How a connection begins that a client of the host wants: we call, and the guest answers."""

import pytest

from qemu_usernat.nat.tcp.flow import SYN_RETRANSMISSIONS
from qemu_usernat.nat.tcp.keepalive import KEEPALIVE_IDLE
from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN
from tests.nat.tcp.conversation import MSS, Conversation, in_state

G, H = GuestState, HostState


def test_our_syn_offers_what_we_can_do() -> None:
    """MSS, selective acknowledgments, window scale; a window that is not scaled yet; no ACK."""
    talk = Conversation(calling=True)
    syn = talk.guest.gets(SYN, b"", at=-1)
    assert syn.options == b"\x02\x04\x05\xb4\x01\x01\x04\x02\x01\x03\x03\x08"
    assert syn.window == 65535
    talk.guest.gets_nothing()


@pytest.mark.parametrize(
    ("mss", "scale", "length"), [(MSS, 7, MSS), (None, 7, 536), (9000, None, MSS), (500, None, 500)]
)
def test_the_guests_answer_says_what_it_can_do(
    mss: int | None, scale: int | None, length: int
) -> None:
    """Its SYN,ACK holds for us what a SYN would: segments, and windows scaled or not."""
    talk = Conversation(calling=True, mss=mss, scale=scale, window=2000)
    talk.guest.gets(SYN)
    talk.guest.sends(SYN | ACK)
    talk.guest.gets(ACK, at=0, ack=0)
    talk.host.says(bytes(length))
    assert len(talk.guest.gets().payload) == length
    assert talk.flow.receiver.scale == (0 if scale is None else 8)


def test_a_call_from_end_to_end() -> None:
    """The client asks, the guest answers and ends, the client ends; nobody resets."""
    talk = in_state(G.SYN_SENT)
    talk.guest.sends(SYN | ACK)
    talk.guest.gets(ACK)
    talk.host.says(b"question")
    talk.guest.gets(PSH | ACK, b"question", at=0)
    talk.guest.sends(PSH | FIN | ACK, b"answer")
    talk.guest.gets(ACK, ack=7)
    assert talk.host.received == b"answer"
    assert talk.host.socket.shut
    talk.host.ends()
    talk.guest.gets(FIN | ACK, at=8)
    talk.guest.sends(ACK)
    talk.assert_over()
    assert not talk.host.socket.was_reset


def test_a_guest_that_has_just_answered_is_not_asked_whether_it_lives() -> None:
    """RFC 9293, 3.8.4: two hours after its last word, which is the answer, not our call."""
    talk = in_state(G.SYN_SENT)
    talk.advance(100)
    talk.guest.loses_everything()
    answered_at = talk.now
    talk.guest.sends(SYN | ACK)
    talk.guest.gets(ACK)
    talk.advance(KEEPALIVE_IDLE - 1)
    talk.guest.gets_nothing()
    talk.advance(1)
    talk.guest.gets(ACK, at=-1)
    assert talk.now == answered_at + KEEPALIVE_IDLE


@pytest.mark.parametrize("answer", [SYN | ACK, ACK], ids=["SYN,ACK", "ACK"])
def test_two_calls_that_cross_are_one_connection(answer: int) -> None:
    """RFC 9293, 3.5, figure 8: simultaneous open; the guest's own SYN comes, and no answer."""
    talk = in_state(G.SYN_SENT)
    talk.guest.sends(SYN)
    talk.guest.gets(SYN | ACK, at=-1, ack=0)
    assert talk.states == (G.SYN_RECEIVED, H.OPEN)
    talk.guest.sends(answer, ack=0)
    assert talk.states == (G.ESTABLISHED, H.OPEN)
    assert [segment.flags for segment in talk.guest.loses_everything()] == [ACK] * (answer != ACK)
    talk.host.says(b"hello")
    talk.guest.gets(PSH | ACK, b"hello", at=0, ack=0)
    talk.guest.sends(PSH | ACK, b"and hello")
    assert talk.host.received == b"and hello"


@pytest.mark.parametrize("number", [-4000, 4000])
def test_the_acknowledgment_of_a_bare_syn_means_nothing(number: int) -> None:
    """Without the flag the field may hold anything (RFC 9293, 3.1)."""
    talk = in_state(G.SYN_SENT)
    talk.guest.sends(SYN, ack=number)
    talk.guest.gets(SYN | ACK, at=-1, ack=0)
    assert talk.states == (G.SYN_RECEIVED, H.OPEN)


@pytest.mark.parametrize("number", [-1, 1])
def test_an_answer_to_another_call_is_refused(number: int) -> None:
    """RFC 9293, 3.10.7.3, first: a reset with the number that was acknowledged."""
    talk = in_state(G.SYN_SENT)
    talk.guest.sends(SYN | ACK, ack=number)
    talk.guest.gets(RST, at=number)
    talk.guest.gets_nothing()
    assert talk.states == (G.SYN_SENT, H.OPEN)


def test_a_lost_answer_to_crossing_calls_is_repeated() -> None:
    """Our SYN,ACK is lost as any other may be: the timer of our SYN goes on for it."""
    talk = in_state(G.SYN_SENT)
    talk.guest.sends(SYN)
    talk.guest.loses_everything()
    talk.advance(0.99)
    talk.guest.gets_nothing()
    talk.advance(0.02)
    talk.guest.gets(SYN | ACK, at=-1, ack=0)


def test_crossing_calls_tell_no_round_trip() -> None:
    """Karn (RFC 6298, 3): our SYN has gone out twice, the second time with its ACK."""
    talk = in_state(G.SYN_SENT)
    talk.guest.loses_everything()
    talk.advance(0.5)
    talk.guest.sends(SYN)
    talk.guest.gets(SYN | ACK, at=-1)
    talk.advance(0.001)
    talk.guest.sends(ACK)
    assert talk.states == (G.ESTABLISHED, H.OPEN)
    assert talk.flow.sender.round_trip.smoothed is None


def test_a_guest_that_refuses_is_a_reset_for_the_client() -> None:
    """RFC 9293, 3.10.7.3, second: nobody listens there, and the client hears it now."""
    talk = in_state(G.SYN_SENT)
    talk.guest.sends(RST | ACK, at=-1)
    talk.guest.gets_nothing()
    assert talk.host.socket.was_reset
    talk.assert_over()


def test_a_call_that_nobody_answers_is_repeated_and_given_up() -> None:
    """RFC 9293, 3.8.3 (MUST-23): after 1 s, 2 s, 4 s… for three minutes at least."""
    talk = in_state(G.SYN_SENT)
    talk.advance(0.005)
    for wait in (1, 2, 4):
        talk.advance(wait - 0.01)
        talk.guest.gets_nothing()
        talk.advance(0.01)
        talk.guest.gets(SYN, at=-1)
    talk.advance(173)
    assert not talk.flow.finished
    talk.advance(10)
    sent = [segment.flags for segment in talk.guest.loses_everything()]
    assert sent == [SYN] * (SYN_RETRANSMISSIONS - 3) + [RST]
    assert talk.host.socket.was_reset
    talk.assert_over()


def test_a_client_that_is_gone_takes_its_call_back() -> None:
    """A guest that has the SYN and answers just now is told where it listens for it."""
    talk = in_state(G.SYN_SENT)
    talk.host.fails()
    talk.guest.gets(RST, at=0)
    talk.assert_over()


def test_a_guest_that_still_has_the_old_connection_is_called_again() -> None:
    """RFC 9293, 3.5.1, figure 9: its ACK of old numbers is reset, and our next SYN is welcome."""
    talk = in_state(G.SYN_SENT)
    talk.guest.sends(ACK, at=5000, ack=300_000)
    talk.guest.gets(RST, at=300_000)
    talk.advance(1.001)
    talk.guest.gets(SYN, at=-1)
    talk.guest.sends(SYN | ACK)
    talk.guest.gets(ACK)
    assert talk.states == (G.ESTABLISHED, H.OPEN)


def test_our_call_is_the_first_round_trip_unless_it_was_repeated() -> None:
    """Karn (RFC 6298, 3), and 5.7 for the timeout that follows a lost SYN."""
    once = in_state(G.SYN_SENT)
    once.advance(0.3)
    once.guest.sends(SYN | ACK)
    assert once.flow.sender.round_trip.smoothed == pytest.approx(0.3)
    twice = in_state(G.SYN_SENT)
    twice.advance(1.3)
    twice.guest.sends(SYN | ACK)
    assert twice.flow.sender.round_trip.smoothed is None
    assert twice.flow.sender.round_trip.timeout == 3
