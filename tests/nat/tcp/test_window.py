"""The guest's window alone: what is news of it, and when a closed one is asked for."""

import pytest

from qemu_usernat.nat.tcp.rtt import RTO_MAXIMUM
from qemu_usernat.nat.tcp.window import STEPS_MAXIMUM, GuestWindow
from qemu_usernat.primitives.time import NEVER


def begun(window: int = 1000) -> GuestWindow:
    made = GuestWindow()
    made.begin(7, window, 0)
    return made


def test_a_timer_that_runs_is_not_wound_up() -> None:
    """A flow that has much to do would put its question off for ever."""
    window = begun()
    window.arm(True, 1.0, 100.0)
    window.arm(True, 1.0, 100.5)
    assert window.probe_at == 101.0


@pytest.mark.parametrize(("asked", "wait"), [(0, 1), (1, 2), (2, 4), (3, 8), (20, RTO_MAXIMUM)])
def test_who_has_not_opened_his_window_is_asked_as_rarely_as_before(asked: int, wait: int) -> None:
    """Though nothing was stuck for a while: the interval begins anew with a window."""
    window = begun()
    for _ in range(asked):
        window.on_probe_sent(1.0, 100.0)
    window.arm(False, 1.0, 100.0)
    assert window.probe_at == NEVER
    window.arm(True, 1.0, 100.0)
    assert window.probe_at == 100.0 + wait
    window.arm(False, 1.0, 100.0)
    window.take(8, 0, 10)
    window.arm(True, 1.0, 100.0)
    assert window.probe_at == 101.0


def test_the_intervals_grow_to_the_longest_of_all() -> None:
    """From the shortest timeout, 200 ms."""
    assert 0.2 * 2 ** (STEPS_MAXIMUM - 1) < RTO_MAXIMUM <= 0.2 * 2**STEPS_MAXIMUM
