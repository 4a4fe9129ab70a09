"""What time does to a connection: repetition, giving up, keepalives."""

from collections.abc import Callable
from functools import partial

import pytest

from qemu_usernat.nat.tcp.guest_half import TIME_WAIT
from qemu_usernat.nat.tcp.keepalive import KEEPALIVE_IDLE
from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.primitives.time import HOUR, MINUTE
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN
from tests.nat.tcp.conversation import MSS, Conversation, in_state

G, H = GuestState, HostState


def test_a_measured_guest_is_repeated_to_sooner() -> None:
    """A wire of a millisecond needs no second."""
    talk = Conversation.open()
    for _ in range(20):
        talk.host.says(b"tick")
        talk.guest.gets()
        talk.advance(0.001)
        talk.guest.sends(ACK)
    talk.host.says(b"tock")
    talk.guest.gets()
    talk.advance(0.21)
    talk.guest.gets(PSH | ACK, b"tock")


def test_a_dead_guest_is_given_up_and_both_sides_are_told() -> None:
    """RFC 9293, 3.8.3: after R2, at least 100 s; the repetitions grow rarer up to a minute."""
    talk = Conversation.open()
    talk.host.says(b"hello")
    talk.guest.loses_everything()
    talk.advance(100)
    assert talk.states == (G.ESTABLISHED, H.OPEN)
    talk.advance(20 * MINUTE)
    sent = talk.guest.loses_everything()
    assert [segment.payload for segment in sent[:-1]] == [b"hello"] * (len(sent) - 1)
    assert len(sent) < 20
    assert sent[-1].flags == RST | ACK
    assert talk.host.socket.was_reset
    talk.assert_over()


@pytest.mark.parametrize("state", [G.FIN_WAIT_1, G.CLOSING, G.LAST_ACK])
def test_a_fin_that_nothing_answers_is_given_up(state: GuestState) -> None:
    """Every flow ends, also that of a guest that was switched off."""
    talk = in_state(state)
    talk.advance(30 * MINUTE)
    sent = talk.guest.loses_everything()
    assert [segment.flags for segment in sent[:-1]] == [FIN | ACK] * (len(sent) - 1)
    assert len(sent) > 3
    talk.assert_over()


def test_a_lost_segment_in_a_stream_is_repeated_at_once() -> None:
    """RFC 5681, 3.2: three duplicate ACKs, no timer, and only what is missing."""
    talk = Conversation.open()
    talk.host.says(bytes(10 * MSS))
    segments = talk.guest.loses_everything()
    assert len(segments) == 10
    talk.guest.expects = MSS
    for _ in range(4):
        talk.guest.sends(ACK)
    talk.guest.gets(ACK, bytes(MSS), at=MSS)
    talk.guest.gets_nothing()
    assert talk.counters["tcp.loss_recovery"] == 1
    talk.guest.expects = 10 * MSS
    talk.guest.sends(ACK)
    talk.advance(60)
    talk.guest.gets_nothing()


def test_two_lost_segments_in_a_stream() -> None:
    """RFC 6582: the partial acknowledgment names the second hole."""
    talk = Conversation.open()
    talk.host.says(bytes(10 * MSS))
    talk.guest.loses_everything()
    talk.guest.expects = 0
    for _ in range(3):
        talk.guest.sends(ACK)
    talk.guest.gets(ACK, at=0)
    talk.guest.expects = 5 * MSS
    talk.guest.sends(ACK)
    talk.guest.gets(ACK, bytes(MSS), at=5 * MSS)
    talk.guest.gets_nothing()


def test_a_timeout_forgets_duplicates() -> None:
    """RFC 5681, 3.1: after a silence one segment is on its way, whatever was counted before it."""
    talk = Conversation.open(congestion="reno")
    talk.host.says(bytes(10 * MSS))
    for _ in range(2):
        talk.guest.sends(ACK, ack=0)
    talk.guest.loses_everything()
    talk.advance(0.25)
    assert [segment.at for segment in talk.guest.loses_everything()] == [0]


