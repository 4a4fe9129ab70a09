"""A stranger's reading of our frames: tshark, with every checksum looked at."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from qemu_usernat.testing.capture import Capture

needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="there is no tshark")

_CHECKSUMS = ("ip.check_checksum", "udp.check_checksum", "tcp.check_checksum")


def complaints(frames: Iterable[bytes], folder: Path) -> list[str]:
    """Its errors and warnings about these frames; that one is malformed is an error."""
    options = [word for name in _CHECKSUMS for word in ("-o", f"{name}:TRUE")]
    said = _tshark(frames, folder, *options, "-q", "-z", "expert,warn")
    return re.findall(r"^ +\d+ .*", said, re.M)


def fields(frames: Iterable[bytes], folder: Path, *names: str) -> list[list[str]]:
    """These fields of each frame, "" where it has none."""
    words = [word for name in names for word in ("-e", name)]
    said = _tshark(frames, folder, "-T", "fields", *words)
    return [line.split("\t") for line in said.splitlines()]


def _tshark(frames: Iterable[bytes], folder: Path, *words: str) -> str:
    capture = Capture()
    for number, frame in enumerate(frames):
        capture.see(frame, "guest", from_guest=False, now=number / 1000)
    path = folder / "frames.pcapng"
    capture.write(path)
    command = ["tshark", "-n", "-r", str(path), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
