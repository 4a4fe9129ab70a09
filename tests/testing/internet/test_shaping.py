"""Lines with latency, bandwidth and loss; on a clock that jumps, so that times are exact."""

import pytest
import trio

from qemu_usernat.testing.internet import Internet
from tests.testing.internet.room import ADDRESS, Guest, guest_with, jumping

LITTLE = 0.001
"""Seconds for what is the network's here and there, and not the line's."""


@pytest.fixture
def internet() -> Internet:
    return Internet(seed=1)


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    async for octets in stream:
        await stream.send_all(octets)


async def send_zeros(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.send_all(bytes(200_000))


async def took(guest: Guest, port: int) -> float:
    """Seconds to connect to `port` and to read until the end."""
    started = trio.current_time()
    connection = await guest.connects(port)
    assert len(await connection.receives_all()) == 200_000
    return trio.current_time() - started


# -- latency


@jumping
async def test_latency_is_added_in_each_direction(internet: Internet) -> None:
    """A connection costs two latencies, and so does each question with its answer."""
    host = internet.host("example.com", ADDRESS)
    host.latency = 0.05
    host.tcp(7, echo)
    host.udp(7, lambda payload, source: payload)
    async with guest_with(internet) as guest:
        started = trio.current_time()
        connection = await guest.connects(7)
        assert trio.current_time() - started == pytest.approx(0.1)
        await connection.send_all(b"hello")
        await connection.receives(5)
        assert trio.current_time() - started == pytest.approx(0.2)
        await guest.sends(guest.says.datagram(1234, ADDRESS, 7, b"hello"))
        await guest.hears()
        assert trio.current_time() - started == pytest.approx(0.3)
        await guest.sends(guest.says.ping(ADDRESS))
        await guest.hears()
        assert trio.current_time() - started == pytest.approx(0.4)


@jumping
async def test_ends_and_refusals_have_latency(internet: Internet) -> None:
    """What is no octet takes as long as an octet does."""
    ended = []

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.receive_some()
        ended.append(trio.current_time())

    host = internet.host("example.com", ADDRESS)
    host.latency = 0.05
    host.tcp(7, serve)
    host.refuses(8)
    async with guest_with(internet) as guest:
        started = trio.current_time()
        assert (await guest.connects(8)).was_reset
        assert trio.current_time() - started == pytest.approx(0.1)
        await guest.sends(guest.says.datagram(1234, ADDRESS, 8, b"hello"))
        assert (await guest.hears()).icmp.type == 3
        assert trio.current_time() - started == pytest.approx(0.2)
        connection = await guest.connects(7)
        await connection.send_eof()
        await connection.until(lambda: connection.ended)
        assert ended == [pytest.approx(started + 0.35)]
        assert trio.current_time() - started == pytest.approx(0.4)


@jumping
async def test_a_guest_that_gives_up_while_its_syn_is_under_way(internet: Internet) -> None:
    """No handler ever hears of it."""
    called = False

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        nonlocal called
        called = True

    host = internet.host("example.com", ADDRESS)
    host.latency = 1.0
    host.tcp(7, serve)
    async with guest_with(internet) as guest:
        connection = await guest.begins_to_connect(7)
        await connection.resets()
        await trio.sleep(5)
    assert not called
    assert host.connections[0].ended == "reset by the guest"


@jumping
async def test_a_line_that_becomes_faster_does_not_reorder(internet: Internet) -> None:
    """Octets sent later do not arrive before those that are still on a slow way."""

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(b"slow, ")
        host.latency = 0
        await stream.send_all(b"fast")

    host = internet.host("example.com", ADDRESS)
    host.latency = 1.0
    host.tcp(7, serve)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        assert await connection.receives_all() == b"slow, fast"


@jumping
async def test_a_long_line_holds_what_is_under_way(internet: Internet) -> None:
    """Latency alone does not make a line slow: 200 kB leave at once and take one latency."""
    host = internet.host("example.com", ADDRESS)
    host.latency = 2.0
    host.tcp(80, send_zeros)
    async with guest_with(internet) as guest:
        assert await took(guest, 80) == pytest.approx(6.0, abs=LITTLE)


# -- bandwidth


@jumping
async def test_bandwidth_is_octets_per_second(internet: Internet) -> None:
    """200 kB at 100 kB/s take two seconds, whichever way they go."""
    received = trio.Event()

    async def take(stream: trio.abc.HalfCloseableStream) -> None:
        async for _ in stream:
            pass
        received.set()

    host = internet.host("example.com", ADDRESS)
    host.bandwidth = 100_000
    host.tcp(80, send_zeros)
    host.tcp(81, take)
    async with guest_with(internet) as guest:
        assert await took(guest, 80) == pytest.approx(2.0, abs=LITTLE)
        started = trio.current_time()
        connection = await guest.connects(81)
        await connection.send_all(bytes(200_000))
        await connection.send_eof()
        await received.wait()
        assert trio.current_time() - started == pytest.approx(2.0, abs=LITTLE)


@jumping
async def test_connections_share_their_host_s_line(internet: Internet) -> None:
    """Two at once take twice as long; another host's line is its own."""
    for address in (ADDRESS, "203.0.113.11"):
        host = internet.host(None, address)
        host.bandwidth = 100_000
        host.tcp(80, send_zeros)
    times: list[tuple[str, float]] = []

    async with guest_with(internet) as guest:

        async def download(address: str) -> None:
            connection = await guest.connects(80, address)
            assert len(await connection.receives_all()) == 200_000
            times.append((address, round(trio.current_time(), 1)))

        async with trio.open_nursery() as nursery:
            for address in (ADDRESS, ADDRESS, "203.0.113.11"):
                nursery.start_soon(download, address)
    assert times == [("203.0.113.11", 2.0), (ADDRESS, 4.0), (ADDRESS, 4.0)]


@jumping
async def test_a_slow_line_loses_the_datagrams_that_find_no_room(internet: Internet) -> None:
    """It holds a second's worth, as a router's queue does."""
    host = internet.host("example.com", ADDRESS)
    host.bandwidth = 10_000
    host.udp(7, lambda payload, source: None)
    async with guest_with(internet) as guest:
        for _ in range(50):
            await guest.sends(guest.says.datagram(1234, ADDRESS, 7, bytes(1000)))
        await trio.sleep(10)
    assert host.connections[0].received == 11_000


@jumping
async def test_a_line_holds_so_many_datagrams(internet: Internet) -> None:
    """However long it is: a flood does not fill the test's memory, and the line recovers."""
    host = internet.host("example.com", ADDRESS)
    host.latency = 10.0
    host.udp(7, lambda payload, source: None)
    async with guest_with(internet) as guest:
        for _ in range(2):
            for _ in range(1200):
                await guest.sends(guest.says.datagram(1234, ADDRESS, 7, b"!"))
            await trio.sleep(20)
    assert host.connections[0].received == 2 * 1024


# -- loss


async def answered(seed: int) -> list[int]:
    """Which of 200 datagrams, and of 200 pings, are answered on a line that loses a fifth."""
    internet = Internet(seed)
    host = internet.host("example.com", ADDRESS)
    host.loss = 0.2
    host.udp(7, lambda payload, source: payload)
    async with guest_with(internet) as guest:
        for number in range(200):
            await guest.sends(
                guest.says.datagram(1234, ADDRESS, 7, number.to_bytes(2, "big")),
                guest.says.ping(ADDRESS, (1000 + number).to_bytes(2, "big")),
            )
        heard = []
        with trio.move_on_after(1):
            while True:
                packet = await guest.hears()
                payload = packet.packet.payload[8:] if packet.packet else b""
                heard.append(int.from_bytes(payload, "big"))
    return heard


@jumping
async def test_what_is_lost_is_the_seed_s_to_say(internet: Internet) -> None:
    """Each way loses a fifth, so 64 of 100 are answered; the same ones for the same seed."""
    heard = await answered(1)
    assert 100 < sum(number < 1000 for number in heard) < 156
    assert 100 < sum(number >= 1000 for number in heard) < 156
    assert await answered(1) == heard
    assert await answered(2) != heard


@jumping
async def test_a_stream_loses_nothing_and_is_late_for_what_was_lost(internet: Internet) -> None:
    """A repetition costs a stream 0.2 s, or two latencies if these are more."""
    host = internet.host("example.com", ADDRESS)
    host.tcp(80, send_zeros)
    async with guest_with(internet) as guest:
        host.loss = 0.1
        time = await took(guest, 80)
        assert time > 0.2
        assert time / 0.2 == pytest.approx(round(time / 0.2), abs=0.1)
        host.latency = 0.5
        assert await took(guest, 80) >= 2.5 - LITTLE
