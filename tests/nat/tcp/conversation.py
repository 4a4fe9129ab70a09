"""A TCP flow between a guest and a host that follow a script, and the clock on the wall.

The guest speaks in positions, not in sequence numbers: 0 is the first octet after a SYN, in
either direction. `Line` is everything the flow may say to a guest and checks, at each
segment, what no guest may ever see; `Socket` is a kernel's stream socket with a poller that
reports readiness only where the flow asked for it. Both serve the model tests as well.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attrs import define, evolve, field, frozen

from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.opening import TcpSettings, call_guest, open_flow
from qemu_usernat.nat.tcp.receiver import WINDOW_SCALE
from qemu_usernat.nat.tcp.states import GuestState, HostState
from qemu_usernat.primitives.addresses import FlowKey
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import add, difference
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.icmp import IcmpError, unreachable
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, Buffer, TcpSegment
from qemu_usernat.wire.tcp_options import selective_edges

KEY: FlowKey = (b"\x0a\0\x02\x0f", 40000, b"\xc6\x33\x64\x07", 80)
SECRET = b"0123456789abcdef"
MTU = 1500
MSS = MTU - 40
GUEST_ISN = 1000
OUR_ISN = 5000

_NAMES = ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"))


def names(flags: int) -> str:
    """SYN,ACK and the like."""
    return ",".join(name for bit, name in _NAMES if flags & bit) or "none"


@frozen
class Segment:
    """A segment as the guest's kernel reads it: positions, and a window in octets."""

    flags: int
    at: int
    ack: int
    window: int
    payload: bytes = b""
    options: bytes = b""
    selective: tuple[tuple[int, int], ...] = ()
    """Blocks that are acknowledged beyond a gap, or as having come twice."""

    @property
    def end(self) -> int:
        return self.at + len(self.payload)

    def __repr__(self) -> str:
        return (
            f"<{names(self.flags)} at {self.at}+{len(self.payload)} ack {self.ack} "
            f"window {self.window}>"
        )


@define(eq=False)
class Line:
    """The guest's link: keeps what the flow sends, and watches over it."""

    guest_isn: int
    our_isn: int
    scale: int
    """Shift of the windows that the flow sends."""
    segments: deque[Segment] = field(factory=deque)
    refusals: list[int] = field(factory=list)
    is_stalled: bool = False
    edge: int = 0
    """The furthest that the guest has been allowed to send."""
    acknowledged: int = -1

    def send(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: Buffer = b"",
        options: bytes = b"",
    ) -> None:
        assert 0 <= sequence < 1 << 32
        assert 0 <= acknowledgment < 1 << 32
        assert 0 <= window <= 0xFFFF
        assert len(options) % 4 == 0
        scale = 0 if flags & SYN else self.scale
        origin = add(self.guest_isn, 1)
        edges = [difference(edge, origin) for edge in selective_edges(options)]
        segment = Segment(
            flags,
            difference(sequence, add(self.our_isn, 1)),
            difference(acknowledgment, origin),
            window << scale,
            bytes(payload),
            options,
            tuple(zip(edges[::2], edges[1::2], strict=True)),
        )
        if flags & ACK and not flags & RST:
            self._check_promises(segment, 1 << scale)
        self.segments.append(segment)

    def send_each(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: memoryview,
        size: int,
    ) -> None:
        for start in range(0, len(payload), size):
            last = start + size >= len(payload)
            self.send(
                add(sequence, start),
                acknowledgment,
                flags if last else flags & ~PSH,
                window,
                payload[start : start + size],
            )

    def _check_promises(self, segment: Segment, unit: int) -> None:
        assert segment.ack >= self.acknowledged, "an acknowledgment taken back"
        self.acknowledged = segment.ack
        edge = segment.ack + segment.window
        # Only a full queue may cost less than one unit of the scale. A SYN,ACK is not scaled,
        # and repeated it cannot say how large the window is by now.
        assert segment.flags & SYN or edge > self.edge - unit, (
            f"window shrunk from {self.edge} to {edge}"
        )
        self.edge = max(self.edge, edge)

    def refuse(self, error: IcmpError, now: float) -> None:
        self.refusals.append(error.code)

    def stalled(self) -> bool:
        return self.is_stalled


