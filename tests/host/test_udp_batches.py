"""Datagrams that go together in one call, and come together: each is still one, in its place."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_usernat.host.udp import DATAGRAMS_AT_ONCE, HostUdp
from qemu_usernat.nat import udp_table
from tests.host.loopback import LoopbackRoom, fails_with, port_of
from tests.scripted_guest import GATEWAY

IP_RECVTTL = 12  # linux/in.h
SEND_ERRORS = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EAGAIN)


@pytest.fixture
def room() -> Iterator[LoopbackRoom]:
    room = LoopbackRoom(mtu=1500)
    yield room
    room.close()


def drain(sock: socket.socket) -> list[bytes]:
    """All that has come, which is there already: loopback delivers in the call that sends."""
    got = []
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            got.append(sock.recv(65535))
    return got


SIZES = st.lists(st.sampled_from([0, 1, 7, 7, 7, 512, 512, 512, 511, 1400, 30000]), max_size=90)


@settings(max_examples=50)
@given(SIZES, st.sampled_from([0, *SEND_ERRORS]))
def test_what_is_sent_in_one_turn_arrives_as_it_was_sent(sizes: list[int], error: int) -> None:
    """Each datagram by itself, in order, octet for octet, whatever goes together in one call, and
    also where the kernel takes nothing together."""
    sent = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    with ExitStack() as stack:
        room = LoopbackRoom()
        stack.callback(room.close)
        if error:
            stack.enter_context(mock.patch.object(socket.socket, "sendmsg", fails_with(error)))
        server, other = room.udp_server(), room.udp_server()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        guest, port = room.guest, port_of(server)
        frames = [guest.datagram(1234, GATEWAY, port, each) for each in sent]
        frames.insert(len(frames) // 2, guest.datagram(1234, GATEWAY, port_of(other), b"aside"))
        guest.sends(*frames)
        assert drain(server) == sent
        assert drain(other) == [b"aside"]
        assert guest.hears() == []


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([100] * 64, [64]),
        ([100] * 65, [64, 1]),
        ([100, 100, 50, 100, 100], [3, 2]),
        ([100, 101, 101], [1, 2]),
        ([0, 0, 100, 100], [1, 1, 2]),
        ([30000] * 3, [2, 1]),
    ],
)
def test_equal_sizes_go_together(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch, sizes: list[int], calls: list[int]
) -> None:
    """One call for a run of them, and for a shorter one at its end, as the kernel has it."""
    server, seen = room.udp_server(), []

    class Spy(socket.socket):
        def sendmsg(self, buffers: Any, *others: Any) -> int:
            seen.append(len(buffers))
            return super().sendmsg(buffers, *others)

        def sendto(self, *arguments: Any) -> int:
            seen.append(1)
            return super().sendto(*arguments)

    monkeypatch.setattr("qemu_usernat.host.udp.socket.socket", Spy)
    frame = partial(room.guest.datagram, 1234, GATEWAY, port_of(server))
    room.guest.sends(*[frame(bytes(size)) for size in sizes])
    assert seen == calls


def test_other_ways_do_not_go_together(room: LoopbackRoom) -> None:
    """Hops and the DF bit are said of a socket: each datagram leaves with its own."""
    server = room.udp_server()
    server.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    frame = partial(room.guest.datagram, 1234, GATEWAY, port_of(server), b"x")
    room.guest.sends(*[frame(ttl=ttl) for ttl in (64, 64, 10, 10, 64)])
    hops = [server.recvmsg(10, 64)[1][0][2][0] for _ in range(5)]
    assert hops == [63, 63, 9, 9, 63]


def test_what_does_not_fit_its_path_together_goes_alone(
    room: LoopbackRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments must fit the path: what is larger is not tried again together, smaller ones are."""
    server, tried = room.udp_server(), []

    class Narrow(socket.socket):
        def sendmsg(self, buffers: Any, *others: Any) -> int:
            tried.append(len(buffers[0]))
            if len(buffers[0]) > 1000:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return super().sendmsg(buffers, *others)

    monkeypatch.setattr("qemu_usernat.host.udp.socket.socket", Narrow)
    frame = partial(room.guest.datagram, 1234, GATEWAY, port_of(server))
    for size in (1400, 1400, 1200, 900, 900):
        room.guest.sends(frame(bytes(size)), frame(bytes(size)))
        assert drain(server) == [bytes(size)] * 2
    assert tried == [1400, 1200, 900, 900]


def test_what_was_kept_is_sent_before_the_mapping_goes(room: LoopbackRoom) -> None:
    """A mapping that gives way in the turn of its only datagram has still sent it."""
    server = room.udp_server()
    with mock.patch.object(udp_table, "MAPPINGS_PER_GUEST", 2):
        frames = [
            room.guest.datagram(port, GATEWAY, port_of(server), b"%d" % port)
            for port in range(20000, 20005)
        ]
        room.guest.sends(*frames)
    assert sorted(drain(server)) == [b"%d" % port for port in range(20000, 20005)]


@pytest.mark.parametrize(("size", "count"), [(1, 64), (700, 64), (700, 33), (9000, 7)])
def test_what_comes_together_is_taken_apart(room: LoopbackRoom, size: int, count: int) -> None:
    """A server that sends in runs keeps its datagrams apart, in order, the shorter last one too."""
    server = room.udp_server()
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(server), b"?"))
    _, peer = server.recvfrom(10)
    sent = [bytes([number]) * size for number in range(count)]
    sent[-1] = sent[-1][: size // 2 + 1]
    segment = [(socket.IPPROTO_UDP, 103, struct.pack("=H", size))]
    for _ in range(5):
        server.sendmsg(sent, segment, 0, peer)
        server.sendto(b"alone", peer)
        room.settle()
    heard = [each.udp.payload for each in room.guest.hears()]
    assert heard == [*sent, b"alone"] * 5


def test_reading_together_is_given_up_where_nothing_comes_together(room: LoopbackRoom) -> None:
    """It costs more for each datagram: a busy socket tries it once."""
    server, tried = room.udp_server(), []
    room.guest.sends(room.guest.datagram(1234, GATEWAY, port_of(server), b"?"))
    _, peer = server.recvfrom(10)
    (mapping,) = room.network.router.datagrams.mappings.values()
    host = mapping.host
    assert isinstance(host, HostUdp)
    for _ in range(20):
        for number in range(DATAGRAMS_AT_ONCE):
            server.sendto(b"%d" % number, peer)
        room.settle()
        tried.append(host._merges)
        heard = [each.udp.payload for each in room.guest.hears()]
        assert heard == [b"%d" % number for number in range(DATAGRAMS_AT_ONCE)]
    assert (tried[0], tried[-1]) == (True, False)
    assert tried == sorted(tried, reverse=True)
