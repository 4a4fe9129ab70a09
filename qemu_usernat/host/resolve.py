"""The host's resolvers: which they are, and how they are asked.

Every question has a socket of its own: connected, so that the kernel lets in only what comes
from the resolver that was asked; fresh, so that its port is one more secret for whoever would
forge an answer (RFC 5452, 9.2). It lives no longer than the question, and the forwarder bounds how
many there are. What a message says is not looked at here.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from attrs import define, field

from qemu_usernat.gateway.dns import Upstream
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import DNS_PORT, format_address
from qemu_usernat.primitives.time import NEVER, SECOND

RESOLVERS_MAXIMUM = 3
"""Resolvers used of those listed, as the C library does (resolv.conf(5), MAXNS)."""

LOOK_INTERVAL = 1 * SECOND
"""How often at most the host's list of resolvers is looked at."""

_MESSAGE_MAXIMUM = 65535  # bytes of a DNS message, over UDP as over TCP
_LENGTH_SIZE = 2  # bytes before each message over TCP (RFC 1035, 4.2.2)

AnswerCallback = Callable[[int, bytes | None, float], None]


@define
class SystemResolvers:
    """The resolvers that the host uses, in its order; called for those of the moment.

    The file is followed: a server may be up before its host's network, and a laptop moves from
    one network to the next. A file that cannot be read changes nothing. `clock` is in seconds.
    """

    path: Path = Path("/etc/resolv.conf")
    clock: Callable[[], float] = time.monotonic
    _resolvers: list[Upstream] = field(factory=list, init=False)
    _version: tuple[int, ...] = field(default=(), init=False)
    _next_look: float = field(default=-NEVER, init=False)

    def __call__(self) -> list[Upstream]:
        """Those that the file named when it was last looked at; none if there was never one."""
        now = self.clock()
        if now >= self._next_look:
            self._next_look = now + LOOK_INTERVAL
            with contextlib.suppress(OSError):
                self._look()
        return self._resolvers

    def _look(self) -> None:
        status = self.path.stat()
        # The time alone does not tell two changes within one tick of the kernel's from each other.
        version = status.st_mtime_ns, status.st_ino, status.st_size
        if version != self._version:
            self._resolvers = _read_resolvers(self.path)
            self._version = version


def _read_resolvers(path: Path) -> list[Upstream]:
    """The name servers of a resolv.conf; OSError where it cannot be read.

    Lines that are no name server's are skipped, and link-local addresses with a scope, which mean
    nothing without their interface.
    """
    resolvers = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver" or "%" in words[1]:
            continue
        with contextlib.suppress(ValueError):
            resolvers.append((ip_address(words[1]).packed, DNS_PORT))
    return resolvers[:RESOLVERS_MAXIMUM]


@define
class UpstreamAsker:
    """The asker of `gateway.dns`, on sockets in `poller`.

    `on_answer` is the forwarder's; whoever makes both sets it before the first question.
    """

    poller: Poller
    on_answer: AnswerCallback = field(init=False)
    _questions: "dict[int, _OverUdp | _OverTcp]" = field(factory=dict, init=False)

    def ask(self, upstream: Upstream, transport: str, message: bytes, token: int) -> bool:
        """Send `message`; False where the system refuses at once (no route, no descriptor)."""
        kind = _OverTcp if transport == "tcp" else _OverUdp
        try:
            self._questions[token] = kind(self, upstream, message, token)
        except OSError:
            return False
        return True

    def forget(self, token: int) -> None:
        """Close the socket of a question, if it is still there."""
        question = self._questions.pop(token, None)
        if question is not None:
            self.poller.forget(question.sock)
            question.sock.close()

    def fail(self, token: int, now: float) -> None:
        """Nothing comes on this socket any more: close it and say so."""
        self.forget(token)
        self.on_answer(token, None, now)

    def give_up(self, token: int, now: float) -> None:
        """`fail`, if an answer is still wanted: whoever asked does not wait for ever."""
        if self.waits(token):
            self.fail(token, now)

    def waits(self, token: int) -> bool:
        """Whether an answer is still wanted."""
        return token in self._questions

    def close(self) -> None:
        """Forget every question."""
        for token in tuple(self._questions):
            self.forget(token)


class _OverUdp:
    """One question in one datagram; every datagram that comes back is told."""

    __slots__ = ("_asker", "_token", "sock")

    def __init__(
        self, asker: UpstreamAsker, upstream: Upstream, message: bytes, token: int
    ) -> None:
        self._asker, self._token = asker, token
        self.sock = _socket_for(upstream, socket.SOCK_DGRAM)
        try:
            self.sock.connect(_socket_address(upstream))
            self.sock.send(message)
            asker.poller.watch(self.sock, self, read=True)
        except OSError:
            self.sock.close()
            raise

    def on_readable(self, now: float) -> None:
        if not self._asker.waits(self._token):
            return
        try:
            message = self.sock.recv(_MESSAGE_MAXIMUM)
        except BlockingIOError:
            return
        except OSError:  # refused or unreachable, as an ICMP error told
            self._asker.fail(self._token, now)
            return
        self._asker.on_answer(self._token, message, now)

    def on_writable(self, now: float) -> None:
        """Never asked for."""

    def on_bug(self, now: float) -> None:
        self._asker.give_up(self._token, now)


class _OverTcp:
    """One question on one connection, which is closed behind its answer."""

    __slots__ = ("_asker", "_received", "_token", "_unsent", "sock")

    def __init__(
        self, asker: UpstreamAsker, upstream: Upstream, message: bytes, token: int
    ) -> None:
        self._asker, self._token = asker, token
        self._unsent = len(message).to_bytes(_LENGTH_SIZE, "big") + message
        self._received = bytearray()
        self.sock = _socket_for(upstream, socket.SOCK_STREAM)
        try:
            error = self.sock.connect_ex(_socket_address(upstream))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, "connect")
            asker.poller.watch(self.sock, self, write=True)
        except OSError:
            self.sock.close()
            raise

    def on_writable(self, now: float) -> None:
        """The connection is there, or has failed; or takes more of the question."""
        if not self._asker.waits(self._token):
            return
        try:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._asker.fail(self._token, now)
            return
        if not self._unsent:
            self._asker.poller.change(self.sock, read=True)

    def on_bug(self, now: float) -> None:
        self._asker.give_up(self._token, now)

    def on_readable(self, now: float) -> None:
        if not self._asker.waits(self._token):
            return
        try:
            data = self.sock.recv(_MESSAGE_MAXIMUM)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        end = _LENGTH_SIZE + int.from_bytes(self._received[:_LENGTH_SIZE], "big")
        if len(self._received) >= max(end, _LENGTH_SIZE + 1):
            message = bytes(self._received[_LENGTH_SIZE:end])
            self._asker.forget(self._token)
            self._asker.on_answer(self._token, message, now)
        elif not data:
            self._asker.fail(self._token, now)


def _socket_for(upstream: Upstream, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET if len(upstream[0]) == 4 else socket.AF_INET6
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    return sock


def _socket_address(upstream: Upstream) -> tuple[str, int]:
    address, port = upstream
    return format_address(address), port
