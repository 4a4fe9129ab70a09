"""Reassembly: every order of honest fragments gives the datagram, nothing else gives anything."""

import time
import tracemalloc
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qemu_usernat.nat import fragments
from qemu_usernat.nat.fragments import (
    BYTES_MAXIMUM,
    BYTES_PER_GUEST,
    DATAGRAMS_PER_GUEST,
    PIECE_COST,
    PIECES_MAXIMUM,
    REASSEMBLY_TIME,
    Reassembler,
)
from qemu_usernat.primitives.addresses import parse_address, parse_mac
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.packets import UDP, IpPacket

GUEST = parse_address("10.0.2.15")
SERVER = parse_address("198.51.100.7")
MAC = parse_mac("52:54:00:12:34:56")
NOW = 100.0


def fragment(offset: int, payload: bytes, *, more: bool, **fields: Any) -> IpPacket:
    values: dict[str, Any] = {
        "source": GUEST,
        "destination": SERVER,
        "protocol": UDP,
        "ttl": 64,
        "identification": 7,
        "dont_fragment": False,
        "header": b"header of %d" % offset,
    } | fields
    return IpPacket(more_fragments=more, fragment_offset=offset, payload=payload, **values)


def cut(payload: bytes, *cuts: int, **fields: Any) -> list[IpPacket]:
    """`payload` as fragments that begin at 0 and at `cuts`, each a multiple of 8."""
    edges = [0, *cuts, len(payload)]
    return [
        fragment(start, payload[start:end], more=end < len(payload), **fields)
        for start, end in pairwise(edges)
    ]


@pytest.fixture
def reassembler() -> Reassembler:
    return Reassembler(Counters())


def add(reassembler: Reassembler, *fragments: IpPacket, guest: str = "") -> list[IpPacket]:
    """The datagrams that come out."""
    whole = [reassembler.add(each, MAC, guest, NOW) for each in fragments]
    return [packet for packet in whole if packet is not None]


