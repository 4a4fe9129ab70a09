"""Which faults are planted, and where: one list of operators for all modules.

From cosmic-ray come those on numbers, comparisons, arithmetic and logic, as few as subsume the
rest: of the seven ways to get a comparison wrong, three (Kaminski, Ammann and Offutt, "Better
predicate testing", 2011). What it has no operator for, and this code lives by, is added here: a
statement that is missing, a row that is missing from a table, a state mistaken for another.

An operator is what cosmic-ray takes for one: `mutation_positions` of a parso node, and `mutate`.
It knows nothing of tests.
"""

import hashlib
from collections.abc import Iterator
from difflib import SequenceMatcher
from enum import EnumMeta
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Name

from qemu_usernat.nat.tcp import states

Node = Any
"""A node of a parso tree."""

Position = tuple[int, int]


def _replaced(node: Node, text: str) -> Node:
    """A leaf that reads `text`, in the place of `node`."""
    return Name(text, node.start_pos, node.get_first_leaf().prefix)


class _OneToANode:
    """An operator that changes a node in one way, or not at all."""

    def applies(self, node: Node) -> bool:
        raise NotImplementedError

    def mutate(self, node: Node, index: int) -> Node:
        raise NotImplementedError

    def mutation_positions(self, node: Node) -> Iterator[tuple[Position, Position]]:
        if self.applies(node):
            yield node.start_pos, node.end_pos


class DeleteStatement(_OneToANode):
    """A statement that somebody forgot: an assignment, a call, a `return` or a `continue`."""

    def applies(self, node: Node) -> bool:
        if node.type != "simple_stmt" or not _function_around(node):
            return False
        says = node.children[0].get_code(include_prefix=False)
        return node.children[0].type != "string" and says not in ("pass", "...")

    def mutate(self, node: Node, index: int) -> Node:
        node.children[0] = _replaced(node.children[0], "pass")
        return node


class DropElement:
    """A row that somebody forgot, in a table of the module's: a tuple, a set or a dictionary."""

    def mutation_positions(self, node: Node) -> Iterator[tuple[Position, Position]]:
        if node.type in ("testlist_comp", "dictorsetmaker") and not _is_code(node):
            for element in _elements(node):
                yield element[0].start_pos, element[-1].end_pos

    def mutate(self, node: Node, index: int) -> Node:
        dropped = _elements(node)[index]
        node.children = [child for child in node.children if child not in dropped]
        return node


def _elements(node: Node) -> list[list[Node]]:
    """The children of a display, each with the comma behind it."""
    found: list[list[Node]] = [[]]
    for child in node.children:
        found[-1].append(child)
        if child == ",":
            found.append([])
    return [element for element in found if element]


class NextMember(_OneToANode):
    """A state, event or duty mistaken for the next of its kind."""

    enums: Final = {name: kind for name, kind in vars(states).items() if isinstance(kind, EnumMeta)}

    def applies(self, node: Node) -> bool:
        code = node.get_code(include_prefix=False)
        kind, dot, member = code.partition(".")
        return bool(dot) and kind in self.enums and member in self.enums[kind].__members__

    def mutate(self, node: Node, index: int) -> Node:
        kind, _, member = node.get_code(include_prefix=False).partition(".")
        members = list(self.enums[kind].__members__)
        following = members[(members.index(member) + 1) % len(members)]
        return _replaced(node, f"{kind}.{following}")


class OtherName(_OneToANode):
    """A flag or a function mistaken for its neighbour."""

    others: Final = {
        "min": "max",
        "max": "min",
        "SYN": "FIN",
        "FIN": "RST",
        "RST": "SYN",
        "ACK": "PSH",
        "PSH": "ACK",
    }

    def applies(self, node: Node) -> bool:
        used = node.type == "name" and node.value in self.others
        return used and node.parent.type not in ("import_as_names", "trailer", "param")

    def mutate(self, node: Node, index: int) -> Node:
        return _replaced(node, self.others[node.value])


