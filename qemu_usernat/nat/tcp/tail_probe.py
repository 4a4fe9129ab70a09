"""The tail probe: the last segments looked after sooner than the timeout does (RFC 8985, 7).

It owns when a probe is due, whether its answer is awaited, and whether it has repaired a loss. What
it repeats the `sender` knows.
"""

from attrs import define

from qemu_usernat.primitives.time import MS, NEVER

TAIL_PROBE_MINIMUM = 10 * MS
"""How long the last segments are waited for at least: a guest has more to do than to answer."""

TAIL_PROBE_DELAYED_ACK = 200 * MS
"""And as much more for a single segment, whose ACK the guest may delay (RFC 8985, 7.2)."""


@define
class TailProbe:
    """The clock of the probe, and what became of the last one."""

    at: float = NEVER
    _end: int | None = None
    """One past what the last one repeated, while that is not answered (TLP.end_seq)."""
    _flight: int = 0
    """Octets that were in flight then."""

    @property
    def awaited(self) -> bool:
        """One at a time: whether an answer is still to come."""
        return self._end is not None

    def arm(self, smoothed: float, alone: bool, timeout_at: float, now: float) -> None:
        """Something was sent, or acknowledged; `alone`: a single segment is in flight. Where the
        timeout comes sooner there is no probe (RFC 8985, 7.2)."""
        wait = max(2 * smoothed, TAIL_PROBE_MINIMUM)
        if alone:
            wait += TAIL_PROBE_DELAYED_ACK
        self.at = now + wait if now + wait < timeout_at else NEVER

    def on_sent(self, end: int, flight: int) -> None:
        """The last segment, up to `end`, has been repeated."""
        self._end = end
        self._flight = flight

    def on_needless(self, end: int) -> None:
        """What ends there had arrived before: if that is the probe's, nothing was lost (7.4.2)."""
        if end == self._end:
            self._end = None

    def take_loss(self, acknowledged: int) -> int | None:
        """Once, if the probe has repaired a loss, as beyond it something was acknowledged and
        nobody said that it came twice: the octets that were in flight."""
        if self._end is None or acknowledged <= self._end:
            return None
        self._end = None
        return self._flight

    def forget(self) -> None:
        """The timeout has come first."""
        self.at = NEVER
        self._end = None
