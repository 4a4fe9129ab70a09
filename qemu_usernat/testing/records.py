"""What a test can ask afterwards: what the gateway decided, and what became of each flow.

It owns the records, and sits between a server and the world behind it (`app.World`): all that goes
there passes here and is written down. What the world does about it is not changed. Of what the
gateway answers by itself it sees the refusals only.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TypeVar, overload

import trio
from attrs import define, field, frozen

from qemu_usernat.admission import Decision, Guest
from qemu_usernat.app import World
from qemu_usernat.gateway.dns import Upstream
from qemu_usernat.host.resolve import AnswerCallback
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.sinks import HostStream
from qemu_usernat.nat.tcp.states import HostState
from qemu_usernat.nat.udp import GuestDatagrams, HostDatagrams, UdpMapping
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.policy.tables import Network
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.router import EchoRequest
from qemu_usernat.testing import values
from qemu_usernat.wire.packets import Buffer

RECORDS_MAXIMUM = 100_000
"""Of each kind; the oldest is forgotten first: a test that runs for days does not eat memory."""

LISTED_MAXIMUM = 30
"""Records in one message: the last ones."""

PINGS_MAXIMUM = 4096
"""Programs that ping, of which each answer is noted."""

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


@define(eq=False)
class RecordingWorld:
    """The world of a server, and what went there; an `app.World` itself."""

    world: World
    flows: Records[FlowRecord]
    verdicts: Records[Verdict]
    name_of: Callable[[str], str | None]
    """The name that was looked up to get an address."""
    guest_at: Callable[[Address], str]
    """The name of the guest that speaks from an address."""
    on_nobody: Callable[[Guest, FlowRequest, str | None], None]
    """Who hears of what the gateway has refused by itself, perhaps for a name."""
    _pings: dict[tuple[Address, int, Address], FlowRecord] = field(factory=dict)

    # -- for the router

    def dial(self, flow: TcpFlow, address: Address, port: int) -> None:
        """Pass on, and note what becomes of it."""
        record = self._begin("tcp", flow.key[:2], address, port)
        record._flow = flow
        try:
            self.world.dial(flow, address, port)
        except OSError:
            record.outcome = Outcome.REFUSED
            raise
        if flow.host_state is HostState.FAILED:  # at once
            record.outcome = Outcome.REFUSED
        else:
            flow.host = _RecordedStream(flow.host, flow, record)

    def open_udp(self, mapping: UdpMapping) -> None:
        """Pass on, and note whom it is for."""
        self.world.open_udp(mapping)
        watched = _RecordedDatagrams(mapping.host, mapping.guest, mapping, self._begin)
        mapping.host = mapping.guest = watched

    def echo(self, request: EchoRequest, reply: Callable[[Buffer], None]) -> bool:
        """Pass on, and note which pings come back."""
        identifier = int.from_bytes(request.rest[:2], "big")
        key = request.guest, identifier, request.destination
        record = self._pings.get(key)
        if record is None:
            record = self._begin("icmp", (request.guest, identifier), request.destination, 0)
            self._pings[key] = record
            while len(self._pings) > PINGS_MAXIMUM:
                del self._pings[next(iter(self._pings))]

        def replied(payload: Buffer) -> None:
            record.outcome = Outcome.OPEN
            record._received += len(payload)
            reply(payload)

        record.sent += len(request.payload)
        carried = self.world.echo(request, replied)
        if not carried:
            record.outcome = Outcome.REFUSED
        return carried

    @property
    def keeps_answers(self) -> bool:
        """The world's."""
        return self.world.keeps_answers

    def is_of_host(self, address: Address) -> bool:
        """The world's."""
        return self.world.is_of_host(address)

    @property
    def public(self) -> tuple[Network, ...]:
        """The world's."""
        return self.world.public

    # -- for the name server

    def upstreams(self) -> Sequence[Upstream]:
        """The world's."""
        return self.world.upstreams()

    def on_answers(self, callback: AnswerCallback) -> None:
        """Pass on."""
        self.world.on_answers(callback)

    def ask(self, upstream: Upstream, transport: str, message: bytes, token: int) -> bool:
        """Pass on."""
        return self.world.ask(upstream, transport, message, token)

    def forget(self, token: int) -> None:
        """Pass on."""
        self.world.forget(token)

    def close(self) -> None:
        """Pass on."""
        self.world.close()

    # -- records

    def on_decision(self, decision: Decision, now: float) -> None:
        """The policy has spoken."""
        request, verdict = decision.request, decision.verdict
        address = format_address(request.destination) if request.destination else ""
        rule = verdict.rule
        self.verdicts.append(
            Verdict(
                verdict.action == ALLOW,
                request.protocol,
                decision.guest.link,
                (format_address(decision.guest.address), 0),
                (address, request.port),
                decision.name or self.name_of(address),
                verdict.why.value,
                "" if rule is None else str(rule),
            )
        )

        if verdict.action != ALLOW and decision.enforced:
            self.on_nobody(decision.guest, request, decision.name)

    def on_stray(self, guest: Guest, request: FlowRequest, now: float) -> None:
        """A guest has tried to reach where nobody is."""
        self.on_nobody(guest, request, None)

    def _begin(
        self, protocol: str, source: tuple[Address, int], address: Address, port: int
    ) -> FlowRecord:
        text, guest = format_address(address), self.guest_at(source[0])
        record = FlowRecord(
            protocol,
            guest,
            (format_address(source[0]), source[1]),
            (text, port),
            self.name_of(text),
            trio.current_time(),
        )
        self.flows.append(record)
        return record


