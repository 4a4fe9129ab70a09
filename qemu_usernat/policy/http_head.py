"""The head of an HTTP/1 request, line by line (RFC 9112, 2 to 6; RFC 9110, 4, 5 and 7).

It tells for whom a request is and where its body ends, or why that cannot be told. Wherever
servers are known to differ, and so could be made to see another request than we do, there is no
request here: a head is what RFC 9112 tells clients to send, and none of the forms that it lets
servers put up with.

Whether a first line is HTTP at all is another question, and asked generously: whoever splits
lines at any white space (RFC 9112, 3), at that of Latin-1 even, and takes any word for a method,
finds HTTP where we do.
"""

import re
from collections.abc import Mapping
from typing import Final

from attrs import define, field, frozen

from qemu_usernat.policy.reading import read_name
from qemu_usernat.primitives.errors import Malformed

REASONS: Final[Mapping[str, str]] = {
    "http.blank": "White space or an empty line comes before the request.",
    "http.bare_lf": "A line ends in LF without CR.",
    "http.bare_cr": "A CR stands within a line.",
    "http.request_line": "The request line is not method, target and version.",
    "http.version": "The version is neither HTTP/1.0 nor HTTP/1.1.",
    "http.version_0_9": "It is a request of HTTP/0.9, which has no Host.",
    "http.version_2": "It is the preface of HTTP/2, without TLS.",
    "http.connect": "The method is CONNECT, which asks for a tunnel.",
    "http.target": "The target is neither a path nor an absolute http URI.",
    "http.folded": "A field goes on in a second line.",
    "http.space_before_colon": "White space stands between a field's name and its colon.",
    "http.field": "A field has a malformed name, or control characters in its value.",
    "http.no_host": "There is no Host field.",
    "http.several_hosts": "There are several Host fields.",
    "http.authority": "The Host field or the target's authority is malformed.",
    "http.userinfo": "The authority has a user name.",
    "http.two_authorities": "Target and Host field name different servers.",
    "http.another_port": "The authority names another port than that of the connection.",
    "http.upgrade": "It asks to go on with another protocol.",
    "http.content_length": "The Content-Length is not one plain number.",
    "http.transfer_encoding": "The Transfer-Encoding is not chunked alone, or is one of HTTP/1.0.",
    "http.two_lengths": "The body's length is told twice.",
    "http.body": "A GET or HEAD has a body, which many servers take for the next request.",
}

HTTP_PORT: Final = 80  # of the scheme http (RFC 9110, 4.2.1)

SPACES: Final = rb"\t\n\v\f\r \x1c-\x1f\x85\xa0"
"""What anyone takes for white space in a request line, as part of a class in a pattern."""

TOKEN: Final = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
"""What methods and names of fields are made of (RFC 9110, 5.6.2), likewise."""

