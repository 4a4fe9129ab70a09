"""A guest under QEMU for the length of an `async with`, driven over its console.

Owns the QEMU process: its arguments, its start, its certain end, and its logs. What the guest's
card is connected to is the caller's: the network arguments are passed through as they are.

QEMU ends with the block, whatever happens in it, and with the thread that runs the block if that
dies first (the kernel's parent-death signal goes by thread, prctl(2)): it is started right there,
not in one of trio's worker threads, which come and go.
"""

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import attrs
import trio

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing.console import CommandTimeout, ConsoleLost, VmConsole, WaitTimeout
from qemu_usernat.testing.guest_image import GuestImage

QEMU = "qemu-system-x86_64"
KVM = ("-accel", "kvm", "-cpu", "host")
# Not `-cpu max`: it offers the guest `rep movsb` and AVX, which make TCG four times slower.
# With rdrand the guest's random numbers are ready at once.
TCG = ("-accel", "tcg,thread=multi", "-cpu", "Westmere,+rdrand")
KVM_TIME = 10.0  # seconds for a guest to boot under KVM; one second is usual
BOOT_TIME = 90.0  # seconds; under TCG four are usual, on a busy machine many more


@attrs.frozen
class VirtualMachine:
    """A guest that runs: `console` is its shell; `folder` has console.log, kernel.log, qemu.log."""

    console: VmConsole
    stream: trio.SocketStream
    folder: Path
    process: subprocess.Popen[bytes]
    boot_time: float
    """Seconds that the guest took from its kernel's first moment to its shell, lease included."""

    async def wait(self) -> int:
        """Wait until the guest is powered off; returns QEMU's exit status."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        return self.process.wait()


@asynccontextmanager
async def virtual_machine(
    image: GuestImage,
    folder: Path,
    *,
    network: Sequence[str] = (),
    accelerator: Sequence[str] = TCG,
    machine: str = "pc",
    memory: int = 512,
    boot_time_limit: float = BOOT_TIME,
) -> AsyncIterator[VirtualMachine]:
    """Boot `image` and hand it over when its shell answers.

    `network` is QEMU's arguments for the card, `memory` is in MiB, logs are written into `folder`.
    Raises UserError, with QEMU's own words, when the guest does not come up.
    """
    stream, process = _start(
        [QEMU, "-machine", machine, *accelerator, "-m", str(memory), *network], image, folder
    )
    console_log = _console_log(folder)
    try:
        console = VmConsole(stream, console_log)
        try:
            up = await console.wait_for(rb"guest: up after ([0-9.]+) s", boot_time_limit)
            await console.synchronise()
        except (WaitTimeout, CommandTimeout, ConsoleLost) as error:
            raise UserError(f"the guest did not come up: {_words(folder) or error}") from error
        yield VirtualMachine(console, stream, folder, process, float(up[1]))
    finally:
        process.kill()
        process.wait()
        stream.socket.close()
        console_log.close()


async def find_accelerator(image: GuestImage, cache: Path) -> Sequence[str]:
    """QEMU's arguments for KVM where a guest truly boots with it, else for TCG.

    /dev/kvm may be there, open, and still never run a guest to its shell: so one is booted, with
    a time limit. The answer is kept in `cache` until the host is started again.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    known = _Answer(cache / "accelerator")
    if (answer := known.read()) is None:
        trial = virtual_machine(
            image, cache / "kvm-trial", accelerator=KVM, boot_time_limit=KVM_TIME
        )
        try:
            async with trial:
                answer = "kvm"
        except UserError:
            answer = "tcg"
        known.write(answer)
    return KVM if answer == "kvm" else TCG


@attrs.frozen
class _Answer:
    """A word in a file that is forgotten when the host is started again."""

    path: Path

    def read(self) -> str | None:
        boot, _, word = self.path.read_text().partition(" ") if self.path.exists() else ("", "", "")
        return word.strip() if boot == self._boot() else None

    def write(self, word: str) -> None:
        self.path.write_text(f"{self._boot()} {word}\n")

    @staticmethod
    def _boot() -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _arguments(image: GuestImage, folder: Path, console: int) -> list[str]:
    """A bare machine: the shell on ttyS0, the kernel's messages on ttyS1."""
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", "console=ttyS1 panic=-1 quiet"),
        *("-chardev", f"socket,id=console,fd={console}"),
        *("-serial", "chardev:console"),
        *("-serial", f"file:{_quoted(folder / 'kernel.log')}"),
    ]


def _quoted(path: Path) -> str:
    """QEMU splits an option's value at commas; a doubled one stands for itself."""
    return str(path).replace(",", ",,")


def _start(
    command: list[str], image: GuestImage, folder: Path
) -> tuple[trio.SocketStream, subprocess.Popen[bytes]]:
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = socket.socketpair()
    with theirs, (folder / "qemu.log").open("wb") as log:
        try:
            command += _arguments(image, folder, theirs.fileno())
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
            )
        except FileNotFoundError:
            ours.close()
            raise UserError("setpriv was not found: install util-linux") from None
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), process


def _console_log(folder: Path) -> IO[bytes]:
    return (folder / "console.log").open("wb", buffering=0)


def _words(folder: Path) -> str:
    return (folder / "qemu.log").read_text(errors="replace").strip()
