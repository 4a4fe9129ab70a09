"""Requests of HTTP/1: whom they are for, where they end, and all that makes this doubtful."""

import pytest

from qemu_usernat.policy.http_head import Request
from qemu_usernat.policy.http_requests import NOT_HTTP, RequestOutcome, RequestReader
from qemu_usernat.policy.reading import FLIGHT_MAXIMUM, NEED_MORE, Unreadable
from tests.policy.flights import request


def read(octets: bytes, port: int = 80) -> RequestOutcome:
    return RequestReader(port).feed(octets)


def readable(octets: bytes, port: int = 80) -> Request:
    outcome = read(octets, port)
    assert isinstance(outcome, Request), outcome
    return outcome


def why(octets: bytes, port: int = 80) -> str:
    outcome = read(octets, port)
    assert isinstance(outcome, Unreadable), outcome
    return outcome.why


def test_a_request_tells_whom_it_is_for() -> None:
    """And how long it is: nothing else of it matters to a policy."""
    octets = request(b"Content-Length: 12", b"X: y", line=b"POST /a?b HTTP/1.1")
    assert readable(octets + b"hello, world") == Request(
        method="POST",
        name="pypi.org",
        port=80,
        version="1.1",
        length=len(octets),
        content_length=12,
        is_chunked=False,
    )


@pytest.mark.parametrize(
    ("host", "port", "name"),
    [
        (b"Host: pypi.org", 80, "pypi.org"),
        (b"HOST:pypi.org", 80, "pypi.org"),
        (b"host: \t PyPI.Org. \t", 80, "pypi.org"),
        (b"Host: pypi.org:80", 80, "pypi.org"),
        (b"Host: pypi.org:", 80, "pypi.org"),
        (b"Host: pypi.org.:00080", 80, "pypi.org"),
        (b"Host: pypi.org:8080", 8080, "pypi.org"),
        (b"Host: pypi.org", 8080, "pypi.org"),
    ],
)
def test_an_authority_has_one_spelling(host: bytes, port: int, name: str) -> None:
    """Capitals, a last dot, the usual port and space around it make no other."""
    assert readable(request(host=host), port).name == name


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (None, "http.no_host"),
        (b"Host: pypi.org\r\nHost: pypi.org", "http.several_hosts"),
        (b"Host: pypi.org\r\nhOST: evil.example", "http.several_hosts"),
        (b"Host:", "name.empty"),
        (b"Host: :80", "name.empty"),
        (b"Host: pypi.org, evil.example", "name.malformed"),
        (b"Host: pypi.org evil.example", "name.malformed"),
        (b"Host: pypi.org/", "name.malformed"),
        (b"Host: pypi.org%00.example", "name.malformed"),
        (b"Host: evil.example@pypi.org", "http.userinfo"),
        (b"Host: pypi.org:80@evil.example", "http.userinfo"),
        (b"Host: 93.184.216.34", "name.is_address"),
        (b"Host: 0x5db8d822:80", "name.is_address"),
        (b"Host: [2001:db8::1]", "name.is_address"),
        (b"Host: [::ffff:127.0.0.1]:80", "name.is_address"),
        (b"Host: ::1", "http.authority"),
        (b"Host: pypi.org:0", "http.authority"),
        (b"Host: pypi.org:65536", "http.authority"),
        (b"Host: pypi.org:80:80", "http.authority"),
        (b"Host: pypi.org:+80", "http.authority"),
        (b"Host: pypi.org:http", "http.authority"),
        (b"Host: pypi.org:443", "http.another_port"),
    ],
)
def test_a_doubtful_authority_is_none(host: bytes | None, reason: str) -> None:
    """There has to be one, once, and it has to be a name at the port that is called."""
    assert why(request(host=host)) == reason


