"""QEMU's arguments: right for its version, whole after QEMU's quoting and the shell's."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.config import FdEndpoint, TcpEndpoint, UnixEndpoint
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.qemu import command_lines
from qemu_usernat.qemu.command_lines import (
    device_for,
    in_shell_form,
    netdev_arguments,
    parse_version,
    version_of,
)

SOCKET = UnixEndpoint("/run/guest.sock")


@pytest.mark.parametrize(
    ("version", "reconnect"),
    [
        ((7, 2, 22), ""),
        ((8, 0), ",reconnect=1"),
        ((9, 1, 3), ",reconnect=1"),
        ((9, 2), ",reconnect-ms=1000"),
        ((10, 2, 1), ",reconnect-ms=1000"),
        ((11, 0), ",reconnect-ms=1000"),
    ],
)
def test_each_generation_gets_the_reconnect_it_knows(
    version: tuple[int, ...], reconnect: str
) -> None:
    """Where QEMU can come back by itself it does; where it cannot, it still starts."""
    assert netdev_arguments(version, SOCKET, mtu=1500) == [
        "-netdev",
        f"stream,id=net0,server=off,addr.type=unix,addr.path=/run/guest.sock{reconnect}",
        "-device",
        "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,host_mtu=1500",
    ]


def test_a_qemu_without_stream_is_refused() -> None:
    """Better a sentence from us than `Invalid parameter 'stream'` from QEMU."""
    with pytest.raises(UserError, match=r"QEMU 7\.1 has no -netdev stream; allowed: 7\.2 or later"):
        netdev_arguments((7, 1), SOCKET)


def test_tcp_and_inherited_descriptors() -> None:
    """The other two ways of reaching us, in QEMU's words."""
    tcp = netdev_arguments((9, 2), TcpEndpoint("::1", 4444))
    assert tcp[1] == (
        "stream,id=net0,server=off,addr.type=inet,addr.host=::1,addr.port=4444,reconnect-ms=1000"
    )
    inherited = netdev_arguments((9, 2), FdEndpoint(7))
    assert inherited[1] == "stream,id=net0,server=off,addr.type=fd,addr.str=7"
    with pytest.raises(UserError, match="tcp:localhost:0 has no port yet"):
        netdev_arguments((9, 2), TcpEndpoint("localhost", 0))


def test_a_qemu_that_listens_has_nothing_to_reconnect_to() -> None:
    """For --connect the roles are exchanged; reconnect is a client's option only."""
    arguments = netdev_arguments((9, 2), SOCKET, qemu_listens=True)
    assert arguments[1] == "stream,id=net0,server=on,addr.type=unix,addr.path=/run/guest.sock"


def test_only_virtio_is_told_its_mtu() -> None:
    """An e1000 has no such property, and QEMU would refuse to start."""
    arguments = netdev_arguments((9, 2), SOCKET, device="e1000", mac=None, mtu=9000)
    assert arguments[3] == "e1000,netdev=net0"


def test_a_relative_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """QEMU started from another directory finds the socket all the same."""
    monkeypatch.chdir(tmp_path)
    assert f"addr.path={tmp_path}/a.sock" in netdev_arguments((7, 2), UnixEndpoint("a.sock"))[1]


@given(st.text(st.sampled_from(",=' \"\\$\naü"), min_size=1, max_size=20))
def test_any_path_survives_qemu_and_the_shell(name: str) -> None:
    """Commas, quotes, blanks: the QEMU that is pasted opens the path that we listen on."""
    line = in_shell_form(netdev_arguments((7, 2), UnixEndpoint(f"/run/{name}")))
    option = shlex.split(line)[1]
    assert option.replace(",,", "\0").split(",")[-1] == f"addr.path=/run/{name}".replace(",", "\0")


