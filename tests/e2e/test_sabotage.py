"""Tests in a real guest can fail: each does when the server lacks what it is about."""

import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.e2e import sabotage

ROOT = Path(__file__).parents[2]
CORE = ROOT / "tests" / "e2e" / "test_core.py"
SOME_OF_CORE = ("test_ping_of_a_host", "test_https")
NOT_PASSED_ON = "a policy that is not passed on"
POLICY = ROOT / "tests" / "e2e" / "test_policy.py"


def test_every_feature_has_a_test() -> None:
    """What can be switched off is asked for by somebody."""
    asked_for = set(re.findall(r'mark\.feature\("([^"]+)"\)', CORE.read_text()))
    assert asked_for == sabotage.FEATURES.keys()


@pytest.mark.qemu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "some", [SOME_OF_CORE, pytest.param((), marks=pytest.mark.deep)], ids=["some", "all"]
)
def test_without_its_feature_no_test_passes(some: Collection[str]) -> None:
    """A word in an echo, an offline guest, a skipped test: nothing of it may look like success."""
    assert passing(CORE, some=some) == set()


@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_without_enforcement_no_refusal_is_seen() -> None:
    """Three of the tests, which fail at their first refusal."""
    some = ("test_policy_deny_all", "test_policy_domain_wildcard", "test_policy_log_then_allow")
    assert passing(POLICY, NOT_PASSED_ON, some) == set()


@pytest.mark.deep
@pytest.mark.qemu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", sabotage.POLICIES)
def test_without_enforcement_no_test_passes(how: str) -> None:
    """But the one of allowing all, which is what holds without a policy."""
    expected = {"test_policy_allow_all"} if how == NOT_PASSED_ON else set()
    assert passing(POLICY, how) == expected


def passing(path: Path, how: str = "", some: Collection[str] = ()) -> set[str]:
    """The tests that still pass, of all or of `some`, which all have been run."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.e2e.sabotage", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-q", "-rA", *(f"{path}::{name}" for name in some or names_in(path))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SABOTAGE": how},
        capture_output=True,
        text=True,
    )
    red = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.M))
    green = set(re.findall(r"^PASSED \S+::(\w+)", done.stdout, re.M))
    assert red | green == set(some or names_in(path)), done.stdout
    return green


def names_in(path: Path) -> list[str]:
    """Their names, in order."""
    return re.findall(r"^def (test_\w+)", path.read_text(), re.M)