@given(st.data())
def test_any_order_and_any_repetition_gives_the_datagram_once(data: st.DataObject) -> None:
    """Fragments overtake each other and come twice: one datagram, byte for byte."""
    payload = data.draw(st.binary(min_size=17, max_size=600))
    cuts = data.draw(st.sets(st.integers(1, (len(payload) - 1) // 8).map(lambda n: 8 * n)))
    fragments = cut(payload, *sorted(cuts))
    if len(fragments) == 1:
        return
    *others, completing = data.draw(st.permutations(fragments))
    repeated = others + data.draw(st.lists(st.sampled_from(others), max_size=3))
    reassembler = Reassembler(Counters())
    assert add(reassembler, *data.draw(st.permutations(repeated))) == []
    (whole,) = add(reassembler, completing)
    assert whole.payload == payload
    assert whole.header == b"header of 0"
    assert not whole.more_fragments
    assert reassembler.deadline() == NEVER


def test_datagrams_are_kept_apart(reassembler: Reassembler) -> None:
    """Source, destination, protocol and identification together are a datagram's name."""
    names: list[dict[str, Any]] = [
        {},
        {"identification": 8},
        {"protocol": 6},
        {"source": SERVER},
        {"destination": GUEST},
    ]
    datagrams = [cut(bytes([n]) * 24, 8, 16, **name) for n, name in enumerate(names)]
    rounds = list(zip(*datagrams, strict=True))
    assert add(reassembler, *rounds[0], *rounds[1]) == []
    assert [whole.payload for whole in add(reassembler, *rounds[2])] == [
        bytes([n]) * 24 for n in range(5)
    ]


@pytest.mark.parametrize(
    "overlapping",
    [
        fragment(8, b"X" * 8, more=True),  # the same place, other octets
        fragment(0, b"a" * 8 + b"X" * 8, more=True),  # a longer one over it
        fragment(16, b"X" * 16, more=True),  # over the beginning of the next
        fragment(24, b"X" * 3, more=False),  # an end before what has come
        fragment(16, b"X" * 4, more=False),
        fragment(32, b"X" * 8, more=True),  # over the end of the one before
    ],
)
def test_overlapping_fragments_end_the_datagram(
    reassembler: Reassembler, overlapping: IpPacket
) -> None:
    """What a filter would judge must not depend on who overwrites whom (RFC 5722)."""
    first, second, _, fourth = cut(b"abcdefgh" * 6, 8, 16, 24)
    assert add(reassembler, first, second, fragment(24, fourth.payload, more=True)) == []
    assert add(reassembler, overlapping) == []
    assert reassembler.counters["ipv4.fragment_overlap"] == 1
    assert reassembler.held == 0


def test_what_is_left_to_come_of_a_dropped_datagram_begins_no_new_one(
    reassembler: Reassembler,
) -> None:
    """An overlap costs the sender all of the datagram, also what had not come yet (RFC 5722, 4)."""
    first, second, third = cut(b"abcdefgh" * 3, 8, 16)
    assert add(reassembler, first, fragment(0, b"X" * 8, more=True), first, second, third) == []
    assert reassembler.counters["ipv4.fragment_of_dropped"] == 3
    assert reassembler.expire(NOW + REASSEMBLY_TIME) == []  # nor is its sender told of a timeout
    assert reassembler.counters["ipv4.reassembly_timeout"] == 0
    assert len(add(reassembler, first, second, third)) == 1


def test_two_ends_are_an_overlap(reassembler: Reassembler) -> None:
    """A datagram has one length."""
    add(reassembler, fragment(32, b"end", more=False), fragment(16, b"the end", more=False))
    assert reassembler.counters["ipv4.fragment_overlap"] == 1
    add(reassembler, *(fragment(at, b"end", more=False, protocol=6) for at in (16, 24)))
    assert reassembler.counters["ipv4.fragment_overlap"] == 2


def test_nothing_follows_the_end(reassembler: Reassembler) -> None:
    """A fragment beyond the last one belongs to no honest datagram."""
    add(reassembler, fragment(16, b"end", more=False), fragment(24, bytes(8), more=True))
    assert reassembler.counters["ipv4.fragment_overlap"] == 1


def test_the_end_may_come_first_and_options_stand_in_the_first_only(
    reassembler: Reassembler,
) -> None:
    """What a reassembled datagram says of itself is what its first fragment says."""
    first, middle, last = cut(b"abcdefgh" * 2 + b"end", 8, 16)
    first = evolve(first, header=b"header with options", ttl=9, dont_fragment=True)
    (whole,) = add(reassembler, last, middle, first)
    assert whole == evolve(first, more_fragments=False, payload=b"abcdefgh" * 2 + b"end")


def test_a_name_may_be_used_again_when_its_datagram_is_done(reassembler: Reassembler) -> None:
    """Identifications are 16 bits: the next datagram of that name is another one."""
    for octets in (b"1" * 16, b"2" * 16):
        (whole,) = add(reassembler, *cut(octets, 8))
        assert whole.payload == octets


def test_no_guest_finishes_what_another_has_begun(reassembler: Reassembler) -> None:
    """Of two who say that they have the same address each is only put together with itself."""
    first, last = cut(b"abcdefghend", 8)
    assert add(reassembler, first, guest="one") == add(reassembler, last, guest="two") == []
    assert len(add(reassembler, last, guest="one")) == 1


@pytest.mark.parametrize("more", [True, False])
def test_a_copy_that_disagrees_about_the_end_is_no_copy(
    reassembler: Reassembler, more: bool
) -> None:
    """The same octets in the same place, but once as the last: who lies, nobody knows."""
    add(reassembler, fragment(8, bytes(8), more=more), fragment(8, bytes(8), more=not more))
    assert reassembler.counters["ipv4.fragment_repeated"] == 0
    assert reassembler.counters["ipv4.fragment_overlap"] == 1


def test_an_empty_end_is_refused(reassembler: Reassembler) -> None:
    """A last fragment of nothing brings nothing: no stack makes one."""
    assert add(reassembler, fragment(0, bytes(8), more=True), fragment(8, b"", more=False)) == []
    assert reassembler.counters["ipv4.fragment_length"] == 1


@pytest.mark.parametrize("payload", [b"", b"seven..", bytes(1001)])
def test_a_fragment_before_the_last_is_a_multiple_of_eight(
    reassembler: Reassembler, payload: bytes
) -> None:
    """Others leave holes that nothing can fill, or bring nothing at all (RFC 791, 3.2)."""
    assert add(reassembler, fragment(8, payload, more=True)) == []
    assert reassembler.counters["ipv4.fragment_length"] == 1
    assert reassembler.held == 0


def test_nothing_is_longer_than_ip_allows(reassembler: Reassembler) -> None:
    """The ping of death: an end beyond 65535 octets."""
    add(reassembler, fragment(65512, bytes(8), more=False, header=bytes(20)))
    assert reassembler.counters["ipv4.fragment_too_large"] == 1
    # With its header of 20 bytes, that is; options in the first fragment leave less.
    for size, header, count in ((65515, 20, 1), (65475, 60, 1), (65476, 60, 0)):
        first, *rest = cut(bytes(size), 65464, identification=size)
        rest = [evolve(each, header=bytes(20)) for each in rest]
        first = evolve(first, header=bytes(header))
        assert len(add(reassembler, *rest, first)) == count
        assert len(add(Reassembler(Counters()), first, *rest)) == count
    assert reassembler.counters["ipv4.fragment_too_large"] == 2


def test_a_datagram_in_crumbs_is_refused(reassembler: Reassembler) -> None:
    """Eight octets a fragment would cost us more than them: there is a limit of pieces."""
    crumbs = [fragment(8 * n, bytes(8), more=True) for n in range(PIECES_MAXIMUM + 1)]
    add(reassembler, *crumbs[:-1])
    assert reassembler.counters["ipv4.fragment_too_large"] == 0
    add(reassembler, crumbs[-1])
    assert reassembler.counters["ipv4.fragment_too_large"] == 1


# -- bounds


def halves(count: int, size: int = 16, of: int = 8) -> list[list[IpPacket]]:
    """Datagrams, each in two."""
    return [cut(bytes(size), of, identification=n) for n in range(count)]


def test_the_oldest_gives_way(reassembler: Reassembler) -> None:
    """A flood of first fragments is bounded, and whoever comes now gets a place."""
    datagrams = halves(DATAGRAMS_PER_GUEST + 1)
    add(reassembler, *(first for first, _ in datagrams))
    assert reassembler.counters["ipv4.reassembly_full"] == 1
    assert add(reassembler, datagrams[0][1]) == []
    assert len(add(reassembler, *(last for _, last in datagrams[2:]))) == DATAGRAMS_PER_GUEST - 1


def test_an_honest_datagram_passes_between_the_fragments_of_a_flood(
    reassembler: Reassembler,
) -> None:
    """Also that of the flooding guest itself, as long as its pieces come close to each other."""
    for first, _ in halves(500):
        honest = cut(b"octets that matter", 8, 16, destination=GUEST)
        flood = [evolve(first, source=bytes([n]) * 4) for n in range(DATAGRAMS_PER_GUEST // 4)]
        for piece in honest[:-1]:
            assert add(reassembler, piece, *flood) == []
        assert len(add(reassembler, honest[-1])) == 1


def test_a_flood_takes_nothing_from_others(reassembler: Reassembler) -> None:
    """Whoever began before it finishes after it, however long it was and however large."""
    first, last = cut(b"abcdefghend", 8)
    assert add(reassembler, first, guest="honest") == []
    for number in range(1000):
        octets = bytes(65504)
        add(reassembler, fragment(0, octets, more=True, identification=number), guest="flood")
    assert reassembler.held <= BYTES_PER_GUEST + 8 + PIECE_COST
    assert len(add(reassembler, last, guest="honest")) == 1


def test_when_all_hold_too_much_who_holds_most_makes_room(reassembler: Reassembler) -> None:
    """Together, too, they have a bound; a guest that holds little keeps it."""
    first, last = cut(b"abcdefghend", 8)
    assert add(reassembler, first, guest="honest") == []
    for number in range(40):
        for guest in range(20):
            octets = bytes(65504)
            flood = fragment(0, octets, more=True, identification=number)
            add(reassembler, flood, guest=f"{guest}")
    assert BYTES_MAXIMUM - 65536 - PIECE_COST < reassembler.held <= BYTES_MAXIMUM
    assert len(add(reassembler, last, guest="honest")) == 1


def test_memory_is_what_the_bounds_say() -> None:
    """Crumbs, too, are counted for what they cost: a guest's flood holds some megabytes."""
    reassembler = Reassembler(Counters())
    tracemalloc.start()
    try:
        for number in range(40_000):
            octets = number.to_bytes(8, "big")
            crumb = fragment(8 * (number % 1000), octets, more=True, identification=number // 1000)
            reassembler.add(crumb, MAC, "flood", NOW)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reassembler.counters["ipv4.reassembly_full"] > 0
    assert held < 2 * BYTES_PER_GUEST


def test_a_fragment_costs_the_same_however_many_have_come() -> None:
    """Crumbs in any order: the last hundred are not much dearer than the first."""

    def seconds(crumbs: list[IpPacket], reassembler: Reassembler) -> float:
        started = time.process_time()
        add(reassembler, *crumbs)
        return time.process_time() - started

    def ratio() -> float:
        order = sorted(range(1, PIECES_MAXIMUM), key=lambda n: n * 7919 % PIECES_MAXIMUM)
        crumbs = [fragment(8 * n, bytes(8), more=True) for n in order]
        reassembler = Reassembler(Counters())
        first = seconds(crumbs[:200], reassembler)
        add(reassembler, *crumbs[200:-200])
        return seconds(crumbs[-200:], reassembler) / first

    # A list of a thousand to be gone through costs a factor of ten and more.
    assert min(ratio() for _ in range(7)) < 4


def test_what_stays_incomplete_expires(reassembler: Reassembler) -> None:
    """After its time a datagram is dropped; its first fragment is what the sender is told."""
    with_first = fragment(0, bytes(8), more=True, identification=1)
    reassembler.add(with_first, MAC, "", NOW)
    reassembler.add(fragment(8, bytes(8), more=True, identification=2), MAC, "", NOW + 1.0)
    # A later fragment prolongs nothing (RFC 1122, 3.3.2).
    reassembler.add(fragment(8, bytes(8), more=True, identification=1), MAC, "", NOW + 20.0)
    assert reassembler.deadline() == NOW + REASSEMBLY_TIME
    assert reassembler.expire(NOW + REASSEMBLY_TIME - 0.1) == []
    assert reassembler.expire(NOW + REASSEMBLY_TIME) == [(with_first, MAC)]
    assert reassembler.deadline() == NOW + 1.0 + REASSEMBLY_TIME
    assert reassembler.expire(NOW + 2 * REASSEMBLY_TIME) == []
    assert reassembler.counters["ipv4.reassembly_timeout"] == 2
    assert reassembler.deadline() == NEVER


# -- against a reference


@define
class Reference:
    """One datagram as the RFC has it: a buffer, and which of its octets have come."""

    octets: bytearray = field(factory=lambda: bytearray(1 << 16))
    come: bytearray = field(factory=lambda: bytearray(1 << 16))
    seen: set[tuple[int, bytes, bool]] = field(factory=set)
    total: int | None = None
    dead: bool = False

    def add(self, packet: IpPacket) -> bytes | None:
        start, payload, more = packet.fragment_offset, packet.payload, packet.more_fragments
        end = start + len(payload)
        if self.dead or (start, payload, more) in self.seen:
            return None
        beyond = self.come.rfind(1) + 1
        self.dead = (
            not payload
            or bool(more and len(payload) % 8)
            or end > 65515
            or any(self.come[start:end])
            or (not more and (self.total is not None or beyond > end))
            or (self.total is not None and end > self.total)
        )
        if self.dead:
            return None
        self.seen.add((start, payload, more))
        self.octets[start:end] = payload
        self.come[start:end] = b"\1" * len(payload)
        self.total = self.total if more else end
        if self.total is None or not all(self.come[: self.total]):
            return None
        return bytes(self.octets[: self.total])


PIECES = st.tuples(
    st.integers(0, 9),  # identification
    st.integers(0, 9).map(lambda n: 8 * n),
    st.sampled_from([8, 8, 16, 16, 24, 32, 40, 0, 7, 33]),
    st.sampled_from([True, True, True, False]),
    st.integers(0, 1),  # which octets
)


@given(st.lists(PIECES, max_size=60))
def test_any_pieces_in_any_order_give_what_the_reference_gives(
    pieces: list[tuple[int, int, int, bool, int]],
) -> None:
    """Overlaps, copies, gaps, ends in the middle: the same datagrams come out, and no others."""
    reassembler = Reassembler(Counters())
    references: dict[int, Reference] = {}
    for number, start, size, more, kind in pieces:
        octets = bytes((start + n) * (kind + 1) % 256 for n in range(size))
        packet = fragment(start, octets, more=more, identification=number, header=bytes(20))
        reference = references.setdefault(number, Reference())
        expected = reference.add(packet)
        whole = reassembler.add(packet, MAC, "", NOW)
        assert (None if whole is None else whole.payload) == expected
        if expected is not None:
            del references[number]


@given(st.data())
def test_interleaved_datagrams_cut_anyhow_come_out_each_as_it_was(data: st.DataObject) -> None:
    """Large ones, too: any cuts, any order between them."""
    payloads = data.draw(st.lists(st.integers(9, 65515), min_size=1, max_size=4))
    sent = []
    for number, size in enumerate(payloads):
        octets = (number.to_bytes(1, "big") + bytes(range(255))) * 257
        edges = st.integers(1, (size - 1) // 8).map(lambda n: 8 * n)
        cuts = data.draw(st.sets(edges, min_size=1, max_size=12))
        sent += cut(octets[:size], *sorted(cuts), identification=number, header=bytes(20))
    out = add(Reassembler(Counters()), *data.draw(st.permutations(sent)))
    assert sorted((each.identification, len(each.payload)) for each in out) == list(
        enumerate(payloads)
    )
    for each in out:
        octets = (each.identification.to_bytes(1, "big") + bytes(range(255))) * 257
        assert each.payload == octets[: len(each.payload)]


class Bounds(RuleBasedStateMachine):
    """Guests that send whatever they like, and time: what is held is what the bounds allow."""

    PER_GUEST, TOTAL, DATAGRAMS = 4000, 10_000, 4

    def __init__(self) -> None:
        super().__init__()
        self.reassembler = Reassembler(Counters())
        self.now = NOW
        self.begun: dict[tuple[str, int], float] = {}
        self.patch = mock.patch.multiple(
            fragments,
            BYTES_PER_GUEST=self.PER_GUEST,
            BYTES_MAXIMUM=self.TOTAL,
            DATAGRAMS_PER_GUEST=self.DATAGRAMS,
        )
        self.patch.start()

    def teardown(self) -> None:
        self.patch.stop()

    @rule(
        guest=st.sampled_from("abcd"),
        number=st.integers(0, 6),
        start=st.integers(0, 12).map(lambda n: 8 * n),
        size=st.sampled_from([0, 8, 16, 400, 1000, 7]),
        more=st.booleans(),
    )
    def sends(self, guest: str, number: int, start: int, size: int, more: bool) -> None:
        piece = fragment(start, bytes(size), more=more, identification=number, header=bytes(20))
        whole = self.reassembler.add(piece, MAC, guest, self.now)
        assert whole is None or not (whole.more_fragments or whole.fragment_offset)

    @rule(seconds=st.floats(0.1, 40.0))
    def waits(self, seconds: float) -> None:
        self.now += seconds
        firsts = self.reassembler.expire(self.now)
        assert all(packet.fragment_offset == 0 for packet, _ in firsts)
        assert self.reassembler.deadline() > self.now

    @invariant()
    def holds_no_more_than_it_may(self) -> None:
        reassembler = self.reassembler
        datagrams = reassembler._datagrams
        assert reassembler.held <= self.TOTAL
        for name, guest in reassembler._guests.items():
            assert 0 < len(guest.datagrams) <= self.DATAGRAMS
            assert guest.held <= self.PER_GUEST
            assert guest.held == sum(each.held for each in guest.datagrams.values())
            assert all(key[0] == name and datagrams[key] is each
                       for key, each in guest.datagrams.items())  # fmt: skip
        assert reassembler.held == sum(each.held for each in datagrams.values())
        assert len(datagrams) == sum(len(each.datagrams) for each in reassembler._guests.values())
        for each in datagrams.values():
            assert each.held == sum(map(len, each.pieces.values())) + PIECE_COST * len(each.pieces)
            assert each.starts == sorted(each.pieces)
        times = [each.expires_at for each in datagrams.values()]
        assert times == sorted(times)
        assert reassembler.deadline() == (times[0] if times else NEVER)


Bounds.TestCase.settings = settings(stateful_step_count=40)
TestBounds = Bounds.TestCase
