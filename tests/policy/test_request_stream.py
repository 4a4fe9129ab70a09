"""Every request of a connection: none goes before it was judged, and none hides in a body."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.policy.http_requests import CHUNK_LINE_MAXIMUM, RequestStream
from qemu_usernat.policy.reading import FLIGHT_MAXIMUM
from tests.policy.flights import pieces, request

GET = request()
POST = request(b"Content-Length: 5", line=b"POST / HTTP/1.1", body=b"hello")
PUT = request(b"Transfer-Encoding: chunked", line=b"PUT / HTTP/1.1")
EVIL = request(host=b"Host: evil.example")


def judge(stream: RequestStream, parts: Iterable[bytes]) -> list[str]:
    """Feed the parts and admit what is for pypi.org; the methods admitted."""
    methods = []
    for part in parts:
        stream.feed(part)
        while stream.pending is not None and stream.pending.name == "pypi.org":
            methods.append(stream.pending.method)
            stream.admit()
    return methods


def admitted(*parts: bytes) -> tuple[list[str], int, str | None]:
    """The methods, how many octets may go, and why no more."""
    stream = RequestStream(80)
    return judge(stream, parts), stream.allowed, stream.why


def test_no_octet_goes_before_the_judgment() -> None:
    """Then its head may, and its body as it comes."""
    stream = RequestStream(80)
    stream.feed(POST[:-2])
    assert stream.pending is not None
    assert stream.pending.name == "pypi.org"
    assert stream.allowed == 0
    stream.admit()
    assert stream.allowed == len(POST) - 2
    stream.feed(POST[-2:])
    assert stream.allowed == len(POST)


def test_each_request_is_shown() -> None:
    """Pipelined ones too, one after the other, and the last is not let through by the first."""
    stream = RequestStream(80)
    assert judge(stream, [GET + POST + GET + EVIL + GET]) == ["GET", "POST", "GET"]
    assert stream.allowed == len(GET + POST + GET)
    assert stream.pending is not None
    assert stream.pending.name == "evil.example"
    stream.feed(GET * 10)
    assert stream.allowed == len(GET + POST + GET)


def test_admitting_twice_admits_once() -> None:
    """A judgment is of the request that was shown."""
    stream = RequestStream(80)
    stream.feed(GET)
    stream.admit()
    stream.admit()
    assert stream.allowed == len(GET)
    stream.feed(EVIL)
    assert stream.allowed == len(GET)


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"A\r\n0123456789\r\n00a\r\n0123456789\r\n000\r\n\r\n",
        b'2;name=value;other="quoted text"\r\nhi\r\n0 ; last\r\n\r\n',
        b"2\r\nhi\r\n0\r\nExpires: never\r\nX-Sum: 1\r\n\r\n",
        b"2\r\n\r\n\r\n0\r\n\r\n",
    ],
)
def test_chunks_are_counted(body: bytes) -> None:
    """What follows the last of them, and its trailer, is the next request."""
    methods, allowed, why = admitted(PUT + body + GET)
    assert (methods, allowed, why) == (["PUT", "GET"], len(PUT + body + GET), None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"x\r\n", "http.chunk"),
        (b"\r\n", "http.chunk"),
        (b"-1\r\n", "http.chunk"),
        (b"+1\r\n", "http.chunk"),
        (b"0x1\r\n", "http.chunk"),
        (b" 1\r\n", "http.chunk"),
        (b"1 \r\n", "http.chunk"),
        (b"1_0\r\n", "http.chunk"),
        (b"123456789\r\n", "http.chunk"),
        (b"1;a\0\r\n", "http.chunk"),
        (b"1;" + b"a" * CHUNK_LINE_MAXIMUM, "http.chunk"),
        (b"1\n", "http.bare_lf"),
        (b"1;a\r;b\r\n", "http.bare_cr"),
        (b"1\r\nab\r\n", "http.chunk"),
        (b"1\r\na\n", "http.chunk"),
        (b"1\r\na\r\r\n", "http.chunk"),
        (b"0\r\n folded: field\r\n\r\n", "http.folded"),
        (b"0\r\nno field\r\n\r\n", "http.field"),
        (b"0\r\nHost: evil.example\r\n\r\n", "http.field"),
        (b"0\r\nContent-Length: 5\r\n\r\n", "http.field"),
        (b"0\r\nTransfer-Encoding: chunked\r\n\r\n", "http.field"),
        (b"0\r\nUpgrade: h2c\r\n\r\n", "http.field"),
        (b"0\r\nX: y\n\r\n", "http.bare_lf"),
        (b"0\r\n" + b"X: y\r\n" * (FLIGHT_MAXIMUM // 6 + 1), "flight.too_large"),
    ],
)
def test_a_malformed_chunk_closes_it(body: bytes, reason: str) -> None:
    """Where chunks are not what they should be, what comes behind is anybody's guess."""
    methods, allowed, why = admitted(PUT + body + EVIL)
    assert why == reason
    assert methods == ["PUT"]
    assert allowed <= len(PUT + body)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n", "http.connect"),
        (request(b"Upgrade: h2c"), "http.upgrade"),
        (b"\r\n" + GET, "http.blank"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http.version_2"),
        (b"SSH-2.0-OpenSSH\r\n", "http.request_line"),
        (b"\x16\x03\x01", "http.request_line"),
        (request(host=None), "http.no_host"),
        (request(host=b"Host: pypi.org:81"), "http.another_port"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * FLIGHT_MAXIMUM, "flight.too_large"),
        (request(b"Content-Length: 4", b"Transfer-Encoding: chunked"), "http.two_lengths"),
    ],
)
def test_a_later_request_is_read_as_strictly(second: bytes, reason: str) -> None:
    """What would have been refused at first is refused on a kept connection."""
    assert admitted(POST + second + GET) == (["POST"], len(POST), reason)
    assert admitted(second + GET)[1:] == (0, reason)


