"""The requests of an HTTP/1 connection, one after the other, as their octets come (RFC 9112).

`RequestReader` reads the first; that it is one at all has to be found out. `RequestStream` goes
on over all of a connection: it shows each request before any octet of it may go, and says how
many octets may.

Octets are looked at once, whatever the pieces they come in: lines are searched for from where the
last search ended, and bodies are counted.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeAlias

from attrs import define, field, frozen

from qemu_usernat.policy.http_head import (
    SPACES,
    Head,
    Request,
    looks_like_http,
    read_trailer,
    without_end,
)
from qemu_usernat.policy.reading import (
    FLIGHT_MAXIMUM,
    NEED_MORE,
    Buffer,
    NeedMore,
    Unreadable,
)
from qemu_usernat.primitives.errors import Malformed

CHUNK_LINE_MAXIMUM: Final = 1024
"""Octets of a chunk's line: a size, and extensions that nobody uses."""

REASONS: Final[Mapping[str, str]] = {
    "http.chunk": "A chunk's size or end is malformed.",
}

_BLANK = re.compile(b"[" + SPACES + b"]*")
_LETTERS = re.compile(b"[A-Za-z]+[" + SPACES + b"]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1b\x7f]")  # those that are white space to nobody
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e]*)?")
"""A chunk's size, which 32 bits hold, and its extensions (RFC 9112, 7.1)."""

_CHUNK_END = b"\r\n"


@frozen
class NotHttp:
    """No server would take this for a request of HTTP/1."""


NOT_HTTP: Final = NotHttp()

RequestOutcome: TypeAlias = NeedMore | Request | NotHttp | Unreadable


@define(eq=False)
class _Lines:
    """Octets that have not been taken yet, and how far an end of line was looked for in them."""

    held: bytearray = field(factory=bytearray)
    _searched: int = field(default=0, init=False)

    def take_line(self, maximum: int) -> bytes | None:
        """The next line with its LF, if it is there and has at most `maximum` octets."""
        end = self.held.find(b"\n", self._searched, maximum) + 1
        if not end:
            self._searched = len(self.held)
            return None
        return self.take(end)

    def take(self, count: int) -> bytes:
        """The next octets."""
        taken = bytes(self.held[:count])
        self.skip(count)
        return taken

    def skip(self, count: int) -> None:
        del self.held[:count]  # moves a pointer, and no octets
        self._searched = 0


@define(eq=False)
class RequestReader:
    """Reads one head, from a connection to `port`. It keeps at most one line, so 64 KiB."""

    port: int
    _lines: _Lines = field(factory=_Lines)
    outcome: RequestOutcome = field(default=NEED_MORE, init=False)
    is_certain: bool = field(default=False, init=False)
    """Whether what is open can only become a request, or unreadable."""
    _head: Head = field(init=False)
    _length: int = field(default=0, init=False)
    """Octets taken from the lines."""
    _scanned: int = field(default=0, init=False)
    """Octets of the first line that were looked at, while it is not complete."""

    def __attrs_post_init__(self) -> None:
        self._head = Head(self.port)

    def feed(self, octets: Buffer) -> RequestOutcome:
        """Take in what came next; the outcome, now or since earlier."""
        if self.outcome is NEED_MORE:
            self._lines.held += octets
            self.advance()
        return self.outcome

    def advance(self) -> RequestOutcome:
        """Go on with what is in the lines by now; what is behind the head stays there."""
        try:
            self.outcome = self._read()
        except Malformed as problem:
            self.outcome = Unreadable(problem.reason)
        return self.outcome

    def _read(self) -> RequestOutcome:
        if not self.is_certain:
            looks_like_http = self._looks_like_http()
            if looks_like_http is False:
                return NOT_HTTP
            self.is_certain = looks_like_http is True
        if self.is_certain:
            while (line := self._lines.take_line(self._room())) is not None:
                self._length += len(line)
                request = self._head.line(line)
                if request is not None:
                    return request
        if len(self._lines.held) >= self._room():
            raise Malformed("flight.too_large")
        return NEED_MORE

    def _room(self) -> int:
        """Octets that may still be part of the head."""
        return FLIGHT_MAXIMUM - self._length

    def _looks_like_http(self) -> bool | None:
        """Whether what has come of the first line is of HTTP; None while it may be.

        Any line of text may be, for there are servers that take any first word for a method.
        """
        held = self._lines.held
        if not self._scanned:
            blank = _BLANK.match(held, 0, self._room())
            if blank:
                self._lines.skip(blank.end())
                self._length += blank.end()
        room = self._room()
        end = held.find(b"\n", self._scanned, room)
        control = _CONTROL.search(held, self._scanned, min(len(held), room) if end < 0 else end)
        if control:
            # Not a line of text at all, but some servers would not mind.
            if _LETTERS.match(held, 0, control.start()):
                raise Malformed("http.request_line")
            return False
        self._scanned = len(held)
        if end < 0:
            return None
        if not looks_like_http(bytes(held[: end + 1])):
            return False
        if self._length:
            raise Malformed("http.blank")
        return True


