"""The congestion window, told as what a wire does (RFC 5681, RFC 9438)."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.config.network import CONGESTION_CONTROLS
from qemu_usernat.nat.tcp.congestion import (
    CONTROLS,
    CUBIC_BETA,
    CUBIC_C,
    FLIGHT_MAXIMUM,
    CongestionControl,
    Cubic,
    Reno,
    Unlimited,
)

MSS = 1000
ROUND_TRIP = 0.05


def fly(control: CongestionControl, start: float, rounds: int) -> list[float]:
    """Round trips in which all of the window is acknowledged; the window in segments after each."""
    windows = []
    for number in range(rounds):
        now = start + (number + 1) * ROUND_TRIP
        for _ in range(control.window // MSS):
            control.on_acknowledged(MSS, ROUND_TRIP, now)
        windows.append(control.window / MSS)
    return windows


def test_the_names_are_those_of_the_configuration() -> None:
    """Whatever may be written in a file can be made."""
    assert tuple(CONTROLS) == CONGESTION_CONTROLS


def test_a_wire_that_loses_nothing_has_no_window() -> None:
    """All that the guest's own window admits may be in flight, after a loss, too."""
    none = Unlimited(MSS)
    assert none.window == FLIGHT_MAXIMUM == 8 << 20
    none.on_loss(50 * MSS, 0.0)
    none.on_acknowledged(50 * MSS, ROUND_TRIP, 0.0)
    assert none.window == FLIGHT_MAXIMUM


def test_even_that_begins_again_with_one_segment_after_a_silence() -> None:
    """Who has not answered may be gone; who answers doubles each round trip, without an end."""
    none = Unlimited(MSS)
    none.on_timeout(50 * MSS, 0.0)
    assert none.window == MSS
    assert fly(none, 0.0, 5) == [2, 4, 8, 16, 32]
    none.on_acknowledged(FLIGHT_MAXIMUM, ROUND_TRIP, 0.0)
    assert none.window == FLIGHT_MAXIMUM


@pytest.mark.parametrize("make", [Reno, Cubic])
@pytest.mark.parametrize(
    ("segment", "window"),
    [(536, 5360), (1460, 14600), (4000, 14600), (8960, 17920), (65480, 130960)],
)
def test_the_first_window_is_ten_segments(make: type[Reno], segment: int, window: int) -> None:
    """RFC 6928, 2: min(10 * MSS, max(2 * MSS, 14600))."""
    assert make(segment).window == window


@pytest.mark.parametrize("make", [Reno, Cubic])
def test_slow_start_doubles(make: type[Reno]) -> None:
    """RFC 5681, 3.1: until something is lost."""
    assert fly(make(MSS), 0.0, 3) == [20, 40, 80]


def test_reno_halves_and_wins_one_segment_a_round_trip_back() -> None:
    """RFC 5681, 3.1 and 3.2; what is halved is what was in flight, not what might have been."""
    reno = Reno(MSS)
    reno.on_loss(40 * MSS, 0.0)
    assert reno.window == reno.threshold == 20 * MSS
    assert fly(reno, 0.0, 3) == pytest.approx([21, 22, 23], abs=0.2)
    reno.on_loss(MSS, 0.0)
    assert reno.window == 2 * MSS


def test_reno_grows_with_each_octet_that_is_acknowledged() -> None:
    """RFC 5681, 3.1: where the formula yields nothing, it is one octet."""
    reno = Reno(MSS)
    reno.on_loss(40 * MSS, 0.0)
    reno.on_acknowledged(10, ROUND_TRIP, 0.0)
    assert reno.window == 20 * MSS + 1


def test_reno_after_a_silence_doubles_up_to_half() -> None:
    """RFC 5681, 3.1, equation 4."""
    reno = Reno(MSS)
    reno.on_timeout(40 * MSS, 0.0)
    assert reno.window == MSS
    assert fly(reno, 0.0, 6) == pytest.approx([2, 4, 8, 16, 20, 21], abs=0.6)


@pytest.mark.parametrize("make", [Reno, Cubic])
def test_a_silence_after_little_leaves_two_segments(make: type[Reno]) -> None:
    """RFC 5681, 3.1, equation 4, and RFC 9438, 4.6: no less than two are a share."""
    control = make(MSS)
    control.on_timeout(2 * MSS, 0.0)
    assert (control.window, control.threshold) == (MSS, 2 * MSS)


