"""The wire carries every frame as it is, but for what a rule does; and its ends are both told."""

import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing.capture import Capture
from qemu_usernat.testing.fake_guest import FakeGuest
from qemu_usernat.testing.faults import Faults
from qemu_usernat.testing.filters import anything, arp, dns, from_guest, length, tcp, to_guest, udp
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.wire import HELD_MAXIMUM, Lane, Wire
from tests.testing.internet.room import server_of
from tests.testing.sample_frames import arp_frame, numbered, tcp_frame, udp_frame

SITE = "203.0.113.10"


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


def unframed(stream: bytes) -> list[bytes]:
    """The frames of a stream that ends with a whole one."""
    frames = []
    while stream:
        end = 4 + int.from_bytes(stream[:4], "big")
        assert len(stream) >= end, "half a frame"
        frames.append(stream[4:end])
        stream = stream[end:]
    return frames


def as_stream(sock: socket.socket) -> trio.SocketStream:
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


class Ends:
    """A wire with a QEMU and a server that do what the test says."""

    def __init__(self, faults: Faults, server_ends: Any = "disconnect") -> None:
        self.capture = Capture()
        self.wire = Wire("one", self._dial, self.capture, faults, server_ends=server_ends)
        self.servers: list[trio.SocketStream] = []
        self.up = True

    def _dial(self) -> socket.socket:
        if not self.up:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        self.servers.append(as_stream(theirs))
        return ours

    @property
    def server(self) -> trio.SocketStream:
        return self.servers[-1]

    async def close(self) -> None:
        for stream in self.servers:
            await stream.aclose()


@asynccontextmanager
async def carried(
    faults: Faults | None = None, server_ends: Any = "disconnect"
) -> AsyncIterator[tuple[Ends, trio.SocketStream]]:
    """A wire that carries, and QEMU's end of it."""
    ends = Ends(faults or Faults(), server_ends)
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.wire.run, theirs)
        async with as_stream(ours) as qemu:
            await ends.wire.wait_connected()
            yield ends, qemu
        nursery.cancel_scope.cancel()
    await ends.close()


async def heard(stream: trio.SocketStream, seconds: float = 60.0) -> bytes:
    """All that comes until the end of the stream, or within this time."""
    octets = b""
    with trio.move_on_after(seconds):
        while more := await stream.receive_some():
            octets += more
    return octets


# -- whole frames, in order


@settings(max_examples=30)
@given(
    st.lists(st.integers(14, 3000), max_size=20),
    st.lists(st.integers(0, 30_000), max_size=8),
    st.booleans(),
)
def test_frames_however_they_are_cut(sizes: list[int], cuts: list[int], out: bool) -> None:
    """Every frame arrives in order, once, as it was, and is seen by the capture, either way."""
    frames = [numbered(number, max(size - 14, 4)) for number, size in enumerate(sizes)]
    stream = framed(*frames)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]

    async def run() -> None:
        async with carried() as (ends, qemu):
            source, sink = (qemu, ends.server) if out else (ends.server, qemu)
            for start, stop in itertools.pairwise(edges):
                await source.send_all(stream[start:stop])
                await wait_all_tasks_blocked()
            assert unframed(await heard(sink)) == frames
            assert [frame.octets for frame in ends.capture.frames()] == frames
            assert len(ends.capture.frames(from_guest)) == len(frames) * out

    trio.run(run, clock=MockClock(autojump_threshold=0))


FRAMES = [arp_frame(), *(numbered(number) for number in range(60)), *[udp_frame(), tcp_frame()] * 9]

RULES: list[Callable[[Faults], Any]] = [
    lambda faults: faults.drop(udp, probability=0.5),
    lambda faults: faults.drop(arp, count=1),
    lambda faults: faults.delay(udp, 0.5, jitter=1.0, probability=0.7),
    lambda faults: faults.repeat(tcp, probability=0.3),
    lambda faults: faults.reorder(tcp, 2.0, probability=0.5),
    lambda faults: faults.corrupt(tcp | udp | arp, probability=0.5),
    lambda faults: faults.drop(length > 2000),
]


def fates(
    rules: list[Callable[[Faults], Any]], seed: int, cut: int
) -> tuple[list[bytes], list[str]]:
    """What comes out of a lane that is fed `cut` frames at a time, and what befell each."""
    faults, capture = Faults(seed), Capture()
    for make in rules:
        make(faults)
    lane = Lane("one", capture, faults, from_guest=True)
    out = b""
    for first in range(0, len(FRAMES), cut):
        for octets in FRAMES[first : first + cut]:
            lane.enter(octets, 0.0)
        out += b"".join(lane.leave(0.0))
    while (due := lane.deadline()) < float("inf"):
        out += b"".join(lane.leave(due))
    assert lane.held == 0
    return unframed(out), [frame.fate for frame in capture.frames()]


