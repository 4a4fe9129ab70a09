"""The guest acknowledges selectively (RFC 2018, RFC 2883), and what follows from that.

What it says it has is not sent again, what it lacks is repaired within a round trip (RFC 6675,
RFC 8985), and how much is sent then is the congestion control's. What we tell the guest in the
same way is `test_flow_told.py`.
"""

import random

import pytest

from qemu_usernat.nat.tcp.congestion import CUBIC_BETA, FLIGHT_MAXIMUM
from qemu_usernat.nat.tcp.reordering import ROUNDS
from qemu_usernat.nat.tcp.tail_probe import TAIL_PROBE_DELAYED_ACK, TAIL_PROBE_MINIMUM
from qemu_usernat.primitives.sequence import MODULUS
from qemu_usernat.wire.packets import ACK, FIN, PSH, SYN
from tests.nat.tcp.conversation import MSS, Conversation, Segment

STREAM = random.Random(2018).randbytes(1 << 21)
ROUND_TRIP = 0.04
PATIENCE = ROUND_TRIP / 4
"""What a segment may be overtaken by at first: a quarter of a round trip (RFC 8985, 6.2)."""


def opened(**options: int | str) -> Conversation:
    """A guest with selective acknowledgments, 40 ms away, that has got one segment."""
    talk = Conversation(selective=True, **options)  # type: ignore[arg-type]
    talk.host.connects()
    talk.now += ROUND_TRIP
    talk.guest.gets(SYN | ACK)
    talk.guest.sends(ACK)
    says(talk, 1)
    talk.guest.sends(ACK)
    talk.guest.gets_nothing()
    return talk


def says(talk: Conversation, segments: int) -> int:
    """The server writes so many full segments, which leave at once; where the first one is."""
    first = talk.guest.expects
    talk.host.says(STREAM[first : first + segments * MSS])
    for number in range(segments):
        talk.guest.gets(ACK, at=first + number * MSS)
    talk.guest.gets_nothing()
    talk.now += ROUND_TRIP
    return first


def block(first: int, start: int, end: int) -> tuple[int, int]:
    """The segments from number `start` to before number `end`, counted from position `first`."""
    return first + start * MSS, first + end * MSS


def got(talk: Conversation) -> list[Segment]:
    """What the guest gets now, checked against the stream."""
    segments = talk.guest.loses_everything()
    for segment in segments:
        assert segment.payload == STREAM[segment.at : segment.end]
    return segments


def numbers(talk: Conversation, first: int) -> list[int]:
    """Which segments come now, counted from `first`."""
    return [(segment.at - first) // MSS for segment in got(talk)]


# -- what the guest lacks


def test_everything_acknowledged_leaves_nothing_to_be_judged() -> None:
    """A segment that was overtaken arrives after all: no alarm for it rings any more."""
    talk = opened()
    first = says(talk, 3)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 3)])
    assert talk.flow.deadline() == pytest.approx(talk.now + PATIENCE)
    talk.guest.sends(ACK)
    assert talk.flow.deadline() > talk.now + 60
    talk.advance(60)
    talk.guest.gets_nothing()


@pytest.mark.parametrize("selective", [False, True])
def test_a_long_exchange_leaves_nothing_behind(selective: bool) -> None:
    """Request and answer, a thousand times: what was acknowledged is forgotten."""
    talk = Conversation.open(selective=selective)
    for _ in range(1000):
        talk.guest.sends(ACK | PSH, b"?")
        talk.host.says(b"!")
        talk.guest.gets(ACK)
    talk.guest.sends(ACK)
    scoreboard = talk.flow.sender.scoreboard
    assert not scoreboard._transmissions
    assert not scoreboard._runs


