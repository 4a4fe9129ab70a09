"""The same for tests that are plain functions: every call waits until it is done.

Each class stands for the asynchronous one of a similar name, whose docstrings say what is done;
here are no other words of it than how it is called. The work happens in a `BackgroundLoop`.

    with Network(internet) as network, network.machine(image) as machine:
        assert machine.console.exec("true").status == 0
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from qemu_usernat.config.network import Network as Settings
from qemu_usernat.config.publish import Publication
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.testing.background import BackgroundLoop
from qemu_usernat.testing.capture import Capture as AsyncCapture
from qemu_usernat.testing.console import CommandResult, VmConsole
from qemu_usernat.testing.dialogue import DEFAULT_TIME_LIMIT
from qemu_usernat.testing.echo import SHELL_PROMPT
from qemu_usernat.testing.fake_guest import FakeGuest
from qemu_usernat.testing.fake_guest.dhcp import Lease
from qemu_usernat.testing.fake_guest.stream import TcpStream
from qemu_usernat.testing.faults import Faults
from qemu_usernat.testing.filters import Filter, anything
from qemu_usernat.testing.frames import Frame
from qemu_usernat.testing.guest_image import GuestImage
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.internet.records import DnsQuery
from qemu_usernat.testing.network import FIRST_GUEST, VirtualNetwork
from qemu_usernat.testing.qmp import QmpEvent
from qemu_usernat.testing.records import FlowRecord, Records, Verdict
from qemu_usernat.testing.virtual_machine import EVENT_TIME, VirtualMachine

T = TypeVar("T")

__tracebackhide__ = True  # from pytest's reports: the caller's line and the error are what counts


class _Facade(Generic[T]):
    """Something that lives in `loop`; `behind` is it."""

    def __init__(self, behind: T, loop: BackgroundLoop) -> None:
        self.behind = behind
        self.loop = loop

    def __repr__(self) -> str:
        return repr(self.behind)


class Console(_Facade[VmConsole]):
    """A `VmConsole`."""

    def exec(self, command: str, timeout: float = DEFAULT_TIME_LIMIT) -> CommandResult:
        """`VmConsole.exec`: status and output of a command in the guest's shell."""
        return self.loop.call(self.behind.exec, command, timeout)

    def exec_many(self, *commands: str, timeout: float = DEFAULT_TIME_LIMIT) -> list[CommandResult]:
        """`VmConsole.exec_many`: of several commands at the same time."""
        return self.loop.call(self.behind.exec_many, *commands, timeout=timeout)

    def send_line(
        self, text: str, *, end: str = "\n", echoed: bool = True, slowly: bool = False
    ) -> None:
        """`VmConsole.send_line`: type a line."""
        self.loop.call(self.behind.send_line, text, end=end, echoed=echoed, slowly=slowly)

    def wait_for(
        self, pattern: str | bytes, timeout: float = DEFAULT_TIME_LIMIT
    ) -> re.Match[bytes]:
        """`VmConsole.wait_for`: the next match in what the guest says."""
        return self.loop.call(self.behind.wait_for, pattern, timeout)

    def expect(
        self, prompt: str | bytes = SHELL_PROMPT, timeout: float = DEFAULT_TIME_LIMIT
    ) -> re.Match[bytes]:
        """`VmConsole.expect`: until the guest asks."""
        return self.loop.call(self.behind.expect, prompt, timeout)

    def write_file(self, path: str, content: bytes) -> None:
        """`VmConsole.write_file`: put a file into the guest."""
        self.loop.call(self.behind.write_file, path, content)

    def read_file(self, path: str) -> bytes:
        """`VmConsole.read_file`: the bytes of a file in the guest."""
        return self.loop.call(self.behind.read_file, path)

    def synchronise(self) -> None:
        """`VmConsole.synchronise`: have the shell answer."""
        self.loop.call(self.behind.synchronise)

    def interrupt(self) -> None:
        """`VmConsole.interrupt`: end whatever runs in the foreground."""
        self.loop.call(self.behind.interrupt)

    @property
    def unread(self) -> bytes:
        """What the guest has said that nobody has asked for yet."""
        return self.behind.unread