def test_cubic_is_as_fast_as_is_written() -> None:
    """RFC 9438, 4.6 and 5.1: others on the wire have been measured with these."""
    assert (CUBIC_BETA, CUBIC_C) == (0.7, 0.4)


def test_cubic_returns_to_where_the_loss_was_when_its_formula_says() -> None:
    """RFC 9438, 4.2: W(K) = W_max with K = ((W_max - 0.7 W_max) / C) ** (1/3), whatever the RTT."""
    cubic = Cubic(MSS)
    fly(cubic, 0.0, 6)
    largest = cubic.window / MSS
    assert largest == 640
    cubic.on_loss(cubic.window, 10.0)
    assert cubic.window == int(largest * CUBIC_BETA) * MSS
    period = (largest * (1 - CUBIC_BETA) / CUBIC_C) ** (1 / 3)
    windows = fly(cubic, 10.0, int(period / ROUND_TRIP))
    assert windows == sorted(windows)
    assert windows[-1] == pytest.approx(largest, rel=0.01)
    steps = [later - earlier for earlier, later in pairwise(windows)]
    assert steps[1] > steps[len(steps) // 2] > steps[-1] >= 0, "concave up to there"
    beyond = fly(cubic, 10.0 + period, 60)
    assert beyond[-1] - beyond[-2] > beyond[1] - beyond[0], "and convex from there on"


def test_cubic_aims_at_where_its_curve_is_a_round_trip_later() -> None:
    """RFC 9438, 4.2, figure 1, and 4.4: by (target - cwnd) / cwnd of what was acknowledged."""
    cubic = Cubic(MSS)
    fly(cubic, 0.0, 6)
    cubic.on_loss(cubic.window, 10.0)
    fly(cubic, 10.0, 20)
    before, now = cubic.window / MSS, 10.0 + 20 * ROUND_TRIP
    period = (640 * (1 - CUBIC_BETA) / CUBIC_C) ** (1 / 3)
    since = now + ROUND_TRIP - (10.0 + ROUND_TRIP)  # the epoch began with the first ACK
    target = CUBIC_C * (since - period) ** 3 + 640
    cubic.on_acknowledged(cubic.window, ROUND_TRIP, now)
    assert cubic.window / MSS == pytest.approx(target, abs=0.01)
    assert target - before > 1


def test_cubic_grows_by_half_in_a_round_trip_at_most() -> None:
    """RFC 9438, 4.2: however far its curve goes in one that takes half a minute."""
    cubic = Cubic(MSS)
    cubic.on_loss(20 * MSS, 0.0)
    cubic.on_acknowledged(MSS, 30.0, 0.0)
    before = cubic.window
    cubic.on_acknowledged(before, 30.0, 20.0)
    assert cubic.window == pytest.approx(1.5 * before, abs=2)


def test_an_octet_is_no_growth_for_cubic() -> None:
    """What the window gains by one that is acknowledged alone is less than one."""
    cubic = Cubic(MSS)
    cubic.on_loss(20 * MSS, 0.0)
    before = cubic.window
    cubic.on_acknowledged(1, ROUND_TRIP, 0.0)
    assert cubic.window == before


def test_many_small_steps_of_cubic_are_a_large_one() -> None:
    """Less than an octet of growth an ACK is not lost, and not counted twice."""
    pieces, whole = Cubic(MSS), Cubic(MSS)
    for cubic in (pieces, whole):
        fly(cubic, 0.0, 6)
        cubic.on_loss(cubic.window, 10.0)
        fly(cubic, 10.0, 20)
    before, now = whole.window, 10.0 + 20 * ROUND_TRIP
    for _ in range(MSS):
        pieces.on_acknowledged(10, ROUND_TRIP, now)
    whole.on_acknowledged(10 * MSS, ROUND_TRIP, now)
    assert whole.window > before + 20
    assert pieces.window == pytest.approx(whole.window, abs=3)


def test_each_loss_begins_the_curve_of_cubic_anew() -> None:
    """RFC 9438, 4.2: K counts from the last loss, and from the window that was left by it."""
    cubic = Cubic(MSS)
    fly(cubic, 0.0, 6)
    cubic.on_loss(cubic.window, 10.0)
    lost_at = fly(cubic, 10.0, 60)[-1]
    assert lost_at < 640, "below the last loss: fast convergence"
    cubic.on_loss(cubic.window, 13.0)
    aim = lost_at * (1 + CUBIC_BETA) / 2
    period = ((aim - lost_at * CUBIC_BETA) / CUBIC_C) ** (1 / 3)
    assert fly(cubic, 13.0, int(period / ROUND_TRIP))[-1] == pytest.approx(aim, rel=0.01)


def test_cubic_is_never_slower_than_reno() -> None:
    """RFC 9438, 4.3: 9/17 of a segment a round trip up to where the loss was, then a whole one."""
    cubic = Cubic(MSS)
    cubic.on_loss(10 * MSS, 0.0)
    assert cubic.window == 7 * MSS
    assert fly(cubic, 0.0, 5)[-1] == pytest.approx(7 + 5 * 9 / 17, abs=0.3)
    cubic._epoch = 0.0
    later = fly(cubic, 0.0, 12)
    assert later[-1] - later[-6] == pytest.approx(5, abs=0.3)


def test_cubic_leaves_room_when_it_loses_below_its_last_loss() -> None:
    """RFC 9438, 4.7: fast convergence aims lower than the window that lost."""
    cubic = Cubic(MSS)
    fly(cubic, 0.0, 4)
    cubic.on_loss(cubic.window, 1.0)
    window = cubic.window / MSS
    cubic.on_loss(cubic.window, 1.1)
    assert cubic._largest == pytest.approx(window * (1 + CUBIC_BETA) / 2)


def test_cubic_keeps_what_it_had_where_it_loses_at_its_last_loss() -> None:
    """RFC 9438, 4.7: only below it somebody else has come."""
    cubic = Cubic(MSS)
    cubic.on_timeout(40 * MSS, 0.0)
    cubic.on_acknowledged(27 * MSS, ROUND_TRIP, 1.0)
    cubic.on_acknowledged(1, ROUND_TRIP, 1.0)
    assert cubic.window == cubic._largest * MSS == 28 * MSS, "from here on it would go on slowly"
    cubic.on_loss(cubic.window, 1.1)
    assert cubic._largest == 28


def test_cubic_after_a_silence_doubles_up_to_its_share() -> None:
    """RFC 9438, 4.8."""
    cubic = Cubic(MSS)
    cubic.on_timeout(40 * MSS, 0.0)
    assert cubic.window == MSS
    assert cubic.threshold == 28 * MSS
    assert fly(cubic, 0.0, 5) == pytest.approx([2, 4, 8, 16, 28], abs=0.2)


def test_cubic_after_a_silence_has_forgotten_the_path() -> None:
    """RFC 9438, 4.8: it grows from where slow start ended, not back to where the loss was."""
    cubic = Cubic(MSS)
    fly(cubic, 0.0, 6)
    cubic.on_timeout(20 * MSS, 10.0)
    assert fly(cubic, 10.0, 40)[-1] < 50


def test_a_pause_is_no_time_for_cubic() -> None:
    """RFC 9438, 5.8: what was not tried is not known to be good."""
    cubic = Cubic(MSS)
    fly(cubic, 0.0, 6)
    cubic.on_loss(cubic.window, 10.0)
    before = fly(cubic, 10.0, 10)
    after = fly(cubic, 1000.0, 2)
    assert after[-1] - before[-1] < 2.5 * (before[-1] - before[-2])


@given(
    make=st.sampled_from(list(CONTROLS.values())),
    segment=st.integers(88, 65480),
    events=st.lists(
        st.tuples(
            st.sampled_from(["acknowledged", "loss", "timeout"]),
            st.integers(0, FLIGHT_MAXIMUM),
            st.floats(0, 100),
        )
    ),
)
def test_the_window_stays_between_one_segment_and_the_most(
    make: type[Reno], segment: int, events: list[tuple[str, int, float]]
) -> None:
    """Whatever happens, something may be sent, and never more than is kept for one guest."""
    control = make(segment)
    now = 0.0
    for name, octets, seconds in events:
        now += seconds
        if name == "acknowledged":
            control.on_acknowledged(octets, ROUND_TRIP, now)
        else:
            getattr(control, f"on_{name}")(octets, now)
        assert segment <= control.window <= FLIGHT_MAXIMUM