@pytest.mark.parametrize(
    ("congestion", "share"), [("none", None), ("reno", 0.5), ("cubic", CUBIC_BETA)]
)
def test_a_loss_is_answered_by_a_share_of_what_was_in_flight(
    congestion: str, share: float | None
) -> None:
    """RFC 5681, 3.2, and RFC 9438, 4.6, though all the ACKs of a flight come in one turn: the
    lost segment and as many new ones as the control allows."""
    talk = opened(congestion=congestion)
    for segments in (10, 10, 20):
        says(talk, segments)
        talk.guest.sends(ACK)
    first = says(talk, 20)
    with talk.turn():
        for end in range(2, 21):
            talk.guest.sends(ACK, ack=first, selective=[block(first, 1, end)])
    assert numbers(talk, first) == [0]
    talk.host.says(STREAM[first + 20 * MSS :][: 100 * MSS])
    sent = 1 + len(got(talk))
    assert sent == (20 * share if share else 101)


def test_one_hole_is_repaired_after_a_round_trip_and_a_quarter() -> None:
    """RFC 8985, 6.2: one segment behind it may have overtaken it; nothing else is sent again."""
    talk = opened()
    first = says(talk, 2)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 2)])
    talk.advance(PATIENCE * 0.99)
    talk.guest.gets_nothing()
    talk.advance(PATIENCE * 0.02)
    assert numbers(talk, first) == [0]
    talk.now += ROUND_TRIP
    talk.guest.sends(ACK, ack=first + 2 * MSS)
    talk.advance(10)
    talk.guest.gets_nothing()
    assert talk.counters["tcp.loss_recovery"] == 1
    assert talk.counters["tcp.retransmission_timeout"] == 0


def test_three_segments_beyond_a_hole_are_proof_enough() -> None:
    """As long as no wire has been seen to reorder (RFC 8985, 6.2, step 4)."""
    talk = opened()
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 3)])
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 4)])
    assert numbers(talk, first) == [0]


def test_a_repair_has_no_patience() -> None:
    """What else is lost of the same flight is repeated at once (RFC 8985, 6.2, step 4)."""
    talk = opened()
    first = says(talk, 8)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 5)])
    assert numbers(talk, first) == [0]
    talk.guest.sends(ACK, ack=first + 5 * MSS)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, ack=first + 5 * MSS, selective=[block(first, 6, 7)])
    assert numbers(talk, first) == [5]


def test_many_holes_are_repaired_in_one_round_trip() -> None:
    """Every second segment of sixteen, told of by four blocks an ACK, the newest first: none waits
    for another, and none was overtaken by one of its own ACK."""
    talk = opened()
    first = says(talk, 16)
    blocks = [block(first, number, number + 1) for number in range(1, 16, 2)]
    with talk.turn():
        talk.guest.sends(ACK, ack=first, selective=blocks[3::-1])
        talk.guest.sends(ACK, ack=first, selective=blocks[7:3:-1])
    assert numbers(talk, first) == list(range(0, 16, 2))
    talk.now += ROUND_TRIP
    talk.guest.sends(ACK, ack=first + 16 * MSS)
    talk.advance(10)
    talk.guest.gets_nothing()


def test_a_lost_repetition_is_repeated_without_the_timer() -> None:
    """What was sent after it has arrived: RACK knows, and waits for no timeout."""
    talk = opened()
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 5)])
    assert numbers(talk, first) == [0]
    talk.now += 0.001
    talk.host.says(STREAM[first + 5 * MSS :][: 5 * MSS])
    assert numbers(talk, first) == [5, 6, 7, 8, 9]
    talk.now += ROUND_TRIP
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 10)])
    assert numbers(talk, first) == [0]
    assert talk.counters["tcp.retransmission_timeout"] == 0
    assert talk.counters["tcp.loss_recovery"] == 1, "and is the same loss to the window"


def test_a_wire_that_reorders_is_waited_for_once_it_was_seen_to() -> None:
    """One segment that was overtaken and came before its time was out: from then on many may
    overtake it, and nothing is repeated (RFC 8985, 6.2, step 4)."""
    talk = opened()
    for overtaking in (1, 8, 8, 8):
        first = says(talk, 9)
        talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 1 + overtaking)])
        talk.guest.gets_nothing()
        talk.now += 0.9 * PATIENCE
        talk.guest.sends(ACK, ack=first + 9 * MSS)
    talk.advance(10)
    talk.guest.gets_nothing()


