"""Write docs/counters.md from the register in `qemu_usernat.primitives.counters`: `make docs`."""

from itertools import groupby
from pathlib import Path

from qemu_usernat.primitives.counters import MEANINGS

PAGE = Path(__file__).parent.parent / "docs" / "counters.md"

HEAD = """\
# Counters

*This page is made from `qemu_usernat/primitives/counters.py` by `make docs`; a test fails when they
differ.*

Every drop and every rare event has a name. At SIGUSR1 a server logs all that are not zero, and
how many links, UDP mappings and TCP flows it has, the flows by the state of their guest half
([tcp-states.md](tcp-states.md)). With `--verbose` it logs the counters at its end, too.
"""


def render() -> str:
    """The whole page."""
    lines = [HEAD]
    for room, names in groupby(MEANINGS, key=lambda name: name.split(".")[0]):
        lines += [f"## {room}\n", "| counter | what happened |", "|---|---|"]
        lines += [f"| `{name}` | {MEANINGS[name]} |" for name in names]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render())
