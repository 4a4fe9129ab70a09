"""How much of something a guest may do: a bucket of tokens that time fills."""

from attrs import define, field


@define
class Allowance:
    """`at_once` times back to back, and `per_second` sustained."""

    per_second: float
    at_once: float
    _tokens: float = field(init=False)
    _filled_at: float = 0.0

    def __attrs_post_init__(self) -> None:
        self._tokens = self.at_once

    def take(self, now: float) -> bool:
        """Once more; False if that is too often."""
        elapsed = max(0.0, now - self._filled_at)
        self._filled_at = now
        self._tokens = min(self.at_once, self._tokens + elapsed * self.per_second)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
