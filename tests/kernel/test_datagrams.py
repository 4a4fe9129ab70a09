"""UDP and echo between a real kernel in the guest and real servers on the host."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qemu_usernat.nat.udp_table import MAPPINGS_PER_GUEST
from tests.kernel.laboratory import GATEWAY, HOST, Laboratory, closed_port, some_octets

pytestmark = pytest.mark.kernel

SIZES = (0, 1, 1472, 1473, 65507)
"""Nothing, something, all that fits into 1500, one octet more, and all that UDP can carry."""

MTUS = (576, 1280, 1500, 9000, 65520)
ECHO_REQUEST, ECHO_REPLY = 8, 0  # RFC 792
IP_HEADER = 20  # bytes


@contextmanager
def udp_server(answers: int) -> Iterator[tuple[int, list[bytes]]]:
    """Says back what it is told, `answers` times: (port, what it was told)."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.settimeout(10)

        def serve() -> None:
            for _ in range(answers):
                octets, peer = server.recvfrom(65535)
                heard.append(octets)
                server.sendto(octets, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], heard
        finally:
            thread.join()


@pytest.mark.parametrize("mtu", MTUS)
@pytest.mark.parametrize("size", SIZES)
def test_datagrams_of_every_size_both_ways(lab: Laboratory, mtu: int, size: int) -> None:
    """A datagram arrives whole and alone, in fragments where the MTU asks for them."""
    octets = some_octets(size)
    with udp_server(1) as (port, heard):
        ours = lab.ends.enter_context(lab.guest(mtu).connect((GATEWAY, port), socket.SOCK_DGRAM))
        ours.send(octets)
        assert ours.recv(65535) == octets
    assert heard == [octets]


def test_two_servers_see_the_same_port_of_the_guest(lab: Laboratory) -> None:
    """One socket of the guest is one address outside, whoever it writes to (RFC 4787, REQ-1)."""
    ours = lab.ends.enter_context(lab.guest().open_socket(socket.SOCK_DGRAM))
    seen = set()
    for _ in range(2):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((HOST, 0))
            server.settimeout(10)
            ours.sendto(b"?", (GATEWAY, server.getsockname()[1]))
            seen.add(server.recvfrom(10)[1])
    assert len(seen) == 1


def test_a_port_is_kept(lab: Laboratory) -> None:
    """What the server sees is the guest's own, where that is free on the host (RFC 4787, 4.2.1)."""
    port = closed_port(socket.SOCK_DGRAM)
    ours = lab.ends.enter_context(lab.guest().open_socket(socket.SOCK_DGRAM))
    ours.bind(("", port))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.settimeout(10)
        ours.sendto(b"?", (GATEWAY, server.getsockname()[1]))
        assert server.recvfrom(10)[1] == (HOST, port)


@pytest.mark.parametrize(
    ("filtering", "heard"),
    [("endpoint", [b"1", b"2"]), ("address", [b"1", b"2"]), ("address-port", [b"1"])],
)
def test_who_may_answer_is_chosen(lab: Laboratory, filtering: str, heard: list[bytes]) -> None:
    """Another port of the same address is let in or not, as was asked for."""
    server = lab.own_server(1500, "--udp-filtering", filtering)
    ours = lab.ends.enter_context(lab.guest(1500, server=server).open_socket(socket.SOCK_DGRAM))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for each in (asked, other):
            each.bind((HOST, 0))
            each.settimeout(10)
        ours.sendto(b"?", (GATEWAY, asked.getsockname()[1]))
        peer = asked.recvfrom(10)[1]
        asked.sendto(b"1", peer)
        other.sendto(b"2", peer)
        asked.sendto(b"the end", peer)
        got = []
        while (octets := ours.recv(100)) != b"the end":
            got.append(octets)
    assert got == heard


def test_eight_thousand_ports_cost_no_more_descriptors_than_a_guest_may_have(
    lab: Laboratory,
) -> None:
    """A guest that sends from a port after the other, as fast as it can, is served all the time."""
    server = lab.own_server(1500)
    guest = lab.guest(1500, server=server)
    before = server.descriptors()
    sends = lab.ends.enter_context(guest.open_socket(socket.SOCK_RAW, socket.IPPROTO_UDP))
    with udp_server(1) as (port, heard):
        silent = closed_port(socket.SOCK_DGRAM)
        for source in range(10_000, 18_000):
            sends.sendto(struct.pack(">HHHH", source, silent, 9, 0) + b"x", (GATEWAY, 0))
        ours = lab.ends.enter_context(guest.connect((GATEWAY, port), socket.SOCK_DGRAM))
        ours.send(b"and now?")
        assert ours.recv(100) == b"and now?"
    assert heard == [b"and now?"]
    assert server.descriptors() - before <= MAPPINGS_PER_GUEST
    assert server.report()["udp.mapping_gave_way"] > 0


def test_closed_port_is_refused(lab: Laboratory) -> None:
    """The guest's kernel is told that nobody listens, and tells the program."""
    peer = (GATEWAY, closed_port(socket.SOCK_DGRAM))
    ours = lab.ends.enter_context(lab.guest().connect(peer, socket.SOCK_DGRAM))
    ours.send(b"is anybody there?")
    with pytest.raises(ConnectionRefusedError):
        ours.recv(10)


def _ones_complement(octets: bytes) -> int:
    words = struct.unpack(f">{(len(octets) + 1) // 2}H", octets + b"\0" * (len(octets) % 2))
    return int(-sum(words) % 0xFFFF)


@pytest.mark.parametrize("mtu", MTUS)
@pytest.mark.parametrize("size", [0, 56, 1473, 65507])
def test_the_gateway_answers_ping(lab: Laboratory, mtu: int, size: int) -> None:
    """Echo comes back as it went, up to the largest packet that IPv4 knows."""
    rest = struct.pack(">HH", 4711, 1) + some_octets(size)
    checksum = _ones_complement(bytes([ECHO_REQUEST, 0, 0, 0]) + rest)
    ours = lab.ends.enter_context(lab.guest(mtu).open_socket(socket.SOCK_RAW, socket.IPPROTO_ICMP))
    ours.sendto(struct.pack(">BBH", ECHO_REQUEST, 0, checksum) + rest, (GATEWAY, 0))
    packet, (source, _) = ours.recvfrom(65535)
    assert source == GATEWAY
    assert packet[IP_HEADER] == ECHO_REPLY
    assert packet[IP_HEADER + 4 :] == rest
