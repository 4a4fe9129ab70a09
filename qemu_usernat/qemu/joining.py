"""Links to the other servers of a segment: those that connect here, and those that we connect to,
again and again.

It owns what the log says of them. Whoever is refused comes again, and so does the reason: each is
told once.
"""

import random
import socket
from collections.abc import Callable, Mapping

import structlog
import trio
from attrs import define, field

from qemu_usernat import socket_file
from qemu_usernat.config import UnixEndpoint
from qemu_usernat.config.endpoints import JoinEndpoint
from qemu_usernat.lan.allowance import Allowance
from qemu_usernat.lan.joins import Joins
from qemu_usernat.lan.port import JoinPort, Port
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import MS, SECOND
from qemu_usernat.qemu.link import Link
from qemu_usernat.qemu.listener import hand_over

PAUSE_FIRST = 200 * MS
PAUSE_OF_ABSENT = 500 * MS
"""At last: another server that is started is to be joined soon."""
PAUSE_OF_REFUSED = 10 * SECOND
"""At last: a person has to take the reason away."""
CONNECT_TIME = 10 * SECOND

CALLERS_MAXIMUM = 8
"""Connections that have not said yet who they are: whoever is a server says so at once."""

JITTER = 0.25
"""Of each pause: two that refused each other as they came at once do not come at once again."""

TOLD_MAXIMUM = 16
"""Reasons for each place: the other server has a say in what they are, so no more are told."""

LINES_PER_SECOND, LINES_AT_ONCE = 0.2, 32
"""Of the log, about all joins: whoever may connect can join and leave without an end."""

_log = structlog.get_logger()


@define(eq=False)
class Joining:
    """Of one network."""

    joins: Joins
    poller: Poller
    counters: Counters
    on_down: Callable[[Port, float], None]
    """A link is gone, and whoever was behind it."""
    wake: Callable[[], None]
    """There is something to say soon."""
    label: Mapping[str, str]
    """What each line of the log begins with."""
    links: dict[Link, trio.Event] = field(factory=dict)
    _callers: list[Link] = field(factory=list)
    """Those that have connected, the first in front, while they are not known."""
    _lines: Allowance = field(factory=lambda: Allowance(LINES_PER_SECOND, LINES_AT_ONCE))
    _told: dict[str, set[str]] = field(factory=dict)
    """Of each place: why there is no join, since there was one."""

    def on_caller(self, sock: socket.socket, name: str) -> None:
        """Another server has connected, or whoever it is: until it has said so it is one of few."""
        self._callers = [each for each in self._callers if _is_unknown(each)]
        if len(self._callers) >= CALLERS_MAXIMUM:
            self.counters.count("join.crowded")
            self._callers.pop(0).close("others connect, and it had not said yet who it is")
        self._callers.append(self._link(sock, name))

    def on_connection(self, sock: socket.socket, name: str) -> trio.Event:
        """We have connected to another server; the event is set when it is gone."""
        return self.links[self._link(sock, name)]

    def _link(self, sock: socket.socket, name: str) -> Link:
        link = Link(
            sock, name, self.joins, self.poller, self.counters, self._on_close, self.joins.port
        )
        assert isinstance(link.port, JoinPort)
        link.port.end = link.close
        link.port.welcome = lambda: self._on_joined(name)
        self.links[link] = trio.Event()
        self.wake()
        return link

    def _on_joined(self, name: str) -> None:
        self._told.pop(name, None)
        if self._may_tell():
            _log.info("joined a server", **self.label, link=name)

    def _on_close(self, link: Link, reason: str) -> None:
        assert isinstance(link.port, JoinPort)
        name = link.port.name
        if link.port.confirmed:
            if self._may_tell():
                _log.warning("a join has ended", **self.label, link=name, reason=reason)
        else:
            self._tell(name, reason)
        self.on_down(link.port, trio.current_time())
        self.links.pop(link).set()

    def _tell(self, name: str, reason: str) -> None:
        """That there is no join, unless that was said before."""
        told = self._told.setdefault(name, set())
        if reason not in told and len(told) < TOLD_MAXIMUM and self._may_tell():
            told.add(reason)
            _log.warning("not joined", **self.label, link=name, reason=reason)

    def _may_tell(self) -> bool:
        if self._lines.take(trio.current_time()):
            return True
        self.counters.count("join.not_told")
        return False

    async def join_forever(self, endpoint: JoinEndpoint) -> None:
        """Connect to the server at `endpoint`, and again whenever that has ended: soon where it was
        of use, slowly where it was not, as it is refused or not there. Never returns; cancel it.

        A failed attempt is counted as ``listener.connect_failed``.
        """
        name = str(endpoint)
        pause = PAUSE_FIRST
        while True:
            try:
                with trio.fail_after(CONNECT_TIME):
                    sock = await _connect(endpoint)
                ended = hand_over(sock, name, self.on_connection)
            except (OSError, trio.TooSlowError) as error:
                self.counters.count("listener.connect_failed")
                self._tell(name, _why(error))
                longest = PAUSE_OF_ABSENT
            else:
                await ended.wait()
                longest = PAUSE_OF_REFUSED
                if name not in self._told:  # there was a join
                    pause = PAUSE_FIRST
            await trio.sleep(pause * random.uniform(1 - JITTER, 1 + JITTER))
            pause = min(2 * pause, longest)


def _is_unknown(link: Link) -> bool:
    return isinstance(link.port, JoinPort) and not link.port.accepted and not link.closed


async def _connect(endpoint: JoinEndpoint) -> socket.socket:
    if isinstance(endpoint, UnixEndpoint):
        return socket_file.connect(endpoint.path)
    try:
        stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except UnicodeError as error:  # one that only looks like a name
        raise OSError(f"{endpoint.host} is not a host's name") from error
    return socket.socket(fileno=stream.socket.detach())


def _why(error: OSError | trio.TooSlowError) -> str:
    """In words that a person knows."""
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {CONNECT_TIME:.0f} s"
    return error.strerror or str(error)
