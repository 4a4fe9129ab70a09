"""The fake guest's TCP: the server's own engine, turned round.

The engine's "guest" is here whoever is at the other end, and its "host half" is the test: a
`TcpStream` holds what it reads and writes. So what is tested is spoken to by a TCP that is itself
tested to the letter, and not by a model of one.
"""

import errno

import trio
from attrs import define, field

from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.opening import TcpSettings, call_guest, open_flow
from qemu_usernat.nat.tcp.states import GUEST_GONE, GuestState
from qemu_usernat.primitives.addresses import Address, FlowKey, MacAddress, format_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import add
from qemu_usernat.testing.fake_guest.link import STALLED_AT
from qemu_usernat.testing.fake_guest.ports import Ports
from qemu_usernat.testing.fake_guest.stack import Stack
from qemu_usernat.testing.fake_guest.stream import Socket, TcpStream
from qemu_usernat.wire.emit import SegmentTemplate
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import ACK, FIN, RST, SYN, TCP, Buffer, IpPacket, TcpSegment

_OPENING = frozenset({GuestState.SYN_SENT, GuestState.SYN_RECEIVED})


class _Line:
    """The way of one flow's segments: a `GuestWire`."""

    def __init__(self, table: "TcpTable", mac: MacAddress, key: FlowKey) -> None:
        remote, remote_port, ours, our_port = key
        self._table = table
        self._template = SegmentTemplate(mac, table.stack.mac, ours, our_port, remote, remote_port)
        self.flow: TcpFlow | None = None

    def send(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: Buffer = b"",
        options: bytes = b"",
    ) -> None:
        """One segment."""
        link = self._table.stack.link
        link.queued += self._template.append(
            link.outbox, sequence, acknowledgment, flags, window, payload, options
        )

    def send_each(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: memoryview,
        size: int,
    ) -> None:
        """Segments of `size` octets."""
        link = self._table.stack.link
        link.queued += self._template.append_each(
            link.outbox, sequence, acknowledgment, flags, window, payload, size
        )

    def refuse(self, error: IcmpError, now: float) -> None:
        """A guest sends no ICMP error about a SYN."""

    def stalled(self) -> bool:
        """Whether the link takes no more for now."""
        if self._table.stack.link.queued < STALLED_AT or self.flow is None:
            return False
        self._table.waiting.append(self.flow)
        return True


@define(eq=False)
class TcpListener:
    """A port at which the guest is called; as a context manager it is closed at the end."""

    port: int
    _table: "TcpTable"
    called: list[tuple[TcpFlow, Socket]] = field(factory=list)
    """Those who have called, and were not yet accepted."""

    def __enter__(self) -> "TcpListener":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def accept(self, timeout: float = 10.0) -> TcpStream:  # noqa: ASYNC109
        """The next connection."""

        def look() -> TcpStream | None:
            for call in self.called:
                flow, sock = call
                if flow.guest_state not in _OPENING and flow.guest_state is not GuestState.SYN_HELD:
                    self.called.remove(call)
                    return TcpStream(flow, sock, self._table.stack, self._table.touch)
            return None

        await trio.lowlevel.checkpoint()
        what = f"nobody connected to TCP port {self.port}"
        return await self._table.stack.until(look, timeout, what)

    def close(self) -> None:
        """Whoever calls from now on is refused."""
        self._table.listeners.pop(self.port, None)


