"""Goodput over a harmful wire, ours against the same two kernels without us, as a table.

For each condition of `tests.kernel.conditions` one kernel in a namespace sends to another, over
the same relay with the same seeds: once through a server of ours to a socket on the host's
loopback ("ours"), once to a second namespace ("bare"), in turn, some rounds of both; and down
also through a server of ours that uses congestion control ("ours, cubic"). A run ends when its
bytes have arrived or its time is over; what counts is bytes that arrived, by time. The octets
themselves are looked at by the tests, under the same conditions.

    python -m tools.goodput > table.md

Needs root, as the kernel tests do. A run that does not finish in its time measures how that went.
"""

import argparse
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

from attrs import frozen

from tests.kernel.conditions import CONDITIONS, DOWN, Condition
from tests.kernel.laboratory import CHUNK, Connection, Laboratory, ServerProcess

OURS, CUBIC, BARE = "ours", "ours, cubic", "bare"


def _with_cubic(lab: Laboratory, condition: Condition, seed: int) -> Connection:
    server = lab.own_server(condition.mtu, "--congestion", "cubic")
    return lab.connection(condition, seed, server)


SIDES: dict[str, Callable[[Laboratory, Condition, int], Connection]] = {
    OURS: Laboratory.connection,
    CUBIC: _with_cubic,
    BARE: Laboratory.bare_connection,
}
"""How each of the compared makes its connection."""


@frozen(kw_only=True)
class Plan:
    """How much is measured."""

    size: int
    """Bytes of one run."""
    limit: float
    """Seconds after which a run ends with what has arrived."""
    rounds: int


@frozen
class Row:
    """Mbit/s of each round, one condition, one way."""

    condition: Condition
    way: str
    speeds: dict[str, list[float]]
    """By side; none where a side was not measured."""

    def render(self) -> str:
        """A line of the table: medians, the least and greatest of each, and ratios of medians."""
        cells = [self.condition.name, self.way, *map(_summary, self.speeds.values())]
        for side in compared(self.speeds):
            both = self.speeds[side], self.speeds[BARE]
            ours, bare = (statistics.median(speeds or [0]) for speeds in both)
            cells.append(f"{ours / bare:.2f}" if ours and bare else "")
        return f"| {' | '.join(cells)} |"


def _summary(speeds: list[float]) -> str:
    if not speeds:
        return ""
    middle, least, most = map(_number, (statistics.median(speeds), min(speeds), max(speeds)))
    return f"{middle} ({least}–{most})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def compared(sides: Collection[str]) -> list[str]:
    """Those of ours that stand beside what is bare."""
    return [side for side in sides if side != BARE] if BARE in sides else []


def head(sides: Sequence[str]) -> str:
    """The first two lines of the table."""
    cells = ["wire, MTU 1500 unless said", "way", *sides]
    cells += [f"{side} / {BARE}" for side in compared(sides)]
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def transfer(connection: Connection, way: str, plan: Plan) -> float:
    """Mbit/s that arrive in one run."""
    source, sink = connection.source_and_sink(way)
    piece, buffer = bytes(CHUNK), bytearray(CHUNK)
    started = time.monotonic()
    received = 0
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(_send, source, piece, plan.size)
        try:
            while received < plan.size:
                left = started + plan.limit - time.monotonic()
                if left <= 0:
                    break
                sink.settimeout(left)
                received += sink.recv_into(buffer)
        except TimeoutError:
            pass  # a wire that was silent to the end of the run
        took = time.monotonic() - started
        if received < plan.size:
            source.shutdown(socket.SHUT_RDWR)  # the sender stops
        sending.result()
    return received * 8e-6 / took


def _send(source: socket.socket, piece: bytes, size: int) -> None:
    try:
        for start in range(0, size, len(piece)):
            source.sendall(piece[: size - start])  # to the octet: nobody would read the rest
    except BrokenPipeError:
        return  # the time is over


def measure(
    sides: Sequence[str],
    laboratory: Callable[[ExitStack], Laboratory],
    plan: Plan,
    conditions: Sequence[Condition],
) -> Iterator[Row]:
    """All rows, each after some rounds in which the sides take turns."""
    for condition in conditions:
        for way in condition.ways:
            speeds: dict[str, list[float]] = {side: [] for side in sides}
            for seed in range(1, plan.rounds + 1):
                for side in sides:
                    if side == CUBIC and way != DOWN:
                        continue  # it is what we send that is controlled
                    with ExitStack() as ends:
                        connection = SIDES[side](laboratory(ends), condition, seed)
                        speeds[side].append(transfer(connection, way, plan))
            yield Row(condition, way, speeds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.goodput", description=__doc__)
    parser.add_argument("--size", type=int, default=100, help="MB of a run (default: 100)")
    parser.add_argument("--limit", type=float, default=10, help="seconds of a run (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="of each side (default: 3)")
    parser.add_argument("--only", choices=SIDES, help="one side alone")
    parser.add_argument("--conditions", metavar="TEXT", default="", help="whose name has this")
    words = parser.parse_args()
    plan = Plan(size=words.size * 1_000_000, limit=words.limit, rounds=words.rounds)
    conditions = [condition for condition in CONDITIONS if words.conditions in condition.name]
    if not conditions:
        names = "".join(f"\n  {condition.name}" for condition in CONDITIONS)
        parser.error(f"--conditions {words.conditions!r} is in none of these names:{names}")
    sides = [words.only] if words.only else list(SIDES)
    print(head(sides), flush=True)
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))

        @cache
        def server(mtu: int, *options: str) -> ServerProcess:
            own = folder / "".join([str(mtu), *options])
            own.mkdir()
            started = ServerProcess(own, mtu, options)
            started.start()
            ends.callback(started.end)
            return started

        laboratory = partial(Laboratory, server=server, own_server=server)
        for row in measure(sides, laboratory, plan, conditions):
            print(row.render(), flush=True)


if __name__ == "__main__":
    main()
