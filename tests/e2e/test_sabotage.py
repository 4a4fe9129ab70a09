"""Tests in a real guest can fail: each does when the server lacks what it is about."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import sabotage

ROOT = Path(__file__).parents[2]
CORE = ROOT / "tests" / "e2e" / "test_core.py"
NOT_PASSED_ON = "a policy that is not passed on"
POLICY = ROOT / "tests" / "e2e" / "test_policy.py"


def test_every_feature_has_a_test() -> None:
    """What can be switched off is asked for by somebody."""
    asked_for = set(re.findall(r'mark\.feature\("([^"]+)"\)', CORE.read_text()))
    assert asked_for == sabotage.FEATURES.keys()


@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_without_its_feature_no_test_passes() -> None:
    """A word in an echo, an offline guest, a skipped test: nothing of it may look like success."""
    assert passing(CORE) == set()


@pytest.mark.qemu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "how",
    ["a judge that always allows", pytest.param(NOT_PASSED_ON, marks=pytest.mark.deep)],
)
def test_without_enforcement_no_test_passes(how: str) -> None:
    """But the one of allowing all, which is what holds without a policy."""
    assert how in sabotage.POLICIES
    expected = {"test_policy_allow_all"} if how == NOT_PASSED_ON else set()
    assert passing(POLICY, how) == expected


def passing(path: Path, how: str = "") -> set[str]:
    """The tests that still pass, of those that have all been run."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.e2e.sabotage", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-q", "-rA", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SABOTAGE": how},
        capture_output=True,
        text=True,
    )
    red = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.M))
    green = set(re.findall(r"^PASSED \S+::(\w+)", done.stdout, re.M))
    assert len(red | green) == len(re.findall(r"^def test_", path.read_text(), re.M)), done.stdout
    return green