@pytest.mark.parametrize(
    ("line", "device"),
    [
        ("qemu-system-x86_64 -m 512", "virtio-net-pci"),
        ("qemu-system-x86_64 -M microvm", "virtio-net-device"),
        ("qemu-system-x86_64 -machine microvm,acpi=off -m 512", "virtio-net-device"),
        ("qemu-system-x86_64 --machine accel=tcg,type=microvm", "virtio-net-device"),
        ("qemu-system-x86_64 -M microvm -machine accel=kvm", "virtio-net-device"),
        ("qemu-system-x86_64 -M microvm -M q35", "virtio-net-pci"),
        ("qemu-system-x86_64 -name microvm -M q35", "virtio-net-pci"),
        ("qemu-system-x86_64 -append microvm -M", "virtio-net-pci"),
    ],
)
def test_a_microvm_gets_a_card_for_its_bus(line: str, device: str) -> None:
    """A machine without PCI would refuse the usual card."""
    assert device_for(line.split()) == device


@pytest.mark.parametrize(
    ("text", "version"), [("9.2", (9, 2)), ("10.0.3", (10, 0, 3)), ("007.2", (7, 2))]
)
def test_a_version_is_read(text: str, version: tuple[int, ...]) -> None:
    """X.Y and X.Y.Z."""
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "9", "9.", "v9.2", "9.2.1.1", "9.2-rc1", "9.2\n"])
def test_what_is_no_version_is_refused(text: str) -> None:
    """The message shows the form."""
    with pytest.raises(UserError, match=r"is not a version of QEMU; allowed: X\.Y or X\.Y\.Z"):
        parse_version(text)


def program(directory: Path, body: str) -> str:
    """A shell script that stands in for QEMU."""
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", (7, 2, 22)),
        ("QEMU emulator version 10.1.91 (v10.2.0-rc1)", (10, 1, 91)),
        ("QEMU emulator version 9.2", (9, 2)),
    ],
)
def test_a_binary_is_asked_for_its_version(
    tmp_path: Path, answer: str, version: tuple[int, ...]
) -> None:
    """Distributions add their own words; the number is what counts."""
    assert version_of(program(tmp_path, f"echo '{answer}'")) == version


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo hello", "did not answer with a version of QEMU"),
        ("echo QEMU emulator version 9.2; exit 3", "did not answer with a version of QEMU"),
        ("exec sleep 60", "gave no answer within 0 s"),
    ],
)
def test_a_program_that_is_no_qemu_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    """Neither a wrong program nor one that hangs holds us up."""
    if "sleep" in body:
        monkeypatch.setattr(command_lines, "VERSION_TIME_LIMIT", 0.05)
    with pytest.raises(UserError, match=message):
        version_of(program(tmp_path, body))


def test_a_missing_or_forbidden_binary_is_told(tmp_path: Path) -> None:
    """The message says what to install."""
    with pytest.raises(UserError, match=r"no-such-qemu was not found; install QEMU"):
        version_of("no-such-qemu")
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match=r"cannot be started: Permission denied"):
        version_of(str(tmp_path / "data"))


@pytest.mark.qemu
@pytest.mark.skipif(not shutil.which(command_lines.DEFAULT_BINARY), reason="no QEMU here")
@pytest.mark.parametrize("machine", ["pc", "microvm"])
def test_this_machines_qemu_takes_our_arguments(tmp_path: Path, machine: str) -> None:
    """The real program starts with them, has our card, and adds none of its own."""
    command = [command_lines.DEFAULT_BINARY, "-M", machine, "-S", "-display", "none"]
    command += ["-monitor", "stdio"]
    arguments = netdev_arguments(
        version_of(command[0]),
        UnixEndpoint(f"{tmp_path}/odd,name"),
        netdev_id="usernat",
        mac=None,
        device=device_for(command),
        mtu=65520,
    )
    answer = subprocess.run(
        [*command, *arguments],
        input=b"info network\nquit\n",
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert answer.stdout.count(b"type=nic") == 1
    assert b"usernat: index=0,type=stream" in answer.stdout


def test_guests_of_one_network_get_different_mac_addresses() -> None:
    """Pasting each printed line into a VM of its own gives each an address of its own."""
    assert command_lines.guest_mac(0) == "52:54:00:12:34:56"
    assert len({command_lines.guest_mac(number) for number in range(300)}) == 300
