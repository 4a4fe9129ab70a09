"""The kinds of web application that a test may give, each made into the one kind that is called.

A body for every path, bodies by path, a function of a request, WSGI (PEP 3333), ASGI (version 3).
"""

import inspect
import io
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import trio
from attrs import Factory, frozen

from qemu_usernat.testing.internet.web import Answer, Called, Request

_WITHOUT_BODY = frozenset({204, 304})  # RFC 9110, 6.4.1


@frozen
class Response:
    """An HTTP response."""

    body: str | bytes = b""
    status: int = 200
    headers: Mapping[str, str] = Factory(dict)
    """Content-Length comes by itself, and Content-Type by the kind of body."""


Body: TypeAlias = str | bytes | Response
Function: TypeAlias = Callable[[Request], Body | Awaitable[Body]]
Wsgi: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]
Asgi: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
Application: TypeAlias = Body | Mapping[str, Body] | Function | Wsgi | Asgi

_ALLOWED = (
    "str, bytes or a Response, a mapping of paths to these, a function of a Request, "
    "a WSGI application (two parameters), an ASGI application (three)"
)


def as_called(application: Application) -> Called:
    """Any of them as the one kind; TypeError where it is none of them."""
    if isinstance(application, (str, bytes, Response)):
        return _from_body(application)
    if isinstance(application, Mapping):
        for path, body in application.items():
            if not path.startswith("/"):
                raise ValueError(f'the path is {path!r}; allowed: one that begins with "/"')
            if not isinstance(body, (str, bytes, Response)):
                raise TypeError(f"{path} is {body!r}; allowed: str, bytes or a Response")
        return _from_mapping(application)
    match _parameters(application):
        case 1:
            return _from_function(cast(Function, application))
        case 2 if not inspect.iscoroutinefunction(application):
            return _from_wsgi(cast(Wsgi, application))
        case 3:
            return _from_asgi(cast(Asgi, application))
    raise TypeError(f"application is {application!r}; allowed: {_ALLOWED}")


def _parameters(application: object) -> int | None:
    """How many arguments it must be given."""
    if not callable(application):
        return None
    parameters = inspect.signature(application).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        parameter.kind in positional and parameter.default is inspect.Parameter.empty
        for parameter in parameters
    )


# -- texts and functions


def _whole(body: Body) -> Response:
    """With octets for a body, and the header that says of which kind they are."""
    response = body if isinstance(body, Response) else Response(body)
    octets, kind = response.body, "application/octet-stream"
    if isinstance(octets, str):
        octets, kind = octets.encode(), "text/plain; charset=utf-8"
    headers = dict(response.headers)
    if response.status not in _WITHOUT_BODY and "content-type" not in map(str.lower, headers):
        headers["Content-Type"] = kind
    return Response(octets, response.status, headers)


def _part(whole: Response, request: Request) -> Response:
    """What is asked for of a body that stands still, so that a download that broke off can go on
    (RFC 9110, 14)."""
    given = {name.lower() for name in whole.headers}
    if whole.status != 200 or given & {"accept-ranges", "content-length", "content-range"}:
        return whole
    headers, length = {**whole.headers, "Accept-Ranges": "bytes"}, len(whole.body)
    wanted = None
    if request.method == "GET" and "if-range" not in request.headers:  # there are no validators
        wanted = _range(request.headers.get("range", ""), length)
    if wanted is None:
        return Response(whole.body, 200, headers)
    if not wanted:
        return Response(b"", 416, {**headers, "Content-Range": f"bytes */{length}"})
    headers["Content-Range"] = f"bytes {wanted[0]}-{wanted[-1]}/{length}"
    return Response(whole.body[wanted[0] : wanted[-1] + 1], 206, headers)


