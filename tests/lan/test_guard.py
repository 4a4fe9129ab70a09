"""Whose address is whose, where a policy holds."""

import pytest

from qemu_usernat.lan.guard import JOINED_MAXIMUM, USED_MAXIMUM, SourceGuard
from qemu_usernat.lan.port import JoinPort
from qemu_usernat.primitives.addresses import Address, parse_mac
from qemu_usernat.primitives.counters import Counters

HOSTILE = parse_mac("52:54:00:00:00:01")
OTHER = parse_mac("52:54:00:00:00:02")


def at(number: int) -> Address:
    return bytes((10, 0, 2, number))


@pytest.fixture
def guard() -> SourceGuard:
    return SourceGuard(on=True, reserved={at(200): HOSTILE})


@pytest.fixture
def join() -> JoinPort:
    return JoinPort("join", Counters())


def taken(guard: SourceGuard) -> int:
    """How many addresses the other machine finds in use."""
    return sum(guard.is_of_another(OTHER, at(number)) for number in range(100))


def test_a_machine_takes_a_few_addresses_by_using_them(guard: SourceGuard) -> None:
    """And not all that there are: its neighbours find one."""
    spoken = [guard.may_use(at(number), HOSTILE) for number in range(100)]
    assert spoken == [True] * USED_MAXIMUM + [False] * (100 - USED_MAXIMUM)
    assert taken(guard) == USED_MAXIMUM
    assert guard.may_use(at(0), HOSTILE)
    assert guard.may_use(at(50), OTHER)


def test_what_is_leased_or_reserved_is_not_among_these(guard: SourceGuard) -> None:
    """A machine may speak from what it was given, whatever else it does."""
    for number in range(USED_MAXIMUM):
        assert guard.may_use(at(number), HOSTILE)
    guard.bind(at(50), HOSTILE)
    assert guard.may_use(at(50), HOSTILE)
    assert guard.may_use(at(200), HOSTILE)
    guard.bind(at(0), HOSTILE)  # one that it has used: now there is room for another
    assert guard.may_use(at(0), HOSTILE)


def test_addresses_that_were_leased_one_after_the_other_are_not_all_kept(
    guard: SourceGuard,
) -> None:
    """A machine has one lease at a time; of those that it had it may go on to use a few."""
    for number in range(100):
        guard.bind(at(number), HOSTILE)
    assert taken(guard) == USED_MAXIMUM + 1
    assert guard.is_owner(at(99), HOSTILE)


def test_what_another_machine_leases_is_not_counted_any_more(guard: SourceGuard) -> None:
    """The one that used it without a lease may use another one."""
    for number in range(USED_MAXIMUM):
        guard.may_use(at(number), HOSTILE)
    guard.bind(at(0), OTHER)
    assert not guard.may_use(at(0), HOSTILE)
    assert guard.may_use(at(50), HOSTILE)


def test_a_machine_that_has_left_has_used_nothing(guard: SourceGuard) -> None:
    """When it comes back it begins anew."""
    guard.bind(at(99), HOSTILE)
    for number in range(USED_MAXIMUM):
        guard.may_use(at(number), HOSTILE)
    guard.forget({HOSTILE})
    assert taken(guard) == 0
    assert all(guard.may_use(at(number), HOSTILE) for number in range(50, 50 + USED_MAXIMUM))
    assert not guard.may_use(at(1), HOSTILE)


def test_nobody_behind_a_join_has_what_is_leased_here(guard: SourceGuard, join: JoinPort) -> None:
    """But for the machine that it is reserved for, wherever that is."""
    guard.is_leased_here = lambda address: address >= at(15)
    assert not guard.may_use(at(15), HOSTILE, join)
    assert not guard.is_of_another(OTHER, at(15))
    assert guard.may_use(at(14), HOSTILE, join)
    assert guard.may_use(at(200), HOSTILE, join)
    assert guard.may_use(at(15), OTHER)
    assert guard.may_use(at(15), OTHER, join)  # it has it, and has moved there


def test_all_machines_behind_a_join_have_a_bounded_number_of_addresses(
    guard: SourceGuard, join: JoinPort
) -> None:
    """However many MAC addresses they show; when it ends they have none."""
    spoken = [
        guard.may_use(number.to_bytes(4, "big"), HOSTILE[:4] + (number // 10).to_bytes(2), join)
        for number in range(2 * JOINED_MAXIMUM)
    ]
    assert spoken == [True] * JOINED_MAXIMUM + [False] * JOINED_MAXIMUM
    assert guard.may_use(bytes(4), HOSTILE[:4] + bytes(2), join)
    assert guard.may_use(at(1), OTHER, JoinPort("other", Counters()))
    guard.forget(guard.leave(join))
    assert not guard.is_of_another(OTHER, bytes(4))
    assert guard.may_use(at(2), HOSTILE, join)
