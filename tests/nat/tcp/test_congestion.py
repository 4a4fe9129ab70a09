"""The congestion window, told as what a wire does (RFC 5681, RFC 6582)."""

from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.nat.tcp.congestion import FLIGHT_MAXIMUM, Reno

MSS = 1000


def test_a_wire_that_loses_nothing_has_no_window() -> None:
    """All that the guest's own window admits may be in flight, from the first octet on."""
    reno = Reno(MSS)
    assert reno.window == FLIGHT_MAXIMUM
    reno.on_acknowledged(50 * MSS)
    assert reno.window == FLIGHT_MAXIMUM


def test_a_loss_halves_and_then_one_segment_a_round_trip_is_won_back() -> None:
    """RFC 5681, 3.1 and 3.2."""
    reno = Reno(MSS)
    reno.on_loss(40 * MSS)
    assert reno.window == 23 * MSS  # half, and the three segments that made the duplicates
    reno.on_duplicate()
    assert reno.window == 24 * MSS
    reno.on_recovered(30 * MSS)
    assert reno.window == reno.threshold == 20 * MSS
    for _ in range(20):
        reno.on_acknowledged(MSS)
    assert 20.9 * MSS < reno.window <= 21 * MSS


def test_a_partial_acknowledgment_lets_nothing_new_out_but_one_segment() -> None:
    """RFC 6582, 3.2, step 3: deflate by what was acknowledged, add back one segment."""
    reno = Reno(MSS)
    reno.on_loss(40 * MSS)
    reno.on_partial(5 * MSS)
    assert reno.window == 19 * MSS
    reno.on_partial(100 * MSS)
    assert reno.window == MSS


def test_a_silence_begins_again_with_one_segment() -> None:
    """RFC 5681, 3.1: slow start doubles each round trip, up to half of what was in flight."""
    reno = Reno(MSS)
    reno.on_timeout(40 * MSS)
    assert reno.window == MSS
    seen = []
    for _ in range(6):
        reno.on_acknowledged(reno.window)
        seen.append(reno.window // MSS)
    assert seen == [2, 4, 8, 16, 20, 21]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["acknowledged", "loss", "duplicate", "partial", "recovered", "timeout"]
            ),
            st.integers(0, FLIGHT_MAXIMUM),
        )
    ),
    st.integers(88, 65480),
)
def test_the_window_stays_between_one_segment_and_the_most(
    events: list[tuple[str, int]], segment: int
) -> None:
    """Whatever happens, something may be sent, and never more than is kept for one guest."""
    reno = Reno(segment)
    for name, octets in events:
        if name == "duplicate":
            reno.on_duplicate()
        else:
            getattr(reno, f"on_{name}")(octets)
        assert segment <= reno.window <= FLIGHT_MAXIMUM
        assert reno.threshold >= 2 * segment or reno.threshold == FLIGHT_MAXIMUM
