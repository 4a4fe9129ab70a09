"""How much may be in flight to the guest: three answers to choose from.

``none``: all that the guest's window admits. The wire to a guest is a socket pair, or QEMU's
queue, and these push back instead of losing; its bound is the guest's own window.

``reno`` (RFC 5681) and ``cubic`` (RFC 9438): for where there is a wire behind it after all, with
others on it: begin with ten segments, slow start until something is lost, then with care.

Each owns its window. What was lost and when it is repeated is the sender's, which tells here
what happened; octets that the guest has or that count as lost are not in flight (RFC 6675), so
no window is inflated here.
"""

from collections.abc import Callable
from typing import Protocol

from attrs import define, field

FLIGHT_MAXIMUM = 8192 * 1024
"""Octets retained for one guest at most: its window may say a gigabyte, and it may never answer."""


class CongestionControl(Protocol):
    """What the sender tells, and the window that follows from it, in octets."""

    window: int

    def on_acknowledged(self, gained: int, round_trip: float, now: float) -> None:
        """Octets were acknowledged while the window was in use and nothing was being repaired;
        `round_trip` is the smoothed one in seconds."""

    def on_loss(self, flight: int, now: float) -> None:
        """Something was lost, for the first time in this flight; `flight` is RFC 5681's
        FlightSize in octets: all that is not acknowledged, within the window."""

    def on_timeout(self, flight: int, now: float) -> None:
        """Nothing came back at all."""


@define
class Unlimited:
    """No limit but after a timeout: who has not answered is approached with one segment.

    A guest may have been paused, or restarted with nothing left of the connection; eight
    megabytes into that silence, again and again, would help nobody.
    """

    segment: int
    window: int = FLIGHT_MAXIMUM

    def on_acknowledged(self, gained: int, round_trip: float, now: float) -> None:
        if self.window < FLIGHT_MAXIMUM:
            self.window = min(self.window + gained, FLIGHT_MAXIMUM)

    def on_loss(self, flight: int, now: float) -> None:
        pass

    def on_timeout(self, flight: int, now: float) -> None:
        self.window = self.segment


def _initial_window(segment: int) -> int:
    """Ten segments, but no more than 14600 octets of larger ones (RFC 6928, 2)."""
    return min(10 * segment, max(2 * segment, 14600))


@define
class Reno:
    """RFC 5681: one segment more a round trip, half after a loss."""

    segment: int
    """The sender's maximum segment size in octets."""
    window: int = field(init=False)
    threshold: int = FLIGHT_MAXIMUM

    def __attrs_post_init__(self) -> None:
        self.window = _initial_window(self.segment)

    def on_acknowledged(self, gained: int, round_trip: float, now: float) -> None:
        """RFC 5681, 3.1, counted in octets (RFC 3465): guests acknowledge many at once."""
        if self.window < self.threshold:
            self.window = min(self.window + gained, self.threshold)
        else:
            grown = self.window + max(1, self.segment * gained // self.window)
            self.window = min(grown, FLIGHT_MAXIMUM)

    def on_loss(self, flight: int, now: float) -> None:
        """RFC 5681, 3.2, equation 4; RFC 6675, 5, step 4.2."""
        self.threshold = self.window = max(flight // 2, 2 * self.segment)

    def on_timeout(self, flight: int, now: float) -> None:
        """One segment, and slow start up to half (RFC 5681, 3.1)."""
        self.threshold = max(flight // 2, 2 * self.segment)
        self.window = self.segment


CUBIC_C = 0.4  # segments / s³: RFC 9438, 5.1
CUBIC_BETA = 0.7  # RFC 9438, 4.6
CUBIC_ALPHA = 3 * (1 - CUBIC_BETA) / (1 + CUBIC_BETA)  # RFC 9438, 4.3: as fast as Reno


@define
class Cubic:
    """RFC 9438: back to where the loss was along a cubic of time, not of round trips."""

    segment: int
    window: int = field(init=False)
    threshold: int = FLIGHT_MAXIMUM
    _largest: float = 0.0
    """W_max: the window at the last loss, in segments."""
    _epoch: float | None = None
    """When this stage of congestion avoidance began."""
    _grown_at: float = 0.0
    _epoch_window: float = 0.0
    _reno_window: float = 0.0
    """W_est: where Reno would be, in segments."""
    _rest: float = 0.0
    """Octets of growth that are less than one."""

    def __attrs_post_init__(self) -> None:
        self.window = _initial_window(self.segment)

    def on_acknowledged(self, gained: int, round_trip: float, now: float) -> None:
        """RFC 9438, 4.2 to 4.5."""
        if self.window < self.threshold:
            self.window = min(self.window + gained, self.threshold)
            return
        window = (self.window + self._rest) / self.segment
        if self._epoch is None:
            self._epoch = now
            self._epoch_window = self._reno_window = window
            self._largest = max(self._largest, window)
        else:
            # A time in which the window was not in use does not count (RFC 9438, 4.2 and 5.8).
            self._epoch += max(0.0, now - self._grown_at - round_trip)
        self._grown_at = now
        target = min(max(self._cubic(now + round_trip), window), 1.5 * window)
        acked = gained / self.segment
        # From W_max on Reno adds a whole segment a round trip (RFC 9438, 4.3).
        alpha = CUBIC_ALPHA if self._reno_window < self._largest else 1.0
        self._reno_window += alpha * acked / window
        grown = window + (target - window) / window * acked
        if self._cubic(now) < self._reno_window:
            grown = max(window, self._reno_window)
        octets = min(grown * self.segment, FLIGHT_MAXIMUM)
        self.window = int(octets)
        self._rest = octets % 1

    def _cubic(self, when: float) -> float:
        """W_cubic, in segments, at a moment of this epoch (RFC 9438, 4.2, figures 1 and 2)."""
        assert self._epoch is not None
        period = ((self._largest - self._epoch_window) / CUBIC_C) ** (1 / 3)
        return float(CUBIC_C * (when - self._epoch - period) ** 3 + self._largest)

    def on_loss(self, flight: int, now: float) -> None:
        """RFC 9438, 4.6 and 4.7: with fast convergence, room is left to newcomers."""
        window = self.window / self.segment
        self._largest = window * (1 + CUBIC_BETA) / 2 if window < self._largest else window
        self._epoch = None
        self.threshold = max(int(flight * CUBIC_BETA), 2 * self.segment)
        self.window = self.threshold

    def on_timeout(self, flight: int, now: float) -> None:
        """RFC 9438, 4.8: what was before says nothing of the path that is there now."""
        self.on_loss(flight, now)
        self.window = self.segment
        self._largest = 0.0


CONTROLS: dict[str, Callable[[int], CongestionControl]] = {
    "none": Unlimited,
    "reno": Reno,
    "cubic": Cubic,
}
"""Name to what makes one for a maximum segment size in octets."""
