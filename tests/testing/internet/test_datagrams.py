"""Datagrams and pings with hosts that a test defines."""

import pytest
import trio

from qemu_usernat.testing.internet import Internet
from qemu_usernat.wire.icmp import ECHO_REPLY
from tests.scripted_guest import GATEWAY, GUEST
from tests.testing.internet.room import ADDRESS, guest_of, guest_with, jumping, server_of

PORT_UNREACHABLE, HOST_UNREACHABLE = (3, 3), (3, 1)


@pytest.fixture
def internet() -> Internet:
    return Internet(seed=1)


@jumping
async def test_a_datagram_is_answered(internet: Internet) -> None:
    """By a function or a coroutine function; it is told who asks."""

    async def slowly(payload: bytes, source: tuple[str, int]) -> bytes:
        await trio.sleep(1)
        return payload * 2

    host = internet.host("example.com", ADDRESS)
    host.udp(7, lambda payload, source: payload + f" from {source}".encode())
    host.udp(8, slowly)
    async with guest_with(internet) as guest:
        await guest.sends(guest.says.datagram(1234, ADDRESS, 7, b"hello"))
        answer = await guest.hears()
        assert (answer.source, answer.udp.source_port) == (ADDRESS, 7)
        assert answer.udp.destination_port == 1234
        assert answer.udp.payload == f"hello from ('{GUEST}', 1234)".encode()
        await guest.sends(guest.says.datagram(1234, ADDRESS, 8, b"hello"))
        assert (await guest.hears()).udp.payload == b"hellohello"
    assert [(each.protocol, each.port, each.received) for each in host.connections] == [
        ("udp", 7, 5),
        ("udp", 8, 5),
    ]
    assert host.connections[1].sent == 10
    internet.assert_nothing_unexpected()


@jumping
async def test_no_answer_is_no_answer(internet: Internet) -> None:
    """A handler that returns None says nothing, and neither does a black hole."""
    host = internet.host("example.com", ADDRESS)
    host.udp(7, lambda payload, source: None)
    host.black_hole(8)
    async with guest_with(internet) as guest:
        for port in (7, 8):
            await guest.sends(guest.says.datagram(1234, ADDRESS, port, b"hello"))
            with trio.move_on_after(10) as scope:
                await guest.hears()
            assert scope.cancelled_caught
    assert [(each.received, each.ended) for each in host.connections] == [
        (5, "closed"),
        (0, "no answer"),
    ]


@jumping
async def test_what_nobody_defined_is_unreachable_and_noted(internet: Internet) -> None:
    """A host that is there says so of its port; of one that is not the gateway says it."""
    internet.host("example.com", ADDRESS)
    async with guest_with(internet) as guest:
        await guest.sends(guest.says.datagram(1234, ADDRESS, 123, b"what time is it?"))
        error = await guest.hears()
        assert (error.source, (error.icmp.type, error.icmp.code)) == (ADDRESS, PORT_UNREACHABLE)
        await guest.sends(guest.says.datagram(1234, "198.51.100.7", 123, b"and yours?"))
        error = await guest.hears()
        assert (error.source, (error.icmp.type, error.icmp.code)) == (GATEWAY, HOST_UNREACHABLE)
    assert [str(note) for note in internet.unexpected] == [
        f"UDP to {ADDRESS} (example.com) port 123 from {GUEST}",
        f"UDP to 198.51.100.7 port 123 from {GUEST}",
    ]
    with pytest.raises(AssertionError, match=r'internet\["example.com"\]\.udp\(123, handler\)'):
        internet.assert_nothing_unexpected()


@jumping
async def test_a_host_may_refuse_datagrams(internet: Internet) -> None:
    """As agreed, so nothing is noted; when it recovers, the answer comes."""
    host = internet.host("example.com", ADDRESS)
    host.udp(7, lambda payload, source: payload)
    host.refuses(7)
    async with guest_with(internet) as guest:
        await guest.sends(guest.says.datagram(1234, ADDRESS, 7, b"hello"))
        error = (await guest.hears()).icmp
        assert (error.type, error.code) == PORT_UNREACHABLE
        host.recovers()
        await guest.sends(guest.says.datagram(1234, ADDRESS, 7, b"hello"))
        assert (await guest.hears()).udp.payload == b"hello"
    assert [each.ended for each in host.connections] == ["refused", "closed"]
    internet.assert_nothing_unexpected()