def test_an_absolute_target_is_for_the_port_that_is_called() -> None:
    """At another port it would be one for a proxy, to call yet another server."""
    line = b"GET http://pypi.org/ HTTP/1.1"
    assert why(request(line=line), 3128) == "http.another_port"
    line, host = b"GET http://pypi.org:8080/ HTTP/1.1", b"Host: pypi.org:8080"
    assert readable(request(line=line, host=host), 8080).port == 8080
    assert why(request(line=line, host=b"Host: pypi.org"), 8080) == "http.two_authorities"


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        (b"GET http://pypi.org/simple/ HTTP/1.1", "pypi.org"),
        (b"GET HTTP://PyPI.org.:80 HTTP/1.0", "pypi.org"),
        (b"OPTIONS * HTTP/1.1", "pypi.org"),
        (b"GET //evil.example/ HTTP/1.1", "pypi.org"),
        (b"GET /http://evil.example/ HTTP/1.1", "pypi.org"),
        (b"GET /b\xc3\xbccher HTTP/1.1", "pypi.org"),
        (b"GET /a|b'c\" HTTP/1.1", "pypi.org"),
        (b"brew /pot HTTP/1.1", "pypi.org"),
        (b"GET http://evil.example/ HTTP/1.1", "http.two_authorities"),
        (b"GET http://pypi.org:81/ HTTP/1.1", "http.two_authorities"),
        (b"GET http://u:p@pypi.org/ HTTP/1.1", "http.userinfo"),
        (b"GET http://pypi.org@evil.example/ HTTP/1.1", "http.userinfo"),
        (b"GET http://93.184.216.34/ HTTP/1.1", "name.is_address"),
        (b"GET http:///path HTTP/1.1", "name.empty"),
        (b"GET http://pypi.org?@evil.example/ HTTP/1.1", "http.target"),
        (b"GET http://pypi.org#@evil.example/ HTTP/1.1", "http.target"),
        (b"GET http://pypi.org\\@evil.example/ HTTP/1.1", "http.target"),
        (b"GET https://pypi.org/ HTTP/1.1", "http.target"),
        (b"GET ftp://pypi.org/ HTTP/1.1", "http.target"),
        (b"GET pypi.org/ HTTP/1.1", "http.target"),
        (b"GET * HTTP/1.1", "http.target"),
        (b"GET ?q HTTP/1.1", "http.target"),
        (b"CONNECT pypi.org:443 HTTP/1.1", "http.connect"),
        (b"connect evil.example:443 HTTP/1.1", "http.connect"),
        (b"PRI * HTTP/2.0", "http.version_2"),
        (b"GET / HTTP/2.0", "http.version"),
        (b"GET / HTTP/1.2", "http.version"),
        (b"GET / HTTP/0.9", "http.version"),
        (b"GET / HTTP/3.1", "http.version"),
        (b"GET /", "http.version_0_9"),
        (b"GET http://evil.example/", "http.version_0_9"),
        (b"\tGET\v/", "http.version_0_9"),
        (b"GET path", "http.version_0_9"),
        (b"POST HTTP://evil.example/", "http.version_0_9"),
        (b"GET / http/1.1", "http.request_line"),
        (b"GET / HTTP/1.1 ", "http.request_line"),
        (b"GET / HTTP/11.1", "http.request_line"),
        (b"GET / HTTP/1.10", "http.request_line"),
        (b"GET / HTTP/1", "http.request_line"),
        (b"GET  / HTTP/1.1", "http.request_line"),
        (b"GET /\tHTTP/1.1", "http.request_line"),
        (b"GET / HTTP/1.1 HTTP/1.1", "http.request_line"),
        (b"GET /a b HTTP/1.1", "http.request_line"),
        (b"GET HTTP/1.1", "http.request_line"),
        (b"GET /\0 HTTP/1.1", "http.request_line"),
        (b"GET\xa0/\xa0HTTP/1.1", "http.request_line"),
        (b"GET\x1c/\x85HTTP/1.1", "http.request_line"),
        (b"G@T / HTTP/1.1", "http.request_line"),
        (b"GET: / HTTP/1.1", "http.request_line"),
        (b'"GET" / HTTP/1.1', "http.request_line"),
        (b"G\xc9T / HTTP/1.1", "http.request_line"),
        (b"/ / HTTP/1.1", "http.request_line"),
        (b" GET / HTTP/1.1", "http.blank"),
        (b"\r\nGET / HTTP/1.1", "http.blank"),
        (b"\n\nGET / HTTP/1.1", "http.blank"),
        (b"\xa0GET / HTTP/1.1", "http.blank"),
    ],
)
def test_a_request_line_is_one_of_rfc_9112_or_none(line: bytes, outcome: str) -> None:
    """Readable or not, it is HTTP: who puts up with more than we do must not get it as other."""
    result = read(request(line=line))
    assert (result.name if isinstance(result, Request) else why(request(line=line))) == outcome


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"GET / HTTP/1.1\nHost: pypi.org\n\n", "http.bare_lf"),
        (b"GET / HTTP/1.1\r\nHost: pypi.org\n\r\n", "http.bare_lf"),
        (b"GET / HTTP/1.1\r\nHost: pypi.org\r\n\n", "http.bare_lf"),
        (b"GET / HTTP/1.1\rHost: pypi.org\r\n", "http.bare_cr"),
        (b"GET / HTTP/1.1\r\nX: y\rHost: evil.example\r\n", "http.bare_cr"),
        (b"GET / HTTP/1.1\r\nHost: pypi.org\r\r\n", "http.bare_cr"),
        (request(b" evil.example"), "http.folded"),
        (request(b"\tevil.example"), "http.folded"),
        (b"GET / HTTP/1.1\r\n Host: evil.example\r\n", "http.folded"),
        (request(b"Transfer-Encoding : chunked"), "http.space_before_colon"),
        (request(host=b"Host\t: pypi.org"), "http.space_before_colon"),
        (request(b"Transfer-Encoding\v: chunked"), "http.field"),
        (request(b"X\xa0: y"), "http.field"),
        (request(b"no colon"), "http.field"),
        (request(b": y"), "http.field"),
        (request(b"X: a\0b"), "http.field"),
        (request(b"X: a\x7fb"), "http.field"),
        (request(b"X: a\vb"), "http.field"),
        (request(host=b"Host: pypi.org\0"), "http.field"),
    ],
)
def test_malformed_lines_are_not_mended(octets: bytes, reason: str) -> None:
    """Each of these splits into other lines and fields at some server in use."""
    assert why(octets) == reason


