"""Octets both ways, and the acknowledgments between them."""

import pytest

from qemu_usernat.nat.tcp.guest_half import SINGLE_ACKS
from qemu_usernat.nat.tcp.output import DELAYED_ACK
from qemu_usernat.nat.tcp.receiver import CAPACITY_INITIAL
from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.primitives.sequence import MODULUS
from qemu_usernat.wire.packets import ACK, FIN, PSH, SYN
from tests.nat.tcp.conversation import MSS, Conversation

G, H = GuestState, HostState
PAYLOAD = bytes(range(256)) * 400


@pytest.mark.parametrize("isn", [0, MODULUS - 1, MODULUS - 2, MODULUS - 3000])
def test_a_question_and_its_answer_across_the_wrap(isn: int) -> None:
    """Wherever the sequence numbers begin, and where they wrap in the middle."""
    talk = Conversation.open(isn=isn, our_isn=isn)
    for start in range(0, 6000, 1000):
        talk.guest.sends(PSH | ACK, PAYLOAD[start : start + 1000])
        talk.host.says(PAYLOAD[start : start + 1000])
        talk.guest.gets(PSH | ACK, PAYLOAD[start : start + 1000], at=start, ack=start + 1000)
    talk.guest.sends(ACK)
    assert talk.host.received == PAYLOAD[:6000]
    talk.guest.gets_nothing()
    assert not talk.flow.sender.in_flight


def test_a_small_segment_is_acknowledged_by_the_answer() -> None:
    """One segment carries both."""
    talk = Conversation.open()
    talk.guest.sends(PSH | ACK, b"question")
    talk.guest.gets_nothing()
    talk.host.says(b"answer")
    talk.guest.gets(PSH | ACK, b"answer", ack=8)
    talk.advance(1)
    assert all(segment.payload for segment in talk.guest.loses_everything()), "no second ACK"


def test_a_small_segment_without_answer_is_acknowledged_soon() -> None:
    """RFC 9293, 3.8.6.3, allows half a second; Nagle's algorithm in the guest waits for it."""
    talk = Conversation.open()
    talk.guest.sends(PSH | ACK, b"question")
    talk.advance(DELAYED_ACK + 0.001)
    talk.guest.gets(ACK, ack=8)
    talk.advance(10)
    talk.guest.gets_nothing()


@pytest.mark.parametrize(
    ("flags", "size"), [(ACK, MSS), (PSH | ACK, MSS), (ACK, 10)], ids=["full", "pushed", "bare"]
)
def test_all_else_is_acknowledged_at_once(flags: int, size: int) -> None:
    """More is coming, so the guest's window has to move."""
    talk = Conversation.open()
    talk.guest.sends(flags, bytes(size))
    talk.guest.gets(ACK, ack=size)


def test_a_second_small_segment_is_not_delayed() -> None:
    """RFC 9293, 3.8.6.3 (SHLD-19): at least every second segment is acknowledged."""
    talk = Conversation.open()
    talk.guest.sends(PSH | ACK, b"one")
    talk.guest.sends(PSH | ACK, b"two")
    talk.guest.gets(ACK, ack=6)
    talk.advance(1)
    talk.guest.gets_nothing()


def test_a_turn_of_segments_gets_one_acknowledgment() -> None:
    """As a kernel with receive offload: one ACK, for all of them."""
    talk = Conversation.open()
    with talk.turn():
        for start in range(0, 10 * MSS, MSS):
            talk.guest.sends(ACK, PAYLOAD[start : start + MSS])
    talk.guest.gets(ACK, ack=10 * MSS)
    talk.guest.gets_nothing()
    assert talk.host.received == PAYLOAD[: 10 * MSS]


def test_a_gap_is_told_at_once_and_its_filling_too() -> None:
    """RFC 5681, 4.2: the guest repeats early what is missing, and hears early that it came."""
    talk = Conversation.open()
    talk.guest.sends(PSH | ACK, b"world", at=5)
    talk.guest.gets(ACK, ack=0)
    talk.guest.sends(PSH | ACK, b"again", at=10)
    talk.guest.gets(ACK, ack=0)
    talk.guest.sends(PSH | ACK, b"hello", at=0)
    talk.guest.gets(ACK, ack=15)
    assert talk.host.received == b"helloworldagain"


