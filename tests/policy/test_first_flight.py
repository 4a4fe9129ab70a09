"""First flights of every kind: what they are, what they may still be, and that nothing fools us.

The oracles are servers: OpenSSL for hellos, Python's own and h11 for requests. Where one of them
would serve a name, we have read the same, or found the flight unreadable.
"""

import io
import re
import ssl
from contextlib import suppress
from email.errors import MessageError
from http import server
from pathlib import Path
from random import Random
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qemu_usernat.policy
from qemu_usernat.policy import tls_stream
from qemu_usernat.policy.first_flight import REASONS, UNKNOWN, FirstFlightReader, Kind, read
from qemu_usernat.policy.http_requests import RequestStream
from qemu_usernat.policy.reading import FLIGHT_MAXIMUM, read_name
from qemu_usernat.primitives.errors import Malformed
from tests.policy.flights import (
    NAME,
    SAMPLES,
    flight_of,
    hello,
    hello_message,
    mutants,
    mutated,
    pieces,
    record,
    records,
    request,
    server_name,
    why,
)

ALL = {Kind.TLS, Kind.HTTP, Kind.OTHER}
WARNING = record(b"\x01\x5a", 21)  # an alert: user_canceled


def ssl2_hello(version: bytes) -> bytes:
    """A hello of SSL 2's form, for any version (RFC 5246, E.2)."""
    ciphers, challenge = bytes.fromhex("00c02f 00009c 0000ff"), bytes(32)
    lengths = (len(ciphers), 0, len(challenge))
    body = b"\x01" + version + b"".join(n.to_bytes(2, "big") for n in lengths) + ciphers + challenge
    return (0x8000 | len(body)).to_bytes(2, "big") + body


@pytest.mark.parametrize(
    ("octets", "kind", "name", "reason"),
    [
        (hello(), Kind.TLS, "pypi.org", None),
        (records(hello_message()), Kind.TLS, None, "tls.no_name"),
        (hello(b"10.0.0.1"), Kind.TLS, None, "name.is_address"),
        (request(), Kind.HTTP, "pypi.org", None),
        (request(host=None), Kind.HTTP, None, "http.no_host"),
        (b"SSH-2.0-OpenSSH\r\n", Kind.OTHER, None, None),
        (b"\0", Kind.OTHER, None, None),
    ],
)
def test_a_flight_has_a_kind_and_perhaps_a_name(
    octets: bytes, kind: Kind, name: str | None, reason: str | None
) -> None:
    """A name, a reason why there is none, or a protocol in which there is none."""
    flight = read(octets, 80)
    assert (flight.kind, flight.name, flight.why) == (kind, name, reason)
    assert flight.possible == {kind}
    assert not flight.is_open
    assert read(octets, 80, at_end=True) == flight


@pytest.mark.parametrize(
    ("octets", "possible"),
    [
        (b"", ALL),
        (b"\x16", {Kind.TLS, Kind.OTHER}),
        (b"\x80", ALL),
        (b"\x80\x2e\x01", {Kind.TLS, Kind.OTHER}),
        (hello()[:5], {Kind.TLS, Kind.OTHER}),
        (hello()[:6], {Kind.TLS}),
        (b"G", {Kind.HTTP, Kind.OTHER}),
        (b"(", {Kind.HTTP, Kind.OTHER}),
        (b"\r\n", {Kind.HTTP, Kind.OTHER}),
        (b"GET / HTTP/1.1\r", {Kind.HTTP, Kind.OTHER}),
        (b"GET / HTTP/1.1\r\n", {Kind.HTTP}),
    ],
)
def test_a_beginning_tells_what_it_can_become(octets: bytes, possible: set[Kind]) -> None:
    """So a judge that wants TLS need not wait for the end of what is none."""
    flight = read(octets, 443)
    assert flight.is_open
    assert flight.possible == possible
    ended = read(octets, 443, at_end=True)
    assert ended.why == "flight.incomplete"
    assert ended.possible == possible
    assert ended.name is None
    assert ended.kind is (next(iter(possible)) if len(possible) == 1 else None)


def test_silence_is_unreadable_in_the_end() -> None:
    """Who waits for us to give up looking has no name then, and does not get one later."""
    reader = FirstFlightReader(443)
    assert reader.feed(b"") == UNKNOWN
    ended = reader.end()
    assert ended.why == "flight.incomplete"
    assert reader.feed(hello()) == ended
    assert reader.end() == ended


