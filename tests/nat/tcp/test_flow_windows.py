"""Back-pressure from end to end: closed windows, their probes, and their opening again."""

import pytest

from qemu_usernat.nat.tcp.receiver import CAPACITY_INITIAL
from qemu_usernat.nat.tcp.retained import JOINED_BELOW
from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST
from tests.nat.tcp.conversation import MSS, Conversation

G, H = GuestState, HostState


def fill(talk: Conversation) -> int:
    """The guest sends until our window is closed; how much that was."""
    while (room := talk.line.edge - talk.guest.position) > 0:
        talk.guest.sends(ACK, bytes(min(MSS, room)))
    talk.guest.loses_everything()
    return talk.guest.position


# -- the server does not read


def test_a_probe_of_our_closed_window_is_answered_and_costs_nothing() -> None:
    """RFC 9293, 3.8.6.1: an octet beyond, or none below; the answer is the window, still closed."""
    talk = Conversation.open()
    talk.host.takes(0)
    sent = fill(talk)
    talk.guest.sends(ACK, b"?", at=sent)
    assert talk.guest.gets(ACK, ack=sent).window == 0
    talk.guest.sends(ACK, at=sent - 1)
    assert talk.guest.gets(ACK, ack=sent).window == 0
    assert talk.flow.receiver.queued == sent


def test_an_ack_in_a_closed_window_is_heard() -> None:
    """RFC 9293, 3.10.7.4: the other direction goes on."""
    talk = Conversation.open()
    talk.host.takes(0)
    sent = fill(talk)
    talk.host.says(b"hello")
    talk.guest.gets(PSH | ACK, b"hello")
    talk.guest.sends(ACK, b"?", at=sent)
    assert not talk.flow.sender.in_flight


def test_a_segment_without_an_ack_acknowledges_nothing_in_a_closed_window() -> None:
    """RFC 9293, 3.1: without the flag the field means nothing; the octet is answered."""
    talk = Conversation.open()
    talk.host.takes(0)
    sent = fill(talk)
    talk.host.says(b"hello")
    talk.guest.gets(PSH | ACK, b"hello")
    talk.guest.sends(PSH, b"?", at=sent, ack=5)
    talk.guest.gets(ACK, ack=sent)
    assert talk.flow.sender.in_flight


def test_a_fin_behind_an_octet_that_a_closed_window_refuses_is_refused() -> None:
    """The FIN of a probe stands behind the octet."""
    talk = Conversation.open()
    talk.host.takes(0)
    sent = fill(talk)
    talk.guest.sends(FIN | ACK, b"?", at=sent)
    assert talk.guest.gets(ACK, ack=sent).window == 0
    assert talk.states == (G.ESTABLISHED, H.OPEN)
    talk.guest.sends(FIN | ACK, at=sent)
    talk.guest.gets(ACK, ack=sent + 1)
    assert talk.states == (G.CLOSE_WAIT, H.OPEN)


def test_our_window_opens_when_the_server_reads_again() -> None:
    """An update goes by itself: the guest would otherwise wait for its probe."""
    talk = Conversation.open()
    talk.host.takes(0)
    sent = fill(talk)
    talk.host.takes(MSS)
    talk.guest.gets_nothing()
    talk.host.takes(100_000)
    update = talk.guest.gets(ACK, ack=sent)
    assert update.window >= 2 * MSS
    talk.guest.gets_nothing()


def test_a_lost_window_update_is_found_by_the_guests_probe() -> None:
    """The answer to a probe carries the window of the day."""
    talk = Conversation.open()
    talk.host.takes(0)
    sent = fill(talk)
    talk.host.takes(1 << 30)
    talk.guest.loses_everything()
    talk.guest.sends(ACK, at=sent - 1)
    assert talk.guest.gets(ACK, ack=sent).window > MSS


# -- the guest does not read


def test_a_guest_that_answers_no_probe_is_given_up() -> None:
    """RFC 9293, 3.8.3: R2, and both sides are told."""
    talk = Conversation.open(window=0, scale=0)
    talk.host.says(b"hello")
    talk.advance(90)
    assert not talk.flow.finished
    talk.advance(1800)
    assert talk.guest.loses_everything()[-1].flags == RST | ACK
    assert talk.host.socket.was_reset
    assert talk.counters["tcp.gave_up"] == 1
    talk.assert_over()


def test_a_window_closed_from_the_start() -> None:
    """The handshake's ACK says zero; the server's first words wait and are asked for."""
    talk = Conversation(window=0)
    talk.host.connects()
    talk.guest.gets()
    talk.host.says(b"hello")
    talk.guest.sends(ACK)
    talk.guest.gets_nothing()
    talk.advance(talk.flow.sender.round_trip.timeout)
    talk.guest.gets(ACK, b"", at=-1)
    talk.guest.sends(ACK, window=1 << 10)
    talk.guest.gets(PSH | ACK, b"hello")


