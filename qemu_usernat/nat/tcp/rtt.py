"""The round-trip estimator and the retransmission timeout it yields (RFC 6298).

It owns the estimate and the back-off; it does not know what is outstanding or when the
timer was started. Karn's rule (RFC 6298, 3) is the caller's: never sample a range that
was sent twice.
"""

from attrs import define

from qemu_usernat.primitives.time import MS, SECOND

RTO_INITIAL = 1 * SECOND  # RFC 6298 (2.1)
RTO_AFTER_LOST_SYN = 3 * SECOND  # RFC 6298 (5.7): the back-off of the handshake is forgotten
RTO_MINIMUM = 200 * MS
# RFC 6298 (2.4) says 1 s, for paths across the world. The path measured here is a socket
# pair and a virtual NIC: 200 ms, as in Linux, is still a thousand of its round trips.
RTO_MAXIMUM = 60 * SECOND  # RFC 6298 (2.5)
CLOCK_GRANULARITY = 1 * MS  # G of RFC 6298 (2.3): the resolution of the alarm


@define
class RoundTripTime:
    """Smoothed round-trip time and retransmission timeout, in seconds."""

    smoothed: float | None = None
    variation: float = 0.0
    timeout: float = RTO_INITIAL

    def sample(self, measured: float) -> None:
        """Take in one measured round trip; ends any back-off (RFC 6298, 2.2, 2.3, 5.7)."""
        if self.smoothed is None:
            self.smoothed = measured
            self.variation = measured / 2
        else:
            self.variation += (abs(self.smoothed - measured) - self.variation) / 4
            self.smoothed += (measured - self.smoothed) / 8
        wanted = self.smoothed + max(CLOCK_GRANULARITY, 4 * self.variation)
        self.timeout = min(max(wanted, RTO_MINIMUM), RTO_MAXIMUM)

    def back_off(self) -> None:
        """Double the timeout after an expiry (RFC 6298, 5.5)."""
        self.timeout = min(self.timeout * 2, RTO_MAXIMUM)