@given(st.lists(st.sampled_from(RULES), max_size=4), st.integers(0, 99), st.integers(1, 80))
def test_any_rules(rules: list[Callable[[Faults], Any]], seed: int, cut: int) -> None:
    """Frames that no rule befell arrive in order, once, as they were; one seed is one fate."""
    arrived, befell = fates(rules, seed, cut)
    assert (arrived, befell) == fates(rules, seed, cut)
    assert sorted(arrived) == sorted(fates(rules, seed, 1)[0]), "however they are read"
    unharmed = [octets for octets, fate in zip(FRAMES, befell, strict=True) if not fate]
    numbers = [octets for octets in arrived if octets[12:14] == b"\x88\xb5"]
    assert numbers == [octets for octets in unharmed if octets[12:14] == b"\x88\xb5"]
    for octets in set(unharmed):
        assert arrived.count(octets) >= unharmed.count(octets)
    lost = sum("dropped" in fate for fate in befell)
    more = len(arrived) - (len(FRAMES) - lost)
    assert more >= 0
    assert (more > 0) >= any(fate.endswith("repeated") for fate in befell)


def test_another_seed_is_another_fate() -> None:
    """Not the same frames are lost each time, if it is not the same seed."""
    assert fates(RULES[:1], 1, 1) != fates(RULES[:1], 2, 1)


# -- rules


def through(faults: Faults, *frames: bytes, now: float = 0.0) -> list[tuple[float, bytes]]:
    """When each frame arrives that enters at `now`."""
    lane = Lane("one", Capture(), faults, from_guest=True)
    for octets in frames:
        lane.enter(octets, now)
    arrived = []
    while (due := lane.deadline()) < float("inf"):
        due = max(due, now)
        arrived += [(due, octets) for octets in unframed(b"".join(lane.leave(due)))]
    return arrived


def test_a_rule_counts_and_ends() -> None:
    """It befalls as many as it should, tells how many, and nothing after it was removed."""
    faults = Faults()
    with faults.drop(arp, count=2) as rule:
        assert through(faults, *[arp_frame()] * 3, udp_frame()) == [
            (0.0, arp_frame()),
            (0.0, udp_frame()),
        ]
        assert rule.hits == 2
        assert repr(rule) == "<drop(arp, count=2): 2 hits>"
        assert repr(faults) == f"<Faults seed 0, [{rule!r}]>"
    assert through(faults, arp_frame()) == [(0.0, arp_frame())]
    rule.remove()
    assert faults.rules == []


def test_a_delayed_frame_is_overtaken_by_others_only() -> None:
    """Those of one rule stay in order, whatever the jitter; the rest does not wait."""
    faults = Faults(3)
    faults.delay(udp, 2.0, jitter=1.0)
    frames = [udp_frame(bytes((number,))) for number in range(20)]
    arrived = through(faults, *frames, arp_frame())
    assert arrived[0] == (0.0, arp_frame())
    assert [octets for _, octets in arrived[1:]] == frames
    assert all(2 <= due <= 3 for due, _ in arrived[1:])
    assert len({due for due, _ in arrived}) > 2


def test_reordered_frames_are_overtaken_by_each_other() -> None:
    """All come within the time, and not in the order in which they went."""
    faults = Faults(3)
    rule = faults.reorder(udp, 0.5)
    frames = [udp_frame(bytes((number,))) for number in range(20)]
    arrived = through(faults, *frames)
    assert [octets for _, octets in arrived] != frames
    assert sorted(octets for _, octets in arrived) == sorted(frames)
    assert all(0 < due <= 0.5 for due, _ in arrived)
    assert rule.hits == 20


def test_repeated_frames_come_twice() -> None:
    """One behind the other."""
    faults = Faults()
    faults.repeat(udp)
    assert through(faults, udp_frame(), arp_frame()) == [
        (0.0, udp_frame()),
        (0.0, udp_frame()),
        (0.0, arp_frame()),
    ]


def test_corrupted_frames_differ_in_one_bit() -> None:
    """Somewhere in the packet; ARP has none, and is no hit."""
    faults = Faults()
    rule = faults.corrupt(anything)
    for _ in range(50):
        ((_, octets),) = through(faults, udp_frame())
        bits = int.from_bytes(octets, "big") ^ int.from_bytes(udp_frame(), "big")
        assert bits.bit_count() == 1
        assert octets[:14] == udp_frame()[:14]
    assert through(faults, arp_frame()) == [(0.0, arp_frame())]
    assert rule.hits == 50


