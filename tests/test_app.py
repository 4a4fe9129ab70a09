"""The whole server in this process, and a client that speaks on its socket as QEMU does."""

import logging
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic

import pytest
import structlog
import trio
import trio.testing

from qemu_usernat.app import running, serve
from qemu_usernat.config import UnixEndpoint
from qemu_usernat.config.configuration import Config
from qemu_usernat.config.network import Network
from qemu_usernat.server import Server
from qemu_usernat.wire.icmp import ECHO_REPLY
from qemu_usernat.wire.packets import ACK, PSH, SYN
from tests.host.loopback import open_descriptors, port_of
from tests.scripted_guest import (
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    Heard,
    ScriptedConnection,
    ScriptedGuest,
    ScriptedNetwork,
    packed,
)

WAIT = 10.0
"""Seconds until a test gives up; nothing waits that long when all is well."""

NETWORK = Network(mtu=1500, host_loopback=True)


class Qemu:
    """A guest's end of the stream. Its frames are made and read by a scripted guest."""

    def __init__(self, stream: trio.SocketStream, mac: bytes, address: str) -> None:
        self.stream = stream
        self.guest: ScriptedGuest = ScriptedNetwork(mtu=1500).guest(mac, address)
        self._heard: list[Heard] = []

    @classmethod
    async def connect(cls, path: str, mac: bytes = GUEST_MAC, address: str = GUEST) -> "Qemu":
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.connect(path)
        return cls(trio.SocketStream(sock), mac, address)

    async def sends(self, *frames: bytes) -> None:
        await self.stream.send_all(
            b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
        )

    async def hears(self) -> Heard:
        """The next packet."""
        while not self._heard:
            octets = await self.stream.receive_some()
            assert octets, "the server has closed the connection"
            self.guest.stream += octets
            if self._ends_with_a_frame():
                self._heard = self.guest.hears()
        return self._heard.pop(0)

    def _ends_with_a_frame(self) -> bool:
        at, stream = 0, self.guest.stream
        while at + 4 <= len(stream):
            at += 4 + int.from_bytes(stream[at : at + 4], "big")
        return at == len(stream)

    async def connects_to(self, server: socket.socket, sport: int = 40000) -> ScriptedConnection:
        connection = ScriptedConnection(self.guest, sport, GATEWAY, port_of(server))
        await self.sends(connection.syn())
        answer = (await self.hears()).tcp
        assert (answer.flags, answer.source_port) == (SYN | ACK, connection.dport)
        connection.received = answer.sequence + 1
        await self.sends(connection.segment(ACK))
        return connection


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"{tmp_path}/guest.sock"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[None]:
    """The server of `config`, until the block ends."""
    ready = trio.Event()

    def on_ready(configs: Sequence[Config]) -> None:
        assert list(configs) == [config]
        ready.set()

    with trio.fail_after(WAIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [config], on_ready)
            await ready.wait()
            yield
            nursery.cancel_scope.cancel()


def listening(path: str) -> Config:
    return Config(listen=(UnixEndpoint(path),), network=NETWORK)


def tcp_server(stack: ExitStack) -> socket.socket:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    server.settimeout(WAIT)
    return server


def accepted(stack: ExitStack, server: socket.socket) -> socket.socket:
    sock, _ = server.accept()
    sock.settimeout(WAIT)
    return stack.enter_context(sock)


# -- a guest comes


async def test_a_guest_finds_its_gateway(path: str) -> None:
    """QEMU connects to the socket file, and ARP and ping are answered."""
    async with serving(listening(path)):
        qemu = await Qemu.connect(path)
        await qemu.sends(qemu.guest.asks_who_has(GATEWAY))
        assert (await qemu.hears()).arp.sender_mac == GATEWAY_MAC
        await qemu.sends(qemu.guest.ping(GATEWAY))
        assert (await qemu.hears()).icmp.type == ECHO_REPLY
        await qemu.stream.aclose()


async def test_a_guest_talks_to_a_server(path: str, stack: ExitStack) -> None:
    """From the guest's SYN to the server's answer, over real sockets on both sides."""
    server = tcp_server(stack)
    async with serving(listening(path)):
        qemu = await Qemu.connect(path)
        connection = await qemu.connects_to(server)
        peer = accepted(stack, server)
        await qemu.sends(connection.segment(ACK | PSH, b"question"))
        # Nobody answers yet: the delayed ACK comes by the alarm, and not with data.
        ack = (await qemu.hears()).tcp
        assert (ack.acknowledgment, ack.payload) == (connection.sent, b"")
        assert peer.recv(100) == b"question"
        peer.sendall(b"answer")
        assert (await qemu.hears()).tcp.payload == b"answer"
        await qemu.stream.aclose()


