"""Goodput over a harmful wire, ours against the same two kernels without us, as a table.

For each condition of `tests.kernel.conditions` one kernel in a namespace sends to another, over
the same relay with the same seeds: once through a server of ours to a socket on the host's
loopback ("ours"), once to a second namespace ("bare"), in turn, some rounds of both. A run ends
when its bytes have arrived or its time is over; what counts is bytes that arrived, by time. The
octets themselves are looked at by the tests, under the same conditions.

    python -m tools.goodput > table.md

Needs root, as the kernel tests do. A run that does not finish in its time measures how that went.
"""

import argparse
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

from attrs import frozen

from tests.kernel.conditions import CONDITIONS, Condition
from tests.kernel.laboratory import CHUNK, Connection, Laboratory, ServerProcess

OURS, BARE = "ours", "bare"


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

    def render(self) -> str:
        """A line of the table: medians, their ratio, and the least and greatest of each."""
        cells = [self.condition.name, self.way]
        cells += [_number(statistics.median(speeds)) for speeds in self.speeds.values()]
        if len(self.speeds) == 2:
            cells.append(f"{self.ratio():.2f}")
        cells += [f"{_number(min(s))}–{_number(max(s))}" for s in self.speeds.values()]
        return f"| {' | '.join(cells)} |"

    def ratio(self) -> float:
        """Ours by bare, of the medians."""
        return statistics.median(self.speeds[OURS]) / statistics.median(self.speeds[BARE])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def head(sides: list[str]) -> str:
    """The first two lines of the table."""
    cells = ["wire, MTU 1500 unless said", "way", *sides]
    cells += ["ratio"] * (len(sides) == 2) + [f"{side}, all rounds" for side in sides]
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
        for _ in range(0, size, len(piece)):
            source.sendall(piece)
    except BrokenPipeError:
        return  # the time is over


def measure(
    connections: Mapping[str, Callable[[Laboratory, Condition, int], Connection]],
    laboratory: Callable[[ExitStack], Laboratory],
    plan: Plan,
    conditions: Sequence[Condition],
) -> Iterator[Row]:
    """All rows, each after some rounds in which the sides take turns."""
    for condition in conditions:
        for way in condition.ways:
            speeds: dict[str, list[float]] = {side: [] for side in connections}
            for seed in range(1, plan.rounds + 1):
                for side, connect in connections.items():
                    with ExitStack() as ends:
                        connection = connect(laboratory(ends), condition, seed)
                        speeds[side].append(transfer(connection, way, plan))
            yield Row(condition, way, speeds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.goodput", description=__doc__)
    parser.add_argument("--size", type=int, default=100, help="MB of a run (default: 100)")
    parser.add_argument("--limit", type=float, default=10, help="seconds of a run (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="of each side (default: 3)")
    parser.add_argument("--only", choices=(OURS, BARE), help="one side alone")
    parser.add_argument("--conditions", metavar="TEXT", default="", help="whose name has this")
    words = parser.parse_args()
    plan = Plan(size=words.size * 1_000_000, limit=words.limit, rounds=words.rounds)
    conditions = [condition for condition in CONDITIONS if words.conditions in condition.name]
    if not conditions:
        names = "".join(f"\n  {condition.name}" for condition in CONDITIONS)
        parser.error(f"--conditions {words.conditions!r} is in none of these names:{names}")
    sides = {OURS: Laboratory.connection, BARE: Laboratory.bare_connection}
    if words.only:
        sides = {words.only: sides[words.only]}
    print(head(list(sides)), flush=True)
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))

        @cache
        def server(mtu: int) -> ServerProcess:
            own = folder / str(mtu)
            own.mkdir()
            started = ServerProcess(own, mtu)
            started.start()
            ends.callback(started.end)
            return started

        laboratory = partial(Laboratory, server=server, own_server=server)
        for row in measure(sides, laboratory, plan, conditions):
            print(row.render(), flush=True)


if __name__ == "__main__":
    main()
