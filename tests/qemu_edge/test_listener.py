"""Listening and connecting: sockets come and go, files are ours or left alone."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from qemu_usernat import socket_file
from qemu_usernat.config import FdEndpoint, TcpEndpoint, UnixEndpoint
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.qemu import listener as listener_module
from qemu_usernat.qemu.listener import Listener, connect_forever

IPV6 = Path("/proc/sys/net/ipv6").exists()


@pytest.fixture
def endpoint(tmp_path: Path) -> UnixEndpoint:
    """A place for a socket, nothing there yet."""
    return UnixEndpoint(f"{tmp_path}/guest.sock")


@pytest.fixture
def listener(endpoint: UnixEndpoint) -> Iterator[Listener]:
    """We, listening there."""
    ours = Listener.open(endpoint)
    yield ours
    ours.close()


def dial(endpoint: UnixEndpoint) -> socket.socket:
    """QEMU, connecting."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(endpoint.path)
    except OSError:
        sock.close()
        raise
    return sock


class Connections(list[tuple[socket.socket, str]]):
    """What was handed over, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = trio.Event()

    def take(self, sock: socket.socket, name: str) -> trio.Event:
        """An `on_connection` for either direction; the returned event never fires."""
        self.append((sock, name))
        self.arrived.set()
        return trio.Event()

    def accept(self, sock: socket.socket, name: str) -> None:
        """An `on_connection` for a listener."""
        self.take(sock, name)

    async def wait(self) -> socket.socket:
        """The latest connection, once there is one."""
        with trio.fail_after(5):
            await self.arrived.wait()
        self.arrived = trio.Event()
        return self[-1][0]

    def close(self) -> None:
        """Close all of them."""
        for sock, _ in self:
            sock.close()


@pytest.fixture
def connections() -> Iterator[Connections]:
    """Nobody has come yet."""
    taken = Connections()
    yield taken
    taken.close()


# ---- the socket file ---------------------------------------------------------------


def test_the_socket_file_is_for_its_owner_alone(listener: Listener, endpoint: UnixEndpoint) -> None:
    """Whoever may write to the socket has our network: nobody else may."""
    assert stat.S_IMODE(Path(endpoint.path).stat().st_mode) == 0o600


def test_the_socket_file_goes_when_we_go(listener: Listener, endpoint: UnixEndpoint) -> None:
    """A clean end leaves nothing behind, and closing twice is no harm."""
    listener.close()
    assert not Path(endpoint.path).exists()
    listener.close()


def test_a_stale_socket_file_is_replaced(endpoint: UnixEndpoint) -> None:
    """After kill -9 the next start just works."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(endpoint.path)
        dead.listen()
    ours = Listener.open(endpoint)
    dial(endpoint).close()
    ours.close()


def test_a_live_socket_is_refused_and_stays_alive(
    listener: Listener, endpoint: UnixEndpoint
) -> None:
    """A second start says so, and the first keeps its socket."""
    with pytest.raises(UserError, match=r"another process listens there.*--listen"):
        Listener.open(endpoint)
    dial(endpoint).close()


def test_a_live_socket_with_a_full_backlog_is_alive_too(endpoint: UnixEndpoint) -> None:
    """A server too busy to accept is not dead: its socket is not taken from it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(endpoint.path)
        busy.listen(0)
        with dial(endpoint), pytest.raises(UserError, match="another process listens there"):
            Listener.open(endpoint)


def test_a_datagram_socket_is_somebody_elses(endpoint: UnixEndpoint) -> None:
    """It would refuse a stream connection, and is alive all the same."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(endpoint.path)
        with pytest.raises(UserError, match="another process listens there"):
            Listener.open(endpoint)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_never_removed(endpoint: UnixEndpoint, kind: str) -> None:
    """A mistyped path costs nobody a file."""
    path = Path(endpoint.path)
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(UserError, match="the file there is not a socket"):
        Listener.open(endpoint)
    assert path.is_symlink() or path.exists()


def test_a_socket_file_that_is_no_longer_ours_is_left_alone(
    listener: Listener, endpoint: UnixEndpoint
) -> None:
    """Somebody removed our file and listens there now: our end does not harm them."""
    Path(endpoint.path).unlink()
    theirs = Listener.open(endpoint)
    listener.close()
    dial(endpoint).close()
    theirs.close()


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    """The message carries the system's reason."""
    with pytest.raises(UserError, match=r"cannot listen on unix:.*No such file or directory"):
        Listener.open(UnixEndpoint(f"{tmp_path}/no/guest.sock"))


