"""TCP between a real kernel in the guest and real servers on the host, over a clean wire."""

import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernel.conditions import LOSSES, WHOLE, Condition
from tests.kernel.laboratory import (
    GATEWAY,
    MIB,
    Laboratory,
    ServerProcess,
    carry,
    closed_port,
    listen,
    receive,
    some_octets,
    until,
)

pytestmark = pytest.mark.kernel

MTUS = (65520, 9000, 1500, 576)
HUNDRED_MB = 100_000_000
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: socket(7)


def abort(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


@pytest.mark.parametrize("mtu", MTUS)
def test_upload_of_100_mb_arrives_exactly(lab: Laboratory, mtu: int) -> None:
    """What the guest sends is what the server reads, whatever the MTU."""
    ours, theirs = lab.pair(lab.guest(mtu))
    carry(some_octets(HUNDRED_MB), ours, theirs)


@pytest.mark.parametrize("mtu", MTUS)
def test_download_of_100_mb_arrives_exactly(lab: Laboratory, mtu: int) -> None:
    """What the server sends is what the guest reads, whatever the MTU."""
    ours, theirs = lab.pair(lab.guest(mtu))
    carry(some_octets(HUNDRED_MB), theirs, ours)


def test_both_directions_at_once(lab: Laboratory) -> None:
    """A connection carries both ways at the same time, and neither disturbs the other."""
    ours, theirs = lab.pair(lab.guest(1500))
    with ThreadPoolExecutor(1) as pool:
        up = pool.submit(carry, some_octets(20 * MIB), ours, theirs)
        carry(some_octets(20 * MIB), theirs, ours)
        up.result()


def test_guest_ends_its_direction_and_still_hears(lab: Laboratory) -> None:
    """The guest says all it has to say; the server hears the end, then answers at length."""
    ours, theirs = lab.pair(lab.guest())
    carry(b"that is all", ours, theirs)
    carry(some_octets(5 * MIB), theirs, ours)


def test_server_ends_its_direction_and_still_hears(lab: Laboratory) -> None:
    """The server closes first; the guest reads the end and goes on sending."""
    ours, theirs = lab.pair(lab.guest())
    carry(b"goodbye", theirs, ours)
    carry(some_octets(5 * MIB), ours, theirs)


def test_server_speaks_first(lab: Laboratory) -> None:
    """A greeting, as SMTP's, arrives though the guest has said nothing."""
    ours, theirs = lab.pair(lab.guest())
    theirs.sendall(b"220 ready\r\n")
    assert ours.recv(100) == b"220 ready\r\n"


def test_reset_by_the_guest_reaches_the_server(lab: Laboratory) -> None:
    """A guest that aborts is seen to abort, not to finish."""
    ours, theirs = lab.pair(lab.guest())
    abort(ours)
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)


def test_reset_by_the_server_reaches_the_guest(lab: Laboratory) -> None:
    """A server that aborts is seen to abort, not to finish."""
    ours, theirs = lab.pair(lab.guest())
    abort(theirs)
    with pytest.raises(ConnectionResetError):
        ours.recv(1)


def test_refused_at_once(lab: Laboratory) -> None:
    """Where nobody listens the guest is told so, and does not wait."""
    guest = lab.guest()
    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        guest.connect((GATEWAY, closed_port()))
    assert time.monotonic() - started < 1


