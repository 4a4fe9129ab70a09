"""A guest goes online: its lease, a name, a page over HTTPS, and then its shell for you.

    make demo                 leaves you in the guest's shell
    make demo ARGS=--batch    ends instead; the status is 0 if all of it worked

Without an internet connection the name and the page come from servers that the demo starts on
this machine, with a certificate of its own making.
"""

import argparse
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import termios
import time
import tty
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
import trustme

from qemu_usernat.config import UnixEndpoint
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.qemu.command_lines import netdev_arguments, version_of
from qemu_usernat.testing import services
from qemu_usernat.testing.console import VmConsole
from qemu_usernat.testing.guest_image import GuestImage, default_cache
from qemu_usernat.testing.virtual_machine import (
    QEMU,
    VirtualMachine,
    find_accelerator,
)

CACHE = default_cache()
PUBLIC_NAME = "example.com"
OWN_NAME = "demo.example"
ONLINE_TIME = 4.0  # seconds to decide whether there is an internet connection
CTRL_RIGHT_BRACKET = b"\x1d"


class Steps:
    """A line for each thing done, with the seconds it took."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def say(self, what: str) -> None:
        now = time.monotonic()
        print(f"{now - self._last:6.1f} s  {what}", flush=True)
        self._last = now


def has_internet(image: GuestImage) -> bool:
    """Whether this host fetches the page that the guest is to fetch, trusting what it trusts."""
    trusted = ssl.create_default_context(cafile=str(image.ca_bundle))
    try:
        with urllib.request.urlopen(
            f"https://{PUBLIC_NAME}/", timeout=ONLINE_TIME, context=trusted
        ):
            return True
    except OSError:
        return False


@contextmanager
def server(listen: Path, options: list[str]) -> Iterator[None]:
    """`qemu-usernat serve` until the end of the block, or of this process."""
    serve = [sys.executable, "-m", "qemu_usernat", "serve", f"--listen=unix:{listen}"]
    command = ["setpriv", "--pdeathsig", "TERM", *serve, *options]
    with (CACHE / "demo" / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    with process:
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise UserError(f"the server did not start: see {log.name}")
            yield
        finally:
            process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def page(online: bool) -> AsyncIterator[tuple[str, str, list[str], bytes]]:
    """A name, a URL, the server's options that lead there, and a certificate to trust."""
    if online:
        yield PUBLIC_NAME, f"https://{PUBLIC_NAME}/", [], b""
        return
    authority = trustme.CA()
    async with trio.open_nursery() as nursery:
        https = await nursery.start(services.http, services.tls_for(OWN_NAME, authority))
        names = await nursery.start(services.name_server, {OWN_NAME: "10.0.2.2"})
        options = ["--host-loopback", f"--dns=127.0.0.1:{names}"]
        yield OWN_NAME, f"https://{OWN_NAME}:{https}/", options, authority.cert_pem.bytes()
        nursery.cancel_scope.cancel()


async def must(console: VmConsole, command: str) -> str:
    """The output of a command that the demo is about."""
    status, output = await console.exec(command)
    if status != 0:
        raise UserError(f"in the guest: {command}: status {status}\n{output.decode()}")
    return output.decode().strip()


async def show(machine: VirtualMachine, name: str, url: str, trust: bytes, steps: Steps) -> None:
    """The guest's lease, the name and the page, or UserError."""
    console = machine.console
    lease = dict(line.split("=", 1) for line in (await must(console, "cat /run/lease")).split("\n"))
    steps.say(f"lease: address {lease['ip']}, router {lease['router']}, MTU {lease['mtu']}")
    await console.write_file("/tmp/trust.pem", trust)
    await must(console, "cat /tmp/trust.pem >>/etc/ssl/certs/ca-certificates.crt")
    addresses = (await must(console, f"dig +short {name} A")).split()
    if not addresses:
        raise UserError(f"in the guest: no address for {name}")
    steps.say(f"dig {name}: {addresses[-1]}")
    size = await must(console, f"curl -sS -m 30 -o /dev/null -w '%{{size_download}}' {url}")
    steps.say(f"curl {url}: {size} bytes over TLS, certificate verified")


async def attach(machine: VirtualMachine) -> None:
    """This terminal becomes the guest's until its end, or Ctrl-]."""
    print("         the guest's shell is yours; Ctrl-] or `poweroff -f` ends it\n", flush=True)
    stream = machine.take_stream()
    columns, lines = os.get_terminal_size()
    size = f"stty sane cols {columns} rows {lines}"
    await stream.send_all(f"{size}; exec bash -l\n".encode())
    before = termios.tcgetattr(sys.stdin)
    keyboard = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    tty.setraw(sys.stdin)
    try:
        async with keyboard, trio.open_nursery() as nursery:

            async def type_keys() -> None:
                while (keys := await keyboard.receive_some()) and CTRL_RIGHT_BRACKET not in keys:
                    await stream.send_all(keys)
                nursery.cancel_scope.cancel()

            nursery.start_soon(type_keys)
            async for data in stream:
                os.write(sys.stdout.fileno(), data)
            nursery.cancel_scope.cancel()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        os.set_blocking(sys.stdin.fileno(), True)
        print()


async def main(batch: bool, offline: bool) -> None:
    steps = Steps()
    (CACHE / "demo").mkdir(parents=True, exist_ok=True)
    image = GuestImage.build()
    steps.say(f"guest image: Debian's kernel and tools, in {CACHE}")
    accelerator = await find_accelerator(image, CACHE)
    steps.say(f"QEMU runs it with {accelerator}")
    online = not offline and await trio.to_thread.run_sync(has_internet, image)
    steps.say("internet connection found" if online else "no internet: own name and page server")
    with tempfile.TemporaryDirectory() as folder:
        listen = Path(folder) / "net.sock"
        network = netdev_arguments(version_of(QEMU), UnixEndpoint(str(listen)))
        network[-1] += ",romfile="
        async with page(online) as (name, url, options, trust):
            with server(listen, options):
                steps.say("qemu-usernat serves")
                async with VirtualMachine(
                    image, folder=CACHE / "demo", network=network, accelerator=accelerator
                ) as machine:
                    steps.say("the guest is up")
                    await show(machine, name, url, trust, steps)
                    if not batch:
                        await attach(machine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", action="store_true", help="end after the page is fetched")
    parser.add_argument("--offline", action="store_true", help="do not try the internet")
    arguments = parser.parse_args()
    try:
        trio.run(main, arguments.batch or not sys.stdin.isatty(), arguments.offline)
    except* UserError as errors:
        sys.exit(f"demo: {errors.exceptions[0]}")
    except* KeyboardInterrupt:
        sys.exit(130)
    print("         all of it worked")
