"""Debian packages as files: fetched and unpacked, never installed.

Owns a private apt: its own lists, its own archives, and a system on which nothing is installed,
so that a package comes with every library it needs, whatever the host has. It needs no root and
changes nothing on the host but its own folder. Sources and keys are the host's, from /etc/apt.
"""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from qemu_usernat.primitives.errors import UserError

DOWNLOAD_TIME_LIMIT = 600.0  # seconds; some 75 MB, from a slow mirror too


def download(packages: Sequence[str], folder: Path) -> list[Path]:
    """The archives of `packages` and of all they depend on, in a folder below `folder`.

    Raises UserError when apt cannot fetch them: its own words are in the message.
    """
    archives = folder / "archives"
    for needed in (folder / "lists" / "partial", archives / "partial"):
        needed.mkdir(parents=True, exist_ok=True)
    status = folder / "status"
    status.touch()
    options = [
        f"Dir::State::Lists={folder.absolute()}/lists",
        f"Dir::State::status={status.absolute()}",
        f"Dir::Cache::Archives={archives.absolute()}",
        "Dir::Cache::pkgcache=",
        "Dir::Cache::srcpkgcache=",
        "APT::Sandbox::User=",
        "Debug::NoLocking=true",
    ]
    apt = ["apt-get", "-q", "-y", *(word for option in options for word in ("-o", option))]
    _run([*apt, "update"])
    _run([*apt, "--no-install-recommends", "--download-only", "install", "--", *packages])
    return sorted(archives.glob("*.deb"))


def unpack(archives: Iterable[Path], root: Path) -> None:
    """Put the files of packages below `root`; their scripts are not run."""
    root.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        _run(["dpkg-deb", "-x", str(archive), str(root)])


def _run(command: list[str]) -> None:
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=DOWNLOAD_TIME_LIMIT,
        )
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} was not found: the guest image is made of Debian packages, "
            "so build it on Debian"
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]} failed:\n{error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{command[0]} took longer than {DOWNLOAD_TIME_LIMIT:.0f} s: is the mirror reachable?"
        ) from error