class TcpTable:
    """The guest's connections, and their timers."""

    def __init__(self, stack: Stack, secret: bytes) -> None:
        self.stack = stack
        self.waiting: list[TcpFlow] = []
        """Flows that stopped as the link took no more."""
        self.listeners: dict[int, TcpListener] = {}
        self._secret = secret
        self._flows: dict[FlowKey, TcpFlow] = {}
        self._touched: list[TcpFlow] = []
        self._alarms = Alarms()
        self._alarm = trio.CancelScope()
        self._used: set[int] = set()
        self._ports = Ports("TCP", self._used)
        stack.on_tcp = self.on_segment
        stack.transports[TCP] = self
        stack.flush = self.flush

    # -- turns

    def touch(self, flow: TcpFlow) -> None:
        """Something happened to `flow`."""
        if not flow.touched:
            flow.touched = True
            self._touched.append(flow)

    def on_room(self) -> None:
        """The link takes frames again."""
        waiting, self.waiting = self.waiting, []
        for flow in waiting:
            self.touch(flow)
        if waiting:
            self.stack.end_turn()

    def flush(self, now: float) -> None:
        """Every flow that was touched pays what it owes."""
        while self._touched:
            touched, self._touched = self._touched, []
            for flow in touched:
                flow.touched = False
                sock = flow.host
                assert isinstance(sock, Socket)
                flow.flush(now)
                while sock.ready():
                    sock.report(now)
                    flow.flush(now)
                if flow.finished:
                    self._forget(flow)
                else:
                    self._alarms.arm(flow)
        self._alarm.deadline = min(self._alarm.deadline, self._alarms.earliest())

    def _forget(self, flow: TcpFlow) -> None:
        if self._flows.get(flow.key) is flow:
            del self._flows[flow.key]
            self._used.discard(flow.key[3])
        self._alarms.forget(flow)

    async def serve_deadlines(self) -> None:
        """Wake the flows whose time has come, for ever."""
        while True:
            with trio.CancelScope() as self._alarm:
                self._alarm.deadline = self._alarms.earliest()
                await trio.sleep_forever()
            now = trio.current_time()
            for flow in self._alarms.ring(now):
                assert isinstance(flow, TcpFlow)
                self.touch(flow)
                flow.on_deadline(now)
            self.stack.end_turn()

    # -- calling

    async def connect(
        self,
        address: Address,
        port: int,
        timeout: float,  # noqa: ASYNC109
        local_port: int = 0,
    ) -> TcpStream:
        """A connection to `address`; OSError as connect(2) has it."""
        where = f"{format_address(address)} port {port}"
        mac = await self.stack.next_hop(address)
        local_port = self._ports.take(local_port)
        key = (address, port, self.stack.address, local_port)
        line, sock = _Line(self, mac, key), Socket()
        now = trio.current_time()
        flow = call_guest(key, line, sock, self._settings(), Counters(), now)
        line.flow = sock.flow = flow
        self._flows[key] = flow
        self._used.add(local_port)
        self.touch(flow)
        self.stack.end_turn()

        def look() -> bool | None:
            if flow.guest_state in GUEST_GONE:
                raise _refusal(flow, where)
            if sock.error is not None:  # an ICMP error
                raise sock.error
            return None if flow.guest_state in _OPENING else True

        try:
            await self.stack.until(look, timeout, f"{where} did not answer")
        except BaseException:
            flow.abandon()
            self._forget(flow)
            raise
        return TcpStream(flow, sock, self.stack, self.touch)

    def _settings(self) -> TcpSettings:
        return TcpSettings(self.stack.mtu, self._secret)

    def listen(self, port: int) -> TcpListener:
        """A port at which the guest may be called."""
        if port in self.listeners:
            raise OSError(errno.EADDRINUSE, f"TCP port {port} is in use")
        if not 0 < port < 65536:
            raise ValueError(f"port is from 1 to 65535, not {port}")
        listener = self.listeners[port] = TcpListener(port, self)
        return listener

    # -- segments

    def on_segment(self, segment: TcpSegment, packet: IpPacket, mac: MacAddress) -> None:
        """Of a flow, of none, or the start of one."""
        now = trio.current_time()
        key = (packet.source, segment.source_port, packet.destination, segment.destination_port)
        flow = self._flows.get(key)
        opens = segment.flags & (SYN | ACK | RST | FIN) == SYN
        if flow is not None and opens and flow.yields_to_syn(segment.sequence, now):
            self.touch(flow)
            flow = None
        if flow is not None:
            self.touch(flow)
            if flow.guest_state is GuestState.SYN_SENT and segment.flags & SYN:
                flow.on_answer(segment, now)
            else:
                flow.on_segment(
                    segment.sequence,
                    segment.acknowledgment,
                    segment.flags,
                    segment.window,
                    segment.payload,
                    len(segment.payload),
                    now,
                    segment.selective,
                )
        elif opens and segment.destination_port in self.listeners:
            self._on_call(self.listeners[segment.destination_port], key, segment, mac, now)
        elif not segment.flags & RST:
            self._refuse(key, segment, mac)

    def _on_call(
        self, listener: TcpListener, key: FlowKey, syn: TcpSegment, mac: MacAddress, now: float
    ) -> None:
        line, sock = _Line(self, mac, key), Socket()
        flow = open_flow(key, syn, line, self._settings(), Counters(), now)
        line.flow = sock.flow = flow
        flow.dial(sock)
        flow.on_host_connected(now)
        self._flows[key] = flow
        self.touch(flow)
        listener.called.append((flow, sock))

    def _refuse(self, key: FlowKey, segment: TcpSegment, mac: MacAddress) -> None:
        """A segment of no connection is reset (RFC 9293, 3.10.7.1)."""
        line = _Line(self, mac, key)
        if segment.flags & ACK:
            line.send(segment.acknowledgment, 0, RST, 0)
            return
        length = len(segment.payload) + bool(segment.flags & SYN) + bool(segment.flags & FIN)
        line.send(0, add(segment.sequence, length), RST | ACK, 0)

    def on_error(self, ports: tuple[int, int], remote: Address, error: OSError) -> None:
        """An ICMP error; it ends a connection that is being opened, and no other (RFC 5461)."""
        flow = self._flows.get((remote, ports[1], self.stack.address, ports[0]))
        if flow is not None and flow.guest_state in _OPENING:
            sock = flow.host
            assert isinstance(sock, Socket)
            sock.error = error


def _refusal(flow: TcpFlow, where: str) -> OSError:
    if flow.counters["tcp.gave_up"]:
        return OSError(errno.ETIMEDOUT, f"{where} did not answer")
    return OSError(errno.ECONNREFUSED, f"{where} refused the connection")
