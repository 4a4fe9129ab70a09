"""A real Linux kernel as the guest, without a machine: a network namespace on the stream wire.

Owns one guest's life: its namespace and TAP device (`tap`, a process), its addresses, and the
sockets that are opened in it. What is at the other end of the wire is the caller's: a server, a
relay that harms frames, or a second guest.

A socket belongs for ever to the namespace in which it was made. So `NamespaceGuest.open_socket`
goes in, makes one, and comes back: a test holds sockets of the guest and of the host in one hand.

Needs root (CAP_SYS_ADMIN), /dev/net/tun, and iproute2's and util-linux's tools.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from attrs import define, field

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing import tap

QUEUE_LENGTH = 20_000
"""Frames queued at the device: a TAP drops what a virtio queue would hold back."""

ARP_PROBES = 20  # one a second, before a neighbour counts as unreachable

SOCKET_TIMEOUT = 30.0  # seconds; a test that hangs shall fail instead
END_TIMEOUT = 5.0  # seconds


def why_not() -> str | None:
    """What is missing for a namespace guest on this machine; None if nothing is."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return None


def connect_unix(path: Path) -> socket.socket:
    """A wire to the server that listens at `path`."""
    wire = socket.socket(socket.AF_UNIX)
    try:
        wire.connect(str(path))
    except OSError as error:
        wire.close()
        raise UserError(f"no server listens at {path}: {error.strerror}") from error
    return wire


@define(eq=False)
class NamespaceGuest:
    """A guest for the length of a ``with``; the wire given to it is closed at the end.

    `mtu` is in bytes of IP packet. With `address` None (an address otherwise written
    10.0.2.15/24) the device is up and nothing else is set: that is DHCP's business.
    """

    wire: socket.socket
    mtu: int = 65520
    address: str | None = "10.0.2.15/24"
    gateway: str | None = "10.0.2.2"
    _ends: ExitStack = field(factory=ExitStack)
    process: "subprocess.Popen[bytes]" = field(init=False)
    """What holds its namespace, and carries its frames."""
    _namespace: int = field(init=False)

    def __enter__(self) -> "NamespaceGuest":
        with ExitStack() as ends:
            self._start(ends)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.close()

    def _start(self, ends: ExitStack) -> None:
        with self.wire:
            self.process = ends.enter_context(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", tap.__file__, str(self.wire.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[self.wire.fileno()],
                )
            )
        ends.callback(self.process.kill)  # also where it has been stopped
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise UserError(f"no TAP device: {tap.__file__} has ended; see its words on stderr")
        self._namespace = os.open(f"/proc/{self.process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        ends.callback(os.close, self._namespace)
        self._configure()

    def _configure(self) -> None:
        commands = [
            "link set lo up",
            # No address for IPv6 means no router solicitations between the frames of a test.
            f"link set {tap.DEVICE} addrgenmode none",
            f"link set {tap.DEVICE} mtu {self.mtu} txqueuelen {QUEUE_LENGTH} up",
            # Where a tenth of the frames is lost, three questions are too few now and then.
            f"ntable change name arp_cache dev {tap.DEVICE} mcast_probes {ARP_PROBES}",
            f"ntable change name arp_cache dev {tap.DEVICE} ucast_probes {ARP_PROBES}",
        ]
        if self.address is not None:
            commands.append(f"address add {self.address} dev {tap.DEVICE}")
            if self.gateway is not None:
                commands.append(f"route add default via {self.gateway}")
        self.run(["ip", "-batch", "-"], input="\n".join(commands))

    # -- inside

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs `words` in the guest."""
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "--", *words]

    def run(self, words: Sequence[str], input: str = "") -> str:  # noqa: A002
        """Run a program in the guest to its end; what it wrote. UserError if it failed."""
        done = subprocess.run(
            self.command(words),
            input=input,
            capture_output=True,
            text=True,
            timeout=SOCKET_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise UserError(f"{words[0]} ended with {done.returncode} in the guest: {done.stderr}")
        return done.stdout

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the guest's network for the length of a ``with`` (setns(2))."""
        with inside_namespace(self._namespace):
            yield

    def open_socket(
        self, kind: socket.SocketKind = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """A new IPv4 socket of the guest's kernel, blocking, with a time limit."""
        with self.inside():
            made = socket.socket(socket.AF_INET, kind, protocol)
        made.settimeout(SOCKET_TIMEOUT)
        return made

    def connect(
        self, peer: tuple[str, int], kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """A socket of the guest's kernel, connected to `peer`; OSError as connect(2) has it."""
        made = self.open_socket(kind)
        try:
            made.connect(peer)
        except OSError:
            made.close()
            raise
        return made

    # -- its card

    def stop_reading(self) -> None:
        """The guest's card freezes, as that of a paused machine: the wire backs up."""
        self.process.send_signal(signal.SIGSTOP)

    def resume_reading(self) -> None:
        """And goes on where it was."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def inside_namespace(descriptor: int) -> Iterator[None]:
    """This thread is in that network namespace for the length of a ``with`` (setns(2))."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set_namespace(descriptor)
        try:
            yield
        finally:
            _set_namespace(home)
    finally:
        os.close(home)


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, tap.CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "setns")
