"""Asking resolvers over real sockets on the loopback, and finding out which they are."""

import selectors
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import dns.message
import pytest
from attrs import define, field

from qemu_usernat.gateway.dns import DnsForwarder, Upstream
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.host.resolve import LOOK_INTERVAL, SystemResolvers, UpstreamAsker
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import format_address, parse_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER

LOOPBACK = parse_address("127.0.0.1")
WAIT = 5.0
"""Seconds until a test gives up on its own sockets; nothing waits that long when all is well."""


class Desk:
    """An asker, its poller, and what it heard."""

    def __init__(self) -> None:
        self.poller = Poller()
        self.asker = UpstreamAsker(self.poller)
        self.asker.on_answer = self._hear
        self.heard: list[tuple[int, bytes | None]] = []

    def _hear(self, token: int, message: bytes | None, now: float) -> None:
        assert now == 42.0
        self.heard.append((token, message))

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
    resolver.sendto(b"answer", asker)
    desk.listen_until_heard()
    assert desk.heard == [(7, b"answer")]


def test_a_question_stays_open_until_it_is_forgotten(desk: Desk, stack: ExitStack) -> None:
    """After a forged answer the true one is still heard; after `forget` nothing is."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.ask(upstream, "udp", b"question", 7)
    _, asker = resolver.recvfrom(100)
    resolver.sendto(b"forged", asker)
    desk.listen_until_heard(1)
    resolver.sendto(b"true", asker)
    desk.listen_until_heard(2)
    assert desk.heard == [(7, b"forged"), (7, b"true")]
    desk.asker.forget(7)
    desk.asker.forget(7)
    resolver.sendto(b"late", asker)
    desk.poller.dispatch(desk.poller.wait(), 42.0)
    assert len(desk.heard) == 2


def test_only_the_resolver_that_was_asked_is_heard(desk: Desk, stack: ExitStack) -> None:
    """A datagram from any other address or port never reaches the forwarder."""
    resolver, upstream = udp_resolver(stack)
    stranger, _ = udp_resolver(stack)
    desk.asker.ask(upstream, "udp", b"question", 7)
    _, asker = resolver.recvfrom(100)
    stranger.sendto(b"forged", asker)
    resolver.sendto(b"true", asker)
    desk.listen_until_heard()
    assert desk.heard == [(7, b"true")]


def test_each_question_has_a_port_of_its_own(desk: Desk, stack: ExitStack) -> None:
    """Who would forge an answer has to find the port of this very question."""
    resolver, upstream = udp_resolver(stack)
    for token in range(10):
        desk.asker.ask(upstream, "udp", b"question", token)
    assert len({resolver.recvfrom(100)[1] for _ in range(10)}) == 10


def test_a_large_answer_is_whole(desk: Desk, stack: ExitStack) -> None:
    """A guest with a large EDNS size gets what it asked for."""
    resolver, upstream = udp_resolver(stack)
    desk.asker.ask(upstream, "udp", b"question", 7)
    _, asker = resolver.recvfrom(100)
    resolver.sendto(bytes(60000), asker)
    desk.listen_until_heard()
    assert desk.heard == [(7, bytes(60000))]


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


# resolv.conf


def test_the_system_s_resolvers_are_read(tmp_path: Path) -> None:
    """Name server lines of both families in their order, and nothing else, at most three."""
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 192.0.2.99\n"
        "search example\n"
        "nameserver\n"
        "nameserver not-an-address\n"
        "nameserver fe80::1%eth0\n"
        "  nameserver\t127.0.0.53  # the stub\n"
        "nameservers 192.0.2.98\n"
        "nameserver 2001:db8::53\n"
        "options edns0\n"
        "nameserver 192.0.2.3\n"
        "nameserver 192.0.2.4\n"
    )
    assert SystemResolvers(file)() == [
        (parse_address("127.0.0.53"), 53),
        (parse_address("2001:db8::53"), 53),
        (parse_address("192.0.2.3"), 53),
    ]


def test_a_host_without_resolvers_has_none(tmp_path: Path) -> None:
    """No file, an empty one, one that is no text: no resolvers, and no error."""
    file = tmp_path / "resolv.conf"
    assert SystemResolvers(file)() == []
    for content in (b"", b"\xff\xfe\0binary\n"):
        file.write_bytes(content)
        assert SystemResolvers(file)() == []


@define
class HostFile:
    """A resolv.conf that changes, and the time of day."""

    path: Path
    now: float = 100.0
    resolvers: SystemResolvers = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.resolvers = SystemResolvers(self.path, lambda: self.now)

    def name(self, address: str) -> None:
        """A network manager puts a new file in the old one's place."""
        new = self.path.with_suffix(".new")
        new.write_text(f"nameserver {address}\n")
        new.replace(self.path)

    def named(self) -> list[str]:
        """The resolvers, a look's interval later."""
        self.now += LOOK_INTERVAL
        return [format_address(address) for address, _ in self.resolvers()]


def test_the_host_s_resolvers_are_followed(tmp_path: Path) -> None:
    """The network comes up after us, or becomes another one: no restart is needed."""
    host = HostFile(tmp_path / "resolv.conf")
    assert host.named() == []
    host.name("192.0.2.1")
    assert host.named() == ["192.0.2.1"]
    assert host.named() == ["192.0.2.1"]
    host.name("192.0.2.2")
    assert host.named() == ["192.0.2.2"]


def test_a_file_that_goes_away_leaves_what_it_said(tmp_path: Path) -> None:
    """Between the old file and the new one, names are still found."""
    host = HostFile(tmp_path / "resolv.conf")
    host.name("192.0.2.1")
    assert host.named() == ["192.0.2.1"]
    host.path.unlink()
    assert host.named() == ["192.0.2.1"]
    host.name("192.0.2.2")
    assert host.named() == ["192.0.2.2"]


def test_the_file_is_not_looked_at_for_every_query(tmp_path: Path) -> None:
    """A flood of queries costs one look a second."""
    host = HostFile(tmp_path / "resolv.conf")
    host.name("192.0.2.1")
    before = host.named()
    host.name("192.0.2.2")
    host.now += LOOK_INTERVAL / 2
    assert host.resolvers() == [(parse_address(address), 53) for address in before]
    assert host.named() == ["192.0.2.2"]


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