def test_what_was_read_stays_read() -> None:
    """Neither more octets nor the end change it."""
    reader = FirstFlightReader(443)
    flight = reader.feed(hello())
    assert reader.feed(hello(b"evil.example")) == flight
    assert reader.end() == flight


# The shortest way to each reason; those of what follows a first flight are in tests of its own.
WAYS = {
    "flight.incomplete": b"",
    "flight.too_large": b"G" * FLIGHT_MAXIMUM,
    "name.empty": hello(b""),
    "name.is_address": hello(b"::1"),
    "name.malformed": hello(b"\0"),
    "tls.ssl2": b"\x80\x2e\x01\x03\x01",
    "tls.not_handshake": record(b"\x01\0", 21),
    "tls.not_client_hello": record(b"\0"),
    "tls.empty_record": record(b""),
    "tls.record_too_large": b"\x16\x03\x01\xff\xff",
    "tls.trailing": record(hello_message(server_name(NAME)) + b"\0"),
    "tls.malformed": record(b"\x01\0\0\0"),
    "tls.extension_twice": records(hello_message(server_name(NAME), server_name(NAME))),
    "tls.several_names": records(hello_message(server_name(NAME, NAME))),
    "tls.name_type": records(hello_message(server_name(NAME, name_type=1))),
    "tls.no_name": records(hello_message()),
    "http.blank": b"\r\n" + request(),
    "http.bare_lf": b"GET / HTTP/1.1\n",
    "http.bare_cr": b"GET / HTTP/1.1\r\r\n",
    "http.request_line": b"GET  / HTTP/1.1\r\n",
    "http.version": b"GET / HTTP/1.2\r\n",
    "http.version_0_9": b"GET /\r\n",
    "http.version_2": b"PRI * HTTP/2.0\r\n",
    "http.connect": b"CONNECT pypi.org:443 HTTP/1.1\r\n",
    "http.target": b"GET pypi.org HTTP/1.1\r\n",
    "http.folded": request(b" folded"),
    "http.space_before_colon": request(b"X : y"),
    "http.field": request(b"X"),
    "http.no_host": request(host=None),
    "http.several_hosts": request(b"Host: pypi.org"),
    "http.authority": request(host=b"Host: pypi.org:x"),
    "http.userinfo": request(host=b"Host: a@pypi.org"),
    "http.two_authorities": request(line=b"GET http://a.example HTTP/1.1"),
    "http.another_port": request(host=b"Host: pypi.org:81"),
    "http.upgrade": request(b"Upgrade: h2c"),
    "http.content_length": request(b"Content-Length: x"),
    "http.transfer_encoding": request(b"Transfer-Encoding: x"),
    "http.two_lengths": request(b"Content-Length: 0", b"Content-Length: 0"),
    "http.body": request(b"Content-Length: 1"),
}


@pytest.mark.parametrize("reason", WAYS)
def test_each_reason_is_reached(reason: str) -> None:
    """What is told to a person is what was found."""
    assert why(WAYS[reason]) == reason


def test_the_list_of_reasons_is_closed() -> None:
    """What the code can say stands in it, and nothing else does."""
    assert set(REASONS) == {*WAYS, *tls_stream.REASONS, "http.chunk"}
    source = "".join(
        path.read_text()
        for path in Path(qemu_usernat.policy.__path__[0]).glob("*.py")
        if path.stem in ("reading", "first_flight") or path.stem.startswith(("tls_", "http_"))
    )
    told = re.findall(r'"((?:flight|name|tls|http)\.[a-z0-9_]+)"', source)
    assert set(told) == set(REASONS)


@given(mutants, st.lists(st.integers(0), max_size=30), st.sampled_from([80, 443]))
def test_a_cut_changes_nothing(octets: bytes, cuts: list[int], port: int) -> None:
    """However a guest's segments fall, its flight is the same, and nothing is taken back."""
    assert flight_of(pieces(octets, cuts), port) == read(octets, port)


