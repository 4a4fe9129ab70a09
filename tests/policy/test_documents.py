"""docs/policy.md says what the code does."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from attrs import fields_dict

from qemu_usernat import NetworkPolicy
from qemu_usernat.cli import main
from qemu_usernat.policy import why
from qemu_usernat.policy.audit import AuditRecord
from qemu_usernat.policy.groups import FLOOR, GROUPS
from qemu_usernat.policy.settings import read_settings

PAGE = (Path(__file__).parent.parent.parent / "docs" / "policy.md").read_text()


def table(head: str) -> dict[str, str]:
    """The rows of the table below `head`: what is in the first column, and in the rest."""
    _, _, below = PAGE.partition(f"{head}\n")
    rows, _, _ = below.partition("\n\n")
    cells = [line.strip("| ").split(" | ", 1) for line in rows.splitlines()[1:]]
    return {first.strip("`"): rest for first, rest in cells}


def block(language: str, number: int = 0) -> str:
    """A fenced block."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    texts: list[str] = [text for said, text in fenced if said == language]
    return texts[number]


def test_the_fields_of_the_audit_are_those_of_the_page() -> None:
    """In their order, and none is missing."""
    assert list(table("| field | |")) == list(fields_dict(AuditRecord))


def test_the_reasons_are_those_of_the_page() -> None:
    """With the same words."""
    said = re.findall(r'= "(\w+)"\n    """(.*?)"""', inspect.getsource(why), re.DOTALL)
    assert table("| `why` | |") == {value: " ".join(text.split()) for value, text in said}
    assert [value for value, _ in said] == [each.value for each in why.Why]


def test_the_groups_are_those_of_the_page() -> None:
    """And what is in `any`."""
    rows = table("| group | what is in it | in `any` |")
    assert list(rows) == list(GROUPS)
    assert {group for group, text in rows.items() if text.endswith("| no")} == FLOOR


def test_the_three_ways_of_writing_mean_the_same() -> None:
    """TOML and text of the page are one policy, and its Python runs."""
    settings = read_settings(tomllib.loads(block("toml"))["policy"], "")
    assert NetworkPolicy.parse(block("text")) == settings.policy
    exec(block("python"), {})


def test_what_explain_says_is_what_the_page_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the file from the top of the page."""
    file = tmp_path / "policy.toml"
    file.write_text(block("toml"))
    assert main(["policy", "explain", str(file), "tcp", "api.github.com:443"]) == 0
    assert capsys.readouterr().out == block("", 1)


def test_every_command_of_the_page_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """They answer to --help."""
    for command in table("| command | |"):
        words = command.split()[1:3]
        assert main([*words, "--help"]) == 0
    capsys.readouterr()
