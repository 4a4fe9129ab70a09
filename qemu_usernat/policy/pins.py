"""Pins: which addresses each guest was given for which names, by us.

A name rule matches an address only if the guest was told so in an answer of our resolver. A pin
lives for as long as the answer is valid, at least a minute, and two minutes more; and as long as a
flow uses the address. It belongs to the name that was asked for, not to those that CNAMEs led
through, and to one guest.
"""

from collections.abc import Callable

from attrs import define, field

from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.time import SECOND

TTL_MINIMUM = 60 * SECOND
GRACE = 120 * SECOND
TTL_MAXIMUM = 86_400 * SECOND

ADDRESSES_MAXIMUM = 8192
"""Of one guest; the one that was told of longest ago goes first."""

NAMES_MAXIMUM = 64
"""Of one address; a content network has some, a guest that floods its own memory has more."""


@define
class Pins:
    """Of one guest."""

    _names: dict[Address, dict[str, float]] = field(factory=dict)
    """Address → name → when the pin ends; addresses in the order in which they were told."""
    _used: dict[Address, int] = field(factory=dict)
    """Flows by address."""

    def add(self, name: str, address: Address, ttl: float, now: float) -> None:
        """The guest is about to be told that `name` has this address for `ttl` seconds."""
        names = self._names.pop(address, {})
        self._names[address] = names
        until = now + min(max(ttl, TTL_MINIMUM), TTL_MAXIMUM) + GRACE
        names[name] = max(until, names.pop(name, until))
        if len(names) > NAMES_MAXIMUM:
            del names[next(iter(names))]
        if len(self._names) > ADDRESSES_MAXIMUM:
            self._forget_one()

    def _forget_one(self) -> None:
        unused = (address for address in self._names if address not in self._used)
        del self._names[next(unused, next(iter(self._names)))]

    def names(self, address: Address, now: float) -> frozenset[str]:
        """The names that the guest was given this address for."""
        names = self._names.get(address)
        if names is None:
            return frozenset()
        if address not in self._used:
            for name in [name for name, until in names.items() if until <= now]:
                del names[name]
            if not names:
                del self._names[address]
        return frozenset(names)

    def latest(self, address: Address, now: float) -> str | None:
        """Of them the one that the guest was given last."""
        self.names(address, now)  # which forgets what is over
        return next(reversed(self._names.get(address, {})), None)

    def use(self, address: Address) -> Callable[[], None]:
        """A flow begins to use the address; what is returned is to be called at its end."""
        self._used[address] = self._used.get(address, 0) + 1

        def release() -> None:
            left = self._used.pop(address, 0) - 1
            if left > 0:
                self._used[address] = left

        return release