@jumping
async def test_a_handler_of_datagrams_that_fails_fails_the_test(internet: Internet) -> None:
    """Whether it raises, at once or later, or returns what is no datagram."""

    async def fail_later(payload: bytes, source: tuple[str, int]) -> bytes:
        await trio.sleep(1)
        raise ValueError("later")

    def fail(payload: bytes, source: tuple[str, int]) -> bytes:
        raise ValueError("at once")

    host = internet.host("example.com", ADDRESS)
    host.udp(7, fail)
    host.udp(8, fail_later)
    host.udp(9, lambda payload, source: "text")  # type: ignore[arg-type, return-value]
    host.udp(10, lambda payload, source: bytes(65508))
    async with guest_with(internet) as guest:
        for port in (7, 8, 9, 10):
            await guest.sends(guest.says.datagram(1234, ADDRESS, port, b"hello"))
        await trio.sleep(2)
        assert sorted(str(failure) for failure in internet.errors) == [
            "UDP handler of example.com port 10: ValueError: the handler has returned 65508 "
            "octets; allowed: 65507",
            "UDP handler of example.com port 7: ValueError: at once",
            "UDP handler of example.com port 8: ValueError: later",
            "UDP handler of example.com port 9: TypeError: the handler has returned 'text'; "
            "allowed: bytes or None",
        ]
        internet.errors.clear()


@jumping
async def test_so_many_datagrams_are_answered_at_once(internet: Internet) -> None:
    """A flood does not fill the test's memory with handlers, and ends when it is over."""
    called = 0

    async def slowly(payload: bytes, source: tuple[str, int]) -> None:
        nonlocal called
        called += 1
        await trio.sleep(10)

    internet.host("example.com", ADDRESS).udp(7, slowly)
    async with guest_with(internet) as guest:
        for _ in range(2):
            for _ in range(24):
                frame = guest.says.datagram(1234, ADDRESS, 7, b"!")
                await guest.sends(*[frame] * 50)
                await trio.sleep(0.001)
            await trio.sleep(20)
    assert called == 2 * 1024


@jumping
async def test_an_answer_to_a_network_that_has_ended_is_lost(internet: Internet) -> None:
    """It is under way when the server stops: nobody has got it, and nothing breaks."""
    host = internet.host("example.com", ADDRESS)
    host.latency = 1.0
    host.udp(7, lambda payload, source: payload)
    async with internet.running():
        async with server_of(internet) as server, guest_of(server) as guest:
            await guest.sends(guest.says.datagram(1234, ADDRESS, 7, b"hello"))
            await guest.sends(guest.says.ping(ADDRESS))
            await trio.sleep(1.5)
        await trio.sleep(1)
    assert (host.connections[0].received, host.connections[0].sent) == (5, 0)


@jumping
async def test_an_internet_that_does_not_run_is_not_there(internet: Internet) -> None:
    """Nothing is answered, and nothing is noted."""
    internet.host("example.com", ADDRESS).udp(7, lambda payload, source: payload)
    async with server_of(internet) as server, guest_of(server) as guest:
        await guest.sends(guest.says.datagram(1234, ADDRESS, 7, b"hello"))
        await guest.sends(guest.says.datagram(1234, ADDRESS, 8, b"hello"))
        await guest.sends(guest.says.ping(ADDRESS))
        assert (await guest.hears()).icmp.payload[9] == 1, "only the ping is refused"
    assert internet["example.com"].connections == []
    internet.assert_nothing_unexpected()


# -- pings


@jumping
async def test_a_host_answers_pings_unless_told_otherwise(internet: Internet) -> None:
    """With the guest's own octets; a host that does not, and a black hole, are silent."""
    host = internet.host("example.com", ADDRESS)
    async with guest_with(internet) as guest:
        await guest.sends(guest.says.ping(ADDRESS, b"are you there?"))
        answer = await guest.hears()
        assert (answer.source, answer.icmp.type) == (ADDRESS, ECHO_REPLY)
        assert answer.icmp.payload == b"are you there?"
        for is_hole in (False, True):
            host.answers_ping = is_hole
            if is_hole:
                host.black_hole()
            await guest.sends(guest.says.ping(ADDRESS))
            with trio.move_on_after(10) as scope:
                await guest.hears()
            assert scope.cancelled_caught
    internet.assert_nothing_unexpected()


@jumping
async def test_a_ping_of_nobody_is_refused_and_noted(internet: Internet) -> None:
    """The guest hears so at once, and the message says which host to define."""
    async with guest_with(internet) as guest:
        await guest.sends(guest.says.ping("198.51.100.7"))
        assert (await guest.hears()).icmp.type == 3
    with pytest.raises(AssertionError) as caught:
        internet.assert_nothing_unexpected()
    assert f"ping of 198.51.100.7 from {GUEST}" in str(caught.value)
    assert 'define it: internet.host(None, "198.51.100.7")\n' in str(caught.value) + "\n"


@jumping
async def test_a_host_without_a_name(internet: Internet) -> None:
    """An address is enough."""
    host = internet.host(None, "203.0.113.9")
    assert internet["203.0.113.9"] is host
    assert str(host) == "203.0.113.9"
    async with guest_with(internet) as guest:
        await guest.sends(guest.says.ping("203.0.113.9"))
        assert (await guest.hears()).icmp.type == ECHO_REPLY
