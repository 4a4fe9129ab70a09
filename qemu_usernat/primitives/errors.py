"""Errors by blame: the guest's, the host's, the user's, ours.

A mistake of the guest never reaches a loop: it is caught where its bytes are parsed,
counted under its name, and answered where the protocol says so. A mistake of the user
is told with the fix. A mistake of ours is a bug and says so.
"""

from collections.abc import Callable
from typing import TypeAlias


class Malformed(Exception):  # noqa: N818 - the field's word for it
    """The guest sent bytes that no reader of the RFC would accept.

    `reason` is also the name of the counter: ``ipv4.bad_checksum``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UserError(Exception):
    """The user asked for what cannot be; the message names it, its place, and what is allowed."""


class InternalError(Exception):
    """A bug of ours: a rule of this project broken by its own code."""


BugCallback: TypeAlias = Callable[[Exception], None]
"""Is told what nobody expected; what it showed in is ended, and nothing else."""


def surface(error: Exception) -> None:
    """The `BugCallback` of whoever wants to see it, as tests do: it ends everything."""
    raise error
