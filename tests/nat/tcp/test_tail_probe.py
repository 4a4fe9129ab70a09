"""The clock of the tail probe alone; in a conversation it is in `test_flow_selective.py`."""

from qemu_usernat.nat.tcp.tail_probe import TailProbe


def test_a_tail_probe_tells_of_a_loss_once() -> None:
    """RFC 8985, 7.4: when something beyond what it repeated is acknowledged."""
    probe = TailProbe()
    probe.on_sent(10, 7)
    assert probe.awaited
    assert probe.take_loss(10) is None
    assert probe.take_loss(11) == 7
    assert probe.take_loss(12) is None
    assert not probe.awaited
