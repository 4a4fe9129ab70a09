"""What a host does instead of serving, or in the middle of it."""

from enum import Enum
from typing import Literal

from attrs import frozen

Direction = Literal["to guest", "from guest"]


class Fault(Enum):
    """What a host does instead of serving."""

    REFUSES = "refuses"
    BLACK_HOLE = "black hole"


@frozen
class Reset:
    """A connection is reset when so many octets have gone in one direction."""

    octets: int
    direction: Direction
