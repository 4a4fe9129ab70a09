"""The port of the host that a guest's port becomes: its own where that is free."""

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from qemu_usernat.host import udp
from qemu_usernat.host.udp import PORT_MINIMUM, PORTS_TRIED, reserved_ports
from tests.host.loopback import LoopbackRoom, port_of
from tests.scripted_guest import GATEWAY, OTHER, OTHER_MAC


@pytest.fixture
def room() -> Iterator[LoopbackRoom]:
    room = LoopbackRoom(mtu=1500)
    yield room
    room.close()


def host_port(room: LoopbackRoom, guest_port: int, server: socket.socket) -> int:
    """As the server sees the guest's port."""
    room.guest.sends(room.guest.datagram(guest_port, GATEWAY, port_of(server), b"?"))
    return int(server.recvfrom(10)[1][1])


def free_ports(count: int) -> int:
    """The first of so many ports in a row, of one parity, that are free on the host."""
    for first in range(20000, 60000, 2 * count):
        with ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 2 * count, 2):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind(("", port))
            return first
    raise AssertionError("no ports are free")


def test_a_port_is_kept_where_it_is_free(room: LoopbackRoom) -> None:
    """A guest's 20000 is the host's 20000 (RFC 4787, 4.2.1); one that is taken becomes another of
    its parity (REQ-4), so a second guest has one, too."""
    server, first = room.udp_server(), free_ports(PORTS_TRIED + 1)
    assert host_port(room, first, server) == first
    other = room.network.guest(OTHER_MAC, OTHER)
    other.sends(other.datagram(first, GATEWAY, port_of(server), b"?"))
    assert server.recvfrom(10)[1][1] == first + 2


def test_where_all_near_ports_are_taken_any_will_do(room: LoopbackRoom) -> None:
    """The search is short."""
    server, first = room.udp_server(), free_ports(PORTS_TRIED)
    for port in range(first, first + 2 * PORTS_TRIED, 2):
        sock = room.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind(("", port))
    seen = host_port(room, first, server)
    assert seen not in range(first, first + 2 * PORTS_TRIED, 2)
    assert seen >= PORT_MINIMUM


@pytest.mark.parametrize("port", [1, 53, 123, 1023])
def test_no_guest_gets_a_port_of_the_system_s_services(room: LoopbackRoom, port: int) -> None:
    """Whatever it speaks from, and though we may be root."""
    assert host_port(room, port, room.udp_server()) >= PORT_MINIMUM


def test_no_guest_gets_a_port_that_is_kept_for_services(tmp_path: Path) -> None:
    """The administrator's list, net.ipv4.ip_local_reserved_ports, is respected."""
    first = free_ports(PORTS_TRIED)
    (tmp_path / "reserved").write_text(f"8080,{first}-{first + 3}\n")
    with mock.patch.object(udp, "_RESERVED_PORTS", tmp_path / "reserved"):
        assert reserved_ports() == {8080, *range(first, first + 4)}
        room = LoopbackRoom()
    with contextlib.closing(room):
        assert host_port(room, first, room.udp_server()) == first + 4
    with mock.patch.object(udp, "_RESERVED_PORTS", tmp_path / "nothing"):
        assert reserved_ports() == frozenset()
