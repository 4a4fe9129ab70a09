"""One TCP connection of the hermetic internet: a guest's flow on one side, a handler on the other.

`HostConnection` is the flow's host half, in memory; `HostStream` is what the handler holds. The
flow calls within a turn of the server, and then nothing is called back: who is to hear of it is
woken, and runs after the turn. What the handler does is outside of turns, and ends one of its own.
"""

from collections.abc import Callable
from random import Random

import trio

from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.testing.internet.faults import Direction, Reset
from qemu_usernat.testing.internet.records import Connection
from qemu_usernat.testing.internet.timing import Line, Timeline
from qemu_usernat.testing.internet.transit import End, Transit
from qemu_usernat.wire.packets import Buffer

BY_GUEST = "reset by the guest"
BY_HOST = "reset by the host"
CLOSED = "closed"
NO_ANSWER = "no answer"
REFUSED = "refused"
NETWORK_ENDED = "the network ended"


class HostConnection:
    """The host half of one flow; a `HostStream` of the flow's sinks."""

    def __init__(
        self,
        flow: TcpFlow,
        record: Connection,
        lines: tuple[Line, Line],
        chances: tuple[Random, Random],
        timeline: Timeline,
        touch: Callable[[TcpFlow], None],
        end_turn: Callable[[], None],
    ) -> None:
        """`lines` and their `chances` are to the guest and from it; `touch` and `end_turn` the
        server's."""
        self.record = record
        self.broken = False
        """Reset by the guest or by a fault: the handler can do no more."""
        self.deaf = False
        """The handler has closed: what the guest still says is answered by a reset."""
        self.changed = trio.Event()
        """Set when there is news for the handler, and replaced."""
        self._flow: TcpFlow | None = flow
        self._touch, self._end_turn = touch, end_turn
        self._timeline = timeline
        self._fault: Reset | None = None
        self._connected = self._told_eof = self._backlog = False
        self.to_guest = Transit(lines[0], chances[0], timeline, self._on_to_guest)
        self.from_guest = Transit(lines[1], chances[1], timeline, self._on_from_guest)

    # -- opening and breaking, outside of turns

    def connect(self, fault: Reset | None) -> bool:
        """The guest's SYN is answered; False if the guest has given up meanwhile."""
        if self._flow is None:
            return False
        self._connected = True
        self._fault = fault
        self._touch(self._flow)
        self._flow.on_host_connected(trio.current_time())
        self._end_turn()
        if fault is not None and fault.octets == 0:
            self.break_off(End.RESET)
        return True

    def fail(self, reason: str = REFUSED) -> None:
        """The guest is reset at once: instead of an answer to its SYN, or as time itself ends."""
        self._note(reason)
        if self._flow is not None:
            self._touch(self._flow)
            self._flow.on_host_failed(None, trio.current_time())
            self._end_turn()

    def break_off(self, end: End, reason: str = BY_HOST) -> None:
        """Reset the connection, as soon as what was sent before it has gone, or at once."""
        self._note(reason)
        self.broken = True
        self.to_guest.end(end)
        self.wake()

    def budget(self, direction: Direction) -> int | None:
        """How many octets may still go in `direction` until the fault; None if there is none."""
        if self._fault is None or self._fault.direction != direction:
            return None
        transit = self.to_guest if direction == "to guest" else self.from_guest
        return self._fault.octets - transit.put_total

    def _note(self, how: str) -> None:
        """The connection has ended; what was first is what counts."""
        if self.record.ended is None:
            self.record.ended = how

    def wake(self) -> None:
        """There is news for the handler."""
        self.changed.set()
        self.changed = trio.Event()

    # -- for the flow, within turns

    def send(self, buffers: list[Buffer], now: float) -> int:
        """The guest's octets, as far as there is room."""
        free = self.from_guest.free()
        budget = self.budget("from guest")
        if budget is not None:
            free = min(free, budget)
        pieces = []
        for buffer in buffers:
            if not free:
                break
            piece = bytes(buffer[:free])
            free -= len(piece)
            pieces.append(piece)
        octets = b"".join(pieces)
        if octets:
            self.from_guest.put(octets)
        return len(octets)

    def shutdown(self) -> None:
        """The guest sends no more."""
        self.from_guest.end(End.EOF)

    def reset(self) -> None:
        """The guest has reset, or has given up."""
        self._note(BY_GUEST)
        self.from_guest.end(End.RESET)

    def hang_up(self) -> None:
        """The guest has reset after its end: the handler hears what it said, and then this."""
        self.reset()

    def close(self) -> None:
        """The flow has no more to say, and hears no more."""
        self._flow = None
        self.to_guest.clear()
        if not self._connected:
            self._note(NO_ANSWER)
        elif self._told_eof and self.from_guest.ended:
            self._note(CLOSED)
        elif not self.from_guest.ended:
            self._note(NETWORK_ENDED)
            self.from_guest.end(End.RESET)
        self.wake()

    def watch(self, read: bool, write: bool, now: float) -> None:
        """Hand over what the guest's window admits; note whether the flow has more to send."""
        self._backlog = write
        if read:
            self._hand_over(now)

    def _hand_over(self, now: float) -> None:
        """What has arrived at the guest's end, and the end behind it."""
        flow, transit = self._flow, self.to_guest
        if flow is None:
            return
        while transit.arrived and (room := flow.room()) > 0:
            octets = transit.take(room)
            self.record.sent += len(octets)
            flow.on_host_data(octets, len(octets), now)
            self._touch(flow)
            self.wake()
        if transit.aborted or (transit.reset and not transit.arrived):
            flow.on_host_failed(None, now)
            self._touch(flow)
        elif transit.arrived:
            flow.on_host_waiting()
        elif transit.eof and not self._told_eof:
            self._told_eof = True
            flow.on_host_eof(now)
            self._touch(flow)

    # -- arrivals

    def _on_to_guest(self) -> None:
        """Something has arrived at the guest's end; outside of turns."""
        if self._flow is not None:
            self._touch(self._flow)
            self._hand_over(trio.current_time())
            self._end_turn()

    def _on_from_guest(self) -> None:
        """Something has arrived at the host; if octets, perhaps within a turn."""
        transit = self.from_guest
        self.record.received = transit.total
        self.broken = self.broken or transit.reset
        self.wake()
        fault = self._fault
        exhausted = (
            fault is not None and fault.direction == "from guest" and transit.total >= fault.octets
        )
        if exhausted or (self.deaf and transit.arrived):
            self._timeline.at(trio.current_time(), self._on_too_much)

    def _on_too_much(self) -> None:
        """More has come than the handler hears, or than the fault admits."""
        if not self.broken:
            self.break_off(End.ABORT if self.deaf else End.RESET)

    def on_taken(self) -> None:
        """The handler has read: the flow may send more; outside of turns."""
        if self._flow is not None and self._backlog:
            self._touch(self._flow)
            self._end_turn()