@given(mutants)
def test_octet_by_octet_is_the_same(octets: bytes) -> None:
    """The finest of all cuts, and after each octet what is known is what the whole so far says."""
    reader = FirstFlightReader(80)
    for n in range(min(len(octets), 400)):
        known = reader.flight
        flight = reader.feed(octets[n : n + 1])
        assert flight.possible <= known.possible
        assert known.is_open or flight == known
        if n % 7 == 0:
            assert flight == read(octets[: n + 1], 80)


@given(mutants, st.binary(max_size=300))
def test_more_octets_never_contradict(octets: bytes, more: bytes) -> None:
    """An outcome is for good, and what was impossible stays so."""
    early, late = read(octets, 80), read(octets + more, 80)
    assert late.possible <= early.possible
    assert early.is_open or late == early


def try_mutants(count: int, seed: int) -> None:
    """Read `count` bent flights in one piece and in some; follow requests to their end."""
    random = Random(seed)
    for _ in range(count):
        octets = mutated(random, random.choice(SAMPLES))
        port = random.choice((80, 443, 8080))
        flight = read(octets, port, at_end=True)
        assert (flight.name is None) or (flight.why is None)
        assert flight.why is None or flight.why in REASONS
        assert flight.name is None or read_name(flight.name.encode()) == flight.name
        cuts = [random.randrange(len(octets) + 1) for _ in range(random.randrange(6))]
        assert flight_of(pieces(octets, cuts), port) == read(octets, port)
        stream = RequestStream(port)
        stream.feed(octets)
        while stream.pending is not None:
            stream.admit()
        assert stream.allowed <= len(octets) or flight.kind is Kind.HTTP
        assert stream.why is None or stream.why in REASONS


def test_bent_flights_are_no_trouble() -> None:
    """Whatever becomes of a hello or a request on its way, it is read, or said to be unreadable."""
    try_mutants(3000, seed=5)


@pytest.mark.deep
def test_200_000_bent_flights_are_no_trouble() -> None:
    """The same, for long."""
    try_mutants(200_000, seed=200_000)


class Counted(bytearray):
    """Octets that count how many of them are touched."""

    touched = 0

    def __iadd__(self, more: Any) -> "Counted":  # type: ignore[misc]
        self.touched += len(more)
        super().__iadd__(more)
        return self

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.touched += len(found) if isinstance(key, slice) else 1
        return found

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        end = len(self) if end is None else min(end, len(self))
        found = super().find(sub, start, end)
        self.touched += (end if found < 0 else found) - start
        return found


LARGE = {
    "hello": hello(NAME, padding=40_000),
    "hello in small records": hello(NAME, padding=6_000, size=1),
    "many extensions": records(
        hello_message(*[n.to_bytes(2, "big") + b"\0\0" for n in range(1, 9000)])
    ),
    "one long field": request(b"X: " + b"y" * 40_000),
    "many fields": request(*[b"X: y"] * 6_000),
    "long request line": request(line=b"GET /" + b"a" * 40_000 + b" HTTP/1.1"),
    "a line without end": b"a" * 40_000,
    "empty lines": b"\r\n" * 20_000,
}


@pytest.mark.parametrize("what", LARGE)
def test_octet_by_octet_costs_no_more_than_linear(what: str) -> None:
    """A guest that sends single octets has us touch each of them a few times, not thousands."""
    octets = LARGE[what]
    reader = FirstFlightReader(80)
    hello_reader, request_reader = reader._hello, reader._request
    hello_reader.message = messages = Counted()
    request_reader._lines.held = lines = Counted()
    for n in range(len(octets)):
        reader.feed(octets[n : n + 1])
    assert not reader.flight.is_open or what in ("a line without end", "empty lines")
    assert messages.touched + lines.touched < 10 * len(octets)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_connection_of_many_requests_costs_no_more_than_linear(size: int) -> None:
    """Pipelined in one piece or in single octets."""
    chunked = request(b"Transfer-Encoding: chunked", line=b"PUT / HTTP/1.1")
    octets = (request() + chunked + b"1\r\na\r\n" * 50 + b"0\r\n\r\n") * 60
    stream = RequestStream(80)
    stream._lines.held = lines = Counted()
    for n in range(0, len(octets), size):
        stream.feed(octets[n : n + size])
        while stream.pending is not None:
            stream.admit()
    assert stream.allowed == len(octets)
    assert lines.touched < 10 * len(octets)


