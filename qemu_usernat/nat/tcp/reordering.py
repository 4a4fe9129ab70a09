"""How long octets may be overtaken by later ones before they count as lost.

It owns RACK's reordering window (RFC 8985, 6.2, step 4), and what widens it: a guest that says
it got twice what was repeated (RFC 2883). Who overtook whom, the `Scoreboard` knows.
"""

from attrs import define

ROUNDS = 16  # recoveries after which needless repetitions are forgotten: RFC 8985, 6.2
STEPS_MAXIMUM = 64  # of a quarter of a round trip each; a round trip bounds them anyway


@define
class ReorderingWindow:
    """The patience with octets that others have overtaken, in seconds."""

    _steps: int = 1
    """RACK.reo_wnd_mult."""
    _rounds: int = 0
    """RACK.reo_wnd_persist."""
    _widened_at: int = -1
    """SND.NXT then: once a round trip."""
    _told_twice: int = 0
    """Octets that the guest got twice."""

    def seconds(self, smallest: float, smoothed: float) -> float:
        """As of now, for the smallest and the smoothed round trip; no more than the latter."""
        return min(smallest / 4 * self._steps, smoothed)

    def on_told_twice(self, length: int, repeated: int, acknowledged: int, following: int) -> bool:
        """The guest got `length` octets twice; False if that was the wire's doing: more came
        twice than the `repeated` octets that we ever sent twice.

        Doubled rather than RFC 8985's one step more: where a round trip is some hundred
        microseconds, and reordering some milliseconds, steps are too many to be learned singly.
        """
        self._told_twice += length
        if self._told_twice > repeated:
            return False
        if acknowledged > self._widened_at:
            self._widened_at = following
            self._steps = min(self._steps * 2, STEPS_MAXIMUM)
            self._rounds = ROUNDS
        return True

    def on_recovered(self) -> None:
        """A repair has ended."""
        self._rounds -= 1
        if self._rounds == 0:
            self._steps = 1
