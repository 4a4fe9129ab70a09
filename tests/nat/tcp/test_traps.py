"""Bugs that others shipped, by number: each is a conversation that goes well here.

passt's are regressions that its history tells of, with the short hash of the commit that
repaired them; capsa's were open when this project began. A test's name begins with the number
that it holds. `test_index.py` has the list, which goes on in the rooms that a bug belongs to:
datagrams, DHCP, the router.
"""

import pytest

from qemu_usernat.nat.tcp.keepalive import KEEPALIVE_INTERVAL, KEEPALIVE_PROBES
from qemu_usernat.nat.tcp.receiver import CAPACITY_INITIAL, ROUNDING_ROOM
from qemu_usernat.nat.tcp.states import GUEST_GONE, SYNCHRONISED, GuestState, HostState
from qemu_usernat.primitives.time import HOUR, MINUTE
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN
from tests.nat.tcp.conversation import MSS, Conversation, in_state

G, H = GuestState, HostState
IN_ALL = pytest.mark.parametrize("state", sorted(SYNCHRONISED, key=str))
PAYLOAD = bytes(range(256)) * 400
RTO = 0.2
"""Seconds: the least retransmission timeout, which a handshake without delay leads to."""


def fill(talk: Conversation) -> int:
    """The guest sends until our window is closed; how much that was."""
    while (room := talk.line.edge - talk.guest.position) > 0:
        talk.guest.sends(ACK, bytes(min(MSS, room)))
    talk.guest.loses_everything()
    return talk.guest.position


def test_passt_01a_the_guests_answer_to_our_call_is_acknowledged_at_once() -> None:
    """passt 9178a9e: a guest that is an SMTP server speaks first, but not before that ACK."""
    talk = in_state(G.SYN_SENT)
    talk.guest.sends(SYN | ACK)
    talk.guest.gets(ACK, b"", at=0, ack=0)
    talk.guest.gets_nothing()
    assert talk.states == (G.ESTABLISHED, H.OPEN)
    talk.guest.sends(PSH | ACK, b"220 smtp ready\r\n")
    assert talk.host.received == b"220 smtp ready\r\n"


def test_passt_01b_that_ack_comes_before_the_clients_first_words() -> None:
    """passt 2d7f734: it has the lower number, and goes first."""
    talk = in_state(G.SYN_SENT)
    talk.host.says(b"GET /")
    talk.guest.gets_nothing()
    talk.guest.sends(SYN | ACK)
    talk.guest.gets(ACK, b"", at=0, ack=0)
    talk.guest.gets(PSH | ACK, b"GET /", at=0, ack=0)


def test_capsa_04c_a_server_that_speaks_first_does_not_overtake_the_handshake() -> None:
    """capsa 4, passt 9178a9e: SYN,ACK, then the banner, without any word of the guest."""
    talk = Conversation()
    with talk.turn():
        talk.host.connects()
        talk.host.says(b"220 smtp ready\r\n")
    talk.guest.gets(SYN | ACK, b"", at=-1)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK)
    talk.guest.gets(PSH | ACK, b"220 smtp ready\r\n", at=0)


def test_passt_02_a_syn_repeated_while_we_dial_changes_nothing() -> None:
    """passt 722d347: it must not reset what is about to succeed."""
    talk = Conversation()
    for _ in range(3):
        talk.advance(1)
        talk.guest.sends(SYN)
    talk.guest.gets_nothing()
    talk.host.connects()
    talk.guest.gets(SYN | ACK, at=-1, ack=0)
    talk.guest.gets_nothing()


@pytest.mark.parametrize("number", [7777, 999])
def test_passt_03a_another_attempt_takes_the_place_of_a_held_one(number: int) -> None:
    """passt f984003: the guest has given the first attempt up, its server hears of it."""
    talk = Conversation(isn=1000)
    assert not talk.flow.yields_to_syn(1000, talk.now), "the same attempt"
    assert talk.flow.yields_to_syn(number, talk.now)
    talk.end_turn()
    talk.guest.gets_nothing()
    assert talk.host.socket.was_reset
    talk.assert_over()


def test_passt_03a_data_and_its_reset_in_one_turn() -> None:
    """passt f984003: the reset wins, and nobody writes to a closed socket."""
    talk = Conversation.open()
    with talk.turn():
        talk.guest.sends(PSH | ACK, b"last words")
        talk.guest.sends(RST)
    talk.guest.gets_nothing()
    talk.assert_over()