def patience_of(talk: Conversation) -> float:
    """How long a segment that one other has overtaken is waited for, in round trips."""
    first = says(talk, 2)
    before = talk.now
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 2)])
    waited = talk.flow.sender.scoreboard.judge_at - before
    talk.advance(waited * 1.001)
    assert numbers(talk, first) == [0]
    talk.now += ROUND_TRIP
    talk.guest.sends(ACK, ack=first + 2 * MSS)
    return waited / ROUND_TRIP


def test_what_came_twice_makes_more_patient_and_is_forgotten() -> None:
    """RFC 8985, 6.2, step 4: twice as patient for each round trip that tells of repetitions
    without need, and back after sixteen repairs that were needed."""
    talk = opened()
    assert patience_of(talk) == pytest.approx(0.25)
    first = says(talk, 9)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 4, 9)])
    assert numbers(talk, first) == [0, 1, 2, 3]
    with talk.turn():
        for number in range(4):
            copy = block(first, number, number + 1)
            talk.guest.sends(ACK, ack=first + 9 * MSS, selective=[copy])
    talk.guest.gets_nothing()
    assert talk.counters["tcp.repeated_needlessly"] == 4
    for _ in range(ROUNDS):
        assert patience_of(talk) == pytest.approx(0.5)
    assert patience_of(talk) == pytest.approx(0.25)
    for _ in range(9):
        end = says(talk, 1) + MSS
        talk.guest.sends(ACK, selective=[(end - MSS, end)])
    assert 0.75 < patience_of(talk) <= 1.25, "a round trip, as smoothed, is the most"


def test_within_a_round_trip_patience_grows_once() -> None:
    """Whatever is acknowledged meanwhile: what was sent with the old patience says nothing new."""
    talk = opened()
    assert patience_of(talk) == pytest.approx(0.25)
    first = says(talk, 9)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 4, 9)])
    assert numbers(talk, first) == [0, 1, 2, 3]
    for number in range(4):
        copy = block(first, number, number + 1)
        talk.guest.sends(ACK, ack=first + (number + 1) * MSS, selective=[copy])
    talk.guest.sends(ACK, ack=first + 9 * MSS)
    talk.guest.gets_nothing()
    assert patience_of(talk) == pytest.approx(0.5)


def test_a_repetition_without_need_tells_of_a_wire_that_reorders() -> None:
    """The first copy came after all: from then on nobody who is overtaken is lost at once."""
    talk = opened()
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 5)])
    assert numbers(talk, first) == [0]
    end = first + 5 * MSS
    talk.guest.sends(ACK, ack=end)
    talk.guest.sends(ACK, ack=end, selective=[block(first, 0, 1)])
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 5)])
    assert numbers(talk, first) == []
    talk.advance(2 * PATIENCE * 1.01)
    assert numbers(talk, first) == [0]


def test_copies_that_the_wire_makes_make_nobody_patient() -> None:
    """More came twice than was ever sent twice."""
    talk = opened()
    for _ in range(9):
        end = says(talk, 1) + MSS
        talk.guest.sends(ACK, ack=end)
        talk.guest.sends(ACK, ack=end, selective=[(end - MSS, end)])
    assert talk.counters["tcp.repeated_needlessly"] == 9
    assert patience_of(talk) == pytest.approx(0.25)
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 5)])
    assert numbers(talk, first) == [0], "nor is it a wire that reorders"


def test_a_block_within_the_second_one_came_twice() -> None:
    """RFC 2883, 4: beyond a gap, too; it is no news of anything."""
    talk = opened()
    first = says(talk, 4)
    blocks = [block(first, 2, 3), block(first, 1, 4)]
    talk.guest.sends(ACK, ack=first, selective=blocks)
    assert talk.counters["tcp.repeated_needlessly"] == 1
    talk.advance(2 * PATIENCE)
    assert numbers(talk, first) == [0]


