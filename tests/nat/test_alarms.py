"""Alarms: everybody is woken in time, nobody is woken for ever, nobody is kept."""

from attrs import define
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qemu_usernat.nat.alarms import Alarms
from qemu_usernat.primitives.time import NEVER


@define(eq=False)
class Sleeper:
    """Wants to be woken at `when`."""

    when: float = NEVER

    def deadline(self) -> float:
        return self.when


def test_nobody_sleeps_at_first() -> None:
    """Without sleepers there is nothing to wait for."""
    alarms = Alarms()
    assert (alarms.earliest(), alarms.ring(1e9), len(alarms)) == (NEVER, [], 0)


def test_the_earliest_comes_first() -> None:
    """Sleepers are woken in the order of their deadlines, each once."""
    alarms, late, soon = Alarms(), Sleeper(20.0), Sleeper(10.0)
    alarms.arm(late)
    alarms.arm(soon)
    assert alarms.earliest() == 10.0
    assert alarms.ring(9.9) == []
    assert alarms.ring(10.0) == [soon]
    assert alarms.ring(30.0) == [late]
    assert alarms.earliest() == NEVER


def test_an_earlier_deadline_is_kept() -> None:
    """Whoever is armed again for sooner is woken sooner, and only once."""
    alarms, sleeper = Alarms(), Sleeper(20.0)
    alarms.arm(sleeper)
    sleeper.when = 5.0
    alarms.arm(sleeper)
    assert alarms.ring(5.0) == [sleeper]
    assert alarms.ring(25.0) == []


def test_a_later_deadline_is_not_chased() -> None:
    """Arming for later costs nothing: the alarm rings at the old time and is armed again."""
    alarms, sleeper = Alarms(), Sleeper(10.0)
    alarms.arm(sleeper)
    sleeper.when = 20.0
    alarms.arm(sleeper)
    assert alarms.earliest() == 10.0
    assert alarms.ring(10.0) == [sleeper]
    alarms.arm(sleeper)
    assert alarms.earliest() == 20.0


def test_the_forgotten_are_not_woken_and_not_kept() -> None:
    """A flow that has ended leaves no trace, whatever was armed for it."""
    alarms, sleeper, other = Alarms(), Sleeper(10.0), Sleeper(30.0)
    alarms.arm(sleeper)
    alarms.arm(other)
    alarms.forget(sleeper)
    alarms.forget(sleeper)
    assert (alarms.earliest(), len(alarms), list(alarms)) == (30.0, 1, [other])
    assert alarms.ring(20.0) == []


def test_whoever_wants_nothing_is_not_armed() -> None:
    """A deadline of never needs no alarm."""
    alarms = Alarms()
    alarms.arm(Sleeper())
    assert len(alarms) == 0


def test_memory_follows_those_who_sleep() -> None:
    """A million deadlines of one sleeper, or of many that have ended, are not kept."""
    alarms, busy = Alarms(), Sleeper()
    for number in range(5000):
        busy.when = 1e6 - number
        alarms.arm(busy)
        ended = Sleeper(1e6)
        alarms.arm(ended)
        alarms.forget(ended)
    assert len(alarms) == 1
    assert len(alarms._heap) < 100


class AlarmsMachine(RuleBasedStateMachine):
    """Any order of arming, moving, forgetting and ringing."""

    def __init__(self) -> None:
        super().__init__()
        self.alarms = Alarms()
        self.sleepers = [Sleeper() for _ in range(4)]
        self.promised: dict[Sleeper, float] = {}
        self.now = 0.0

    @rule(index=st.integers(0, 3), delay=st.integers(0, 50))
    def arm(self, index: int, delay: int) -> None:
        sleeper = self.sleepers[index]
        sleeper.when = self.now + delay
        self.alarms.arm(sleeper)
        self.promised[sleeper] = min(self.promised.get(sleeper, NEVER), sleeper.when)

    @rule(index=st.integers(0, 3))
    def forget(self, index: int) -> None:
        self.alarms.forget(self.sleepers[index])
        self.promised.pop(self.sleepers[index], None)

    @rule(seconds=st.integers(0, 60))
    def ring(self, seconds: int) -> None:
        self.now += seconds
        due = {sleeper for sleeper, when in self.promised.items() if when <= self.now}
        woken = self.alarms.ring(self.now)
        assert sorted(map(id, woken)) == sorted(map(id, due))
        for sleeper in due:
            del self.promised[sleeper]

    @invariant()
    def the_earliest_promise_is_kept(self) -> None:
        assert self.alarms.earliest() == min(self.promised.values(), default=NEVER)
        assert set(self.alarms) == set(self.promised)


TestAlarms = AlarmsMachine.TestCase
