"""One host of the hermetic internet, as a test defines it: services, faults, and its line.

It owns what is asked of it and what it has seen. How its connections go is for `streams` and
`datagrams`; what HTTP is, for `web`.
"""

import math
from collections.abc import Awaitable, Callable
from random import Random
from ssl import SSLContext

import attrs
import trio
from attrs import define, field, frozen

from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.testing.internet.applications import Application, as_called
from qemu_usernat.testing.internet.faults import Direction, Fault, Reset
from qemu_usernat.testing.internet.name_server import NameServer
from qemu_usernat.testing.internet.records import Connection, Peer
from qemu_usernat.testing.internet.timing import Line
from qemu_usernat.testing.internet.watch import Watch
from qemu_usernat.testing.internet.web import Request, TlsHandler, http_handler, over_tls

StreamHandler = Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]
"""Serves one connection; it is closed behind it."""

DatagramHandler = Callable[[bytes, Peer], "bytes | Awaitable[bytes | None] | None"]
"""Answers one datagram, or not."""


@frozen
class Service:
    """What listens at a port."""

    handler: StreamHandler | DatagramHandler
    reset: Reset | None = None


def _latency(host: object, attribute: "attrs.Attribute[float]", seconds: float) -> None:
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"latency is {seconds!r}; allowed: seconds, 0 or more")


def _bandwidth(host: object, attribute: object, octets: float | None) -> None:
    if octets is not None and not octets > 0:
        raise ValueError(f"bandwidth is {octets!r}; allowed: octets per second above 0, or None")


