"""How the host's resolvers are asked: over which sockets, and who is heard.

A socket is connected, so that the kernel lets in only what comes from the address and the port that
were asked; who would forge an answer has to know the socket's own port, and the identifier besides
(RFC 5452, 4 and 9.2). A socket for each question would keep the port a secret best, and would cost
a system call more at each step, and a descriptor for each question under way. So a resolver is
asked from `SOCKETS_MAXIMUM` sockets, of which chance picks one for each question, and each is
replaced, and has another port, when it has carried `QUESTIONS_MAXIMUM` questions, and when it is
`AGE_MAXIMUM` old. What several ask at once is asked once (`gateway.dns`), so many questions
under way do not make one of them easier to hit. A socket that was replaced stays until its last
question is answered or forgotten.

Not so where somebody guesses: at the `GUESSES_MAXIMUM`-th datagram that answers none of its
questions, by identifier or by what it says, nothing more is heard there, and what is still open is
asked again from other sockets, `MOVES_MAXIMUM` times; then that resolver has failed. So for one
question 64 identifiers of 65,536 are tried, at ports that have to be found each time. What comes
late, after its question was given up, is no guess.

A question over TCP has a connection of its own. What a message says is not looked at here, but for
its identifier.
"""

import errno
import socket
import time
from collections.abc import Callable

from attrs import define, field

from qemu_usernat.gateway.dns import Upstream
from qemu_usernat.host.chance import Chance
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import format_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import SECOND

SOCKETS_MAXIMUM = 16
"""Sockets of one resolver that questions are given to."""

QUESTIONS_MAXIMUM = 256
"""Questions of one socket, one after the other."""

AGE_MAXIMUM = 10 * SECOND
"""How old a socket gets: also, the host may have another address or route by then."""

GUESSES_MAXIMUM = 16
"""Datagrams that answer nothing, and nothing more is heard at a port: of an honest resolver there
are hardly any."""

MOVES_MAXIMUM = 3
"""How often a question that may have been guessed at is asked again before it fails."""

CONNECTIONS_MAXIMUM = 256
"""Questions over TCP under way at once."""

RESOLVERS_MAXIMUM = 8
"""Resolvers whose sockets are kept; the one that came first goes first."""

_AT_ONCE = 64
"""Datagrams that are read from a socket before others get their turn."""

_MESSAGE_MAXIMUM = 65535  # bytes of a DNS message, over UDP as over TCP
_LENGTH_SIZE = 2  # bytes before each message over TCP (RFC 1035, 4.2.2)
_IDENTIFIER_SIZE = 2  # bytes that a message begins with

AnswerCallback = Callable[[int, bytes | None, float], bool]
"""False for what answers something else than that question."""


@define(eq=False)
class UpstreamAsker:
    """The asker of `gateway.dns`, on sockets in `poller`.

    `on_answer` is the forwarder's; whoever makes both sets it before the first question. `clock`
    is in seconds, `random_below(n)` unpredictable, from 0 to n - 1.
    """

    poller: Poller
    counters: Counters = field(factory=Counters)
    clock: Callable[[], float] = time.monotonic
    random_below: Callable[[int], int] = field(factory=lambda: Chance().below)
    on_answer: AnswerCallback = field(init=False)
    _questions: "dict[int, _Datagrams | _OverTcp]" = field(factory=dict, init=False)
    _connections: int = field(default=0, init=False)
    _sockets: "dict[Upstream, dict[int, _Datagrams]]" = field(factory=dict, init=False)
    """By resolver and place; those that were replaced are known to their questions only."""
    _moves: dict[int, int] = field(factory=dict, init=False)
    """How often a question was asked again, if it was."""
    buffer: memoryview = field(factory=lambda: memoryview(bytearray(_MESSAGE_MAXIMUM)), init=False)
    """Where datagrams are read to."""

    def ask(self, upstream: Upstream, transport: str, message: bytes, token: int) -> bool:
        """Send `message`; False where the system refuses at once (no route, no descriptor)."""
        try:
            if transport == "tcp":
                self._ask_over_tcp(upstream, message, token)
            else:
                self._ask_over_udp(upstream, message, token)
        except OSError:
            return False
        return True

    def _ask_over_tcp(self, upstream: Upstream, message: bytes, token: int) -> None:
        if self._connections >= CONNECTIONS_MAXIMUM:
            raise OSError(errno.EMFILE, "as many connections as there may be")
        self._questions[token] = _OverTcp(self, upstream, message, token)
        self._connections += 1

    def _ask_over_udp(self, upstream: Upstream, message: bytes, token: int) -> None:
        sockets = self._sockets.get(upstream)
        if sockets is None:
            if len(self._sockets) >= RESOLVERS_MAXIMUM:
                for old in tuple(self._sockets.pop(next(iter(self._sockets))).values()):
                    old.retire()
            sockets = self._sockets[upstream] = {}
        place = self.random_below(SOCKETS_MAXIMUM)
        mine = sockets.get(place)
        if mine is None or mine.has_served(message, self.clock()):
            mine = self._replace(sockets, place, upstream)
        try:
            mine.ask(message, token)
        except ConnectionError:
            # About an earlier question: this one was not sent. Whoever asked that one is told.
            self.poller.again(mine, mine.fail_all)
            mine = self._replace(sockets, place, upstream)
            mine.ask(message, token)
        self._questions[token] = mine

    def _replace(
        self, sockets: "dict[int, _Datagrams]", place: int, upstream: Upstream
    ) -> "_Datagrams":
        """Another socket in that place; OSError leaves it empty."""
        old = sockets.pop(place, None)
        if old is not None:
            old.retire()
        new = _Datagrams(self, upstream, self.clock() + AGE_MAXIMUM)
        sockets[place] = new
        return new

    def drop(self, spent: "_Datagrams", upstream: Upstream) -> None:
        """Give this socket no more questions."""
        sockets = self._sockets.get(upstream, {})
        for place in [place for place, one in sockets.items() if one is spent]:
            del sockets[place]
        spent.retire()

    def forget(self, token: int) -> None:
        """No answer to this question is wanted any more."""
        question = self._questions.pop(token, None)
        if question is not None:
            self._moves.pop(token, None)
            self._connections -= isinstance(question, _OverTcp)
            question.forget(token)

    def ask_again(self, upstream: Upstream, message: bytes, token: int, now: float) -> None:
        """Its socket is known to somebody else, and gone: take another."""
        if not self.waits(token):
            return
        moves = self._moves[token] = self._moves.get(token, 0) + 1
        try:
            if moves > MOVES_MAXIMUM:
                raise OSError(errno.EBUSY, "somebody guesses wherever it is asked")
            self._ask_over_udp(upstream, message, token)
        except OSError:
            self.fail(token, now)

    def fail(self, token: int, now: float) -> None:
        """Nothing comes to this question any more: say so, if an answer is still wanted."""
        if self.waits(token):
            self.forget(token)
            self.on_answer(token, None, now)

    def waits(self, token: int) -> bool:
        """Whether an answer is still wanted."""
        return token in self._questions

    def close(self) -> None:
        """Forget every question."""
        for token in tuple(self._questions):
            self.forget(token)
        for sockets in self._sockets.values():
            for each in sockets.values():
                each.retire()
        self._sockets.clear()


