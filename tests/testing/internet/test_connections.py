"""TCP with hosts that a test defines: handlers, ends, resets, and what is refused."""

import pytest
import trio

from qemu_usernat.testing.internet import HostStream, Internet
from tests.scripted_guest import GUEST
from tests.testing.internet.room import ADDRESS, guest_of, guest_with, jumping, server_of


@pytest.fixture
def internet() -> Internet:
    return Internet(seed=1)


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    async for octets in stream:
        await stream.send_all(octets)
    await stream.send_eof()


async def read_all(stream: trio.abc.HalfCloseableStream) -> bytes:
    return b"".join([bytes(octets) async for octets in stream])


# -- handlers


@jumping
async def test_a_guest_talks_to_a_handler(internet: Internet) -> None:
    """An echo server of six lines echoes, and the connection is noted with all that it carried."""
    host = internet.host("example.com", ADDRESS)
    host.tcp(7, echo)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        await connection.send_all(b"hello")
        assert await connection.receives(5) == b"hello"
        await connection.send_eof()
        assert await connection.receives_all() == b""
        assert connection.ended
        await trio.sleep(1)
    (record,) = host.connections
    assert (record.protocol, record.address, record.port) == ("tcp", ADDRESS, 7)
    assert (record.guest, record.source) == ("guest", (GUEST, connection.sport))
    assert (record.received, record.sent, record.ended) == (5, 5, "closed")
    internet.assert_nothing_unexpected()


@jumping
async def test_a_server_that_speaks_first(internet: Internet) -> None:
    """A greeting comes without a word of the guest, and the end comes when the handler is done."""

    async def greet(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(b"220 ready\r\n")

    internet.host("example.com", ADDRESS).tcp(25, greet)
    async with guest_with(internet) as guest:
        connection = await guest.connects(25)
        assert await connection.receives_all() == b"220 ready\r\n"
        assert connection.ended
        assert not connection.was_reset


@jumping
async def test_the_guest_s_end_and_the_server_s_are_two(internet: Internet) -> None:
    """A handler answers after the guest has ended its direction, and the other way round."""
    said = []

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        said.append(await read_all(stream))
        await stream.send_all(b"thank you")

    async def leave(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_eof()
        said.append(await read_all(stream))

    host = internet.host("example.com", ADDRESS)
    host.tcp(1, serve)
    host.tcp(2, leave)
    async with guest_with(internet) as guest:
        connection = await guest.connects(1)
        await connection.send_all(b"all I have")
        await connection.send_eof()
        assert await connection.receives_all() == b"thank you"
        connection = await guest.connects(2)
        await connection.until(lambda: connection.ended)
        await connection.send_all(b"more")
        await connection.send_eof()
        await trio.sleep(1)
    assert said == [b"all I have", b"more"]
    assert [record.ended for record in host.connections] == ["closed", "closed"]


@jumping
async def test_a_guest_s_reset_breaks_the_handler_s_stream(internet: Internet) -> None:
    """What was sent before it is still read; that is no failure of the handler."""
    said = []

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        await trio.sleep(1)
        said.append(await stream.receive_some())
        await stream.receive_some()

    host = internet.host("example.com", ADDRESS)
    host.tcp(7, serve)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        await connection.send_all(b"last words")
        await connection.resets()
        await trio.sleep(2)
    assert said == [b"last words"]
    assert host.connections[0].ended == "reset by the guest"
    assert internet.errors == []


@jumping
async def test_a_handler_resets(internet: Internet) -> None:
    """A reset of the handler is a reset for the guest."""

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        assert isinstance(stream, HostStream)
        await stream.receive_some(1)
        stream.reset()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"too late")

    host = internet.host("example.com", ADDRESS)
    host.tcp(7, serve)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        await connection.send_all(b"hello")
        assert await connection.receives_all() == b""
        assert connection.was_reset
    assert host.connections[0].ended == "reset by the host"


@jumping
async def test_a_reset_does_not_wait_for_a_guest_that_does_not_read(internet: Internet) -> None:
    """Octets that the guest has no room for are given up."""

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        assert isinstance(stream, HostStream)
        await stream.send_all(bytes(1000))
        await trio.sleep(5)
        stream.reset()

    internet.host("example.com", ADDRESS).tcp(7, serve)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7, window=0)
        assert await connection.receives_all() == b""
        assert trio.current_time() == pytest.approx(5)
        assert connection.was_reset


@pytest.mark.parametrize("already_there", [True, False])
@jumping
async def test_closing_with_something_unread_is_a_reset(
    internet: Internet, already_there: bool
) -> None:
    """As a kernel does it, whether the octets are there already or come behind the close."""

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        if already_there:
            await trio.sleep(1)

    internet.host("example.com", ADDRESS).tcp(7, serve)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        if not already_there:
            await connection.until(lambda: connection.ended)
        await connection.send_all(b"is anybody there?")
        await connection.until(lambda: connection.was_reset)