@pytest.mark.parametrize(
    ("fields", "line", "reason"),
    [
        ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], b"1.1", "http.two_lengths"),
        ([b"Content-Length: 5", b"Content-Length: 5"], b"1.1", "http.two_lengths"),
        ([b"Content-Length: 5", b"content-length: 6"], b"1.1", "http.two_lengths"),
        ([b"Transfer-Encoding: chunked"] * 2, b"1.1", "http.two_lengths"),
        ([b"Content-Length: 5, 5"], b"1.1", "http.content_length"),
        ([b"Content-Length: +5"], b"1.1", "http.content_length"),
        ([b"Content-Length: -5"], b"1.1", "http.content_length"),
        ([b"Content-Length: 0x5"], b"1.1", "http.content_length"),
        ([b"Content-Length: 05"], b"1.1", "http.content_length"),
        ([b"Content-Length: 5 5"], b"1.1", "http.content_length"),
        ([b"Content-Length: 1_0"], b"1.1", "http.content_length"),
        ([b"Content-Length: \xb2"], b"1.1", "http.content_length"),
        ([b"Content-Length:"], b"1.1", "http.content_length"),
        ([b"Content-Length: 9223372036854775808"], b"1.1", "http.content_length"),
        ([b"Transfer-Encoding: gzip, chunked"], b"1.1", "http.transfer_encoding"),
        ([b"Transfer-Encoding: chunked, chunked"], b"1.1", "http.transfer_encoding"),
        ([b"Transfer-Encoding: xchunked"], b"1.1", "http.transfer_encoding"),
        ([b"Transfer-Encoding: identity"], b"1.1", "http.transfer_encoding"),
        ([b"Transfer-Encoding: chunked;a=b"], b"1.1", "http.transfer_encoding"),
        ([b"Transfer-Encoding:"], b"1.1", "http.transfer_encoding"),
        ([b"Transfer-Encoding: chunked"], b"1.0", "http.transfer_encoding"),
        ([b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings"], b"1.1", "http.upgrade"),
        ([b"Upgrade: websocket", b"Connection: Upgrade"], b"1.1", "http.upgrade"),
        ([b"upgrade: TLS/1.0"], b"1.0", "http.upgrade"),
    ],
)
def test_a_body_ends_in_one_place(fields: list[bytes], line: bytes, reason: str) -> None:
    """Else a request could hide in what another takes for a body; an upgrade ends nowhere."""
    assert why(request(*fields, line=b"POST / HTTP/" + line)) == reason


