"""How much may be in flight to the guest: Reno, begun where others end (RFC 5681, RFC 6582).

The wire to a guest is a socket pair, which loses nothing, so at first all that the guest's
window admits may be in flight. The first loss shows that there is a wire behind it after all,
or a queue that overran; from then on this is Reno: half after a loss, one segment after a
timeout, slow start below the threshold and one segment a round trip above it.

It owns two numbers. What was lost and when it is repeated is the sender's.
"""

from attrs import define

FLIGHT_MAXIMUM = 4096 * 1024
"""Octets retained for one guest at most: its window may say a gigabyte, and it may never answer."""

DUPLICATE_ACKS = 3  # RFC 5681, 3.2


@define
class Reno:
    """The congestion window and the slow start threshold, in octets."""

    segment: int
    """The sender's maximum segment size."""
    window: int = FLIGHT_MAXIMUM
    threshold: int = FLIGHT_MAXIMUM

    def on_acknowledged(self, gained: int) -> None:
        """Octets were acknowledged and nothing is being repaired (RFC 5681, 3.1).

        Counted in octets (RFC 3465), for guests acknowledge many segments at once.
        """
        if self.window < self.threshold:
            self._set(min(self.window + gained, self.threshold))
        elif self.window < FLIGHT_MAXIMUM:
            self._set(self.window + max(1, self.segment * gained // self.window))

    def on_loss(self, in_flight: int) -> None:
        """Duplicate ACKs name a loss: half, and what has left the wire (RFC 5681, 3.2)."""
        self._halve(in_flight)
        self._set(self.threshold + DUPLICATE_ACKS * self.segment)

    def on_duplicate(self) -> None:
        """Another segment has left the wire (RFC 5681, 3.2, step 4)."""
        self._set(self.window + self.segment)

    def on_partial(self, gained: int) -> None:
        """A repair was acknowledged, and the next hole named (RFC 6582, 3.2, step 3)."""
        self._set(max(self.window - gained, 0) + self.segment)

    def on_recovered(self, in_flight: int) -> None:
        """Everything that was in flight at the loss has arrived (RFC 6582, 3.2, step 3)."""
        self._set(min(self.threshold, max(in_flight, self.segment) + self.segment))

    def on_timeout(self, in_flight: int) -> None:
        """Nothing came back: one segment, and slow start (RFC 5681, 3.1, equation 4)."""
        self._halve(in_flight)
        self.window = self.segment

    def _halve(self, in_flight: int) -> None:
        self.threshold = max(in_flight // 2, 2 * self.segment)

    def _set(self, window: int) -> None:
        self.window = min(window, FLIGHT_MAXIMUM)
