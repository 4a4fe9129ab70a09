"""Asking resolvers over real sockets on the loopback."""

import selectors
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import dns.message
import pytest

from qemu_usernat.gateway.dns import DnsForwarder, Upstream
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.host.upstream import (
    AGE_MAXIMUM,
    CONNECTIONS_MAXIMUM,
    GUESSES_MAXIMUM,
    MOVES_MAXIMUM,
    QUESTIONS_MAXIMUM,
    RESOLVERS_MAXIMUM,
    SOCKETS_MAXIMUM,
    UpstreamAsker,
)
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import parse_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER

LOOPBACK = parse_address("127.0.0.1")
WAIT = 5.0
"""Seconds until a test gives up on its own sockets; nothing waits that long when all is well."""


class Desk:
    """An asker, its poller, and what it heard."""

    def __init__(self) -> None:
        self.poller = Poller()
        self.counters = Counters()
        self.now = 100.0
        self.asker = UpstreamAsker(self.poller, self.counters, lambda: self.now)
        self.asker.on_answer = self._hear
        self.heard: list[tuple[int, bytes | None]] = []
        self.believes = True

    def _hear(self, token: int, message: bytes | None, now: float) -> bool:
        assert now == 42.0
        self.heard.append((token, message))
        return self.believes

    def turn(self) -> None:
        """Wait until a socket is ready, and serve it."""
        with selectors.DefaultSelector() as outer:
            outer.register(self.poller.fileno(), selectors.EVENT_READ)
            assert outer.select(WAIT), f"nothing happens any more; heard {self.heard}"
        self.poller.dispatch(self.poller.wait(), 42.0)

    def listen_until_heard(self, times: int = 1) -> None:
        while len(self.heard) < times:
            self.turn()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.asker.close()
    desk.poller.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def udp_resolver(stack: ExitStack, host: str = "127.0.0.1") -> tuple[socket.socket, Upstream]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    sock.settimeout(WAIT)
    sock.bind((host, 0))
    return sock, (parse_address(host), sock.getsockname()[1])


def tcp_resolver(stack: ExitStack) -> tuple[socket.socket, Upstream]:
    sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    sock.settimeout(WAIT)
    return sock, (LOOPBACK, sock.getsockname()[1])


