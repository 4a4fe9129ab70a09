"""What a file says, network by network, before any of its values is read.

Owns the shape of a file: the keys of its top, one table ``[network]`` or several tables
``[[network]]``, and the policy of each. Of several networks each has its own keys, and those of the
top that it does not say otherwise.
"""

import re
import tomllib
from pathlib import Path
from typing import Any, TypeAlias

from attrs import field, frozen

from qemu_usernat.config.reservations import LABEL
from qemu_usernat.config.settings import (
    ABOVE_SEVERAL,
    NAME,
    OF_ONE,
    ONE_OF_SEVERAL,
    POLICY,
    TABLE,
    TOP,
    Given,
    known_keys,
)
from qemu_usernat.config.values import show
from qemu_usernat.primitives.errors import UserError

NAME_ALLOWED = "one label of letters, digits and inner dashes, at most 63, that no other has"

WrittenPolicy: TypeAlias = tuple[str, Any]
"""How a message about it begins, and the table."""


@frozen
class Written:
    """One network, as it is written."""

    name: str = ""
    """Empty where there is but one, which needs none."""
    given: Given = field(factory=dict)
    policy: WrittenPolicy | None = None

    @property
    def origin(self) -> str:
        """How a message about it begins."""
        return f'network "{self.name}": ' if self.name else ""


def read_file(path: Path) -> list[Written]:
    """The networks of a file."""
    document = parse_toml(path)
    policy = (f"{path}: ", document.pop(POLICY)) if POLICY in document else None
    network = document.pop(TABLE, {})
    if isinstance(network, dict):
        given = known_keys(f"{path}: ", TOP, document)
        return [Written("", given | known_keys(f"{path}: ", OF_ONE, network), policy)]
    if (
        not isinstance(network, list)
        or not network
        or not all(isinstance(t, dict) for t in network)
    ):
        raise UserError(
            f'{path}: key "{TABLE}" is {show(network)}; allowed: a table [{TABLE}], or for several '
            f"networks tables [[{TABLE}]]"
        )
    return _several(path, known_keys(f"{path}: ", ABOVE_SEVERAL, document), policy, network)


def _several(
    path: Path, shared: Given, policy: WrittenPolicy | None, tables: list[dict[str, Any]]
) -> list[Written]:
    networks: dict[str, Written] = {}
    for number, table in enumerate(tables, 1):
        name = _name(f'{path}: key "{TABLE}[{number}].{NAME}"', table)
        if name in networks:
            raise UserError(f'{path}: network "{name}" is there twice; allowed: {NAME_ALLOWED}')
        own = {key: value for key, value in table.items() if key not in (NAME, POLICY)}
        origin = f'{path}: network "{name}": '
        networks[name] = Written(
            name,
            shared | known_keys(origin, ONE_OF_SEVERAL, own),
            (origin, table[POLICY]) if POLICY in table else policy,
        )
    return list(networks.values())


def _name(origin: str, table: dict[str, Any]) -> str:
    if NAME not in table:
        raise UserError(f"{origin} is missing; allowed: {NAME_ALLOWED}")
    name = table[NAME]
    if not isinstance(name, str) or not LABEL.fullmatch(name.lower()):
        raise UserError(f"{origin} is {show(name)}; allowed: {NAME_ALLOWED}")
    return name.lower()


def parse_toml(path: Path) -> dict[str, Any]:
    """The document; UserError names the line."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not TOML: not UTF-8 at byte {error.start}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        message = re.sub(r" \(at [^()]*\)$", "", str(error))
        raise UserError(f"{path}:{line}: is not TOML: {message}") from error