# -- the tail


def test_a_lost_tail_is_probed_for_before_the_timer() -> None:
    """RFC 8985, 7.2: after two round trips, once; what its ACK tells repairs the rest."""
    talk = opened()
    first = says(talk, 4)
    talk.now -= ROUND_TRIP
    talk.advance(2 * ROUND_TRIP * 0.99)
    talk.guest.gets_nothing()
    talk.advance(2 * ROUND_TRIP * 0.02)
    assert numbers(talk, first) == [3]
    assert talk.counters["tcp.tail_probe"] == 1
    talk.now += ROUND_TRIP
    talk.guest.sends(ACK, ack=first, selective=[block(first, 3, 4)])
    talk.advance(2 * PATIENCE)
    assert numbers(talk, first) == [0, 1, 2]
    assert talk.counters["tcp.tail_probe"] == 1
    assert talk.counters["tcp.retransmission_timeout"] == 0


def test_an_alarm_that_comes_late_probes_the_tail_all_the_same() -> None:
    """The loop has more to do than to wake one flow."""
    talk = opened()
    first = says(talk, 4)
    talk.now = talk.flow.deadline() + 0.001
    talk.flow.on_deadline(talk.now)
    talk.end_turn()
    assert numbers(talk, first) == [3]


def test_no_tail_is_probed_beyond_a_window_that_has_shrunk() -> None:
    """The guest would throw it away; the timer repeats what there is room for."""
    talk = opened(scale=0)
    first = says(talk, 4)
    talk.guest.sends(ACK, ack=first, window=2 * MSS)
    talk.advance(2 * ROUND_TRIP)
    talk.guest.gets_nothing()
    talk.advance(0.1)
    assert numbers(talk, first) == [0]


def test_one_probe_and_then_the_timer() -> None:
    """If it is lost, too: RFC 8985, 7.2, and RFC 6298, 5, counted from the probe."""
    talk = opened()
    first = says(talk, 4)
    talk.advance(0.4)
    assert numbers(talk, first) == [3, 0]
    assert talk.counters["tcp.tail_probe"] == 1
    assert talk.counters["tcp.retransmission_timeout"] == 1


def test_a_timeout_ends_the_probe_and_the_next_tail_is_probed_for() -> None:
    """One probe for each flight (RFC 8985, 7.2): one that the timer ended is past."""
    talk = opened()
    says(talk, 4)
    talk.advance(0.4)
    got(talk)
    talk.guest.sends(ACK)
    first = says(talk, 4)
    talk.now -= ROUND_TRIP
    talk.advance(2.02 * ROUND_TRIP)
    assert numbers(talk, first) == [3]
    assert talk.counters["tcp.tail_probe"] == 2


def test_an_ack_that_may_be_delayed_is_waited_for() -> None:
    """A single segment is acknowledged when the guest likes: 200 ms later, which is when the timer
    rings (RFC 8985, 7.2)."""
    talk = opened()
    sent_at = talk.now
    first = says(talk, 1)
    talk.advance(0.9 * (2 * ROUND_TRIP + TAIL_PROBE_DELAYED_ACK) - ROUND_TRIP)
    assert not talk.counters["tcp.tail_probe"]
    assert talk.flow.sender.retransmit_at >= sent_at + 0.2
    got(talk)
    assert first == MSS


def test_a_near_guest_is_not_probed_at_once() -> None:
    """Round trips of microseconds: a guest has more to do than to answer."""
    talk = Conversation.open(selective=True)
    talk.host.says(STREAM[: 4 * MSS])
    got(talk)
    talk.advance(0.9 * TAIL_PROBE_MINIMUM)
    talk.guest.gets_nothing()
    talk.advance(0.2 * TAIL_PROBE_MINIMUM)
    assert numbers(talk, 0) == [3]


def test_no_tail_probe_while_something_is_repaired() -> None:
    """The guest has spoken: what it lacks is known."""
    talk = opened()
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 4)])
    assert numbers(talk, first) == [0]
    talk.advance(0.19)
    talk.guest.gets_nothing()


