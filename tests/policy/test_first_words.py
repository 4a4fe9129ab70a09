"""What a guest says first decides, and nothing of it leaves before: TLS, HTTP, and all else.

The guest's own TLS is Python's; its kernel is a fake one, so it may say things as no kernel would.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.testing import FakeGuest, Internet, VirtualNetwork, from_guest, tcp
from tests.policy.flights import hello

SHARED = "203.0.113.10"  # of several names
ELSEWHERE = "203.0.113.66"
ONLY_GOOD = NetworkPolicy.deny_all().allow_domain("good.example")


@pytest.fixture
def internet() -> Internet:
    """Two tenants of one address, and a host of nobody's."""
    internet = Internet()
    shared = internet.host("good.example", SHARED, aliases=["bad.example"])
    shared.https("hello")
    shared.http("hello")
    internet.host("evil.example", ELSEWHERE).https("evil")
    return internet


@asynccontextmanager
async def guest_under(
    policy: NetworkPolicy | None, internet: Internet
) -> AsyncIterator[tuple[FakeGuest, VirtualNetwork]]:
    """A guest that has looked up what it may."""
    with trio.fail_after(2000):
        async with (
            VirtualNetwork(internet, policy=policy) as network,
            network.fake_guest() as guest,
        ):
            await guest.dhcp()
            await guest.resolve("good.example")
            yield guest, network


def tls(stream: trio.abc.Stream, internet: Internet, name: str) -> trio.SSLStream[trio.abc.Stream]:
    """TLS to whoever is called `name` and has a certificate of the test's authority."""
    context = ssl.create_default_context()
    internet.authority.configure_trust(context)
    return trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)


