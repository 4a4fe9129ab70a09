"""HTTP and TLS at hosts that a test defines, and every kind of application."""

import io
import ssl
from collections.abc import Awaitable, Callable, Iterable
from http.client import HTTPResponse
from typing import Any, cast
from wsgiref.validate import validator

import pytest
import trio

from qemu_usernat.testing.internet import Internet, InternetHost, Request, Response, web
from tests.scripted_guest import GUEST
from tests.testing.internet.room import (
    ADDRESS,
    Guest,
    GuestConnection,
    GuestStream,
    guest_with,
    jumping,
)

GET = b"GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


@pytest.fixture
def internet() -> Internet:
    return Internet(seed=1)


@pytest.fixture
def example(internet: Internet) -> InternetHost:
    return internet.host("example.com", ADDRESS, aliases=["www.example.com"])


class Received:
    """An answer, read by Python's own client."""

    def __init__(self, octets: bytes, method: str = "GET") -> None:
        class Sock:
            def makefile(self, mode: str) -> io.BytesIO:
                return io.BytesIO(octets)

        response = HTTPResponse(cast(Any, Sock()), method=method)
        response.begin()
        self.status, self.reason = response.status, response.reason
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()


async def answer_to(connection: GuestConnection, request: bytes, method: str = "GET") -> Received:
    """The answer to the connection's only request."""
    await connection.send_all(request)
    octets = await connection.receives_all()
    assert not connection.was_reset
    return Received(octets, method)


async def get(guest: Guest, path: str = "/", host: str = "example.com") -> Received:
    connection = await guest.connects(80)
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    return await answer_to(connection, request.encode())


# -- kinds of application


@jumping
async def test_a_text_for_every_path(internet: Internet, example: InternetHost) -> None:
    """One line defines a web server; the request is noted with all that it said."""
    example.http("grüße\n")
    async with guest_with(internet) as guest:
        received = await get(guest, "/any/p%C3%A4th?q=%20x", "www.example.com:80")
        assert (received.status, received.reason) == (200, "")
        assert received.body == "grüße\n".encode()
        assert received.headers["content-type"] == "text/plain; charset=utf-8"
        assert received.headers["content-length"] == "8"
    (request,) = example.requests
    assert (request.method, request.path, request.query) == ("GET", "/any/päth", "q=%20x")
    assert (request.host, request.scheme, request.port) == ("www.example.com", "http", 80)
    assert (request.headers["connection"], request.body) == ("close", b"")
    assert request.source[0] == GUEST
    internet.assert_nothing_unexpected()


@jumping
async def test_bodies_by_path(internet: Internet, example: InternetHost) -> None:
    """Text, octets, or a response with its own status and header; everything else is 404."""
    example.http(
        {
            "/": "hello",
            "/data": b"\0\1",
            "/moved": Response(status=302, headers={"Location": "/"}),
            "/nothing": Response(status=204),
            "/html": Response("<p>", headers={"content-type": "text/html"}),
        }
    )
    async with guest_with(internet) as guest:
        assert (await get(guest)).body == b"hello"
        data = await get(guest, "/data?really")
        assert (data.body, data.headers["content-type"]) == (b"\0\1", "application/octet-stream")
        moved = await get(guest, "/moved")
        assert (moved.status, moved.headers["location"], moved.body) == (302, "/", b"")
        nothing = await get(guest, "/nothing")
        assert nothing.status == 204
        assert "content-length" not in nothing.headers
        assert (await get(guest, "/html")).headers["content-type"] == "text/html"
        missing = await get(guest, "/nosuch")
        assert (missing.status, missing.body) == (404, b"there is no /nosuch here\n")


@jumping
@pytest.mark.parametrize(
    ("asked", "status", "body", "says"),
    [
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("Bytes= 2-3", 206, b"23", "bytes 2-3/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=99999999999999999-", 416, b"", "bytes */10"),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=5-4", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=4-\r\nIf-Range: yesterday", 200, b"0123456789", None),
    ],
)
async def test_a_download_is_resumed(
    internet: Internet,
    example: InternetHost,
    asked: str,
    status: int,
    body: bytes,
    says: str | None,
) -> None:
    """`curl -C -` and `wget -c` get the part that they lack of a body that stands still."""
    example.http({"/file": b"0123456789"})
    example.http("0123456789", port=81)
    async with guest_with(internet) as guest:
        head = f"GET /file HTTP/1.0\r\nHost: example.com\r\nRange: {asked}\r\n\r\n"
        for port in (80, 81):
            received = await answer_to(await guest.connects(port), head.encode())
            assert (received.status, received.body) == (status, body)
            assert received.headers.get("content-range") == says
            assert received.headers["accept-ranges"] == "bytes"


