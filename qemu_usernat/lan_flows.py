"""Conversations between guests, where a policy judges who may begin one.

It owns the table and its bounds, and how long an entry lives without a word. It judges nothing: a
`LanFlow` is here because it was allowed, and what is found here needs no verdict any more. Each
guest has a share, and makes room from its own, longest silent first.
"""

from collections import OrderedDict
from typing import TypeAlias

from attrs import define, field

from qemu_usernat.admission import Decision, Guest
from qemu_usernat.lan.port import Port
from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.time import HOUR, MINUTE
from qemu_usernat.wire.packets import ICMP, TCP

FLOWS_OF_GUEST_MAXIMUM = 4096
"""Conversations that one guest has begun."""

FLOWS_MAXIMUM = 16384
"""Those of all guests; beyond it, who has most makes room."""

OPENING_TIME = 1 * MINUTE
"""A connection that was not answered (Linux repeats its SYN for two, and each is judged anew)."""

OPEN_TIME = 2 * HOUR + 4 * MINUTE  # RFC 5382, REQ-5
CLOSING_TIME = 1 * MINUTE  # what Linux spends in TIME-WAIT
DATAGRAM_TIME = 2 * MINUTE  # RFC 4787, REQ-5
ECHO_TIME = 1 * MINUTE  # RFC 5508, REQ-2

LanKey: TypeAlias = tuple[int, Address, int, Address, int]
"""Protocol, address and port of who speaks, address and port of who hears; of an echo, its
identifier and its type in place of ports."""


@define(eq=False)
class Side:
    """One of the two."""

    flow: "LanFlow"
    key: LanKey
    """Of what it says."""
    guest: Guest
    port: Port
    acknowledged: int | None = None
    """Of TCP: what it expects next."""
    has_ended: bool = False

    def is_at(self, port: Port, mac: bytes) -> bool:
        """Whether it is this one that speaks at `port`: the same link, perhaps come again."""
        if port is self.port:
            return mac == self.guest.mac
        if port.name != self.guest.link or mac != self.guest.mac:
            return False
        self.port = port
        return True


@define(eq=False)
class LanFlow:
    """A conversation that was allowed."""

    decision: Decision
    heard: float
    """When it was heard last."""
    opener: Side = field(init=False)
    target: Side | None = None
    """None where it is for a group."""
    owner: Port | None = None
    """Whose share it is of; None when that link is gone."""

    @property
    def idle_time(self) -> float:
        """How long it lives without a word."""
        protocol = self.opener.key[0]
        if protocol == ICMP:
            return ECHO_TIME
        if protocol != TCP:
            return DATAGRAM_TIME
        if self.target is None or self.target.acknowledged is None:
            return OPENING_TIME
        return CLOSING_TIME if self.has_ended else OPEN_TIME

    @property
    def has_ended(self) -> bool:
        """Whether both have said their FIN."""
        return self.opener.has_ended and self.target is not None and self.target.has_ended


@define(eq=False)
class LanFlows:
    """Those of one network."""

    _sides: dict[LanKey, Side] = field(factory=dict)
    _of: "dict[Port | None, OrderedDict[LanFlow, None]]" = field(factory=dict)
    """By owner; the one that was heard last is the last."""
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def all(self) -> list[LanFlow]:
        """Every one."""
        return [flow for own in self._of.values() for flow in own]

    def find(self, key: LanKey, port: Port, mac: bytes, now: float) -> Side | None:
        """The side that says this; None if there is none, or it is another machine by now."""
        side = self._sides.get(key)
        if side is None:
            return None
        flow = side.flow
        if now - flow.heard >= flow.idle_time or not side.is_at(port, mac):
            self.remove(flow)
            return None
        flow.heard = now
        self._of[flow.owner].move_to_end(flow)
        return side

    def is_known(self, key: LanKey) -> bool:
        """Whether somebody has said such a thing."""
        return key in self._sides

    def add(self, flow: LanFlow, owner: Port) -> None:
        """One more."""
        for side in (flow.opener, flow.target):
            if side is not None:
                before = self._sides.get(side.key)
                if before is not None:
                    self.remove(before.flow)
                self._sides[side.key] = side
        flow.owner = owner
        self._of.setdefault(owner, OrderedDict())[flow] = None
        self._count += 1

    def make_room(self, owner: Port) -> bool:
        """There is to be one more of `owner`; whether another one had to give way."""
        own = self._of.get(owner, ())
        if len(own) >= FLOWS_OF_GUEST_MAXIMUM:
            self.remove(next(iter(own)))
        elif self._count >= FLOWS_MAXIMUM:
            most = None if None in self._of else max(self._of, key=lambda port: len(self._of[port]))
            self.remove(next(iter(self._of[most])))
        else:
            return False
        return True

    def remove(self, flow: LanFlow) -> None:
        """It has ended."""
        for side in (flow.opener, flow.target):
            if side is not None:
                del self._sides[side.key]
        own = self._of[flow.owner]
        del own[flow]
        if not own:
            del self._of[flow.owner]
        self._count -= 1

    def leave(self, port: Port) -> None:
        """The link is gone; what its guest has begun goes on if it comes back, and is nobody's
        share until it ends."""
        for flow in self._of.pop(port, ()):
            flow.owner = None
            self._of.setdefault(None, OrderedDict())[flow] = None

    def clear(self) -> None:
        """Nobody judges any more."""
        self._sides.clear()
        self._of.clear()
        self._count = 0
