"""TCP over a wire that loses, repeats, reorders, delays and bends frames, both ways.

The relay's chance is seeded, but two kernels' timing is not: what is asserted is what holds for
every fate, that the octets arrive, exactly, and that the harm was truly done.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
from attrs import evolve

from qemu_usernat.testing.relay import Harm
from tests.kernel.conditions import (
    CONDITIONS,
    CORRUPTED,
    DELAYED,
    EVERYTHING,
    HUGE,
    LOSS,
    LOSSES,
    REORDERED,
    REPEATED,
    TINY,
    WHOLE,
    Condition,
)
from tests.kernel.laboratory import MIB, Laboratory, carry, some_octets

pytestmark = pytest.mark.kernel

HUNDRED_MB = 100_000_000
MUCH_LOSS = 0.05
"""Where so much is lost, both kernels wait for ever longer timers: RFC 6298, 5.5."""


def each_way(conditions: Iterable[Condition]) -> pytest.MarkDecorator:
    """A test of each condition, in each way that it speaks of."""
    return pytest.mark.parametrize(
        ("condition", "way"),
        [
            pytest.param(condition, way, id=f"{condition.name}, {way}")
            for condition in conditions
            for way in condition.ways
        ],
    )


def _carry(lab: Laboratory, condition: Condition, way: str, octets: bytes) -> None:
    connection = lab.connection(condition)
    for sock in (connection.guest, connection.host):
        sock.settimeout(120)
    carry(octets, *connection.source_and_sink(way))
    counts, harm = connection.relay.counts(), condition.harm
    wire = counts.to_host if way == "up" else counts.to_guest
    for what, probability in (
        ("lost", harm.loss),
        ("repeated", harm.repeat),
        ("reordered", harm.reorder),
        ("corrupted", harm.corrupt),
    ):
        few = wire["frames"] * probability < 10
        assert few or wire[what], f"{what}: {wire}"
        assert probability or not wire[what], f"{what}: {wire}"


@each_way(
    [
        *LOSSES,
        REORDERED,
        REPEATED,
        CORRUPTED,
        DELAYED,
        EVERYTHING,
        evolve(LOSS, name="reno in the guest", congestion="reno", ways=("up",)),
        evolve(LOSS, name="bbr in the guest", congestion="bbr", ways=("up",)),
        evolve(WHOLE, name="tiny socket buffers", buffers=TINY),
        evolve(LOSS, name="huge socket buffers", buffers=HUGE),
    ]
)
def test_octets_arrive_over_a_harmful_wire(lab: Laboratory, condition: Condition, way: str) -> None:
    """Whatever the wire does to frames, the stream is what was sent."""
    size = MIB // 4 if condition.harm.loss >= MUCH_LOSS else MIB
    _carry(lab, condition, way, some_octets(size))


@each_way(evolve(condition, mtu=65520) for condition in (LOSS, REPEATED, REORDERED))
def test_100_mb_arrive_at_the_default_mtu(lab: Laboratory, condition: Condition, way: str) -> None:
    """A large transfer, as large frames, over a wire that does one thing wrong."""
    _carry(lab, condition, way, some_octets(HUNDRED_MB))


@pytest.mark.deep
@pytest.mark.timeout(1800)  # where a tenth is lost, two kernels alone need six minutes
@each_way(CONDITIONS)
def test_100_mb_arrive_under_every_condition(
    lab: Laboratory, condition: Condition, way: str
) -> None:
    """The same with 100 MB, in the conditions of the table of goodput."""
    _carry(lab, condition, way, some_octets(HUNDRED_MB))


def test_half_close_survives_the_wire(lab: Laboratory) -> None:
    """FINs are repeated until they are heard: ten connections end both ways."""
    guest, _ = lab.harmed_guest(1500, Harm(loss=0.1))

    def talk() -> None:
        ours, theirs = lab.pair(guest)
        carry(b"that is all", ours, theirs)
        carry(b"so be it", theirs, ours)

    with ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(talk) for _ in range(10)]:
            done.result()