def _loss(host: object, attribute: "attrs.Attribute[float]", share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(
            f"loss is {share!r}; allowed: from 0 to less than 1 (what swallows everything is "
            f"a black_hole())"
        )


@define(eq=False)
class InternetHost:
    """A host behind the gateway; `Internet.host` makes it.

    A port that is not defined refuses, and that is recorded as unexpected. Of `refuses`,
    `black_hole`, `resets_after` and definitions of services the later call wins, for connections
    that begin after it.
    """

    name: str | None
    addresses: tuple[str, ...]
    latency: float = field(default=0.0, validator=_latency, kw_only=True)
    """Seconds that everything is on its way, in each direction."""
    bandwidth: float | None = field(default=None, validator=_bandwidth, kw_only=True)
    """Octets per second in each direction, for all connections together; None: no limit."""
    loss: float = field(default=0.0, validator=_loss, kw_only=True)
    """The share of datagrams and pings that are lost. A stream loses nothing, but each piece of
    it (1460 octets) that was lost comes late by 0.2 s, or by two latencies if these are more."""
    answers_ping: bool = field(default=True, kw_only=True)
    """Whether pings are answered; if not, they are swallowed."""
    aliases: tuple[str, ...] = field(default=(), kw_only=True)
    """Other names, which certificates hold as well."""

    connections: list[Connection] = field(factory=list, init=False)
    """TCP connections and exchanges of datagrams, the oldest first; refused ones, too."""
    requests: list[Request] = field(factory=list, init=False)
    """HTTP requests, in the order in which they were complete."""

    to_guest: Line = field(init=False, repr=False)
    from_guest: Line = field(init=False, repr=False)
    ping_chance: Random = field(init=False, repr=False)
    _watch: Watch = field(kw_only=True, repr=False)
    _issue: Callable[["InternetHost"], SSLContext] = field(kw_only=True, repr=False)
    _name_server: NameServer = field(kw_only=True, repr=False)
    _seed: str = field(kw_only=True, repr=False)
    _services: dict[tuple[str, int], tuple[int, Service]] = field(
        factory=dict, init=False, repr=False
    )
    _faults: dict[int | None, tuple[int, Fault | Reset | None]] = field(
        factory=dict, init=False, repr=False
    )
    _calls: int = field(default=0, init=False, repr=False)
    _chances: int = field(default=0, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.to_guest, self.from_guest = Line(self), Line(self)
        self.ping_chance = self.chance()

    def __str__(self) -> str:
        return self.name or self.addresses[0]

    # -- services

    def tcp(self, port: int, handler: StreamHandler) -> None:
        """Serve TCP connections to `port`: `async def handler(stream)`.

        The stream is a `trio.abc.HalfCloseableStream` and has beside it `reset()` and `record`,
        its `Connection`. It is closed when the handler returns, and reset if it raises; that a
        guest has reset, which the handler meets as BrokenResourceError, is no failure of it.
        """
        self._serve("tcp", port, handler)

    def udp(self, port: int, handler: DatagramHandler) -> None:
        """Answer datagrams to `port`: `handler(payload, source)` returns the answer, or None for
        none; it may be a coroutine function. `source` is the guest's (address, port)."""
        self._serve("udp", port, handler)

    def tls(self, port: int, handler: TlsHandler) -> None:
        """As `tcp`, inside TLS, with a certificate for the host's names and addresses; the stream
        is a `trio.SSLStream`."""
        self.tcp(port, over_tls(handler, self._issue(self), self._watch))

    def http(self, application: Application, port: int = 80) -> None:
        """Serve HTTP/1.1: `application` is

        - str or bytes, the body for every path;
        - a mapping of paths to bodies or `Response`s; other paths are 404, and unexpected;
        - a function of a `Request` that returns a body or a `Response`, `async` or not;
        - a WSGI application. It is called in the network's own thread, one request at a time:
          while it blocks, the network stands still;
        - an ASGI application that runs under trio (no lifespan, no websockets).
        """
        self.tcp(port, self._http(application, "http"))

    def https(self, application: Application, port: int = 443) -> None:
        """`http` inside TLS. The guest needs `Internet.ca_pem` to trust it."""
        self.tls(port, self._http(application, "https"))

    def _http(self, application: Application, scheme: str) -> TlsHandler:
        return http_handler(as_called(application), self.requests, scheme, self._watch)

    def name_server(self, port: int = 53) -> None:
        """Answer questions for names, over UDP and TCP, as the gateway's name server does: for
        guests that ask one of their own choice, like 8.8.8.8."""
        self.udp(port, self._name_server.on_datagram)
        self.tcp(port, self._name_server.serve)

    # -- faults

    def refuses(self, port: int | None = None) -> None:
        """Refuse connections and datagrams to `port`, or to every port."""
        self._set_fault(port, Fault.REFUSES)

    def black_hole(self, port: int | None = None) -> None:
        """Swallow what comes for `port`, or for every port (then pings, too): no answer at all."""
        self._set_fault(port, Fault.BLACK_HOLE)

    def resets_after(
        self, octets: int, port: int | None = None, *, direction: Direction = "to guest"
    ) -> None:
        """Reset connections to `port`, or to every port that serves, after exactly so many octets
        to the guest, or from it; 0 resets as soon as there is a connection."""
        if octets < 0:
            raise ValueError(f"octets is {octets!r}; allowed: 0 or more")
        if direction not in ("to guest", "from guest"):
            raise ValueError(f'direction is {direction!r}; allowed: "to guest" or "from guest"')
        if port is not None and ("tcp", port) not in self._services:
            raise ValueError(f"port {port} of {self} has no TCP service: define it first")
        self._set_fault(port, Reset(octets, direction))

    def recovers(self, port: int | None = None) -> None:
        """End the faults of `port`, or all of them."""
        if port is None:
            self._faults.clear()
        else:
            self._set_fault(port, None)

    # -- for those who play it

    def answer(self, protocol: str, port: int) -> Service | Fault | None:
        """What meets whoever comes to `port` now; None where nothing was defined."""
        since, service = self._services.get((protocol, port), (0, None))
        faults = [self._faults[key] for key in (None, port) if key in self._faults]
        call, fault = max(faults, key=lambda entry: entry[0], default=(0, None))
        if call < since or fault is None:
            return service
        if isinstance(fault, Fault):
            return fault
        return None if service is None else attrs.evolve(service, reset=fault)

    def is_silent(self) -> bool:
        """Whether a ping is swallowed."""
        fault = self._faults.get(None)
        return not self.answers_ping or (fault is not None and fault[1] is Fault.BLACK_HOLE)

    def chance(self) -> Random:
        """A source of chance for one more connection: what happens to it does not hang on how
        the others' tasks are scheduled."""
        self._chances += 1
        return Random(f"{self._seed} {self.addresses} {self._chances}")

    def on_connection(
        self, protocol: str, guest: str, source: Peer, address: Address, port: int
    ) -> Connection:
        """Somebody comes."""
        now = trio.current_time()
        record = Connection(protocol, guest, source, format_address(address), port, now)
        self.connections.append(record)
        return record

    def _serve(self, protocol: str, port: int, handler: StreamHandler | DatagramHandler) -> None:
        _check_port(port)
        if not callable(handler):
            raise TypeError(
                f"handler is {handler!r}; allowed: a function (for text there is http())"
            )
        self._calls += 1
        self._services[protocol, port] = self._calls, Service(handler)

    def _set_fault(self, port: int | None, fault: Fault | Reset | None) -> None:
        if port is not None:
            _check_port(port)
        self._calls += 1
        self._faults[port] = self._calls, fault


def _check_port(port: int) -> None:
    if type(port) is not int or not 1 <= port <= 65535:
        raise ValueError(f"port is {port!r}; allowed: a whole number from 1 to 65535")
