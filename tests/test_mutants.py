"""The faults that `make mutants` plants are the ones it says, each of them once."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.mutants.__main__ import main
from tools.mutants.operators import difference, mutants_of

SOURCE = '''\
"""A module."""

TABLE = (
    GuestState.ESTABLISHED,
    GuestState.CLOSE_WAIT,
)


def bounded(length: int) -> int:
    """Not text: a docstring."""
    count("tcp.bounded")
    if length < 1:
        return 0
    return min(length, LIMIT)
'''


@pytest.fixture
def faults(tmp_path: Path) -> dict[tuple[str, str], str]:
    """The lines before and after, and the place; of each mutant of `SOURCE`."""
    module = tmp_path / "module.py"
    module.write_text(SOURCE)
    mutants = mutants_of(module)
    found = {difference(SOURCE, mutant.text()): mutant.inside for mutant in mutants}
    assert len(found) == len(mutants), "two mutants that are one"
    return found


def test_a_statement_is_forgotten(faults: dict[tuple[str, str], str]) -> None:
    """Each one of a function, but for its docstring."""
    deleted = {before for before, after in faults if after == "pass"}
    assert deleted == {'count("tcp.bounded")', "return 0", "return min(length, LIMIT)"}


def test_a_row_is_forgotten_or_another_state_stands_in_it(
    faults: dict[tuple[str, str], str],
) -> None:
    """Tables are code here: what stands in one is as likely to be wrong."""
    assert ("GuestState.ESTABLISHED,", "") in faults
    assert ("GuestState.CLOSE_WAIT,", "") in faults
    assert ("GuestState.ESTABLISHED,", "GuestState.FIN_WAIT_1,") in faults


def test_limits_are_off_by_one_and_comparisons_at_their_border(
    faults: dict[tuple[str, str], str],
) -> None:
    """The faults that are made most, and seen least."""
    assert ("if length < 1:", "if length <= 1:") in faults
    assert ("if length < 1:", "if not length < 1:") in faults
    assert ("if length < 1:", "if length < 2:") in faults
    assert ("return min(length, LIMIT)", "return max(length, LIMIT)") in faults
    assert ('count("tcp.bounded")', 'count("tcp.bounded!")') in faults


def test_a_fault_is_named_by_its_place(faults: dict[tuple[str, str], str]) -> None:
    """The same line may stand in two functions."""
    assert faults["return 0", "pass"] == "bounded"
    assert faults["GuestState.ESTABLISHED,", ""] == ""


def test_a_module_that_is_not_there_is_said() -> None:
    """Who mistypes its name does not read that none of its mutants was killed."""
    told = CliRunner().invoke(main, ["rrt", "rtt"])
    assert told.exit_code == 2
    assert "no module rrt in qemu_usernat/nat/tcp: " in told.output
    assert ", rtt, " in told.output
