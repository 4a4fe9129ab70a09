"""A connection's first flight: what a guest says before it can have heard anything.

Three kinds: TLS, HTTP/1, and other protocols, in which no name can be read. From the first octet on
it is known what a flight can still become, and that only ever shrinks, so that a judge may
decide as soon as all of it leads to the same verdict. What is open in the end (after 10 s, at the
guest's FIN, beyond 64 KiB) is unreadable, and so satisfies no rule that wants a name.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from attrs import define, field, frozen

from qemu_usernat.policy import http_head, http_requests, reading, tls_hello, tls_stream
from qemu_usernat.policy.http_head import Request
from qemu_usernat.policy.http_requests import RequestReader
from qemu_usernat.policy.reading import NEED_MORE, Buffer, Unreadable
from qemu_usernat.policy.tls_hello import Hello, HelloReader


class Kind(Enum):
    """What a guest speaks."""

    TLS = "tls"
    HTTP = "http"
    OTHER = "other"


REASONS: Final[Mapping[str, str]] = {
    "flight.incomplete": "It was not complete when the guest ended, or time was up.",
    **reading.REASONS,
    **tls_hello.REASONS,
    **tls_stream.REASONS,
    **http_head.REASONS,
    **http_requests.REASONS,
}
"""All that makes a first flight, or what follows it, unreadable: the closed list."""


@frozen
class FirstFlight:
    """What is known of a first flight."""

    kind: Kind | None
    """None while it is open, and if it stayed so until the end."""
    possible: frozenset[Kind]
    """What it may be, or still become; an unreadable one counts as what it pretends to be."""
    name: str | None = None
    """Whom it is for, as `read_name` spells it, where that can be believed."""
    why: str | None = None
    """Why it is for nobody: a key of `REASONS`. An open one and another protocol have none."""
    hello: Hello | None = None
    request: Request | None = None

    @property
    def is_open(self) -> bool:
        """Whether more octets may tell more."""
        return self.kind is None and self.why is None


UNKNOWN: Final = FirstFlight(None, frozenset(Kind))
"""Before the first octet."""

_OTHER = FirstFlight(Kind.OTHER, frozenset({Kind.OTHER}))


@define(eq=False)
class FirstFlightReader:
    """Reads the first flight of a connection to `port`, in any pieces; holds at most 64 KiB."""

    port: int
    flight: FirstFlight = field(default=UNKNOWN, init=False)
    _hello: HelloReader = field(factory=HelloReader, init=False)
    _request: RequestReader = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._request = RequestReader(self.port)

    def feed(self, octets: Buffer) -> FirstFlight:
        """Take in what came next; what is known by now."""
        if self.flight.is_open and len(octets):
            self.flight = self._read(octets)
        return self.flight

    def end(self) -> FirstFlight:
        """No more octets come, or none will be waited for: what is open is unreadable."""
        flight = self.flight
        if flight.is_open:
            kind = next(iter(flight.possible)) if len(flight.possible) == 1 else None
            self.flight = FirstFlight(kind, flight.possible, why="flight.incomplete")
        return self.flight

    def _read(self, octets: Buffer) -> FirstFlight:
        hello = self._hello.feed(octets)
        if isinstance(hello, Hello):
            why = "tls.no_name" if hello.server_name is None else None
            return _decided(Kind.TLS, hello.server_name, why, hello=hello)
        if isinstance(hello, Unreadable):
            return _decided(Kind.TLS, why=hello.why)
        request = self._request.feed(octets)
        if isinstance(request, Request):
            return _decided(Kind.HTTP, request.name, request=request)
        if isinstance(request, Unreadable):
            return _decided(Kind.HTTP, why=request.why)
        possible = {Kind.OTHER}
        if hello is NEED_MORE:
            possible.add(Kind.TLS)
        if request is NEED_MORE:
            possible.add(Kind.HTTP)
        if self._hello.is_certain:
            possible = {Kind.TLS}
        if self._request.is_certain:
            possible = {Kind.HTTP}
        return _OTHER if possible == {Kind.OTHER} else FirstFlight(None, frozenset(possible))


def _decided(
    kind: Kind,
    name: str | None = None,
    why: str | None = None,
    hello: Hello | None = None,
    request: Request | None = None,
) -> FirstFlight:
    return FirstFlight(kind, frozenset({kind}), name, why, hello, request)


def read(octets: Buffer, port: int, *, at_end: bool = False) -> FirstFlight:
    """What is known of a flight to `port` from the octets that have come, which may be the last."""
    reader = FirstFlightReader(port)
    flight = reader.feed(octets)
    return reader.end() if at_end else flight
