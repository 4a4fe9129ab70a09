"""A connection whose first octets decide: the gate before the host half of its flow.

It owns what is held. The host is dialled already, and what it says reaches the guest, since some
servers speak first; but of the guest's octets none leaves before the verdict. They stay where they
are, in the flow's receive buffer, so that what is judged is what is sent. A guest that has begun to
speak has ten seconds, and 64 KiB.

Where the verdict is yes, the gate steps aside; over HTTP/1 it stays, and each request is judged
before it passes, and over TLS it stays for as long as another hello may come. Where it is no, the
server's side is reset, and the guest is told in the words of what it speaks: a TLS alert, an HTTP
answer; or a reset.
"""

from collections.abc import Callable, Iterator

from attrs import define, evolve

from qemu_usernat.admission import Admission, Decision
from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.sinks import HostStream
from qemu_usernat.nat.tcp.states import GuestState
from qemu_usernat.policy.first_flight import FirstFlight, FirstFlightReader
from qemu_usernat.policy.http_head import Request
from qemu_usernat.policy.http_requests import RequestStream
from qemu_usernat.policy.judge import Flight, FlowRequest, Speech, Verdict
from qemu_usernat.policy.reading import FLIGHT_MAXIMUM
from qemu_usernat.policy.rules import ALLOW, DENY
from qemu_usernat.policy.tls_stream import HelloStream
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.time import MINUTE, NEVER, SECOND
from qemu_usernat.wire.packets import Buffer

SPEECH_TIME = 10 * SECOND
"""From the guest's first octet to a first flight that can be read."""

_WHYS = {
    "http.connect": Why.CONNECT,
    "http.upgrade": Why.UPGRADE,
    "tls.another_name": Why.OTHER_NAME,
}

NAMELESS = ("tls.no_name", "http.no_name")
"""What can be read, and names nobody."""

SILENCE_TIME = 5 * MINUTE
"""How long a guest is left waiting where what is denied is dropped."""

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


