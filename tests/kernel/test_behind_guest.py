"""A guest that routes for another machine, over a link that is narrower than its own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from qemu_usernat.testing.namespace import NamespaceGuest
from tests.kernel.laboratory import GATEWAY, HOST, Laboratory, carry, listen, some_octets
from tests.kernel.routers import Kernel, kernel, wire

pytestmark = pytest.mark.kernel

NARROW = 1000  # bytes


@pytest.fixture
def behind(lab: Laboratory) -> Iterator[tuple[NamespaceGuest, Kernel]]:
    """The guest, and a machine that it hides behind its own address (masquerade).

    A router is between the two, so that the machine itself does not know of the narrow link.
    """
    guest = lab.guest(1500)
    with ExitStack() as ends:
        here, middle, inner = Kernel(guest.process), kernel(ends), kernel(ends)
        wire(here, "172.20.1.1/24", middle, "172.20.1.2/24", mtu=NARROW)
        wire(middle, "172.20.2.1/24", inner, "172.20.2.7/24")
        here.sysctl(ip_forward="1")
        here.ip("route add 172.20.2.0/24 via 172.20.1.2")
        middle.ip("route add default via 172.20.1.1")
        inner.ip("route add default via 172.20.2.1")
        nat = "type nat hook postrouting priority 100;"
        here.run("nft", "-f", "-", input=(
            f"table ip nat {{\nchain out {{\n{nat}\nip saddr 172.20.2.0/24 masquerade\n}}\n}}\n"
        ))  # fmt: skip
        yield guest, inner


def test_a_connection_finds_out_how_large_segments_may_be(
    lab: Laboratory, behind: tuple[NamespaceGuest, Kernel]
) -> None:
    """The guest says: fragmentation needed; what it could not pass on goes again, smaller."""
    _, inner = behind
    octets = some_octets(1 << 20)
    with listen() as server, inner.open_socket() as ours:
        ours.connect((GATEWAY, server.getsockname()[1]))
        theirs, _ = server.accept()
        with theirs:
            carry(octets, theirs, ours)
            carry(octets, ours, theirs)
    assert lab.server(1500).report()["icmp.guest_path_mtu"] >= 1


def test_large_datagrams_arrive_in_more_fragments(behind: tuple[NamespaceGuest, Kernel]) -> None:
    """Nothing forbids the guest to cut ours again."""
    _, inner = behind
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.settimeout(10)

        def echo() -> None:
            octets, peer = server.recvfrom(65535)
            server.sendto(octets, peer)

        thread = threading.Thread(target=echo)
        thread.start()
        with inner.open_socket(socket.SOCK_DGRAM) as ours:
            ours.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: cut as you like
            ours.sendto(some_octets(20_000), (GATEWAY, server.getsockname()[1]))
            assert ours.recv(65535) == some_octets(20_000)
        thread.join()