def test_fifty_connections_at_once(lab: Laboratory) -> None:
    """Fifty connections share the wire, and each gets its own octets."""
    guest = lab.guest(1500)
    pairs = [lab.pair(guest) for _ in range(50)]
    whole = some_octets(50 * MIB // 4)
    size = MIB // 4
    with ThreadPoolExecutor(50) as pool:
        parts = [whole[start : start + size] for start in range(0, len(whole), size)]
        done = [
            pool.submit(carry, part, *(pair if number % 2 else pair[::-1]))
            for number, (part, pair) in enumerate(zip(parts, pairs, strict=True))
        ]
        for transfer in done:
            transfer.result()


def test_slow_reader(lab: Laboratory) -> None:
    """A guest that reads in sips closes its window thousands of times; nothing is lost."""
    guest = lab.guest(1500)
    octets = some_octets(2 * MIB)
    with listen() as server, guest.open_socket() as ours, ThreadPoolExecutor(1) as pool:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours.connect((GATEWAY, server.getsockname()[1]))
        theirs, _ = server.accept()
        with theirs:
            sending = pool.submit(theirs.sendall, octets)
            got = bytearray()
            while len(got) < len(octets):
                got += ours.recv(500)
            sending.result()
    assert got == octets


def fill(sock: socket.socket) -> int:
    """Write until nothing has been taken for half a second; how many octets were."""
    sock.setblocking(False)
    taken = 0
    while select.select([], [sock], [], 0.5)[1]:
        taken += sock.send(bytes(65536))
    sock.settimeout(30)
    return taken


def test_reader_that_pauses(lab: Laboratory) -> None:
    """A guest that reads nothing for a while holds the server back, then gets all of it."""
    ours, theirs = lab.pair(lab.guest(1500))
    taken = fill(theirs)
    assert taken < 64 * MIB
    theirs.shutdown(socket.SHUT_WR)
    receive(ours, taken)
    assert ours.recv(1) == b""


def test_server_that_pauses(lab: Laboratory) -> None:
    """A server that reads nothing for a while holds the guest back, then gets all of it."""
    ours, theirs = lab.pair(lab.guest(1500))
    taken = fill(ours)
    assert taken < 64 * MIB
    ours.shutdown(socket.SHUT_WR)
    receive(theirs, taken)
    assert theirs.recv(1) == b""


def quiet_for(seconds: float, server: ServerProcess) -> None:
    """Time passes, and the server does next to nothing in it."""
    before, end = server.processor_time(), time.monotonic() + seconds
    until(lambda: time.monotonic() > end, "time passes", seconds + 1)
    assert server.processor_time() - before < 0.2 + seconds / 100, "the server spins"


SILENCE = 60.0  # seconds
WIRES = [WHOLE, LOSSES[-1]]


@pytest.mark.deep
@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
def test_windows_closed_for_a_minute_open_again(lab: Laboratory, wire: Condition) -> None:
    """Readers on both sides stop for a minute; probes keep the connections, and all arrives."""
    guest, _ = lab.harmed_guest(wire.mtu, wire.harm)
    pairs = [lab.pair(guest), lab.pair(guest)[::-1]]
    taken = [fill(source) for source, _ in pairs]
    quiet_for(SILENCE, lab.server(wire.mtu))
    for (source, sink), count in zip(pairs, taken, strict=True):
        source.shutdown(socket.SHUT_WR)
        sink.settimeout(120)
        receive(sink, count)
        assert sink.recv(1) == b""


@pytest.mark.deep
@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
def test_half_closed_for_a_minute(lab: Laboratory, wire: Condition) -> None:
    """One side ends its direction; after a minute of silence the other one still has its say."""
    guest, _ = lab.harmed_guest(wire.mtu, wire.harm)
    pairs = [lab.pair(guest), lab.pair(guest)[::-1]]
    for ender, other in pairs:
        carry(b"that is all", ender, other)
    quiet_for(SILENCE, lab.server(wire.mtu))
    for ender, other in pairs:
        ender.settimeout(120)
        carry(some_octets(MIB), other, ender)


def test_frozen_guest_comes_back(lab: Laboratory) -> None:
    """A paused machine loses nothing, holds nobody up, and goes on when it is resumed."""
    server = lab.own_server(1500)
    frozen = lab.guest(1500, server=server)
    other = lab.guest(1500, "10.0.2.16/24", server=server)
    ours, theirs = lab.pair(frozen)
    octets = some_octets(40 * MIB)
    with ThreadPoolExecutor(1) as pool:
        transfer = pool.submit(carry, octets, theirs, ours)
        until(lambda: server.processor_time() > 0 and _is_reading(ours), "the first octets")
        frozen.stop_reading()
        carry(some_octets(10 * MIB), *lab.pair(other))
        carry(some_octets(10 * MIB), *lab.pair(other)[::-1])
        assert not transfer.done()
        quiet_for(0.5, server)
        frozen.resume_reading()
        transfer.result()


def _is_reading(sock: socket.socket) -> bool:
    received = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    return bool(struct.unpack_from("Q", received, 128)[0])  # tcpi_bytes_received, linux/tcp.h
