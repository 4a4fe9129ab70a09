"""The tests of `test_core` can fail: each does when the server lacks what it is about."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import sabotage

ROOT = Path(__file__).parents[2]
CORE = ROOT / "tests" / "e2e" / "test_core.py"


def test_every_feature_has_a_test() -> None:
    """What can be switched off is asked for by somebody."""
    asked_for = set(re.findall(r'mark\.feature\("([^"]+)"\)', CORE.read_text()))
    assert asked_for == sabotage.FEATURES.keys()


@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_without_its_feature_no_test_passes() -> None:
    """A word in an echo, an offline guest, a skipped test: nothing of it may look like success."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.e2e.sabotage", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-q", "-rA", str(CORE)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    tests = len(re.findall(r"^def test_", CORE.read_text(), re.M))
    red = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.M))
    assert re.findall(r"^PASSED \S+::(\w+)", done.stdout, re.M) == []
    assert len(red) == tests, done.stdout[-5000:]
