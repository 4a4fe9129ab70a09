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
CLUSTER = ROOT / "tests" / "e2e" / "test_cluster.py"
JOINING = ROOT / "tests" / "e2e" / "test_joining.py"
PUBLISH = ROOT / "tests" / "e2e" / "test_publish.py"


def test_every_feature_has_a_test() -> None:
    """What can be switched off is asked for by somebody."""
    text = CORE.read_text() + CLUSTER.read_text() + JOINING.read_text() + PUBLISH.read_text()
    asked_for = set(re.findall(r'mark\.feature\("([^"]+)"\)', text))
    assert asked_for == sabotage.FEATURES.keys()


@pytest.mark.qemu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "some", [SOME_OF_CORE, pytest.param((), marks=pytest.mark.deep)], ids=["some", "all"]
)
def test_without_its_feature_no_test_passes(some: Collection[str]) -> None:
    """A word in an echo, an offline guest, a skipped test: nothing of it may look like success."""
    assert passing(CORE, some=some) == set()


@pytest.mark.deep
@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_without_a_lan_no_guest_meets_another() -> None:
    """Nor is its name known, nor is anything refused between guests."""
    assert passing(CLUSTER) == set()


@pytest.mark.deep
@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_without_a_join_guests_of_two_servers_do_not_meet() -> None:
    """Whatever else they can do."""
    assert passing(JOINING) == set()


@pytest.mark.qemu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "some",
    [("test_port_forward_tcp",), pytest.param((), marks=pytest.mark.deep)],
    ids=["some", "all"],
)
def test_without_published_ports_no_guest_is_reached(some: Collection[str]) -> None:
    """Neither over TCP nor over UDP, under a policy or without one."""
    assert passing(PUBLISH, some=some) == set()


@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_without_enforcement_no_refusal_is_seen() -> None:
    """One of the tests; the others by the deep run."""
    assert passing(POLICY, NOT_PASSED_ON, ("test_policy_deny_all",)) == set()


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