def test_a_guest_that_has_said_all_is_probed_as_well() -> None:
    """Half-closed, it reads slowly, and the opening of its window may be lost."""
    talk = Conversation.open(window=0)
    talk.guest.sends(FIN | ACK)
    talk.guest.gets(ACK, ack=1)
    talk.host.says(b"answer")
    for _ in range(3):
        talk.guest.gets_nothing()
        talk.advance(10)
        assert {segment.at for segment in talk.guest.loses_everything()} == {-1}
    talk.guest.sends(ACK, window=1 << 10)
    talk.guest.gets(PSH | ACK, b"answer", at=0)


def test_a_window_that_closes_after_a_timeout_opens_again() -> None:
    """Everything has arrived meanwhile: nothing is left that could be sent again."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(b"a" * 1000)
    talk.guest.loses_everything()
    talk.advance(0.25)
    talk.guest.gets(PSH | ACK, b"a" * 1000, at=0)
    talk.guest.sends(ACK, window=0)
    talk.guest.sends(ACK, window=1000)
    talk.guest.gets_nothing()
    talk.host.says(b"more")
    talk.guest.gets(PSH | ACK, b"more", at=1000)


def test_an_old_keepalive_closes_no_window() -> None:
    """Its number is too old for its window to be the newest: it may have been overtaken."""
    talk = Conversation.open(window=5000, scale=0)
    talk.guest.sends(ACK, at=-1, window=0)
    talk.guest.gets(ACK)
    talk.host.says(b"hello")
    talk.guest.gets(PSH | ACK, b"hello")


@pytest.mark.parametrize(
    ("flags", "at", "heard"),
    [(ACK, -1, True), (ACK, -2, False), (ACK, 2**20, False), (0, -1, False)],
)
def test_only_a_keepalive_tells_late_that_the_window_is_open(
    flags: int, at: int, heard: bool
) -> None:
    """The opening was lost, and a keepalive repeats it; any other segment out of place is old, or
    forged, and says nothing."""
    talk = Conversation.open(window=5000, scale=3)
    talk.guest.sends(ACK, window=0)
    talk.host.says(b"hello")
    talk.guest.gets_nothing()
    talk.guest.sends(flags, at=at, window=16)
    assert (b"hello" in [segment.payload for segment in talk.guest.loses_everything()]) is heard


def test_nothing_waits_so_nothing_is_probed() -> None:
    """A closed window with nothing to send is nobody's business."""
    talk = Conversation.open(window=0)
    talk.advance(600)
    talk.guest.gets_nothing()


def test_the_servers_end_passes_a_closed_window() -> None:
    """A FIN needs no room; it is repeated like any other."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(b"a" * 1000)
    talk.guest.gets(PSH | ACK)
    talk.guest.sends(ACK, window=0)
    talk.host.ends()
    talk.guest.gets(FIN | ACK, at=1000)
    talk.guest.sends(ACK)
    assert talk.flow.guest_state is G.FIN_WAIT_2


def test_the_servers_end_waits_behind_what_a_closed_window_keeps() -> None:
    """The octets first."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(b"a" * 1500)
    talk.host.ends()
    talk.guest.gets(PSH | ACK, b"a" * 1000)
    talk.guest.sends(ACK, window=0)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, window=5000)
    talk.guest.gets(PSH | ACK, b"a" * 500, at=1000)
    talk.guest.gets(FIN | ACK, at=1500)


def test_a_window_shrunk_below_what_is_read_keeps_new_octets_back() -> None:
    """Nothing new is sent beyond it, and it is all sent later."""
    talk = Conversation.open(window=4000, scale=0)
    talk.host.says(b"a" * 3000)
    talk.guest.loses_everything()
    talk.guest.expects = 3000
    talk.guest.sends(ACK, window=100)
    talk.host.says(b"b" * 3000)
    talk.guest.gets(PSH | ACK, b"b" * 100, at=3000)
    talk.guest.gets_nothing()


@pytest.mark.parametrize("window", [1, 50, 87, MSS])
def test_a_guest_with_a_tiny_buffer_gets_everything(window: int) -> None:
    """Slowly, an ACK at a time."""
    talk = Conversation.open(window=window, scale=0)
    talk.host.says(bytes(range(200)))
    stream = b""
    while talk.line.segments:
        stream += talk.guest.gets_stream()
        talk.guest.sends(ACK)
    assert stream == bytes(range(200))


@pytest.mark.parametrize("scale", [None, 7])
@pytest.mark.parametrize("mtu", [1500, 65520])
def test_a_server_that_reads_again_is_said_at_once(scale: int | None, mtu: int) -> None:
    """Whether or not windows are scaled, and however large our MTU is."""
    talk = Conversation.open(scale=scale, mtu=mtu, mss=1460)
    talk.host.takes(0)
    while room := talk.flow.receiver.room:
        talk.guest.sends(ACK, bytes(min(1460, room)))
        talk.guest.loses_everything()
    talk.host.takes(10**9)
    talk.end_turn()
    talk.guest.gets(ACK)
    assert talk.flow.receiver.room >= 32768


