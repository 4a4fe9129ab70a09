"""The address pool where a guest does its worst."""

from qemu_usernat.gateway.leases import (
    DECLINE_TIME,
    OFFER_TIME,
    RECORDS_MAXIMUM,
    RESTING_PER_LINK,
    LeasePool,
)
from qemu_usernat.primitives.addresses import Address, parse_address, parse_mac

MAC = parse_mac("52:54:00:00:00:01")


def test_a_flood_of_invented_clients_costs_bounded_memory() -> None:
    """In a /8 a hostile guest cannot make the pool remember millions of clients."""
    pool = LeasePool(parse_address("10.0.0.15"), parse_address("10.255.255.254"), frozenset())
    offered = [
        pool.offer(n.to_bytes(4, "big"), MAC, None, 0.0) for n in range(RECORDS_MAXIMUM + 100)
    ]
    assert len(set(offered[:RECORDS_MAXIMUM])) == RECORDS_MAXIMUM
    assert offered[RECORDS_MAXIMUM:] == [None] * 100
    far = parse_address("10.200.0.1")
    assert not pool.bind(b"late", MAC, far, 60.0, 0.0)
    assert pool.offer(b"later", MAC, None, OFFER_TIME) == offered[0]


def test_a_client_whose_record_went_to_another_starts_afresh() -> None:
    """When an expired address was given on, its former client does not get it back."""
    only = parse_address("10.0.2.1")
    pool = LeasePool(only, only, frozenset())
    assert pool.bind(b"first", MAC, only, 60.0, 0.0)
    assert pool.bind(b"second", MAC, only, 60.0, 60.0)
    assert pool.offer(b"first", MAC, None, 61.0) is None
    assert not pool.bind(b"first", MAC, only, 60.0, 61.0)
    assert not pool.release(b"first", only, 61.0)


def test_a_client_that_moved_is_not_forgotten_with_its_former_address() -> None:
    """When its former address goes to another, a client keeps the one that it has now."""
    first, second = parse_address("10.0.2.1"), parse_address("10.0.2.2")
    pool = LeasePool(first, second, frozenset())
    assert pool.bind(b"mover", MAC, first, 10.0, 0.0)
    assert pool.bind(b"mover", MAC, second, 60.0, 20.0)
    assert pool.bind(b"other", MAC, first, 60.0, 21.0)
    assert pool.offer(b"mover", MAC, None, 22.0) == second
    assert pool.release(b"mover", second, 23.0)


def test_machines_that_come_and_go_do_not_use_up_the_pool() -> None:
    """In a network with room for one guest, tomorrow's VM with a new MAC address is served."""
    only, other = parse_address("10.0.2.1"), parse_mac("52:54:00:00:00:02")
    pool = LeasePool(only, only, frozenset())
    assert pool.bind(b"today", MAC, only, 86400.0, 0.0)
    assert pool.offer(b"tomorrow", other, None, 10.0) is None
    pool.on_gone({MAC}, 20.0)
    assert pool.offer(b"tomorrow", other, None, 20.0) == only


def test_a_machine_that_comes_back_finds_its_address() -> None:
    """A QEMU that reconnects keeps its address while nobody else needed it."""
    first, last = parse_address("10.0.2.1"), parse_address("10.0.2.9")
    pool = LeasePool(first, last, frozenset())
    assert pool.bind(b"guest", MAC, first, 86400.0, 0.0)
    pool.on_gone({MAC}, 20.0)
    assert pool.offer(b"newcomer", parse_mac("52:54:00:00:00:02"), None, 21.0) != first
    assert pool.bind(b"guest", MAC, first, 86400.0, 22.0)


def at(number: int) -> Address:
    return bytes((10, 0, 2, number))


def test_an_address_that_was_in_use_is_given_when_it_is_not() -> None:
    """Whoever spoke from all of them has left: they are what they were."""
    pool, taken = LeasePool(at(1), at(9), frozenset()), {at(n) for n in range(1, 10)}
    pool.is_taken = taken.__contains__
    assert pool.offer(b"guest", MAC, None, 0.0) is None
    taken.remove(at(4))
    assert pool.offer(b"guest", MAC, None, 0.0) == at(4)
    taken.clear()
    others = [pool.offer(b"other %d" % n, MAC, None, 0.0) for n in range(9)]
    assert others == [at(n) for n in (1, 2, 3, 5, 6, 7, 8, 9)] + [None]


