"""UDP over real sockets: echo, and the errors that come back for datagrams."""

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from qemu_usernat.host.udp import DATAGRAMS_AT_ONCE
from qemu_usernat.nat.udp import IDLE_TIME
from qemu_usernat.poller import Poller
from tests.host.loopback import (
    LoopbackRoom,
    closed_port,
    fails_with,
    no_descriptors,
    open_descriptors,
    port_of,
)
from tests.scripted_guest import GATEWAY, GUEST, packed, udp


@pytest.fixture
def room() -> Iterator[LoopbackRoom]:
    room = LoopbackRoom(mtu=1500)
    yield room
    room.close()


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 65507])
def test_a_datagram_goes_and_another_comes_back(room: LoopbackRoom, size: int) -> None:
    """Of any size, from the same port of the host each time."""
    server = room.udp_server()
    payload = (bytes(range(253)) * 259)[:size]
    datagram = udp(GUEST, 1234, GATEWAY, port_of(server), payload)
    room.guest.sends(*room.guest.fragments(datagram, 17, GATEWAY))
    received, peer = server.recvfrom(65536)
    assert received == payload
    server.sendto(payload, peer)
    room.turn()
    answer = room.guest.hears_one()
    assert (answer.source, answer.udp.source_port) == (GATEWAY, port_of(server))
    assert answer.udp.payload == payload
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(server), b"again"))
    assert server.recvfrom(100) == (b"again", peer)


def test_a_closed_port_is_told_as_port_unreachable(room: LoopbackRoom) -> None:
    """The error queue tells us, we tell the guest, about its own datagram; and then it is quiet."""
    port = closed_port()
    frame = room.guest.datagram(1234, GATEWAY, port, b"anybody?")
    room.guest.sends(frame)
    room.turn()
    error = room.guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (GATEWAY, 3, 3)
    assert error.icmp.payload == frame[14:]
    assert packed("127.0.0.1") not in error.icmp.payload
    room.settle(turns=3)


def test_passt_15b_a_pending_error_costs_no_other_datagram(room: LoopbackRoom) -> None:
    """The error of one peer is reported by the next send to another: that is sent again."""
    server, port = room.udp_server(), closed_port()
    room.guest.sends(
        room.guest.datagram(1234, GATEWAY, port, b"anybody?"),
        room.guest.datagram(1234, GATEWAY, port_of(server), b"hello"),
    )
    assert server.recv(100) == b"hello"
    room.settle(turns=5)
    assert [heard.icmp.code for heard in room.guest.hears()] == [3]