def test_octets_that_were_taken_before_the_window_closed_are_probed_for() -> None:
    """They wait here and not at the host, and are as stuck: the opening may be lost."""
    talk = Conversation.open(window=1000, scale=0)
    talk.guest.sends(ACK, window=0)
    with talk.turn():
        talk.flow.on_host_data(b"late", 4, talk.now)
    talk.guest.gets_nothing()
    assert talk.flow.guest_state is GuestState.ESTABLISHED, "nothing of ours has ended"
    talk.advance(3)
    talk.guest.gets(ACK, b"", at=-1)
    talk.guest.loses_everything()
    talk.host.ends()
    talk.guest.sends(ACK, window=1000)
    talk.guest.gets(PSH | ACK, b"late", at=0)
    talk.guest.gets(FIN | ACK, at=4)
    talk.guest.sends(ACK)
    talk.advance(600)
    talk.guest.gets_nothing()  # and no window is asked for any more


@pytest.mark.parametrize("isn", [2**32 - 2, 2**32 - 101])
def test_a_window_is_followed_across_the_wrap_of_the_guests_numbers(isn: int) -> None:
    """RFC 9293, 3.10.7.4, fifth: SND.WL1 is a sequence number, and what is newer wraps as well."""
    talk = Conversation.open(window=1000, scale=0, isn=isn)
    talk.guest.sends(PSH | ACK, b"question" * 20, window=0)
    talk.guest.loses_everything()
    talk.host.says(b"answer")
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, window=1000)
    talk.guest.gets(PSH | ACK, b"answer")


def test_a_guest_that_has_ended_its_direction_is_asked_for_its_window() -> None:
    """Half-closed it still listens, and the server's octets wait for it."""
    talk = Conversation.open(window=1000, scale=0)
    talk.guest.sends(FIN | ACK, window=0)
    talk.guest.gets(ACK, ack=1)
    talk.host.says(b"answer")
    talk.guest.gets_nothing()
    talk.advance(3)
    assert talk.counters["tcp.window_probe"] > 0
    talk.guest.loses_everything()
    talk.guest.sends(ACK, window=1000)
    talk.guest.gets(PSH | ACK, b"answer")


def test_a_window_that_a_gap_has_used_up_is_open_again_when_it_is_filled() -> None:
    """What fills the gap is acknowledged at once, and the server takes all of it only after that:
    the guest hears of the room in the same turn, and not when it asks 200 ms later."""
    talk = Conversation.open(selective=True)
    last = talk.flow.receiver.room // MSS
    with talk.turn():
        for number in range(1, last):
            talk.guest.sends(ACK, bytes(MSS), at=number * MSS)
    talk.guest.loses_everything()
    talk.guest.sends(ACK, bytes(MSS), at=0)
    assert len(talk.host.received) == last * MSS
    told = talk.guest.loses_everything()[-1]
    assert told.ack == last * MSS
    assert told.window >= CAPACITY_INITIAL


def test_what_has_been_taken_is_probed_for_no_more() -> None:
    """The window that kept it has opened for it, and is closed again with nothing to wait."""
    talk = Conversation.open(window=1000, scale=0)
    talk.host.says(b"a" * 1500)
    talk.guest.gets(PSH | ACK)
    talk.guest.sends(ACK, window=0)
    talk.guest.sends(ACK, window=500)
    talk.guest.gets(PSH | ACK, b"a" * 500)
    talk.guest.sends(ACK, window=0)
    talk.advance(600)
    talk.guest.gets_nothing()
    talk.host.says(b"more")
    talk.advance(1)
    assert talk.guest.loses_everything(), "and now there is something"


def test_a_window_that_closes_over_what_is_in_flight_is_asked_for_hours() -> None:
    """RFC 9293, 3.8.6.1: while the guest answers, R2 does not count."""
    talk = Conversation.open(window=8000, scale=0)
    talk.host.says(bytes(16000))
    talk.guest.loses_everything()
    talk.guest.sends(ACK, ack=MSS, window=0)
    for _ in range(240):
        talk.advance(61)
        asked = talk.guest.loses_everything()
        assert asked, "nobody asks for a minute"
        assert {segment.at for segment in asked} == {MSS}
        talk.guest.sends(ACK, ack=MSS, window=0)
    talk.guest.sends(ACK, ack=MSS, window=8000)
    talk.guest.expects = MSS
    received = MSS + len(talk.guest.gets_stream())
    assert received > MSS, "it has opened, and nobody uses it"
    talk.guest.sends(ACK)
    for _ in range(20):
        talk.advance(61)
        received += len(talk.guest.gets_stream())
        talk.guest.sends(ACK)
    assert received == 16000


def test_only_the_last_octets_are_pushed() -> None:
    """What was read in pieces leaves in pieces, once the window has opened (RFC 9293, 3.9.1.2)."""
    talk = Conversation.open(window=60_000, scale=0)
    talk.guest.sends(ACK, window=0)
    with talk.turn():
        for _ in range(3):
            talk.flow.on_host_data(bytes(JOINED_BELOW), JOINED_BELOW, talk.now)
    talk.guest.sends(ACK, window=60_000)
    flags = [segment.flags for segment in talk.guest.loses_everything()]
    assert flags == [ACK] * (len(flags) - 1) + [PSH | ACK]
    assert len(flags) == 9
