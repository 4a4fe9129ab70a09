"""What the guest is told of octets beyond a gap, and of what came twice (RFC 2018, RFC 2883)."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qemu_usernat.primitives.sequence import MODULUS
from qemu_usernat.wire.packets import ACK, FIN
from tests.nat.tcp.conversation import MSS, Conversation

STREAM = random.Random(2018).randbytes(1 << 15)


def sends_segment(talk: Conversation, number: int, length: int = MSS) -> None:
    talk.guest.sends(ACK, STREAM[number * MSS :][:length], at=number * MSS)


def told(talk: Conversation) -> tuple[int, list[tuple[int, int]]]:
    """ACK and blocks of the next segment, in segments; one that follows tells of the window."""
    segment = talk.guest.gets(ACK)
    for update in talk.guest.loses_everything():
        assert update.ack == segment.ack
        assert set(update.selective) <= set(segment.selective)
        assert update.window > segment.window
    return segment.ack // MSS, [(start // MSS, end // MSS) for start, end in segment.selective]


@pytest.mark.parametrize("isn", [1000, MODULUS - 1, MODULUS - 4 * MSS])
def test_what_came_last_is_told_first(isn: int) -> None:
    """RFC 2018, 4: the block of the segment that is answered, then those told of before; four at
    most, whole, and none twice."""
    talk = Conversation.open(selective=True, isn=isn)
    story: list[tuple[int, list[tuple[int, int]]]] = [
        (2, [(2, 3)]),
        (4, [(4, 5), (2, 3)]),
        (6, [(6, 7), (4, 5), (2, 3)]),
        (8, [(8, 9), (6, 7), (4, 5), (2, 3)]),
        (10, [(10, 11), (8, 9), (6, 7), (4, 5)]),
        (3, [(2, 5), (10, 11), (8, 9), (6, 7)]),
        (7, [(6, 9), (2, 5), (10, 11)]),
    ]
    for number, blocks in story:
        sends_segment(talk, number)
        assert told(talk) == (0, blocks)
    sends_segment(talk, 0)
    assert told(talk) == (1, [(6, 9), (2, 5), (10, 11)]), "what is still missing is told"
    sends_segment(talk, 1)
    assert told(talk) == (5, [(6, 9), (10, 11)])
    sends_segment(talk, 5)
    assert told(talk) == (9, [(10, 11)])
    sends_segment(talk, 9)
    assert told(talk) == (11, [])
    assert talk.host.received == STREAM[: 11 * MSS]


def test_what_came_twice_is_told_first_and_once() -> None:
    """RFC 2883, 4: below the ACK; or beyond a gap, with the block that it is a part of."""
    talk = Conversation.open(selective=True)
    sends_segment(talk, 0)
    assert told(talk) == (1, [])
    sends_segment(talk, 0)
    assert told(talk) == (1, [(0, 1)])
    sends_segment(talk, 2)
    assert told(talk) == (1, [(2, 3)])
    sends_segment(talk, 3)
    assert told(talk) == (1, [(2, 4)])
    sends_segment(talk, 2)
    assert told(talk) == (1, [(2, 3), (2, 4)])
    sends_segment(talk, 6)
    assert told(talk) == (1, [(6, 7), (2, 4)])
    sends_segment(talk, 0, 2 * MSS)  # the first half of it twice
    assert told(talk) == (4, [(0, 1), (6, 7)])


def test_four_blocks_hold_three_beside_what_came_twice() -> None:
    """The options of a segment have room for four."""
    talk = Conversation.open(selective=True)
    for number in (2, 4, 6, 8):
        sends_segment(talk, number)
        told(talk)
    sends_segment(talk, 4)
    assert told(talk) == (0, [(4, 5), (4, 5), (8, 9), (6, 7)])


def test_a_guest_that_did_not_ask_is_told_nothing_more() -> None:
    """RFC 2018, 2: no block without SACK-permitted in its SYN."""
    talk = Conversation.open()
    for number in (2, 4, 2):
        sends_segment(talk, number)
        assert told(talk) == (0, [])


def test_a_fin_that_came_early_cuts_off_what_is_told() -> None:
    """What lies behind the guest's own end was never its to send."""
    talk = Conversation.open(selective=True)
    sends_segment(talk, 3)
    told(talk)
    sends_segment(talk, 1)
    told(talk)
    talk.guest.sends(FIN | ACK, at=2 * MSS)
    assert told(talk) == (0, [(1, 2)])


