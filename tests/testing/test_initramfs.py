"""The archive that a guest boots from, read back by an independent reader."""

import subprocess
from pathlib import Path

from qemu_usernat.testing.initramfs import Initramfs


def sample() -> Initramfs:
    archive = Initramfs()
    archive.file("/bin/tool", b"#!/bin/sh\n", 0o755)
    archive.file("etc/a/b/empty", b"")
    archive.file("etc/odd", b"12345")
    archive.link("sbin/tool", "/bin/tool")
    archive.directory("tmp", 0o1777)
    return archive


def test_cpio_reads_what_was_put_in(tmp_path: Path) -> None:
    """Files, modes, links and the folders that nobody named are there."""
    subprocess.run(["cpio", "-id", "--quiet"], input=sample().archive(), cwd=tmp_path, check=True)
    assert (tmp_path / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "etc/a/b/empty").read_bytes() == b""
    assert (tmp_path / "etc/odd").read_bytes() == b"12345"
    assert (tmp_path / "sbin/tool").readlink() == Path("/bin/tool")
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_the_same_entries_give_the_same_bytes() -> None:
    """Neither time nor the order of adding shows in the archive."""
    again = Initramfs()
    again.directory("tmp", 0o1777)
    again.link("sbin/tool", "/bin/tool")
    again.file("etc/odd", b"12345")
    again.file("etc/a/b/empty", b"")
    again.file("bin/tool", b"#!/bin/sh\n", 0o755)
    assert again.archive() == sample().archive()