@jumping
async def test_a_part_is_not_given_where_the_test_says_otherwise(
    internet: Internet, example: InternetHost
) -> None:
    """Another status than 200, a header that says so, a function that answers by itself."""
    plain = Response("0123456789", headers={"accept-ranges": "none"})
    example.http({"/none": plain, "/error": Response("0123456789", 500)})
    example.http(lambda request: "0123456789", port=81)
    async with guest_with(internet) as guest:
        for port, path, status in ((80, "/none", 200), (80, "/error", 500), (81, "/", 200)):
            head = f"GET {path} HTTP/1.0\r\nRange: bytes=4-\r\n\r\n"
            received = await answer_to(await guest.connects(port), head.encode())
            assert (received.status, received.body) == (status, b"0123456789")


@jumping
async def test_a_function_of_the_request(internet: Internet, example: InternetHost) -> None:
    """A coroutine function or a plain one, which gives a body or a response."""

    async def application(request: Request) -> Response:
        await trio.sleep(1)
        return Response(request.body[::-1], 201)

    example.http(application)
    example.http(lambda request: request.path, port=81)
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        request = b"POST /x HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello"
        received = await answer_to(connection, request)
        assert (received.status, received.body) == (201, b"olleh")
        connection = await guest.connects(81)
        assert (await answer_to(connection, GET)).body == b"/"
    assert example.requests[0].method == "POST"
    assert (example.requests[0].body, example.requests[0].version) == (b"hello", "1.0")


@jumping
async def test_a_wsgi_application(internet: Internet, example: InternetHost) -> None:
    """By PEP 3333, as the standard library's validator reads it: what comes, and what goes."""
    closed = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(100)
        said = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['QUERY_STRING']} "
        said += f"{environ['HTTP_X_ODD']} {environ['SERVER_NAME']} {environ['REMOTE_ADDR']} "
        start_response("200 Fine", [("Content-Type", "text/plain"), ("X-Twice", "1")])
        try:
            yield said.encode()
            yield b""
            yield body
        finally:
            closed.append(True)

    checked = validator(cast(Any, application))
    example.http(lambda environ, start_response: checked(environ, start_response))
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        request = (
            b"POST /p?q HTTP/1.1\r\nHost: example.com\r\nX-Odd: a\r\nX-Odd: b\r\n"
            b"Content-Length: 4\r\nConnection: close\r\n\r\nbody"
        )
        received = await answer_to(connection, request)
    assert (received.status, received.reason) == (200, "Fine")
    assert received.headers["x-twice"] == "1"
    assert received.body == f"POST /p q a, b example.com {GUEST} body".encode()
    assert closed


@jumping
async def test_a_wsgi_application_of_the_old_kind(
    internet: Internet, example: InternetHost
) -> None:
    """One that writes, and one that changes its mind before the first octet."""

    def writes(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])(b"written, ")
        return [b"returned"]

    def repents(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        start_response("500 Oh", [("Content-Length", "0")], (ValueError, ValueError(), None))
        return []

    example.http(writes)
    example.http(repents, port=81)
    async with guest_with(internet) as guest:
        assert (await get(guest)).body == b"written, returned"
        received = await answer_to(await guest.connects(81), GET)
        assert (received.status, received.reason, received.body) == (500, "Oh", b"")


@jumping
async def test_an_asgi_application(internet: Internet, example: InternetHost) -> None:
    """With its scope, the body, pieces of an answer, and the end of the exchange."""
    seen: list[Any] = []

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        seen.append((scope["type"], scope["method"], scope["path"], scope["query_string"]))
        seen.append(await receive())
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"one, ", "more_body": True})
        await trio.sleep(1)
        await send({"type": "http.response.body", "body": b"two"})
        seen.append(await receive())

    example.http(application)
    async with guest_with(internet) as guest:
        received = await get(guest, "/a%20b?c=d")
    assert received.body == b"one, two"
    assert received.headers["transfer-encoding"] == "chunked"
    assert seen == [
        ("http", "GET", "/a b", b"c=d"),
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
    ]


