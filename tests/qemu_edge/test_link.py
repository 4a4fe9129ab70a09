"""A link over a real socket pair: QEMU's stream on one end, a switch on the other."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from qemu_usernat import poller
from qemu_usernat.lan.port import STALLED_AT
from qemu_usernat.lan.switch import Switch
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.qemu.framing import FRAMES_AT_ONCE
from qemu_usernat.qemu.link import Link

GATEWAY = b"\x52\x55\x0a\0\2\2"
GUEST = b"\x52\x54\0\0\0\1"
FRAME = GATEWAY + GUEST + b"\x88\xb5" + b"hello".ljust(46, b"\0")


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


class Room:
    """A QEMU's end of the socket, the link, and what the gateway heard."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.poller = Poller()
        self.heard: list[bytes] = []
        self.closed: list[str] = []
        self.switch = Switch(GATEWAY, lambda frame, now: self.heard.append(bytes(frame)),
                             self.counters)  # fmt: skip
        self.qemu, ours = socket.socketpair()
        ours.setblocking(False)
        self.link = Link(ours, "vm", self.switch, self.poller, self.counters, self._on_close)
        # What a kernel holds by itself varies; here it is as little as it was measured with.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100 * 1024)

    def _on_close(self, link: Link, reason: str) -> None:
        assert link is self.link
        self.closed.append(reason)

    def turn(self) -> bool:
        ready = self.poller.wait()
        self.poller.dispatch(ready, 1.0)
        return bool(ready)

    def queue(self, *frames: bytes) -> None:
        for frame in frames:
            self.link.port.send(framed(frame))
        self.link.transmit()

    def close(self) -> None:
        self.qemu.close()
        self.link.close("the test ends")
        self.poller.close()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """In which no turn has time for more than is handed out in one go."""
    monkeypatch.setattr(poller, "TURN_TIME", 0)
    room = Room()
    yield room
    room.close()


