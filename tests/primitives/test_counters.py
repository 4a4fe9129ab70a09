"""Counters and errors share their names, and each name is registered."""

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import qemu_usernat
from qemu_usernat.policy.first_flight import REASONS
from qemu_usernat.primitives import counters as register
from qemu_usernat.primitives.counters import MEANINGS, Counters
from qemu_usernat.primitives.errors import Malformed


def test_an_event_is_counted_under_its_name() -> None:
    """Once, or so many times at once; what never happened is zero."""
    counters = Counters()
    counters.count("tcp.refused")
    counters.count("tcp.refused", 3)
    assert (counters["tcp.refused"], counters["tcp.never"]) == (4, 0)


def test_what_is_malformed_says_why_by_the_counter_s_name() -> None:
    """The reason of a refusal can be counted as it is."""
    error = Malformed("ipv4.bad_checksum")
    assert (error.reason, str(error)) == ("ipv4.bad_checksum", "ipv4.bad_checksum")


def strings(tree: ast.AST) -> Iterator[str]:
    """All string literals below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_counting(call: ast.Call) -> bool:
    """Whether it is ``….counters.count(name)`` or ``Malformed(name)``."""
    called = ast.unparse(call.func)
    return called == "Malformed" or called.endswith("counters.count")


def names_in(source: str) -> set[str]:
    """The names that a module counts: given to a call, or kept in a table or variable for one."""
    tree = ast.parse(source)
    rooms = "|".join({name.split(".")[0] for name in MEANINGS})
    kept = re.compile(rf"({rooms})\.(?!internal$|google$)[a-z0-9_]+")  # DNS names
    names = {text for text in strings(tree) if kept.fullmatch(text)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and is_counting(node):
            name = node.args[0]
            assert not any(isinstance(part, ast.JoinedStr) for part in ast.walk(name)), (
                f"a name made at run time, in line {node.lineno}: nobody can look it up"
            )
            names.update(strings(name))
    return names


def test_every_counter_is_registered_and_every_registered_one_is_counted() -> None:
    """Whoever reads the register knows all that a log can say, and nothing that it cannot."""
    package = Path(qemu_usernat.__file__).parent
    tools = set((package / "testing").rglob("*.py"))  # these name fields of frames the same way
    sources = set(package.rglob("*.py")) - {Path(register.__file__)} - tools
    counted = {name for file in sources for name in names_in(file.read_text())}
    counted -= REASONS.keys()  # of first flights: told as reasons of verdicts
    assert counted - MEANINGS.keys() == set(), "counted, but without a meaning"
    assert MEANINGS.keys() - counted == set(), "registered, but never counted"


def test_a_room_s_counters_stand_together() -> None:
    """One section a room, one line a counter, ending as a sentence does."""
    rooms = [room for room, _ in groupby(MEANINGS, key=lambda name: name.split(".")[0])]
    assert len(rooms) == len(set(rooms))
    for meaning in MEANINGS.values():
        assert re.fullmatch(r"[A-Z][^\n|]+\.", meaning)
