"""One guest's trouble is nobody else's: what its neighbour's pings of the gateway take meanwhile.

The server is a process of its own, and the neighbour a socket that speaks frames: so what is
measured is the server, and not a second emulation on the same processors. Times depend on the
machine, and so these are tests of `make test-deep` alone; what can be said without a clock is said
in `tests/qemu_edge/test_link.py` and `tests/test_router.py`.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest
import trio

from qemu_usernat.config import UnixEndpoint
from qemu_usernat.qemu.command_lines import netdev_arguments, version_of
from qemu_usernat.testing import GuestImage, VirtualMachine
from qemu_usernat.testing.virtual_machine import QEMU
from qemu_usernat.wire.packets import SYN
from tests.qemu.room import serving
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    ethernet,
    icmp,
    ipv4,
    tcp,
    udp,
)

pytestmark = [pytest.mark.qemu, pytest.mark.deep, pytest.mark.timeout(600)]

PINGS = 500
PAUSE = 0.002  # seconds between them
TRIES = 5
ADDRESS, MAC = "10.0.2.200", b"\2\0\0\0\0\1"
HOSTILE, HOSTILE_MAC = "10.0.2.201", b"\2\0\0\0\0\2"


def framed(frame: bytes) -> bytes:
    padded = frame.ljust(60, b"\0")
    return len(padded).to_bytes(4, "big") + padded


class Neighbour:
    """A guest at a socket, which pings the gateway."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        ping = icmp(8, 0, b"\0\7\0\1", bytes(8))
        self._ping = framed(ethernet(ipv4(ADDRESS, GATEWAY, 1, ping), MAC))

    def p99(self) -> float:
        """Seconds that 99 of 100 pings take less than."""
        times = []
        for _ in range(PINGS):
            began = time.perf_counter()
            self._socket.sendall(self._ping)
            while self._frame()[:6] != MAC:
                pass
            times.append(time.perf_counter() - began)
            time.sleep(PAUSE)
        return sorted(times)[PINGS * 99 // 100]

    def _frame(self) -> bytes:
        length = int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "big")
        return self._socket.recv(length, socket.MSG_WAITALL)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def zeros() -> Iterator[int]:
    """The port of a server that sends for ever, as fast as it can."""

    def send(connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    connection.sendall(bytes(1 << 20))
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=send, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


async def test_a_stopped_qemu_under_full_load(tmp_path: Path) -> None:
    """Its neighbour's pings take as long as before, but for less than a millisecond."""
    listen = tmp_path / "net.sock"
    network = netdev_arguments(version_of(QEMU), UnixEndpoint(str(listen)))
    network[-1] += ",romfile="
    with serving(listen, "--host-loopback"), zeros() as port:
        neighbour = Neighbour(listen)
        image = GuestImage.build()
        async with VirtualMachine(image, folder=tmp_path, network=network) as machine:
            load = f"socat -u TCP:{GATEWAY}:{port} OPEN:/dev/null >/dev/null 2>&1 &"
            measure: Callable[[], float] = neighbour.p99
            calm, halted = [], []
            for _ in range(TRIES):
                calm.append(await trio.to_thread.run_sync(measure))
                await machine.console.exec(load)
                loaded = await trio.to_thread.run_sync(measure)
                os.kill(machine.process.pid, signal.SIGSTOP)
                try:
                    halted.append(await trio.to_thread.run_sync(measure))
                finally:
                    os.kill(machine.process.pid, signal.SIGCONT)
                await machine.console.exec("killall socat")
                print(*(f"p99 {1e3 * each:.2f} ms" for each in (calm[-1], loaded, halted[-1])))
        neighbour.close()
    assert median(halted) - median(calm) < 0.001, (calm, halted)


FLOODS = {
    "pings": [ethernet(ipv4(HOSTILE, GATEWAY, 1, icmp(8, 0, bytes(4), b"x")), HOSTILE_MAC)],
    "broadcasts": [
        ethernet(
            ipv4(HOSTILE, "10.0.2.255", 17, udp(HOSTILE, 1, "10.0.2.255", 7, b"x")),
            HOSTILE_MAC,
            BROADCAST_MAC,
        )
    ],
    "to nobody": [ethernet(bytes(46), HOSTILE_MAC, b"\2\0\0\0\0\x77", 0x88B6)],
    "connections": [
        ethernet(
            ipv4(HOSTILE, GATEWAY, 6, tcp(HOSTILE, port, GATEWAY, 9, SYN, 1)),
            HOSTILE_MAC,
            GATEWAY_MAC,
        )
        for port in range(1024, 5024)
    ],
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood(tmp_path: Path, kind: str) -> None:
    """As fast as a guest can, of what costs most: its neighbour waits for some milliseconds at
    most, where a turn of 512 such frames would be tens of them."""
    listen = tmp_path / "net.sock"
    frames = b"".join(map(framed, FLOODS[kind] * (4000 // len(FLOODS[kind]))))
    with serving(listen):
        neighbour = Neighbour(listen)
        before = neighbour.p99()
        pid = os.fork()
        if pid == 0:
            _flood(listen, frames)
        try:
            times = sorted(neighbour.p99() for _ in range(TRIES))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        neighbour.close()
    print(f"{kind}: p99 {before * 1e3:.2f} flooded {times[TRIES // 2] * 1e3:.2f} ms")
    assert times[TRIES // 2] < 0.01, times


def _flood(listen: Path, frames: bytes) -> None:
    """In a process of its own, for ever."""
    try:
        with socket.socket(socket.AF_UNIX) as hostile:
            hostile.connect(str(listen))

            def hear() -> None:
                while hostile.recv(1 << 20):
                    pass

            threading.Thread(target=hear, daemon=True).start()
            while True:
                hostile.sendall(frames)
    finally:
        os._exit(1)