class _Datagrams:
    """A socket towards one resolver, and the questions that were asked from it."""

    __slots__ = ("_asker", "_given_up", "_guesses", "_left", "_messages", "_retired", "_tokens",
                 "_until", "_upstream", "sock")  # fmt: skip

    def __init__(self, asker: UpstreamAsker, upstream: Upstream, until: float) -> None:
        self._asker, self._upstream, self._until = asker, upstream, until
        self._left, self._guesses, self._retired = QUESTIONS_MAXIMUM, GUESSES_MAXIMUM, False
        self._tokens: dict[bytes, int] = {}
        """By identifier."""
        self._messages: dict[int, bytes] = {}
        """By token."""
        self._given_up: set[bytes] = set()
        """Identifiers of questions that are over: an answer may still come."""
        self.sock = _socket_for(upstream, socket.SOCK_DGRAM)
        try:
            self.sock.connect(_socket_address(upstream))
            asker.poller.watch(self.sock, self, read=True)
        except OSError:
            self.sock.close()
            raise

    def has_served(self, message: bytes, now: float) -> bool:
        """Whether another socket is to carry this question."""
        return not self._left or now >= self._until or message[:_IDENTIFIER_SIZE] in self._tokens

    def ask(self, message: bytes, token: int) -> None:
        """Send it. A full socket loses it, as a wire might: it is asked again then."""
        try:
            self.sock.send(message)
        except BlockingIOError:
            self._asker.counters.count("dns.send_full")
        self._left -= 1
        self._messages[token] = message
        self._tokens[message[:_IDENTIFIER_SIZE]] = token

    def forget(self, token: int) -> None:
        """No answer is wanted any more."""
        message = self._messages.pop(token, None)
        if message is not None:
            identifier = message[:_IDENTIFIER_SIZE]
            del self._tokens[identifier]
            self._given_up.add(identifier)
            self._close_if_done()

    def retire(self) -> None:
        """There will be no more questions: end with the last of them."""
        self._retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and not self._tokens and self.sock.fileno() >= 0:
            self._asker.poller.forget(self.sock)
            self.sock.close()

    def on_readable(self, now: float) -> None:
        asker = self._asker
        for _ in range(_AT_ONCE):
            if self.sock.fileno() < 0:
                return
            try:
                length = self.sock.recv_into(asker.buffer)
            except BlockingIOError:
                return
            except OSError:  # refused or unreachable, as an ICMP error told
                self.fail_all(now)
                return
            message = asker.buffer[:length].tobytes()
            identifier = message[:_IDENTIFIER_SIZE]
            token = self._tokens.get(identifier)
            if token is not None:
                if not asker.on_answer(token, message, now):
                    self._on_guess(now)
                continue
            asker.counters.count("dns.unexpected_answer")
            if identifier in self._given_up:
                self._given_up.remove(identifier)
            else:
                self._on_guess(now)

    def _on_guess(self, now: float) -> None:
        self._guesses -= 1
        if not self._guesses:
            open_ones = tuple(self._messages.items())
            self._messages.clear()
            self._tokens.clear()
            self._asker.drop(self, self._upstream)
            for token, message in open_ones:
                self._asker.ask_again(self._upstream, message, token, now)

    def fail_all(self, now: float) -> None:
        """Nothing comes here any more."""
        self._asker.drop(self, self._upstream)
        for token in tuple(self._messages):
            self._asker.fail(token, now)

    def on_writable(self, now: float) -> None:
        """Never asked for."""

    def on_bug(self, now: float) -> None:
        self.fail_all(now)


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
        if self._asker.waits(self._token):
            self._asker.fail(self._token, now)

    def forget(self, token: int) -> None:
        """No answer is wanted any more."""
        self._asker.poller.forget(self.sock)
        self.sock.close()

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


def _socket_address(upstream: Upstream) -> tuple[str, int] | tuple[str, int, int, int]:
    """OSError where the interface of a link-local address is gone."""
    address, port, *interface = upstream
    text = format_address(address)
    if not interface:
        return text, port
    # Python does not look behind a % in the address.
    name = interface[0]
    return text, port, 0, int(name) if name.isdecimal() else socket.if_nametoindex(name)
