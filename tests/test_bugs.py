"""A bug of ours ends what it showed in, is told in full, and touches nothing else.

The bugs here are planted, as there is none to be had that is known.
"""

from collections.abc import Callable, Iterator

import pytest
import structlog

from qemu_usernat.config.configuration import Config
from qemu_usernat.config.endpoints import UnixEndpoint
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.server import BUGS_TOLD, Server
from qemu_usernat.services import Services
from qemu_usernat.wire.packets import ACK, PSH, RST
from tests.host.loopback import LoopbackRoom
from tests.scripted_guest import GATEWAY, ScriptedConnection, ScriptedGuest, ScriptedNetwork


class Planted(Exception):  # noqa: N818  # it is what it says
    """Nobody else raises it."""


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(mtu=1500)


@pytest.fixture
def guest(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest()


@pytest.fixture
def told(network: ScriptedNetwork) -> list[Exception]:
    """What is told of, and would be raised otherwise."""
    told: list[Exception] = []
    network.router.on_bug = network.router.connections.on_bug = told.append
    return told


Plant = Callable[[str, TcpFlow], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Let a method of one flow raise, each time that it is called."""

    def plant(name: str, buggy: TcpFlow) -> None:
        sound = getattr(TcpFlow, name)

        def method(flow: TcpFlow, *arguments: object, **options: object) -> object:
            if flow is buggy:
                raise Planted(name)
            return sound(flow, *arguments, **options)

        monkeypatch.setattr(TcpFlow, name, method)

    return plant


def goes_on(guest: ScriptedGuest, connection: ScriptedConnection) -> None:
    """Another connection of the same guest is as good as ever."""
    guest.hears()
    guest.sends(connection.segment(ACK | PSH, b"still here"))
    assert connection.server.received == b"still here"


def was_broken_off(guest: ScriptedGuest, connection: ScriptedConnection) -> None:
    """Its guest and its server have heard of it at once."""
    heard = [packet.tcp.flags for packet in guest.hears() if packet.tcp.source_port == 80]
    assert heard == [RST | ACK]
    assert connection.server.was_reset
    assert connection.server.closed


@pytest.mark.parametrize("options", [b"", b"\x1e\4\0\0"], ids=["fast way", "way aside"])
def test_a_segment_that_shows_a_bug(
    network: ScriptedNetwork,
    guest: ScriptedGuest,
    told: list[Exception],
    plant: Plant,
    options: bytes,
) -> None:
    """Its connection is reset at once, on both sides; the other goes on."""
    buggy, other = guest.connects(), guest.connects(dport=81)
    guest.hears()
    plant("on_segment", buggy.server.flow)
    guest.sends(buggy.segment(ACK | PSH, b"hello", options=options))
    was_broken_off(guest, buggy)
    assert list(map(str, told)) == ["on_segment"]
    goes_on(guest, other)
    guest.sends(other.segment(RST))
    network.assert_nothing_left()


def test_a_turn_that_shows_a_bug(
    network: ScriptedNetwork, guest: ScriptedGuest, told: list[Exception], plant: Plant
) -> None:
    """What a turn owes to the other flows is paid."""
    buggy, other = guest.connects(), guest.connects(dport=81)
    guest.hears()
    plant("flush", buggy.server.flow)
    guest.sends(buggy.segment(ACK | PSH, b"hello"), other.segment(ACK | PSH, b"still here"))
    was_broken_off(guest, buggy)
    assert other.server.received == b"still here"
    assert list(map(str, told)) == ["flush"]
    guest.sends(other.segment(RST))
    network.assert_nothing_left()


def test_an_alarm_that_shows_a_bug(
    network: ScriptedNetwork, guest: ScriptedGuest, told: list[Exception], plant: Plant
) -> None:
    """It rings once; whoever else is due is woken all the same."""
    buggy, other = guest.connects(), guest.connects(dport=81)
    guest.hears()
    plant("on_deadline", buggy.server.flow)
    buggy.server.says(b"never acknowledged")
    other.server.says(b"never acknowledged")
    guest.hears()
    network.advance(1.0)
    heard = [(packet.tcp.source_port, packet.tcp.flags) for packet in guest.hears()]
    assert heard[0] == (80, RST | ACK)
    assert {port for port, _ in heard[1:]} == {81}, "repeated, as nothing was acknowledged"
    assert list(map(str, told)) == ["on_deadline"]


def test_a_bug_in_the_end_itself(
    network: ScriptedNetwork, guest: ScriptedGuest, told: list[Exception], plant: Plant
) -> None:
    """The flow is forgotten, even if it cannot be ended as it should."""
    buggy, other = guest.connects(), guest.connects(dport=81)
    plant("on_segment", buggy.server.flow)
    plant("break_off", buggy.server.flow)
    plant("flush", buggy.server.flow)
    guest.sends(buggy.segment(ACK | PSH, b"hello"))
    assert list(map(str, told)) == ["on_segment", "break_off", "flush", "break_off"]
    goes_on(guest, other)
    guest.sends(other.segment(RST))
    network.assert_nothing_left()


def test_a_frame_that_shows_a_bug(
    guest: ScriptedGuest, told: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is dropped; the next is answered."""
    with monkeypatch.context() as planted:
        planted.setattr(Services, "on_icmp", lambda *arguments: raise_planted())
        guest.sends(guest.ping(GATEWAY))
    assert len(told) == 1
    assert guest.hears() == []
    guest.sends(guest.ping(GATEWAY))
    assert guest.hears_one().icmp.type == 0


def raise_planted() -> None:
    raise Planted


# -- with sockets


@pytest.fixture
def room() -> Iterator[LoopbackRoom]:
    room = LoopbackRoom()
    yield room
    room.close()


def test_a_socket_that_shows_a_bug(
    room: LoopbackRoom, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server says cannot be taken in: the guest hears of it as of a server that fails."""
    told: list[Exception] = []
    monkeypatch.setattr(room.poller, "_on_bug", told.append)
    listener = room.listen()
    _, server = room.connect(listener)
    plant("on_host_data", next(iter(room.network.router.connections.flows.values())))
    server.sendall(b"hello")
    room.turn()
    (segment,) = room.guest.hears()
    assert segment.tcp.flags == RST | ACK
    assert list(map(str, told)) == ["on_host_data"]
    assert room.is_idle()


def test_the_log_tells_of_the_first_ones() -> None:
    """With the traceback; a guest that can show one again and again does not fill the disk."""
    server = Server(Config(listen=(UnixEndpoint("/nowhere"),)))
    try:
        with structlog.testing.capture_logs() as lines:
            for _ in range(BUGS_TOLD + 5):
                server.on_bug(Planted("a planted one"))
    finally:
        server.close()
    assert server.counters["server.bug"] == BUGS_TOLD + 5
    assert len(lines) == BUGS_TOLD
    assert lines[0]["log_level"] == "error"
    assert isinstance(lines[0]["exc_info"], Planted)


def test_the_server_hears_of_bugs_on_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its router, and from the handlers of its sockets."""
    server = Server(Config(listen=(UnixEndpoint("/nowhere"),)))
    try:
        assert server.router.on_bug == server.router.connections.on_bug == server.on_bug
        assert server.poller._on_bug == server.on_bug
    finally:
        server.close()
