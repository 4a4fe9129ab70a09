"""QEMU's `-netdev` and `-device` arguments as values, to unplug a card and plug it in again.

Owns the spelling: on the command line an option is words between commas, in QMP it has types.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Options: TypeAlias = Mapping[str, str]
"""The words of an option, in order; the first without a name is its "type" or "driver"."""

NUMBERS = ("reconnect", "reconnect-ms")
SWITCHES = {"on": True, "off": False}


def quoted(word: str | Path) -> str:
    """QEMU splits an option's value at commas; a doubled one stands for itself."""
    return str(word).replace(",", ",,")


def parsed(text: str, first: str) -> dict[str, str]:
    """``stream,id=net0`` as a mapping, where `first` is the name of what stands alone."""
    words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
    named = (word if "=" in word else f"{first}={word}" for word in words)
    return dict(word.split("=", 1) for word in named)


def options(option: Options) -> str:
    """The mapping in QEMU's spelling."""
    (_, first), *rest = option.items()
    return ",".join([quoted(first), *(f"{name}={quoted(value)}" for name, value in rest)])


def with_ids(arguments: Sequence[str]) -> list[str]:
    """The arguments, with a name for each network card, so that it can be unplugged."""
    named = list(arguments)
    for place, (option, value) in enumerate(itertools.pairwise(arguments)):
        if option == "-device":
            card = parsed(value, "driver")
            if "netdev" in card and "id" not in card:
                named[place + 1] = options({**card, "id": f"card-{card['netdev']}"})
    return named


def pairs(arguments: Sequence[str]) -> list[tuple[Options, Options]]:
    """Each netdev with its card."""
    netdevs, cards = [], {}
    for option, value in itertools.pairwise(arguments):
        if option == "-netdev":
            netdevs.append(parsed(value, "type"))
        elif option == "-device" and "netdev" in (card := parsed(value, "driver")):
            cards[card["netdev"]] = card
    return [(netdev, cards[netdev["id"]]) for netdev in netdevs if netdev["id"] in cards]


def typed(netdev: Options) -> dict[str, Any]:
    """The mapping as QMP's `netdev_add` takes it: ``addr.path`` nested, switches and numbers."""
    value: dict[str, Any] = {}
    for name, word in netdev.items():
        inner, *outer = reversed(name.split("."))
        where = value
        for part in reversed(outer):
            where = where.setdefault(part, {})
        where[inner] = int(word) if name in NUMBERS else SWITCHES.get(word, word)
    return value