@pytest.mark.parametrize("error", [errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EACCES])
def test_whatever_is_pending_costs_no_other_datagram(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Any ICMP error waits for the next send, to whomever: that is told of it, and sent again."""
    server, pending, send = room.udp_server(), [error], socket.socket.sendto

    def sendto(sock: socket.socket, payload: bytes, peer: tuple[str, int]) -> int:
        if pending:
            raise OSError(pending.pop(), "of an earlier datagram")
        return send(sock, payload, peer)

    monkeypatch.setattr(socket.socket, "sendto", sendto)
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(server), b"hello"))
    assert server.recv(100) == b"hello"
    assert not room.counters


def test_errors_and_datagrams_at_once(room: LoopbackRoom) -> None:
    """A socket with an error and an answer gives both, whichever it says first."""
    server, port = room.udp_server(), closed_port()
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(server), b"hello"))
    _, peer = server.recvfrom(100)
    server.sendto(b"answer", peer)
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port, b"anybody?"))
    room.settle(turns=5)
    heard = room.guest.hears()
    assert [each.udp.payload for each in heard if each.packet and each.packet.protocol == 17] == [
        b"answer"
    ]
    assert [each.icmp.code for each in heard if each.packet and each.packet.protocol == 1] == [3]


def test_a_burst_arrives_whole(room: LoopbackRoom) -> None:
    """More datagrams than one look takes: the rest comes with the next."""
    server = room.udp_server()
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(server), b"hello"))
    _, peer = server.recvfrom(100)
    expected = [bytes([n]) for n in range(DATAGRAMS_AT_ONCE + 36)]
    for payload in expected:
        server.sendto(payload, peer)
    room.turn()
    first = room.guest.hears()
    assert len(first) == DATAGRAMS_AT_ONCE
    room.settle(turns=3)
    assert [heard.udp.payload for heard in first + room.guest.hears()] == expected


def test_passt_15a_a_stranger_is_not_heard(room: LoopbackRoom) -> None:
    """Another address, though the port is known: 127.0.0.2 was never written to."""
    server = room.udp_server()
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(server), b"hello"))
    _, peer = server.recvfrom(100)
    stranger = room.udp_server()
    stranger.sendto(b"known address, other port", peer)
    room.turn()
    assert room.guest.hears_one().udp.payload == b"known address, other port"
    with type(stranger)(stranger.family, stranger.type) as other:
        other.bind(("127.0.0.2", 0))
        other.sendto(b"spam", peer)
    room.turn()
    assert room.guest.hears() == []
    assert room.counters["udp.filtered"] == 1


def test_a_mapping_that_ends_gives_its_descriptor_back(room: LoopbackRoom) -> None:
    """After its idle time nothing of it is left, in the poller or in the process."""
    server = room.udp_server()
    before = open_descriptors()
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(server), b"hello"))
    assert open_descriptors() == before + 1
    room.network.advance(IDLE_TIME)
    assert open_descriptors() == before
    assert room.is_idle()
    room.network.assert_nothing_left()


def test_without_descriptors_the_guest_is_told(room: LoopbackRoom) -> None:
    """EMFILE is "administratively prohibited", counted, and nothing is left of the attempt."""
    server = room.udp_server()
    frame = room.guest.datagram(1234, GATEWAY, port_of(server), b"hello")
    with no_descriptors():
        room.guest.sends(frame)
    assert (room.guest.hears_one().icmp.code, room.counters["udp.no_descriptor"]) == (13, 1)
    room.network.assert_nothing_left()
    room.guest.sends(frame)
    assert server.recv(100) == b"hello"


@pytest.mark.parametrize(
    ("error", "code"),
    [(errno.ENETUNREACH, 0), (errno.EHOSTUNREACH, 1), (errno.EACCES, 13), (errno.EPERM, 13)],
)
def test_no_way_out_is_told_at_once(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch, error: int, code: int
) -> None:
    """A host without a route, or with a firewall, says so: the guest's program need not wait."""

    monkeypatch.setattr(socket.socket, "sendto", fails_with(error))
    frame = room.guest.datagram(1234, GATEWAY, 9, b"anybody?")
    room.guest.sends(frame)
    told = room.guest.hears_one()
    assert (told.source, told.icmp.type, told.icmp.code) == (GATEWAY, 3, code)
    assert told.icmp.payload == frame[14:]
    assert room.counters["udp.send_unreachable"] == 1


def test_a_full_socket_is_no_news_for_the_guest(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A datagram that finds no room is lost, as in any network, and counted; once is enough."""
    tried = []

    def sendto(*_: object) -> int:
        tried.append(True)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(socket.socket, "sendto", sendto)
    room.guest.sends(room.guest.datagram(1234, GATEWAY, 9, b"anybody?"))
    assert room.guest.hears() == []
    assert (len(tried), room.counters["udp.send_full"]) == (1, 1)


def test_a_socket_that_cannot_be_watched(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a descriptor: the guest is told, and nothing is left of the attempt."""
    server, before = room.udp_server(), open_descriptors()
    frame = room.guest.datagram(1234, GATEWAY, port_of(server), b"hello")
    with monkeypatch.context() as short:
        short.setattr(Poller, "watch", fails_with(errno.ENOSPC))
        room.guest.sends(frame)
    assert (room.guest.hears_one().icmp.code, room.counters["udp.no_descriptor"]) == (13, 1)
    room.network.assert_nothing_left()
    assert open_descriptors() == before


def test_an_error_queue_that_cannot_be_read(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short of memory, the error is told later: in the next turn that can read it."""
    room.guest.sends(room.guest.datagram(1234, GATEWAY, closed_port(), b"anybody?"))
    with monkeypatch.context() as short:
        short.setattr(socket.socket, "recvmsg", fails_with(errno.ENOBUFS))
        room.turn()
    assert room.guest.hears() == []
    room.turn()
    assert room.guest.hears_one().icmp.code == 3


def test_what_the_host_refuses_to_send_is_counted(room: LoopbackRoom) -> None:
    """A datagram to the host's own broadcast address needs a permission that we do not have."""
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(room.udp_server()), b"hello"))
    (mapping,) = room.network.router.datagrams.mappings.values()
    mapping.host.send(b"everybody", packed("255.255.255.255"), 9, 64, False, 0.0)
    room.flush(0.0)
    assert sum(count for name, count in room.counters.items() if name.startswith("udp.send_")) == 1
    mapping.host.close()
    mapping.host.send(b"late", packed("127.0.0.1"), 9, 64, False, 0.0)
    mapping.host.close()
