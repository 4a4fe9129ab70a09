"""Published ports on the host: the sockets that clients come to.

It owns the listening sockets, and hands over each client that the kernel has accepted; which guest
is meant, and what becomes of the client, is for `arrivals` to know.
"""

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Protocol

from attrs import define, evolve, field

from qemu_usernat import socket_file
from qemu_usernat.arrivals import Arrivals, Door
from qemu_usernat.config.publish import UDP, Publication
from qemu_usernat.host.flood import Flood
from qemu_usernat.host.holders import ANOTHERS, holder
from qemu_usernat.host.publish_log import PublishLog
from qemu_usernat.host.publish_udp import UdpEntrance
from qemu_usernat.host.tcp import HostTcp, set_up
from qemu_usernat.nat.faces import Face
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import parse_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import MS, NEVER
from qemu_usernat.visits import Visits

BACKLOG = 1024
"""Clients that the kernel keeps until we come to them; the system may allow less (somaxconn)."""

ACCEPT_PAUSE = 200 * MS
"""Without descriptors accept fails at once, again and again, while the client waits in the backlog:
look again when some flow may have ended."""

_UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class Entrance(Protocol):
    """One socket of a publication."""

    port: int
    """At which it is; 0 for a path."""

    def resume(self) -> None:
        """Take clients in again, after a pause. OSError where the system cannot yet."""

    def close(self, cut: bool) -> None:
        """Take nobody in any more; with `cut` who has come is reset."""


@define(eq=False)
class Publisher:
    """What one network has published."""

    arrivals: Arrivals
    visits: Visits
    poller: Poller
    touch: Callable[[TcpFlow], None]
    counters: Counters
    label: Mapping[str, str]
    """What the log says with each line."""
    published: dict[Publication, list[Entrance]] = field(factory=dict)
    """As they are bound, each with its sockets."""
    _log: PublishLog = field(init=False)
    _paused: list[Entrance] = field(factory=list)
    _resume_at: float = NEVER

    def __attrs_post_init__(self) -> None:
        log = self._log = PublishLog(self.label, self.published.keys())
        whereabouts = self.arrivals.whereabouts
        whereabouts.on_resident, whereabouts.on_several = log.on_resident, log.on_several
        self.arrivals.on_failed = self.visits.on_failed = log.on_failed

    def publish(self, publication: Publication) -> Publication:
        """Take clients in; the same with the port that the system has chosen. UserError where that
        cannot be, with the reason."""
        entrances: list[Entrance] = []
        try:
            for number in range(publication.count):
                entrances.append(self._open(publication, number))  # noqa: PERF401 - closed below
        except BaseException:
            for entrance in entrances:
                entrance.close(cut=True)
            raise
        bound = evolve(publication, host_port=entrances[0].port)
        self.published[bound] = entrances
        self._log.look()
        return bound

    def unpublish(self, publication: Publication, cut: bool = False) -> None:
        """Take no one in any more; who has come stays, unless they are `cut`. UserError if it is
        not published."""
        entrances = self.published.pop(publication, None)
        if entrances is None:
            places = ", ".join(each.place for each in self.published) or "nothing"
            raise UserError(
                f"{publication} is not published; allowed is what publish has returned: {places}"
            )
        for entrance in entrances:
            entrance.close(cut)
            if entrance in self._paused:
                self._paused.remove(entrance)

    def _open(self, publication: Publication, number: int) -> Entrance:
        guest_port = publication.guest_port + number
        if publication.path:
            return PathEntrance(publication.path, Door(publication, guest_port), self)
        port = publication.host_port + number
        kind = socket.SOCK_DGRAM if publication.protocol == UDP else socket.SOCK_STREAM
        sock = _bound(kind, evolve(publication, host_port=port, count=1))
        if not publication.host_port:
            publication = evolve(publication, host_port=sock.getsockname()[1])
        try:
            if kind == socket.SOCK_DGRAM:
                return UdpEntrance(
                    sock, publication, guest_port, self.visits, self.poller, self.counters
                )
            sock.listen(BACKLOG)
            return TcpEntrance(sock, Door(publication, guest_port), self)
        except OSError as error:
            sock.close()
            raise UserError(f"cannot publish {publication.place}: {error.strerror}") from error

    # -- time

    def pause(self, entrance: Entrance, now: float) -> None:
        """It takes nobody in, for now: it is to `resume` later."""
        self.counters.count("publish.accept_failed")
        self._paused.append(entrance)
        self._resume_at = min(self._resume_at, now + ACCEPT_PAUSE)

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        return self._resume_at

    def on_deadline(self, now: float) -> None:
        """The pause is over."""
        if now >= self._resume_at:
            paused, self._paused, self._resume_at = self._paused, [], NEVER
            for entrance in paused:
                try:
                    entrance.resume()
                except OSError:  # there is no room yet to watch it
                    self.pause(entrance, now)

    def close(self) -> None:
        """The network ends."""
        for publication in tuple(self.published):
            self.unpublish(publication)