def test_each_duplicate_lets_a_segment_follow() -> None:
    """Two of ten are lost: two duplicates let new ones follow (RFC 3042), and then five at a time
    are on their way (RFC 6582, 3.2), no fewer and no more."""
    talk = Conversation.open(congestion="reno")
    talk.host.says(bytes(20 * MSS))
    assert len(talk.guest.loses_everything()) == 10
    for _ in range(8):
        talk.guest.sends(ACK, ack=0)
    assert [segment.at // MSS for segment in talk.guest.loses_everything()] == [10, 11, 0, 12]
    talk.guest.sends(ACK, ack=5 * MSS)
    assert [segment.at // MSS for segment in talk.guest.loses_everything()] == [5, 13]


def test_a_fin_beyond_a_gap_is_no_duplicate() -> None:
    """RFC 5681, 2: it acknowledges the same, and says that the guest has ended."""
    talk = Conversation.open()
    talk.host.says(bytes(4 * MSS))
    talk.guest.loses_everything()
    for _ in range(4):
        talk.guest.sends(FIN | ACK, at=5, ack=0)
        talk.guest.gets(ACK, ack=0)
    talk.guest.gets_nothing()
    assert talk.counters["tcp.loss_recovery"] == 0


def test_data_with_the_same_ack_is_no_duplicate() -> None:
    """RFC 5681, 2: a guest that talks while we do has lost nothing."""
    talk = Conversation.open()
    talk.host.says(bytes(5 * MSS))
    talk.guest.loses_everything()
    for _ in range(6):
        talk.guest.sends(PSH | ACK, b"tick", ack=0)
    assert all(not segment.payload for segment in talk.guest.loses_everything())


def test_an_idle_connection_lives() -> None:
    """RFC 5382, REQ-5: 2 h 4 min at least; a guest that answers is kept for ever."""
    talk = Conversation.open()
    for _ in range(12):
        talk.advance(2 * HOUR + 1)
        probe = talk.guest.gets(ACK, b"", at=-1, ack=0)
        assert probe.window
        talk.guest.gets_nothing()
        talk.guest.sends(ACK)
    assert talk.states == (G.ESTABLISHED, H.OPEN)


def test_a_connection_that_speaks_is_not_probed() -> None:
    """Keepalives begin two hours after the last word."""
    talk = Conversation.open()
    for _ in range(10):
        talk.advance(KEEPALIVE_IDLE - 1)
        talk.guest.sends(PSH | ACK, b"x")
        talk.advance(0.5)
        assert all(segment.at == 0 for segment in talk.guest.loses_everything())


@pytest.mark.parametrize("state", [G.CLOSE_WAIT, G.FIN_WAIT_2])
def test_a_half_closed_guest_that_is_gone_is_found(state: GuestState) -> None:
    """The half that is open would otherwise be kept for ever."""
    talk = in_state(state)
    talk.advance(3 * HOUR)
    assert talk.guest.loses_everything()[-1].flags == RST | ACK
    assert talk.host.socket.was_reset
    talk.assert_over()


@pytest.mark.parametrize("state", GuestState)
def test_an_alarm_that_rings_early_does_nothing(state: GuestState) -> None:
    """The owner's alarms may: deadlines move away under them."""
    if state in (G.CLOSED, G.RESET):
        return
    talk = in_state(state)
    deadline = talk.flow.deadline()
    assert deadline > talk.now
    talk.flow.on_deadline(talk.now)
    talk.end_turn()
    talk.guest.gets_nothing()
    assert talk.flow.deadline() == deadline
    assert talk.flow.guest_state is state


def closed_over_octets() -> Conversation:
    """The server's octets wait for a window that the guest has closed."""
    talk = Conversation.open(window=0)
    talk.host.says(b"hello")
    return talk


def owing_an_ack() -> Conversation:
    """A small segment, which an answer of the server may acknowledge."""
    talk = Conversation.open()
    talk.guest.sends(PSH | ACK, b"question")
    talk.guest.gets_nothing()
    return talk


def with_last_words() -> Conversation:
    """The guest has reset after its FIN; the server has not taken what was said before."""
    talk = Conversation.open()
    talk.host.takes(0)
    with talk.turn():
        talk.guest.sends(FIN | ACK, b"last words")
        talk.guest.sends(RST | ACK)
    return talk


def owed_octets() -> Conversation:
    """What the server has said is lost."""
    talk = Conversation.open()
    talk.host.says(b"hello")
    talk.guest.loses_everything()
    return talk


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(partial(in_state, state), id=state.name)
        for state in (G.SYN_HELD, G.SYN_RECEIVED, G.ESTABLISHED, G.FIN_WAIT_1, G.TIME_WAIT)
    ]
    + [closed_over_octets, owing_an_ack, owed_octets, with_last_words],
)
def test_an_alarm_that_rings_late_does_the_same(begin: Callable[[], Conversation]) -> None:
    """The loop has more to do: who is called a second after the time is not called in vain."""
    in_time, late = begin(), begin()
    in_time.now = in_time.flow.deadline()
    late.now = late.flow.deadline() + 1
    for talk in (in_time, late):
        talk.flow.on_deadline(talk.now)
        talk.end_turn()
    sent = late.guest.loses_everything()
    assert sent == in_time.guest.loses_everything()
    assert late.line.refusals == in_time.line.refusals
    assert late.states == in_time.states
    assert late.counters == in_time.counters
    assert sent or late.line.refusals or late.flow.finished, "it rang for nothing"