def test_a_strangers_lock_on_the_directory_does_not_stop_us(
    endpoint: UnixEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may lock /tmp; we wait our turn for a moment, then go ahead."""
    monkeypatch.setattr(socket_file, "TURN_WAIT", 0.03)
    directory = Path(endpoint.path).parent
    with socket_file._our_turn(directory):
        ours = Listener.open(endpoint)
    ours.close()


def test_a_directory_that_we_may_write_but_not_read_will_do(
    endpoint: UnixEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such directories exist for sockets; the lock is a courtesy, not a condition."""

    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", forbidden)
    ours = Listener.open(endpoint)
    dial(endpoint).close()
    ours.close()


# ---- accepting ---------------------------------------------------------------------


async def test_every_connection_is_handed_over(
    listener: Listener,
    endpoint: UnixEndpoint,
    connections: Connections,
    nursery: trio.Nursery,
) -> None:
    """Two QEMUs come; each gets a socket that never blocks, and is called as where it came to."""
    nursery.start_soon(listener.accept_forever, connections.accept)
    for _ in range(2):
        with dial(endpoint) as qemu:
            sock = await connections.wait()
            assert connections[-1][1] == f"{endpoint}"
            assert not sock.getblocking()
            qemu.send(b"hello")
            assert sock.recv(10) == b"hello"


async def test_closing_ends_the_accepting(listener: Listener, connections: Connections) -> None:
    """close() from elsewhere ends the task quietly."""
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept_forever, connections.accept)
            await trio.testing.wait_all_tasks_blocked()
            listener.close()