def test_rules_that_cannot_be() -> None:
    """Told by argument, when they are made."""
    faults = Faults()
    for make, error, words in (
        (lambda: faults.drop(udp, probability=2), ValueError, "probability is from 0 to 1, not 2"),
        (lambda: faults.drop(udp, count=0), ValueError, "count is at least 1"),
        (lambda: faults.delay(udp, -1), ValueError, "seconds is a time of 0 seconds or more"),
        (lambda: faults.delay(udp, 1, jitter=-1), ValueError, "jitter is a time"),
        (lambda: faults.drop(False), TypeError, "False is not a filter"),  # type: ignore[arg-type]
    ):
        with pytest.raises(error, match=words):
            make()  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match='server_ends is "disconnect" or "retry"'):
        Ends(faults, server_ends="again")


# -- over sockets


async def test_time_on_the_wire(autojump_clock: MockClock) -> None:
    """A delay is trio's time; the capture sees the frame as it enters."""
    faults = Faults()
    faults.delay(udp, 5.0)
    async with carried(faults) as (ends, qemu):
        await qemu.send_all(framed(udp_frame(), arp_frame()))
        assert unframed(await heard(ends.server, 4.9)) == [arp_frame()]
        assert unframed(await heard(ends.server, 0.2)) == [udp_frame()]
        delayed, passed = ends.capture.frames()
        assert (delayed.fate, passed.fate) == ("delayed", "")
        assert delayed.time == passed.time


async def test_a_pause_holds_everything(autojump_clock: MockClock) -> None:
    """Nothing passes, nothing is lost; delays go on meanwhile."""
    faults = Faults()
    faults.delay(udp, 5.0)
    async with carried(faults) as (ends, qemu):
        await qemu.send_all(framed(udp_frame()))
        await wait_all_tasks_blocked()
        faults.pause()
        faults.pause()
        assert faults.paused
        await qemu.send_all(framed(arp_frame()))
        await ends.server.send_all(framed(tcp_frame()))
        assert await heard(ends.server, 60) == await heard(qemu, 60) == b""
        assert len(ends.capture) == 1
        faults.resume()
        assert sorted(unframed(await heard(ends.server, 1))) == sorted([udp_frame(), arp_frame()])
        assert unframed(await heard(qemu, 1)) == [tcp_frame()]


@pytest.mark.parametrize("out", [True, False])
async def test_who_does_not_read_holds_the_other_back(out: bool, autojump_clock: MockClock) -> None:
    """Within bounds, and nothing is lost; the other direction is free meanwhile."""
    async with carried() as (ends, qemu):
        source, sink = (qemu, ends.server) if out else (ends.server, qemu)
        sent = 0
        frame = numbered(1, 60_000)
        with trio.move_on_after(10):
            while sent < 10 * HELD_MAXIMUM:
                await source.send_all(framed(frame))
                sent += 1
        assert HELD_MAXIMUM / 2 < sent * len(frame) < 2 * HELD_MAXIMUM
        await sink.send_all(framed(arp_frame()))
        assert unframed(await heard(source, 1)) == [arp_frame()]
        arrived = len(await heard(sink, 10)) // len(framed(frame))
        assert arrived == sent, "a frame that was cut by the test's patience is not there"


async def test_ends_cross(autojump_clock: MockClock) -> None:
    """Where one side closes the other is closed, after what was on its way."""
    faults = Faults()
    faults.delay(udp, 0.5)
    async with carried(faults) as (ends, qemu):
        await qemu.send_all(framed(udp_frame(), arp_frame()))
        await qemu.aclose()
        assert unframed(await heard(ends.server)) == [arp_frame(), udp_frame()]
    assert trio.current_time() < 2
    async with carried(faults) as (ends, qemu):
        await ends.server.send_all(framed(udp_frame()))
        await ends.server.aclose()
        assert unframed(await heard(qemu)) == [udp_frame()]
        assert repr(ends.wire) == "<Wire of one, no QEMU and no server>"


async def test_what_is_no_stream_of_frames_ends_it(autojump_clock: MockClock) -> None:
    """An implausible length, as after a half-written frame: what came before it arrives."""
    async with carried() as (ends, qemu):
        await qemu.send_all(framed(arp_frame()) + b"GET / HTTP/1.0\r\n\r\n")
        assert await heard(qemu) == b""
        assert unframed(await heard(ends.server)) == [arp_frame()]


