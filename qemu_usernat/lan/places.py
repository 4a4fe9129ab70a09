"""Where on the segment something was heard last: MAC addresses, and guests' IPv4 addresses.

A table as a switch learns it (IEEE 802.1D, 7.9), with hard bounds, for each port and for all. A
full one learns nothing new until something in it has been silent for `AGING_TIME`: so no flood
pushes out what is in use, neither a neighbour's nor the flooder's own. A port that has nothing in
the table may always have one, however full the others have made it.

What is old gives way where room is wanted, and no sooner: until then it is the best guess at where
to go.

Nothing here is done for each frame: who was heard is noted once in `LOOK_INTERVAL`, and that order
is the order of the tables, so that what has been silent for longest is always in front.
"""

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from attrs import define, field

from qemu_usernat.lan.port import Port
from qemu_usernat.primitives.time import SECOND

AGING_TIME = 300 * SECOND
"""Without a word for so long an entry is old (IEEE 802.1D, table 7-5)."""

LOOK_INTERVAL = 10 * SECOND
"""How exactly it is known when something was heard."""

PLACES_PER_PORT = 256
"""Of one guest; it may run bridges, but cannot fill our memory."""

PLACES_MAXIMUM = 4096
"""Of all guests, but for the first of each."""

Key = TypeVar("Key", bound=Hashable)


def _nobody_minds(key: Any, port: Port) -> None:
    """What is forgotten is of no use to anybody."""


@define(eq=False)
class Places(Generic[Key]):
    """Things by the port at which they were heard last."""

    on_forgotten: Callable[[Key, Port], None] = _nobody_minds
    """Something is no more known to be at that port, which may be still there."""
    port_of: dict[Key, Port] = field(factory=dict)
    """All of them."""
    _of: dict[Port, dict[Key, float]] = field(factory=dict)
    """The same by port, and when each was heard."""

    def join(self, port: Port) -> dict[Key, float]:
        """A port is there, or has been; what was heard there, and when, now and from now on."""
        return self._of.setdefault(port, {})

    def learn(self, key: Key, port: Port, now: float) -> bool:
        """`key` was heard at `port`; False if that is gone, or there is no room."""
        own, known = self._of.get(port), self.port_of.get(key)
        if own is None:
            return False
        if known is port:
            if now - own[key] >= LOOK_INTERVAL:
                del own[key], self.port_of[key]
                self._note(key, port, now)
            return True
        if own and not self._has_room(own, now, moves=known is not None):
            return False
        if known is not None:
            self.forget(key)
        self._note(key, port, now)
        return True

    def _note(self, key: Key, port: Port, now: float) -> None:
        self._of[port][key] = now
        self.port_of[key] = port

    def _has_room(self, own: dict[Key, float], now: float, *, moves: bool) -> bool:
        """Room for one more, made if that costs nobody what is in use; one that moves is no more
        in all."""
        if len(own) >= PLACES_PER_PORT and not self._gives_way(next(iter(own)), now):
            return False
        is_full = not moves and len(self.port_of) >= PLACES_MAXIMUM
        return not is_full or self._gives_way(next(iter(self.port_of)), now)

    def _gives_way(self, key: Key, now: float) -> bool:
        if now - self._of[self.port_of[key]][key] < AGING_TIME:
            return False
        self.forget(key)
        return True

    def forget(self, key: Key) -> None:
        """It is no more known where it is."""
        port = self.port_of.pop(key)
        del self._of[port][key]
        self.on_forgotten(key, port)

    def leave(self, port: Port) -> dict[Key, float]:
        """The port is gone; what was heard there, and is nowhere now."""
        own = self._of.pop(port, {})
        for key in own:
            del self.port_of[key]
        return own
