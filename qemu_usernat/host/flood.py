"""How much of a published socket is taken in at once.

Who comes from outside costs what a guest's frames cost, and more if all are new: so a published
port has the turns that a link has, and one at which there is always more waits behind the others.
"""

import time
from collections.abc import Callable

from qemu_usernat.poller import TURN_TIME, Handler, Poller


class Flood:
    """What comes at one socket: the turns of its handler."""

    __slots__ = ("_floods", "_handler", "_poller", "_take", "_waits")

    def __init__(self, poller: Poller, handler: Handler, take: Callable[[float], bool]) -> None:
        """`take(now)` takes one in; False once there is no more, or none is wanted."""
        self._poller = poller
        self._handler = handler
        self._take = take
        self._floods = self._waits = False
        """There was more, last time, than there was time for; and: its turn comes."""

    def on_readable(self, now: float) -> None:
        """Somebody is there."""
        if self._waits:
            return
        if self._floods:
            self._waits = True
            self._poller.again(self._handler, self._in_turn)
        else:
            self._take_some(now)

    def _in_turn(self, now: float) -> None:
        self._floods = self._waits = False
        self._take_some(now)

    def _take_some(self, now: float) -> None:
        until = time.perf_counter() + TURN_TIME
        while self._take(now):
            if time.perf_counter() >= until:
                self._floods = True
                return