def _range(header: str, length: int) -> range | None:
    """Which octets are asked for; none where these are not there, None where it says no single
    range, and all are given."""
    found = re.fullmatch(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", header, re.IGNORECASE)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return range(max(0, length - int(found[2])), length)
    first, last = int(found[1]), int(found[2] or length)
    return None if last < first and found[2] else range(first, min(last + 1, length))


async def _give(body: Body, answer: Answer) -> None:
    response = _whole(body)
    headers = dict(response.headers)
    given = {name.lower() for name in headers}
    if response.status not in _WITHOUT_BODY and not given & {"content-length", "transfer-encoding"}:
        headers["Content-Length"] = str(len(response.body))
    await answer.start(response.status, headers.items())
    assert isinstance(response.body, bytes)
    await answer.write(response.body)


def _from_body(body: Body) -> Called:
    async def call(request: Request, answer: Answer) -> None:
        await _give(_part(_whole(body), request), answer)

    return call


def _from_mapping(bodies: Mapping[str, Body]) -> Called:
    async def call(request: Request, answer: Answer) -> None:
        if request.path not in bodies:
            answer.on_missing()
        missing = Response(f"there is no {request.path} here\n", 404)
        await _give(_part(_whole(bodies.get(request.path, missing)), request), answer)

    return call


def _from_function(function: Function) -> Called:
    async def call(request: Request, answer: Answer) -> None:
        body = function(request)
        if inspect.isawaitable(body):
            body = await body
        if not isinstance(body, (str, bytes, Response)):
            raise TypeError(
                f"the application has returned {body!r}; allowed: str, bytes or a Response"
            )
        await _give(body, answer)

    return call


# -- WSGI


def _from_wsgi(application: Wsgi) -> Called:
    async def call(request: Request, answer: Answer) -> None:
        head: list[tuple[str, list[tuple[str, str]]]] = []
        written: list[bytes] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exception: Any = None
        ) -> Callable[[bytes], None]:
            if exception is not None and answer.started:
                raise exception[1].with_traceback(exception[2])
            head[:] = [(status, headers)]
            return written.append

        async def give(octets: bytes) -> None:
            """The head goes with the first octets: until then the application may replace it."""
            if octets and not answer.started:
                await start()
            await answer.write(octets)

        async def start() -> None:
            if not head:
                raise RuntimeError("the application has not called start_response")
            status, _, reason = head[0][0].partition(" ")
            await answer.start(int(status), head[0][1], reason)

        pieces = application(_environment(request), start_response)
        try:
            for piece in pieces:
                await give(b"".join(written) + piece)
                written.clear()
            await give(b"".join(written))
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        if not answer.started:
            await start()

    return call


def _environment(request: Request) -> dict[str, Any]:
    """PEP 3333: octets of the path as characters."""
    environment: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path.encode(errors="replace").decode("latin-1"),
        "QUERY_STRING": request.query,
        "SERVER_NAME": request.host or "localhost",
        "SERVER_PORT": str(request.port),
        "SERVER_PROTOCOL": f"HTTP/{request.version}",
        "REMOTE_ADDR": request.source[0],
        "REMOTE_PORT": str(request.source[1]),
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request.scheme,
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.headers.items():
        key = name.upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            environment[key] = value
        elif key not in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
            environment[f"HTTP_{key}"] = value
    return environment


# -- ASGI


def _from_asgi(application: Asgi) -> Called:
    async def call(request: Request, answer: Answer) -> None:
        asked = False
        ended = trio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": request.body, "more_body": False}
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                await answer.start(message["status"], message.get("headers", ()))
            elif message["type"] == "http.response.body":
                await answer.write(bytes(message.get("body", b"")))
                if not message.get("more_body", False):
                    ended.set()
            else:
                raise ValueError(f"the application has sent {message['type']!r}, which is not HTTP")

        await application(_scope(request), receive, send)

    return call


def _scope(request: Request) -> dict[str, Any]:
    headers = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.target.partition("?")[0].encode("latin-1"),
        "query_string": request.query.encode("latin-1"),
        "root_path": "",
        "headers": headers,
        "client": request.source,
        "server": (request.host, request.port),
    }
