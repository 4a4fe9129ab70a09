"""The guest's receive window, and how a closed one is asked whether it has opened.

It owns what RFC 9293 calls SND.WND, SND.WL1 and SND.WL2 (3.10.7.4, fifth), and the persist timer
(3.8.6.1). Windows may move back: guests do shrink theirs. It does not know what is to be sent.
"""

from attrs import define

from qemu_usernat.nat.tcp.rtt import RTO_MAXIMUM
from qemu_usernat.primitives.sequence import difference
from qemu_usernat.primitives.time import NEVER

SCALE_MAXIMUM = 14  # RFC 7323, 2.3

UNANSWERED_MAXIMUM = 15
"""Probes without any answer after which the guest is gone: some ten minutes."""

STEPS_MAXIMUM = 9  # doublings of 200 ms that make RTO_MAXIMUM


@define
class GuestWindow:
    """How far the guest lets us send, as a position of the `sender`."""

    scale: int = 0
    """Shift of the windows that the guest sends; 0 where it did not offer one."""
    edge: int = 0
    """The position before which octets may be sent."""
    largest: int = 0
    """The largest window so far, in octets."""
    probe_at: float = NEVER
    """When it is asked for."""
    unanswered: int = 0
    """Probes that nothing has answered."""

    _sequence: int = 0
    """SND.WL1."""
    _position: int = 0
    """SND.WL2."""
    _steps: int = 0
    """How often the interval between probes has doubled."""

    def begin(self, sequence: int, window: int, scale: int | None) -> None:
        """The window of the guest's SYN, which is never scaled (RFC 7323, 2.2 and 2.3)."""
        self.scale = min(scale or 0, SCALE_MAXIMUM)
        self._sequence = sequence
        self.edge = self.largest = window

    def take(self, sequence: int, position: int, window: int) -> bool:
        """The window field beside an acknowledgment of `position`, unscaled; True if it is news.

        Only from a segment that is not older than the last one used.
        """
        newer = difference(sequence, self._sequence)
        if newer < 0 or (newer == 0 and position < self._position):
            return False
        self._sequence, self._position = sequence, position
        size = window << self.scale
        changed = position + size != self.edge
        self.edge = position + size
        if size:
            self._steps = 0
        if size > self.largest:
            self.largest = size
        return changed

    def take_late(self, position: int, window: int) -> None:
        """The window in a guest's keepalive, whose number is too old for `take`: it may tell of an
        opening that was lost on its way, and of nothing else."""
        if position + (window << self.scale) > self.edge:
            self.take(self._sequence, position, window)

    def arm(self, stuck: bool, timeout: float, now: float) -> None:
        """Start the persist timer where the window keeps something waiting, else stop it.

        `timeout` is the retransmission timeout in seconds.
        """
        if not stuck:
            self.probe_at = NEVER
        elif self.probe_at == NEVER:
            self.probe_at = now + min(timeout * 2**self._steps, RTO_MAXIMUM)

    def on_probe_sent(self, timeout: float, now: float) -> bool:
        """It was asked; later the next time. False when nothing ever answered."""
        self.unanswered += 1
        self._steps = min(self._steps + 1, STEPS_MAXIMUM)
        self.probe_at = now + min(timeout * 2**self._steps, RTO_MAXIMUM)
        return self.unanswered <= UNANSWERED_MAXIMUM