async def test_two_guests_hear_each_other(path: str) -> None:
    """Two QEMUs at one socket are on one segment."""
    async with serving(listening(path)):
        one = await Qemu.connect(path)
        two = await Qemu.connect(path, OTHER_MAC, OTHER)
        await two.sends(two.guest.ping(GATEWAY))
        await two.hears()
        await one.sends(one.guest.asks_who_has(OTHER))
        assert (await two.hears()).arp.target_address == packed(OTHER)
        await one.stream.aclose()
        await two.stream.aclose()


async def test_we_come_to_a_qemu_that_listens(path: str) -> None:
    """With server=on QEMU waits for us: we connect, and again when it has gone."""
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()
    async with serving(Config(connect=(UnixEndpoint(path),), network=NETWORK)):
        for _ in range(2):
            sock, _ = await listener.accept()
            qemu = Qemu(trio.SocketStream(sock), GUEST_MAC, GUEST)
            await qemu.sends(qemu.guest.ping(GATEWAY))
            assert (await qemu.hears()).icmp.type == ECHO_REPLY
            await qemu.stream.aclose()
    listener.close()


# -- nobody is kept waiting


async def test_five_hundred_black_holes_and_one_good_server(path: str, stack: ExitStack) -> None:
    """Connections that nobody answers do not delay the one that is answered."""
    good, hole = tcp_server(stack), stack.enter_context(socket.socket())
    hole.bind(("127.0.0.1", 0))
    hole.listen(0)
    for _ in range(3):  # its backlog is full now, and further SYNs are dropped
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(hole.getsockname())
    async with serving(listening(path)):
        qemu = await Qemu.connect(path)
        await qemu.sends(
            *[qemu.guest.segment(1024 + n, GATEWAY, port_of(hole), SYN, 1000) for n in range(500)]
        )
        connection = await qemu.connects_to(good)
        peer = accepted(stack, good)
        peer.sendall(b"at once")
        answer = await qemu.hears()
        assert (answer.tcp.source_port, answer.tcp.payload) == (connection.dport, b"at once")
        await qemu.stream.aclose()


async def test_one_stranger_does_not_end_the_others(path: str) -> None:
    """Whoever speaks HTTP to the socket is shown out; the guest beside it does not notice."""
    async with serving(listening(path)):
        qemu = await Qemu.connect(path)
        stranger = await trio.open_unix_socket(path)
        await stranger.send_all(b"GET / HTTP/1.0\r\n\r\n")
        assert await stranger.receive_some() == b""
        await qemu.sends(qemu.guest.ping(GATEWAY))
        assert (await qemu.hears()).icmp.type == ECHO_REPLY
        await stranger.aclose()
        await qemu.stream.aclose()


async def test_flows_outlive_their_link(path: str, stack: ExitStack) -> None:
    """QEMU goes and comes again, as after a crash of its host's session: connections go on."""
    server = tcp_server(stack)
    async with serving(listening(path)):
        before = await Qemu.connect(path)
        connection = await before.connects_to(server)
        peer = accepted(stack, server)
        await before.stream.aclose()
        after = await Qemu.connect(path)
        await after.sends(connection.segment(ACK | PSH, b"where were we"))
        assert (await after.hears()).tcp.acknowledgment == connection.sent
        assert peer.recv(100) == b"where were we"
        peer.sendall(b"here")
        assert (await after.hears()).tcp.payload == b"here"
        await after.stream.aclose()


