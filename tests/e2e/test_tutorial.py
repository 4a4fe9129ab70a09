"""docs/testing.md is true: what it tells to type works as it stands there, from an empty folder on.

A block that comes after "In `name`:" is that file. Other blocks in `sh` are commands, and a block
without a language after them is what they print, with "…" for what differs from run to run.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import frozen

from qemu_usernat.testing import Internet, InternetHost
from qemu_usernat.testing.blocking import Console, Machine, Network
from qemu_usernat.testing.session import IMAGE_OPTIONS, MACHINE_OPTIONS, NETWORK_OPTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
TUTORIAL = "From nothing to a test"
WHEEL_OF = ("pyproject.toml", "README.md", "LICENSE", "qemu_usernat")


@frozen
class Block:
    """A fenced block, the chapter that it is in, and the file that it is, if any."""

    chapter: str
    file: str
    language: str
    text: str


def blocks() -> list[Block]:
    """All of the page."""
    found = []
    for chapter in re.split(r"^## ", PAGE, flags=re.M):
        fences = re.finditer(r"(.*?)^```(\w*)\n(.*?)^```$", chapter, re.M | re.S)
        for before, language, text in (fence.groups() for fence in fences):
            named = re.search(r"\bIn\s`([\w.]+)`:\n\n\Z", before, re.I)
            file = named[1] if named else ""
            found.append(Block(chapter.partition("\n")[0], file, language, text))
    return found


def environment(programs: Path, folder: Path) -> dict[str, str]:
    """As of a person's shell, with `programs` in front and nothing of the pytest that runs here."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    path = f"{programs}:{os.environ['PATH']}"
    return ours | {"PATH": path, "PYTEST_DEBUG_TEMPROOT": str(folder)}


def run(
    command: str, folder: Path, env: dict[str, str], says: str = "", *, succeeds: bool = True
) -> None:
    """Type `command` in `folder`; it `says` these lines in this order, perhaps among others."""
    done = subprocess.run(
        ["sh", "-e"],
        input=command, cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert (done.returncode == 0) == succeeds, f"{command}\n{done.stdout}"
    lines = [line for line in says.splitlines() if line != "…"]  # other lines may be anywhere
    patterns = [".*".join(map(re.escape, line.split("…"))) for line in lines]
    pytest.LineMatcher(done.stdout.splitlines()).re_match_lines(patterns)


def replay(told: Sequence[Block], folder: Path, env: dict[str, str]) -> None:
    """Do as the page says, block by block."""
    for block, then in zip(told, [*told[1:], None], strict=True):
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.language == "sh":
            says = then.text if then is not None and not then.language else ""
            run(block.text, folder, env, says, succeeds="AssertionError" not in says)


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """What pip is told of versions: `qemu-usernat` is this tree, the others are the locked ones.

    Those are in pip's cache, as `scripts/setup` has installed them; and what is released tomorrow
    does not fail us.
    """
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    for name in WHEEL_OF:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-q", "-w", str(wheels), str(source)], check=True)
    (wheel,) = wheels.iterdir()
    locked = re.findall(r"^\S+==\S+", (ROOT / "requirements-dev.lock").read_text(), re.M)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join([f"qemu-usernat @ {wheel.as_uri()}", *locked, ""]))
    return constraints


@pytest.mark.qemu
@pytest.mark.timeout(900)
def test_the_tutorial_works_in_an_empty_environment(versions: Path, tmp_path: Path) -> None:
    """All of it, from `python3 -m venv` to the report of a test that fails."""
    folder = tmp_path / "empty"
    folder.mkdir()
    env = environment(folder / ".venv" / "bin", tmp_path)
    env |= {"PIP_CONSTRAINT": str(versions), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    told = [block for block in blocks() if block.chapter == TUTORIAL]
    assert len(told) >= 9
    replay(told, folder, env)
    installed = "python -c 'import qemu_usernat; print(qemu_usernat.__file__)'"
    run(installed, folder, env, f"{folder}/.venv/lib/…/site-packages/qemu_usernat/__init__.py")


@pytest.mark.qemu
@pytest.mark.timeout(900)
def test_the_chapters_work(tmp_path: Path) -> None:
    """Their files are tests that pass; their commands work."""
    told = [block for block in blocks() if block.chapter != TUTORIAL]
    env = environment(Path(sys.executable).parent, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    replay(told, tmp_path, env)
    files = [block.file for block in told if block.file and "import unittest" not in block.text]
    assert len(files) >= 8
    # Most of them do with the same guest.
    run(f"pytest -o usernat_scope=session {' '.join(files)}", tmp_path, env, "…passed…")


def test_there_is_no_block_that_nobody_runs() -> None:
    """Each is a file, or commands, or what these print."""
    told = blocks()
    assert len(told) == len(re.findall(r"^```\w*$", PAGE, re.M)) / 2
    assert all(block.file for block in told if block.language not in ("", "sh"))
    for before, block in itertools.pairwise(told):
        assert block.language or before.language == "sh"


def test_what_is_to_be_installed_is_installed_here() -> None:
    """No more than `scripts/setup` installs: the tutorial does not live on something else."""
    (told,) = re.findall(r"apt-get install\s--no-install-recommends ([^`]+)`", PAGE)
    (ours,) = re.findall(r'^packages="(.*)"', (ROOT / "scripts" / "setup").read_text(), re.M)
    assert set(told.split()) <= set(ours.split())


def test_what_the_marker_takes_is_told() -> None:
    """All options, each by its name."""
    (chapter,) = re.findall(r"^## The fixtures\n(.*?)^## ", PAGE, re.M | re.S)
    told = set(re.findall(r"`(\w+)(?:=True)?`", chapter))
    assert {*NETWORK_OPTIONS, *IMAGE_OPTIONS, *MACHINE_OPTIONS, "strict"} <= told


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("console", Console),
        ("host", InternetHost),
        ("internet", Internet),
        ("usernat", Network),
        ("vm", Machine),
    ],
)
def test_what_the_page_names_exists(word: str, kind: type) -> None:
    """`usernat.flows` and all the others, in prose and in tables."""
    told = set(re.findall(rf"`{word}\.(\w+)", PAGE))
    assert told
    known = {*dir(kind), *(field.name for field in getattr(kind, "__attrs_attrs__", ()))}
    assert told - known == set()


def test_the_readme_begins_as_the_tutorial() -> None:
    """The same first twenty lines, so whoever starts there starts right."""
    (tutorial,) = re.findall(rf"^## {TUTORIAL}\n\n(.*)", PAGE, re.M | re.S)
    first = "\n".join(tutorial.splitlines()[:20])
    assert first in (ROOT / "README.md").read_text()