@pytest.mark.parametrize("field", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_body_that_servers_do_not_expect(method: bytes, field: bytes) -> None:
    """Python's own server leaves it where it is, and answers it as the next request."""
    line = method + b" / HTTP/1.1"
    assert why(request(field, line=line)) == "http.body"
    assert readable(request(b"Content-Length: 0", line=line)).content_length == 0


def test_chunked_is_chunked_in_any_case() -> None:
    """The name of a coding has no case (RFC 9112, 7)."""
    line = b"POST / HTTP/1.1"
    assert readable(request(b"Transfer-Encoding: Chunked", line=line)).is_chunked


def test_a_head_may_fill_64_kib_and_no_more() -> None:
    """With many fields or with a long one."""
    short = request(b"X: ")
    octets = request(b"X: " + b"y" * (FLIGHT_MAXIMUM - len(short)))
    assert readable(octets).length == FLIGHT_MAXIMUM
    assert read(octets[:-1]) is NEED_MORE
    assert why(request(b"X: " + b"y" * (FLIGHT_MAXIMUM - len(short) + 1))) == "flight.too_large"
    assert why(request(*[b"X: y"] * (FLIGHT_MAXIMUM // 6))) == "flight.too_large"
    assert why(b"GET /" + b"a" * FLIGHT_MAXIMUM) == "flight.too_large"
    assert why(b"G" * FLIGHT_MAXIMUM) == "flight.too_large"
    assert why(b"\n" * FLIGHT_MAXIMUM + b"\0") == "flight.too_large"


@pytest.mark.parametrize(
    "octets",
    [
        b"\0",
        b"\xff\0",
        b"(\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO client.example\r\n",
        b"USER guest\r\n",
        b"a001 LOGIN user password\r\n",
        b"PING\r\n",
        b"get key\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"AMQP\0\0\x09\x01",
        b"JRMI\0\x02K",
        b"l\0\x0b\0",
        b"0\x0c\x02\x01\x01\x60\x07",  # LDAP
        b"0 \x02\x01\x01\x60\x07",
        b"0032git-upload-pack /project.git\0host=pypi.org\0",
        b"INVITE sip:bob@example.com SIP/2.0\r\n",
        b"OPTIONS rtsp://example.com/media RTSP/1.0\r\n",
        b"CONNECT\naccept-version:1.2\n\n\0",  # STOMP
        b'CONNECT {"verbose":false}\r\n',  # NATS
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 80\r\n",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"/selector\r\n",
        b"<?xml version='1.0'?>\n",
    ],
)
def test_other_protocols_are_other_protocols(octets: bytes) -> None:
    """Their first lines and octets are nothing that a web server would answer."""
    assert read(octets) is NOT_HTTP


@pytest.mark.parametrize(
    "octets",
    [
        *(b"", b"S", b"SSH-2.0", b"GET /", b"\r\n", b"GET / HTTP/1.1\r", b"\xff", b"(", b"G@T "),
        b"<?xml version='1.0'?><stream:stream to='example.com'>",  # XMPP
        b"( 2 ( edit-pipeline ) 17:svn://example.com ) ",  # Subversion
    ],
)
def test_a_beginning_is_open(octets: bytes) -> None:
    """It may become a request, or something else."""
    reader = RequestReader(80)
    assert reader.feed(octets) is NEED_MORE
    assert not reader.is_certain


def test_after_its_first_line_it_is_http_for_certain() -> None:
    """It may still be unreadable, but it is nothing else any more."""
    reader = RequestReader(80)
    assert reader.feed(b"GET / HTTP/1.1\r\n") is NEED_MORE
    assert reader.is_certain