@pytest.mark.parametrize("lasted", [0, HOUR])
def test_time_wait_begins_when_both_have_ended(lasted: float) -> None:
    """However long the connection was before: its time counts from there."""
    talk = Conversation.open()
    talk.now += lasted
    talk.guest.sends(ACK, b"hello")
    talk.guest.gets_stream()
    talk.host.ends()
    talk.guest.gets(FIN | ACK)
    talk.guest.sends(FIN | ACK)
    assert talk.flow.guest_state is G.TIME_WAIT
    assert talk.flow.deadline() == talk.now + TIME_WAIT
    talk.advance(TIME_WAIT - 0.001)
    talk.end_turn()
    assert talk.flow.guest_state is G.TIME_WAIT
    talk.advance(0.001)
    talk.assert_over()


def test_last_words_are_kept_for_two_hours_after_the_server_took_any() -> None:
    """The guest is gone, so nobody but the server can tell that they are still wanted."""
    talk = with_last_words()
    talk.advance(KEEPALIVE_IDLE / 2)
    talk.end_turn()
    assert talk.flow.deadline() == talk.now + KEEPALIVE_IDLE / 2, "it took nothing yet"
    talk.host.takes(4)
    assert talk.host.received == b"last"
    assert talk.flow.deadline() == talk.now + KEEPALIVE_IDLE
    talk.advance(KEEPALIVE_IDLE - 1)
    talk.host.takes(100)
    assert talk.host.received == b"last words"
    talk.assert_over()
    talk.flow.on_deadline(talk.now + 9 * HOUR)
    assert talk.counters["tcp.gave_up"] == 0


def test_last_words_outlast_an_alarm_that_rings_early() -> None:
    """Deadlines move away under the owner's alarms."""
    talk = with_last_words()
    talk.flow.on_deadline(talk.now + 1)
    talk.host.takes(100)
    assert talk.host.received == b"last words"


def test_the_handshake_is_the_first_round_trip() -> None:
    """A guest that took 300 ms to answer the SYN,ACK is given time from its first octet on."""
    talk = Conversation()
    talk.host.connects()
    talk.advance(0.3)
    talk.guest.loses_everything()
    talk.guest.sends(ACK)
    assert talk.flow.sender.round_trip.smoothed == pytest.approx(0.3)


def test_a_handshake_that_was_repeated_is_not_measured() -> None:
    """Karn (RFC 6298, 3): nobody knows which SYN,ACK the guest has answered."""
    talk = Conversation()
    talk.host.connects()
    talk.guest.sends(SYN, at=-1)
    talk.guest.loses_everything()
    talk.advance(0.3)
    talk.guest.sends(ACK)
    assert talk.flow.sender.round_trip.smoothed is None


def test_an_ack_after_a_timeout_has_no_stale_number() -> None:
    """RFC 9293, 3.10.7.4: SND.NXT is beyond all that was ever sent, though some is sent again."""
    talk = Conversation.open()
    talk.host.says(bytes(3 * MSS))
    talk.guest.loses_everything()
    talk.advance(0.201)
    talk.guest.loses_everything()
    talk.guest.sends(ACK, b"hello", ack=0)
    talk.guest.gets(ACK, at=3 * MSS, ack=5)


def test_what_was_repeated_early_is_not_measured() -> None:
    """Karn (RFC 6298, 3): five seconds between the first copy and the ACK are no round trip."""
    talk = Conversation.open()
    talk.host.says(bytes(5 * MSS))
    talk.guest.loses_everything()
    for _ in range(3):
        talk.guest.sends(ACK, ack=0)
    talk.guest.gets(ACK, at=0)
    talk.now += 5
    talk.guest.sends(ACK, ack=5 * MSS)
    assert talk.flow.sender.round_trip.timeout < 1


def test_duplicates_are_counted_from_the_last_progress() -> None:
    """RFC 5681, 3.2: two, and an ACK that moves on, and two more, are no three."""
    talk = Conversation.open()
    talk.host.says(bytes(5 * MSS))
    talk.guest.loses_everything()
    for progress in (0, MSS):
        for _ in range(2 + bool(progress)):
            talk.guest.sends(ACK, ack=progress)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, ack=MSS)
    talk.guest.gets(ACK, bytes(MSS), at=MSS)


def test_window_updates_and_idle_acks_are_no_duplicates() -> None:
    """RFC 5681, 2: a duplicate has the same window, and something is in flight."""
    talk = Conversation.open()
    for _ in range(5):
        talk.guest.sends(ACK)
    talk.host.says(bytes(5 * MSS))
    talk.guest.loses_everything()
    for more in range(5):
        talk.guest.sends(ACK, ack=0, window=65536 + 1024 * more)
    talk.guest.gets_nothing()
    assert talk.counters["tcp.loss_recovery"] == 0