async def test_without_descriptors_a_guest_waits_and_nobody_spins(
    endpoint: UnixEndpoint,
    connections: Connections,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EMFILE is counted, costs a pause, and the guest is let in when there is room."""
    counters = Counters()
    ours = Listener.open(endpoint, counters)
    accept, refusals = socket.socket.accept, 3

    def starved(sock: socket.socket) -> tuple[socket.socket, object]:
        if counters["listener.accept_failed"] < refusals:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", starved)
    begun = trio.current_time()
    with dial(endpoint):
        nursery.start_soon(ours.accept_forever, connections.accept)
        await connections.wait()
    assert counters["listener.accept_failed"] == refusals
    assert trio.current_time() - begun >= refusals * listener_module.ACCEPT_PAUSE
    ours.close()


async def test_a_connection_that_cannot_be_served_is_closed_and_the_next_one_is_served(
    listener: Listener,
    endpoint: UnixEndpoint,
    connections: Connections,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The system cannot watch one more socket: that QEMU hears the end, and may come again."""
    refused: list[socket.socket] = []

    def accept(sock: socket.socket, name: str) -> None:
        if not refused:
            refused.append(sock)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        connections.accept(sock, name)

    nursery.start_soon(listener.accept_forever, accept)
    with dial(endpoint) as first, dial(endpoint):
        await connections.wait()
        assert first.recv(1) == b""
    assert refused[0].fileno() == -1
    assert listener._counters["listener.accept_failed"] == 1


async def test_an_inherited_connection_that_cannot_be_served_is_closed() -> None:
    """As any other: counted, and no more."""
    theirs, qemu = socket.socketpair()
    counters = Counters()
    ours = Listener.open(FdEndpoint(theirs.detach()), counters)

    def accept(sock: socket.socket, name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    await ours.accept_forever(accept)
    assert counters["listener.accept_failed"] == 1
    with qemu:
        assert qemu.recv(1) == b""


async def test_a_tcp_connection_that_is_gone_before_we_look(
    connections: Connections,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some systems refuse options of a socket whose peer has reset it: that ends nothing else."""
    ours = Listener.open(TcpEndpoint("127.0.0.1", 0))
    assert isinstance(ours.endpoint, TcpEndpoint)
    setsockopt, refusals = socket.socket.setsockopt, [errno.EINVAL]

    def refuse(sock: socket.socket, *arguments: int) -> None:
        if refusals:
            raise OSError(refusals.pop(), "its peer is gone")
        setsockopt(sock, *arguments)

    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    nursery.start_soon(ours.accept_forever, connections.accept)
    address = (ours.endpoint.host, ours.endpoint.port)
    with socket.create_connection(address), socket.create_connection(address):
        await connections.wait()
    ours.close()


# ---- TCP and inherited sockets -----------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
async def test_tcp_port_zero_becomes_a_real_port(
    host: str, connections: Connections, nursery: trio.Nursery
) -> None:
    """The endpoint tells where QEMU is to connect; small frames are not held back, and a QEMU whose
    host is gone is missed within half a minute."""
    if host == "::1" and not IPV6:
        pytest.skip("no IPv6 on this machine")
    ours = Listener.open(TcpEndpoint(host, 0))
    assert isinstance(ours.endpoint, TcpEndpoint)
    assert ours.endpoint.port > 0
    nursery.start_soon(ours.accept_forever, connections.accept)
    with socket.create_connection((host, ours.endpoint.port)):
        sock = await connections.wait()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count <= 30
    ours.close()


def test_a_taken_port_and_an_unknown_host_are_told() -> None:
    """The system's reason, after the endpoint."""
    ours = Listener.open(TcpEndpoint("127.0.0.1", 0))
    with pytest.raises(UserError, match=r"cannot listen on tcp:127\.0\.0\.1:\d+: Address already"):
        Listener.open(ours.endpoint)
    ours.close()
    with pytest.raises(UserError, match="that is not a host's name"):
        Listener.open(TcpEndpoint("a..b", 1))


async def test_an_inherited_listening_socket_is_served(
    endpoint: UnixEndpoint, connections: Connections, nursery: trio.Nursery
) -> None:
    """systemd's way: it made the socket, its file is not ours to remove."""
    theirs = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.bind(endpoint.path)
    theirs.listen()
    ours = Listener.open(FdEndpoint(theirs.detach()))
    assert ours.endpoint == endpoint
    nursery.start_soon(ours.accept_forever, connections.accept)
    with dial(endpoint):
        await connections.wait()
    ours.close()
    with pytest.raises(ConnectionRefusedError):  # the file is there, and nobody behind it
        dial(endpoint)


async def test_an_inherited_connection_is_handed_over_once(connections: Connections) -> None:
    """One end of a socketpair is a guest at once, and there is no second."""
    theirs, qemu = socket.socketpair()
    descriptor = theirs.detach()
    ours = Listener.open(FdEndpoint(descriptor))
    await ours.accept_forever(connections.accept)
    await ours.accept_forever(connections.accept)
    (sock, name) = connections[0]
    assert len(connections) == 1
    assert name == f"fd:{descriptor}"
    ours.close()
    qemu.send(b"still open")
    assert sock.recv(20) == b"still open"
    qemu.close()


def test_descriptors_that_cannot_serve_are_told_apart(tmp_path: Path) -> None:
    """Not open, a file, datagrams, neither listening nor connected: each in its own words."""
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(UserError, match="this descriptor is not a socket"):
            Listener.open(FdEndpoint(file.fileno()))
        free = os.dup(file.fileno())
    os.close(free)
    with pytest.raises(UserError, match="this descriptor is not open"):
        Listener.open(FdEndpoint(free))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        with pytest.raises(UserError, match="it is not a stream socket"):
            Listener.open(FdEndpoint(sock.fileno()))
        assert sock.getsockname() == ""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock,
        pytest.raises(UserError, match="neither listens nor is connected"),
    ):
        Listener.open(FdEndpoint(sock.fileno()))


# ---- connecting --------------------------------------------------------------------


async def test_we_come_when_qemu_listens_and_again_after_its_restart(
    endpoint: UnixEndpoint,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No QEMU, then QEMU, then QEMU again: nobody has to start us a second time."""
    counters = Counters()
    ended = trio.Event()
    met: list[trio.Event] = []
    met_again = trio.Event()

    def on_connection(sock: socket.socket, name: str) -> trio.Event:
        sock.close()
        met.append(ended if not met else trio.Event())
        if len(met) == 2:
            met_again.set()
        return met[-1]

    nursery.start_soon(connect_forever, endpoint, on_connection, counters)
    await trio.sleep(10)
    tries = counters["listener.connect_failed"]
    assert 10 <= tries <= 14  # soon at first, then once a second
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as qemu:
        qemu.bind(endpoint.path)
        qemu.listen()
        await trio.sleep(1.1)
        assert len(met) == 1
        await trio.sleep(100)
        assert len(met) == 1  # one connection is enough while it lasts
        ended.set()
        await trio.sleep(1.1)
        assert met_again.is_set()


async def test_a_connection_to_qemu_that_cannot_be_served_is_tried_again(
    endpoint: UnixEndpoint,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A system short of something is like a QEMU that is not there yet."""
    counters, met = Counters(), trio.Event()
    socks: list[socket.socket] = []

    def on_connection(sock: socket.socket, name: str) -> trio.Event:
        socks.append(sock)
        if len(socks) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        met.set()
        return trio.Event()

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as qemu:
        qemu.bind(endpoint.path)
        qemu.listen()
        nursery.start_soon(connect_forever, endpoint, on_connection, counters)
        with trio.fail_after(10):
            await met.wait()
    assert counters["listener.connect_failed"] == 1
    assert socks[0].fileno() == -1
    socks[1].close()
