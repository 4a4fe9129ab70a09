"""The guest acknowledges selectively (RFC 2018, RFC 2883), and what follows from that.

What it says it has is not sent again, what it lacks is repaired within a round trip (RFC 6675,
RFC 8985), and how much is sent then is the congestion control's. The tail probe is
`test_flow_tail.py`, what we tell the guest in the same way `test_flow_told.py`.
"""

import pytest

from qemu_usernat.nat.tcp.congestion import CUBIC_BETA, FLIGHT_MAXIMUM
from qemu_usernat.nat.tcp.reordering import ROUNDS
from qemu_usernat.primitives.sequence import MODULUS
from qemu_usernat.wire.packets import ACK, PSH
from tests.nat.tcp.conversation import MSS, Conversation
from tests.nat.tcp.selective import PATIENCE, ROUND_TRIP, STREAM, block, got, numbers, opened, says

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


@pytest.mark.parametrize(
    ("ends", "twice"),
    [
        ([(2, 3), (1, 4)], True),
        ([(1, 3), (1, 4)], True),
        ([(2, 4), (1, 4)], True),
        ([(1, 4), (1, 4)], True),
        ([(1, 4), (2, 4)], False),
        ([(1, 4), (1, 3)], False),
        ([(1, 2), (3, 4)], False),
        ([(3, 4), (1, 2)], False),
        ([(3, 4), (1, 2), (3, 4)], False),
        ([(3, 4), (1, 3), (1, 2)], False),
    ],
)
def test_a_block_within_the_second_one_came_twice(ends: list[tuple[int, int]], twice: bool) -> None:
    """RFC 2883, 4: beyond a gap, too, to the octet; it is no news of anything. No other block tells
    whether the first one came twice."""
    talk = opened()
    first = says(talk, 4)
    blocks = [block(first, start, end) for start, end in ends]
    talk.guest.sends(ACK, ack=first, selective=blocks)
    assert talk.counters["tcp.repeated_needlessly"] == twice
    talk.advance(2 * PATIENCE)
    assert numbers(talk, first)[0] == 0


@pytest.mark.parametrize(("ends", "twice"), [((0, 1), 1), ((1, 0), 0), ((1, 1), 0), ((1, 2), 0)])
def test_only_octets_can_come_twice(ends: tuple[int, int], twice: int) -> None:
    """Not none, nor less than none; and below the acknowledgment."""
    talk = opened()
    first = says(talk, 2)
    talk.guest.sends(ACK, ack=first + MSS, selective=[block(first, *ends)])
    assert talk.counters["tcp.repeated_needlessly"] == twice


def test_patience_is_counted_in_repairs_not_in_acknowledgments() -> None:
    """What is in order is no sign that nothing is overtaken any more."""
    talk = opened()
    assert patience_of(talk) == pytest.approx(0.25)
    first = says(talk, 5)
    talk.guest.sends(ACK, ack=first, selective=[block(first, 1, 5)])
    assert numbers(talk, first) == [0]
    talk.guest.sends(ACK, ack=first + 5 * MSS, selective=[block(first, 0, 1)])
    for _ in range(2 * ROUNDS):
        says(talk, 1)
        talk.guest.sends(ACK)
    assert patience_of(talk) == pytest.approx(0.5)


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
