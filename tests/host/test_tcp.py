"""The host half of TCP over real sockets: what a server does, the guest sees, and the reverse."""

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from qemu_usernat.host.tcp import HostTcp
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.sequence import add, difference
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN
from tests.host.loopback import (
    LoopbackRoom,
    closed_port,
    fails_with,
    no_descriptors,
    open_descriptors,
    port_of,
)
from tests.scripted_guest import GATEWAY, ScriptedConnection

MTU = 1500


@pytest.fixture
def room() -> Iterator[LoopbackRoom]:
    room = LoopbackRoom(mtu=MTU)
    yield room
    room.close()


def resets(sock: socket.socket) -> None:
    """Close with RST, as a program does that is killed with work undone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_exactly(sock: socket.socket, length: int) -> bytes:
    octets = b""
    while len(octets) < length:
        piece = sock.recv(length - len(octets))
        assert piece
        octets += piece
    return octets


# -- connecting


def test_an_open_port_is_open(room: LoopbackRoom) -> None:
    """SYN,ACK comes when the server's kernel has accepted, and octets pass both ways."""
    connection, server = room.connect(room.listen())
    room.guest.sends(connection.segment(ACK | PSH, b"question"))
    assert server.recv(100) == b"question"
    room.guest.hears()
    server.sendall(b"answer")
    room.turn()
    assert connection.reads() == b"answer"


def test_a_closed_port_is_closed_at_once(room: LoopbackRoom) -> None:
    """The guest's connect() fails with ECONNREFUSED, for it gets the reset of its SYN."""
    before = open_descriptors()
    room.guest.sends(room.guest.segment(40000, GATEWAY, closed_port(), SYN, 1000))
    room.settle()
    refusal = room.guest.hears_one().tcp
    assert (refusal.flags, refusal.acknowledgment) == (RST | ACK, 1001)
    room.network.assert_nothing_left()
    assert open_descriptors() == before


