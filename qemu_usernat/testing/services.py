"""Servers on the host's loopback for a guest to talk to: names, pages, bytes, datagrams.

Owns what a guest can ask of them; refuses to know how it gets there. Each is a task to be started
with ``await nursery.start(…)``, which returns the port, and ends with its nursery.
"""

import errno
import hashlib
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

if TYPE_CHECKING:
    import trustme

HOST = "127.0.0.1"
CHUNK = 1 << 20  # bytes; large content repeats one random block of this size
READ_SIZE = 65_536  # bytes
TTL = 60  # seconds
MAX_MESSAGE = 65_535  # bytes; RFC 1035, 4.2.2
CONTENT = random.Random("any bytes, but the same ones in every run").randbytes(CHUNK)
GREETING = b"hello from the host\n"

Handler = Callable[[trio.abc.Stream], Awaitable[None]]


def digest(size: int) -> str:
    """SHA-256 of what ``GET /bytes/SIZE`` answers."""
    whole = hashlib.sha256()
    for _ in range(size // CHUNK):
        whole.update(CONTENT)
    whole.update(CONTENT[: size % CHUNK])
    return whole.hexdigest()


def tls_for(name: str, authority: "trustme.CA") -> ssl.SSLContext:
    """A server's TLS for `name`, with a certificate by `authority`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def http(
    tls: ssl.SSLContext | None = None,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """HTTP/1.1, with TLS where a context is given: one request a connection.

    ``GET /bytes/N`` answers N bytes (see `digest`), any other GET the greeting; PUT answers the
    hexadecimal SHA-256 of what was put.
    """

    async def serve(stream: trio.abc.Stream) -> None:
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        async with stream:
            await _answer_http(stream)

    await tcp(serve, task_status=task_status)


async def tcp(
    handler: Handler, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """A TCP server; a peer that breaks off is nobody's mistake."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await handler(stream)
        except trio.BrokenResourceError:
            pass

    [listener] = await trio.open_tcp_listeners(0, host=HOST)
    started = partial(task_status.started, listener.socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        started()


async def count_until_end(stream: trio.abc.Stream) -> None:
    """A `tcp` handler: read to the peer's end, then say how much came, then end."""
    count = 0
    while data := await stream.receive_some(READ_SIZE):
        count += len(data)
    await stream.send_all(b"%d bytes\n" % count)


async def udp_echo(*, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Every datagram goes back where it came from, of any size."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as socket:
        await socket.bind((HOST, 0))
        task_status.started(socket.getsockname()[1])
        while True:
            data, address = await socket.recvfrom(READ_SIZE)
            await socket.sendto(data, address)


async def name_server(
    records: Mapping[str, str], *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """DNS over UDP and TCP on one port, for the A and TXT records given; else NXDOMAIN.

    A value that is an IPv4 address is an A record, any other value a TXT record. Over UDP an
    answer that does not fit is truncated (RFC 1035, 4.2.1).
    """

    def answer(query: bytes, limit: int) -> bytes:
        question = dns.message.from_wire(query)
        response = dns.message.make_response(question)
        response.flags |= dns.flags.RA
        name = question.question[0].name
        value = records.get(name.to_text(omit_final_dot=True).lower())
        if value is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            kind = "A" if value.replace(".", "").isdigit() else "TXT"
            if question.question[0].rdtype == dns.rdatatype.from_text(kind):
                response.answer.append(dns.rrset.from_text(name, TTL, "IN", kind, value))
        return response.to_wire(max_size=limit, prefer_truncation=True)

    async def over_tcp(stream: trio.abc.Stream) -> None:
        received = bytearray()
        while data := await stream.receive_some(READ_SIZE):
            received += data
            while len(received) >= 2 + (length := int.from_bytes(received[:2], "big")) > 2:
                wire = answer(bytes(received[2 : 2 + length]), MAX_MESSAGE)
                del received[: 2 + length]
                await stream.send_all(len(wire).to_bytes(2, "big") + wire)

    socket, listeners = await _same_port()
    with socket:
        port = socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, over_tcp, listeners)
            task_status.started(port)
            while True:
                query, address = await socket.recvfrom(READ_SIZE)
                size = max(512, dns.message.from_wire(query).payload)
                await socket.sendto(answer(query, size), address)


async def _same_port() -> tuple[trio.socket.SocketType, list[trio.SocketListener]]:
    """A UDP socket and TCP listeners at one port, which is free for UDP first and may not be for
    TCP: then another one is."""
    while True:
        socket = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        await socket.bind((HOST, 0))
        try:
            return socket, await trio.open_tcp_listeners(socket.getsockname()[1], host=HOST)
        except OSError as error:
            socket.close()
            if error.errno != errno.EADDRINUSE:
                raise


async def _answer_http(stream: trio.abc.Stream) -> None:
    received = bytearray()
    while b"\r\n\r\n" not in received:
        data = await stream.receive_some(READ_SIZE)
        if not data:
            return
        received += data
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    method, path, *_ = head.decode("latin-1").split(" ")
    if method == "PUT":
        content = await _received_digest(stream, head, body)
        await _send(stream, len(content), [content])
    elif path.startswith("/bytes/"):
        size = int(path.removeprefix("/bytes/"))
        chunks = [CONTENT] * (size // CHUNK) + [CONTENT[: size % CHUNK]]
        await _send(stream, size, chunks)
    else:
        await _send(stream, len(GREETING), [GREETING])


async def _received_digest(stream: trio.abc.Stream, head: bytes, body: bytes) -> bytes:
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(headers[b"content-length"])
    whole, count = hashlib.sha256(body), len(body)
    while count < length:
        data = await stream.receive_some(READ_SIZE)
        if not data:
            break
        whole.update(data)
        count += len(data)
    return whole.hexdigest().encode() + b"\n"


async def _send(stream: trio.abc.Stream, size: int, chunks: list[bytes]) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    await stream.send_all(head.encode())
    for chunk in chunks:
        await stream.send_all(chunk)
