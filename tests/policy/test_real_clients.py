"""What programs in use send first, taken from their own mouths: all of it is read.

The libraries write to memory, the programs to a listener on loopback that never answers.
"""

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trustme

from qemu_usernat.policy.first_flight import FirstFlight, FirstFlightReader, Kind
from qemu_usernat.policy.http_requests import RequestStream
from qemu_usernat.policy.tls_hello import Hello
from qemu_usernat.policy.tls_stream import HelloStream

PATIENCE = 30  # s, until a program that was started has said something

POST_QUANTUM = 0x11EC  # X25519MLKEM768


class Listener:
    """Takes one connection and reads its first flight, and what comes until it is decided."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(PATIENCE)
        self.port: int = self._socket.getsockname()[1]
        self.octets = b""
        self.reader = FirstFlightReader(self.port)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self._socket, self._socket.accept()[0] as connection:
            connection.settimeout(PATIENCE)
            while self.reader.flight.is_open:
                piece = connection.recv(65536)
                if not piece:
                    self.reader.end()
                self.octets += piece
                self.reader.feed(piece)

    def wait(self) -> None:
        self._thread.join()


@contextmanager
def listening() -> Iterator[Listener]:
    listener = Listener()
    try:
        yield listener
    finally:
        listener.wait()


def first_flight_of(program: str, *arguments: str) -> FirstFlight:
    """What is known of the flight that a program sends to `{port}` when it is run."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"there is no {program} here")
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    with listening() as listener:
        command = [path, *(each.replace("{port}", str(listener.port)) for each in arguments)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        try:
            listener.wait()
        finally:
            process.kill()
            process.communicate()
    return listener.reader.flight


TLS_PROGRAMS = {
    "openssl": "s_client -connect 127.0.0.1:{port} -servername pypi.org",
    "openssl, TLS 1.2": "s_client -connect 127.0.0.1:{port} -servername pypi.org -tls1_2",
    "openssl, TLS 1.3": "s_client -connect 127.0.0.1:{port} -servername pypi.org -tls1_3",
    "openssl, small records": (
        "s_client -connect 127.0.0.1:{port} -servername pypi.org -alpn h2,http/1.1 "
        "-max_send_frag 512 -split_send_frag 512 -groups P-521:P-384:X448:X25519"
    ),
    "openssl, no ticket": "s_client -connect 127.0.0.1:{port} -servername pypi.org -no_ticket",
    "curl": "-sk --connect-to ::127.0.0.1:{port} https://pypi.org/",
    "curl, HTTP/1": "-sk --http1.1 --no-alpn --connect-to ::127.0.0.1:{port} https://pypi.org/",
    "curl, capitals": "-sk --connect-to ::127.0.0.1:{port} https://PyPI.org./",
    "gnutls-cli": "--port={port} --sni-hostname=pypi.org --insecure 127.0.0.1",
}


@pytest.mark.parametrize("client", TLS_PROGRAMS)
def test_programs_that_speak_tls_name_their_server(client: str) -> None:
    """With whatever options they have."""
    flight = first_flight_of(client.split(",")[0], *TLS_PROGRAMS[client].split())
    assert (flight.kind, flight.name, flight.why) == (Kind.TLS, "pypi.org", None)


def test_wget_names_its_server() -> None:
    """It cannot be told another address for a name, so here its server is localhost."""
    arguments = "-q -t 1 -4 --no-check-certificate -O - https://localhost:{port}/"
    flight = first_flight_of("wget", *arguments.split())
    assert (flight.kind, flight.name, flight.why) == (Kind.TLS, "localhost", None)


def test_a_program_that_dials_an_address_names_nobody() -> None:
    """There is no name to be sent then."""
    flight = first_flight_of("curl", "-sk", "https://127.0.0.1:{port}/")
    assert (flight.kind, flight.name, flight.why) == (Kind.TLS, None, "tls.no_name")


HTTP_PROGRAMS: dict[str, tuple[str, str | None]] = {
    "curl -s http://localhost:{port}/": ("localhost", None),
    "curl -s -H Host:PyPI.Org. http://127.0.0.1:{port}/a?b": ("pypi.org", None),
    "curl -s -d a=b -H Host:pypi.org http://127.0.0.1:{port}/": ("pypi.org", None),
    "curl -s -0 http://localhost:{port}/": ("localhost", None),
    "curl -s -I http://localhost:{port}/": ("localhost", None),
    "curl -s -T /etc/hosts http://localhost:{port}/": ("localhost", None),
    "curl -s -H Transfer-Encoding:chunked -d a=b http://localhost:{port}/": ("localhost", None),
    "curl -s --http2 http://localhost:{port}/": ("localhost", "http.upgrade"),
    "curl -s --http2-prior-knowledge http://localhost:{port}/": ("localhost", "http.version_2"),
    "curl -s http://127.0.0.1:{port}/": ("", "name.is_address"),
    "curl -s -x 127.0.0.1:{port} http://pypi.org/": ("", "http.another_port"),
    "curl -s -x 127.0.0.1:{port} http://pypi.org:{port}/": ("pypi.org", None),
    "curl -s -p -x 127.0.0.1:{port} http://pypi.org/": ("", "http.connect"),
    "wget -q -t 1 -4 -O - http://localhost:{port}/": ("localhost", None),
    "wget -q -t 1 -4 -O - --post-data=a=b http://localhost:{port}/": ("localhost", None),
}


@pytest.mark.parametrize("command", HTTP_PROGRAMS)
def test_programs_that_speak_http_name_their_server(command: str) -> None:
    """Or are told from the first request why it would not do."""
    name, reason = HTTP_PROGRAMS[command]
    flight = first_flight_of(*command.split())
    assert flight.kind is Kind.HTTP
    assert (flight.name, flight.why) == ((None, reason) if reason else (name, None))


class Memory:
    """A TLS client that writes to memory."""

    def __init__(self, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_hostname="pypi.org", session=session
        )

    def step(self, octets: bytes = b"") -> bytes:
        """Give it the server's octets; its own."""
        self.incoming.write(octets)
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()


def client_context(**options: Any) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for name, value in options.items():
        setattr(context, name, value)
    return context


def alpn(context: ssl.SSLContext) -> None:
    context.set_alpn_protocols(["h2", "http/1.1"])


def group(name: str) -> Callable[[ssl.SSLContext], None]:
    return lambda context: context.set_ecdh_curve(name)


TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
CONTEXTS: dict[str, tuple[dict[str, Any], Sequence[Callable[[ssl.SSLContext], None]]]] = {
    "plain": ({}, ()),
    "TLS 1.2": ({"maximum_version": TLS_1_2}, ()),
    "TLS 1.3": ({"minimum_version": TLS_1_3}, ()),
    "ALPN": ({}, (alpn,)),
    "no tickets": ({"options": ssl.OP_NO_TICKET}, ()),
    "P-521": ({}, (group("secp521r1"),)),
    "X25519": ({}, (group("X25519"), alpn)),
}


@pytest.mark.parametrize("what", CONTEXTS)
def test_python_names_its_server(what: str) -> None:
    """Through its ssl module, as most of its clients do."""
    options, adjustments = CONTEXTS[what]
    context = client_context(**options)
    for adjust in adjustments:
        adjust(context)
    octets = Memory(context).step()
    flight = FirstFlightReader(443).feed(octets)
    assert (flight.kind, flight.name) == (Kind.TLS, "pypi.org")
    assert flight.hello is not None
    assert flight.hello.length == len(octets)
    assert flight.hello.alpn == (("h2", "http/1.1") if alpn in adjustments else ())
    assert (0x0304 in flight.hello.versions) is (what != "TLS 1.2")


def test_a_post_quantum_hello_is_read() -> None:
    """Of an OpenSSL newer than Debian's, whose key share takes more than a segment."""
    openssl = pytest.importorskip("OpenSSL.SSL")
    client = openssl.Connection(openssl.Context(openssl.TLS_CLIENT_METHOD), None)
    client.set_tlsext_host_name(b"pypi.org")
    client.set_connect_state()
    with pytest.raises(openssl.WantReadError):
        client.do_handshake()
    octets = client.bio_read(2**16)
    if POST_QUANTUM.to_bytes(2, "big") not in octets:
        pytest.skip("this OpenSSL has no post-quantum groups")
    assert len(octets) > 1460
    flight = FirstFlightReader(443).feed(octets)
    assert (flight.kind, flight.name) == (Kind.TLS, "pypi.org")


class Server:
    """A TLS server for pypi.org that reads from memory, and whom it was asked for."""

    def __init__(self, **options: Any) -> None:
        authority = trustme.CA()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.sni_callback = lambda _, name, __: self.names.append(name)
        for name, value in options.items():
            setattr(self.context, name, value)
        authority.issue_cert("pypi.org").configure_cert(self.context)
        self.trust = authority.configure_trust
        self.names: list[str | None] = []

    def converse(
        self, client: Memory, on_octets: Callable[[bytes], bytes] = lambda octets: octets
    ) -> list[bytes]:
        """Shake hands and exchange a few words; the client's flights, as `on_octets` bent them."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.context.wrap_bio(incoming, outgoing, server_side=True)
        flights = []
        from_server, shaken = b"", False
        for _ in range(6):
            flight = on_octets(client.step(from_server))
            flights.append(flight)
            incoming.write(flight)
            try:
                if not shaken:
                    tls.do_handshake()
                    shaken = True
                    tls.write(b"welcome")
            except ssl.SSLWantReadError:
                pass
            from_server = outgoing.read()
            if shaken and not from_server:
                break
            if shaken and client.tls.version() and not client.step(from_server):
                client.tls.read(100)  # and with it the session ticket
                client.tls.write(b"thank you")
                flights.append(client.outgoing.read())
                break
        return [flight for flight in flights if flight]


def watch(flights: list[bytes]) -> HelloStream:
    """Follow a client from its first flight on, in pieces as they come."""
    hello = FirstFlightReader(443).feed(flights[0]).hello
    assert isinstance(hello, Hello)
    stream = HelloStream(hello)
    for flight in flights:
        stream.feed(flight)
    return stream


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_a_handshake_passes_and_so_does_a_resumption(version: ssl.TLSVersion) -> None:
    """The hello of a resumption has a ticket or a pre-shared key more; both end unwatched."""
    server = Server(maximum_version=version)
    context = client_context()
    server.trust(context)
    client = Memory(context)
    stream = watch(server.converse(client))
    assert (stream.is_done, stream.why) == (True, None)
    session = client.tls.session
    assert session is not None
    assert session.has_ticket
    again = Memory(context, session)
    flights = server.converse(again)
    assert again.tls.session_reused
    stream = watch(flights)
    assert (stream.is_done, stream.why) == (True, None)
    assert server.names == ["pypi.org"] * 2


def asking_again() -> tuple[Server, Memory]:
    """A server that likes none of a client's key shares, so that there is a second hello."""
    server = Server()
    server.context.set_ecdh_curve("secp521r1")
    context = client_context()
    server.trust(context)
    return server, Memory(context)


def test_an_honest_second_hello_passes() -> None:
    """It names the same server as the first."""
    server, client = asking_again()
    stream = watch(server.converse(client))
    assert (stream.is_done, stream.why) == (True, None)
    assert server.names == ["pypi.org"] * 2


def test_a_second_hello_for_another_server_does_not() -> None:
    """OpenSSL's server would go by its name: the first hello was for the judge only."""
    server, client = asking_again()
    judged = iter([True])

    def bend(octets: bytes) -> bytes:
        return octets.replace(b"pypi.org", b"good.com") if next(judged, False) else octets

    with pytest.raises(ssl.SSLError):  # what the two have seen differs; a guest would see to that
        server.converse(client, bend)
    assert server.names == ["good.com", "pypi.org"]


def test_python_requests_pass_to_their_last_octet() -> None:
    """With bodies plain and chunked, one after the other on one connection."""

    class Wire:
        octets = b""

        def sendall(self, data: bytes) -> None:
            self.octets += bytes(data)

    connection = http.client.HTTPConnection("pypi.org", 8080)
    wire = Wire()
    bodies: list[Any] = [None, b"a=b", iter([b"first", b"second"])]
    for body in bodies:
        connection.sock = wire
        chunked = body is not None and not isinstance(body, bytes)
        connection.request("POST" if body else "GET", "/simple/?q=1", body, encode_chunked=chunked)
        connection._HTTPConnection__state = "Idle"  # type: ignore[attr-defined]
    stream, names = RequestStream(8080), []
    stream.feed(wire.octets)
    while stream.pending is not None:
        names.append((stream.pending.method, stream.pending.name, stream.pending.port))
        stream.admit()
    assert names == [(method, "pypi.org", 8080) for method in ("GET", "POST", "POST")]
    assert (stream.allowed, stream.why) == (len(wire.octets), None)
