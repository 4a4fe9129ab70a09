"""Lists of tables, as ``[[record]]`` is one: each is read by itself, and a message says its number.

What is in them is for the module to say that has their name.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from qemu_usernat.primitives.errors import UserError

T = TypeVar("T")


def read_tables(raw: Any, read: Callable[[int, dict[str, Any]], T]) -> tuple[T, ...]:
    """Each read by ``read(number, table)``, the first is 1; ValueError for anything but tables."""
    if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
        raise ValueError
    return tuple(read(number, table) for number, table in enumerate(raw, 1))


def check_keys(
    number: int,
    table: Mapping[str, Any],
    known: Collection[str],
    required: Collection[str],
    allowed: str,
) -> None:
    """UserError for a key that is not `known`, or a `required` one that is missing: then with all
    that is `allowed`."""
    for key in table:
        if key not in known:
            raise UserError(
                f'number {number}: key "{key}" is not known; allowed: {", ".join(known)}'
            )
    for key in required:
        if key not in table:
            raise UserError(f'number {number} has no "{key}"; allowed: {allowed}')