def test_a_turn_takes_as_long_as_it_may(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred frames that cost nothing are no flood; three that cost much are."""
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(poller, "TURN_TIME", 3)
    room.qemu.sendall(framed(FRAME) * 10 * FRAMES_AT_ONCE)
    room.turn()
    assert len(room.heard) == 3 * FRAMES_AT_ONCE


def test_a_turn_is_longer_for_a_link_that_is_alone(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it; once there is another one, somebody does."""
    monkeypatch.setattr(poller, "ALONE_TIME", 5)
    assert room.poller.link_time() == 0
    alone = Poller(alone=True)
    ends = [*socket.socketpair(), *socket.socketpair()]
    with ExitStack() as open_ends:
        for end in ends:
            open_ends.enter_context(end)
        open_ends.callback(alone.close)
        times, links = [], []
        for end in ends[::2]:
            links.append(
                Link(end, "vm", room.switch, alone, room.counters, lambda link, reason: None)
            )
            times.append(alone.link_time())
        links[0].close("it ends")
        times.append(alone.link_time())
        links[1].close("it ends")
    assert times == [5, 0, 5]


def test_a_flood_waits_behind_the_others(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has said more than there was time for is read again in its turn, one after the other; who
    says little is heard at once, each time, and so is one that has calmed down."""
    monkeypatch.setattr(poller, "AGAIN_TIME", 0)
    heard: list[bytes] = []
    room.switch.gateway = lambda frame, now: heard.append(bytes(frame[6:12]))
    ends, links = [], []
    for _ in range(3):
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        links.append(
            Link(ours, "vm", room.switch, room.poller, room.counters, lambda link, reason: None)
        )
        theirs.setblocking(False)
        ends.append(theirs)
    quiet, *floods = ends
    for number, flood in enumerate(floods):
        source = b"\2\0\0\0\0" + bytes([number])
        flood.send(framed(GATEWAY + source + b"\x88\xb5") * 100)
    for number in range(60):
        quiet.send(framed(FRAME))
        heard.clear()
        room.turn()
        assert heard.count(GUEST) == 1
        assert len(heard) <= 1 + FRAMES_AT_ONCE * (1 if number else len(floods))
        for flood in floods:
            with suppress(BlockingIOError):
                flood.send(framed(GATEWAY + b"\2\0\0\0\0\7" + b"\x88\xb5") * 100)
    while room.turn():
        pass
    for _ in range(2):
        heard.clear()
        floods[0].send(framed(FRAME))
        assert room.turn()
        first = len(heard)
        room.turn()
    assert first == 1
    for end, theirs in zip(links, ends, strict=True):
        end.close("the test ends")
        theirs.close()


def test_frames_reach_the_switch(room: Room) -> None:
    """What QEMU writes is what the gateway gets, and where its guest is is known now."""
    room.qemu.sendall(framed(FRAME) * 3)
    assert room.turn()
    assert room.heard == [FRAME] * 3
    assert room.switch.port_of(GUEST) is room.link.port


def test_a_flood_of_tiny_frames_lets_others_have_their_turn(room: Room) -> None:
    """Each turn takes a bounded number; the rest comes though QEMU says nothing more."""
    tiny = [GATEWAY + GUEST + n.to_bytes(2, "big") for n in range(2 * FRAMES_AT_ONCE + 1)]
    stream = b"".join(map(framed, tiny))
    room.qemu.sendall(stream)
    room.qemu.sendall(framed(FRAME))
    turns = []
    while room.turn():
        turns.append(len(room.heard))
        assert len(turns) < 10, "turns without an end"
    assert room.heard == [*tiny, FRAME]
    assert turns[:2] == [FRAMES_AT_ONCE, 2 * FRAMES_AT_ONCE]


@pytest.mark.parametrize("bell_first", [True, False])
def test_frames_are_good_for_the_whole_turn(room: Room, bell_first: bool) -> None:
    """What flows hold of a turn's frames until its end is not written over by the next ones, though
    the rest of a flood and new frames are there at once."""
    views: list[memoryview] = []
    room.switch.gateway = lambda frame, now: views.append(frame)
    tiny = [GATEWAY + GUEST + n.to_bytes(2, "big") for n in range(FRAMES_AT_ONCE + 100)]
    room.qemu.sendall(b"".join(map(framed, tiny)))
    room.turn()
    room.qemu.sendall(framed(FRAME) * 300)
    heard = [bytes(view) for view in views]
    for _ in range(100):
        views.clear()
        ready = sorted(room.poller.wait(), key=lambda each: each[0].data is room.link)
        room.poller.dispatch(ready if bell_first else ready[::-1], 1.0)
        heard += map(bytes, views)
    assert heard == [*tiny, *[FRAME] * 300]


def test_a_flood_and_then_nothing(room: Room) -> None:
    """QEMU is gone, but what its guest said before is heard first."""
    stream = framed(GATEWAY + GUEST + b"\x88\xb5") * (FRAMES_AT_ONCE + 1)
    room.qemu.sendall(stream)
    room.qemu.close()
    room.turn()
    assert room.closed == []
    for _ in range(3):
        room.turn()
    assert len(room.heard) == FRAMES_AT_ONCE + 1
    assert room.closed == ["QEMU closed the connection"]


def test_a_link_that_ends_with_frames_left(room: Room) -> None:
    """After its end nothing more of it reaches the switch."""
    room.qemu.sendall(framed(GATEWAY + GUEST + b"\x88\xb5") * (FRAMES_AT_ONCE + 1))
    room.turn()
    room.link.close("enough")
    room.turn()
    assert not room.turn()
    assert len(room.heard) == FRAMES_AT_ONCE


def test_a_link_that_ends_in_the_middle_of_its_frames(room: Room) -> None:
    """What one of them has shown to be gone says nothing more."""
    heard: list[bytes] = []

    def hear(frame: memoryview, now: float) -> None:
        heard.append(bytes(frame))
        room.link.close("gone")

    room.switch.gateway = hear
    room.qemu.sendall((framed(FRAME) + framed(b"\xff" * 6 + FRAME[6:])) * 3)
    room.turn()
    assert room.closed == ["gone"]
    assert heard == [FRAME]


def test_what_is_queued_reaches_qemu(room: Room) -> None:
    """Frames in their order, and the account of the queue is even afterwards."""
    frames = [bytes([n]) * (60 + n) for n in range(100)]
    room.queue(*frames)
    assert room.qemu.recv(1 << 20) == b"".join(map(framed, frames))
    assert (room.link.port.outbox, room.link.port.queued) == ([], 0)
    assert not room.turn()


def test_a_qemu_that_reads_slowly_gets_every_byte(room: Room) -> None:
    """Writes are cut wherever the socket is full, between frames or within, by thousands."""
    frames = [bytes([n % 251]) * (60 + 37 * n % 900) for n in range(3000)]
    expected = b"".join(map(framed, frames))
    room.qemu.setblocking(False)
    room.queue(*frames)
    assert room.link.port.queued > 0
    received = b""
    while len(received) < len(expected):
        received += room.qemu.recv(10_007)
        room.turn()
        port = room.link.port
        assert port.queued == sum(map(len, port.outbox))
    assert received == expected
    assert not room.turn(), "a link with nothing to write must not be woken for it"


def test_a_stopped_qemu_costs_no_turns(room: Room) -> None:
    """While QEMU does not read nothing is ready, however much is queued."""
    room.queue(*[bytes(60000)] * 20)
    assert room.link.port.queued >= STALLED_AT
    assert room.link.port.stalled()
    assert not room.turn()


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"\0\0\0\0", "link.frame_empty"),
        (b"\0\0\0\x05hello", "link.frame_too_short"),
        (b"GET / HTTP/1.0\r\n\r\n", "link.frame_too_long"),
    ],
)
def test_who_is_no_qemu_is_shown_out(room: Room, octets: bytes, reason: str) -> None:
    """The connection ends with a counted reason; frames before it were heard."""
    room.qemu.sendall(framed(FRAME) + octets)
    room.turn()
    assert room.heard == [FRAME]
    assert room.counters[reason] == 1
    (told,) = room.closed
    assert reason in told
    assert room.qemu.recv(10) == b""
    assert room.switch.ports == []
    assert not room.turn()


def test_a_qemu_that_ends_is_detached(room: Room) -> None:
    """Its port is gone, its address is nowhere, and the owner is told once."""
    room.qemu.sendall(framed(FRAME))
    room.turn()
    room.qemu.close()
    room.turn()
    assert room.closed == ["QEMU closed the connection"]
    assert room.switch.ports == []
    assert room.switch.port_of(GUEST) is None
    room.link.close("again")
    assert len(room.closed) == 1


def test_a_qemu_that_is_killed_while_we_write(room: Room) -> None:
    """A broken pipe ends the link, not the server."""
    room.qemu.close()
    room.queue(FRAME)
    assert len(room.closed) == 1
    assert (room.link.port.outbox, room.link.port.queued) == ([], 0)
    room.link.on_readable(1.0)
    room.link.on_writable(1.0)


def fails_with(error: int) -> Callable[..., object]:
    """A system call that fails, whatever it is asked."""

    def call(*_: object, **__: object) -> object:
        raise OSError(error, os.strerror(error))

    return call


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM])
def test_a_kernel_without_memory_gets_the_frames_later(
    room: Room, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """The link stays, and what could not be written is written when there is memory again."""
    with monkeypatch.context() as short:
        short.setattr(socket.socket, "sendmsg", fails_with(error))
        room.queue(FRAME)
    assert room.turn()
    assert room.qemu.recv(1 << 20) == framed(FRAME)
    assert not room.turn()


def test_a_link_that_cannot_be_watched_is_no_link(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket stays its owner's, and the segment has no port more than before."""
    qemu, ours = socket.socketpair()
    monkeypatch.setattr(Poller, "watch", fails_with(errno.ENOSPC))
    with qemu, ours:
        with pytest.raises(OSError, match="No space"):
            Link(ours, "vm 2", room.switch, room.poller, room.counters, room._on_close)
        assert room.switch.ports == [room.link.port]
        assert room.closed == []


def test_a_link_that_can_no_longer_be_watched_ends(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU may come again: better than a link that nobody serves."""
    with monkeypatch.context() as short:
        short.setattr(Poller, "change", fails_with(errno.ENOMEM))
        room.queue(*[bytes(60000)] * 20)
    assert room.closed == ["[Errno 12] Cannot allocate memory"]
    assert room.switch.ports == []


def test_a_queue_of_more_buffers_than_one_call_takes(room: Room) -> None:
    """The system limits the pieces of one write; nobody notices."""
    room.qemu.setblocking(False)
    pieces = [b"\0\0\0\x3c" + bytes(30), bytes(30)] * 1500
    room.link.port.outbox.extend(pieces)
    room.link.port.queued = sum(map(len, pieces))
    room.link.transmit()
    received = b""
    while len(received) < 1500 * 64:
        received += room.qemu.recv(1 << 20)
        room.turn()
    assert received == b"".join(pieces)


def test_a_bug_closes_the_link(room: Room) -> None:
    """Where the next frame begins nobody knows then: QEMU sees the end, and may come again."""
    room.link.on_bug(1.0)
    assert room.closed == ["an internal error"]
    assert room.qemu.recv(1) == b""