@jumping
async def test_an_asgi_application_that_watches_for_the_end(
    internet: Internet, example: InternetHost
) -> None:
    """As frameworks do it beside a long answer: they are not told that the guest is gone before
    the answer is."""
    order = []

    async def application(scope: object, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            assert (await receive())["type"] == "http.request"
            assert (await receive())["type"] == "http.disconnect"
            order.append("disconnect")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await send({"type": "http.response.start", "status": 200})
            for number in range(3):
                await trio.sleep(1)
                more = number < 2
                await send({"type": "http.response.body", "body": b"x", "more_body": more})
                order.append("piece")
            await trio.sleep(1)

    example.http(application)
    async with guest_with(internet) as guest:
        assert (await get(guest)).body == b"xxx"
    assert order == ["piece", "piece", "piece", "disconnect"]


@jumping
async def test_an_application_may_be_an_object(internet: Internet, example: InternetHost) -> None:
    """As frameworks have them: what counts is how many things it is called with."""

    class Framework:
        def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            return [b"wsgi"]

    class Modern:
        async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"asgi"})

    example.http(Framework())
    example.http(Modern(), port=81)
    async with guest_with(internet) as guest:
        assert (await get(guest)).body == b"wsgi"
        assert (await answer_to(await guest.connects(81), GET)).body == b"asgi"


# -- the protocol


@jumping
async def test_several_requests_on_one_connection(
    internet: Internet, example: InternetHost
) -> None:
    """Kept alive, and also when the guest does not wait between them."""
    example.http(lambda request: request.path)
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        await connection.send_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a")
        await connection.receives_until(b"\r\n\r\n/1")
        await connection.send_all(b"\r\nConnection: close\r\n\r\n")
        assert (await connection.receives_all()).endswith(b"\r\n\r\n/2")
        await connection.send_eof()
        await trio.sleep(1)
    assert [request.path for request in example.requests] == ["/1", "/2"]
    assert [record.ended for record in example.connections] == ["closed"]


