"""What the tests of one pytest session share: a loop, and the network and machine that live in it.

It owns who uses what for how long. A machine takes seconds to boot, so it may serve several tests:
each gets a server and an internet of its own, and the records start anew, but the guest goes on.
A test that failed leaves nothing to the next. One that does without our machine has a network to
itself, where guests of its own have room; the machine waits for the next test that asks for it.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from traceback import format_exception
from typing import Any

import trio
from attrs import define, field, frozen

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing.background import BackgroundLoop
from qemu_usernat.testing.blocking import Machine, Network
from qemu_usernat.testing.console import SYNCHRONISE_TIME, CommandTimeout, ConsoleLost
from qemu_usernat.testing.guest_image import GuestImage
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.qmp import QmpError, QmpLost
from qemu_usernat.testing.virtual_machine import VirtualMachine

TAIL = 200  # lines of a console's log in a report
FAILURES_TOLD = 5  # of handlers; one that is broken fails each time that it is called
SCOPES = ("function", "module", "session")


def _names(function: Callable[..., object], *apart: str) -> tuple[str, ...]:
    return tuple(name for name in signature(function).parameters if name not in ("self", *apart))


NETWORK_OPTIONS = _names(Network.__init__, "internet", "folder", "accelerator", "loop")
IMAGE_OPTIONS = _names(GuestImage.build, "ca", "cache")
MACHINE_OPTIONS = _names(VirtualMachine.__init__, "image", "network", "folder", "accelerator")
BOOTABLE = ("kernel", "disk", "command")


@frozen
class Options:
    """What a test's marker asks for."""

    network: Mapping[str, Any] = field(factory=dict)
    image: Mapping[str, Any] = field(factory=dict)
    machine: Mapping[str, Any] = field(factory=dict)
    strict: bool = False
    """What nobody has defined fails the test."""

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> "Options":
        """`words` as the marker has them; UserError for one that is none."""
        allowed = (*NETWORK_OPTIONS, *IMAGE_OPTIONS, *MACHINE_OPTIONS, "strict")
        for name in words:
            if name not in allowed:
                raise UserError(f"usernat({name}=…); allowed: {', '.join(sorted(allowed))}")
        network, image, machine = (
            {name: words[name] for name in names if name in words}
            for names in (NETWORK_OPTIONS, IMAGE_OPTIONS, MACHINE_OPTIONS)
        )
        return cls(network, image, machine, bool(words.get("strict", False)))

    @property
    def boots_image(self) -> bool:
        """Whether a `GuestImage` is to be booted, and not something of the test's own."""
        return not any(name in self.machine for name in BOOTABLE)


@define
class _Living:
    """A network that runs, and the machine on it, if any test has asked for one."""

    options: Options
    reach: str
    """Which tests may share it: those of the same test, module or session."""
    folder: Path
    network: Network
    stack: ExitStack
    power: ExitStack = field(factory=ExitStack)
    """Of the machine alone."""
    machine: Machine | None = None
    image: GuestImage | None = None
    spoilt: bool = False
    log_begins: int = 0
    """Where the console's log stood when the current test began."""