class TcpEntrance:
    """A listening socket; a `Handler` of the poller."""

    def __init__(self, sock: socket.socket, door: Door, publisher: Publisher) -> None:
        self.port = 0 if sock.family == socket.AF_UNIX else sock.getsockname()[1]
        self._sock = sock
        self._door = door
        self._publisher = publisher
        self._flood = Flood(publisher.poller, self, self._take)
        self.resume()

    def resume(self) -> None:
        """Look at the socket again."""
        self._publisher.poller.watch(self._sock, self, read=True)

    def on_readable(self, now: float) -> None:
        """Clients have connected."""
        self._flood.on_readable(now)

    def _take(self, now: float) -> bool:
        """One client; False if none can be taken."""
        publisher = self._publisher
        try:
            sock, peer = self._sock.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True  # it has gone before we came
        except OSError:
            if self._sock.fileno() >= 0:
                publisher.poller.forget(self._sock)
                publisher.pause(self, now)
            return False
        try:
            client = ClientTcp(sock, _face(peer), publisher.poller, publisher.touch)
        except OSError:
            sock.close()  # reset before we had it
        else:
            publisher.arrivals.on_caller(client, self._door, now)
        return True

    def on_writable(self, now: float) -> None:
        """Never asked for."""

    def on_bug(self, now: float) -> None:
        """One client was lost."""

    def close(self, cut: bool) -> None:
        """Take nobody in any more; with `cut` who has come is reset."""
        self._publisher.poller.forget(self._sock)
        self._sock.close()
        self._publisher.arrivals.close(self._door, cut)


class PathEntrance(TcpEntrance):
    """The same at a path."""

    def __init__(self, path: str, door: Door, publisher: Publisher) -> None:
        self._path = path
        sock, self._identity = socket_file.listen(path, BACKLOG, "publish", "choose another path")
        try:
            super().__init__(sock, door, publisher)
        except OSError as error:
            socket_file.remove(path, self._identity)
            sock.close()
            raise UserError(f"cannot publish unix:{path}: {error.strerror}") from error

    def close(self, cut: bool) -> None:
        """And remove the file: first, for while we still answer nobody takes its place."""
        socket_file.remove(self._path, self._identity)
        super().close(cut)


class ClientTcp(HostTcp):
    """A client's connection; a `Caller`."""

    __slots__ = ("client",)

    def __init__(
        self,
        sock: socket.socket,
        client: Face | None,
        poller: Poller,
        touch: Callable[[TcpFlow], None],
    ) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            set_up(sock)
        super().__init__(sock, poller, touch)
        self.client = client


def _face(peer: object) -> Face | None:
    """The client's address and port, of what accept(2) says; None of a unix socket's."""
    if not isinstance(peer, tuple):
        return None
    return parse_address(peer[0].partition("%")[0]), peer[1]


# -- binding


def _bound(kind: socket.SocketKind, publication: Publication) -> socket.socket:
    """A non-blocking socket of one port; UserError says why there is none."""
    address, port = publication.host_address, publication.host_port
    try:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise UserError(f"cannot publish {publication.place}: {error.strerror}") from error
    try:
        if kind == socket.SOCK_STREAM:
            # Connections that have ended a moment ago do not hold the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # What is IPv4's is published apart, and so is seen as what it is.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        why = "; ".join(_reasons(error, publication.protocol, address, port))
        raise UserError(f"cannot publish {publication.place}: {why}") from error
    return sock


def _reasons(
    error: OSError, protocol: str, address: IPv4Address | IPv6Address, port: int
) -> Iterator[str]:
    """What a person should know, and can do."""
    match error.errno:
        case errno.EADDRINUSE:
            who = holder(protocol, address, port)
            yield f"in use by {who}" if who else "in use"
            yield "choose another port" if who == ANOTHERS else "end that, or choose another port"
        case errno.EACCES:
            yield "this port is for privileged programs"
            yield f"choose one from {_first_unprivileged()} on, or allow it, as root: "\
                f"sysctl net.ipv4.ip_unprivileged_port_start={port}"  # fmt: skip
        case errno.EMFILE | errno.ENFILE:
            yield "there are too many open files"
            yield "each port is one: publish fewer, or allow more with ulimit -n"
        case errno.EADDRNOTAVAIL:
            yield "this host does not have that address"
        case _:
            yield error.strerror or "the system refuses"


def _first_unprivileged() -> int:
    try:
        return int(_UNPRIVILEGED.read_text())
    except (OSError, ValueError):
        return 1024
