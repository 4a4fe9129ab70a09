"""What the kernel's error queue says, in the words of ICMP."""

import errno
import socket
import struct
from typing import cast

import pytest
from attrs import define, field

from qemu_usernat.host.error_queue import ErrorReader
from qemu_usernat.wire.icmp import IcmpError, too_large
from tests.scripted_guest import SERVER, packed

ROUTER = "192.0.2.1"
HOST = "192.0.2.9"
LOCAL, ICMP = 1, 2  # SO_EE_ORIGIN_…, linux/errqueue.h
IP_TTL, IP_RECVERR = 2, 11


@define
class Queue:
    """A socket with errors in its queue: errno, origin, type, code, information, offender."""

    errors: list[tuple[int, int, int, int, int, str]] = field(factory=list)

    def recvmsg(self, *_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, tuple[str, int]]:
        if not self.errors:
            raise BlockingIOError(errno.EAGAIN, "nothing more")
        number, origin, kind, code, info, offender = self.errors.pop(0)
        detail = struct.pack("=IBBBBII", number, origin, kind, code, 0, info, 0)
        detail += struct.pack("=HH4s8x", socket.AF_INET, 0, packed(offender))
        ttl = (socket.IPPROTO_IP, IP_TTL, struct.pack("=i", 61))
        said = (socket.IPPROTO_IP, IP_RECVERR, detail)
        return b"quoted", [ttl, said], 0, (SERVER, 99)


def read(*error: int, offender: str = ROUTER) -> list[IcmpError]:
    """What becomes of one error."""
    number, origin, kind, code, info = error
    queue = Queue([(number, origin, kind, code, info, offender)])
    reader = ErrorReader(lambda address: address == packed(HOST))
    found = list(reader.read(cast(socket.socket, queue)))
    assert all(rest == [packed(SERVER), 99, b"quoted"] for _, *rest in found)
    return [said for said, *_ in found]


@pytest.mark.parametrize(
    ("kind", "code", "info", "rest"),
    [
        pytest.param(3, 1, 0, bytes(4), id="host unreachable"),
        pytest.param(3, 4, 1280, b"\0\0\5\0", id="the next hop's MTU"),
        pytest.param(11, 0, 0, bytes(4), id="time exceeded"),
        pytest.param(12, 0, 20, b"\x14\0\0\0", id="where in the packet the problem is"),
    ],
)
def test_what_a_router_says_is_said_again(kind: int, code: int, info: int, rest: bytes) -> None:
    """With all that it says, from its own address, and one hop less."""
    expected = IcmpError(kind, code, rest, packed(ROUTER), ttl=60)
    assert read(errno.EHOSTUNREACH, ICMP, kind, code, info) == [expected]


def test_what_is_for_the_host_is_not_for_the_guest() -> None:
    """A source quench (RFC 6633), and what is no ICMP at all."""
    assert read(0, ICMP, 4, 0, 0) == []
    assert read(errno.EHOSTUNREACH, LOCAL, 0, 0, 0) == []


def test_what_the_host_itself_says_comes_from_the_gateway() -> None:
    """Its own link is too narrow, or a neighbour is not there: its address is no guest's affair."""
    assert read(errno.EMSGSIZE, LOCAL, 0, 0, 1500) == [too_large(1500)]
    assert read(errno.EHOSTUNREACH, ICMP, 3, 1, 0, offender=HOST) == [IcmpError(3, 1)]
    (about_itself,) = read(errno.ECONNREFUSED, ICMP, 3, 3, 0, offender=SERVER)
    assert about_itself.offender == packed(SERVER)
