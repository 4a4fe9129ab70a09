"""Numbers that nobody can guess, without a system call for each."""

import os

from attrs import define, field

BYTES = 4096
"""Random bytes that the system is asked for at once."""


@define(eq=False)
class Chance:
    """A supply of random numbers, each of which is given out once."""

    _bytes: bytes = field(default=b"", init=False)
    _at: int = field(default=0, init=False)

    def __call__(self) -> int:
        """From 0 to 65535."""
        at = self._at
        if at == len(self._bytes):
            self._bytes, at = os.urandom(BYTES), 0
        self._at = at + 2
        return self._bytes[at] << 8 | self._bytes[at + 1]

    def below(self, count: int) -> int:
        """From 0 to `count` - 1, all as likely; `count` is a power of two up to 65536."""
        return self() % count