@define(eq=False)
class _RecordedStream:
    """The host half of a flow, watched; a `HostStream`."""

    stream: HostStream
    flow: TcpFlow
    record: FlowRecord

    def send(self, buffers: list[Buffer], now: float) -> int:
        taken = self.stream.send(buffers, now)
        self.record.sent += taken
        return taken

    def shutdown(self) -> None:
        self.stream.shutdown()

    def reset(self) -> None:
        self.record.outcome = Outcome.RESET_BY_GUEST
        self.stream.reset()

    def hang_up(self) -> None:
        self.record.outcome = Outcome.ENDED
        self.stream.hang_up()

    def close(self) -> None:
        record = self.record
        if self.flow.host_state is HostState.FAILED:
            was_open = record.outcome is Outcome.OPEN
            record.outcome = Outcome.RESET_BY_HOST if was_open else Outcome.REFUSED
        elif record.outcome is Outcome.OPEN:
            record.outcome = Outcome.ENDED
        self.stream.close()

    def watch(self, read: bool, write: bool, now: float) -> None:
        # The first time that it is said what to wait for, the connection is there.
        if self.record.outcome is Outcome.CONNECTING:
            self.record.outcome = Outcome.OPEN
        self.stream.watch(read, write, now)


@define(eq=False)
class _RecordedDatagrams:
    """Both ends of a mapping, watched; a `HostDatagrams` and a `GuestDatagrams`."""

    host: HostDatagrams
    guest: GuestDatagrams
    mapping: UdpMapping
    begin: Callable[[str, tuple[Address, int], Address, int], FlowRecord]
    _records: dict[tuple[Address, int], FlowRecord] = field(factory=dict)

    # -- towards the world

    def send(self, payload: Buffer, address: Address, port: int) -> None:
        record = self._records.get((address, port))
        if record is None:
            record = self.begin("udp", self.mapping.key, address, port)
            record.outcome = Outcome.OPEN
            self._records[address, port] = record
        record.sent += len(payload)
        self.host.send(payload, address, port)

    def close(self) -> None:
        for record in self._records.values():
            if record.outcome is Outcome.OPEN:
                record.outcome = Outcome.ENDED
        self.host.close()

    # -- towards the guest

    def deliver(self, payload: Buffer, source: Address, source_port: int) -> None:
        record = self._records.get((source, source_port))
        if record is not None:
            record._received += len(payload)
        self.guest.deliver(payload, source, source_port)

    def unreachable(
        self, icmp: tuple[int, int, bytes], offender: Address, peer: Address, port: int, sent: bytes
    ) -> None:
        record = self._records.get((peer, port))
        if record is not None and not record.received:
            record.outcome = Outcome.REFUSED
        self.guest.unreachable(icmp, offender, peer, port, sent)
