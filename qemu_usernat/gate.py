"""A connection whose first octets decide: the gate before the host half of its flow.

It owns what is held. The host is dialled already, and what it says reaches the guest, since some
servers speak first; but of the guest's octets none leaves before the verdict. They stay where they
are, in the flow's receive buffer, so that what is judged is what is sent. A guest that has begun to
speak has ten seconds, and 64 KiB.

Where the verdict is yes, the gate steps aside; over HTTP/1 it stays, and each request is judged
before it passes. Where it is no, the server's side is reset, and the guest is told in the words of
what it speaks: a TLS alert, an HTTP answer; or a reset.
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
from qemu_usernat.policy.judge import Flight, FlowRequest, Speech
from qemu_usernat.policy.reading import FLIGHT_MAXIMUM
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.time import MINUTE, NEVER, SECOND
from qemu_usernat.wire.packets import Buffer

SPEECH_TIME = 10 * SECOND
"""From the guest's first octet to a first flight that can be read."""

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
    _requests: RequestStream | None = None
    """Of HTTP/1, once the first is admitted."""
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
        if self._seen and self._deadline == NEVER:
            self._deadline = now + SPEECH_TIME
            self.alarms.arm(self)
        if self._seen >= FLIGHT_MAXIMUM or self.flow.guest_state not in _GUEST_SPEAKS:
            self.reader.end()
        self._judge(now)

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
            # The octets are still the flow's: its flush offers them again, and finds the verdict.

    # -- HostStream

    def send(self, buffers: list[Buffer], now: float) -> int:
        """None is taken while the verdict is open; all, and thrown away, once it is no."""
        if self.decision.verdict.hold:
            self._read(buffers, now)
        if self.decision.verdict.hold:
            return 0
        if self._requests is not None:
            return self._send_requests(self._requests, buffers, now)
        if self.decision.verdict.action == ALLOW:
            self.alarms.forget(self)
            if self.decision.request.flight.speech is Speech.HTTP:
                self._requests = RequestStream(self.decision.request.port)
                self._seen = 0
                return self._send_requests(self._requests, buffers, now)
            self.flow.host = self.stream
            return self.stream.send(buffers, now)
        if not self._refused:
            self._refuse(now)
        return sum(map(len, buffers))

    def _send_requests(self, requests: RequestStream, buffers: list[Buffer], now: float) -> int:
        """As far as requests were judged; one that may not pass ends the connection."""
        if self._refused:
            return sum(map(len, buffers))
        for octets in self._unseen(buffers):
            requests.feed(octets)
        while requests.pending is not None and self._admits(requests.pending, now):
            requests.admit()
        room = requests.allowed - self._sent
        self._blocked = room == 0
        if room == 0 and (requests.why is not None or requests.pending is not None):
            if requests.why is not None:
                asked = evolve(self.decision.request, protocol="http")
                self.admission.refuse(self.decision.guest, asked, _why(requests.why), now)
            self.flow.counters.count("policy.request_refused")
            self._refused = True
            self.stream.reset()
            self.flow.on_host_failed(None, now)
            return sum(map(len, buffers))
        taken = self.stream.send(_first(buffers, room), now) if room else 0
        self._sent += taken
        return taken

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
        """While octets are held, nobody waits for room for them."""
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
    """What is wrong with a request, as an audit tells it."""
    return {"http.connect": Why.CONNECT, "http.upgrade": Why.UPGRADE}.get(reason, Why.FRAMING)


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