def names_served(octets: bytes) -> list[str]:
    """Which names OpenSSL's server is asked for by these octets."""
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")

    def on_name(_: object, name: str | None, __: object) -> int:
        names.append(name or "")
        return ssl.ALERT_DESCRIPTION_ACCESS_DENIED

    context.sni_callback = on_name
    incoming = ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    incoming.write(octets)
    with suppress(ssl.SSLError):
        connection.do_handshake()
    return names


def agrees_with_openssl(octets: bytes) -> None:
    """What OpenSSL takes for a hello we take for TLS, and for one with the same name or none."""
    for served in names_served(octets):
        flight = read(octets, 443)
        assert flight.kind is Kind.TLS, flight
        assert flight.name in (None, served.lower().removesuffix("."))


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_openssl_reads_the_samples_as_we_do(sample: int) -> None:
    """Those that are in order and those that are not."""
    agrees_with_openssl(SAMPLES[sample])


@pytest.mark.parametrize(
    "octets",
    [
        WARNING + hello(),
        WARNING * 4 + hello(),
        hello(size=1),
        record(b"") + hello(),
        record(b"") * 20 + hello(size=3),
        b"\x80\x2e\x01\x03\x03" + bytes(41),
        hello(b"PyPI.org."),
        hello(b"127.0.0.1"),
        records(hello_message(server_name(NAME), server_name(b"evil.example"))),
        records(hello_message(server_name(NAME, b"evil.example"))),
        record(hello_message(server_name(NAME)), version=0x0309),
    ],
)
def test_what_openssl_puts_up_with_does_not_pass_as_another_protocol(octets: bytes) -> None:
    """Empty records before a hello, for example."""
    agrees_with_openssl(octets)


@pytest.mark.parametrize("version", [b"\x03\x01", b"\x03\x03", b"\x03\x05", b"\x03\xff"])
def test_openssl_answers_hellos_of_ssl_2(version: bytes) -> None:
    """Whatever is offered above the versions that it knows; so none is another protocol."""
    assert names_served(ssl2_hello(version)) == [""]
    agrees_with_openssl(ssl2_hello(version))


def test_openssl_skips_empty_records() -> None:
    """So the oracle above is one: here is what a reader would miss that gives up at those."""
    assert names_served(record(b"") + hello()) == ["pypi.org"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of such names
@settings(max_examples=300)
@given(mutants)
def test_openssl_serves_no_name_that_we_did_not_read(octets: bytes) -> None:
    """Of bent hellos, too."""
    agrees_with_openssl(octets)


BINARY = re.compile(rb"[\x00-\x08\x0e-\x1b\x7f]")


class _Lenient(server.BaseHTTPRequestHandler):
    """Python's own server, which puts up with a lot, reading one request of `octets`."""

    def __init__(self, octets: bytes) -> None:
        self.rfile = io.BytesIO(octets)
        self.wfile = io.BytesIO()
        self.client_address = ("192.0.2.1", 1)
        self.raw_requestline = self.rfile.readline(65537)

    def log_message(self, *_: object) -> None:
        pass


def agrees_with_a_lenient_server(octets: bytes) -> None:
    """What Python's server takes for a request is HTTP to us, for the same host or none."""
    lenient = _Lenient(octets)
    try:
        if not lenient.raw_requestline.endswith(b"\n") or not lenient.parse_request():
            return
    except (MessageError, ValueError, AttributeError):
        return
    letters = lenient.command.isascii() and lenient.command.isalpha()
    if BINARY.search(lenient.raw_requestline) and not letters:
        return  # binary protocols are other protocols, as docs/threat-model.md says
    flight = read(octets, 80, at_end=True)
    assert flight.kind is Kind.HTTP, flight
    if flight.request is not None:
        assert _name_of(lenient.headers["Host"]) == flight.name
        assert lenient.command == flight.request.method


def _name_of(host: str) -> str:
    try:
        return read_name(host.strip().encode("latin-1").partition(b":")[0])
    except Malformed as problem:
        return problem.reason


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_a_lenient_server_reads_the_samples_as_we_do(sample: int) -> None:
    """Those that are in order and those that are not."""
    agrees_with_a_lenient_server(SAMPLES[sample])


@pytest.mark.parametrize(
    "line", [b"G@T / HTTP/1.1", b"GET: / HTTP/1.0", b'"GET" / HTTP/1.1', b"G\xc9T / HTTP/1.1"]
)
def test_no_first_word_hides_a_request(line: bytes) -> None:
    """Python's WSGI server takes any for a method."""
    assert _Lenient(request(line=line)).parse_request()
    agrees_with_a_lenient_server(request(line=line))


@settings(max_examples=500)
@given(mutants)
def test_a_lenient_server_serves_no_request_that_we_did_not_read(octets: bytes) -> None:
    """Odd spaces, odd line ends: where it finds a request, we did not find another protocol."""
    agrees_with_a_lenient_server(octets)


def requests_by_h11(octets: bytes) -> list[tuple[str, str, int]] | None:
    """Method, host and length of the body of each request, as h11 reads them; None if it won't."""
    found: list[tuple[str, str, int]] = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * FLIGHT_MAXIMUM)
    connection.receive_data(octets)
    try:
        while True:
            event: Any = connection.next_event()
            if isinstance(event, h11.Request):
                hosts = [value for key, value in event.headers if key == b"host"]
                found.append((event.method.decode(), hosts[0].decode("latin-1"), 0))
            elif isinstance(event, h11.Data):
                method, host, length = found[-1]
                found[-1] = method, host, length + len(event.data)
            elif isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return found
                connection.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        return None