class Machine(_Facade[VirtualMachine]):
    """A `VirtualMachine` that runs."""

    @property
    def console(self) -> Console:
        """The first serial port."""
        return Console(self.behind.console, self.loop)

    @property
    def folder(self) -> Path:
        """Where the logs are."""
        return self.behind.folder

    @property
    def boot_time(self) -> float | None:
        """`VirtualMachine.boot_time`, in seconds."""
        return self.behind.boot_time

    @property
    def events(self) -> Sequence[QmpEvent]:
        """All that QEMU has told of, the latest last."""
        return self.behind.events

    def qmp(self, command: str, /, **arguments: Any) -> Any:
        """`VirtualMachine.qmp`: a command of QEMU's machine protocol."""
        return self.loop.call(self.behind.qmp, command, **arguments)

    def monitor(self, line: str) -> str:
        """`VirtualMachine.monitor`: a command of QEMU's human monitor."""
        return self.loop.call(self.behind.monitor, line)

    def wait_for_event(self, name: str, timeout: float = EVENT_TIME) -> QmpEvent:
        """`VirtualMachine.wait_for_event`: the next one of that name."""
        return self.loop.call(self.behind.wait_for_event, name, timeout)

    def pause(self) -> None:
        """`VirtualMachine.pause`: stop the guest's processors."""
        self.loop.call(self.behind.pause)

    def resume(self) -> None:
        """`VirtualMachine.resume`: go on."""
        self.loop.call(self.behind.resume)

    @property
    def is_paused(self) -> bool:
        """`VirtualMachine.is_paused`: whether its processors stand still."""
        return self.behind.is_paused

    def reset(self) -> None:
        """`VirtualMachine.reset`: press the reset button."""
        self.loop.call(self.behind.reset)

    def power_off(self) -> int:
        """`VirtualMachine.power_off`: pull the plug; QEMU's exit status."""
        return self.loop.call(self.behind.power_off)

    def wait(self, timeout: float = math.inf) -> int:
        """`VirtualMachine.wait`: until the guest is powered off; QEMU's exit status."""
        return self.loop.call(self.behind.wait, timeout)

    def snapshot(self, name: str) -> None:
        """`VirtualMachine.snapshot`: keep the machine's state under a name."""
        self.loop.call(self.behind.snapshot, name)

    def restore(self, name: str) -> None:
        """`VirtualMachine.restore`: go back to it."""
        self.loop.call(self.behind.restore, name)

    def detach_network(self) -> None:
        """`VirtualMachine.detach_network`: unplug the card."""
        self.loop.call(self.behind.detach_network)

    def attach_network(self, network: Sequence[str] = ()) -> None:
        """`VirtualMachine.attach_network`: plug it in."""
        self.loop.call(self.behind.attach_network, network)