@jumping
async def test_a_guest_that_asks_whether_it_may_go_on_may(
    internet: Internet, example: InternetHost
) -> None:
    """`Expect: 100-continue`, as curl says it for larger bodies."""
    example.http(lambda request: str(len(request.body)))
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        await connection.send_all(
            b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3000\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert (await connection.receives_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await connection.send_all(bytes(3000))
        assert (await connection.receives_all()).endswith(b"\r\n\r\n3000")


@jumping
async def test_head_is_an_answer_without_its_body(
    internet: Internet, example: InternetHost
) -> None:
    """The length is told all the same."""
    example.http("hello")
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        received = await answer_to(connection, GET.replace(b"GET", b"HEAD"), "HEAD")
        assert (received.headers["content-length"], received.body) == ("5", b"")


@jumping
async def test_a_guest_that_speaks_no_http_is_told(
    internet: Internet, example: InternetHost
) -> None:
    """400, and no failure of the test's: the mistake is the guest's."""
    example.http("hello")
    async with guest_with(internet) as guest:
        received = await answer_to(await guest.connects(80), b"hello, anybody there?\r\n\r\n")
        assert received.status == 400
        connection = await guest.connects(80)
        await connection.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        await connection.send_eof()
        assert (await connection.receives_all()).startswith(b"HTTP/1.1 400 ")
    assert example.requests == []


@jumping
async def test_a_body_has_a_bound(
    internet: Internet, example: InternetHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that uploads without end is told 413, and does not fill the test's memory."""
    monkeypatch.setattr(web, "BODY_MAXIMUM", 100_000)
    example.http("hello")
    async with guest_with(internet) as guest:
        connection = await guest.connects(80)
        await connection.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n")
        await connection.send_all(bytes(110_000))
        assert (await connection.receives_until(b"octets")).startswith(b"HTTP/1.1 413 ")
    assert example.requests == []


@jumping
async def test_an_application_that_fails_fails_the_test(
    internet: Internet, example: InternetHost
) -> None:
    """Its error is told; so is one that never answers, or that answers with what is no body."""

    async def silent(scope: object, receive: object, send: object) -> None:
        return

    def lazy(environ: object, start_response: object) -> Iterable[bytes]:
        return [b"octets"]

    def late(environ: object, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"octets"
        start_response("500 Oh", [], (ValueError, ValueError("in the middle"), None))

    async with guest_with(internet) as guest:
        for application, told in (
            (lambda request: 1 // 0, "ZeroDivisionError: integer division or modulo by zero"),
            (lambda request: 17, "TypeError: the application has returned 17; allowed: str, b"),
            (silent, "RuntimeError: the application has ended without an answer"),
            (lazy, "RuntimeError: the application has not called start_response"),
            (late, "ValueError: in the middle"),
        ):
            example.http(application)  # type: ignore[arg-type]
            connection = await guest.connects(80)
            await connection.send_all(GET)
            await connection.until(lambda: connection.was_reset)  # noqa: B023
            assert f"TCP handler of example.com port 80, for {GUEST} port" in str(
                internet.errors[0]
            )
            assert told in str(internet.errors.pop())


def test_what_is_no_application_is_told(example: InternetHost) -> None:
    """With all kinds that are allowed."""
    for wrong in (17, lambda: "x", print):
        with pytest.raises(TypeError, match="allowed: str, bytes or a Response, a mapping"):
            example.http(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the path is 'x'; allowed: one that begins with"):
        example.http({"x": "y"})
    with pytest.raises(TypeError, match="/x is 17; allowed: str, bytes or a Response"):
        example.http({"/x": 17})  # type: ignore[dict-item]


# -- TLS


async def over_tls(
    guest: Guest, context: ssl.SSLContext, name: str, port: int = 443
) -> trio.SSLStream[GuestStream]:
    connection = await guest.connects(port)
    return trio.SSLStream(
        GuestStream(connection), context, server_hostname=name, https_compatible=True
    )


async def shake_hands(connection: GuestConnection, context: ssl.SSLContext, name: str) -> None:
    """As a real client does it: before it gives up, it says why."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await connection.send_all(outgoing.read())
            await connection.receives_anything()
            incoming.write(await connection.receives(len(connection.received)))
        except ssl.SSLError:
            await connection.send_all(outgoing.read())
            raise


def trusting(internet: Internet) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=internet.ca_pem.decode())


@pytest.mark.parametrize("name", ["example.com", "www.example.com", ADDRESS])
@jumping
async def test_https_with_a_certificate_that_the_guest_can_trust(
    internet: Internet, example: InternetHost, name: str
) -> None:
    """Who trusts the internet's authority trusts each host by its names and addresses."""
    example.https(lambda request: f"{request.scheme} {request.host}")
    async with guest_with(internet) as guest:
        context = trusting(internet)
        context.set_alpn_protocols(["h2", "http/1.1"])
        tls = await over_tls(guest, context, name)
        await tls.send_all(GET)
        assert Received(b"".join([bytes(piece) async for piece in tls])).body == (
            b"https example.com"
        )
        assert tls.selected_alpn_protocol() == "http/1.1"
        await tls.aclose()
        await trio.sleep(1)
    assert [record.ended for record in example.connections] == ["closed"]
    assert len(example.requests) == 1


@jumping
async def test_a_guest_that_does_not_trust_is_no_failure_of_the_test(
    internet: Internet, example: InternetHost
) -> None:
    """It is how that connection has ended, in words; no request was seen."""
    example.https("secret")
    async with guest_with(internet) as guest:
        for context, name in (
            (ssl.create_default_context(), "example.com"),
            (trusting(internet), "other.example"),
        ):
            connection = await guest.connects(443)
            with pytest.raises(ssl.SSLCertVerificationError):
                await shake_hands(connection, context, name)
            await connection.until(lambda: connection.was_reset)  # noqa: B023
    one, other = (record.ended for record in example.connections)
    assert one == "TLS failed: TLSV1_ALERT_UNKNOWN_CA"
    assert other == "TLS failed: SSLV3_ALERT_BAD_CERTIFICATE"
    assert example.requests == []


@jumping
async def test_a_guest_that_resets_inside_tls(internet: Internet, example: InternetHost) -> None:
    """As without TLS: that is how the connection has ended, and no failure."""
    example.https("secret")
    async with guest_with(internet) as guest:
        tls = await over_tls(guest, trusting(internet), "example.com")
        await tls.do_handshake()
        await tls.transport_stream.connection.resets()
        await trio.sleep(1)
    assert example.connections[0].ended == "reset by the guest"


@jumping
async def test_plain_http_where_tls_is_spoken(internet: Internet, example: InternetHost) -> None:
    """The guest's mistake ends its connection, and is told in its record."""
    example.https("secret")
    async with guest_with(internet) as guest:
        connection = await guest.connects(443)
        await connection.send_all(GET)
        await connection.until(lambda: connection.was_reset)
    assert example.connections[0].ended == "TLS failed: HTTP_REQUEST"


@jumping
async def test_any_protocol_inside_tls(internet: Internet, example: InternetHost) -> None:
    """As mail servers do it: a handler of a stream, encrypted."""

    async def greet(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"* OK\r\n")

    example.tls(993, greet)
    async with guest_with(internet) as guest:
        tls = await over_tls(guest, trusting(internet), "example.com", 993)
        assert b"".join([bytes(piece) async for piece in tls]) == b"* OK\r\n"
        await tls.aclose()


def test_the_authority_is_made_once(internet: Internet) -> None:
    """What is put into a guest's image is what signs."""
    assert internet.ca_pem.startswith(b"-----BEGIN CERTIFICATE-----")
    assert internet.ca_pem == internet.authority.cert_pem.bytes()
