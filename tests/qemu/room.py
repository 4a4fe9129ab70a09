"""What the tests with a real guest stand in: our server, a guest on it, servers to talk to."""

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import trio
import trustme

from qemu_usernat.config import UnixEndpoint
from qemu_usernat.qemu.command_lines import netdev_arguments, version_of
from qemu_usernat.testing import CommandResult, GuestImage, VirtualMachine, services
from qemu_usernat.testing.background import BackgroundLoop
from qemu_usernat.testing.virtual_machine import QEMU

START_TIME = 10.0  # seconds for the server to listen; one is usual
LONG_TEXT = "x" * 200  # a TXT record of many such strings needs TCP


@attrs.frozen
class Ports:
    """Where the servers listen on the host's loopback; the guest reaches them at the gateway."""

    http: int
    https: int
    count: int
    udp: int
    dns: int
    refused: int


@attrs.frozen
class Guest:
    """The guest, for tests that are plain functions."""

    machine: VirtualMachine
    ports: Ports
    loop: BackgroundLoop

    def exec(self, command: str, timeout: float = 60.0) -> CommandResult:
        """Status and output of a command in the guest."""
        return self.loop.call(self.machine.console.exec, command, timeout)

    def run(self, command: str, timeout: float = 60.0) -> str:
        """The output of a command that must succeed."""
        result = self.exec(command, timeout)
        assert result.status == 0, f"{command}: status {result.status}: {result.text}"
        return result.text


@contextmanager
def serving(listen: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A `qemu-usernat serve` that listens; its end must be clean and quick."""
    command = [sys.executable, "-m", "qemu_usernat", "serve", f"--listen=unix:{listen}"]
    errors = listen.with_suffix(".log")
    with (
        errors.open("w") as log,
        subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            assert first.startswith("listening"), errors.read_text()
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=5) == 0, errors.read_text()
        finally:
            process.kill()
    assert not listen.exists(), "the server left its socket behind"
    said = errors.read_text()
    assert "Traceback" not in said, said


@asynccontextmanager
async def living_guest(
    image: GuestImage, folder: Path
) -> AsyncIterator[tuple[VirtualMachine, Ports]]:
    """A guest on a server of its own process, and the servers that the guest may talk to."""
    authority = trustme.CA()
    # The gateway is at an address, so the certificate is for that.
    tls = services.tls_for("10.0.2.2", authority)
    records = {
        "a.example": "192.0.2.1",
        "long.example": " ".join(f'"{LONG_TEXT}"' for _ in range(20)),
        "server.example": "10.0.2.2",
    }
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else gets it
        async with trio.open_nursery() as nursery:
            ports = Ports(
                http=await nursery.start(services.http),
                https=await nursery.start(services.http, tls),
                count=await nursery.start(services.tcp, services.count_until_end),
                udp=await nursery.start(services.udp_echo),
                dns=await nursery.start(services.name_server, records),
                refused=closed.getsockname()[1],
            )
            listen = folder / "net.sock"
            network = netdev_arguments(version_of(QEMU), UnixEndpoint(str(listen)))
            network[-1] += ",romfile="
            with serving(listen, "--host-loopback", f"--dns=127.0.0.1:{ports.dns}"):
                async with VirtualMachine(image, folder=folder, network=network) as machine:
                    await machine.console.write_file("/tmp/ca.pem", authority.cert_pem.bytes())
                    yield machine, ports
            nursery.cancel_scope.cancel()
