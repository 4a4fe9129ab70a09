"""TCP over a wire that loses, repeats, reorders, delays and bends frames, both ways.

The relay's chance is seeded, but two kernels' timing is not: what is asserted is what holds for
every fate, that the octets arrive, exactly, and that the harm was truly done.
"""

from collections.abc import Callable

import pytest

from qemu_usernat.testing.relay import Harm
from tests.kernel.laboratory import MIB, Laboratory, carry, some_octets

pytestmark = pytest.mark.kernel

RecordProperty = Callable[[str, object], None]

HARMS = {
    "loss of 1 %": Harm(loss=0.01),
    "loss of 5 %": Harm(loss=0.05),
    "repetition": Harm(repeat=0.1),
    "reordering": Harm(reorder=0.05),
    "delay and jitter": Harm(delay=0.01, jitter=0.02),
    "corruption": Harm(corrupt=0.02),
    "everything": Harm(
        loss=0.01, repeat=0.02, reorder=0.02, corrupt=0.02, delay=0.002, jitter=0.005
    ),
}
WAYS = ("up", "down")


def _carry(lab: Laboratory, harm: Harm, way: str, octets: bytes, mtu: int) -> float:
    guest, relay = lab.harmed_guest(mtu, harm)
    ours, theirs = lab.pair(guest)
    for sock in (ours, theirs):
        sock.settimeout(120)
    goodput = carry(octets, ours, theirs) if way == "up" else carry(octets, theirs, ours)
    wire = relay.to_host if way == "up" else relay.to_guest
    assert wire.counts["frames"] > 100
    for what, probability in (
        ("lost", harm.loss),
        ("repeated", harm.repeat),
        ("reordered", harm.reorder),
        ("corrupted", harm.corrupt),
    ):
        assert bool(wire.counts[what]) == bool(probability), f"{what}: {wire.counts}"
    return goodput


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HARMS)
def test_octets_arrive_over_a_harmful_wire(
    lab: Laboratory, name: str, way: str, record_property: RecordProperty
) -> None:
    """Whatever the wire does to frames, the stream is what was sent."""
    # Where 5 % are lost, both kernels wait for ever longer timers: RFC 6298, 5.5.
    size = MIB // 4 if HARMS[name].loss > 0.01 else MIB
    goodput = _carry(lab, HARMS[name], way, some_octets(size), 1500)
    record_property("bytes_per_second", goodput)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["loss of 1 %", "repetition", "reordering"])
def test_100_mb_arrive_at_the_default_mtu(
    lab: Laboratory, name: str, way: str, record_property: RecordProperty
) -> None:
    """A large transfer, as large frames, over a wire that does one thing wrong."""
    goodput = _carry(lab, HARMS[name], way, some_octets(100_000_000), 65520)
    record_property("bytes_per_second", goodput)


@pytest.mark.deep
@pytest.mark.parametrize("mtu", [1500, 65520])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HARMS)
def test_100_mb_arrive_over_a_harmful_wire(
    lab: Laboratory, name: str, way: str, mtu: int, record_property: RecordProperty
) -> None:
    """The same with 100 MB, and with large frames, of which each loss is a large one."""
    goodput = _carry(lab, HARMS[name], way, some_octets(100_000_000), mtu)
    record_property("bytes_per_second", goodput)


def test_half_close_survives_the_wire(lab: Laboratory) -> None:
    """FINs are repeated until they are heard: ten connections end both ways."""
    guest, _ = lab.harmed_guest(1500, Harm(loss=0.1))
    for _ in range(10):
        ours, theirs = lab.pair(guest)
        carry(b"that is all", ours, theirs)
        carry(b"so be it", theirs, ours)