def test_passt_03b_fin_and_then_reset_in_one_turn() -> None:
    """passt 46f915d."""
    talk = Conversation.open()
    with talk.turn():
        talk.guest.sends(FIN | ACK)
        talk.guest.sends(RST | ACK)
    assert talk.host.socket.was_reset
    talk.assert_over()


@IN_ALL
def test_passt_05_a_reset_at_the_exact_number_ends_it(state: GuestState) -> None:
    """passt cce94e9: the server hears a RST, not a FIN, wherever there is still a socket."""
    talk = in_state(state)
    had_socket = not talk.host.socket.closed
    talk.guest.sends(RST | ACK)
    talk.guest.gets_nothing()
    assert talk.flow.guest_state in GUEST_GONE
    assert talk.host.socket.was_reset is had_socket
    talk.assert_over()


def test_passt_06a_a_fin_beyond_the_window_is_no_fin() -> None:
    """passt b145441: it stands behind data that was not accepted."""
    talk = Conversation.open()
    talk.guest.sends(FIN | ACK, bytes(70_000), at=0)
    talk.guest.gets(ACK, ack=65_535)
    assert talk.flow.guest_state is G.ESTABLISHED
    assert not talk.host.socket.shut
    talk.guest.sends(FIN | ACK, bytes(70_000 - 65_535), at=65_535)
    talk.guest.gets(ACK, ack=70_001)
    assert talk.host.socket.shut


def test_passt_06b_octets_after_the_fin_are_no_octets() -> None:
    """passt 8efa80b."""
    talk = Conversation.open()
    talk.guest.sends(PSH | FIN | ACK, b"end")
    talk.guest.gets(ACK, ack=4)
    talk.guest.sends(PSH | ACK, b"more")
    talk.guest.gets(ACK, ack=4)
    assert talk.host.received == b"end"


def test_passt_07a_the_servers_fin_follows_its_last_octet() -> None:
    """passt 8d2f8c4: never before what is still on its way."""
    talk = Conversation.open(window=1000, scale=0)
    with talk.turn():
        talk.host.says(b"a" * 2500)
        talk.host.ends()
    talk.guest.gets(PSH | ACK, b"a" * 1000, at=0)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK)
    talk.guest.gets(PSH | ACK, b"a" * 1000, at=1000)
    talk.guest.sends(ACK)
    talk.guest.gets(PSH | ACK, b"a" * 500, at=2000)
    talk.guest.gets(FIN | ACK, at=2500)


def test_passt_07b_our_fin_is_repeated_until_it_is_acknowledged() -> None:
    """passt 2e3d93b."""
    talk = Conversation.open()
    timeout = talk.flow.sender.round_trip.timeout
    talk.host.ends()
    talk.guest.loses_everything()
    for times in (1, 2, 4, 8):
        talk.advance(timeout * times)
        talk.guest.gets(FIN | ACK, at=0)
    talk.guest.sends(ACK)
    assert talk.flow.guest_state is G.FIN_WAIT_2
    talk.advance(100)
    talk.guest.gets_nothing()


def test_passt_07c_the_guests_window_is_followed_after_its_fin() -> None:
    """passt 30f1e08: half-closed, it closes its window and opens it; the answer goes on."""
    talk = Conversation.open(window=1000, scale=0)
    talk.guest.sends(PSH | FIN | ACK, b"request")
    talk.guest.gets(ACK, ack=8)
    talk.host.says(b"a" * 2500)
    talk.guest.gets(PSH | ACK, b"a" * 1000, at=0)
    talk.guest.sends(ACK, window=0)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, window=1000)
    talk.guest.gets(PSH | ACK, b"a" * 1000, at=1000)
    talk.guest.sends(ACK)
    talk.guest.gets(PSH | ACK, b"a" * 500, at=2000)


def test_passt_07d_a_failed_shutdown_is_looked_at() -> None:
    """passt 768baf4: the server has reset meanwhile, and the guest hears of it at once."""
    talk = Conversation.open()
    talk.host.socket.shut_fails = True
    talk.guest.sends(FIN | ACK)
    assert [segment.flags for segment in talk.guest.loses_everything()] == [RST | ACK]
    talk.assert_over()


def test_passt_08a_a_shrunk_window_is_survived() -> None:
    """passt e86d480, 25f9354: what the guest threw away is repeated when there is room again."""
    talk = Conversation.open(window=8000, scale=0)
    octets = bytes(range(200)) * 40
    talk.host.says(octets)
    talk.guest.loses_everything()
    talk.guest.expects = MSS
    talk.guest.sends(ACK, window=0)
    talk.guest.gets_nothing()
    talk.advance(10)
    tries = talk.guest.loses_everything()
    assert tries, "nobody asks the guest"
    assert {segment.at for segment in tries} == {MSS}, "more than one segment into no window"
    talk.guest.sends(ACK, window=8000)
    stream = octets[:MSS]
    for _ in range(20):
        talk.advance(1)
        stream += talk.guest.gets_stream()
        talk.guest.sends(ACK)
    assert stream == octets