def test_no_tail_probe_before_the_repair_has_ended() -> None:
    """The hole is filled, but of what was sent when it was seen something is still on its way."""
    talk = opened()
    first = says(talk, 8)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 4)])
    assert numbers(talk, first) == [0]
    talk.guest.sends(ACK, ack=first + 4 * MSS)
    talk.advance(0.19)
    talk.guest.gets_nothing()


def test_no_second_probe_while_the_first_is_not_answered() -> None:
    """RFC 8985, 7.2: what is new meanwhile waits for the timer."""
    talk = opened()
    first = says(talk, 4)
    talk.advance(0.05)
    assert numbers(talk, first) == [3]
    talk.host.says(STREAM[first + 4 * MSS :][: 2 * MSS])
    assert numbers(talk, first) == [4, 5]
    talk.advance(0.15)
    talk.guest.gets_nothing()


@pytest.mark.parametrize("needless", ["", "told", "not told"])
def test_a_probe_that_repaired_a_loss_is_a_loss(needless: str) -> None:
    """RFC 8985, 7.4: reno sends less then. Unless the probe came twice, be that told by the very
    ACK that tells of more; or by an ACK twice, from guests that tell nothing of it."""
    talk = opened(congestion="reno")
    for segments in (10, 10):
        says(talk, segments)
        talk.guest.sends(ACK)
    window = talk.flow.sender.congestion.window
    first = says(talk, 10)
    talk.advance(ROUND_TRIP * 1.1)
    assert numbers(talk, first) == [9]
    talk.host.says(STREAM[first + 10 * MSS :][:MSS])
    assert numbers(talk, first) == [10]
    talk.now += ROUND_TRIP
    if needless == "not told":
        talk.guest.sends(ACK, ack=first + 10 * MSS)
        talk.guest.sends(ACK, ack=first + 10 * MSS)
    blocks = [block(first, 9, 10)] if needless == "told" else []
    talk.guest.sends(ACK, ack=first + 11 * MSS, selective=blocks)
    if needless:
        assert talk.flow.sender.congestion.window >= window
    else:
        assert talk.flow.sender.congestion.window == 5 * MSS


def test_our_fin_is_the_tail() -> None:
    """A lost FIN is asked after by itself."""
    talk = opened()
    says(talk, 2)
    talk.now -= ROUND_TRIP
    talk.host.ends()
    talk.guest.gets(FIN | ACK)
    talk.advance(0.1)
    talk.guest.gets(FIN | ACK)
    talk.guest.gets_nothing()
    assert talk.counters["tcp.tail_probe"] == 1


# -- guests that say strange things


def test_a_guest_may_throw_away_what_it_said_it_had() -> None:
    """RFC 2018, 8: the timer finds it out, and all is sent again."""
    talk = opened()
    first = says(talk, 4)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 4)])
    assert numbers(talk, first) == [0]
    talk.now += ROUND_TRIP
    talk.guest.sends(ACK, ack=first + MSS)
    talk.advance(0.5)
    assert numbers(talk, first)[0] == 1
    assert talk.counters["tcp.reneged"] == 1
    talk.guest.sends(ACK, ack=first + 2 * MSS)
    assert numbers(talk, first) == [2, 3]


@pytest.mark.parametrize(
    "ends", [(1, 5), (4, 6), (3, 2), (2, 2), pytest.param((1, 4 + 1 / MSS), id="an octet too far")]
)
def test_blocks_of_what_was_not_sent_say_nothing(ends: tuple[float, float]) -> None:
    """Beyond SND.NXT, or turned round: counted, and nothing is repeated for them."""
    talk = opened()
    first = says(talk, 4)
    start, end = (first + round(segments * MSS) for segments in ends)
    talk.guest.sends(ACK, ack=first, selective=[(start, end)])
    assert talk.counters["tcp.bad_selective_acknowledgment"] == 1
    assert talk.flow.sender.scoreboard.delivered == 0
    assert talk.flow.sender.scoreboard.judge_at > talk.now + 60