def accepted(stack: ExitStack, listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(WAIT)
    return stack.enter_context(connection)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def closed_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        return int(sock.getsockname()[1])


# UDP


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_question_and_its_answer(desk: Desk, stack: ExitStack, host: str) -> None:
    """A datagram goes to the resolver, the one that comes back is told with its token."""
    try:
        resolver, upstream = udp_resolver(stack, host)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    assert desk.asker.ask(upstream, "udp", b"question", 7)
    question, asker = resolver.recvfrom(100)
    assert question == b"question"
    resolver.sendto(b"quite so", asker)
    desk.listen_until_heard()
    assert desk.heard == [(7, b"quite so")]


def test_a_question_stays_open_until_it_is_forgotten(desk: Desk, stack: ExitStack) -> None:
    """After a forged answer the true one is still heard; after `forget` nothing is."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.ask(upstream, "udp", b"question", 7)
    _, asker = resolver.recvfrom(100)
    resolver.sendto(b"quack", asker)
    desk.listen_until_heard(1)
    resolver.sendto(b"quite so", asker)
    desk.listen_until_heard(2)
    assert desk.heard == [(7, b"quack"), (7, b"quite so")]
    desk.asker.forget(7)
    desk.asker.forget(7)
    resolver.sendto(b"quite late", asker)
    desk.turn()
    assert len(desk.heard) == 2
    assert desk.counters["dns.unexpected_answer"] == 1


def test_only_the_resolver_that_was_asked_is_heard(desk: Desk, stack: ExitStack) -> None:
    """A datagram from any other address or port never reaches the forwarder."""
    resolver, upstream = udp_resolver(stack)
    stranger, _ = udp_resolver(stack)
    desk.asker.ask(upstream, "udp", b"question", 7)
    _, asker = resolver.recvfrom(100)
    stranger.sendto(b"quack", asker)
    resolver.sendto(b"quite so", asker)
    desk.listen_until_heard()
    assert desk.heard == [(7, b"quite so")]
    assert desk.counters["dns.unexpected_answer"] == 0


def message(identifier: int, text: bytes = b"question") -> bytes:
    return identifier.to_bytes(2, "big") + text


def test_answers_are_told_apart_by_their_identifiers(desk: Desk, stack: ExitStack) -> None:
    """A thousand questions under way, answered in any order: to each its own."""
    resolver, upstream = udp_resolver(stack)
    resolver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    count = 1000
    for token in range(count):
        assert desk.asker.ask(upstream, "udp", message(token), token)
    asked = [resolver.recvfrom(100) for _ in range(count)]
    for question, asker in reversed(asked):
        resolver.sendto(question[:2] + b"answer", asker)
        desk.poller.dispatch(desk.poller.wait(), 42.0)
    desk.listen_until_heard(count)
    assert sorted(desk.heard) == [(token, message(token, b"answer")) for token in range(count)]


def test_many_questions_need_few_sockets(desk: Desk, stack: ExitStack) -> None:
    """However many are asked one after the other, the descriptors do not grow; the ports change."""
    resolver, upstream = udp_resolver(stack)
    before = descriptors()
    ports, most = set(), 0
    for token in range(20 * QUESTIONS_MAXIMUM):
        assert desk.asker.ask(upstream, "udp", message(token), token)
        question, asker = resolver.recvfrom(100)
        ports.add(asker[1])
        resolver.sendto(question, asker)
        desk.listen_until_heard(token + 1)
        desk.asker.forget(token)
        most = max(most, descriptors() - before)
    assert most <= SOCKETS_MAXIMUM
    assert len(ports) >= 20


def test_a_port_is_left_before_it_is_known(desk: Desk, stack: ExitStack) -> None:
    """A socket carries so many questions, for so long, and then there is another port."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.random_below = lambda below: 0

    def port_of(token: int) -> int:
        assert desk.asker.ask(upstream, "udp", message(token), token)
        desk.asker.forget(token)
        return int(resolver.recvfrom(100)[1][1])

    first = {port_of(n) for n in range(QUESTIONS_MAXIMUM)}
    assert len(first) == 1
    second = port_of(QUESTIONS_MAXIMUM)
    assert second not in first
    desk.now += AGE_MAXIMUM - 1
    assert port_of(1000) == second
    desk.now += 1
    assert port_of(1001) != second


def test_chance_picks_the_socket(desk: Desk, stack: ExitStack) -> None:
    """Questions that follow each other come from different ports, as a rule."""
    resolver, upstream = udp_resolver(stack)
    places = iter((3, 14, 3))
    desk.asker.random_below = lambda below: next(places)
    ports = []
    for token in range(3):
        desk.asker.ask(upstream, "udp", message(token), token)
        ports.append(resolver.recvfrom(100)[1][1])
    assert ports[0] != ports[1]
    assert ports[0] == ports[2]


def guess(desk: Desk, resolver: socket.socket, asker: tuple[str, int], *wrong: bytes) -> None:
    """Somebody forges the resolver's address, and is heard."""
    for each in wrong:
        resolver.sendto(each, asker)
        desk.turn()


WRONG = [message(0x4000 + n) for n in range(GUESSES_MAXIMUM)]


def test_who_guesses_finds_the_port_changed(desk: Desk, stack: ExitStack) -> None:
    """After some answers to nothing the right one is not heard there any more: what is open is
    asked again from another port, and answered there."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.random_below = lambda below: 0
    for token in (1, 2):
        desk.asker.ask(upstream, "udp", message(token), token)
    asker, _ = (resolver.recvfrom(100)[1] for _ in range(2))
    guess(desk, resolver, asker, *WRONG)
    resolver.sendto(message(1, b"the lie"), asker)
    asked_again = [resolver.recvfrom(100) for _ in range(2)]
    assert [question for question, _ in asked_again] == [message(1), message(2)]
    assert asker not in [port for _, port in asked_again]
    assert not desk.poller.wait(0)
    assert desk.heard == []
    resolver.sendto(message(1, b"the truth"), asked_again[0][1])
    desk.listen_until_heard()
    assert desk.heard == [(1, message(1, b"the truth"))]
    assert desk.counters["dns.unexpected_answer"] == GUESSES_MAXIMUM


def test_right_identifiers_with_wrong_answers_are_guesses_too(desk: Desk, stack: ExitStack) -> None:
    """Who has the identifier and not the question is no better than who has neither."""
    resolver, upstream = udp_resolver(stack)
    desk.believes = False
    desk.asker.ask(upstream, "udp", message(1), 1)
    asker = resolver.recvfrom(100)[1]
    guess(desk, resolver, asker, *[message(1, b"of others")] * (GUESSES_MAXIMUM - 1))
    guess(desk, resolver, asker, message(2))
    question, other = resolver.recvfrom(100)
    assert question == message(1)
    assert other != asker


def test_who_guesses_wherever_it_is_asked_prevents_it_and_no_more(
    desk: Desk, stack: ExitStack
) -> None:
    """It is not asked again for ever: then this resolver has failed, and nothing is left."""
    resolver, upstream = udp_resolver(stack)
    before = descriptors()
    desk.asker.ask(upstream, "udp", message(1), 1)
    for _ in range(1 + MOVES_MAXIMUM):
        assert desk.heard == []
        guess(desk, resolver, resolver.recvfrom(100)[1], *WRONG)
    assert desk.heard == [(1, None)]
    assert not desk.asker.waits(1)
    assert descriptors() == before
    assert not desk.asker._moves


def test_late_answers_are_no_guesses(desk: Desk, stack: ExitStack) -> None:
    """A resolver that stood still answers what was given up: what is asked now is not disturbed."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.random_below = lambda below: 0
    for token in range(2 * GUESSES_MAXIMUM):
        desk.asker.ask(upstream, "udp", message(token), token)
        desk.asker.forget(token)
    desk.asker.ask(upstream, "udp", message(1000), 1000)
    asked = [resolver.recvfrom(100) for _ in range(2 * GUESSES_MAXIMUM + 1)]
    guess(desk, resolver, asked[0][1], *[question for question, _ in asked])
    assert desk.heard == [(1000, message(1000))]
    assert desk.counters["dns.unexpected_answer"] == 2 * GUESSES_MAXIMUM


def test_an_identifier_that_is_under_way_gets_another_port(desk: Desk, stack: ExitStack) -> None:
    """Two questions that drew the same identifier are still told apart."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.random_below = lambda below: 0
    for token in (1, 2):
        assert desk.asker.ask(upstream, "udp", message(77), token)
    asked = [resolver.recvfrom(100) for _ in range(2)]
    for n, (_, asker) in enumerate(asked):
        resolver.sendto(message(77, b"first second".split()[n]), asker)
        desk.listen_until_heard(n + 1)
    assert desk.heard == [(1, message(77, b"first")), (2, message(77, b"second"))]


def test_a_resolver_that_went_away_fails_all_that_were_asked(desk: Desk, stack: ExitStack) -> None:
    """A refusal is of the socket and all its questions; the next question has a new one."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.random_below = lambda below: 0
    assert desk.asker.ask(upstream, "udp", message(1), 1)
    assert desk.asker.ask(upstream, "udp", message(2), 2)
    resolver.close()
    assert desk.asker.ask(upstream, "udp", message(3), 3)  # and is refused, which nobody hears yet
    desk.asker.ask(upstream, "udp", message(4), 4)
    desk.listen_until_heard(4)
    assert sorted(token for token, _ in desk.heard) == [1, 2, 3, 4]
    assert {answer for _, answer in desk.heard} == {None}


def test_resolvers_that_come_and_go_leave_no_sockets(desk: Desk, stack: ExitStack) -> None:
    """A laptop that has seen many networks does not keep sockets towards all of them."""
    before = descriptors()
    for token in range(100):
        upstream = (parse_address("127.0.0.2"), 10_000 + token)
        desk.asker.ask(upstream, "udp", message(token), token)
        desk.asker.forget(token)
    assert descriptors() - before <= RESOLVERS_MAXIMUM


def test_a_large_answer_is_whole(desk: Desk, stack: ExitStack) -> None:
    """A guest with a large EDNS size gets what it asked for."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.ask(upstream, "udp", b"question", 7)
    _, asker = resolver.recvfrom(100)
    resolver.sendto(b"qu" + bytes(60000), asker)
    desk.listen_until_heard()
    assert desk.heard == [(7, b"qu" + bytes(60000))]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_closed_port_is_told_at_once(desk: Desk, transport: str) -> None:
    """A resolver that is not running is a failure, told once; its socket is gone."""
    upstream = (LOOPBACK, closed_port())
    if desk.asker.ask(upstream, transport, b"question", 7):
        desk.listen_until_heard()
        assert desk.heard == [(7, None)]
    assert not desk.asker.waits(7)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_what_cannot_be_sent_is_said_at_once(desk: Desk, transport: str) -> None:
    """Where the system refuses on the spot, `ask` says so and nothing is told later."""
    unroutable = (parse_address("255.255.255.255"), 53)
    assert not desk.asker.ask(unroutable, transport, b"question", 7)
    assert not desk.asker.waits(7)
    assert not desk.poller.wait()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_resolver_at_an_interface_that_is_gone_is_a_failure(desk: Desk, transport: str) -> None:
    """A router's link-local address means nothing without its interface: said at once."""
    gone = (parse_address("fe80::1"), 53, "gone0")
    assert not desk.asker.ask(gone, transport, b"question", 7)
    assert not desk.asker.waits(7)


def test_a_resolver_is_asked_at_its_interface(
    desk: Desk, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address, and which of the host's links it is at, are what the system is told."""
    dialled: list[object] = []

    class Recorded(socket.socket):
        def connect(self, where: object) -> None:
            dialled.append(where)
            raise OSError

    monkeypatch.setattr("qemu_usernat.host.upstream.socket.socket", Recorded)
    desk.asker.ask((parse_address("fe80::1"), 53, "lo"), "udp", b"question", 7)
    desk.asker.ask((parse_address("fe80::1"), 53, "77"), "udp", b"question", 7)
    desk.asker.ask((parse_address("192.0.2.1"), 5353), "udp", b"question", 7)
    index = socket.if_nametoindex("lo")
    linked = [("fe80::1", 53, 0, index), ("fe80::1", 53, 0, 77)]
    assert dialled == [*linked, ("192.0.2.1", 5353)]


# TCP


def test_a_question_over_tcp(desk: Desk, stack: ExitStack) -> None:
    """Framed by its length, answered in pieces, and the connection closed behind it."""
    listener, upstream = tcp_resolver(stack)
    assert desk.asker.ask(upstream, "tcp", b"question", 7)
    desk.poller.dispatch(desk.poller.wait(), 42.0)
    connection = accepted(stack, listener)
    assert connection.recv(100) == b"\0\x08question"
    for piece in (b"\0", b"\x06an", b"sw", b"er"):
        assert desk.heard == []
        connection.sendall(piece)
        desk.turn()
    assert desk.heard == [(7, b"answer")]
    assert connection.recv(1) == b""


def test_connections_are_bounded(desk: Desk, stack: ExitStack) -> None:
    """A flood over TCP cannot take all descriptors: beyond the bound it is said at once."""
    _, upstream = tcp_resolver(stack)
    asked = [desk.asker.ask(upstream, "tcp", b"question", n) for n in range(CONNECTIONS_MAXIMUM)]
    assert all(asked)
    assert not desk.asker.ask(upstream, "tcp", b"question", 1000)
    desk.asker.forget(0)
    assert desk.asker.ask(upstream, "tcp", b"question", 1001)


def test_large_messages_over_tcp(desk: Desk, stack: ExitStack) -> None:
    """65535 bytes each way, however the sockets' buffers cut them."""
    listener, upstream = tcp_resolver(stack)
    large = bytes(range(255)) * 257
    desk.asker.ask(upstream, "tcp", large, 7)
    desk.poller.dispatch(desk.poller.wait(), 42.0)
    connection = accepted(stack, listener)
    received = b""
    while len(received) < 65537:
        received += connection.recv(65537)
        desk.poller.dispatch(desk.poller.wait(), 42.0)
    assert received == b"\xff\xff" + large
    connection.sendall(b"\xff\xff" + large)
    desk.listen_until_heard()
    assert desk.heard == [(7, large)]


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\x06answ", b"\0\0"])
def test_a_connection_that_ends_too_early_is_a_failure(
    desk: Desk, stack: ExitStack, said: bytes
) -> None:
    """A resolver that closes before its answer is whole did not answer."""
    listener, upstream = tcp_resolver(stack)
    desk.asker.ask(upstream, "tcp", b"question", 7)
    desk.poller.dispatch(desk.poller.wait(), 42.0)
    connection = accepted(stack, listener)
    assert connection.recv(100)
    connection.sendall(said)
    connection.close()
    desk.listen_until_heard()
    assert desk.heard == [(7, None)]
    assert not desk.asker.waits(7)


def test_a_reset_connection_is_a_failure(desk: Desk, stack: ExitStack) -> None:
    """An RST is told as a failure, not raised."""
    listener, upstream = tcp_resolver(stack)
    desk.asker.ask(upstream, "tcp", b"question", 7)
    desk.poller.dispatch(desk.poller.wait(), 42.0)
    connection = accepted(stack, listener)
    assert connection.recv(100)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    desk.listen_until_heard()
    assert desk.heard == [(7, None)]


def test_closing_forgets_everything(desk: Desk, stack: ExitStack) -> None:
    """When the network ends no socket stays behind (an open one would warn)."""
    _, over_udp = udp_resolver(stack)
    _, over_tcp = tcp_resolver(stack)
    desk.asker.ask(over_udp, "udp", b"question", 1)
    desk.asker.ask(over_tcp, "tcp", b"question", 2)
    desk.asker.close()
    assert not desk.asker.waits(1)
    assert not desk.asker.waits(2)
    assert not desk.poller.wait()


# The forwarder on top


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_lookup_survives_a_dead_first_resolver(
    desk: Desk, stack: ExitStack, transport: str
) -> None:
    """Forwarder and asker together: refused by one, answered by the other, no socket left."""
    counters, replies = Counters(), list[bytes]()
    if transport == "udp":
        resolver, upstream = udp_resolver(stack)
    else:
        resolver, upstream = tcp_resolver(stack)
    zone = Zone(parse_address("10.0.2.2"), parse_address("10.0.2.3"), 24)
    upstreams = ((LOOPBACK, closed_port()), upstream)
    forwarder = DnsForwarder(zone, lambda: upstreams, desk.asker, lambda: 0xBEEF, counters)
    desk.asker.on_answer = forwarder.on_answer
    query = dns.message.make_query("www.example", "A")
    forwarder.on_query(query.to_wire(), transport, replies.append, 0.0)
    while not counters["dns.upstream_failed"]:
        desk.turn()
    if transport == "udp":
        question, asker = resolver.recvfrom(100)
        resolver.sendto(dns.message.make_response(dns.message.from_wire(question)).to_wire(), asker)
    else:
        desk.turn()
        connection = accepted(stack, resolver)
        question = connection.recv(100)[2:]
        response = dns.message.make_response(dns.message.from_wire(question)).to_wire()
        connection.sendall(len(response).to_bytes(2, "big") + response)
    while not replies:
        desk.turn()
    assert query.is_response(dns.message.from_wire(replies[0]))
    assert forwarder.deadline() == NEVER
    assert not desk.asker.waits(1)
    assert not desk.asker.waits(2)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_bug_is_no_answer(desk: Desk, stack: ExitStack, transport: str) -> None:
    """Whoever asked hears at once that there is none, and hears it once."""
    resolver = (udp_resolver if transport == "udp" else tcp_resolver)(stack)[1]
    assert desk.asker.ask(resolver, transport, b"question", 7)
    question = desk.asker._questions[7]
    question.on_bug(42.0)
    question.on_bug(42.0)
    assert desk.heard == [(7, None)]
    assert not desk.asker.waits(7)
