"""Each example of examples/testing is a folder that one may copy, and its tests pass."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "testing"
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())


def test_there_are_examples() -> None:
    """Those that docs/testing.md sends its readers to."""
    assert NAMES == ["agent_sandbox", "own_kernel", "pxe_installer"]


@pytest.mark.qemu
@pytest.mark.timeout(900)
@pytest.mark.deep
@pytest.mark.parametrize("name", NAMES)
def test_an_example_stands_alone_and_passes(name: str, tmp_path: Path) -> None:
    """Somewhere else, with nothing around it."""
    folder = shutil.copytree(EXAMPLES / name, tmp_path / name)
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=folder,
        env=ours | {"PYTEST_DEBUG_TEMPROOT": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