class HostStream(trio.abc.HalfCloseableStream):
    """The handler's end of a connection.

    As of a socket: `send_all` waits while neither the guest nor the line takes more;
    `receive_some` returns ``b""`` at the guest's end; `aclose` resets the connection if something
    is left unread. BrokenResourceError when the guest, or a fault of the host, has reset it.
    """

    def __init__(self, connection: HostConnection) -> None:
        self._connection = connection
        self._closed = self._sent_eof = False
        self._sending = _OneTask("another task is sending on this stream")
        self._receiving = _OneTask("another task is receiving from this stream")

    @property
    def record(self) -> Connection:
        """What is noted of this connection: who calls, and how many octets have gone."""
        return self._connection.record

    @property
    def broken(self) -> bool:
        """Whether the guest, or a fault of the host, has reset the connection."""
        return self._connection.broken

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when the line has it, which is before the guest has."""
        with self._sending:
            self._check_sending()
            await trio.lowlevel.checkpoint()
            rest = memoryview(data).cast("B")
            while rest:
                self._check_sending()
                free = await self._room()
                if free:  # not where a fault admits nothing
                    self._connection.to_guest.put(bytes(rest[:free]))
                    rest = rest[free:]
                if self._connection.budget("to guest") == 0:
                    self._connection.break_off(End.RESET)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room for an octet."""
        with self._sending:
            self._check_sending()
            await trio.lowlevel.checkpoint()
            await self._room()

    async def _room(self) -> int:
        """How much may be sent now: at least an octet."""
        connection = self._connection
        while not (free := connection.to_guest.free()):
            await connection.changed.wait()
            self._check_sending()
        budget = connection.budget("to guest")
        return free if budget is None else min(free, budget)

    def _check_sending(self) -> None:
        if self._closed or self._sent_eof:
            raise trio.ClosedResourceError("this direction of the stream is closed")
        self._check_broken()

    def _check_broken(self) -> None:
        if self._connection.broken:
            raise trio.BrokenResourceError(f"the connection was {self.record.ended}")

    async def send_eof(self) -> None:
        """End this direction; the other goes on."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if not self._sent_eof:
                self._check_sending()
                self._sent_eof = True
                self._connection.to_guest.end(End.EOF)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What the guest has sent, at least an octet; ``b""`` at its end."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes!r}; allowed: 1 or more, or None")
        connection = self._connection
        transit = connection.from_guest
        with self._receiving:
            await trio.lowlevel.checkpoint()
            while True:
                if self._closed:
                    raise trio.ClosedResourceError("this stream is closed")
                if transit.arrived:
                    octets = transit.take(transit.octets if max_bytes is None else max_bytes)
                    connection.on_taken()
                    return octets
                if transit.eof:
                    return b""
                self._check_broken()
                await connection.changed.wait()

    async def aclose(self) -> None:
        """Close both directions: in order, or by a reset if something is left unread."""
        self._close(reset=bool(self._connection.from_guest.arrived))
        await trio.lowlevel.checkpoint()

    def reset(self, reason: str = BY_HOST) -> None:
        """Close both directions by a reset, at once."""
        self._close(reset=True, reason=reason)

    def _close(self, reset: bool, reason: str = BY_HOST) -> None:
        if self._closed:
            return
        self._closed = self._connection.deaf = True
        if not self._connection.broken:
            if reset:
                self._connection.break_off(End.ABORT, reason)
            elif not self._sent_eof:
                self._connection.to_guest.end(End.EOF)
        self._connection.wake()


class _OneTask:
    """Only one task at a time may be inside (BusyResourceError)."""

    __slots__ = ("_message", "_taken")

    def __init__(self, message: str) -> None:
        self._message = message
        self._taken = False

    def __enter__(self) -> None:
        if self._taken:
            raise trio.BusyResourceError(self._message)
        self._taken = True

    def __exit__(self, *exception: object) -> None:
        self._taken = False