class ChangeText(_OneToANode):
    """A text or octets that say something else: a counter's name, an option's bytes."""

    def applies(self, node: Node) -> bool:
        if node.type != "string" or not _function_around(node):
            return False
        return bool(node.parent.type != "simple_stmt")  # which is a docstring

    def mutate(self, node: Node, index: int) -> Node:
        return _replaced(node, f"{node.value[:-1]}!{node.value[-1]}")


def _is_code(node: Node) -> bool:
    """Whether it stands in a function or a comprehension."""
    while node is not None and node.type != "funcdef":
        if any(child.type == "sync_comp_for" for child in getattr(node, "children", ())):
            return True
        node = node.parent
    return node is not None


def _function_around(node: Node) -> Node | None:
    while node is not None and node.type != "funcdef":
        node = node.parent
    return node


_FROM_COSMIC_RAY = (
    "NumberReplacer",  # one more, one less
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "AddNot",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ZeroIterationForLoop",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_Lt_NotEq",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_LtE_Eq",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_Gt_NotEq",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_GtE_Eq",
    "ReplaceComparisonOperator_Eq_LtE",
    "ReplaceComparisonOperator_Eq_GtE",
    "ReplaceComparisonOperator_NotEq_Lt",
    "ReplaceComparisonOperator_NotEq_Gt",
    "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_IsNot_Is",
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBinaryOperator_Mul_Add",
    "ReplaceBinaryOperator_FloorDiv_Mul",
    "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBinaryOperator_Mod_Mul",
    "ReplaceBinaryOperator_Pow_Mul",
    "ReplaceBinaryOperator_LShift_RShift",
    "ReplaceBinaryOperator_RShift_LShift",
    "ReplaceBinaryOperator_BitAnd_BitOr",
    "ReplaceBinaryOperator_BitOr_BitAnd",
    "ReplaceBinaryOperator_BitXor_BitOr",
)

OPERATORS: dict[str, Any] = {
    **{name: OperatorProvider()[name]() for name in _FROM_COSMIC_RAY},
    **{
        kind.__name__: kind()
        for kind in (DeleteStatement, DropElement, NextMember, OtherName, ChangeText)
    },
}


@frozen
class Mutant:
    """The `occurrence`th place of a module where an operator has something to change."""

    module: Path = field(converter=Path)
    digest: str
    """Of the module's text: with another text this is another mutant."""
    operator: str
    occurrence: int
    line: int
    inside: str
    """The class and function around it, dotted; empty at the top of the module."""

    @property
    def key(self) -> str:
        return f"{self.module.name} {self.digest} {self.operator} {self.occurrence}"

    def text(self) -> str:
        """The module with the fault in it."""
        source = self.module.read_text()
        mutated = mutate_code(source, OPERATORS[self.operator], self.occurrence)
        assert isinstance(mutated, str), f"{self.key}: no such place"
        return mutated


def mutants_of(module: Path) -> list[Mutant]:
    """All mutants of one module, from its top to its end."""
    source = module.read_text()
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    found = []
    seen = dict.fromkeys(OPERATORS, 0)
    for node in ast_nodes(get_ast(source)):
        for name, operator in OPERATORS.items():
            for start, _ in operator.mutation_positions(node):
                found.append(Mutant(module, digest, name, seen[name], start[0], _inside(node)))
                seen[name] += 1
    return sorted(found, key=lambda mutant: mutant.line)


def _inside(node: Node) -> str:
    names: list[str] = []
    while node.parent is not None:
        node = node.parent
        if node.type in ("funcdef", "classdef"):
            names.insert(0, node.name.value)
    return ".".join(names)


def difference(before: str, after: str) -> tuple[str, str]:
    """The lines that differ between two texts of a module, each side as one line."""
    old, new = before.splitlines(), after.splitlines()
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changes = [bounds for kind, *bounds in steps if kind != "equal"]
    (old_first, _, new_first, _), (_, old_last, _, new_last) = changes[0], changes[-1]
    return _joined(old[old_first:old_last]), _joined(new[new_first:new_last])


def _joined(lines: list[str]) -> str:
    return " ".join(line.partition("  # ")[0].strip() for line in lines).strip()
