"""What a test can ask afterwards: what the gateway decided, and what became of each flow.

It owns the records and how they are asked; who writes them is `recording`.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TypeVar, overload

from attrs import define, field, frozen

from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.policy.why import Why
from qemu_usernat.testing import values

RECORDS_MAXIMUM = 100_000
"""Of each kind; the oldest is forgotten first: a test that runs for days does not eat memory."""

LISTED_MAXIMUM = 30
"""Records in one message: the last ones."""

Peer = tuple[str, int]
"""Address and port."""


class Outcome(Enum):
    """What became of a connection, or of an exchange of datagrams."""

    CONNECTING = "connecting"
    OPEN = "open"
    REFUSED = "refused"
    """Never open: the server, or the way to it, said no, or nothing until the time limit."""
    ENDED = "ended"
    """Open, and then both sides ended in order."""
    RESET_BY_GUEST = "reset by the guest"
    RESET_BY_HOST = "reset by the host"


@define(eq=False)
class FlowRecord:
    """A connection of a guest, or its datagrams from one port to one address and port, or the
    pings of one program to one address; for these, the port of the guest is their identifier, and
    that of the destination is 0."""

    protocol: str
    """``tcp``, ``udp`` or ``icmp``."""
    guest: str
    """The guest's name."""
    source: Peer
    """Address and port that it comes from."""
    destination: Peer
    name: str | None
    """The name that a guest looked up to get the address, if any did."""
    opened_at: float
    """Seconds of trio's clock."""
    outcome: Outcome = Outcome.CONNECTING
    sent: int = 0
    """Octets from the guest that the other side has taken."""
    _flow: TcpFlow | None = field(default=None, repr=False)
    _received: int = field(default=0, repr=False)

    @property
    def address(self) -> str:
        """Where to."""
        return self.destination[0]

    @property
    def host(self) -> str:
        """The name that was looked up, or the address where none was."""
        return self.name or self.address

    @property
    def port(self) -> int:
        """At which port."""
        return self.destination[1]

    @property
    def received(self) -> int:
        """Octets towards the guest."""
        return self._received if self._flow is None else self._flow.sender.end

    @property
    def allowed(self) -> bool:
        """Whether it was carried at all."""
        return self.outcome is not Outcome.REFUSED

    def __repr__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        return (
            f"<{self.protocol} {self.source[0]}:{self.source[1]} → {self.address}:{self.port}{name}"
            f", {self.outcome.value}, {self.sent} octets out, {self.received} in>"
        )


@frozen
class Verdict:
    """What the gateway has decided about a flow, before anybody outside heard of it."""

    allowed: bool
    protocol: str
    """``tcp``, ``udp``, ``icmp``, ``dns`` for a question, or the number of another."""
    guest: str
    """The guest's name."""
    source: Peer
    """Address and port that it comes from; the port is 0, as a verdict does not depend on it."""
    destination: Peer
    """Address and port; the address is "" for a question."""
    name: str | None
    """The name that a guest looked up to get the address, if any did; that which it asks for."""
    why: str
    """One of `policy.why.Why`."""
    rule: str = ""
    """The rule that has decided, or nearly has."""

    @property
    def address(self) -> str:
        """Where to."""
        return self.destination[0]

    @property
    def host(self) -> str:
        """The name that was looked up, or the address where none was."""
        return self.name or self.address

    @property
    def port(self) -> int:
        """At which port."""
        return self.destination[1]

    def __repr__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        return (
            f"<{'allowed' if self.allowed else 'denied'}: {self.protocol} "
            f"{self.source[0]}:{self.source[1]} → {self.address}:{self.port}{name}, {self.why}"
            f"{f' ({self.rule})' if self.rule else ''}>"
        )


_FLOWS: Mapping[str, values.Accept] = {
    "protocol": values.one_of(("tcp", "udp", "icmp")),
    "source": values.peer,
    "destination": values.peer,
    "address": values.address,
    "port": values.port,
    "name": values.name_or_none,
    "host": values.host,
    "allowed": values.truth,
}

FLOW_FIELDS: Mapping[str, values.Accept] = {
    **_FLOWS,
    "outcome": values.member(Outcome),
    "opened_at": values.moment,
    "sent": values.size,
    "received": values.size,
}
"""What a test may ask of flows, beside whose they are; and below of the others."""

VERDICT_FIELDS: Mapping[str, values.Accept] = {
    **_FLOWS,
    "protocol": values.protocol,
    "why": values.one_of(why.value for why in Why if why is not Why.HELD),  # which is no verdict
    "rule": values.text,
}

QUERY_FIELDS: Mapping[str, values.Accept] = {
    "name": values.domain,
    "type": values.record_type,
    "transport": values.one_of(("udp", "tcp")),
    "outcome": values.dns_outcome,
    "answers": values.texts,
    "time": values.moment,
}

T = TypeVar("T")


class Records(Sequence[T]):
    """Records in the order in which they began; `for`, `len`, indices, and `where`.

    One that is empty says so in its repr, and what there was instead.
    """

    def __init__(
        self,
        kind: str,
        fields: Mapping[str, values.Accept],
        records: Iterable[T] = (),
        among: Sequence[T] = (),
    ) -> None:
        """`fields` are the attributes that may be asked for, and what is accepted for each."""
        self._kind = kind
        self._fields = fields
        self._records = deque(records, RECORDS_MAXIMUM)
        self._among = among

    def where(self, **wanted: object) -> "Records[T]":
        """Those whose attributes have these values: ``flows.where(port=443, protocol="tcp")``.

        Names may be in any case, with or without the final dot. AttributeError for an attribute
        that they do not have, TypeError or ValueError for a value that none could have.
        """
        for name in wanted:
            if name not in self._fields:
                raise AttributeError(
                    f"{self._kind} have no {name!r}; allowed: {', '.join(sorted(self._fields))}"
                )
        accepted = {name: self._fields[name](name, value) for name, value in wanted.items()}
        found = (
            record
            for record in self
            if all(getattr(record, name) == value for name, value in accepted.items())
        )
        words = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        return Records(f"{self._kind} with {words}", self._fields, found, among=tuple(self))

    def append(self, record: T) -> None:
        """For the one who keeps them."""
        self._records.append(record)

    def clear(self) -> None:
        """Forget all: another test begins."""
        self._records.clear()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._records))

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "Records[T]": ...

    def __getitem__(self, index: int | slice) -> "T | Records[T]":
        if isinstance(index, slice):
            return Records(self._kind, self._fields, tuple(self._records)[index])
        return self._records[index]

    def __repr__(self) -> str:
        if self._records or not self._among:
            return f"<{_listed(self._kind, tuple(self._records))}>"
        return f"<no {self._kind}, among {_listed('', self._among)}>"


def _listed(kind: str, records: Sequence[object]) -> str:
    if not records:
        return f"no {kind}"
    left_out = len(records) - LISTED_MAXIMUM
    lines = [f"{len(records)} {kind}".rstrip() + ":"]
    lines += [f"({left_out} earlier ones left out)"] if left_out > 0 else []
    return "\n  ".join([*lines, *map(repr, records[-LISTED_MAXIMUM:])])
