"""A connection whose first octets decide: the gate before the host half of its flow.

It owns what is held. The host is dialled already, and what it says reaches the guest, since some
servers speak first; but of the guest's octets none leaves before the verdict. They stay where they
are, in the flow's receive buffer, so that what is judged is what is sent. A guest that has begun to
speak has ten seconds, and 64 KiB.

Where the verdict is yes, the gate steps aside; over HTTP/1 it stays, and each request is judged
before it passes. Where it is no, the server's side is reset, and the guest is told in the words of
what it speaks: a TLS alert, an HTTP answer; or a reset.
"""

from collections.abc import Callable
from typing import Protocol

from attrs import define, evolve

from qemu_usernat.admission import Admission, Decision
from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.sinks import HostStream
from qemu_usernat.nat.tcp.states import GuestState
from qemu_usernat.policy.judge import Flight, Speech
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.primitives.time import NEVER, SECOND
from qemu_usernat.wire.packets import Buffer

SPEECH_TIME = 10 * SECOND
"""From the guest's first octet to a first flight that can be read."""

FLIGHT_MAXIMUM = 64 * 1024
"""Octets of a first flight."""

FAREWELL_TIME = 5 * SECOND
"""How long a guest that was refused may take to end the connection itself."""

# A fatal alert (RFC 8446, 6): access_denied, in a record of TLS 1.2's version number.
ACCESS_DENIED = bytes((21, 3, 3, 0, 2, 2, 49))

_GUEST_SPEAKS = frozenset(
    {
        GuestState.SYN_HELD,
        GuestState.SYN_RECEIVED,
        GuestState.ESTABLISHED,
        GuestState.FIN_WAIT_1,
        GuestState.FIN_WAIT_2,
    }
)
"""States before the guest's FIN."""


class Requests(Protocol):
    """The requests of an HTTP/1 connection, one after the other."""

    def feed(self, octets: Buffer) -> None:
        """More of what the guest has sent."""


class FlightReader(Protocol):
    """Reads what a guest says first."""

    def feed(self, octets: Buffer) -> None:
        """More of it, in any pieces."""

    def finish(self) -> None:
        """Nothing more will come: what is open now is unreadable."""

    def flight(self) -> Flight:
        """What is known by now."""


@define(eq=False)
class Gate:
    """A `HostStream` before another one, and a sleeper of `Alarms`."""

    flow: TcpFlow
    stream: HostStream
    decision: Decision
    admission: Admission
    reader: FlightReader
    alarms: Alarms
    touch: Callable[[TcpFlow], None]
    _seen: int = 0
    """Octets that the reader has."""
    _deadline: float = NEVER
    _refused: bool = False
    _answer: bytes = b""
    """What a refused guest is still to be told."""

    @classmethod
    def before(
        cls,
        flow: TcpFlow,
        decision: Decision,
        admission: Admission,
        alarms: Alarms,
        reader: FlightReader,
        touch: Callable[[TcpFlow], None],
    ) -> None:
        """Put a gate before the host half of `flow`, which has been dialled."""
        flow.host = cls(flow, flow.host, decision, admission, reader, alarms, touch)

    # -- the verdict

    def _read(self, buffers: list[Buffer], now: float) -> None:
        """Judge what is there, as soon as that can be done."""
        skip = self._seen
        for piece in buffers:
            if skip < len(piece):
                self.reader.feed(memoryview(piece)[skip:] if skip else piece)
                self._seen += len(piece) - skip
            skip = max(0, skip - len(piece))
        if self._seen and self._deadline == NEVER:
            self._deadline = now + SPEECH_TIME
            self.alarms.arm(self)
        if self._seen >= FLIGHT_MAXIMUM or self.flow.guest_state not in _GUEST_SPEAKS:
            self.reader.finish()
        self._judge(now)

    def _judge(self, now: float) -> None:
        request = evolve(self.decision.request, flight=self.reader.flight())
        if request.flight != self.decision.request.flight:
            self.decision = self.admission.decide(self.decision.guest, request, now)
            self.flow.decision = self.decision

    def _refuse(self, now: float) -> None:
        """The guest is told, and the server hears of nothing but a reset."""
        self._refused = True
        self.stream.reset()
        self._answer = _answer_to(self.decision)
        if self._answer:
            self._deadline = now + FAREWELL_TIME
            self.alarms.arm(self)
        else:
            self.flow.on_host_failed(None, now)

    # -- Sleeper

    def deadline(self) -> float:
        """When the guest's time to speak is over, or to leave."""
        return self._deadline

    def on_deadline(self, now: float) -> None:
        """It is over."""
        if now < self._deadline:
            self.alarms.arm(self)
            return
        self._deadline = NEVER
        self.touch(self.flow)
        if self._refused:
            self.flow.on_host_failed(None, now)
        elif self.decision.verdict.hold:
            self.reader.finish()
            self._judge(now)
            # The octets are still the flow's: its flush offers them again, and finds the verdict.

    # -- HostStream

    def send(self, buffers: list[Buffer], now: float) -> int:
        """None is taken while the verdict is open; all, and thrown away, once it is no."""
        if self.decision.verdict.hold:
            self._read(buffers, now)
        if self.decision.verdict.hold:
            return 0
        if self.decision.verdict.action == ALLOW:
            self._step_aside()
            return self.stream.send(buffers, now)
        if not self._refused:
            self._refuse(now)
        return sum(map(len, buffers))

    def _step_aside(self) -> None:
        self.alarms.forget(self)
        self.flow.host = self.stream

    def shutdown(self) -> None:
        """The guest has ended its direction, and everything before that has passed."""
        if self.decision.verdict.hold:  # without a word
            self.stream.reset()
            self._refused = True
            self.flow.on_host_failed(None, self.flow.opened_at)
        elif not self._refused:
            self.stream.shutdown()

    def reset(self) -> None:
        """The guest is gone."""
        self.alarms.forget(self)
        self.stream.reset()

    def hang_up(self) -> None:
        """The guest is gone, after its last word."""
        self.alarms.forget(self)
        if self._refused or self.decision.verdict.hold:
            self.stream.reset()
        else:
            self.stream.hang_up()

    def close(self) -> None:
        """Both directions have ended."""
        self.alarms.forget(self)
        self.stream.close()

    def watch(self, read: bool, write: bool, now: float) -> None:
        """While octets are held, nobody waits for room for them."""
        if not self._refused:
            self.stream.watch(read, write and not self.decision.verdict.hold, now)
            return
        room = self.flow.room()
        if self._answer and room > 0:
            said, self._answer = self._answer[:room], self._answer[room:]
            self.flow.on_host_data(said, len(said), now)
            self.touch(self.flow)
            if not self._answer:
                self.flow.on_host_eof(now)


def _answer_to(decision: Decision) -> bytes:
    """What a guest that is refused is told, in the words of what it speaks."""
    flight = decision.request.flight
    if flight.speech is Speech.TLS:
        return ACCESS_DENIED
    if flight.speech is Speech.HTTP:
        rule = decision.verdict.rule
        by = f", rule {rule.name}" if rule is not None and rule.name else ""
        text = (
            f"Denied by the network policy: {flight.name or 'no name'}.\n"
            f"Reason: {decision.verdict.why.value}{by}.\n"
        )
        return (
            "HTTP/1.1 403 Forbidden\r\n"
            "Content-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(text.encode())}\r\n"
            "Connection: close\r\n\r\n"
            f"{text}"
        ).encode()
    return b""