def test_an_ack_that_others_have_overtaken_says_nothing_wrong() -> None:
    """Its blocks are of what was acknowledged meanwhile."""
    talk = opened()
    first = says(talk, 6)
    talk.guest.sends(ACK, ack=first + 5 * MSS)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 3)])
    talk.guest.sends(ACK, ack=first + MSS, selective=[block(first, 2, 5)])
    assert talk.flow.sender.scoreboard.delivered == 0
    talk.advance(0.19)
    assert 0 not in numbers(talk, first)
    assert talk.counters["tcp.repeated_needlessly"] == 0


def test_a_block_that_begins_before_the_hole_says_nothing() -> None:
    """A guest that has it would acknowledge it."""
    talk = opened()
    first = says(talk, 4)
    talk.guest.sends(ACK, ack=first, selective=[block(first, -1, 3)])
    talk.guest.sends(ACK, ack=first, selective=[block(first, 0, 3)])
    assert talk.flow.sender.scoreboard.delivered == 0
    assert talk.counters["tcp.repeated_needlessly"] == 0, "nor that anything came twice"
    talk.guest.gets_nothing()


def test_blocks_without_permission_are_not_read() -> None:
    """RFC 2018, 2: who did not offer it in its SYN has no say."""
    talk = Conversation.open()
    talk.host.says(STREAM[: 6 * MSS])
    got(talk)
    talk.guest.sends(ACK, ack=0, selective=[block(0, 1, 6)])
    assert talk.flow.sender.scoreboard.delivered == 0
    talk.advance(0.1)
    talk.guest.gets_nothing()


def test_a_window_that_shrinks_holds_repetitions_back() -> None:
    """Nothing is repeated beyond it; when it opens again, at once."""
    talk = opened(scale=0)
    first = says(talk, 6)
    talk.guest.sends(ACK, ack=first, window=MSS, selective=[block(first, 3, 6)])
    assert numbers(talk, first) == [0]
    talk.now += ROUND_TRIP
    talk.guest.sends(ACK, ack=first + MSS, window=0, selective=[block(first, 3, 6)])
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, ack=first + MSS, window=20_000, selective=[block(first, 3, 6)])
    assert numbers(talk, first) == [1, 2]


def test_the_timer_repeats_the_first_hole_and_nothing_else() -> None:
    """RFC 6298, 5.4: the earliest; what the guest has is not sent again, nor the last."""
    talk = opened()
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 4)])
    got(talk)
    talk.advance(0.25)
    assert talk.counters["tcp.retransmission_timeout"] == 1
    assert numbers(talk, first) == [0]


def test_what_waits_for_one_hole_is_bounded() -> None:
    """A window of a gigabyte, and blocks of all but the first segment: it is all still retained."""
    talk = Conversation.open(selective=True, scale=14)
    talk.host.says(bytes(2 * FLIGHT_MAXIMUM))
    for _ in range(3):
        talk.guest.loses_everything()
        end = talk.flow.sender.end
        talk.guest.sends(ACK, ack=0, selective=[(MSS, end)])
    assert end == FLIGHT_MAXIMUM


def test_a_window_that_shrinks_cuts_a_repetition() -> None:
    """As much as there is room for; the guest would throw the rest away."""
    talk = opened(scale=0)
    first = says(talk, 6)
    talk.guest.sends(ACK, ack=first, window=700, selective=[block(first, 3, 6)])
    assert len(talk.guest.gets(ACK, at=first).payload) == 700
    talk.guest.gets_nothing()


@pytest.mark.parametrize("our_isn", [MODULUS - 1, MODULUS - 3 * MSS])
def test_blocks_count_across_the_wrap(our_isn: int) -> None:
    """Sequence numbers wrap, positions do not."""
    talk = opened(our_isn=our_isn)
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 2), block(first, 3, 5)])
    assert numbers(talk, first) == [0, 2]