def test_a_body_is_not_read() -> None:
    """A request within a body is a body."""
    body = EVIL * 2
    octets = request(b"Content-Length: %d" % len(body), line=b"POST / HTTP/1.1", body=body)
    assert admitted(octets + GET) == (["POST", "GET"], len(octets + GET), None)


def test_nothing_goes_after_the_end() -> None:
    """Once it is to be closed, it is, whatever comes."""
    stream = RequestStream(80)
    stream.feed(b"nonsense\r\n")
    assert stream.why == "http.request_line"
    stream.feed(GET)
    stream.admit()
    assert (stream.allowed, stream.pending) == (0, None)


CONVERSATIONS = st.lists(
    st.sampled_from(
        [
            GET,
            POST,
            request(b"Content-Length: 0"),
            request(line=b"GET http://pypi.org/ HTTP/1.1"),
            PUT + b"0\r\n\r\n",
            PUT + b"5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nX: y\r\n\r\n",
            EVIL,
            request(b"Upgrade: h2c"),
            PUT + b"5\r\nhello\n0\r\n\r\n",
            b"\n",
            b"nonsense\r\n",
        ]
    ),
    max_size=8,
)


@given(CONVERSATIONS, st.lists(st.integers(0), max_size=20))
def test_a_cut_changes_nothing(conversation: list[bytes], cuts: list[int]) -> None:
    """The same requests, the same octets, the same end; what is for others never goes."""
    octets = b"".join(conversation)
    whole, cut = RequestStream(80), RequestStream(80)
    methods = judge(whole, [octets])
    assert judge(cut, pieces(octets, cuts)) == methods
    assert (cut.allowed, cut.why, cut.pending) == (whole.allowed, whole.why, whole.pending)
    assert b"evil.example" not in octets[: whole.allowed]
    assert whole.allowed <= len(octets)


@given(CONVERSATIONS)
def test_octet_by_octet_nothing_goes_early(conversation: list[bytes]) -> None:
    """What may go are heads that were judged and what belongs to them, as far as it has come."""
    octets = b"".join(conversation)
    stream = RequestStream(80)
    for n in range(len(octets)):
        before = stream.allowed
        judge(stream, [octets[n : n + 1]])
        assert before <= stream.allowed <= n + 1
    assert stream.allowed == admitted(octets)[1]