@define(eq=False)
class Gate:
    """A `HostStream` before another one, and a sleeper of `Alarms`."""

    flow: TcpFlow
    stream: HostStream
    decision: Decision
    admission: Admission
    reader: FirstFlightReader
    alarms: Alarms
    touch: Callable[[TcpFlow], None]
    _seen: int = 0
    """Octets that were read."""
    _sent: int = 0
    """Octets that have passed."""
    _following: RequestStream | HelloStream | None = None
    """What is read of the guest after it was let in."""
    _blocked: bool = True
    """Whether the guest's octets wait for a verdict, and not for the server."""
    _deadline: float = NEVER
    _refused: bool = False
    _answer: bytes = b""
    """What a refused guest is still to be told."""

    # -- the verdict

    def _read(self, buffers: list[Buffer], now: float) -> None:
        """Judge what is there, as soon as that can be done."""
        for octets in self._unseen(buffers):
            self.reader.feed(octets)
        if self._seen:
            self._begin_to_wait(now)
        if self._seen >= FLIGHT_MAXIMUM or self.flow.guest_state not in _GUEST_SPEAKS:
            self.reader.end()
        self._judge(now)

    def _begin_to_wait(self, now: float) -> None:
        if self._deadline == NEVER:
            self._deadline = now + SPEECH_TIME
            self.alarms.arm(self)

    def _unseen(self, buffers: list[Buffer]) -> Iterator[Buffer]:
        """Of what is queued, that which was not read before."""
        skip = self._seen - self._sent
        for piece in buffers:
            if skip < len(piece):
                self._seen += len(piece) - skip
                yield memoryview(piece)[skip:] if skip else piece
            skip = max(0, skip - len(piece))

    def _judge(self, now: float) -> None:
        request = evolve(self.decision.request, flight=as_judged(self.reader.flight))
        if request.flight != self.decision.request.flight:
            self._decide(request, now)

    def _decide(self, request: FlowRequest, now: float) -> None:
        self.decision = self.admission.decide(self.decision.guest, request, now)
        self.flow.decision = self.decision  # what a new policy is asked about

    def _refuse(self, now: float) -> None:
        """The guest is told, and the server hears of nothing but a reset."""
        self._refused = True
        self.stream.reset()
        if self.admission.drops:
            self.flow.counters.count("policy.dropped")
            self._deadline = now + SILENCE_TIME
            self.alarms.arm(self)
            return
        self._answer = _answer_to(self.decision)
        if self._answer:
            self._deadline = now + FAREWELL_TIME
            self.alarms.arm(self)
        else:
            self.flow.on_host_failed(None, now)

    def on_policy(self, now: float) -> None:
        """Another policy holds: what is still held may be let through at once."""
        if self.decision.verdict.hold:
            self._decide(self.decision.request, now)

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
            self.reader.end()
            self._judge(now)
            if self.decision.verdict.action != ALLOW:
                self._refuse(now)
            # Otherwise the octets are still the flow's: its flush offers them again.

    # -- HostStream

    def send(self, buffers: list[Buffer], now: float) -> int:
        """None is taken while the verdict is open; all, and thrown away, once it is no."""
        if self.decision.verdict.hold:
            self._read(buffers, now)
        if self.decision.verdict.hold:
            return 0
        if self._refused:
            return sum(map(len, buffers))
        if self._following is None:
            if self.decision.verdict.action != ALLOW:
                self._refuse(now)
                return sum(map(len, buffers))
            self.alarms.forget(self)
            self._following = self._follow()
            self._seen = 0
        if isinstance(self._following, RequestStream):
            return self._send_requests(self._following, buffers, now)
        if isinstance(self._following, HelloStream):
            return self._send_hellos(self._following, buffers, now)
        return self._step_aside(buffers, now)

    def _follow(self) -> RequestStream | HelloStream | None:
        """What has to be read of what follows the first flight."""
        if self.decision.request.flight.speech is Speech.HTTP:
            return RequestStream(self.decision.request.port)
        hello = self.reader.flight.hello
        return HelloStream(hello) if hello is not None else None

    def _step_aside(self, buffers: list[Buffer], now: float) -> int:
        self.flow.host = self.stream
        return self.stream.send(buffers, now)

    def _send_requests(self, requests: RequestStream, buffers: list[Buffer], now: float) -> int:
        """As far as requests were judged; one that may not pass ends the connection."""
        for octets in self._unseen(buffers):
            requests.feed(octets)
        while requests.pending is not None and self._admits(requests.pending, now):
            requests.admit()
        if requests.allowed > self._sent:
            return self._send_first(requests.allowed - self._sent, buffers, now)
        self._blocked = True
        if requests.why is not None:
            asked = evolve(self.decision.request, protocol="http")
            return self._end_or_learn(asked, _why(requests.why), buffers, now)
        if requests.pending is not None:
            return self._end(buffers, now)
        return 0

    def _send_hellos(self, hellos: HelloStream, buffers: list[Buffer], now: float) -> int:
        """As far as a server would find no other hello; one for another server ends it."""
        for octets in self._unseen(buffers):
            hellos.feed(octets)
        if hellos.is_done:
            return self._step_aside(buffers, now)
        if hellos.allowed > self._sent:
            return self._send_first(hellos.allowed - self._sent, buffers, now)
        self._blocked = True
        if hellos.why is not None:
            return self._end_or_learn(self.decision.request, _why(hellos.why), buffers, now)
        return 0

    def _send_first(self, room: int, buffers: list[Buffer], now: float) -> int:
        self._blocked = False
        taken = self.stream.send(_first(buffers, room), now)
        self._sent += taken
        return taken

    def _end_or_learn(self, asked: FlowRequest, why: Why, buffers: list[Buffer], now: float) -> int:
        """What follows may not pass, unless a policy is only being learned."""
        told = self.admission.told(Decision(self.decision.guest, asked, Verdict(DENY, why)), now)
        if told.verdict.action == ALLOW:
            return self._step_aside(buffers, now)
        return self._end(buffers, now)

    def _end(self, buffers: list[Buffer], now: float) -> int:
        """Amid what was admitted there is nothing to say but a reset."""
        self.flow.counters.count("policy.request_refused")
        self._refused = True
        self.stream.reset()
        self.flow.on_host_failed(None, now)
        return sum(map(len, buffers))

    def _admits(self, request: Request, now: float) -> bool:
        flight = Flight(Speech.HTTP, request.name)
        if flight != self.decision.request.flight:  # as that of the request before
            asked = evolve(self.decision.request, flight=flight)
            self._decide(asked, now)
        return self.decision.verdict.action == ALLOW

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
        """While octets are held, nobody waits for room for them; a guest that has sent all but the
        first has begun to speak, too."""
        if self.decision.verdict.hold and self.flow.receiver.out_of_order:
            self._begin_to_wait(now)
        if not self._refused:
            self.stream.watch(read, write and not self._blocked, now)
            return
        room = self.flow.room()
        if self._answer and room > 0:
            said, self._answer = self._answer[:room], self._answer[room:]
            self.flow.on_host_data(said, len(said), now)
            self.touch(self.flow)
            if not self._answer:
                self.flow.on_host_eof(now)


def as_judged(first: FirstFlight) -> Flight:
    """What was read, as the judge takes it."""
    if first.is_open:
        possible = {Speech(kind.value) for kind in first.possible}
        if possible - {Speech.OTHER}:
            possible.add(Speech.UNREADABLE)
        return Flight(Speech.OPEN, None, frozenset(possible))
    if first.kind is None or first.why not in (None, *NAMELESS):
        return Flight(Speech.UNREADABLE)
    return Flight(Speech(first.kind.value), first.name)


def _why(reason: str) -> Why:
    """What is wrong with what follows a first flight, as an audit tells it."""
    return _WHYS.get(reason, Why.UNREADABLE if reason.startswith("tls.") else Why.FRAMING)


def _first(buffers: list[Buffer], length: int) -> list[Buffer]:
    """The first `length` octets."""
    taken: list[Buffer] = []
    for piece in buffers:
        if length <= 0:
            break
        taken.append(piece if len(piece) <= length else memoryview(piece)[:length])
        length -= len(piece)
    return taken


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
