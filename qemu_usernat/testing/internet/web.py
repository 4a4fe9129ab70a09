"""HTTP/1.1 and TLS at the hosts of the hermetic internet, by h11, ssl and trustme.

It owns one connection's way through requests and answers. What kinds of application there are,
and how each becomes the one that is called here, is for `applications` to know.
"""

import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TypeAlias
from urllib.parse import unquote

import h11
import trio
import trustme
from attrs import frozen

from qemu_usernat.testing.internet.records import Connection, Peer
from qemu_usernat.testing.internet.streams import HostStream
from qemu_usernat.testing.internet.watch import Watch

BODY_MAXIMUM = 64 * 1024 * 1024
"""Octets of a request's body; a larger one is answered by 413."""

HEADER_MAXIMUM = 64 * 1024  # octets of a request's line and header


@frozen
class Request:
    """An HTTP request, whole."""

    method: str
    path: str
    """Decoded, and without the query."""
    query: str
    """What follows the question mark, as it came."""
    headers: Mapping[str, str]
    """By name in lower case; several of one name are joined by a comma."""
    body: bytes
    host: str
    """The Host header: which name the guest has called."""
    scheme: str
    """"http" or "https"."""
    target: str
    """Path and query, as they came."""
    guest: str
    """The guest's name."""
    source: Peer
    """Address and port that it comes from."""
    port: int
    """The host's port that it came to."""
    version: str
    """"1.1" or "1.0"."""


Called: TypeAlias = "Callable[[Request, Answer], Awaitable[None]]"
"""An application of any kind."""

TlsHandler: TypeAlias = Callable[[trio.abc.Stream], Awaitable[None]]


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """The context of a server that shows `certificate`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    certificate.configure_cert(context)
    return context


_shaking_hands: ContextVar[Connection] = ContextVar("connection")


def over_tls(
    handler: TlsHandler, context: ssl.SSLContext, watch: Watch
) -> Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]:
    """A handler that serves inside TLS. A guest that does not agree, because it does not trust the
    certificate, for one, is no failure of the handler: it is how the connection has ended."""

    def on_server_name(tls: object, name: str | None, context: ssl.SSLContext) -> None:
        if name is not None:
            watch.on_name("tls", name, _shaking_hands.get())

    context.sni_callback = on_server_name

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        _shaking_hands.set(_record_of(stream))  # `do_handshake` calls back in this very task
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
            await handler(tls)
            await tls.aclose()
        except trio.BrokenResourceError as error:
            if not isinstance(error.__cause__, ssl.SSLError):
                raise
            assert isinstance(stream, HostStream)
            # A guest that says why it gives up resets behind it, perhaps before we have read that.
            stream.record.ended = f"TLS failed: {error.__cause__.reason or error.__cause__}"
            stream.reset()

    return serve


def http_handler(
    application: "Called", requests: list[Request], scheme: str, watch: Watch
) -> TlsHandler:
    """A handler of connections on which `application` answers; `requests` gets a note of each."""

    async def serve(stream: trio.abc.Stream) -> None:
        await _HttpConnection(stream, application, requests, scheme, watch).run()

    return serve


class _HttpConnection:
    """Request after request, until one end has had enough."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        application: "Called",
        requests: list[Request],
        scheme: str,
        watch: Watch,
    ) -> None:
        self._stream = stream
        self._application = application
        self._requests = requests
        self._scheme = scheme
        self._watch = watch
        self._record = _record_of(stream)
        self.h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_MAXIMUM)

    async def run(self) -> None:
        while True:
            try:
                request = await self._read_request()
            except h11.RemoteProtocolError as error:
                await self._complain(error.error_status_hint, str(error))
                return
            if request is None:
                return
            self._requests.append(request)
            if request.host and request.target.startswith(("/", "*")):  # else it asks a proxy
                self._watch.on_name(request.scheme, request.host, self._record)
            answer = Answer(self, request)
            await self._application(request, answer)
            await answer.finish()
            if self.h11.our_state is not h11.DONE or self.h11.their_state is not h11.DONE:
                return
            self.h11.start_next_cycle()

    async def _read_request(self) -> Request | None:
        """The next one with its whole body; None at the end."""
        head = await self._read_event()
        if not isinstance(head, h11.Request):
            return None
        body = bytearray()
        while isinstance(event := await self._read_event(), h11.Data):
            body += event.data
            if len(body) > BODY_MAXIMUM:
                await self._complain(413, f"the body is larger than {BODY_MAXIMUM} octets")
                return None
        return _request(head, bytes(body), self._scheme, self._record)

    async def _read_event(self) -> h11.Event:
        while (event := self.h11.next_event()) is h11.NEED_DATA:
            if self.h11.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.h11.receive_data(bytes(await self._stream.receive_some()))
        assert not isinstance(event, type)  # never PAUSED: we read on only when we have answered
        return event

    async def _complain(self, status: int, message: str) -> None:
        """Tell a guest that speaks no HTTP."""
        if self.h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [("Content-Length", f"{len(message)}"), ("Connection", "close")]
            await self.send(h11.Response(status_code=status, headers=headers))
            await self.send(h11.Data(data=message.encode()))
            await self.send(h11.EndOfMessage())

    def on_missing(self, request: Request) -> None:
        self._watch.on_missing(request.scheme, request.path, self._record)

    async def send(self, event: h11.Event) -> None:
        octets = self.h11.send(event)
        if octets:
            await self._stream.send_all(octets)


class Answer:
    """The answer to one request, as an application gives it: `start`, `write`, and the end."""

    def __init__(self, connection: _HttpConnection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._is_head = request.method == "HEAD"
        self.started = False

    def on_missing(self) -> None:
        """What is asked for is not there, and the test has not said so."""
        self._connection.on_missing(self._request)

    async def start(
        self, status: int, headers: Iterable[tuple[str | bytes, str | bytes]], reason: str = ""
    ) -> None:
        """The status and the header; without a Content-Length the body goes in chunks."""
        if self.started:
            raise RuntimeError("the application has begun its answer twice")
        self.started = True
        encoded = [(_octets(name), _octets(value)) for name, value in headers]
        response = h11.Response(status_code=status, headers=encoded, reason=reason.encode())
        await self._connection.send(response)

    async def write(self, octets: bytes) -> None:
        """A piece of the body."""
        if octets and not self._is_head:
            await self._connection.send(h11.Data(data=octets))

    async def finish(self) -> None:
        """The end of the answer, which must have begun."""
        if not self.started:
            raise RuntimeError("the application has ended without an answer")
        await self._connection.send(h11.EndOfMessage())


def _request(head: h11.Request, body: bytes, scheme: str, record: Connection) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    target = head.target.decode("latin-1")
    path, _, query = target.partition("?")
    return Request(
        method=head.method.decode(),
        path=unquote(path, errors="replace"),
        query=query,
        headers=headers,
        body=body,
        host=headers.get("host", "").partition(":")[0],
        scheme=scheme,
        target=target,
        guest=record.guest,
        source=record.source,
        port=record.port,
        version=head.http_version.decode(),
    )


def _octets(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text


def _record_of(stream: trio.abc.Stream) -> Connection:
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    assert isinstance(stream, HostStream)
    return stream.record