@jumping
async def test_a_closed_window_holds_the_handler(internet: Internet) -> None:
    """A guest that does not read stops the server: memory is bounded in both directions."""
    sent = 0

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        nonlocal sent
        for _ in range(1000):
            await stream.send_all(bytes(1000))
            sent += 1000

    internet.host("example.com", ADDRESS).tcp(7, serve)
    async with internet.running(), server_of(internet) as server, guest_of(server) as guest:
        connection = await guest.connects(7, window=0)
        await trio.sleep(5)
        assert 0 < sent <= 65536
        assert server.counters["tcp.window_probe"] > 1, "an opening that is lost is asked for"
        await connection.opens_window()
        assert len(await connection.receives_all()) == 1_000_000


@jumping
async def test_a_handler_that_does_not_read_holds_the_guest(internet: Internet) -> None:
    """The guest's window closes; when the handler reads, it opens, and everything arrives."""
    may_read, total = trio.Event(), 0

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        nonlocal total
        await may_read.wait()
        async for octets in stream:
            total += len(octets)

    internet.host("example.com", ADDRESS).tcp(7, serve)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send_all, bytes(1_000_000))
            await trio.sleep(5)
            assert 0 < connection.sent < 500_000
            assert total == 0
            may_read.set()
        await connection.send_eof()
        await connection.until(lambda: connection.ended)
    assert total == 1_000_000


@jumping
async def test_two_tasks_at_one_end_are_told(internet: Internet) -> None:
    """As trio's own streams do it: no octets of two tasks are mixed by accident."""

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            nursery.cancel_scope.cancel()

    internet.host("example.com", ADDRESS).tcp(7, serve)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        await connection.until(lambda: connection.ended)


# -- a handler that fails


@jumping
async def test_a_handler_that_fails_resets_its_connection_and_fails_the_test(
    internet: Internet,
) -> None:
    """Nobody passes over a broken handler: leaving the internet tells of it, with where it was."""

    async def fail(stream: trio.abc.HalfCloseableStream) -> None:
        raise ValueError("not what I wanted")

    internet.host("example.com", ADDRESS).tcp(7, fail)
    with pytest.raises(AssertionError) as caught:  # noqa: PT012
        async with guest_with(internet) as guest:
            connection = await guest.connects(7)
            await connection.until(lambda: connection.was_reset)
    assert f"TCP handler of example.com port 7, for {GUEST} port 40000: ValueError: not what I" in (
        str(caught.value)
    )
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert internet["example.com"].connections[0].ended == (
        "the handler failed: ValueError: not what I wanted"
    )


@jumping
async def test_a_test_that_fails_itself_hears_of_the_handler_as_well(internet: Internet) -> None:
    """Its own error comes through as it is, with a note."""

    async def fail(stream: trio.abc.HalfCloseableStream) -> None:
        raise ValueError("why")

    internet.host("example.com", ADDRESS).tcp(7, fail)
    with pytest.raises(KeyError, match="what") as caught:  # noqa: PT012
        async with internet.running():
            async with server_of(internet) as server, guest_of(server) as guest:
                connection = await guest.connects(7)
                await connection.until(lambda: connection.was_reset)
            raise KeyError("what")
    assert "a handler of the internet has failed, too" in caught.value.__notes__[0]


@jumping
async def test_a_failure_that_was_expected_is_taken_out(internet: Internet) -> None:
    """A test of failing handlers looks at `errors` and clears them."""

    async def fail(stream: trio.abc.HalfCloseableStream) -> None:
        raise ValueError("as agreed")

    internet.host("example.com", ADDRESS).tcp(7, fail)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        await connection.until(lambda: connection.was_reset)
        (failure,) = internet.errors
        assert isinstance(failure.error, ValueError)
        internet.errors.clear()


@jumping
async def test_a_broken_stream_of_the_handler_s_own_is_a_failure(internet: Internet) -> None:
    """Only the guest's reset is forgiven, and not whatever is called the same."""

    async def fail(stream: trio.abc.HalfCloseableStream) -> None:
        raise trio.BrokenResourceError("a backend of my own")

    internet.host("example.com", ADDRESS).tcp(7, fail)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        await connection.until(lambda: connection.was_reset)
        assert "a backend of my own" in str(internet.errors.pop())


