"""Whether the other side is still there (RFC 9293, 3.8.4; RFC 5382, REQ-5).

It owns when it was heard last, and when it is asked. Asking is the flow's.
"""

from enum import Enum

from attrs import define, field

from qemu_usernat.primitives.time import HOUR, SECOND

KEEPALIVE_IDLE = 2 * HOUR  # RFC 9293, 3.8.4 (MUST-28); RFC 5382, REQ-5, wants 2 h 4 min
KEEPALIVE_INTERVAL = 75 * SECOND
KEEPALIVE_PROBES = 9  # 2 h + 9 * 75 s = 2 h 11 min


class Doubt(Enum):
    """What a deadline has found out."""

    NONE = "it was heard meanwhile"
    ASK = "it is to be asked"
    GONE = "it has not answered"


@define
class Keepalive:
    """One end that may have died without a word."""

    heard_at: float
    """The last sign of life; moving it on ends all doubt."""
    at: float = field(init=False)
    """When `on_deadline` is next to be called."""
    _asked: int = 0

    def __attrs_post_init__(self) -> None:
        self.at = self.heard_at + KEEPALIVE_IDLE

    def on_deadline(self, now: float) -> Doubt:
        """The time has come: ask, and again; or believe that nobody is there."""
        idle_at = self.heard_at + KEEPALIVE_IDLE
        if now < idle_at:
            self._asked = 0
            self.at = idle_at
            return Doubt.NONE
        if self._asked == KEEPALIVE_PROBES:
            return Doubt.GONE
        self._asked += 1
        self.at = now + KEEPALIVE_INTERVAL
        return Doubt.ASK
