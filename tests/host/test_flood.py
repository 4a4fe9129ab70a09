"""Floods of clients at published ports: each waits its turn, and the others' frames go on."""

import socket
from collections.abc import Iterator

import pytest
import trio

from qemu_usernat import poller
from qemu_usernat.config import Config
from qemu_usernat.host import flood
from qemu_usernat.host.flood import Flood
from qemu_usernat.host.publish import ClientTcp
from qemu_usernat.poller import Poller
from qemu_usernat.server import Server


class Counter:
    """A handler that counts datagrams of a socket of its own."""

    def __init__(self, watch: Poller) -> None:
        self.theirs, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.taken = 0
        self.flood = Flood(watch, self, self.take)
        watch.watch(self.ours, self, read=True)

    def take(self, now: float) -> bool:
        try:
            self.ours.recv(16)
        except BlockingIOError:
            return False
        self.taken += 1
        return True

    def on_readable(self, now: float) -> None:
        self.flood.on_readable(now)

    def on_writable(self, now: float) -> None:
        raise AssertionError

    def on_bug(self, now: float) -> None:
        raise AssertionError


@pytest.fixture
def room() -> Iterator[tuple[Poller, list[Counter]]]:
    """Three that count."""
    watch = Poller()
    counters = [Counter(watch) for _ in range(3)]
    yield watch, counters
    for each in counters:
        each.theirs.close()
        each.ours.close()
    watch.close()


def test_a_flood_waits_behind_the_others(
    room: tuple[Poller, list[Counter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is not flooded is heard in each turn; of those that are one after the other is; and all
    comes in the end."""
    watch, (quiet, *floods) = room
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(flood, "TURN_TIME", 2)
    monkeypatch.setattr(poller, "AGAIN_TIME", 0)
    for each in floods:
        for _ in range(8):
            each.theirs.send(b"x")
    for number in range(20):
        quiet.theirs.send(b"x")
        before = sum(each.taken for each in floods)
        watch.dispatch(watch.wait(0), 0)
        assert quiet.taken == number + 1
        assert sum(each.taken for each in floods) - before <= (2 if number else 4)
        assert abs(floods[0].taken - floods[1].taken) <= 2
    assert [each.taken for each in floods] == [8, 8]


def test_a_turn_takes_as_long_as_it_may(
    room: tuple[Poller, list[Counter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many that cost nothing are no flood."""
    watch, (counter, *_) = room
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(flood, "TURN_TIME", 3)
    for _ in range(8):
        counter.theirs.send(b"x")
    watch.dispatch(watch.wait(0), 0)
    assert counter.taken == 3


@pytest.mark.parametrize("text", ["127.0.0.1:0:80", "udp:127.0.0.1:0:80"])
async def test_published_ports_take_their_turns(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes in numbers, over TCP and UDP."""
    monkeypatch.setattr(flood, "TURN_TIME", 0)
    server = Server(Config())
    published = server.publish(text)
    came = 0

    def count(_: object, who: object, *__: object) -> None:
        nonlocal came
        came += 1
        if isinstance(who, ClientTcp):
            who.reset()

    monkeypatch.setattr("qemu_usernat.arrivals.Arrivals.on_caller", count)
    monkeypatch.setattr("qemu_usernat.visits.Visits.on_client", count)
    kind = socket.SOCK_DGRAM if "udp" in text else socket.SOCK_STREAM
    clients = [socket.socket(socket.AF_INET, kind) for _ in range(6)]
    for client in clients:
        client.connect(published.address)
        if kind == socket.SOCK_DGRAM:
            client.send(b"x")
    with trio.fail_after(5):
        while came < len(clients):
            before = came
            server.turn()
            assert came <= before + 1
            await trio.lowlevel.checkpoint()
    for client in clients:
        client.close()
    server.close()
