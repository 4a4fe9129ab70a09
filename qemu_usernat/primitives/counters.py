"""Counters: every drop and every rare event has a name and a counter of that name.

Names are ``room.event`` in lower case: ``tcp.challenge_ack``, ``ipv4.bad_checksum``,
``link.frame_too_long``.
"""

from collections import Counter


class Counters(Counter[str]):
    """Event name to how often it happened."""

    def count(self, name: str, times: int = 1) -> None:
        """Add `times` to the counter of that name."""
        self[name] += times
