"""An end that has died without a word is found out, and one that is only silent is left alone."""

import pytest

from qemu_usernat.nat.tcp.keepalive import Doubt, Keepalive


def doubts(watch: Keepalive, count: int) -> list[tuple[float, Doubt]]:
    """When the alarm rings the next times, and what comes of it."""
    return [(watch.at, watch.on_deadline(watch.at)) for _ in range(count)]


def test_two_hours_and_eleven_minutes_of_silence_are_the_end() -> None:
    """RFC 5382, REQ-5, asks for two hours and four minutes at least."""
    watch = Keepalive(100.0)
    asked = [(7300.0 + 75 * probe, Doubt.ASK) for probe in range(9)]
    assert doubts(watch, 10) == [*asked, (7975.0, Doubt.GONE)]


def test_a_word_in_time_ends_all_doubt() -> None:
    """The two hours begin anew with it, and so does the count of questions."""
    watch = Keepalive(0.0)
    assert [doubt for _, doubt in doubts(watch, 9)] == [Doubt.ASK] * 9
    watch.heard_at = 7801.0
    assert doubts(watch, 1) == [(7875.0, Doubt.NONE)]
    assert [doubt for _, doubt in doubts(watch, 10)] == [Doubt.ASK] * 9 + [Doubt.GONE]
    assert watch.at == 7801.0 + 7200 + 9 * 75


@pytest.mark.parametrize("heard_at", [1183.3, 0.1, 1e9 + 0.7])
def test_a_deadline_is_not_too_early_by_a_rounding(heard_at: float) -> None:
    """At the very time that it has named it asks, and does not name the same time again."""
    keepalive = Keepalive(heard_at)
    assert keepalive.on_deadline(keepalive.at) is Doubt.ASK
