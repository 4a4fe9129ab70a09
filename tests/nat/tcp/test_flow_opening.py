"""How a connection begins: the guest's SYN waits for the server, and hears what the server says."""

import pytest

from qemu_usernat.nat.tcp.flow import SYN_RETRANSMISSIONS
from qemu_usernat.nat.tcp.opening import initial_sequence
from qemu_usernat.nat.tcp.states import GUEST_GONE, GuestState, HostState
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN
from tests.nat.tcp.conversation import KEY, OUR_ISN, SECRET, Conversation, in_state

G, H = GuestState, HostState


def test_the_syn_is_answered_when_the_server_is_there() -> None:
    """A guest that hears SYN,ACK can rely on a server, not on a promise."""
    talk = Conversation()
    talk.advance(5)
    talk.guest.gets_nothing()
    talk.host.connects()
    talk.guest.gets(SYN | ACK, at=-1, ack=0)
    talk.guest.sends(ACK)
    talk.guest.gets_nothing()
    assert talk.states == (G.ESTABLISHED, H.OPEN)


def test_a_refusal_is_a_reset_that_the_guest_believes() -> None:
    """RFC 9293, 3.10.7.3: in SYN-SENT only RST with an acceptable ACK counts."""
    talk = Conversation()
    talk.host.fails()
    assert talk.guest.gets(RST | ACK, at=-1 - OUR_ISN, ack=0).window == 0
    assert talk.line.refusals == []
    talk.assert_over()


@pytest.mark.parametrize("code", [0, 1, 13])
def test_an_unreachable_server_is_said_by_icmp(code: int) -> None:
    """The guest's connect(2) fails with the errno that the host's had."""
    talk = Conversation()
    talk.host.fails(code)
    talk.guest.gets_nothing()
    assert talk.line.refusals == [code]
    talk.assert_over()


def test_a_failure_before_dialling_is_said_as_well() -> None:
    """No descriptor is left, or the destination is not for guests: nothing was dialled."""
    talk = Conversation()
    flow = Conversation().flow
    flow.wire, flow.host_state = talk.line, HostState.IDLE
    flow.on_host_failed(None, talk.now)
    flow.flush(talk.now)
    talk.guest.gets(RST | ACK, ack=0)
    assert flow.finished


def test_a_black_hole_is_given_up_in_bounded_time() -> None:
    """The guest learns it, and the descriptor is given back."""
    talk = Conversation()
    for _ in range(10):
        talk.advance(5.99)
        talk.guest.sends(SYN)  # which it repeats, and which buys no time
    assert not talk.flow.finished
    talk.advance(0.11)
    assert talk.line.refusals == [1]
    assert talk.counters["tcp.connect_timeout"] == 1
    talk.assert_over()


@pytest.mark.parametrize("state", [G.SYN_RECEIVED, G.ESTABLISHED, G.CLOSE_WAIT, G.FIN_WAIT_2])
def test_an_open_connection_does_not_yield_but_asks(state: GuestState) -> None:
    """RFC 5961, 4.2: a guest that has rebooted answers the challenge with a reset."""
    talk = in_state(state)
    assert not talk.flow.yields_to_syn(123_456, talk.now)
    talk.guest.sends(SYN, at=100_000)
    challenge = talk.guest.gets(ACK)
    talk.guest.sends(RST, at=challenge.ack)
    assert talk.flow.guest_state in GUEST_GONE
    assert talk.flow.yields_to_syn(123_456, talk.now)


@pytest.mark.parametrize("at", [-1, 0])
def test_a_guest_that_gives_up_while_we_dial_is_believed(at: int) -> None:
    """The server that answers later is reset, and the guest hears no SYN,ACK."""
    talk = Conversation()
    talk.guest.sends(RST, at=at)
    assert talk.host.socket.was_reset
    talk.guest.gets_nothing()
    talk.assert_over()


def test_a_strangers_reset_while_we_dial_is_not_believed() -> None:
    """It must stand at the SYN or right behind it."""
    talk = Conversation()
    talk.guest.sends(RST, at=5)
    assert talk.states == (G.SYN_HELD, H.DIALING)


def test_data_before_our_answer_is_not_taken() -> None:
    """RFC 9293, 3.10.7.2: any ACK is bad while nothing was said; the SYN is held all the same."""
    talk = Conversation()
    talk.guest.sends(ACK, b"early", at=0)
    talk.guest.gets(RST, at=0)
    assert talk.flow.guest_state is G.SYN_HELD
    assert talk.counters["tcp.not_expected"] == 1


def test_a_lost_syn_ack_is_repeated_and_at_last_given_up() -> None:
    """The server is not kept for a guest that is gone."""
    talk = in_state(G.SYN_RECEIVED)
    talk.advance(1.0)
    talk.guest.gets(SYN | ACK, at=-1, ack=0)
    talk.advance(1.9)
    talk.guest.gets_nothing()
    talk.advance(0.2)
    talk.guest.gets(SYN | ACK)
    talk.advance(200)
    repeated = [segment.flags for segment in talk.guest.loses_everything()]
    assert repeated == [SYN | ACK] * (SYN_RETRANSMISSIONS - 2) + [RST | ACK]
    assert talk.host.socket.was_reset
    talk.assert_over()


