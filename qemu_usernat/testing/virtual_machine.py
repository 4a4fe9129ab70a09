"""A guest under QEMU for the length of an `async with`, driven over its console and QMP.

Owns the QEMU process: its arguments, its start, its certain end, and its logs. What the guest's
card is connected to is the caller's: the network arguments are passed through as they are.

QEMU ends with the block, whatever happens in it, and with the thread that runs the block if that
dies first (the kernel's parent-death signal goes by thread, prctl(2)): it is started right there,
not in one of trio's worker threads, which come and go.
"""

import math
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import attrs
import trio

from qemu_usernat.nurseries import helpers
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing import hot_plug
from qemu_usernat.testing.architectures import (
    accelerator_arguments,
    architecture_named,
    is_of_host,
)
from qemu_usernat.testing.console import CommandTimeout, ConsoleLost, VmConsole, WaitTimeout
from qemu_usernat.testing.folders import kept_or_temporary
from qemu_usernat.testing.guest_image import GuestImage, default_cache
from qemu_usernat.testing.qmp import Qmp, QmpEvent, QmpLost
from qemu_usernat.testing.snapshots import Snapshots

QEMU = "qemu-system-x86_64"
MEMORY = 512  # MiB
KVM_TIME = 10.0  # seconds for a guest to boot under KVM; one second is usual
BOOT_TIME = 90.0  # seconds; under TCG four are usual, on a busy machine many more
EVENT_TIME = 30.0  # seconds for an event to come
UP = rb"guest: up after ([0-9.]+) s"
OURS = ("-serial", "-nographic", "-daemonize", "-monitor", "-qmp")