@define(eq=False)
class Socket:
    """The host half: a kernel's socket to a server, and the poller that watches it."""

    flow: TcpFlow = field(init=False)
    received: bytearray = field(factory=bytearray)
    """What the server's kernel has taken."""
    takes: float = float("inf")
    """Octets that its buffer has room for."""
    most: float = float("inf")
    """Octets that one call takes at most: a short write."""
    incoming: bytearray = field(factory=bytearray)
    """What the server has said and the flow has not read."""
    ended: bool = False
    broken: bool = False
    shut_fails: bool = False
    shut: bool = False
    was_reset: bool = False
    closed: bool = False
    reading: bool = False
    writing: bool = False
    _eof_read: bool = False

    # HostStream

    def send(self, buffers: list[Buffer], now: float) -> int:
        assert not self.closed, "a write to a closed descriptor"
        assert not self.shut, "octets after our FIN"
        if self.broken:
            self.flow.on_host_failed(None, 0.0)
            return 0
        octets = b"".join(buffers)
        taken = int(min(len(octets), self.takes, self.most))
        self.received += octets[:taken]
        self.takes -= taken
        return taken

    def shutdown(self) -> None:
        assert not self.closed, "shutdown of a closed descriptor"
        if self.shut_fails:
            self.flow.on_host_failed(None, 0.0)
        else:
            self.shut = True

    def reset(self) -> None:
        assert not self.closed, "reset of a closed descriptor"
        self.was_reset = True

    def hang_up(self) -> None:
        assert not self.closed, "a closed descriptor hangs up"
        assert self.shut, "no FIN before it"
        self.was_reset = True  # by the kernel, when it has delivered what it took

    def close(self) -> None:
        assert not self.closed, "a descriptor closed twice"
        self.closed = True

    def watch(self, read: bool, write: bool, now: float) -> None:
        assert not self.closed, "a closed descriptor is watched"
        self.reading, self.writing = read, write

    # the poller

    def ready(self) -> bool:
        """Whether the poller would report anything: readiness that nobody asked for is lost."""
        if self.closed:
            return False
        readable = self.incoming or self.broken or (self.ended and not self._eof_read)
        return bool((self.reading and readable) or (self.writing and (self.takes or self.broken)))

    def report(self, now: float) -> None:
        """One report of the poller; the flow is flushed by the caller."""
        flow = self.flow
        room = flow.room()
        if not self.reading:
            return  # writable: the flush writes
        if room > 0 and self.incoming:
            octets = bytes(self.incoming[:room])
            del self.incoming[:room]
            flow.on_host_data(octets, len(octets), now)
        elif self.incoming:
            flow.on_host_waiting()
        elif self.broken:
            flow.on_host_failed(None, now)
        elif self.ended and not self._eof_read:
            self._eof_read = True
            flow.on_host_eof(now)