# -- in one turn


def test_a_guest_hears_of_each_segment_that_it_repeated_needlessly() -> None:
    """All of one turn: a guest takes a slowdown back once each repetition was told of as needless
    (RFC 3708); neighbours are one block, and an ACK can tell of one (RFC 2883)."""
    talk = Conversation.open(selective=True)
    talk.guest.sends(ACK, bytes(9 * MSS))
    talk.guest.loses_everything()
    with talk.turn():
        for number in (0, 1, 4, 6, 7, 3):
            talk.guest.sends(ACK, bytes(MSS), at=number * MSS)
    told = [segment.selective for segment in talk.guest.loses_everything()]
    ranges = [(0, 2), (4, 5), (6, 8), (3, 4)]
    assert told == [((start * MSS, end * MSS),) for start, end in ranges]


def test_a_guest_that_hears_of_blocks_gets_four_acks_a_turn_and_a_last_one() -> None:
    """Behind a gap at full speed an ACK for each segment costs as much as the segments do."""
    talk = Conversation.open(selective=True)
    with talk.turn():
        for number in range(1, 21):
            talk.guest.sends(ACK, bytes(MSS), at=number * MSS)
    blocks = [segment.selective for segment in talk.guest.loses_everything()]
    assert blocks == [((MSS, end * MSS),) for end in (2, 3, 4, 5, 21)]
    talk.guest.sends(ACK, bytes(MSS), at=21 * MSS)
    assert talk.guest.gets(ACK, ack=0).selective == ((MSS, 22 * MSS),)
    with talk.turn():
        for number in range(22, 41):
            talk.guest.sends(ACK, bytes(MSS), at=number * MSS)
    assert len(talk.guest.loses_everything()) == 5, "the next turn has its own"


@pytest.mark.parametrize(
    ("numbers", "acks"),
    [
        ([1, 2, 3, 4, 7, 9, 11], [1, 2, 3, 4, 4, 4, 5]),
        ([1, 2, 3, 4, 5, 7, 9, 10], [1, 2, 3, 4, 4, 4, 5, 5]),
        ([1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21], [1, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6]),
    ],
)
def test_beyond_four_acks_only_blocks_that_would_be_missed_are_told_of(
    numbers: list[int], acks: list[int]
) -> None:
    """Three are told of at once: an ACK holds four, of which one may be that of what came twice;
    and such an ACK does not bring back one for each segment."""
    talk = Conversation.open(selective=True)
    said = []
    with talk.turn():
        for number in numbers:
            talk.guest.sends(ACK, bytes(MSS), at=number * MSS)
            said.append(len(talk.line.segments))
    assert said == acks


def test_an_answer_does_not_hide_the_blocks() -> None:
    """Where both sides talk, what lies beyond a gap is told of, too (RFC 2018, 4)."""
    talk = Conversation.open(selective=True)
    with talk.turn():
        for number in range(1, 9):
            talk.guest.sends(ACK, bytes(MSS), at=number * MSS)
        talk.host.says(b"answer")
    told = [segment.selective for segment in talk.guest.loses_everything()]
    assert ((MSS, 9 * MSS),) in told


@given(st.lists(st.integers(1, 40), max_size=60))
@example([1, 1, 1, 7, 8, 1, 3, 5])  # 8 grows a block that was told of; three others bury it
def test_each_block_of_a_turn_is_told_of(numbers: list[int]) -> None:
    """A guest that does not hear of a block repeats it: no ACK holds more than four, so one with
    more of them behind it is not put off (RFC 2018, 4)."""
    talk = Conversation.open(selective=True)
    with talk.turn():
        for number in numbers:
            talk.guest.sends(ACK, bytes(MSS), at=number * MSS)
    told = {
        number
        for segment in talk.guest.loses_everything()
        for start, end in segment.selective
        for number in range(start // MSS, end // MSS)
    }
    assert told == set(numbers)