def test_an_address_whose_lease_has_ended_is_not_given_while_somebody_uses_it() -> None:
    """The next one is; and it is given when that has ended, too."""
    pool, taken = LeasePool(at(1), at(2), frozenset()), {at(1)}
    for n in (1, 2):
        assert pool.bind(b"old %d" % n, MAC, at(n), 10.0, n)
    pool.is_taken = taken.__contains__
    assert pool.offer(b"one", MAC, None, 60.0) == at(2)
    assert pool.offer(b"two", MAC, None, 60.0) is None
    taken.clear()
    assert pool.offer(b"two", MAC, None, 60.0) == at(1)


def test_a_guest_that_declines_everything_leaves_addresses_for_others() -> None:
    """It lets a few rest; of more, the one that has rested longest is free again."""
    pool = LeasePool(at(1), at(50), frozenset())
    declined = []
    for n in range(50):
        address = pool.offer(b"hostile", MAC, None, float(n))
        assert address is not None
        assert pool.decline(b"hostile", address, float(n), "its link")
        declined.append(address)
    assert len(set(declined)) == 50
    offered = [pool.offer(b"other %d" % n, MAC, None, 50.0) for n in range(10)]
    assert offered == declined[:10]
    rests = [
        not pool.bind(b"another %d" % n, MAC, address, 60.0, 50.0)
        for n, address in enumerate(declined[10:])
    ]
    assert rests == [False] * (40 - RESTING_PER_LINK) + [True] * RESTING_PER_LINK


def test_what_rests_no_more_is_not_counted() -> None:
    """A guest that found addresses in use an hour ago is as any other."""
    pool = LeasePool(at(1), at(50), frozenset())
    for n in range(30):
        later = float(n > 2) * (DECLINE_TIME + 1)
        address = pool.offer(b"hostile", MAC, None, later)
        assert address is not None
        assert pool.decline(b"hostile", address, later, "its link")
    resting = [each for each in pool._by_address.values() if each.expires > later]
    assert len(resting) == RESTING_PER_LINK


def test_what_one_guest_found_in_use_is_not_freed_by_another() -> None:
    """Each has its own number of them."""
    pool = LeasePool(at(1), at(50), frozenset())
    found = pool.offer(b"guest", MAC, None, 0.0)
    assert found is not None
    assert pool.decline(b"guest", found, 0.0, "one")
    for _ in range(RESTING_PER_LINK + 3):
        address = pool.offer(b"hostile", MAC, None, 1.0)
        assert address is not None
        assert pool.decline(b"hostile", address, 1.0, "two")
    assert not pool.bind(b"third", MAC, found, 60.0, DECLINE_TIME - 1)
    assert pool.bind(b"third", MAC, found, 60.0, DECLINE_TIME)


def test_what_rests_is_given_before_nothing_is() -> None:
    """In a small network, and where several guests decline all that they get: in the order in which
    they came to rest."""
    pool = LeasePool(at(1), at(3), frozenset())
    for n in (3, 1, 2):
        assert pool.offer(b"guest %d" % n, MAC, at(n), 0.0) == at(n)
        assert pool.decline(b"guest %d" % n, at(n), float(n == 2), n)
    assert not pool.bind(b"other", MAC, at(1), 60.0, 2.0)
    assert [pool.offer(b"other %d" % n, MAC, None, 2.0) for n in range(4)] == [
        at(3), at(1), at(2), None,
    ]  # fmt: skip
    assert pool.bind(b"other 1", MAC, at(1), 60.0, 2.0)


def test_what_is_to_be_chosen_does_not_grow_with_each_renewal() -> None:
    """A guest that renews for ever costs bounded memory."""
    pool = LeasePool(at(1), at(3), frozenset())
    for n in range(5 * RECORDS_MAXIMUM):
        assert pool.bind(b"guest", MAC, at(1), 60.0, float(n))
    assert len(pool._ends) <= 3 * RECORDS_MAXIMUM
    assert pool.bind(b"other", MAC, at(2), 60.0, 0.0)
    assert pool.bind(b"third", MAC, at(3), 60.0, 1.0)
    later = 10.0 * RECORDS_MAXIMUM
    assert [pool.offer(b"new %d" % n, MAC, None, later) for n in range(3)] == [at(2), at(3), at(1)]
