"""Whatever is said over whatever line: in order, once, and ends cross as ends, resets as resets."""

from random import Random

import trio
from attrs import define
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from qemu_usernat.testing.internet import HostStream, Internet
from qemu_usernat.testing.internet.timing import BUFFER
from tests.testing.internet.room import (
    ADDRESS,
    Guest,
    guest_of,
    guest_with,
    jumping,
    server_of,
)

TIME_WAIT = 60.0


@define
class Talk:
    """What both ends do on one connection, each without regard for the other."""

    guest_writes: list[int]
    host_writes: list[int]
    guest_resets: bool
    host_end: str
    """"eof", "close" without reading, or "reset"."""
    window: int
    latency: float
    bandwidth: float | None
    loss: float
    seed: int


talks = st.builds(
    Talk,
    st.lists(st.integers(1, 30_000), max_size=5),
    st.lists(st.integers(1, 90_000), max_size=5),
    st.booleans(),
    st.sampled_from(["eof", "eof", "close", "reset"]),
    st.sampled_from([64000, 20000, 1000, 1]),
    st.sampled_from([0.0, 0.001, 0.05, 3.0]),
    st.sampled_from([None, 1e6, 20_000.0]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(0, 1000),
)


@given(talks)
def test_octets_arrive_in_order_and_once_and_ends_cross(talk: Talk) -> None:
    """Each end hears the beginning of what the other has said, and all of it where both end in
    order; who was reset knows it; and nothing is left in the network."""
    if talk.window == 1:  # octet by octet: enough is enough
        talk.host_writes = [size % 50 + 1 for size in talk.host_writes]
    trio.run(play, talk, clock=MockClock(autojump_threshold=0))


async def play(talk: Talk) -> None:
    internet = Internet(talk.seed)
    host = internet.host("example.com", ADDRESS)
    host.latency, host.bandwidth, host.loss = talk.latency, talk.bandwidth, talk.loss
    chance = Random(talk.seed)
    guest_pieces = [chance.randbytes(size) for size in talk.guest_writes]
    host_pieces = [chance.randbytes(size) for size in talk.host_writes]
    guest_said, host_said = b"".join(guest_pieces), b"".join(host_pieces)
    heard = bytearray()
    broken = False

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        assert isinstance(stream, HostStream)

        async def read() -> None:
            nonlocal broken
            try:
                async for octets in stream:
                    heard.extend(octets)
            except trio.BrokenResourceError:
                broken = True

        async def write() -> None:
            nonlocal broken
            try:
                for piece in host_pieces:
                    await stream.send_all(piece)
                if talk.host_end == "eof":
                    await stream.send_eof()
            except trio.BrokenResourceError:
                broken = True

        async with trio.open_nursery() as nursery:
            if talk.host_end == "eof":
                nursery.start_soon(read)
            nursery.start_soon(write)
        if talk.host_end == "reset":
            stream.reset()

    host.tcp(7, serve)
    with trio.fail_after(100_000):
        async with internet.running(), server_of(internet) as server, guest_of(server) as guest:
            connection = await guest.connects(7, window=talk.window)

            async def speak() -> None:
                for piece in guest_pieces:
                    await connection.send_all(piece)
                await trio.sleep(0.001)  # a reset takes with it what comes in the same turn
                if talk.guest_resets and not connection.was_reset:
                    await connection.resets()
                elif not connection.was_reset:
                    await connection.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak)
                await connection.until(lambda: connection.ended or connection.was_reset)
            await trio.sleep(3 * talk.latency + 200_000 / (talk.bandwidth or 1e6) + 100 + TIME_WAIT)
            assert server.router.connections.flows == {}
    (record,) = host.connections
    assert host_said.startswith(connection.received)
    assert guest_said.startswith(heard)
    assert record.sent >= len(connection.received)
    if talk.guest_resets:
        assert record.ended in ("reset by the guest", "reset by the host", "closed")
        if talk.host_end == "eof":
            assert record.ended == "reset by the guest"
            assert broken
            # What the line had no room for when the reset came is gone with it.
            assert len(heard) >= min(len(guest_said), BUFFER)
    elif talk.host_end == "eof":
        assert (bytes(connection.received), bytes(heard)) == (host_said, guest_said)
        assert (record.sent, record.received) == (len(host_said), len(guest_said))
        assert (connection.ended, record.ended, broken) == (True, "closed", False)
    elif talk.host_end == "reset":
        assert connection.was_reset
        assert record.ended == "reset by the host"
    elif not connection.was_reset:
        assert connection.received == host_said


async def course(seed: int) -> list[tuple[float, int, int]]:
    """When how much has arrived, on four connections at once over a line that loses."""
    internet = Internet(seed)
    host = internet.host("example.com", ADDRESS, "203.0.113.11")
    host.loss, host.latency = 0.3, 0.01

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(bytes(30_000))

    host.tcp(7, serve)
    arrivals = []
    async with guest_with(internet) as guest:

        async def download(guest: Guest, number: int) -> None:
            connection = await guest.connects(7)
            while not connection.ended:
                await connection.heard.wait()
                arrivals.append((trio.current_time(), number, len(connection.received)))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(download, guest, number)
                await trio.sleep(0.001)
    return sorted(set(arrivals))


@jumping
async def test_the_same_seed_is_the_same_course() -> None:
    """To the microsecond, whatever trio's scheduler throws dice for; another seed is another."""
    first = await course(1)
    origin = first[0][0]
    second = await course(1)
    shift = second[0][0] - origin
    assert [(round(time - shift, 6), *rest) for time, *rest in second] == [
        (round(time, 6), *rest) for time, *rest in first
    ]
    assert [rest for _, *rest in await course(2)] != [rest for _, *rest in first]