def test_a_lost_syn_ack_does_not_slow_the_data() -> None:
    """RFC 6298 (5.7): the time-out of data begins at 3 seconds at most, not where it had got to."""
    talk = in_state(G.SYN_RECEIVED)
    talk.advance(20)
    talk.guest.loses_everything()
    talk.guest.sends(ACK)
    talk.host.says(b"hello")
    talk.guest.gets(PSH | ACK, b"hello")
    talk.advance(3.01)
    talk.guest.gets(PSH | ACK, b"hello")


def test_a_server_that_speaks_and_ends_before_the_handshake_is_over() -> None:
    """daytime(13): all of it arrives."""
    talk = Conversation()
    with talk.turn():
        talk.host.connects()
        talk.host.says(b"noon")
        talk.host.ends()
    talk.guest.gets(SYN | ACK)
    talk.guest.sends(ACK)
    talk.guest.gets(PSH | ACK, b"noon", at=0)
    talk.guest.gets(FIN | ACK, at=4)


def test_a_server_that_fails_before_the_handshake_is_over() -> None:
    """The guest has got SYN,ACK, so it is a reset now."""
    talk = in_state(G.SYN_RECEIVED)
    talk.host.fails()
    talk.guest.gets(RST | ACK, at=0, ack=0)
    talk.assert_over()


def test_the_last_segment_of_the_handshake_may_carry_everything() -> None:
    """Data and FIN with the ACK of our SYN (RFC 9293, 3.10.7.4, goes on to the end)."""
    talk = in_state(G.SYN_RECEIVED)
    talk.guest.sends(PSH | FIN | ACK, b"GET /")
    talk.guest.gets(ACK, ack=6)
    assert talk.host.received == b"GET /"
    assert talk.host.socket.shut
    assert talk.states == (G.CLOSE_WAIT, H.WRITE_SHUT)


@pytest.mark.parametrize("ack", [-1, 1, 7000])
def test_a_handshake_with_the_wrong_ack_is_reset(ack: int) -> None:
    """RFC 9293, 3.10.7.4, fifth, SYN-RECEIVED: <SEQ=SEG.ACK><CTL=RST>, and nothing else happens."""
    talk = in_state(G.SYN_RECEIVED)
    talk.guest.sends(ACK, b"x", at=0, ack=ack)
    talk.guest.gets(RST, at=ack)
    assert talk.flow.guest_state is G.SYN_RECEIVED
    assert talk.host.received == b""


@pytest.mark.parametrize(
    ("offered", "mtu", "length"),
    [(1460, 65520, 1460), (None, 1500, 536), (65480, 1500, 1460), (9000, 65520, 9000)],
)  # fmt: skip
def test_segments_are_as_large_as_both_sides_allow(
    offered: int | None, mtu: int, length: int
) -> None:
    """RFC 9293, 3.7.1 (MUST-14 to 16): the smaller of the two, 536 where the guest says nothing."""
    talk = Conversation.open(mss=offered, mtu=mtu, window=65535, scale=0)
    talk.host.says(bytes(20_000))
    assert len(talk.guest.gets(ACK).payload) == length


def test_initial_sequence_numbers_grow_and_tell_nothing() -> None:
    """RFC 6528: one counter for each four-tuple, unlike its neighbour's."""
    first = initial_sequence(KEY, SECRET, 10.0)
    assert (initial_sequence(KEY, SECRET, 10.5) - first) % (1 << 32) == 125_000
    other = (KEY[0], KEY[1] + 1, KEY[2], KEY[3])
    assert initial_sequence(other, SECRET, 10.0) != first
    assert initial_sequence(KEY, b"another secret!!", 10.0) != first


def test_the_first_flight_is_ten_segments_of_the_guests_size() -> None:
    """RFC 6928, 2, counts in segments that are sent, not in those that our MTU would allow."""
    talk = Conversation.open(congestion="reno", mss=536)
    talk.host.says(bytes(20_000))
    assert [len(segment.payload) for segment in talk.guest.loses_everything()] == [536] * 10


@pytest.mark.parametrize("ack", [-1, 1])
def test_a_crossing_syn_that_acknowledges_something_else_is_answered_by_ours(ack: int) -> None:
    """It may be of another attempt: our answer tells the guest, which resets it (RFC 9293, 3.5)."""
    talk = in_state(GuestState.SYN_RECEIVED)
    talk.guest.sends(SYN | ACK, ack=ack)
    talk.guest.gets(SYN | ACK, at=-1, ack=0)
    talk.guest.gets_nothing()
    assert talk.flow.guest_state is GuestState.SYN_RECEIVED
