"""The namespace guest itself: it is there when it is wanted, and gone afterwards."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from qemu_usernat.testing.namespace import NamespaceGuest
from tests.kernel.laboratory import carry, some_octets, until

pytestmark = pytest.mark.kernel


def test_two_guests_on_a_bare_wire() -> None:
    """Guests need no server between them: two kernels, one wire."""
    near, far = socket.socketpair()
    with (
        NamespaceGuest(near, address="10.0.2.15/24") as client,
        NamespaceGuest(far, address="10.0.2.2/24", gateway=None) as server,
        server.open_socket() as listener,
    ):
        listener.bind(("10.0.2.2", 80))
        listener.listen()
        with client.connect(("10.0.2.2", 80)) as ours, listener.accept()[0] as theirs:
            carry(some_octets(10_000_000), ours, theirs)


def test_a_guest_leaves_nothing_behind() -> None:
    """Whatever happens inside the with, the wire is closed, and so is every descriptor."""
    ours, theirs = socket.socketpair()
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with ours:
        ours.settimeout(5)
        with pytest.raises(ZeroDivisionError), NamespaceGuest(theirs):
            raise ZeroDivisionError
        while ours.recv(65536):
            continue  # what its kernel said while it lived
        assert len(os.listdir("/proc/self/fd")) == len(before) - 1  # noqa: PTH208


KILLED = """
import os, signal, socket, sys
from qemu_usernat.testing.namespace import NamespaceGuest
wire = socket.socket(fileno=int(sys.argv[1]))
with NamespaceGuest(wire):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_guest_ends_with_a_test_that_is_killed() -> None:
    """A test process that cannot clean up leaves no guest behind either."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(10)
        with theirs:
            command = [sys.executable, "-c", KILLED, str(theirs.fileno())]
            done = subprocess.run(command, pass_fds=[theirs.fileno()], check=False)
        assert done.returncode == -signal.SIGKILL
        while ours.recv(65536):
            continue


def test_the_host_is_not_touched() -> None:
    """What happens in the guest's network stays there, and this thread comes home."""
    ours, theirs = socket.socketpair()
    with ours:
        home = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115
        with NamespaceGuest(theirs) as guest, guest.inside():
            assert os.readlink("/proc/thread-self/ns/net") != home  # noqa: PTH115
            assert [name for _, name in socket.if_nameindex()] == ["lo", "tap0"]
        assert os.readlink("/proc/thread-self/ns/net") == home  # noqa: PTH115
        until(lambda: "tap0" not in [name for _, name in socket.if_nameindex()], "no TAP here")