def test_each_segment_beyond_a_gap_is_told_also_in_one_turn() -> None:
    """RFC 5681, 3.2: the guest counts to three before it repeats; one ACK a turn is too few."""
    talk = Conversation.open()
    with talk.turn():
        talk.guest.sends(ACK, bytes(MSS))
        for start in range(2 * MSS, 6 * MSS, MSS):
            talk.guest.sends(ACK, bytes(MSS), at=start)
    acks = talk.guest.loses_everything()
    assert [segment.ack for segment in acks] == [MSS] * 4
    assert len({segment.window for segment in acks}) == 1, "a window update is no duplicate"


def test_repeated_octets_are_acknowledged_once_a_turn() -> None:
    """Nothing is missing, so there is nothing to count."""
    talk = Conversation.open()
    talk.guest.sends(ACK, bytes(5 * MSS))
    talk.guest.loses_everything()
    with talk.turn():
        for start in range(0, 5 * MSS, MSS):
            talk.guest.sends(ACK, bytes(MSS), at=start)
    talk.guest.gets(ACK, ack=5 * MSS)
    talk.guest.gets_nothing()


def test_what_was_received_before_is_acknowledged_again() -> None:
    """Our ACK was lost; silence would have the guest repeat it for ever."""
    talk = Conversation.open()
    talk.guest.sends(ACK, bytes(MSS))
    talk.guest.loses_everything()
    talk.guest.sends(ACK, bytes(MSS), at=0)
    talk.guest.gets(ACK, ack=MSS)


def test_a_segment_without_ack_is_dropped() -> None:
    """RFC 9293, 3.10.7.4, fifth."""
    talk = Conversation.open()
    talk.guest.sends(PSH, b"hello", at=0)
    talk.guest.gets_nothing()
    assert talk.host.received == b""
    assert talk.counters["tcp.no_ack"] == 1


@pytest.mark.parametrize(("ago", "heard"), [(65_535, b"forged"), (65_536, b"")])
def test_an_ack_from_long_ago_is_challenged(ago: int, heard: bytes) -> None:
    """RFC 5961, 5.2: data with an impossible acknowledgment is a blind guess. A window ago it was
    possible, to the octet."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(b"x" * 1000)
    talk.guest.loses_everything()
    talk.guest.sends(ACK, ack=1000)
    talk.guest.sends(PSH | ACK, b"forged", at=0, ack=1000 - ago)
    assert talk.host.received == heard
    assert talk.counters["tcp.challenge_ack"] == (not heard)
    if not heard:
        talk.guest.gets(ACK)


def test_what_an_old_ack_carries_counts_as_far_back_as_the_window_is_large() -> None:
    """RFC 5961, 5.2: MAX.SND.WND is the largest there was, not the one of the SYN."""
    talk = Conversation.open(window=65535, scale=7)
    talk.host.says(bytes(500_000))
    talk.guest.gets_stream()
    talk.guest.sends(ACK)
    talk.guest.sends(PSH | ACK, b"late words", ack=100_000)
    assert talk.host.received == b"late words"


def test_an_old_ack_that_was_overtaken_is_harmless() -> None:
    """Its data counts, its acknowledgment is no news."""
    talk = Conversation.open()
    talk.host.says(b"12345")
    talk.guest.sends(ACK, ack=5)
    talk.guest.sends(PSH | ACK, b"late", at=0, ack=2)
    assert talk.host.received == b"late"
    assert not talk.flow.sender.in_flight


def test_a_socket_that_takes_one_octet_at_a_time() -> None:
    """Every write is short; the order stays."""
    talk = Conversation.open()
    talk.host.socket.most = 1
    talk.guest.sends(PSH | ACK, b"hello")
    assert talk.host.received == b"hello"


def test_a_host_that_fails_while_it_is_written_to() -> None:
    """EPIPE in the middle of a turn: the guest is reset, and nothing is written twice."""
    talk = Conversation.open()
    talk.host.socket.broken = True
    talk.guest.sends(PSH | ACK, b"hello")
    assert talk.flow.guest_state is G.RESET
    assert [segment.flags for segment in talk.guest.loses_everything()] == [4 | ACK]
    talk.assert_over()


def test_a_full_socket_and_then_its_failure_reset_the_guest() -> None:
    """What was queued has nobody to go to, and the guest is not left to believe it has."""
    talk = Conversation.open()
    talk.host.takes(0)
    talk.guest.sends(ACK, bytes(MSS))
    talk.guest.gets(ACK)
    talk.host.breaks()
    talk.guest.gets(4 | ACK)
    talk.assert_over()


def test_a_stalled_link_stops_the_reading_of_the_host() -> None:
    """The guest's QEMU does not read: the server's octets stay in the host's socket."""
    talk = Conversation.open()
    talk.line.is_stalled = True
    talk.host.says(b"hello")
    talk.guest.gets_nothing()
    assert not talk.host.socket.reading
    talk.line.is_stalled = False
    talk.end_turn()
    talk.guest.gets(PSH | ACK, b"hello")


