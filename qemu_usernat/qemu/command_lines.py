"""What to write on QEMU's command line so that it finds us.

Owns the differences between QEMU's versions and the quoting of QEMU's options; knows no
socket and starts no guest. The facts: ``-netdev stream`` exists since 7.2; a client's
``reconnect`` (seconds) since 8.0; ``reconnect-ms`` since 9.2, which deprecates the
former, and 10.2 removes it.
"""

import itertools
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from qemu_usernat.config import Endpoint, FdEndpoint, TcpEndpoint, UnixEndpoint
from qemu_usernat.primitives.addresses import format_mac, parse_mac
from qemu_usernat.primitives.errors import UserError

Version: TypeAlias = tuple[int, ...]
"""(major, minor) or (major, minor, micro)."""

FIRST_WITH_STREAM: Version = (7, 2)
FIRST_WITH_RECONNECT: Version = (8, 0)
FIRST_WITH_RECONNECT_MS: Version = (9, 2)
NEWEST_KNOWN: Version = (10, 2)

RECONNECT_MS = 1000  # the shortest that both spellings can say
VERSION_TIME_LIMIT = 10.0  # seconds; a loaded machine still answers, a wrong program may not

DEFAULT_BINARY = "qemu-system-x86_64"
DEFAULT_MAC = "52:54:00:12:34:56"  # QEMU's own for a first network card


def guest_mac(number: int) -> str:
    """A MAC address for the guest of that number, from 0: guests of one network differ in it."""
    first = parse_mac(DEFAULT_MAC)
    return format_mac((int.from_bytes(first, "big") + number).to_bytes(6, "big"))


def netdev_arguments(
    version: Version,
    endpoint: Endpoint,
    *,
    netdev_id: str = "net0",
    mac: str | None = DEFAULT_MAC,
    device: str = "virtio-net-pci",
    mtu: int | None = None,
    qemu_listens: bool = False,
) -> list[str]:
    """The arguments ``-netdev … -device …`` for a QEMU of that version.

    `mtu` (bytes) tells a virtio device's driver its MTU without DHCP; other devices have
    no such property. A `mac` of None leaves the choice to QEMU. With `qemu_listens`,
    QEMU is the one that waits and we connect. An `FdEndpoint` is a descriptor that QEMU
    itself inherits, connected already.

    UserError where this QEMU cannot: before 7.2, or an endpoint without a port.
    """
    if version < FIRST_WITH_STREAM:
        raise UserError(
            f"QEMU {format_version(version)} has no -netdev stream; "
            f"allowed: {format_version(FIRST_WITH_STREAM)} or later"
        )
    netdev = ["stream", f"id={netdev_id}", f"server={'on' if qemu_listens else 'off'}"]
    netdev += _address(endpoint)
    if not qemu_listens and not isinstance(endpoint, FdEndpoint):
        netdev += _reconnect(version)

    nic = [device, f"netdev={netdev_id}"]
    if mac is not None:
        nic.append(f"mac={mac}")
    if mtu is not None and device.startswith("virtio-net"):
        nic.append(f"host_mtu={mtu}")
    return ["-netdev", _options(netdev), "-device", _options(nic)]


def device_for(arguments: Sequence[str]) -> str:
    """The network card that suits the machine of a QEMU command line.

    A microvm has no PCI bus, but virtio-mmio slots; where several machines are named,
    QEMU merges the options and the last type counts.
    """
    machine = ""
    for option, value in itertools.pairwise(arguments):
        if option.lstrip("-") in ("M", "machine") and option.startswith("-"):
            first, *others = value.split(",")
            named = [first] if "=" not in first else []
            named += [word[5:] for word in (first, *others) if word.startswith("type=")]
            machine = named[-1] if named else machine
    return "virtio-net-device" if machine == "microvm" else "virtio-net-pci"


def own_network(arguments: Sequence[str]) -> str:
    """What of a QEMU command line gives it a network beside ours, as it is written; "" if nothing
    does."""
    for option, value in itertools.pairwise([*arguments, ""]):
        name = option.lstrip("-")
        if option.startswith("-") and name in ("nic", "net", "netdev") and value != "none":
            return f"{option} {value}".strip()
    return ""


def in_shell_form(arguments: Sequence[str]) -> str:
    """The arguments as one line to paste into a POSIX shell."""
    return shlex.join(arguments)


def parse_version(text: str) -> Version:
    """``9.2`` or ``9.2.1``; UserError where it is neither."""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){1,2}", text):
        raise UserError(f'"{text}" is not a version of QEMU; allowed: X.Y or X.Y.Z, like 9.2')
    return tuple(int(part) for part in text.split("."))


def format_version(version: Version) -> str:
    """``9.2.1``."""
    return ".".join(map(str, version))


def version_of(binary: str) -> Version:
    """The version that ``BINARY --version`` names; blocks until it answered.

    UserError where it cannot be started, does not answer in time, or is no QEMU.
    """
    command = [binary, "--version"]
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_TIME_LIMIT,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{binary} was not found; install QEMU (Debian: qemu-system-x86), "
            "or give the program's path"
        ) from error
    except OSError as error:
        raise UserError(f"{binary} cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{in_shell_form(command)} gave no answer within {VERSION_TIME_LIMIT:.0f} s"
        ) from error
    found = re.search(rb"version (\d+)\.(\d+)(?:\.(\d+))?", answer.stdout)
    if answer.returncode or not found:
        raise UserError(f"{in_shell_form(command)} did not answer with a version of QEMU")
    return tuple(int(part) for part in found.groups() if part is not None)


def _address(endpoint: Endpoint) -> list[str]:
    match endpoint:
        case UnixEndpoint(path):
            # QEMU need not run in our directory.
            return ["addr.type=unix", f"addr.path={Path(path).absolute()}"]
        case TcpEndpoint(host, port):
            if not port:
                raise UserError(f"{endpoint} has no port yet; allowed: the port that we listen on")
            return ["addr.type=inet", f"addr.host={host}", f"addr.port={port}"]
        case FdEndpoint(descriptor):
            return ["addr.type=fd", f"addr.str={descriptor}"]


def _reconnect(version: Version) -> list[str]:
    if version >= FIRST_WITH_RECONNECT_MS:
        return [f"reconnect-ms={RECONNECT_MS}"]
    if version >= FIRST_WITH_RECONNECT:
        return [f"reconnect={RECONNECT_MS // 1000}"]
    return []


def _options(words: Sequence[str]) -> str:
    """One QEMU option value: a comma inside a word is written twice."""
    return ",".join(word.replace(",", ",,") for word in words)
