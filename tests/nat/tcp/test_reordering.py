"""The patience alone; in a conversation it is in `test_flow_selective.py`."""

import pytest

from qemu_usernat.nat.tcp.reordering import ReorderingWindow
from qemu_usernat.primitives.time import NEVER


@pytest.mark.parametrize(
    ("smallest", "smoothed", "seconds"),
    [(0.4, 0.5, 0.1), (4.0, 0.5, 0.5), (NEVER, 0.5, 0.5), (0.0, 0.5, 0.0)],
)
def test_patience_is_a_quarter_of_a_round_trip(
    smallest: float, smoothed: float, seconds: float
) -> None:
    """Of the smallest, and the smoothed one at most (RFC 8985, 6.2, step 4); a whole one, where
    none has been measured."""
    assert ReorderingWindow().seconds(smallest, smoothed) == pytest.approx(seconds)


@pytest.mark.parametrize("acknowledged", [0, 1, 1000])
def test_the_first_needless_repetition_doubles_it(acknowledged: int) -> None:
    """Also of the very first octets."""
    window = ReorderingWindow()
    assert window.on_told_twice(10, 10, acknowledged, 2000)
    assert window.seconds(0.4, 1.0) == pytest.approx(0.2)


def test_within_a_flight_it_grows_once() -> None:
    """All that was sent with the old patience says the same."""
    window = ReorderingWindow()
    for acknowledged in (0, 1000, 2000):
        assert window.on_told_twice(10, 100, acknowledged, 2000)
    assert window.seconds(0.4, 1.0) == pytest.approx(0.2)
    assert window.on_told_twice(10, 100, 2001, 3000)
    assert window.seconds(0.4, 1.0) == pytest.approx(0.4)


@pytest.mark.parametrize(("repeated", "ours"), [(9, False), (10, True)])
def test_more_copies_than_were_sent_are_the_wires(repeated: int, ours: bool) -> None:
    """To the octet."""
    window = ReorderingWindow()
    assert window.on_told_twice(10, repeated, 0, 100) is ours
    assert window.seconds(0.4, 1.0) == pytest.approx(0.2 if ours else 0.1)