def test_without_scaling_a_slow_server_causes_no_duplicate_acks() -> None:
    """Three equal ACKs would have the guest repeat a segment that was never lost."""
    talk = Conversation.open(scale=None)
    talk.host.takes(0)
    for _ in range(3):
        talk.guest.sends(ACK, bytes(MSS))
    talk.guest.loses_everything()
    for _ in range(10):
        talk.host.takes(100)
    talk.guest.gets_nothing()


def test_an_answer_carries_the_window_of_the_moment() -> None:
    """A SYN,ACK can promise 64 KiB; the first octets to the guest say how much there is."""
    talk = Conversation.open()
    talk.host.says(b"hello")
    assert talk.guest.gets(PSH | ACK).window == CAPACITY_INITIAL


def test_after_a_gap_each_segment_is_acknowledged_alone() -> None:
    """A wire that loses segments loses ACKs, too: a slow guest hears each arrival, of 64."""
    talk = Conversation.open()
    talk.guest.sends(ACK, bytes(MSS), at=MSS)
    talk.guest.gets(ACK, ack=0)
    with talk.turn():
        talk.guest.sends(ACK, bytes(MSS), at=0)
        for number in range(2, 74):
            talk.guest.sends(ACK, bytes(MSS), at=number * MSS)
    for number in range(2, 66):
        talk.guest.gets(ACK, ack=number * MSS)
    talk.guest.gets(ACK, ack=(74) * MSS)
    talk.guest.gets_nothing()


def test_whatever_fills_a_part_of_a_gap_is_acknowledged_at_once() -> None:
    """RFC 5681, 4.2: however small it is, and however many there are of it."""
    talk = Conversation.open()
    talk.guest.sends(ACK, bytes(MSS), at=MSS)
    talk.guest.gets(ACK, ack=0)
    for number in range(SINGLE_ACKS + 5):
        talk.guest.sends(PSH | ACK, b"x", at=number)
        talk.guest.gets(ACK, ack=number + 1)
    talk.guest.gets_nothing()


def test_the_guests_end_and_its_last_octets_get_one_acknowledgment() -> None:
    """Though each segment after a gap is acknowledged alone."""
    talk = Conversation.open()
    talk.guest.sends(ACK, bytes(MSS), at=MSS)
    talk.guest.gets(ACK, ack=0)
    talk.guest.sends(ACK, bytes(MSS), at=0)
    talk.guest.gets(ACK, ack=2 * MSS)
    talk.guest.sends(FIN | ACK, b"end", at=2 * MSS)
    talk.guest.gets(ACK, ack=2 * MSS + 4)
    talk.guest.gets_nothing()


def test_the_server_may_be_read_several_times_in_a_turn() -> None:
    """What was read is sent at once, and so there is room for more."""
    talk = Conversation.open()
    with talk.turn():
        for _ in range(3):
            assert talk.flow.room() > 0
            talk.flow.on_host_data(b"more", 4, talk.now)
    assert talk.guest.gets_stream() == b"moremoremore"


@pytest.mark.parametrize(("mtu", "segments"), [(65520, 4), (9000, 29), (1500, 179)])
def test_the_server_is_read_in_whole_segments(mtu: int, segments: int) -> None:
    """256 KiB in one go, less what would be a small segment at the end of each."""
    talk = Conversation.open(mtu=mtu, mss=mtu - 40, window=65535, scale=7)
    assert talk.flow.room() == segments * (mtu - 40)


def test_nothing_is_read_that_the_guest_cannot_take() -> None:
    """Not before the handshake, nor after our FIN, nor while its link is stalled."""
    talk = Conversation()
    assert talk.flow.room() == 0
    talk.host.connects()
    talk.guest.gets(SYN | ACK)
    assert talk.flow.room() == 0
    talk.guest.sends(ACK)
    assert talk.flow.room() > 0
    talk.line.is_stalled = True
    assert talk.flow.room() == 0
    talk.line.is_stalled = False
    talk.host.ends()
    assert talk.flow.room() == 0