async def test_a_quiet_network_takes_no_turns(
    path: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest, a connection and a mapping that say nothing cost nothing: nobody wakes."""
    turns = 0
    turn = Server.turn

    def counted(self: Server) -> bool:
        nonlocal turns
        turns += 1
        return turn(self)

    monkeypatch.setattr(Server, "turn", counted)
    server = tcp_server(stack)
    async with serving(listening(path)):
        qemu = await Qemu.connect(path)
        await qemu.connects_to(server)
        await qemu.sends(qemu.guest.datagram(1234, GATEWAY, 9, b"nobody is there"))
        assert (await qemu.hears()).icmp.type == 3
        await trio.testing.wait_all_tasks_blocked(0.1)
        before = turns
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert turns == before > 0
        await qemu.stream.aclose()


# -- SIGUSR1


@asynccontextmanager
async def serving_process(path: str) -> AsyncIterator[trio.Process]:
    """`qemu-usernat serve` in a process of its own, listening at `path`, until the block ends."""
    command = [sys.executable, "-m", "qemu_usernat", "serve", "--host-loopback"]
    run = partial(trio.run_process, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with trio.fail_after(WAIT):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(run, [*command, "--listen", f"unix:{path}"])
            async with process.stdout, process.stderr:
                assert (await process.stdout.receive_some()).startswith(b"listening on ")
                yield process
                process.terminate()
                assert await process.wait() == 0


async def report_of(process: trio.Process) -> dict[str, int]:
    """The numbers that the server logs when it is asked for a report."""
    assert process.stderr is not None
    process.send_signal(signal.SIGUSR1)
    said = b""
    while not said.endswith(b"\n"):
        said += await process.stderr.receive_some()
    (line,) = said.decode().splitlines()
    assert re.match(r"[0-9:]{8} \[info +\] report +\S", line)
    return {name: int(number) for name, number in re.findall(r"(\S+)=(\d+)", line)}


async def test_sigusr1_tells_what_there_is_and_what_was_counted(
    path: str, stack: ExitStack
) -> None:
    """One line on stderr with every number that is not zero; the guest does not notice."""
    server = tcp_server(stack)
    async with serving_process(path) as process:
        assert process.stderr is not None
        assert await report_of(process) == {
        "links": 0, "joins": 0, "mappings": 0, "pings": 0, "published": 0,
        "publish_waiting": 0, "visits": 0,
    }  # fmt: skip
        qemu = await Qemu.connect(path)
        connection = await qemu.connects_to(server)
        peer = accepted(stack, server)
        assert b"guest connected" in await process.stderr.receive_some()
        strange = GATEWAY_MAC + GUEST_MAC + b"\x88\x8e"
        await qemu.sends(strange, qemu.guest.datagram(1234, GATEWAY, 9, b"nobody is there"))
        assert (await qemu.hears()).icmp.type == 3
        for _ in range(2):
            assert await report_of(process) == {
                "links": 1, "joins": 0, "mappings": 1, "pings": 0, "published": 0,
                "publish_waiting": 0, "visits": 0,
                "flows.ESTABLISHED": 1,
                "ethernet.unknown_type": 1,
            }  # fmt: skip
        peer.sendall(b"undisturbed")
        segment = (await qemu.hears()).tcp
        assert (segment.source_port, segment.payload) == (connection.dport, b"undisturbed")
        await qemu.stream.aclose()


def test_a_report_is_told_at_every_level(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` logs nothing but warnings, so as not to disturb; who asks is answered all the same."""
    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=silent, logger_factory=structlog.PrintLoggerFactory())
    server = Server(listening(path))
    try:
        server.report()
    finally:
        structlog.reset_defaults()
        server.close()
    assert "report" in capsys.readouterr().out


# -- the end


async def test_the_end_gives_everything_back(path: str, stack: ExitStack) -> None:
    """In a process that goes on, as a test's does, no descriptor and no file stays."""
    server = tcp_server(stack)
    before = open_descriptors()
    async with serving(listening(path)):
        qemu = await Qemu.connect(path)
        await qemu.connects_to(server)
        await qemu.sends(qemu.guest.datagram(1234, GATEWAY, 9, b"nobody is there"))
        assert (await qemu.hears()).icmp.type == 3
        assert open_descriptors() > before + 3
    assert await qemu.stream.receive_some() == b""
    await qemu.stream.aclose()
    assert open_descriptors() == before
    assert not await trio.Path(path).exists()


def test_sigterm_ends_it_within_a_second(path: str) -> None:
    """`systemctl stop` does not wait: exit code 0, the socket file is gone, the guest is told."""
    command = [sys.executable, "-m", "qemu_usernat", "serve", "--listen", f"unix:{path}"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        socket.socket(socket.AF_UNIX) as qemu,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == f"listening on unix:{path}\n"
        qemu.settimeout(WAIT)
        qemu.connect(path)
        frame = ScriptedNetwork().guest().ping(GATEWAY)
        qemu.sendall(len(frame).to_bytes(4, "big") + frame)
        assert qemu.recv(1000)
        start = monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
        assert monotonic() - start < 1.0
        assert qemu.recv(1000) == b""
    assert not Path(path).exists()


async def test_what_a_program_raises_beside_a_server_comes_out_as_it_is(path: str) -> None:
    """Not in a group of one, which its own `except` would not know."""
    with pytest.raises(ValueError, match="mine"):
        async with running(Config(listen=(UnixEndpoint(path),))):
            raise ValueError("mine")
