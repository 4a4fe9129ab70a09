"""Who writes down what became of each flow: between a server and the world behind it.

All that goes to the world (`app.World`) passes here and is written down. What the world does about
it is not changed. Of what the gateway answers by itself this sees the refusals only.
"""

from collections.abc import Callable, Sequence

import trio
from attrs import define, field

from qemu_usernat.admission import Decision, Guest
from qemu_usernat.gateway.dns import Upstream
from qemu_usernat.host.upstream import AnswerCallback
from qemu_usernat.nat.echo import EchoFlow, GuestEcho, HostEcho
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.sinks import HostStream
from qemu_usernat.nat.tcp.states import HostState
from qemu_usernat.nat.udp import GuestDatagrams, HostDatagrams, UdpMapping
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.policy.tables import Network
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.server import World
from qemu_usernat.testing.records import FlowRecord, Outcome, Records, Verdict
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import Buffer


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

    # -- for the router

    def dial(self, flow: TcpFlow, address: Address, port: int, ttl: int) -> None:
        """Pass on, and note what becomes of it."""
        record = self._begin("tcp", flow.key[:2], address, port)
        record._flow = flow
        try:
            self.world.dial(flow, address, port, ttl)
        except OSError:
            record.outcome = Outcome.REFUSED
            raise
        if flow.host_state is HostState.FAILED:  # at once
            record.outcome = Outcome.REFUSED
        else:
            flow.host = _RecordedStream(flow.host, flow, record)

    def dial_unix(self, flow: TcpFlow, path: str) -> None:
        """Pass on: no host of the world hears of it."""
        self.world.dial_unix(flow, path)

    def open_udp(self, mapping: UdpMapping) -> None:
        """Pass on, and note whom it is for."""
        self.world.open_udp(mapping)
        watched = _RecordedDatagrams(mapping.host, mapping.guest, mapping, self._begin)
        mapping.host = mapping.guest = watched

    def open_echo(self, flow: EchoFlow) -> None:
        """Pass on, and note whom it is for, and which pings come back."""
        self.world.open_echo(flow)
        flow.host = flow.guest = _RecordedEcho(flow.host, flow.guest, flow, self._begin)

    def flush(self, now: float) -> None:
        """Pass on."""
        self.world.flush(now)

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

    @property
    def keeps_answers(self) -> bool:
        """The world's."""
        return self.world.keeps_answers

    def complaints(self) -> Sequence[str]:
        """The world's."""
        return self.world.complaints()

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

    @property
    def port(self) -> int:
        return self.host.port

    def send(
        self,
        payload: Buffer,
        address: Address,
        port: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        record = self._records.get((address, port))
        if record is None:
            record = self.begin("udp", self.mapping.key, address, port)
            record.outcome = Outcome.OPEN
            self._records[address, port] = record
        record.sent += len(payload)
        self.host.send(payload, address, port, ttl, dont_fragment, now)

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

    def refuse(self, error: IcmpError, peer: Address, port: int, quoted: bytes, now: float) -> None:
        record = self._records.get((peer, port))
        if record is not None and not record.received:
            record.outcome = Outcome.REFUSED
        self.guest.refuse(error, peer, port, quoted, now)


@define(eq=False)
class _RecordedEcho:
    """Both ends of an echo flow, watched; a `HostEcho` and a `GuestEcho`."""

    host: HostEcho
    guest: GuestEcho
    flow: EchoFlow
    begin: Callable[[str, tuple[Address, int], Address, int], FlowRecord]
    _records: dict[Address, FlowRecord] = field(factory=dict)

    # -- towards the world

    def send(
        self,
        payload: Buffer,
        address: Address,
        sequence: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        record = self._records.get(address)
        if record is None:
            record = self._records[address] = self.begin("icmp", self.flow.key, address, 0)
        record.sent += len(payload)
        self.host.send(payload, address, sequence, ttl, dont_fragment, now)

    def close(self) -> None:
        self.host.close()

    # -- towards the guest

    def deliver(self, payload: Buffer, source: Address, sequence: int, ttl: int) -> None:
        record = self._records[source]
        record.outcome = Outcome.OPEN
        record._received += len(payload)
        self.guest.deliver(payload, source, sequence, ttl)

    def refuse(
        self, error: IcmpError, peer: Address, sequence: int, quoted: bytes, now: float
    ) -> None:
        record = self._records[peer]
        if not record.received:
            record.outcome = Outcome.REFUSED
        self.guest.refuse(error, peer, sequence, quoted, now)