class Conversation:
    """A flow that has got the guest's SYN, and whoever talks through it."""

    def __init__(
        self,
        *,
        mss: int | None = MSS,
        scale: int | None = 7,
        window: int = 65535,
        isn: int = GUEST_ISN,
        our_isn: int = OUR_ISN,
        mtu: int = MTU,
        selective: bool = False,
        congestion: str = "none",
        calling: bool = False,
    ) -> None:
        """The guest has sent a SYN, or with `calling` is sent one."""
        self.now = 1000.0
        self.counters = Counters()
        self.line = Line(isn, our_isn, 0 if scale is None else WINDOW_SCALE)
        self.syn = TcpSegment(40000, 80, isn, 0, SYN, window, mss, scale, selective)
        settings = TcpSettings(mtu, SECRET, congestion)
        self.host = Host(self)
        if calling:
            self.flow = call_guest(
                KEY, self.line, self.host.socket, settings, self.counters, self.now
            )
            our_isn = self.line.our_isn = self.flow.sender.initial_sequence
            self.line.segments[-1] = evolve(self.line.segments[-1], at=-1)
        else:
            self.flow = open_flow(KEY, self.syn, self.line, settings, self.counters, self.now)
            self.flow.sender.initial_sequence = our_isn
            self.flow.dial(self.host.socket)
        self.host.socket.flow = self.flow
        self.guest = Guest(self, isn, our_isn, 0 if scale is None else scale, window)
        self._depth = 0

    @classmethod
    def open(cls, **options: int | str | None) -> "Conversation":
        """After the handshake; nothing has been said."""
        talk = cls(**options)  # type: ignore[arg-type]
        talk.host.connects()
        talk.guest.gets(SYN | ACK)
        talk.guest.sends(ACK)
        talk.guest.gets_nothing()
        return talk

    @property
    def states(self) -> tuple[GuestState, HostState]:
        return self.flow.guest_state, self.flow.host_state

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Everything inside happens in one turn."""
        self._depth += 1
        yield
        self._depth -= 1
        if not self._depth:
            self.end_turn()

    def end_turn(self) -> None:
        """Flush, then let the poller report until it has nothing more to say."""
        self.flow.flush(self.now)
        self.guest.forget_buffers()
        for _ in range(10_000):
            if not self.host.socket.ready():
                return
            self.host.socket.report(self.now)
            self.flow.flush(self.now)
        raise AssertionError("the poller reports for ever: a loop that spins")

    def advance(self, seconds: float) -> None:
        """Let time pass, alarm by alarm."""
        end = self.now + seconds
        for _ in range(100_000):
            deadline = self.flow.deadline()
            if deadline > end:
                self.now = end
                return
            self.now = max(self.now, deadline)
            self.flow.on_deadline(self.now)
            self.end_turn()
        raise AssertionError(f"the alarm rings for ever at {self.now}")

    def assert_over(self) -> None:
        """Nothing is owed to anybody."""
        assert self.flow.finished, self.states
        assert self.flow.deadline() == NEVER
        assert self.host.socket.closed


class Guest:
    """The guest's kernel, by hand: it sends what the test says."""

    def __init__(self, talk: Conversation, isn: int, our_isn: int, scale: int, window: int) -> None:
        self._talk = talk
        self._isn = isn
        self._our_isn = our_isn
        self._scale = scale
        self._buffers: list[bytearray] = []
        self.window = window << scale
        """What it offers, in octets."""
        self.position = 0
        """SND.NXT"""
        self.expects = 0
        """RCV.NXT"""

    def sends(
        self,
        flags: int,
        payload: bytes = b"",
        *,
        at: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        selective: Iterable[tuple[int, int]] = (),
    ) -> None:
        """A segment at the next position, unless `at` says where; what it takes, it takes.

        A SYN stands at -1. `ack` is a position too: by default all that was got; `selective` are
        blocks of positions, (start, end).
        """
        if window is not None:
            self.window = window
        start = at if at is not None else -1 if flags & SYN else self.position
        if at is None and not flags & SYN:
            self.position += len(payload) + bool(flags & FIN)
        buffer = bytearray(payload)
        self._buffers.append(buffer)
        with self._talk.turn():
            sequence = add(self._isn, 1 + start)
            acknowledgment = add(self._our_isn, 1 + (self.expects if ack is None else ack))
            if self._talk.flow.guest_state is GuestState.SYN_SENT and flags & SYN:
                self._talk.flow.on_answer(
                    evolve(
                        self._talk.syn,
                        sequence=sequence,
                        acknowledgment=acknowledgment,
                        flags=flags,
                    ),
                    self._talk.now,
                )
                return
            self._talk.flow.on_segment(
                sequence,
                acknowledgment,
                flags,
                min(self.window if flags & SYN else self.window >> self._scale, 0xFFFF),
                memoryview(buffer),
                len(payload),
                self._talk.now,
                tuple(add(self._our_isn, 1 + edge) for block in selective for edge in block),
            )

    def forget_buffers(self) -> None:
        """The link's buffer is used again after the turn."""
        for buffer in self._buffers:
            buffer[:] = b"\xee" * len(buffer)
        self._buffers.clear()

    def gets(
        self,
        flags: int | None = None,
        payload: bytes | None = None,
        *,
        at: int | None = None,
        ack: int | None = None,
    ) -> Segment:
        """The next segment, which must be this; PSH is only looked at if it is asked for."""
        assert self._talk.line.segments, "nothing was sent to the guest"
        segment = self._talk.line.segments.popleft()
        if flags is not None:
            seen = segment.flags if flags & PSH else segment.flags & ~PSH
            assert seen == flags, f"{segment}, not {names(flags)}"
        assert payload is None or segment.payload == payload
        assert at is None or segment.at == at, segment
        assert ack is None or segment.ack == ack, segment
        if segment.at == self.expects and not segment.flags & (SYN | RST):
            self.expects = segment.end + bool(segment.flags & FIN)
        return segment

    def gets_nothing(self) -> None:
        segments = list(self._talk.line.segments)
        assert not segments, segments

    def gets_stream(self) -> bytes:
        """Everything that has come, put in order."""
        stream = b""
        while self._talk.line.segments:
            expected = self.expects
            segment = self.gets()
            if segment.at == expected:
                stream += segment.payload
        return stream

    def loses_everything(self) -> list[Segment]:
        """What is on its way never arrives."""
        lost = list(self._talk.line.segments)
        self._talk.line.segments.clear()
        return lost


