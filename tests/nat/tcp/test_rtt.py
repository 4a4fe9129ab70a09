"""The retransmission timeout follows RFC 6298, formula by formula."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.nat.tcp.rtt import (
    CLOCK_GRANULARITY,
    RTO_AFTER_LOST_SYN,
    RTO_INITIAL,
    RTO_MAXIMUM,
    RTO_MINIMUM,
    RoundTripTime,
)


def test_before_the_first_sample_it_is_one_second() -> None:
    """RFC 6298 (2.1)."""
    assert RoundTripTime().timeout == RTO_INITIAL == 1.0


def test_the_limits_are_what_is_written() -> None:
    """RFC 6298 (2.5, 5.7), Linux's minimum, and an alarm that is good for a millisecond."""
    assert RTO_MAXIMUM == 60.0
    assert RTO_AFTER_LOST_SYN == 3.0
    assert RTO_MINIMUM == 0.2
    assert CLOCK_GRANULARITY == 0.001


def test_the_first_sample_sets_everything() -> None:
    """RFC 6298 (2.2): SRTT = R, RTTVAR = R/2, RTO = SRTT + 4 RTTVAR."""
    round_trip = RoundTripTime()
    round_trip.sample(0.4)
    assert round_trip.smoothed == 0.4
    assert round_trip.variation == 0.2
    assert round_trip.timeout == pytest.approx(1.2)


def test_a_later_sample_moves_it_a_little() -> None:
    """RFC 6298 (2.3): the variation first, with the old mean; then the mean."""
    round_trip = RoundTripTime()
    round_trip.sample(0.4)
    round_trip.sample(0.8)
    assert round_trip.variation == pytest.approx(0.75 * 0.2 + 0.25 * 0.4)
    assert round_trip.smoothed == pytest.approx(0.875 * 0.4 + 0.125 * 0.8)
    assert round_trip.timeout == pytest.approx(0.45 + 4 * 0.25)


def test_a_steady_round_trip_ends_at_the_minimum() -> None:
    """A virtual wire of 100 µs is not waited for longer than the floor."""
    round_trip = RoundTripTime()
    for _ in range(100):
        round_trip.sample(0.0001)
    assert round_trip.timeout == RTO_MINIMUM


def test_a_steady_slow_one_keeps_the_granularity() -> None:
    """RFC 6298 (2.3): the variation that counts is never less than the clock's grain."""
    round_trip = RoundTripTime()
    for _ in range(1000):
        round_trip.sample(5.0)
    assert round_trip.timeout == pytest.approx(5.0 + CLOCK_GRANULARITY)


def test_back_off_doubles_up_to_a_minute_and_a_sample_ends_it() -> None:
    """RFC 6298 (5.5, 2.5, 5.7)."""
    round_trip = RoundTripTime()
    seen = []
    for _ in range(8):
        round_trip.back_off()
        seen.append(round_trip.timeout)
    assert seen == [2, 4, 8, 16, 32, 60, 60, 60]
    round_trip.sample(0.1)
    assert round_trip.timeout == pytest.approx(0.3)


@given(st.lists(st.floats(0, 1000) | st.none(), max_size=50))
def test_it_stays_within_its_limits(history: list[float | None]) -> None:
    """Whatever is measured, and however often it expires."""
    round_trip = RoundTripTime()
    for measured in history:
        if measured is None:
            round_trip.back_off()
        else:
            round_trip.sample(measured)
        assert RTO_MINIMUM <= round_trip.timeout <= RTO_MAXIMUM
