"""The clock of the tail probe alone; in a conversation it is in `test_flow_tail.py`."""

import pytest

from qemu_usernat.nat.tcp.tail_probe import TailProbe
from qemu_usernat.primitives.time import NEVER


def test_a_tail_probe_tells_of_a_loss_once() -> None:
    """RFC 8985, 7.4: when something beyond what it repeated is acknowledged."""
    probe = TailProbe()
    probe.on_sent(10, 7)
    assert probe.awaited
    assert probe.take_loss(10) is None
    assert probe.take_loss(11) == 7
    assert probe.take_loss(12) is None
    assert not probe.awaited


@pytest.mark.parametrize(("timeout_at", "at"), [(10.1, NEVER), (10.2, NEVER), (10.3, 10.2)])
def test_a_probe_is_for_those_whose_timeout_is_later(timeout_at: float, at: float) -> None:
    """RFC 8985, 7.2: two round trips of 100 ms after now; and once the timeout came, never."""
    probe = TailProbe()
    probe.arm(0.1, False, timeout_at, 10.0)
    assert probe.at == at
    probe.forget()
    assert probe.at == NEVER