class _Part(Enum):
    """What comes next on a connection."""

    HEAD = "head"
    BODY = "body"
    CHUNK_LINE = "chunk line"
    CHUNK = "chunk"
    CHUNK_END = "chunk end"
    TRAILER = "trailer"


@define(eq=False)
class RequestStream:
    """A guest's octets on a connection to `port`, from the first, of which `allowed` may go.

    When a request has come it is `pending`, and what comes then is held, until `admit` says that
    it may go. If `why` is not None, the connection is to be closed, and no further octet goes.
    """

    port: int
    allowed: int = field(default=0, init=False)
    pending: Request | None = field(default=None, init=False)
    why: str | None = field(default=None, init=False)
    _lines: _Lines = field(factory=_Lines, init=False)
    """What is not allowed yet."""
    _reader: RequestReader = field(init=False)
    _part: _Part = field(default=_Part.HEAD, init=False)
    _left: int = field(default=0, init=False)
    """Octets of the body, or of the chunk, that have not come."""
    _trailer: int = field(default=0, init=False)
    """Octets of the trailer that have."""

    def __attrs_post_init__(self) -> None:
        self._reader = RequestReader(self.port, self._lines)

    def feed(self, octets: Buffer) -> None:
        """Take in what came next."""
        if self.why is not None:
            return
        view = memoryview(octets)
        if not self._lines.held:  # a body's octets are only counted
            counted = min(self._left, len(view))
            self._allow_left(counted)
            view = view[counted:]
        if view:
            self._lines.held += view
            self._advance()

    def admit(self) -> None:
        """The pending request may go, and its body."""
        request, self.pending = self.pending, None
        if request is not None and self.why is None:
            self.allowed += request.length
            self._part = _Part.CHUNK_LINE if request.is_chunked else _Part.BODY
            self._left = request.content_length
            self._advance()

    def _advance(self) -> None:
        steps = {
            _Part.HEAD: self._read_head,
            _Part.BODY: self._read_body,
            _Part.CHUNK_LINE: self._read_chunk_line,
            _Part.CHUNK: self._read_chunk,
            _Part.CHUNK_END: self._read_chunk_end,
            _Part.TRAILER: self._read_trailer,
        }
        try:
            while self.pending is None and steps[self._part]():
                pass
        except Malformed as problem:
            self.why = problem.reason
            self._lines.held.clear()

    # Each step takes what it can, and says whether there may be more to take.

    def _read_head(self) -> bool:
        outcome = self._reader.advance()
        if isinstance(outcome, NotHttp):
            raise Malformed("http.request_line")
        if isinstance(outcome, Unreadable):
            raise Malformed(outcome.why)
        if isinstance(outcome, Request):
            self.pending = outcome
            self._reader = RequestReader(self.port, self._lines)
        return False

    def _read_body(self) -> bool:
        return self._read_left(_Part.HEAD)

    def _read_chunk_line(self) -> bool:
        line = self._take_line(CHUNK_LINE_MAXIMUM, "http.chunk")
        if line is None:
            return False
        parts = _CHUNK.fullmatch(without_end(line))
        if parts is None:
            raise Malformed("http.chunk")
        self._left = int(parts[1], 16)
        self._trailer = 0
        self._part = _Part.CHUNK if self._left else _Part.TRAILER
        return True

    def _read_chunk(self) -> bool:
        return self._read_left(_Part.CHUNK_END)

    def _read_chunk_end(self) -> bool:
        line = self._take_line(len(_CHUNK_END), "http.chunk")
        if line is None:
            return False
        if line != _CHUNK_END:
            raise Malformed("http.chunk")
        self._part = _Part.CHUNK_LINE
        return True

    def _read_trailer(self) -> bool:
        line = self._take_line(FLIGHT_MAXIMUM - self._trailer, "flight.too_large")
        if line is None:
            return False
        self._trailer += len(line)
        text = without_end(line)
        if text:
            read_trailer(text)
        else:
            self._part = _Part.HEAD
        return True

    def _take_line(self, maximum: int, why: str) -> bytes | None:
        """A line, allowed as soon as it is found to be in order; Malformed(why) if too long."""
        line = self._lines.take_line(maximum)
        if line is not None:
            self.allowed += len(line)
        elif len(self._lines.held) >= maximum:
            raise Malformed(why)
        return line

    def _read_left(self, then: _Part) -> bool:
        count = min(self._left, len(self._lines.held))
        self._lines.skip(count)
        self._allow_left(count)
        if self._left:
            return False
        self._part = then
        return True

    def _allow_left(self, count: int) -> None:
        self._left -= count
        self.allowed += count