_NAME = re.compile(b"[" + TOKEN + b"]+")
_REQUEST_LINE = re.compile(
    b"([" + TOKEN + rb"]+) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])",
)
_PREFACE = b"PRI * HTTP/2.0"  # RFC 9113, 3.4
_LOOKS_LIKE_HTTP = re.compile(b"[" + SPACES + b"]HTTP/", re.IGNORECASE)
_LOOKS_LIKE_0_9 = re.compile(
    rb"(?:GET[%b]+|[^%b]+[%b]+(?=/|(?i:[a-z][a-z0-9+.-]*://)))[^%b]+[%b]*" % ((SPACES,) * 5)
)
_ABSOLUTE = re.compile(rb"http://([^/?#\\]*)(?:/.*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(rb"([^:]*)(?::([0-9]{0,5}))?")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
"""No leading zeros, which some have read as octal, and no more digits than 63 bits hold."""

_WITHOUT_BODY = frozenset({"GET", "HEAD"})
"""Methods whose body means nothing (RFC 9110, 9.3.1): servers that do not expect one do not read
it, and take it for a request."""

_WATCHED = frozenset({b"host", b"content-length", b"transfer-encoding", b"upgrade"})
"""Fields that say for whom a request is and where it ends: none of them may be in a trailer."""


@frozen
class Request:
    """A request's head that can be judged."""

    method: str
    name: str
    """Whom it is for, as `read_name` spells it."""
    port: int
    """The authority's: 80 if that names none."""
    version: str
    """"1.0" or "1.1"."""
    length: int
    """Octets of the head, with the empty line."""
    content_length: int
    """Octets of the body, where it is not chunked."""
    is_chunked: bool


@frozen
class _Authority:
    """Whom a Host field or a target names."""

    name: str
    port: int
    has_port: bool
    """Whether the port is named, and not what goes without saying."""


@define(eq=False)
class Head:
    """A head while it is read: `line` takes its lines in order, and the last, empty, is its end.

    `port` is the one that the connection goes to. All methods raise Malformed(http.… or name.…).
    """

    port: int
    _method: str = field(default="", init=False)
    _version: str = field(default="", init=False)
    _target_authority: _Authority | None = field(default=None, init=False)
    _watched: dict[bytes, list[bytes]] = field(factory=dict, init=False)
    _length: int = field(default=0, init=False)

    def line(self, line: bytes) -> Request | None:
        """Take one line, LF and all; the request if that was the last."""
        self._length += len(line)
        text = without_end(line)
        if not self._method:
            self._read_request_line(text)
            return None
        if not text:
            return self._finish()
        name, value = read_field(text)
        if name in _WATCHED:
            self._watched.setdefault(name, []).append(value)
        return None

    def _read_request_line(self, text: bytes) -> None:
        if text == _PREFACE:
            raise Malformed("http.version_2")
        parts = _REQUEST_LINE.fullmatch(text)
        if parts is None:
            raise Malformed("http.request_line")
        method, target, major, minor = parts.groups()
        if major != b"1" or minor not in (b"0", b"1"):
            raise Malformed("http.version")
        if method.upper() == b"CONNECT":
            raise Malformed("http.connect")
        if not target.startswith(b"/") and (target, method) != (b"*", b"OPTIONS"):
            absolute = _ABSOLUTE.fullmatch(target)
            if absolute is None:
                raise Malformed("http.target")
            self._target_authority = _read_authority(absolute[1])
        self._method = method.decode("ascii")
        self._version = f"1.{minor.decode('ascii')}"

    def _finish(self) -> Request:
        watched = self._watched
        hosts = watched.get(b"host", [])
        if len(hosts) != 1:
            raise Malformed("http.several_hosts" if hosts else "http.no_host")
        authority = _read_authority(hosts[0])
        target = self._target_authority
        if target is not None and (target.name, target.port) != (authority.name, authority.port):
            raise Malformed("http.two_authorities")
        # An absolute URI has a port, named or not; of a Host field without one nobody thinks so.
        if (authority.has_port or target is not None) and authority.port != self.port:
            raise Malformed("http.another_port")
        if b"upgrade" in watched:
            raise Malformed("http.upgrade")
        content_length, is_chunked = self._read_framing()
        if self._method in _WITHOUT_BODY and (content_length or is_chunked):
            raise Malformed("http.body")
        return Request(
            method=self._method,
            name=authority.name,
            port=authority.port,
            version=self._version,
            length=self._length,
            content_length=content_length,
            is_chunked=is_chunked,
        )

    def _read_framing(self) -> tuple[int, bool]:
        """How the body ends (RFC 9112, 6.3), where there is but one way to see it."""
        lengths = self._watched.get(b"content-length", [])
        encodings = self._watched.get(b"transfer-encoding", [])
        if len(lengths) + len(encodings) > 1:
            raise Malformed("http.two_lengths")
        if encodings:
            # RFC 9112, 6.1: of HTTP/1.0, it is faulty. Other codings are in use nowhere.
            if encodings[0].lower() != b"chunked" or self._version == "1.0":
                raise Malformed("http.transfer_encoding")
            return 0, True
        if not lengths:
            return 0, False
        if not _LENGTH.fullmatch(lengths[0]):
            raise Malformed("http.content_length")
        return int(lengths[0]), False


def without_end(line: bytes) -> bytes:
    """A line without its CR LF; there is no other CR in it (RFC 9112, 2.2)."""
    if not line.endswith(b"\r\n"):
        raise Malformed("http.bare_lf")
    text = line[:-2]
    if b"\r" in text:
        raise Malformed("http.bare_cr")
    return text


def read_field(text: bytes) -> tuple[bytes, bytes]:
    """A field's name in lower case, and its value (RFC 9112, 5)."""
    if text[:1] in (b" ", b"\t"):
        raise Malformed("http.folded")
    name, colon, value = text.partition(b":")
    if name != name.rstrip(b" \t") and colon:
        raise Malformed("http.space_before_colon")
    if not colon or not _NAME.fullmatch(name) or _CONTROL.search(value):
        raise Malformed("http.field")
    return name.lower(), value.strip(b" \t")


def read_trailer(text: bytes) -> None:
    """A field behind a chunked body, which may not say what a head does (RFC 9110, 6.5.1)."""
    name, _ = read_field(text)
    if name in _WATCHED:
        raise Malformed("http.field")


def _read_authority(octets: bytes) -> _Authority:
    """Of ``uri-host [":" port]`` (RFC 9110, 7.2), where a port may be empty (RFC 3986, 3.2.3)."""
    if b"@" in octets:
        raise Malformed("http.userinfo")
    if octets.startswith(b"["):
        raise Malformed("name.is_address")
    parts = _AUTHORITY.fullmatch(octets)
    port = int(parts[2] or HTTP_PORT) if parts is not None else 0
    if parts is None or not 0 < port < 2**16:
        raise Malformed("http.authority")
    return _Authority(read_name(parts[1]), port, bool(parts[2]))


def looks_like_http(line: bytes) -> bool:
    """Whether any server could take a connection's first line for one of HTTP.

    Raises Malformed(http.version_0_9) where it would have to be the first of all HTTPs, in which
    a request is ``GET /path`` and no more; Python's server goes on to look for a Host even so.
    """
    if _LOOKS_LIKE_HTTP.search(line):
        return True
    if _LOOKS_LIKE_0_9.fullmatch(line):
        raise Malformed("http.version_0_9")
    return False