class Stream(_Facade[TcpStream]):
    """A connection of a `Guest`; to be used in a ``with``."""

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def send_all(self, data: bytes) -> None:
        """Send all of it; trio.BrokenResourceError after a reset."""
        self.loop.call(self.behind.send_all, data)

    def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come, at least an octet; nothing at the end."""
        return self.loop.call(self.behind.receive_some, max_bytes)

    def __iter__(self) -> Iterator[bytes]:
        """What comes, until the end."""
        while octets := self.receive_some():
            yield octets

    def send_eof(self) -> None:
        """End this direction alone."""
        self.loop.call(self.behind.send_eof)

    def reset(self) -> None:
        """Break it off."""
        self.loop.call_sync(self.behind.reset)

    def close(self) -> None:
        """End it in order."""
        self.loop.call(self.behind.aclose)


class Guest(_Facade[FakeGuest]):
    """A `FakeGuest`: a guest without QEMU."""

    @property
    def address(self) -> str | None:
        """Its IPv4 address, once there is one."""
        return self.behind.address

    @property
    def mac(self) -> str:
        """Its MAC address."""
        return self.behind.mac

    def dhcp(self, timeout: float = 10.0, **options: Any) -> Lease:
        """`FakeGuest.dhcp`: get an address, and use it."""
        return self.loop.call(self.behind.dhcp, timeout=timeout, **options)

    def arp(self, address: str, timeout: float = 5.0) -> str:
        """`FakeGuest.arp`: the MAC address of an address."""
        return self.loop.call(self.behind.arp, address, timeout)

    def ping(self, host_or_address: str, timeout: float = 5.0) -> float:
        """`FakeGuest.ping`: seconds until the answer."""
        return self.loop.call(self.behind.ping, host_or_address, timeout=timeout)

    def resolve(self, name: str, record_type: str = "A", **options: Any) -> list[str]:
        """`FakeGuest.resolve`: the records of a name."""
        return self.loop.call(self.behind.resolve, name, record_type, **options)

    def connect_tcp(self, host_or_address: str, port: int, timeout: float = 10.0) -> Stream:
        """`FakeGuest.connect_tcp`: a connection."""
        stream = self.loop.call(self.behind.connect_tcp, host_or_address, port, timeout=timeout)
        return Stream(stream, self.loop)


class Capture(_Facade[AsyncCapture]):
    """A `qemu_usernat.testing.Capture`."""

    def __len__(self) -> int:
        return len(self.behind)

    def frames(self, which: Filter = anything) -> list[Frame]:
        """`Capture.frames`: those that match, the oldest first."""
        return self.behind.frames(which)

    def assert_some(self, which: Filter, count: int | None = None) -> list[Frame]:
        """`Capture.assert_some`: such frames have passed."""
        return self.behind.assert_some(which, count)

    def assert_none(self, which: Filter) -> None:
        """`Capture.assert_none`: no such frame has passed."""
        self.behind.assert_none(which)

    def wait_for(
        self, which: Filter, timeout: float = 10.0, *, after: Frame | None = None
    ) -> Frame:
        """`Capture.wait_for`: the first frame that matches."""
        return self.loop.call(self.behind.wait_for, which, timeout, after=after)

    def write(self, path: Path | str) -> None:
        """`Capture.write`: keep the frames as a file for Wireshark."""
        self.behind.write(path)

    def clear(self) -> None:
        """Forget all that has passed until now."""
        self.loop.call_sync(self.behind.clear)


class Network:
    """A `VirtualNetwork` for the length of a ``with``; the arguments are the same.

    With a `loop` it runs in that one, else in one of its own.
    """

    def __init__(
        self,
        internet: Internet | None = None,
        settings: Settings | None = None,
        policy: NetworkPolicy | PolicySettings | None = None,
        *,
        guests: Sequence[str] = (FIRST_GUEST,),
        seed: int = 0,
        folder: Path | None = None,
        accelerator: str | None = None,
        loop: BackgroundLoop | None = None,
    ) -> None:
        self._stack = ExitStack()
        self._own_loop = loop is None
        self.loop = BackgroundLoop() if loop is None else loop
        self._make: Callable[[], VirtualNetwork] = lambda: VirtualNetwork(
            internet,
            settings,
            policy,
            guests=guests,
            seed=seed,
            folder=folder,
            accelerator=accelerator,
        )
        self.behind: VirtualNetwork

    def __enter__(self) -> "Network":
        with ExitStack() as stack:
            if self._own_loop:
                stack.enter_context(self.loop)
            self.behind = self.loop.call_sync(self._make)
            _, release = self.loop.hold(self.behind)
            stack.callback(release)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stack.__exit__(kind, error, trace)
        except Exception as another:
            if error is None:
                raise
            error.add_note(f"the network has failed, too: {another}")

    def __repr__(self) -> str:
        return repr(self.behind)

    # -- guests

    @contextmanager
    def machine(
        self, image: GuestImage | None = None, *, guest: str = "", **options: Any
    ) -> Iterator[Machine]:
        """`VirtualNetwork.machine`: a guest under QEMU, for the length of a ``with``."""
        machine = self.loop.call_sync(self.behind.machine, image, guest=guest, **options)
        with self._held(machine):
            yield Machine(machine, self.loop)

    @contextmanager
    def fake_guest(self, guest: str = "", **options: Any) -> Iterator[Guest]:
        """`VirtualNetwork.fake_guest`: a guest without QEMU, for the length of a ``with``."""
        fake = self.loop.call_sync(self.behind.fake_guest, guest, **options)
        with self._held(fake) as value:
            yield Guest(value, self.loop)

    def _held(self, manager: Any) -> AbstractContextManager[Any]:
        @contextmanager
        def held() -> Iterator[Any]:
            value, release = self.loop.hold(manager)
            try:
                yield value
            finally:
                release()

        return held()

    @property
    def guests(self) -> tuple[str, ...]:
        """Their names."""
        return self.behind.guests

    def socket_path(self, guest: str = "") -> Path:
        """Where the QEMU of `guest` is to connect."""
        return self.behind.socket_path(guest)

    def netdev_arguments(self, guest: str = "", **options: Any) -> list[str]:
        """`VirtualNetwork.netdev_arguments`: what puts a QEMU on the wire of `guest`."""
        return self.behind.netdev_arguments(guest, **options)

    def wait_connected(self, guest: str = "", timeout: float = 10.0) -> None:
        """`Wire.wait_connected`: until there are both a QEMU and a server."""
        self.loop.call(self.behind.wire(guest).wait_connected, timeout)

    def disconnect(self, guest: str = "") -> None:
        """`VirtualNetwork.disconnect`: cut the connection of QEMU."""
        self.loop.call_sync(self.behind.disconnect, guest)

    # -- what was seen

    @property
    def internet(self) -> Internet:
        """The world of its guests."""
        return self.behind.internet

    @property
    def settings(self) -> Settings:
        """Addresses, MTU, and the rest of the network's own."""
        return self.behind.settings

    @property
    def flows(self) -> Records[FlowRecord]:
        """What guests have sent to the world; the oldest first."""
        return self.behind.flows

    @property
    def verdicts(self) -> Records[Verdict]:
        """What the gateway has decided about each."""
        return self.behind.verdicts

    @property
    def dns_queries(self) -> Records[DnsQuery]:
        """What guests have asked for."""
        return self.behind.dns_queries

    @property
    def capture(self) -> Capture:
        """All frames on all wires."""
        return Capture(self.behind.capture, self.loop)

    @property
    def faults(self) -> Faults:
        """What befalls them."""
        return cast(Faults, _InLoop(self.behind.faults, self.loop))

    @property
    def counters(self) -> Counters:
        """What was counted, by name: docs/counters.md."""
        return self.behind.counters

    def event_log(self) -> str:
        """What happened, in order, for a person to read."""
        return self.behind.event_log()

    def clear(self) -> None:
        """`VirtualNetwork.clear`: forget what was recorded."""
        self.loop.call_sync(self.behind.clear)

    # -- the server

    def start(self) -> None:
        """Start the server, if it is stopped."""
        self.loop.call(self.behind.start)

    def stop(self) -> None:
        """`VirtualNetwork.stop`: end the server."""
        self.loop.call(self.behind.stop)

    def restart(self) -> None:
        """End it and start it."""
        self.loop.call(self.behind.restart)

    @property
    def policy(self) -> PolicySettings | None:
        """What guests may do; None where nothing was said."""
        return self.behind.policy

    def set_policy(self, policy: NetworkPolicy | PolicySettings | None) -> None:
        """`VirtualNetwork.set_policy`: another policy, at once."""
        self.loop.call_sync(self.behind.set_policy, policy)

    def publish(self, port: int, **options: Any) -> Publication:
        """`VirtualNetwork.publish`: let this host call a guest's port."""
        return self.loop.call_sync(partial(self.behind.publish, port, **options))

    def unpublish(self, publication: Publication, *, cut: bool = False) -> None:
        """`VirtualNetwork.unpublish`: nobody comes in there any more."""
        self.loop.call_sync(partial(self.behind.unpublish, publication, cut=cut))

    def change_internet(self, internet: Internet) -> None:
        """`VirtualNetwork.change_internet`: another world."""
        self.loop.call(self.behind.change_internet, internet)


class _InLoop:
    """Something without a coroutine, of which the methods are called in the loop."""

    def __init__(self, behind: object, loop: BackgroundLoop) -> None:
        self._behind = behind
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._behind, name)
        if not callable(value):
            return value
        return lambda *args, **kwargs: self._loop.call_sync(value, *args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._behind)