@jumping
async def test_a_failure_beside_the_guest_s_reset_is_a_failure(internet: Internet) -> None:
    """Only the broken stream is forgiven, also within a group of errors."""

    async def fail(stream: trio.abc.HalfCloseableStream) -> None:
        async def read() -> None:
            await stream.receive_some()

        async def miscount() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(miscount)

    internet.host("example.com", ADDRESS).tcp(7, fail)
    async with guest_with(internet) as guest:
        connection = await guest.connects(7)
        await connection.resets()
        await trio.sleep(1)
        (failure,) = internet.errors
        assert isinstance(failure.error, ExceptionGroup)
        assert [type(error) for error in failure.error.exceptions] == [ZeroDivisionError]
        internet.errors.clear()


# -- what is refused, swallowed, reset


@jumping
async def test_a_port_that_is_not_defined_refuses_and_is_noted(internet: Internet) -> None:
    """At once, and the message says what was reached for and how to define it."""
    internet.host("example.com", ADDRESS)
    async with guest_with(internet) as guest:
        started = trio.current_time()
        assert (await guest.connects(443)).was_reset
        assert trio.current_time() == started
    (note,) = internet.unexpected
    assert (note.protocol, note.destination, note.port) == ("tcp", ADDRESS, 443)
    assert (note.name, note.guest, note.source) == ("example.com", "guest", (GUEST, 40000))
    with pytest.raises(AssertionError) as caught:
        internet.assert_nothing_unexpected()
    assert f"TCP to {ADDRESS} (example.com) port 443 from {GUEST}" in str(caught.value)
    assert 'internet["example.com"].tcp(443, handler)' in str(caught.value)


@jumping
async def test_an_address_that_is_not_defined_refuses_and_is_noted(internet: Internet) -> None:
    """Several times is told once, with how often."""
    async with guest_with(internet) as guest:
        for _ in range(3):
            assert (await guest.connects(80, "198.51.100.7")).was_reset
    assert len(internet.unexpected) == 3
    with pytest.raises(AssertionError) as caught:
        internet.assert_nothing_unexpected()
    assert f"TCP to 198.51.100.7 port 80 from {GUEST} (3 times)" in str(caught.value)
    assert 'internet.host(None, "198.51.100.7").tcp(80, handler)' in str(caught.value)


@jumping
async def test_a_list_of_what_was_unexpected_is_not_endless(internet: Internet) -> None:
    """A port scan does not bury the message that it is told in."""
    async with guest_with(internet) as guest:
        for port in range(1, 61):
            await guest.connects(port, "198.51.100.7")
    with pytest.raises(AssertionError) as caught:
        internet.assert_nothing_unexpected()
    assert len(str(caught.value).splitlines()) == 1 + 2 * 50 + 1
    assert str(caught.value).endswith("\n  and 10 more")


@jumping
async def test_a_host_that_refuses_is_as_expected(internet: Internet) -> None:
    """One port, or all of them; no byte reaches the server and nothing is unexpected."""
    host = internet.host("example.com", ADDRESS)
    host.tcp(7, echo)
    host.refuses(7)
    async with guest_with(internet) as guest:
        assert (await guest.connects(7)).was_reset
        host.tcp(7, echo)
        assert (await guest.connects(7)).established
        host.refuses()
        assert (await guest.connects(7)).was_reset
        assert (await guest.connects(8)).was_reset
        host.recovers(7)
        assert (await guest.connects(7)).established
    internet.assert_nothing_unexpected()
    assert [record.ended for record in host.connections] == [
        "refused", "the network ended", "refused", "refused", "the network ended",
    ]  # fmt: skip
    assert sum(record.received for record in host.connections) == 0


@jumping
async def test_a_black_hole_does_not_answer(internet: Internet) -> None:
    """A connection gets nothing until the guest or the gateway gives up."""
    host = internet.host("example.com", ADDRESS)
    host.black_hole()
    async with guest_with(internet) as guest:
        connection = await guest.begins_to_connect(7)
        await trio.sleep(59)
        assert not connection.established
        assert not connection.was_reset
        assert (await guest.hears()).icmp.type == 3
    internet.assert_nothing_unexpected()
    assert host.connections[0].ended == "no answer"


@pytest.mark.parametrize("octets", [0, 1, 5000, 200_000])
@jumping
async def test_a_download_is_cut_after_exactly_so_many_octets(
    internet: Internet, octets: int
) -> None:
    """A reset, and not an end; the handler's stream breaks, which is no failure of it."""

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(bytes(1_000_000))

    host = internet.host("example.com", ADDRESS)
    host.tcp(80, serve)
    host.resets_after(octets)
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        assert len(await connection.receives_all()) == octets
        assert connection.was_reset
    assert (host.connections[0].sent, host.connections[0].ended) == (octets, "reset by the host")