async def test_a_server_that_is_started_again(autojump_clock: MockClock) -> None:
    """QEMU's side stays; what it says meanwhile is lost, and then everything goes on."""
    async with carried(server_ends="retry") as (ends, qemu):
        ends.up = False
        await ends.server.send_all(framed(udp_frame()) + b"\0\0\0\x50half a frame")
        await ends.server.aclose()
        assert unframed(await heard(qemu, 5)) == [udp_frame()]
        await qemu.send_all(framed(arp_frame()))
        with pytest.raises(TimeoutError, match="<Wire of one, no server> after 5 s"):
            await ends.wire.wait_connected(5)
        assert ends.capture.frames(arp)[0].fate == "no server"
        ends.up = True
        await ends.wire.wait_connected()
        await qemu.send_all(framed(tcp_frame()))
        await ends.server.send_all(framed(udp_frame()))
        assert unframed(await heard(ends.server, 1)) == [tcp_frame()]
        assert unframed(await heard(qemu, 1)) == [udp_frame()]
        assert len(ends.servers) == 2


async def test_a_server_that_ends_at_once_is_not_asked_without_end(
    autojump_clock: MockClock,
) -> None:
    """Each time it is given longer to recover."""
    async with carried(server_ends="retry") as (ends, _qemu):
        for _ in range(1000):
            await ends.server.aclose()
            await trio.sleep(0.05)
        assert len(ends.servers) < 100
        assert ends.wire.connections == 1


async def test_qemu_comes_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    """At the wire's own socket, after it was disconnected, as with `reconnect`."""
    ends = Ends(Faults())
    path = tmp_path / "wire.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(ends.wire.listen, path)
        for round_ in (1, 2):
            async with await trio.open_unix_socket(path) as qemu:
                await ends.wire.wait_connected()
                await qemu.send_all(framed(numbered(round_)))
                assert unframed(await heard(ends.server, 1)) == [numbered(round_)]
                with (
                    socket.socket() as another,
                    pytest.raises(ValueError, match="has a QEMU already"),
                ):
                    await ends.wire.run(another)
                ends.wire.disconnect()
                assert await heard(qemu) == b""
                assert await heard(ends.server) == b""
            assert ends.wire.connections == round_
        ends.wire.disconnect()
        with pytest.raises(UserError, match=r"cannot listen at .*wire\.sock.*in use"):
            await ends.wire.listen(path)
        nursery.cancel_scope.cancel()
    assert not await trio.Path(path).exists()
    await ends.close()


# -- with a guest and a server


async def test_a_guest_on_a_bad_wire(autojump_clock: MockClock) -> None:
    """Loss, repetition, corruption, reordering: TCP carries all the same, and it can be seen."""
    internet, faults, capture = Internet(), Faults(7), Capture()
    octets = bytes(range(256)) * 4000

    async def echo(stream: trio.abc.HalfCloseableStream) -> None:
        while more := await stream.receive_some():
            await stream.send_all(more)

    internet.host("example.com", SITE).tcp(7, echo)
    async with internet.running(), server_of(internet) as server, trio.open_nursery() as nursery:

        def dial() -> socket.socket:
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            server.on_connection(theirs, "one")
            return ours

        ours, theirs = socket.socketpair()
        nursery.start_soon(Wire("one", dial, capture, faults).run, theirs)
        async with FakeGuest.connect(ours, strict=False) as guest:
            await guest.dhcp()
            guest._stack.mtu = 1500
            with faults.drop(dns & to_guest, count=1) as lost:
                assert await guest.resolve("example.com") == [SITE]
            assert lost.hits == 1
            assert trio.current_time() > 1, "it had to ask again"
            rules = [
                faults.drop(tcp, 0.02),
                faults.repeat(tcp, 0.02),
                faults.corrupt(tcp, 0.02),
                faults.reorder(tcp, probability=0.02),
            ]
            stream = await guest.connect_tcp(SITE, 7)
            nursery.start_soon(stream.send_all, octets)
            received = bytearray()
            while len(received) < len(octets):
                received += await stream.receive_some()
            assert received == octets
            assert all(rule.hits for rule in rules)
        nursery.cancel_scope.cancel()
    capture.assert_some(dns.name == "example.com")
    capture.assert_some(tcp.syn & ~tcp.ack & (tcp.port == 7))
    assert {frame.fate for frame in capture.frames(tcp)} >= {"dropped", "repeated", "corrupted"}


def test_without_a_server_qemu_is_shown_out() -> None:
    """As by a server that is not there, and no descriptor stays open."""

    async def run() -> None:
        ends = Ends(Faults())
        ends.up = False
        ours, theirs = socket.socketpair()
        with ours:
            await ends.wire.run(theirs)
            assert ours.recv(1) == b""
        assert theirs.fileno() == -1

    trio.run(run, clock=MockClock(autojump_threshold=0))
