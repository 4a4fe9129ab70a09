"""The first command that anybody runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from qemu_usernat.testing.guest_image import GuestImage

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def test_the_demo_shows_a_guest_going_online(image: GuestImage) -> None:
    """`make demo ARGS=--batch` says what the guest did, step by step, and that it all worked."""
    done = subprocess.run(
        [sys.executable, "examples/demo.py", "--batch", "--offline"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("lease: address 10.0.2.15", "dig ", "curl https://", "certificate verified"):
        assert said in done.stdout