async def https_page(
    guest: FakeGuest, internet: Internet, name: str, address: str = SHARED
) -> bytes:
    """What a browser would show of `https://name/`, were it told this address."""
    async with await guest.connect_tcp(address, 443) as stream:
        secure = tls(stream, internet, name)
        await secure.send_all(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
        return b"".join([octets async for octets in secure])


async def page_of(stream: trio.abc.Stream, name: bytes, path: str = "/") -> bytes:
    """What is answered to a request that names `name`; the connection may go on."""
    await stream.send_all(f"GET {path} HTTP/1.1\r\n".encode() + b"Host: " + name + b"\r\n\r\n")
    heard = b""
    while b"hello" not in heard and b"Reason" not in heard:
        octets = await stream.receive_some()
        assert octets, heard
        heard += octets
    return heard


async def test_the_name_in_tls_has_to_be_the_allowed_one(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """The other tenant of the same address: an alert that says so, and no octet for the server."""
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        assert (await https_page(guest, internet, "good.example")).endswith(b"hello")
        with pytest.raises(trio.BrokenResourceError) as refused:
            await https_page(guest, internet, "bad.example")
        assert isinstance(refused.value.__cause__, ssl.SSLError)
        assert "ACCESS_DENIED" in str(refused.value.__cause__).upper().replace(" ", "_")
        assert [flow.sent > 0 for flow in network.flows] == [True, False]
        assert network.verdicts[-1].why == "other_name"
    async with guest_under(None, internet) as (guest, _):
        assert (await https_page(guest, internet, "bad.example")).endswith(b"hello")


@pytest.mark.parametrize(
    ("second", "passes"), [(hello(b"good.example"), True), (hello(b"bad.example"), False)]
)
async def test_a_second_hello_is_for_the_same_name(
    second: bytes, passes: bool, internet: Internet, autojump_clock: MockClock
) -> None:
    """Servers that ask for another hello believe that one; so it is read like the first."""
    first, heard = hello(b"good.example"), bytearray()

    async def listen(stream: trio.abc.HalfCloseableStream) -> None:
        async for octets in stream:
            heard.extend(octets)
            await stream.send_all(b"again")

    internet["good.example"].tcp(443, listen)
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        stream = await guest.connect_tcp(SHARED, 443)
        await stream.send_all(first)
        assert await stream.receive_some() == b"again"
        await stream.send_all(second)
        if passes:
            assert await stream.receive_some() == b"again"
            assert heard == first + second
        else:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            assert heard == first
            assert network.verdicts[-1].why == "other_name"


async def test_the_allowed_name_at_another_address(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """The attacker's own server may claim any name: its address was never given for that."""
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        with pytest.raises(ConnectionRefusedError):
            await https_page(guest, internet, "good.example", ELSEWHERE)
        assert not network.flows


async def test_a_denied_name_on_a_shared_address(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """The one tenant is denied, the other one is not."""
    policy = NetworkPolicy.allow_all().deny_domain("bad.example")
    async with guest_under(policy, internet) as (guest, _):
        assert (await https_page(guest, internet, "good.example")).endswith(b"hello")
        with pytest.raises(trio.BrokenResourceError):
            await https_page(guest, internet, "bad.example")


async def last_words(stream: trio.abc.ReceiveStream) -> bytes:
    """What comes until the end, or until a reset."""
    heard = b""
    with suppress(trio.BrokenResourceError):
        async for octets in stream:
            heard += octets
    return heard


async def hello_of(internet: Internet, name: str) -> bytes:
    """A ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def test_a_hello_may_come_octet_by_octet(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """However it is cut, the verdict is the same; nothing leaves before it is whole."""
    for name, answer in (("good.example", 22), ("bad.example", 21)):  # handshake, alert
        async with guest_under(ONLY_GOOD, internet) as (guest, network):
            hello = await hello_of(internet, name)
            async with await guest.connect_tcp(SHARED, 443) as stream:
                for octet in hello[:-1]:
                    await stream.send_all(bytes((octet,)))
                    await trio.sleep(0.001)
                assert network.flows[-1].sent == 0
                await stream.send_all(hello[-1:])
                assert (await stream.receive_some())[0] == answer


@pytest.mark.parametrize("first_words", [b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n", b"\0"])
async def test_port_443_wants_tls(
    internet: Internet, first_words: bytes, autojump_clock: MockClock
) -> None:
    """Anything else there is no way through under a name."""
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        stream = await guest.connect_tcp(SHARED, 443)
        await stream.send_all(first_words)
        assert b"hello" not in await last_words(stream)
        assert network.flows[-1].sent == 0
        assert network.verdicts[-1].why == "not_tls"


@pytest.mark.parametrize("first_word", ["G@T", "GET:", '"GET"', "G\xc9T"])
@pytest.mark.parametrize(
    ("policy", "port"),
    [(NetworkPolicy.allow_all().deny_domain("bad.example"), 80), (ONLY_GOOD, 8080)],
    ids=["denied", "not allowed"],
)
async def test_no_first_word_makes_a_request_something_else(
    internet: Internet,
    policy: NetworkPolicy,
    port: int,
    first_word: str,
    autojump_clock: MockClock,
) -> None:
    """There are servers that take any for a method, and serve the name that is denied."""
    heard = []

    async def listen(stream: trio.abc.HalfCloseableStream) -> None:
        heard.append(await stream.receive_some())

    request = f"{first_word} / HTTP/1.1\r\nHost: bad.example\r\n\r\n".encode("latin-1")
    internet["good.example"].tcp(port, listen)
    for under in (policy, None):
        async with guest_under(under, internet) as (guest, network):
            stream = await guest.connect_tcp(SHARED, port)
            await stream.send_all(request)
            await last_words(stream)
            if under is not None:
                assert network.verdicts[-1].why == "unreadable"
                assert not any(heard)
    assert heard[-1] == request


async def test_text_without_an_end_is_waited_for_and_then_refused(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """It could go on as a request; what has an end, or is no text, passes on the pin at once."""

    async def echo(stream: trio.abc.HalfCloseableStream) -> None:
        async for octets in stream:
            await stream.send_all(octets)

    internet["good.example"].tcp(5222, echo)
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        for words in (b"<stream>\n", b"\x01\x02\x03"):
            stream = await guest.connect_tcp(SHARED, 5222)
            await stream.send_all(words)
            assert await stream.receive_some() == words
            assert network.verdicts[-1].why == "pin"
        stream = await guest.connect_tcp(SHARED, 5222)
        await stream.send_all(b"<stream>")
        began = trio.current_time()
        assert await last_words(stream) == b""
        assert trio.current_time() - began == pytest.approx(10, abs=0.5)
        assert network.flows[-1].sent == 0


async def test_half_a_hello_is_waited_for_and_then_refused(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Ten seconds; silence until then and speech after it changes nothing."""
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        hello = await hello_of(internet, "good.example")
        stream = await guest.connect_tcp(SHARED, 443)
        await trio.sleep(60)  # nobody has spoken: nobody is late
        await stream.send_all(hello[:50])
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert trio.current_time() - began == pytest.approx(10, abs=0.5)
        assert network.flows[-1].sent == 0
        assert network.verdicts[-1].why == "unreadable"


async def test_a_hello_without_its_beginning(internet: Internet, autojump_clock: MockClock) -> None:
    """What waits for an octet that never comes is bounded in time, like half a hello."""
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        stream = await guest.connect_tcp(SHARED, 443)
        first = from_guest & tcp.payload.contains(b"\x16\x03\x01")
        with network.faults.drop(first):
            await stream.send_all((await hello_of(internet, "good.example")) + bytes(100_000))
            began = trio.current_time()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            assert trio.current_time() - began < 15
        assert network.flows[-1].sent == 0


async def test_half_a_hello_and_a_fin(internet: Internet, autojump_clock: MockClock) -> None:
    """Nothing more will come: refused at once."""
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        hello = await hello_of(internet, "good.example")
        stream = await guest.connect_tcp(SHARED, 443)
        await stream.send_all(hello[:50])
        await stream.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert network.flows[-1].sent == 0


async def test_a_server_that_speaks_first_is_heard(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Its banner comes while the guest's words are waited for; these pass on the pin."""

    async def banner(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(b"SSH-2.0-example\r\n")
        said = await stream.receive_some()
        await stream.send_all(b"you said " + said)

    internet["good.example"].tcp(22, banner)
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        stream = await guest.connect_tcp(SHARED, 22)
        assert await stream.receive_some() == b"SSH-2.0-example\r\n"
        await stream.send_all(b"SSH-2.0-guest\r\n")
        assert await stream.receive_some() == b"you said SSH-2.0-guest\r\n"
        assert network.verdicts[-1].allowed


async def test_every_request_of_a_connection_is_judged(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """The first may pass; the second to another name ends the connection, unsent."""
    host = internet["good.example"]
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        async with await guest.connect_tcp(SHARED, 80) as stream:
            for path in ("/one", "/two"):
                assert b"hello" in await page_of(stream, b"good.example", path)
            await stream.send_all(b"GET /three HTTP/1.1\r\nHost: bad.example\r\n\r\n")
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        assert [request.path for request in host.requests] == ["/one", "/two"]
        assert network.counters["policy.request_refused"] == 1


async def test_a_new_policy_is_asked_about_the_last_request(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """A kept connection that speaks to one that is denied now ends, whoever it was opened for."""
    both = NetworkPolicy.deny_all().allow_http("good.example", "bad.example")
    async with guest_under(both, internet) as (guest, network):
        await guest.resolve("bad.example")
        async with await guest.connect_tcp(SHARED, 80) as stream:
            for name in (b"good", b"bad"):
                assert b"hello" in await page_of(stream, name + b".example")
            network.set_policy(ONLY_GOOD)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_a_held_connection_meets_the_new_policy(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Denied whatever it will say: reset at once. Otherwise what it says then is judged by it."""
    both = NetworkPolicy.deny_all().allow_http("good.example", "bad.example")
    async with guest_under(both, internet) as (guest, network):
        await guest.resolve("bad.example")
        async with await guest.connect_tcp(SHARED, 80) as stream:
            network.set_policy(ONLY_GOOD)
            assert b"403" in await page_of(stream, b"bad.example")
        async with await guest.connect_tcp(SHARED, 80) as stream:
            assert b"hello" in await page_of(stream, b"good.example")
        async with await guest.connect_tcp(SHARED, 80) as stream:
            network.set_policy(NetworkPolicy.deny_all())
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_what_is_held_goes_as_soon_as_it_may(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Half a request, under a policy that does not ask any more for whom it is."""
    async with (
        guest_under(ONLY_GOOD, internet) as (guest, network),
        await guest.connect_tcp(SHARED, 80) as stream,
    ):
        await stream.send_all(b"GET / HT")
        await trio.sleep(1)
        network.set_policy(NetworkPolicy.allow_all())
        await trio.sleep(1)
        assert network.flows[-1].sent == 8


async def test_two_requests_at_once(internet: Internet, autojump_clock: MockClock) -> None:
    """Pipelined: the allowed one is served, the other one never leaves."""
    host = internet["good.example"]
    requests = b"".join(
        b"GET /" + name + b" HTTP/1.1\r\nHost: " + name + b".example\r\n\r\n"
        for name in (b"good", b"bad")
    )
    async with guest_under(ONLY_GOOD, internet) as (guest, _):
        stream = await guest.connect_tcp(SHARED, 80)
        await stream.send_all(requests)
        await last_words(stream)
        assert "/bad" not in [request.path for request in host.requests]


async def test_a_body_passes_whole(internet: Internet, autojump_clock: MockClock) -> None:
    """A megabyte is counted, not read; the request behind it is judged like the first."""
    host = internet["good.example"]
    host.http(lambda request: f"{len(request.body)}")
    body = bytes(range(256)) * 4096
    async with (
        guest_under(ONLY_GOOD, internet) as (guest, _),
        await guest.connect_tcp(SHARED, 80) as stream,
    ):
        head = f"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: {len(body)}\r\n\r\n"
        for _ in range(2):
            await stream.send_all(head.encode() + body)
            heard = b""
            while not heard.endswith(str(len(body)).encode()):
                heard += await stream.receive_some()
    assert [len(request.body) for request in host.requests] == [len(body)] * 2


async def test_connect_is_no_way_out(internet: Internet, autojump_clock: MockClock) -> None:
    """A proxy behind an allowed name would carry anything."""
    async with guest_under(ONLY_GOOD, internet) as (guest, network):
        stream = await guest.connect_tcp(SHARED, 80)
        await stream.send_all(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: good.example\r\n\r\n")
        assert b"200" not in await last_words(stream)
        assert network.flows[-1].sent == 0
