"""The UDP mappings of a network: found by the guest's port or by the host's, and which gives way.

A mapping is a descriptor, so there are bounds, for each guest and in total. A guest that opens more
does not wait: its mapping that has been idle longest gives way. What nobody has answered, and what
only asked for names, goes first, so that a scan, or a resolver with a port for each question, costs
the guest none of its conversations; they give way only when they have been silent for as long as
RFC 4787 has mappings live (REQ-5). In total it is the guest with most mappings that makes room.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator

from attrs import define, field

from qemu_usernat.nat.udp import Tally, UdpMapping
from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.time import MINUTE

MAPPINGS_PER_GUEST = 4096
MAPPINGS_MAXIMUM = 16384
"""Mappings at once, each with a descriptor."""

LIVE_TIME = 2 * MINUTE
"""How long a conversation that is silent does not give way (RFC 4787, REQ-5)."""


@define(eq=False)
class Crowd:
    """The mappings of one guest, the one used longest ago first."""

    questions: OrderedDict[UdpMapping, None] = field(factory=OrderedDict)
    """What was begun; among them what has become a conversation, until somebody looks."""
    conversations: OrderedDict[UdpMapping, None] = field(factory=OrderedDict)
    tally: Tally = field(factory=Tally)

    def __len__(self) -> int:
        return len(self.questions) + len(self.conversations)

    def gives_way(self, now: float) -> UdpMapping | None:
        """The mapping that others can do without first; None if each is in use."""
        while self.questions:
            mapping = next(iter(self.questions))
            if not mapping.is_conversation:
                return mapping
            del self.questions[mapping]
            self.conversations[mapping] = None
            mapping.order = self.conversations
        oldest = next(iter(self.conversations), None)
        return oldest if oldest is not None and now - oldest.sent_at >= LIVE_TIME else None


@define(eq=False)
class UdpTable:
    """All mappings. Guests are told apart by whatever the caller names them by."""

    by_guest_port: dict[tuple[Address, int], UdpMapping] = field(factory=dict)
    by_host_port: dict[int, UdpMapping] = field(factory=dict)
    _of_address: dict[Address, dict[UdpMapping, None]] = field(factory=dict)
    crowds: dict[Hashable, Crowd] = field(factory=dict)
    """Those of guests that have any."""
    _guest_of: dict[UdpMapping, Hashable] = field(factory=dict)

    def __len__(self) -> int:
        return len(self.by_guest_port)

    def __iter__(self) -> Iterator[UdpMapping]:
        return iter(tuple(self.by_guest_port.values()))

    def add(self, mapping: UdpMapping, guest: Hashable) -> None:
        """A new mapping of `guest`, which has its socket."""
        crowd = self.crowds.setdefault(guest, Crowd())
        crowd.questions[mapping] = None
        mapping.order, mapping.tally = crowd.questions, crowd.tally
        self._guest_of[mapping] = guest
        self.by_guest_port[mapping.key] = mapping
        self._of_address.setdefault(mapping.key[0], {})[mapping] = None
        self.by_host_port[mapping.host.port] = mapping

    def remove(self, mapping: UdpMapping) -> None:
        """Its socket is about to be closed."""
        mapping.forget_peers()
        del mapping.order[mapping]
        guest = self._guest_of.pop(mapping)
        if not self.crowds[guest]:
            del self.crowds[guest]
        del self.by_guest_port[mapping.key]
        of_address = self._of_address[mapping.key[0]]
        del of_address[mapping]
        if not of_address:
            del self._of_address[mapping.key[0]]
        if (
            self.by_host_port.get(mapping.host.port) is mapping
        ):  # a test's world has no ports of its own
            del self.by_host_port[mapping.host.port]

    def of_address(self, address: Address) -> tuple[UdpMapping, ...]:
        """Those of a guest's address."""
        return tuple(self._of_address.get(address, ()))

    def gives_way(self, guest: Hashable, now: float) -> UdpMapping | None:
        """Which mapping is to be closed so that `guest` may have one more; None if none is."""
        own = self.crowds.get(guest)
        if own is not None and len(own) >= MAPPINGS_PER_GUEST:
            return own.gives_way(now)
        for crowd in sorted(self.crowds.values(), key=len, reverse=True):
            mapping = crowd.gives_way(now)
            if mapping is not None:
                return mapping
        return None

    def is_full(self, guest: Hashable) -> bool:
        """Whether one more of that guest's is one too many."""
        own = self.crowds.get(guest, ())
        return len(self) >= MAPPINGS_MAXIMUM or len(own) >= MAPPINGS_PER_GUEST
