"""The address pool where a guest does its worst."""

from qemu_usernat.gateway.leases import OFFER_TIME, RECORDS_MAXIMUM, LeasePool
from qemu_usernat.primitives.addresses import parse_address, parse_mac

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
