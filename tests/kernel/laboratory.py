"""What the kernel tests share: servers under test, guests on them, and streams between two ends.

A test says ``lab.guest(mtu=1500)`` and gets a Linux kernel behind a server that really runs;
``lab.pair(guest)`` is one TCP connection, held at both ends.
"""

import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from attrs import define, field, frozen

from qemu_usernat.testing.namespace import SOCKET_TIMEOUT, NamespaceGuest, connect_unix
from qemu_usernat.testing.relay import Harm, Relay
from tests.kernel.conditions import UP, WHOLE, Condition

HOST = "127.0.0.1"
GATEWAY = "10.0.2.2"  # with --host-loopback, the guest's name for the host's 127.0.0.1
GUEST = "10.0.2.15/24"
MIB = 1 << 20
CHUNK = 256 * 1024  # bytes written or read in one call


def some_octets(count: int) -> bytes:
    """Octets that repeat nowhere, the same ones in every run."""
    return random.Random("octets").randbytes(count)


def until(condition: Callable[[], bool], what: str, limit: float = 10.0) -> None:
    """Wait for something that another process does, looking often; AssertionError at `limit`."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.005)


def carry(octets: bytes, source: socket.socket, sink: socket.socket, *, end: bool = True) -> float:
    """Send `octets`, and the end, from `source` to `sink`, see them arrive; bytes per second."""

    def send() -> None:
        view = memoryview(octets)
        for start in range(0, len(octets), CHUNK):
            source.sendall(view[start : start + CHUNK])
        if end:
            source.shutdown(socket.SHUT_WR)

    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        received, digest = 0, hashlib.sha256()
        buffer = memoryview(bytearray(CHUNK))
        while (end or received < len(octets)) and (count := sink.recv_into(buffer)):
            digest.update(buffer[:count])
            received += count
        sending.result()
    took = time.monotonic() - started
    assert (received, digest.digest()) == (len(octets), hashlib.sha256(octets).digest())
    return received / took


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` octets; AssertionError if the stream ends before."""
    octets = bytearray()
    while len(octets) < count:
        got = sock.recv(min(count - len(octets), CHUNK))
        assert got, f"the end after {len(octets)} of {count} octets"
        octets += got
    return bytes(octets)


def listen(backlog: int = 512) -> socket.socket:
    """A TCP server on the host's loopback."""
    server = socket.create_server((HOST, 0), backlog=backlog)
    server.settimeout(SOCKET_TIMEOUT)
    return server


def closed_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of the host's loopback where nobody listens."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@define(eq=False)
class ServerProcess:
    """``qemu-usernat serve`` on a unix socket; ended, and looked over, by `end`."""

    folder: Path
    mtu: int
    options: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    """What runs it: somewhere else, or with less rights."""
    process: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def path(self) -> Path:
        """Where it listens."""
        return self.folder / "server.sock"

    def start(self) -> None:
        """Returns when it listens."""
        serve = [sys.executable, "-m", "qemu_usernat", "serve", "--host-loopback"]
        options = ["--mtu", str(self.mtu), *self.options]
        with (self.folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *serve, "--listen", f"unix:{self.path}", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), self.words()

    def end(self) -> None:
        """It ends when it is told to, and has nothing to complain of."""
        with self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                status = self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        assert (status, "Traceback" in self.words()) == (0, False), self.words()

    def words(self) -> str:
        """Its log."""
        return (self.folder / "server.log").read_text()

    def report(self) -> Counter[str]:
        """What it has counted, and what is live, by the names that it logs at SIGUSR1."""
        before = self._reports()
        self.process.send_signal(signal.SIGUSR1)
        until(lambda: len(self._reports()) > len(before), "a report")
        numbers = re.findall(r"(\S+)=(\d+)", self._reports()[-1])
        return Counter({name: int(number) for name, number in numbers})

    def _reports(self) -> list[str]:
        return re.findall(r"\] report .*\n", self.words())

    def descriptors(self) -> int:
        """How many it holds."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208

    def resident(self) -> int:
        """Its memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def processor_time(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@frozen
class Connection:
    """One TCP connection over a relay, held at both ends."""

    guest: socket.socket
    host: socket.socket
    relay: Relay

    def source_and_sink(self, way: str) -> tuple[socket.socket, socket.socket]:
        """The end that sends on the way `UP` or `DOWN`, and the one that receives."""
        return (self.guest, self.host) if way == UP else (self.host, self.guest)


@define(eq=False)
class Laboratory:
    """What one test starts; all of it ends with the test."""

    ends: ExitStack
    server: Callable[[int], ServerProcess]
    """The server for an MTU, shared by all tests."""
    own_server: Callable[..., ServerProcess]
    """A server for this test alone: (mtu, *options)."""

    def guest(
        self,
        mtu: int = 65520,
        address: str | None = GUEST,
        server: ServerProcess | None = None,
    ) -> NamespaceGuest:
        """A guest on a clean wire."""
        wire = connect_unix((server or self.server(mtu)).path)
        return self.ends.enter_context(NamespaceGuest(wire, mtu, address))

    def harmed_guest(
        self, mtu: int, harm: Harm, seed: int = 1, server: ServerProcess | None = None
    ) -> tuple[NamespaceGuest, Relay]:
        """A guest whose wire does the same harm both ways."""
        wire, relay = self._harmed_wire(connect_unix((server or self.server(mtu)).path), harm, seed)
        return self.ends.enter_context(NamespaceGuest(wire, mtu)), relay

    def _harmed_wire(
        self, server: socket.socket, harm: Harm, seed: int
    ) -> tuple[socket.socket, Relay]:
        ours, theirs = socket.socketpair()
        relay = Relay(theirs, server, to_host=harm, to_guest=harm, seed=seed)
        return ours, self.ends.enter_context(relay)

    def pair(
        self, guest: NamespaceGuest, condition: Condition = WHOLE
    ) -> tuple[socket.socket, socket.socket]:
        """One connection from the guest to a server on the host: (guest's end, host's end)."""
        return self._pair(guest, socket.socket(), (HOST, 0), GATEWAY, condition)

    def _pair(
        self,
        guest: NamespaceGuest,
        server: socket.socket,
        listens_at: tuple[str, int],
        seen_at: str,
        condition: Condition,
    ) -> tuple[socket.socket, socket.socket]:
        ours = self.ends.enter_context(guest.open_socket())
        condition.prepare_guest(ours)
        with server:
            condition.prepare_host(server)
            server.settimeout(SOCKET_TIMEOUT)
            server.bind(listens_at)
            server.listen()
            ours.connect((seen_at, server.getsockname()[1]))
            theirs, _ = server.accept()
        theirs.settimeout(SOCKET_TIMEOUT)
        return ours, self.ends.enter_context(theirs)

    def connection(
        self, condition: Condition, seed: int = 1, server: ServerProcess | None = None
    ) -> Connection:
        """One connection from a guest of its own, through us."""
        guest, relay = self.harmed_guest(condition.mtu, condition.harm, seed, server)
        return Connection(*self.pair(guest, condition), relay)

    def bare_connection(self, condition: Condition, seed: int = 1) -> Connection:
        """The same without us: behind the relay is another kernel in a namespace."""
        near, far = socket.socketpair()
        wire, relay = self._harmed_wire(near, condition.harm, seed)
        host = NamespaceGuest(far, condition.mtu, f"{GATEWAY}/24", gateway=None)
        host = self.ends.enter_context(host)
        guest = self.ends.enter_context(NamespaceGuest(wire, condition.mtu))
        server = host.open_socket()
        return Connection(*self._pair(guest, server, (GATEWAY, 0), GATEWAY, condition), relay)