def test_a_port_that_answers_itself_is_closed(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever dials a closed port often enough is once given that very port to dial from."""
    port, connect = closed_port(), socket.socket.connect_ex

    def from_the_same_port(sock: socket.socket, address: tuple[str, int]) -> int:
        sock.bind(address)
        return connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", from_the_same_port)
    before = open_descriptors()
    room.guest.sends(room.guest.segment(40000, GATEWAY, port, SYN, 1000))
    room.settle()
    assert room.guest.hears_one().tcp.flags == RST | ACK
    room.network.assert_nothing_left()
    assert open_descriptors() == before
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))  # nothing lingers there


def test_a_guest_that_gives_up_gives_the_socket_back(room: LoopbackRoom) -> None:
    """RST while the server is dialled: the descriptor is free in the same turn."""
    listener = room.listen()
    before = open_descriptors()
    connection = ScriptedConnection(room.guest, 40000, GATEWAY, port_of(listener))
    room.guest.sends(connection.syn())
    assert open_descriptors() == before + 1
    room.guest.sends(room.guest.segment(40000, GATEWAY, port_of(listener), RST, 1001))
    assert open_descriptors() == before
    room.settle()
    room.network.assert_nothing_left()


def test_without_descriptors_the_guest_is_refused_and_others_go_on(room: LoopbackRoom) -> None:
    """EMFILE is a refusal, counted; the next SYN after that is served again."""
    listener = room.listen()
    connection, server = room.connect(listener)
    syn = ScriptedConnection(room.guest, 40001, GATEWAY, port_of(listener)).syn()
    with no_descriptors():
        room.guest.sends(syn)
        room.guest.sends(connection.segment(ACK, b"still here"))
    assert room.guest.hears()[0].tcp.flags == RST | ACK
    assert room.counters["tcp.no_descriptor"] == 1
    assert server.recv(100) == b"still here"
    room.guest.sends(syn)
    room.turn()
    assert room.guest.hears_one().tcp.flags == SYN | ACK


def test_passt_14b_what_the_guest_sends_is_not_held_back(room: LoopbackRoom) -> None:
    """passt 54bb972: the guest's own Nagle algorithm has decided; ours would only add a delay."""
    room.connect(room.listen())
    (flow,) = room.network.router.connections.flows.values()
    assert isinstance(flow.host, HostTcp)
    assert flow.host._sock is not None
    assert flow.host._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_urgent_octets_are_octets_of_the_stream(room: LoopbackRoom) -> None:
    """A byte that the server calls urgent is missing nowhere: it comes in its place."""
    connection, server = room.connect(room.listen())
    server.send(b"abc")
    server.send(b"!", socket.MSG_OOB)
    server.send(b"def")
    room.settle()
    assert connection.reads() == b"abc!def"


# -- a system that is short of everything


def test_a_socket_that_cannot_be_watched_while_dialling(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has no room in its table of watched descriptors: the guest is refused."""
    listener, before = room.listen(), open_descriptors()
    monkeypatch.setattr(Poller, "watch", fails_with(errno.ENOSPC))
    room.guest.sends(room.guest.segment(40000, GATEWAY, port_of(listener), SYN, 1000))
    assert room.guest.hears_one().tcp.flags == RST | ACK
    room.network.assert_nothing_left()
    assert open_descriptors() == before


@pytest.mark.parametrize("call", ["watch", "change"])
def test_a_socket_that_can_no_longer_be_watched(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Its flow ends for both sides in the same turn; the others do not notice."""
    listener = room.listen()
    other, its_server = room.connect(listener, 40001)
    connection, server = room.connect(listener)
    if call == "watch":  # so it must be watched at this moment for nothing
        room.guest.sends(connection.segment(ACK, window=0))
        server.sendall(b"greeting")
        room.settle()
    room.guest.hears()
    with monkeypatch.context() as short:
        short.setattr(Poller, call, fails_with(errno.ENOMEM))
        short.setattr(socket.socket, "send", fails_with(errno.EAGAIN))
        room.guest.sends(connection.segment(ACK, b"hello"))
    assert room.guest.hears()[-1].tcp.flags & RST
    assert [flow.key[1] for flow in room.network.router.connections.flows.values()] == [40001]
    room.guest.sends(other.segment(ACK, b"still here"))
    assert its_server.recv(100) == b"still here"


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM])
def test_a_kernel_without_memory_gets_the_octets_later(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """What could not be written is kept and written when there is memory again."""
    connection, server = room.connect(room.listen())
    with monkeypatch.context() as short:
        short.setattr(socket.socket, "send", fails_with(error))
        room.guest.sends(connection.segment(ACK | PSH, b"kept"))
    room.turn()
    assert server.recv(100) == b"kept"
    assert room.is_idle()


# -- endings


def test_the_server_s_end_is_an_end_and_no_more(room: LoopbackRoom) -> None:
    """FIN after the last octet; what the guest says after it still arrives."""
    connection, server = room.connect(room.listen())
    server.sendall(b"last words")
    server.shutdown(socket.SHUT_WR)
    room.settle()
    heard = room.guest.hears()
    assert b"".join(each.tcp.payload for each in heard) == b"last words"
    assert heard[-1].tcp.flags & FIN
    connection.received += len(b"last words") + 1
    room.guest.sends(connection.segment(ACK, b"and mine"))
    assert server.recv(100) == b"and mine"
    room.guest.sends(connection.segment(ACK | FIN))
    assert server.recv(100) == b""
    assert room.is_idle()


def test_the_guest_s_end_is_an_end_and_no_more(room: LoopbackRoom) -> None:
    """The server reads the end of a request and then answers it at length."""
    connection, server = room.connect(room.listen())
    room.guest.sends(connection.segment(ACK | FIN, b"request"))
    assert read_exactly(server, 7) == b"request"
    assert server.recv(100) == b""
    room.guest.hears()
    server.sendall(b"answer")
    room.turn()
    assert connection.reads() == b"answer"
    server.close()
    room.settle()
    assert room.guest.hears()[-1].tcp.flags & FIN


def test_the_guest_s_reset_reaches_the_server_as_one(room: LoopbackRoom) -> None:
    """ECONNRESET for the server: it must not take a broken upload for a whole one."""
    connection, server = room.connect(room.listen())
    room.guest.sends(connection.segment(ACK, b"half of it"))
    assert server.recv(100) == b"half of it"
    room.guest.sends(connection.segment(RST))
    with pytest.raises(ConnectionResetError):
        server.recv(100)
    room.network.assert_nothing_left()


def test_the_server_s_reset_reaches_the_guest_as_one(room: LoopbackRoom) -> None:
    """The guest's program hears ECONNRESET and not the end of a file."""
    _, server = room.connect(room.listen())
    resets(server)
    room.settle()
    assert room.guest.hears_one().tcp.flags & RST
    room.network.assert_nothing_left()


def test_a_reset_after_the_guest_s_end_reaches_the_server_as_one(room: LoopbackRoom) -> None:
    """It has the whole upload, and learns at once that nobody waits for the rest of its answer."""
    connection, server = room.connect(room.listen())
    room.guest.sends(connection.segment(ACK | FIN, b"all of it"))
    assert read_exactly(server, 9) == b"all of it"
    assert server.recv(100) == b""
    server.sendall(b"an answer")  # by which its kernel acknowledges our FIN
    room.settle()
    room.guest.sends(connection.segment(RST))
    with pytest.raises(BrokenPipeError):
        server.send(b" and more of it")
    room.network.assert_nothing_left()


def test_a_reset_after_the_guest_s_end_does_not_overtake_what_it_said(room: LoopbackRoom) -> None:
    """A slow server gets all that was acknowledged, though nobody reads what it says itself."""
    listener = room.listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection, server = room.connect(listener)
    sent = uploads(room, connection, 400_000)
    room.guest.sends(connection.segment(ACK | FIN, window=0))
    server.sendall(b"a word that the guest has no room for")
    room.settle()
    room.guest.sends(connection.segment(RST))
    room.network.assert_nothing_left()
    assert read_exactly(server, len(sent)) == sent
    assert server.recv(100) == b""


def test_what_was_said_before_a_broken_pipe_is_heard(room: LoopbackRoom) -> None:
    """A server that answers and resets while the guest still writes: the answer comes first."""
    connection, server = room.connect(room.listen())
    server.sendall(b"413 too large")
    resets(server)
    room.guest.sends(connection.segment(ACK, b"more and more"))
    heard = [each.tcp for each in room.guest.hears()]
    assert b"".join(segment.payload for segment in heard) == b"413 too large"
    assert heard[-1].flags & RST
    room.network.assert_nothing_left()


def uploads(room: LoopbackRoom, connection: ScriptedConnection, limit: int) -> bytes:
    """Everything that the guest may send into the windows it hears of, at most `limit` octets."""
    sent = bytearray()
    acknowledged, edge = connection.sent, connection.sent + 65535
    while len(sent) < limit and edge - connection.sent >= MTU - 40:
        payload = len(sent).to_bytes(8, "big") * 182  # 1456 octets
        room.guest.sends(connection.segment(ACK, payload))
        sent += payload
        for heard in room.guest.hears():
            acknowledged += difference(heard.tcp.acknowledgment, add(acknowledged, 0))
            edge = acknowledged + heard.tcp.window
    assert acknowledged == connection.sent, "what was advertised is accepted"
    return bytes(sent)


def test_a_slow_server_gets_every_octet(room: LoopbackRoom) -> None:
    """Writes fall short; what the guest was told has arrived does arrive, in order, once."""
    listener = room.listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection, server = room.connect(listener)
    sent = uploads(room, connection, 16_000_000)
    assert len(sent) < 16_000_000, "the window closes while the server does not read"
    assert room.is_idle(), "a full socket is not ready"
    received = bytearray()
    while len(received) < len(sent):
        received += server.recv(1 << 20)
        room.settle()
    assert received == sent
    assert room.is_idle(), "nothing to write: nobody waits for room"
    room.guest.hears()
    more = uploads(room, connection, 100_000)
    assert read_exactly(server, len(more)) == more


def test_a_server_that_ends_and_then_resets(room: LoopbackRoom) -> None:
    """FIN first, with octets of the guest still queued, then RST: the guest hears both."""
    listener = room.listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection, server = room.connect(listener)
    uploads(room, connection, 16_000_000)
    server.shutdown(socket.SHUT_WR)
    room.settle()
    assert room.guest.hears()[-1].tcp.flags & FIN
    connection.received += 1
    resets(server)
    room.settle()
    assert room.guest.hears()[-1].tcp.flags & RST
    room.network.assert_nothing_left()


# -- windows


def test_a_closed_window_leaves_the_server_s_octets_where_they_are(room: LoopbackRoom) -> None:
    """While the guest takes nothing, nothing is read, and nothing spins; then all of it comes."""
    connection, server = room.connect(room.listen())
    room.guest.sends(connection.segment(ACK, window=0))
    server.sendall(b"x" * 5000)
    room.settle()
    assert room.guest.hears() == []
    assert room.is_idle()
    room.guest.sends(connection.segment(ACK))
    octets = b""
    while len(octets) < 5000:
        room.settle()
        octets += connection.reads()
    assert octets == b"x" * 5000


def test_a_server_that_speaks_first_is_heard_after_the_handshake(room: LoopbackRoom) -> None:
    """An SMTP greeting waits until the guest has acknowledged our SYN."""
    listener = room.listen()
    connection = ScriptedConnection(room.guest, 40000, GATEWAY, port_of(listener))
    room.guest.sends(connection.syn())
    room.turn()
    server = room.accept(listener)
    server.sendall(b"220 hello")
    room.settle()
    answer = room.guest.hears_one().tcp
    assert answer.flags == SYN | ACK
    connection.received = answer.sequence + 1
    room.guest.sends(connection.segment(ACK))
    room.settle()
    assert connection.reads() == b"220 hello"


def test_a_quiet_connection_costs_no_turns(room: LoopbackRoom) -> None:
    """Open, and nobody says anything: no readiness is reported, in no state of the two ends."""
    connection, server = room.connect(room.listen())
    assert room.is_idle()
    server.shutdown(socket.SHUT_WR)
    room.settle()
    assert room.guest.hears()[-1].tcp.flags & FIN
    connection.received += 1
    room.guest.sends(connection.segment(ACK))
    assert room.is_idle()