@jumping
async def test_a_connection_is_cut_as_soon_as_it_is_there(internet: Internet) -> None:
    """After no octet at all, so that neither end has to say anything."""

    async def listen(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.receive_some()

    host = internet.host("example.com", ADDRESS)
    host.tcp(80, listen)
    host.resets_after(0, 80)
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        await connection.until(lambda: connection.was_reset)
        assert connection.established


@jumping
async def test_an_upload_is_cut_after_exactly_so_many_octets(internet: Internet) -> None:
    """The handler reads so many and no more."""
    total = 0

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        nonlocal total
        async for octets in stream:
            total += len(octets)

    host = internet.host("example.com", ADDRESS)
    host.tcp(80, serve)
    host.resets_after(100_000, 80, direction="from guest")
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        await connection.send_all(bytes(300_000))
        assert connection.was_reset
    assert total == host.connections[0].received == 100_000


# -- the network comes and goes


@jumping
async def test_the_internet_outlives_a_server(internet: Internet) -> None:
    """A handler hears that its network has ended; the next network finds the same internet."""
    broken = trio.Event()

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        try:
            await stream.receive_some()
        except trio.BrokenResourceError:
            broken.set()

    host = internet.host("example.com", ADDRESS)
    host.tcp(7, serve)
    async with internet.running():
        for _ in range(2):
            async with server_of(internet) as server, guest_of(server) as guest:
                await guest.connects(7)
            await broken.wait()
    assert [record.ended for record in host.connections] == ["the network ended"] * 2


@jumping
async def test_an_internet_runs_once_at_a_time(internet: Internet) -> None:
    """A second time inside the first is a mistake; one after the other is none."""
    for _ in range(2):
        async with internet.running():
            with pytest.raises(RuntimeError, match="this internet is running already"):
                async with internet.running():
                    pass


@jumping
async def test_handlers_end_with_the_internet(internet: Internet) -> None:
    """Those that still wait are cancelled; afterwards everything is refused."""
    cancelled = False

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        nonlocal cancelled
        try:
            await stream.receive_some()
        except trio.Cancelled:
            cancelled = True
            raise

    internet.host("example.com", ADDRESS).tcp(7, serve)
    async with server_of(internet) as server, guest_of(server) as guest:
        async with internet.running():
            connection = await guest.connects(7)
        assert cancelled
        await connection.until(lambda: connection.was_reset)
        assert (await guest.connects(7)).was_reset


# -- mistakes of a test's author


def test_mistakes_are_told_with_what_is_allowed(internet: Internet) -> None:
    """Each names the argument."""
    host = internet.host("example.com", ADDRESS)
    with pytest.raises(ValueError, match="port is 0; allowed: a whole number from 1 to 65535"):
        host.tcp(0, echo)
    with pytest.raises(TypeError, match="handler is 'hello'; allowed: a function"):
        host.tcp(7, "hello")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"latency is -1.* 0 or more"):
        host.latency = -1
    with pytest.raises(ValueError, match=r"loss is 1\.5; allowed: from 0 to less than 1"):
        host.loss = 1.5
    with pytest.raises(ValueError, match="bandwidth is 0; allowed: octets per second above 0"):
        host.bandwidth = 0
    with pytest.raises(ValueError, match="octets is -1"):
        host.resets_after(-1)
    with pytest.raises(ValueError, match="has no TCP service: define it first"):
        host.resets_after(1, 99)
    with pytest.raises(ValueError, match="direction is 'up'; allowed"):
        host.resets_after(1, direction="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="taken: internet"):
        internet.host("other.example", ADDRESS)
    with pytest.raises(ValueError, match=r"name 'Example\.com' is taken"):
        internet.host("Example.com", "203.0.113.11")
    for wrong in ("example.com", "224.0.0.1", "127.0.0.2", "0.1.2.3", "255.255.255.255"):
        with pytest.raises(ValueError, match="allowed: a unicast IPv4 address"):
            internet.host("other.example", wrong)
    with pytest.raises(ValueError, match="IPv6 is not carried yet"):
        internet.host("other.example", "2001:db8::1")
    with pytest.raises(
        KeyError, match=r"no host 'nowhere'; there is: example.com \(203.0.113.10\)"
    ):
        internet["nowhere"]
    assert internet["EXAMPLE.com."] is internet[ADDRESS] is host


@jumping
async def test_a_host_in_the_guests_own_network_is_a_mistake(internet: Internet) -> None:
    """No packet to it would ever leave that network, so the test would only see silence."""
    async with server_of(internet):
        with pytest.raises(ValueError, match=r"in the guests' own network 10\.0\.2\.0/24"):
            internet.host("example.com", "10.0.2.77")
    other = Internet()
    other.host("example.com", "10.0.2.77")
    with pytest.raises(ValueError, match=r"in the guests' own network"):
        async with server_of(other):
            pass