class VirtualMachine:
    """A guest that runs for the length of an ``async with``.

    What boots is one of these:

    - `image`: a `GuestImage`; the block begins when its shell answers.
    - `kernel`, with `initrd` and `append` (the kernel's command line, behind our ``console=…``).
    - `disk`: an image of a disk, raw or qcow2; it is not changed, unless `keep_changes`.
    - `command`: a command line of your own, program first. It leaves the first serial port, the
      monitor and QMP to us.

    `network` is QEMU's arguments for the card (`netdev_arguments` makes them), `arguments` are any
    others. `memory` is in MiB; None is 512, or more where `image` needs more. `accelerator` is
    "kvm" or "tcg"; None is KVM where a guest truly boots with it. `folder` keeps console.log,
    qemu.log and, where there is a second serial port, kernel.log; without it they are gone with the
    block. With `reboots` a guest that reboots does so; otherwise that ends QEMU, and so does
    a panic.

    UserError, with QEMU's own words, when it does not start or `image` does not come up in
    `boot_time_limit` seconds.
    """

    console: VmConsole
    """The first serial port."""
    folder: Path
    """Where the logs are."""
    boot_time: float | None = None
    """Seconds that an `image` took from its kernel's first moment to its shell, lease included."""

    def __init__(
        self,
        image: GuestImage | None = None,
        *,
        kernel: Path | None = None,
        initrd: Path | None = None,
        append: str = "",
        disk: Path | None = None,
        keep_changes: bool = False,
        command: Sequence[str] = (),
        network: Sequence[str] = (),
        arguments: Sequence[str] = (),
        architecture: str = "x86_64",
        machine: str | None = None,
        accelerator: str | None = None,
        memory: int | None = None,
        cpus: int = 1,
        reboots: bool = False,
        folder: Path | None = None,
        boot_time_limit: float = BOOT_TIME,
    ) -> None:
        named = {"image": image, "kernel": kernel, "disk": disk, "command": command}
        given = [name for name, value in named.items() if value]
        if len(given) != 1 and given != ["kernel", "disk"]:
            raise UserError(
                f"VirtualMachine was given {' and '.join(given) or 'nothing to boot'}; "
                "allowed: one of image, kernel, disk and command, or kernel with disk"
            )
        if taken := next((word for word in command if word in OURS), None):
            raise UserError(f"command: {taken!r}; allowed: all but {', '.join(OURS)}")
        needed = 0 if image is None else image.memory_minimum
        if memory is not None and memory < needed:
            raise UserError(f"memory: {memory} MiB; allowed for this image: {needed} or more")
        self._facts = architecture_named(architecture)
        self._image, self._kernel, self._initrd, self._append = image, kernel, initrd, append
        self._disk, self._keep_changes, self._command = disk, keep_changes, list(command)
        self._network = hot_plug.with_ids(network)
        self._arguments, self._architecture = list(arguments), architecture
        self._machine, self._accelerator = machine or self._facts.machine, accelerator
        self._memory = max(MEMORY, needed) if memory is None else memory
        self._cpus, self._reboots = cpus, reboots
        self._boot_time_limit = boot_time_limit
        self._folder = folder
        self._running: AbstractAsyncContextManager[None] | None = None

    def __repr__(self) -> str:
        return f"<VirtualMachine in {self._folder or 'a temporary folder'}>"

    async def __aenter__(self) -> "VirtualMachine":
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._running is not None
        return await self._running.__aexit__(kind, error, trace)

    # -- QMP

    async def qmp(self, command: str, /, **arguments: Any) -> Any:
        """A command of QEMU's machine protocol: ``await machine.qmp("query-status")``.

        Returns what QEMU returns. QmpError where it refuses, QmpLost where it is gone.
        """
        return await self._qmp.execute(command, **arguments)

    @property
    def events(self) -> Sequence[QmpEvent]:
        """All that QEMU has told of, the latest last."""
        return tuple(self._qmp.events)

    async def wait_for_event(
        self,
        name: str,
        timeout: float = EVENT_TIME,  # noqa: ASYNC109 - so that the error can say it
    ) -> QmpEvent:
        """The next event of that name that this has not returned yet, be it in the past."""
        return await self._qmp.wait_for_event(name, timeout)

    async def monitor(self, line: str) -> str:
        """A command of QEMU's human monitor, and what it says."""
        return str(await self.qmp("human-monitor-command", **{"command-line": line}))

    # -- power and time

    async def pause(self) -> None:
        """Stop the guest's processors; its devices stay."""
        await self.qmp("stop")

    async def resume(self) -> None:
        """Go on where `pause` stopped."""
        await self.qmp("cont")

    @property
    def is_paused(self) -> bool:
        """Whether its processors stand still, as QEMU has told it last."""
        told = (event.name for event in reversed(self._qmp.events))
        return next((name for name in told if name in ("STOP", "RESUME")), "RESUME") == "STOP"

    async def reset(self) -> None:
        """Press the reset button; for an `image`, also wait until it is up again.

        Without an `image` we cannot know when that is: from then on, the guest may reboot.
        """
        await self.qmp("set-action", reboot="reset")
        await self._qmp.cause("system_reset", "RESET")
        if self._image is not None:
            await self._until_shell()
            if not self._reboots:  # not sooner: a BIOS may reset the machine once more by itself
                await self.qmp("set-action", reboot="shutdown")

    async def power_off(self) -> int:
        """Pull the plug; returns QEMU's exit status."""
        with suppress(QmpLost):
            await self.qmp("quit")
        return await self.wait()

    async def wait(
        self,
        timeout: float = math.inf,  # noqa: ASYNC109 - so that the error can say it
    ) -> int:
        """Wait until the guest is powered off; returns QEMU's exit status.

        TimeoutError after `timeout` seconds.
        """
        if (status := self.process.poll()) is not None:
            return status
        descriptor = os.pidfd_open(self.process.pid)
        try:
            with trio.fail_after(timeout):
                await trio.lowlevel.wait_readable(descriptor)
        except trio.TooSlowError:
            raise TimeoutError(f"the guest still runs after {timeout:g} s") from None
        finally:
            os.close(descriptor)
        return self.process.wait()

    # -- snapshots

    async def snapshot(self, name: str) -> None:
        """Keep memory, devices and disks under `name`, instead of what was kept there before.

        Until the machine ends.
        """
        await self._snapshots.save(name)

    async def restore(self, name: str) -> None:
        """Go back to a snapshot; the guest's wires and what it has said stay as they are."""
        await self._snapshots.load(name)

    # -- the card

    async def detach_network(self) -> None:
        """Unplug the card, as the guest agrees to, and take its wire away."""
        for netdev, card in hot_plug.pairs(self._network):
            await self._qmp.cause(
                "device_del", "DEVICE_DELETED", {"device": card["id"]}, id=card["id"]
            )
            await self.qmp("netdev_del", id=netdev["id"])

    async def attach_network(self, network: Sequence[str] = ()) -> None:
        """Plug in a card: that of these QEMU arguments, or the one there was before."""
        if network:
            self._network = hot_plug.with_ids(network)
        for netdev, card in hot_plug.pairs(self._network):
            await self.qmp("netdev_add", **hot_plug.typed(netdev))
            said = await self.monitor("device_add " + hot_plug.options(card))
            if said.strip():
                raise UserError(f"attach_network: {said.strip()}")

    # -- a person

    def take_stream(self) -> trio.SocketStream:
        """The console's own stream, for a person: `console` is not to be used from here on."""
        self._reading.cancel()
        return self._stream

    # -- how

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        accelerator = self._accelerator or await self._best_accelerator()
        with (
            kept_or_temporary(self._folder) as self.folder,
            (self.folder / "console.log").open("wb", buffering=0) as log,
        ):
            self._start(accelerator, log)
            try:
                async with helpers() as nursery:
                    self._reading = await nursery.start(self._read_console)
                    nursery.start_soon(self._qmp.run)
                    await self._until_up()
                    yield
            finally:
                self.process.kill()
                self.process.wait()
                with suppress(OSError):  # what it said last, and nobody has read
                    while data := os.read(self._stream.socket.fileno(), 1 << 16):
                        log.write(data)
                self._stream.socket.close()
                self._qmp_socket.close()

    def _start(self, accelerator: str, log: IO[bytes]) -> None:
        line = self._line(accelerator)
        if shutil.which(line[0]) is None:
            raise UserError(f"{line[0]} was not found: install QEMU, or name another")
        ours, console = socket.socketpair()
        self._qmp_socket, qmp = socket.socketpair()
        with console, qmp, (self.folder / "qemu.log").open("wb") as words:
            ports = self._ports(console.fileno(), qmp.fileno())
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *line, *ports],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                pass_fds=[console.fileno(), qmp.fileno()],
            )
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self.console = VmConsole(self._stream, log, self._last_words)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._qmp_socket))
        self._qmp = Qmp(stream, self._last_words)
        self.console.is_paused = lambda: self.is_paused
        self._snapshots = Snapshots(self._qmp, self.folder / "snapshots")

    def _line(self, accelerator: str) -> list[str]:
        """All but the ports, the accelerator of a machine of ours included."""
        if self._command:
            return [*self._command, *self._network, *self._arguments]
        line = [f"qemu-system-{self._architecture}", "-nodefaults", "-no-user-config"]
        line += ["-machine", self._machine, "-display", "none"]
        line += accelerator_arguments(accelerator, self._architecture)
        line += ["-m", str(self._memory), "-smp", str(self._cpus)]
        if not self._reboots:
            line.append("-no-reboot")
        if self._image is not None:
            line += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)]
            line += ["-append", f"console=ttyS1 panic=-1 quiet {self._append}".strip()]
        if self._kernel is not None:
            line += ["-kernel", str(self._kernel)]
            line += ["-append", f"console={self._facts.console} panic=-1 {self._append}".strip()]
            if self._initrd is not None:
                line += ["-initrd", str(self._initrd)]
        if self._disk is not None:
            with self._disk.open("rb") as disk:
                kind = "qcow2" if disk.read(4) == b"QFI\xfb" else "raw"
            drive = f"file={hot_plug.quoted(self._disk)},if=virtio,format={kind}"
            line += ["-drive", drive + ("" if self._keep_changes else ",snapshot=on")]
        return [*line, *self._network, *self._arguments]

    def _ports(self, console: int, qmp: int) -> list[str]:
        ports = ["-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console"]
        if not self._command and self._facts.serial_ports > 1:
            ports += ["-serial", f"file:{hot_plug.quoted(self.folder / 'kernel.log')}"]
        return [*ports, "-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"]

    async def _read_console(
        self, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.CancelScope() as reading:
            task_status.started(reading)
            await self.console.keep_reading()

    async def _until_up(self) -> None:
        try:
            await self.qmp("qmp_capabilities")
            await self._until_shell()
        except (CommandTimeout, WaitTimeout, ConsoleLost, QmpLost) as error:
            raise UserError(f"the guest did not come up: {error}") from error

    async def _until_shell(self) -> None:
        if self._image is None:
            return
        up = await self.console.wait_for(UP, self._boot_time_limit)
        self.boot_time = float(up[1])
        await self.console.synchronise()

    async def _best_accelerator(self) -> str:
        if self._command or not is_of_host(self._architecture) or not has_kvm():
            return "tcg"
        image = self._image
        if image is None:
            image = await trio.to_thread.run_sync(GuestImage.build)
        return await find_accelerator(image, default_cache())

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)  # it has closed its ends: it is on its way
        status = self.process.poll()
        ended = "QEMU still runs" if status is None else f"QEMU ended with {status}"
        words = ""
        with suppress(FileNotFoundError):  # asked after the end, of a temporary folder
            words = (self.folder / "qemu.log").read_text(errors="replace").strip()
        return f"{ended}: {words}" if words else ended


def has_kvm() -> bool:
    """Whether we may try."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


async def find_accelerator(image: GuestImage, cache: Path) -> str:
    """ "kvm" where a guest truly boots with it, else "tcg".

    /dev/kvm may be there, open, and still never run a guest to its shell: so one is booted, with
    a time limit. The answer is kept in `cache` until the host is started again.
    """
    if not has_kvm():
        return "tcg"
    known = _Answer(cache / "accelerator")
    if (answer := known.read()) is None:
        with tempfile.TemporaryDirectory() as folder:
            trial = VirtualMachine(
                image, accelerator="kvm", folder=Path(folder), boot_time_limit=KVM_TIME
            )
            try:
                async with trial:
                    answer = "kvm"
            except UserError:
                answer = "tcg"
        known.write(answer)
    return answer


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