class Host:
    """The server and its kernel, by hand."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self.socket = Socket()

    @property
    def received(self) -> bytes:
        return bytes(self.socket.received)

    def connects(self) -> None:
        with self._talk.turn():
            self._talk.flow.on_host_connected(self._talk.now)

    def fails(self, code: int | None = None) -> None:
        """connect(2) fails, or the socket reports an error."""
        with self._talk.turn():
            refusal = None if code is None else unreachable(code)
            self._talk.flow.on_host_failed(refusal, self._talk.now)

    def says(self, octets: bytes) -> None:
        with self._talk.turn():
            self.socket.incoming += octets

    def ends(self) -> None:
        with self._talk.turn():
            self.socket.ended = True

    def breaks(self) -> None:
        """The server resets: whoever reads or writes next is told."""
        with self._talk.turn():
            self.socket.broken = True

    def takes(self, octets: float) -> None:
        """The socket's buffer has room for so many from now on."""
        with self._talk.turn():
            self.socket.takes = octets


def in_state(state: GuestState) -> Conversation:
    """A conversation that has come to `state` on the plain way, with nothing on the line.

    The guest's FIN and ours, where there are any, have taken their positions.
    """
    talk = Conversation(calling=state is GuestState.SYN_SENT)
    guest, host = talk.guest, talk.host
    if state is GuestState.SYN_SENT:
        guest.gets(SYN, at=-1)
        return talk
    if state is GuestState.SYN_HELD:
        return talk
    host.connects()
    guest.gets(SYN | ACK)
    if state is GuestState.SYN_RECEIVED:
        return talk
    guest.sends(ACK)
    we_close_first = (
        GuestState.FIN_WAIT_1,
        GuestState.FIN_WAIT_2,
        GuestState.CLOSING,
        GuestState.TIME_WAIT,
    )
    if state in we_close_first:
        host.ends()
        guest.gets(FIN | ACK)
        if state in (GuestState.FIN_WAIT_2, GuestState.TIME_WAIT):
            guest.sends(ACK)
        if state is GuestState.TIME_WAIT:
            guest.sends(FIN | ACK)
            guest.gets(ACK)
        if state is GuestState.CLOSING:
            guest.sends(FIN | ACK, ack=0)
            guest.gets(ACK)
    elif state in (GuestState.CLOSE_WAIT, GuestState.LAST_ACK):
        guest.sends(FIN | ACK)
        guest.gets(ACK)
        if state is GuestState.LAST_ACK:
            host.ends()
            guest.gets(FIN | ACK)
    assert talk.flow.guest_state is state
    guest.gets_nothing()
    return talk