def test_passt_08b_a_shrunk_window_repeats_nothing_at_once() -> None:
    """passt 25f9354: what is in flight may still be taken; the time-out tells, 200 ms later."""
    talk = Conversation.open(window=8000, scale=0)
    talk.host.says(PAYLOAD[:8000])
    talk.guest.loses_everything()
    talk.guest.expects = MSS
    talk.guest.sends(ACK, window=MSS)
    talk.advance(RTO - 0.001)
    talk.guest.gets_nothing()
    talk.advance(0.002)
    talk.guest.gets(ACK, PAYLOAD[MSS : 2 * MSS], at=MSS)
    talk.guest.gets_nothing()


def test_passt_09a_a_closed_window_is_probed_until_it_opens() -> None:
    """passt 90f91fe: for as long as the guest answers, however long that is; RFC 9293, 3.8.6.1."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(b"a" * 1500)
    talk.guest.gets(PSH | ACK)
    talk.guest.sends(ACK, window=0)
    for _ in range(60):
        talk.advance(61)
        probes = talk.guest.loses_everything()
        assert probes, "no probe for a minute"
        assert all(probe.at == 999 and not probe.payload for probe in probes)
        talk.guest.sends(ACK)
        assert talk.states == (G.ESTABLISHED, H.OPEN)
    talk.guest.sends(ACK, window=1000)
    talk.guest.gets(PSH | ACK, b"a" * 500, at=1000)


def test_passt_09b_a_keepalive_of_the_guest_is_answered() -> None:
    """passt 238c69f: an octet-less, or one-octet, segment just below the window."""
    talk = Conversation.open()
    talk.guest.sends(ACK, b"hello", at=0)
    talk.guest.loses_everything()
    talk.guest.sends(ACK, at=4)
    talk.guest.gets(ACK, ack=5)
    talk.guest.sends(ACK, b"o", at=4)
    talk.guest.gets(ACK, ack=5)
    assert talk.host.received == b"hello"


def test_passt_09c_the_window_of_a_keepalive_counts() -> None:
    """passt 472e2e9: too low to be a segment, it may tell of an opening that was lost."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(b"a" * 1500)
    talk.guest.gets(PSH | ACK)
    talk.guest.sends(ACK, window=0)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, at=-1, window=1000)
    talk.guest.gets(ACK, b"", ack=0)
    talk.guest.gets(PSH | ACK, b"a" * 500, at=1000)