def test_a_second_loss_is_repaired_as_early_as_the_first() -> None:
    """When all of one flight has arrived, three duplicates count anew."""
    talk = Conversation.open()
    for start in (0, 5 * MSS):
        talk.host.says(bytes(5 * MSS))
        talk.guest.loses_everything()
        for _ in range(4):
            talk.guest.sends(ACK, ack=start)
        talk.guest.gets(ACK, bytes(MSS), at=start)
        talk.guest.loses_everything()
        for position in range(start + MSS, start + 6 * MSS, MSS):
            talk.guest.sends(ACK, ack=position)
            talk.guest.loses_everything()
    assert talk.counters["tcp.loss_recovery"] == 2
    assert talk.counters["tcp.retransmission_timeout"] == 0


def test_progress_gives_what_is_left_its_full_time() -> None:
    """RFC 6298, 5.3: an ACK of new octets starts the timer anew."""
    talk = Conversation.open()
    talk.host.says(bytes(2 * MSS))
    talk.guest.loses_everything()
    talk.advance(0.15)
    talk.guest.sends(ACK, ack=MSS)
    talk.advance(0.15)
    assert talk.counters["tcp.retransmission_timeout"] == 0
    talk.advance(0.06)
    assert talk.counters["tcp.retransmission_timeout"] == 1


def test_an_early_repetition_gets_its_full_time() -> None:
    """What was just sent again cannot have been answered yet."""
    talk = Conversation.open()
    talk.host.says(bytes(5 * MSS))
    talk.guest.loses_everything()
    talk.advance(0.15)
    for _ in range(3):
        talk.guest.sends(ACK, ack=0)
    assert MSS in [len(segment.payload) for segment in talk.guest.loses_everything()]
    talk.advance(0.15)
    assert talk.counters["tcp.retransmission_timeout"] == 0


def test_a_long_silence_counts_as_one_loss() -> None:
    """RFC 5681, 3.1: however often its timer rings, half of what was in flight is what is left."""
    talk = Conversation.open(congestion="reno", window=65535)
    talk.host.says(bytes(10 * MSS))
    assert len(talk.guest.loses_everything()) == 10
    talk.advance(1.5)
    assert talk.counters["tcp.retransmission_timeout"] == 3
    talk.guest.loses_everything()
    talk.guest.expects = 10 * MSS
    talk.guest.sends(ACK)
    talk.host.says(bytes(100 * MSS))
    bursts = []
    for _ in range(4):
        bursts.append(len(talk.guest.gets_stream()) // MSS)
        talk.guest.sends(ACK)
    assert bursts == [5, 6, 7, 8], "half of ten, and one more each round"


def test_a_wire_that_is_bad_for_long_does_not_add_up() -> None:
    """RFC 9293, 3.8.3: R2 counts what one segment took, not all the trouble there ever was."""
    talk = Conversation.open()
    for _ in range(20):
        talk.host.says(b"tick")
        talk.guest.loses_everything()
        talk.advance(61)
        talk.guest.gets(PSH | ACK, b"tick", at=talk.guest.expects)
        talk.guest.loses_everything()
        talk.guest.sends(ACK)
    assert talk.states == (G.ESTABLISHED, H.OPEN)
    assert talk.counters["tcp.retransmission_timeout"] >= 20


def test_a_guest_that_talks_but_does_not_listen_is_given_up() -> None:
    """It has room and is alive; but R2 is for octets that never arrive, not for silence."""
    talk = Conversation.open()
    talk.host.says(b"hello")
    for _ in range(180):
        talk.advance(10)
        if talk.flow.finished:
            break
        talk.guest.sends(PSH | ACK, b"tick", ack=0)
    assert talk.guest.loses_everything()[-1].flags == RST | ACK
    assert talk.counters["tcp.gave_up"] == 1
    talk.assert_over()


def test_a_probe_of_our_window_is_no_duplicate() -> None:
    """RFC 5681, 2: it carries an octet, though there is no room for it."""
    talk = Conversation.open()
    talk.host.takes(0)
    while room := talk.flow.receiver.room:
        talk.guest.sends(ACK, bytes(min(MSS, room)))
    talk.host.says(bytes(5 * MSS))
    talk.guest.loses_everything()
    for _ in range(5):
        talk.guest.sends(ACK, b"?", at=talk.guest.position, ack=0)
    assert all(not segment.payload for segment in talk.guest.loses_everything())
    assert talk.counters["tcp.loss_recovery"] == 0