def requests_by_us(octets: bytes) -> tuple[list[tuple[str, str]], RequestStream]:
    stream = RequestStream(80)
    stream.feed(octets)
    found = []
    while stream.pending is not None:
        found.append((stream.pending.method, stream.pending.name))
        stream.admit()
    return found, stream


def _a_request(
    method: str, target: str, fields: list[tuple[str, str]], body: bytes, chunks: int
) -> bytes:
    """As h11 writes it, with its body plain, or chunked if `chunks`; a GET has none."""
    if method == "GET":
        body, chunks = b"", 0
    connection = h11.Connection(h11.CLIENT)
    framing = ("Transfer-Encoding", "chunked") if chunks else ("Content-Length", str(len(body)))
    headers = [("Host", "pypi.org"), framing, *fields]
    out = connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
    if chunks:
        for n in range(0, len(body), chunks):
            out += connection.send(h11.Data(data=body[n : n + chunks])) or b""
    elif body:
        out += connection.send(h11.Data(data=body)) or b""
    return out + (connection.send(h11.EndOfMessage()) or b"")


TOKENS = st.text("abcXYZ019-_!#", min_size=1, max_size=12)
WELL_FORMED = st.builds(
    _a_request,
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"]),
    st.text("abc/?&=%~.;", max_size=20).map("/".__add__),
    st.lists(
        st.tuples(TOKENS.map("X-".__add__), st.text("abc ,;=\"'", max_size=20).map(str.strip))
    ),
    st.binary(max_size=200),
    st.integers(0, 60),
)


@given(st.lists(WELL_FORMED, min_size=1, max_size=5), st.lists(st.integers(0), max_size=10))
def test_what_h11_writes_we_read(conversation: list[bytes], cuts: list[int]) -> None:
    """Requests in order pass, all of them and to the last octet."""
    octets = b"".join(conversation)
    stream = RequestStream(80)
    methods = []
    for piece in pieces(octets, cuts):
        stream.feed(piece)
        while stream.pending is not None:
            methods.append(stream.pending.method)
            stream.admit()
    assert stream.why is None
    assert stream.allowed == len(octets)
    assert methods == [each.split(b" ", 1)[0].decode() for each in conversation]


@settings(max_examples=300)
@given(st.lists(WELL_FORMED, min_size=1, max_size=3), st.integers(0))
def test_what_we_read_h11_reads_so(conversation: list[bytes], seed: int) -> None:
    """Of bent requests those that we admit are the ones that it sees, each with its body."""
    octets = mutated(Random(seed), b"".join(conversation))
    ours, stream = requests_by_us(octets)
    theirs = requests_by_h11(octets[: stream.allowed])
    if theirs is not None:
        # It stops after a request that asks to close, where we go on judging.
        assert [each[:2] for each in theirs] == [
            (method, host) for (method, _), (_, host, _) in zip(ours, theirs, strict=False)
        ]
        assert [_name_of(host) for _, host, _ in theirs] == [name for _, name in ours][
            : len(theirs)
        ]
