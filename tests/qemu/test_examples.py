"""Each example of a QEMU command line boots a guest that has a lease."""

import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
import trio

from qemu_usernat.config import UnixEndpoint
from qemu_usernat.qemu.command_lines import netdev_arguments, version_of
from qemu_usernat.testing.console import VmConsole
from qemu_usernat.testing.guest_image import GuestImage
from qemu_usernat.testing.virtual_machine import BOOT_TIME, QEMU

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]  # the first builds the image

FOLDER = Path(__file__).parents[2] / "examples" / "qemu-cmdlines"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh") if path.name != "common.sh")
MTU = {"e1000.sh": "1500", "mtu-1500.sh": "1500"}  # all others: the default
END_TIME = 20.0  # seconds for QEMU, the server and the script to end
MUCH_LIKE_OTHERS = ("inherited-descriptor.sh", "mtu-jumbo.sh", "reconnect-7.2.sh", "virtio-net.sh")
ADDRESS = {"two-guests.sh": "10.0.2.16"}  # all others: the first of the pool


def needed_version(script: str) -> tuple[int, ...]:
    """What the script's header says it needs, else the first QEMU with stream netdevs."""
    found = re.search(r"^# needs QEMU (\d+)\.(\d+)$", (FOLDER / script).read_text(), re.M)
    return (int(found[1]), int(found[2])) if found else (7, 2)


@pytest.mark.parametrize(
    "script",
    [pytest.param(each, marks=[pytest.mark.deep] * (each in MUCH_LIKE_OTHERS)) for each in SCRIPTS],
)
async def test_an_example_boots_a_guest_with_a_lease(script: str, image: GuestImage) -> None:
    """The script as it stands: the guest gets its address and MTU, and reaches the gateway."""
    here = version_of(QEMU)
    if here < (needed := needed_version(script)):
        pytest.skip(f"needs QEMU {needed[0]}.{needed[1]}, here is {here[0]}.{here[1]}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with running(FOLDER / script, port, image) as (ours, process):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        console = VmConsole(stream)
        await console.wait_for("guest: up", BOOT_TIME)
        await console.synchronise()
        lease = (await console.exec("cat /run/lease")).text
        assert f"ip={ADDRESS.get(script, '10.0.2.15')}" in lease
        mtu = (await console.exec("cat /sys/class/net/eth0/mtu")).text
        assert mtu == MTU.get(script, "65520")
        assert (await console.exec("ping -c 1 -W 5 10.0.2.2")).status == 0
        if script == "two-guests.sh":
            assert (await console.exec("ping -c 1 -W 5 10.0.2.15")).status == 0
        await console.send_line("reboot -f")
        with trio.fail_after(END_TIME):
            assert await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True) == 0


@contextmanager
def running(
    script: Path, port: str, image: GuestImage
) -> Iterator[tuple[socket.socket, "subprocess.Popen[bytes]"]]:
    """The script in a process group of its own, with a socket for its terminal."""
    given = [f"PORT={port}", f"KERNEL={image.kernel}", f"INITRD={image.initrd}"]
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["env", *given, str(script)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            start_new_session=True,
        )
    try:
        yield ours, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ours.close()


@pytest.mark.parametrize(
    ("script", "version"),
    [("virtio-net.sh", (7, 2)), ("reconnect-8.0.sh", (8, 0)), ("reconnect-9.2.sh", (9, 2))],
)
def test_an_example_says_what_cmdline_says(
    script: str, version: tuple[int, ...], tmp_path: Path
) -> None:
    """The arguments are those that `qemu-usernat cmdline` gives for that QEMU."""
    stub = tmp_path / "qemu"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    said = subprocess.run(
        ["env", f"QEMU={stub}", str(FOLDER / script)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    netdev = next(line for line in said if line.startswith("stream,"))
    path = netdev.partition("addr.path=")[2].partition(",")[0]
    wanted = netdev_arguments(version, UnixEndpoint(path))
    assert said[-len(wanted) :] == wanted, shlex.join(said)


def test_the_libvirt_domain_says_what_cmdline_says() -> None:
    """The XML is well-formed and passes the same arguments through to QEMU."""
    root = ElementTree.parse(FOLDER / "libvirt.xml").getroot()
    name = "{http://libvirt.org/schemas/domain/qemu/1.0}arg"
    arguments = [argument.attrib["value"] for argument in root.iter(name)]
    wanted = netdev_arguments((7, 2), UnixEndpoint("/run/qemu-usernat.sock"))
    wanted[-1] += ",addr=0x10"
    assert arguments == wanted


def test_the_readme_lists_every_example() -> None:
    """The table names each file, and only files that are there."""
    listed = re.findall(r"^\| \[(\S+)\]", (FOLDER / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted([*SCRIPTS, "libvirt.xml"])
