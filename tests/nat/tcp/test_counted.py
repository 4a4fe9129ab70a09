"""Each drop and each rare event of a connection is counted once, under its name, and alone.

The conversations are as short as they can be: whoever wonders what a counter means finds it here.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from qemu_usernat.nat.holdings import OCTETS_PER_GUEST, Holdings
from qemu_usernat.nat.tcp.receiver import OUT_OF_ORDER_RUNS
from qemu_usernat.nat.tcp.states import GuestState
from qemu_usernat.primitives.time import HOUR, MINUTE
from qemu_usernat.wire.packets import ACK, FIN, RST, SYN
from tests.nat.tcp.conversation import GUEST_ISN, MSS, Conversation, in_state

ENGINE = Path(__file__).parents[3] / "qemu_usernat/nat/tcp"

Story = Callable[[], Conversation]
STORIES: dict[str, list[tuple[Story, dict[str, int]]]] = {}


def counts(name: str, times: int = 1, **others: int) -> Callable[[Story], Story]:
    """The story counts `name` so often, the others of ``tcp.`` as given, and nothing else."""

    def note(story: Story) -> Story:
        expected = {f"tcp.{other}": count for other, count in {name: times, **others}.items()}
        STORIES.setdefault(f"tcp.{name}", []).append((story, expected))
        return story

    return note


# -- the handshake


@counts("syn_repeated")
def a_syn_comes_again_while_the_server_is_called() -> Conversation:
    talk = in_state(GuestState.SYN_HELD)
    talk.guest.sends(SYN)
    return talk


@counts("syn_replaced")
def a_guest_that_was_restarted_calls_again() -> Conversation:
    talk = in_state(GuestState.SYN_HELD)
    assert talk.flow.yields_to_syn(GUEST_ISN + 7777, talk.now)
    return talk


@counts("time_wait_reused")
def the_same_port_calls_again_after_the_end() -> Conversation:
    talk = in_state(GuestState.TIME_WAIT)
    assert talk.flow.yields_to_syn(GUEST_ISN + 7777, talk.now)
    return talk


@counts("no_ack")
def octets_come_before_any_answer() -> Conversation:
    talk = in_state(GuestState.SYN_HELD)
    talk.guest.sends(0, b"early")
    return talk


@counts("not_expected")
def an_ack_comes_before_any_syn_ack() -> Conversation:
    talk = in_state(GuestState.SYN_HELD)
    talk.guest.sends(ACK)
    return talk


@counts("bad_handshake_ack")
def a_syn_ack_is_answered_with_another_number() -> Conversation:
    talk = in_state(GuestState.SYN_RECEIVED)
    talk.guest.sends(ACK, ack=7)
    return talk


@counts("challenge_ack")
def another_syn_comes_instead_of_the_answer() -> Conversation:
    talk = in_state(GuestState.SYN_RECEIVED)
    talk.guest.sends(SYN, at=-2)
    return talk


@counts("no_syn")
def our_syn_is_answered_without_one() -> Conversation:
    talk = in_state(GuestState.SYN_SENT)
    talk.guest.sends(ACK, ack=0)
    return talk


@counts("reset_out_of_window")
def our_syn_is_reset_by_somebody_who_did_not_get_it() -> Conversation:
    talk = in_state(GuestState.SYN_SENT)
    talk.guest.sends(RST | ACK, ack=7)
    return talk


@counts("refused")
def the_server_refuses() -> Conversation:
    talk = in_state(GuestState.SYN_HELD)
    talk.host.fails()
    return talk


@counts("unreachable")
def the_server_is_out_of_reach() -> Conversation:
    talk = in_state(GuestState.SYN_HELD)
    talk.host.fails(1)
    return talk


@counts("connect_timeout", unreachable=1)
def nobody_answers_for_the_server() -> Conversation:
    talk = in_state(GuestState.SYN_HELD)
    talk.advance(10 * MINUTE)
    return talk


@counts("gave_up", retransmission_timeout=8)
def a_syn_ack_is_never_answered() -> Conversation:
    talk = in_state(GuestState.SYN_RECEIVED)
    talk.advance(10 * MINUTE)
    return talk


# -- segments that are not taken


@counts("no_ack")
def a_segment_has_no_ack() -> Conversation:
    talk = Conversation.open()
    talk.guest.sends(0, b"hello")
    return talk


@counts("closed_window")
def octets_come_into_a_closed_window() -> Conversation:
    talk = Conversation.open(scale=None)
    talk.host.takes(0)
    while talk.flow.receiver.room:
        talk.guest.sends(ACK, bytes(talk.flow.receiver.room))
    talk.guest.sends(ACK, b"!")
    return talk


@counts("out_of_window")
def octets_come_twice() -> Conversation:
    talk = Conversation.open()
    talk.guest.sends(ACK, b"once")
    talk.guest.sends(ACK, b"once", at=0)
    return talk


@counts("out_of_window")
def the_last_octet_comes_twice() -> Conversation:
    talk = Conversation.open()
    talk.guest.sends(ACK, b"once")
    talk.guest.sends(ACK, b"e", at=3)
    return talk


@counts("out_of_order")
def octets_come_beyond_a_gap() -> Conversation:
    talk = Conversation.open()
    talk.guest.sends(ACK, b"later", at=10)
    return talk


@counts("out_of_order_full", out_of_order=OUT_OF_ORDER_RUNS + 1)
def every_second_octet_comes() -> Conversation:
    talk = Conversation.open()
    for number in range(OUT_OF_ORDER_RUNS + 1):
        talk.guest.sends(ACK, b"!", at=1 + 2 * number)
    return talk


@counts("reset_out_of_window")
def a_reset_is_guessed() -> Conversation:
    talk = Conversation.open()
    talk.guest.sends(RST, at=-1)
    return talk


@counts("reset_out_of_window")
def a_reset_is_guessed_before_the_server_has_answered() -> Conversation:
    talk = in_state(GuestState.SYN_HELD)
    talk.guest.sends(RST, at=1)
    return talk


@counts("challenge_ack")
def a_reset_is_guessed_better() -> Conversation:
    talk = Conversation.open()
    talk.guest.sends(RST, at=1)
    return talk


@counts("challenge_ack_limited", 3, challenge_ack=1)
def resets_are_guessed_at_once() -> Conversation:
    talk = Conversation.open()
    for number in range(1, 5):
        talk.guest.sends(RST, at=number)
    return talk


@counts("ack_of_unsent", challenge_ack=1)
def octets_are_acknowledged_that_nobody_has_sent() -> Conversation:
    talk = Conversation.open()
    talk.guest.sends(ACK, ack=1)
    return talk


@counts("time_wait")
def a_reset_comes_when_all_is_over() -> Conversation:
    talk = in_state(GuestState.TIME_WAIT)
    talk.guest.sends(RST)
    return talk


# -- repairs, and asking


@counts("retransmitted", retransmission_timeout=1)
def an_octet_is_lost() -> Conversation:
    talk = Conversation.open()
    talk.host.says(b"!")
    talk.advance(0.3)
    return talk


@counts("retransmission_timeout", 2)
def two_syn_acks_are_lost() -> Conversation:
    talk = in_state(GuestState.SYN_RECEIVED)
    talk.advance(3)
    return talk


@counts("loss_recovery", retransmitted=1)
def three_duplicates_tell_of_a_loss() -> Conversation:
    talk = Conversation.open()
    talk.host.says(bytes(4 * MSS))
    for _ in range(3):
        talk.guest.sends(ACK)
    return talk


@counts("tail_probe", retransmitted=1)
def a_tail_is_lost() -> Conversation:
    talk = Conversation.open(selective=True)
    talk.host.says(bytes(2 * MSS))
    talk.advance(0.1)
    return talk


@counts("repeated_needlessly")
def octets_of_ours_came_twice() -> Conversation:
    talk = Conversation.open(selective=True)
    talk.host.says(b"!")
    talk.guest.sends(ACK, ack=1, selective=[(0, 1)])
    return talk


@counts("bad_selective_acknowledgment")
def a_block_is_beyond_all_that_was_sent() -> Conversation:
    talk = Conversation.open(selective=True)
    talk.host.says(b"!")
    talk.guest.sends(ACK, ack=0, selective=[(7, 9)])
    return talk


@counts("reneged", retransmitted=1, retransmission_timeout=1)
def a_guest_throws_away_what_it_said_it_had() -> Conversation:
    talk = Conversation.open(selective=True)
    talk.host.says(bytes(2 * MSS))
    with talk.turn():
        talk.guest.sends(ACK, ack=0, selective=[(MSS, 2 * MSS)])
        talk.guest.sends(ACK, ack=MSS)
    talk.advance(0.3)
    return talk


@counts("octets_full")
def a_server_speaks_while_the_guest_holds_too_much() -> Conversation:
    talk = Conversation.open()
    talk.flow.holdings = Holdings(octets=OCTETS_PER_GUEST)
    talk.host.says(b"!")
    return talk


@counts("window_probe")
def the_guest_closes_its_window() -> Conversation:
    talk = Conversation.open()
    talk.guest.sends(ACK, window=0)
    talk.host.says(b"!")
    talk.advance(0.3)
    return talk


@counts("keepalive")
def nobody_says_anything() -> Conversation:
    talk = Conversation.open()
    talk.advance(2 * HOUR)
    return talk


@counts("gave_up", keepalive=9)
def a_guest_is_gone_without_a_word() -> Conversation:
    talk = Conversation.open()
    talk.advance(3 * HOUR)
    return talk


@counts("gave_up")
def the_server_never_takes_the_last_words() -> Conversation:
    talk = Conversation.open()
    talk.host.takes(0)
    with talk.turn():
        talk.guest.sends(FIN | ACK, b"last words")
        talk.guest.sends(RST | ACK)
    talk.advance(3 * HOUR)
    return talk


@counts("host_reset")
def the_server_resets() -> Conversation:
    talk = Conversation.open()
    talk.host.breaks()
    return talk


def test_a_lost_syn_ack_is_asked_for_without_any_ado() -> None:
    """The same SYN again is answered again; nothing is wrong, and nothing is counted."""
    talk = in_state(GuestState.SYN_RECEIVED)
    talk.guest.sends(SYN)
    talk.guest.gets(SYN | ACK, at=-1, ack=0)
    talk.guest.gets_nothing()
    assert not +talk.counters


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        pytest.param(story, expected, id=story.__name__)
        for stories in STORIES.values()
        for story, expected in stories
    ],
)
def test_what_happens_is_counted(story: Story, expected: dict[str, int]) -> None:
    """Once, under its own name, and nothing beside it."""
    talk = story()
    assert {name: count for name, count in talk.counters.items() if count} == expected


def test_each_counter_of_the_engine_has_its_story() -> None:
    """A name that no conversation brings forth would be a word without a meaning."""
    source = "".join(path.read_text() for path in ENGINE.glob("*.py"))
    assert set(STORIES) == set(re.findall(r'"(tcp\.\w+)"', source))