def test_passt_10a_half_a_segment_is_not_offered() -> None:
    """passt cf1925f: silly windows would have the guest send silly segments."""
    talk = Conversation.open()
    talk.host.takes(0)
    sent = fill(talk)
    talk.host.takes(MSS // 2)
    talk.guest.sends(ACK, at=sent - 1)
    assert talk.guest.gets(ACK).window == 0


@pytest.mark.parametrize("scale", [None, 7])
@pytest.mark.parametrize("mtu", [1500, 65520])
@pytest.mark.parametrize("size", [1, 100, MSS])
def test_passt_10b_an_empty_queue_offers_a_segment_at_least(
    size: int, mtu: int, scale: int | None
) -> None:
    """passt b40f5cd: whatever was offered before, a server that reads leaves room for an MSS."""
    talk = Conversation.open(scale=scale, mtu=mtu, mss=MSS)
    for _ in range(200):
        talk.guest.sends(ACK, bytes(size))
        assert talk.guest.gets(ACK).window >= mtu - 40


def test_passt_11_a_short_write_loses_nothing() -> None:
    """passt a947839, 831857e: the rest goes when the socket takes more, and we ask to be told."""
    talk = Conversation.open()
    talk.host.takes(3)
    talk.guest.sends(PSH | ACK, b"hello")
    assert talk.host.received == b"hel"
    assert talk.host.socket.writing
    talk.guest.sends(PSH | ACK, b", world")
    talk.host.takes(4)
    assert talk.host.received == b"hello, "
    talk.host.takes(100)
    assert talk.host.received == b"hello, world"
    assert not talk.host.socket.writing


def test_passt_12_a_closed_window_stops_the_reading_of_the_host() -> None:
    """passt a8f4fc4: or the loop would spin on a readable socket."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(b"a" * 3000)
    talk.guest.gets(PSH | ACK, b"a" * 1000)
    assert not talk.host.socket.reading
    talk.guest.sends(ACK, window=0)
    talk.guest.gets_nothing()
    assert not talk.host.socket.reading
    assert len(talk.host.socket.incoming) == 2000


def test_passt_13a_frames_that_were_dropped_come_again() -> None:
    """passt a469fc3: a full link has lost five; the first comes after 200 ms, then the others."""
    talk = Conversation.open()
    talk.host.says(PAYLOAD[: 5 * MSS])
    talk.guest.loses_everything()
    talk.advance(RTO - 0.001)
    talk.guest.gets_nothing()
    talk.advance(0.002)
    stream = b""
    while len(stream) < 5 * MSS:
        assert talk.line.segments, "nothing more comes"
        stream += talk.guest.gets_stream()
        talk.guest.sends(ACK)
    assert stream == PAYLOAD[: 5 * MSS]


def test_passt_13b_a_guest_that_is_gone_is_found() -> None:
    """2 h and nine probes, then both sides are told."""
    talk = Conversation.open()
    talk.advance(2 * HOUR + 4 * MINUTE)
    assert talk.states == (G.ESTABLISHED, H.OPEN)
    talk.advance(KEEPALIVE_INTERVAL * KEEPALIVE_PROBES)
    sent = talk.guest.loses_everything()
    assert len(sent) == KEEPALIVE_PROBES + 1
    assert sent[-1].flags == RST | ACK
    assert talk.host.socket.was_reset
    talk.assert_over()


def test_passt_14a_a_long_answer_is_pushed_at_its_end() -> None:
    """passt ec5c4d9."""
    talk = Conversation.open()
    talk.host.says(PAYLOAD[: 2 * MSS + 10])
    talk.guest.gets(ACK, PAYLOAD[:MSS], at=0)
    talk.guest.gets(ACK, PAYLOAD[MSS : 2 * MSS], at=MSS)
    talk.guest.gets(PSH | ACK, PAYLOAD[2 * MSS : 2 * MSS + 10], at=2 * MSS)
    talk.guest.gets_nothing()


def test_passt_18_a_server_that_does_not_read_closes_the_guests_window() -> None:
    """Nothing is dropped: what was advertised is kept, and then no more is advertised."""
    talk = Conversation.open()
    talk.host.takes(0)
    sent = fill(talk)
    assert CAPACITY_INITIAL <= sent <= CAPACITY_INITIAL + ROUNDING_ROOM
    assert talk.flow.receiver.queued == sent
    talk.host.takes(1 << 30)
    assert len(talk.host.received) == sent


def test_capsa_01_a_lost_segment_is_repeated() -> None:
    """RFC 6298: when the time-out has passed, and not before."""
    talk = Conversation.open()
    timeout = talk.flow.sender.round_trip.timeout
    talk.host.says(b"hello")
    talk.guest.loses_everything()
    talk.advance(timeout * 0.99)
    talk.guest.gets_nothing()
    talk.advance(timeout * 0.02)
    talk.guest.gets(PSH | ACK, b"hello", at=0)
    assert talk.counters["tcp.retransmission_timeout"] == 1


def test_capsa_02a_what_overlaps_is_delivered_once() -> None:
    """capsa 2: a repeated segment, re-cut, with old octets in front and new ones behind."""
    talk = Conversation.open()
    talk.guest.sends(PSH | ACK, b"hello")
    talk.guest.sends(PSH | ACK, b"hello, world", at=0)
    talk.guest.sends(PSH | ACK, b"lo, wo", at=3)
    assert talk.host.received == b"hello, world"
    assert [segment.ack for segment in talk.guest.loses_everything()] == [12, 12]


def test_capsa_02b_beyond_the_window_nothing_is_taken() -> None:
    """RFC 9293, 3.10.7.4, first: an unacceptable segment is answered by an ACK."""
    talk = Conversation.open()
    talk.guest.sends(ACK, b"far away", at=1 << 20)
    talk.guest.gets(ACK, ack=0)
    assert talk.counters["tcp.out_of_window"] == 1
    assert talk.host.received == b""


def test_capsa_02b_an_ack_of_what_was_never_sent_is_answered_and_dropped() -> None:
    """RFC 9293, 3.10.7.4, fifth: so that a forged one does no harm."""
    talk = Conversation.open()
    talk.guest.sends(PSH | ACK, b"forged", at=0, ack=1)
    talk.guest.gets(ACK, at=0, ack=0)
    assert talk.host.received == b""


def test_capsa_02b_the_guests_window_is_obeyed() -> None:
    """Not an octet beyond it, and the rest when it moves."""
    talk = Conversation.open(window=2000, scale=0)
    talk.host.says(PAYLOAD[:5000])
    talk.guest.gets(ACK, PAYLOAD[:MSS], at=0)
    talk.guest.gets(PSH | ACK, PAYLOAD[MSS:2000], at=MSS)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK)
    assert talk.guest.gets_stream() == PAYLOAD[2000:4000]


def test_capsa_03a_octets_that_a_fin_carries_count() -> None:
    """capsa 3: the data attached to a FIN counts."""
    talk = in_state(G.ESTABLISHED)
    talk.guest.sends(PSH | FIN | ACK, b"the end")
    assert talk.host.received == b"the end"
    assert talk.host.socket.shut
    talk.guest.gets(ACK, ack=8)


def test_capsa_03a_the_host_is_shut_when_it_has_taken_all() -> None:
    """A full socket: the guest's last words go first, and then its FIN."""
    talk = Conversation.open()
    talk.host.takes(2)
    talk.guest.sends(PSH | FIN | ACK, b"hello")
    talk.guest.gets(ACK, ack=6)
    assert not talk.host.socket.shut
    talk.host.takes(2)
    assert not talk.host.socket.shut
    talk.host.takes(10)
    assert talk.host.received == b"hello"
    assert talk.host.socket.shut


def test_capsa_03b_the_server_goes_on_after_the_guests_fin() -> None:
    """`echo request | nc server`: half-closed for an hour, and every octet arrives."""
    talk = Conversation.open()
    talk.guest.sends(PSH | FIN | ACK, b"request")
    talk.guest.gets(ACK, ack=8)
    assert talk.host.received == b"request"
    for _ in range(6):
        talk.advance(600)
        talk.host.says(b"x" * 3000)
        assert talk.guest.gets_stream() == b"x" * 3000
        talk.guest.sends(ACK)
    talk.host.ends()
    talk.guest.gets(FIN | ACK, at=18_000)
    talk.guest.sends(ACK)
    talk.assert_over()


def test_capsa_03b_the_guest_goes_on_after_the_servers_fin() -> None:
    """Half-closed the other way: octets are taken and acknowledged, and the window moves on.

    passt 30f1e08.
    """
    talk = Conversation.open()
    talk.host.ends()
    talk.guest.gets(FIN | ACK)
    talk.guest.sends(ACK)
    sent = 0
    for _ in range(300):
        talk.advance(60)
        talk.guest.sends(ACK, bytes(MSS))
        sent += MSS
        talk.guest.gets(ACK, at=1, ack=sent)
    assert len(talk.host.received) == sent
    assert not talk.host.socket.shut
    talk.guest.sends(FIN | ACK)
    talk.guest.gets(ACK, ack=sent + 1)
    assert talk.host.socket.shut


@IN_ALL
def test_capsa_03c_a_failing_server_resets_the_guest(state: GuestState) -> None:
    """Where the guest half is open in any way, the server's reset is passed on."""
    talk = in_state(state)
    if talk.host.socket.closed:
        return  # both directions had ended on the host's side
    talk.host.fails()
    talk.guest.gets(RST | ACK, at=talk.guest.expects, ack=talk.guest.position)
    talk.guest.gets_nothing()
    talk.assert_over()


def test_capsa_04b_a_syn_repeated_after_our_answer_is_answered_again() -> None:
    """Our SYN,ACK was lost: the guest need not wait for our timer."""
    talk = in_state(G.SYN_RECEIVED)
    talk.guest.sends(SYN)
    talk.guest.gets(SYN | ACK, at=-1, ack=0)
    talk.guest.sends(ACK)
    assert talk.states == (G.ESTABLISHED, H.OPEN)


@pytest.mark.parametrize(
    ("scale", "options"),
    [(7, b"\x02\x04\x05\xb4\x01\x03\x03\x08"), (0, b"\x02\x04\x05\xb4\x01\x03\x03\x08"),
     (None, b"\x02\x04\x05\xb4")],
)  # fmt: skip
def test_capsa_04d_the_answer_names_our_mss_and_scales_only_if_asked(
    scale: int | None, options: bytes
) -> None:
    """capsa 4: a SYN,ACK without MSS makes guests send 536 bytes; RFC 7323, 2.2, for the scale."""
    talk = Conversation(scale=scale)
    talk.host.connects()
    answer = talk.guest.gets(SYN | ACK)
    assert answer.options == options
    assert answer.window == 65535