class HarnessSession:
    """Networks and machines for tests, one of each at a time, and at most one of each waiting."""

    def __init__(self, accelerator: str | None, keep: bool) -> None:
        self._accelerator = accelerator
        self._keep = keep
        self._stack = ExitStack()
        self._loop: BackgroundLoop | None = None
        self._living: _Living | None = None
        self._waiting: _Living | None = None

    @property
    def loop(self) -> BackgroundLoop:
        """The one in which all of it lives."""
        if self._loop is None:
            self._loop = self._stack.enter_context(BackgroundLoop())
        return self._loop

    def close(self) -> None:
        """End everything."""
        try:
            self._end_living()
        finally:
            self._stack.close()

    # -- a test

    def begin(
        self,
        options: Options,
        reach: str,
        internet: Internet,
        new_folder: Callable[[], Path],
        *,
        alone: bool = False,
    ) -> Network:
        """The network of a test that begins, with `internet` behind it; `alone`, with a new one."""
        if alone:
            self._waiting, self._living = self._living, None
        living = self._living
        if living is not None and (living.options, living.reach) == (options, reach):
            network = living.network
            network.change_internet(internet)
            for rule in tuple(network.faults.rules):
                rule.remove()
            network.faults.resume()
            network.set_policy(options.network.get("policy"))
            network.clear()
            living.log_begins = _size(living.folder, network)
            return network
        self._end_living()
        folder = new_folder()
        with ExitStack() as stack:
            network = Network(
                internet,
                loop=self.loop,
                folder=folder,
                accelerator=self._accelerator,
                **options.network,
            )
            stack.enter_context(network)
            self._living = _Living(options, reach, folder, network, stack.pop_all())
        return network

    def machine(self, image: GuestImage | None) -> Machine:
        """The machine of the test that has begun; booted, or still there from another one."""
        living = self._living
        assert living is not None, "a network comes first"
        if living.machine is not None:
            if living.image == image and _answers(living):
                return living.machine
            living.machine = None  # a test before this one has powered it off, say
            living.power.close()
        machine = living.network.machine(image, **living.options.machine)
        living.log_begins = 0
        living.machine = living.power.enter_context(machine)
        living.image = image
        return living.machine

    def end(self, shared: bool) -> None:
        """The test is over; raises what has gone wrong behind its back."""
        living = self._living
        try:
            if living is not None and living.options.strict and not living.spoilt:
                living.network.internet.assert_nothing_unexpected()
        finally:
            if living is not None and shared and not living.spoilt:
                living.network.change_internet(Internet())
            else:
                try:
                    self._end_living()
                finally:
                    self._living, self._waiting = self._waiting, None

    def _end_living(self) -> None:
        living, self._living = self._living, None
        if living is not None:
            try:
                if self._keep and not living.spoilt:
                    _save(living)
                with living.stack:
                    living.power.close()
            finally:
                if not (self._keep or living.spoilt):
                    shutil.rmtree(living.folder, ignore_errors=True)

    # -- what a person is told

    @property
    def folder(self) -> Path | None:
        """Where logs and capture of the current test are."""
        return None if self._living is None else self._living.folder

    def explain(self, error: BaseException) -> None:
        """What the current test has failed with gets a note of each handler that has failed."""
        if self._living is not None:
            for failure in self._living.network.internet.errors[:FAILURES_TOLD]:
                error.add_note(f"a handler of the internet has failed: {failure}")

    def on_failure(self) -> list[tuple[str, str]]:
        """The current test has failed: what there is to know, under headings.

        Handlers that have failed are among it, so they are no other failure at the test's end.
        """
        living = self._living
        if living is None:
            return []
        living.spoilt = True
        _save(living)
        told = [("network", living.network.event_log())]
        errors = living.network.internet.errors
        if errors:
            traces = ["".join(format_exception(each.error)) for each in errors[:FAILURES_TOLD]]
            told.insert(0, ("handlers", "\n".join(traces)))
            errors.clear()
        log = _console_log(living.folder, living.network)
        if log.exists():
            said = log.read_bytes()[living.log_begins :].decode(errors="replace")
            told.append(("console", "\n".join(said.splitlines()[-TAIL:])))
        names = sorted(f"  {path}" for path in living.folder.rglob("*") if path.is_file())
        return [*told, ("files", "\n".join(names))]


def _save(living: _Living) -> None:
    living.network.capture.write(living.folder / "capture.pcapng")
    (living.folder / "events.txt").write_text(living.network.event_log() + "\n")


def _console_log(folder: Path, network: Network) -> Path:
    return folder / network.guests[0] / "console.log"


def _size(folder: Path, network: Network) -> int:
    log = _console_log(folder, network)
    return log.stat().st_size if log.exists() else 0


def _answers(living: _Living) -> bool:
    """Whether the machine serves another test, however the one before has left it."""
    assert living.machine is not None
    try:
        living.machine.resume()
        living.network.wait_connected()
        if living.image is not None:  # of others we cannot know whether there is a shell
            living.network.loop.call(_listen, living.machine.behind)
    except (TimeoutError, CommandTimeout, ConsoleLost, QmpLost, QmpError):
        return False
    return True


async def _listen(machine: VirtualMachine) -> None:
    """Have its shell listen, and end what still runs in the foreground."""
    with trio.move_on_after(SYNCHRONISE_TIME):
        await machine.console.synchronise()
        return
    await machine.console.interrupt()
