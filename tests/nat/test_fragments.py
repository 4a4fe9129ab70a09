"""Reassembly: every order of honest fragments gives the datagram, nothing else gives anything."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.nat.fragments import (
    DATAGRAMS_MAXIMUM,
    FRAGMENTS_MAXIMUM,
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


def add(reassembler: Reassembler, *fragments: IpPacket) -> list[IpPacket]:
    """The datagrams that come out."""
    whole = [reassembler.add(each, MAC, NOW) for each in fragments]
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
    ],
)
def test_overlapping_fragments_end_the_datagram(
    reassembler: Reassembler, overlapping: IpPacket
) -> None:
    """What a filter would judge must not depend on who overwrites whom (RFC 5722)."""
    first, second, _, fourth = cut(b"abcdefgh" * 5, 8, 16, 24)
    assert add(reassembler, first, second, fragment(24, fourth.payload, more=True)) == []
    assert add(reassembler, overlapping) == []
    assert reassembler.counters["ipv4.fragment_overlap"] == 1
    assert reassembler.deadline() == NEVER


def test_two_ends_are_an_overlap(reassembler: Reassembler) -> None:
    """A datagram has one length."""
    add(reassembler, fragment(32, b"end", more=False), fragment(16, b"the end", more=False))
    assert reassembler.counters["ipv4.fragment_overlap"] == 1


def test_nothing_follows_the_end(reassembler: Reassembler) -> None:
    """A fragment beyond the last one belongs to no honest datagram."""
    add(reassembler, fragment(16, b"end", more=False), fragment(24, bytes(8), more=True))
    assert reassembler.counters["ipv4.fragment_overlap"] == 1


@pytest.mark.parametrize("payload", [b"", b"seven..", bytes(1001)])
def test_a_fragment_before_the_last_is_a_multiple_of_eight(
    reassembler: Reassembler, payload: bytes
) -> None:
    """Others leave holes that nothing can fill, or bring nothing at all (RFC 791, 3.2)."""
    assert add(reassembler, fragment(8, payload, more=True)) == []
    assert reassembler.counters["ipv4.fragment_length"] == 1
    assert reassembler.deadline() == NEVER


def test_nothing_is_longer_than_ip_allows(reassembler: Reassembler) -> None:
    """The ping of death: an end beyond 65535 octets."""
    add(reassembler, fragment(65512, bytes(8), more=False))
    assert reassembler.counters["ipv4.fragment_too_large"] == 1
    largest = cut(bytes(65515), 65512)
    assert [len(whole.payload) for whole in add(reassembler, *largest)] == [65515]


def test_a_datagram_in_crumbs_is_refused(reassembler: Reassembler) -> None:
    """Eight octets a fragment would cost us more than them: there is a limit of pieces."""
    crumbs = [fragment(8 * n, bytes(8), more=True) for n in range(FRAGMENTS_MAXIMUM + 1)]
    add(reassembler, *crumbs[:-1])
    assert reassembler.counters["ipv4.fragment_too_large"] == 0
    add(reassembler, crumbs[-1])
    assert reassembler.counters["ipv4.fragment_too_large"] == 1


def test_the_oldest_gives_way(reassembler: Reassembler) -> None:
    """A flood of first fragments is bounded, and whoever comes now gets a place."""
    halves = [cut(bytes(16), 8, identification=n) for n in range(DATAGRAMS_MAXIMUM + 1)]
    add(reassembler, *(first for first, _ in halves))
    assert reassembler.counters["ipv4.reassembly_full"] == 1
    assert add(reassembler, halves[0][1]) == []
    assert len(add(reassembler, *(last for _, last in halves[2:]))) == DATAGRAMS_MAXIMUM - 1


def test_what_stays_incomplete_expires(reassembler: Reassembler) -> None:
    """After its time a datagram is dropped; its first fragment is what the sender is told."""
    with_first = fragment(0, bytes(8), more=True, identification=1)
    reassembler.add(with_first, MAC, NOW)
    reassembler.add(fragment(8, bytes(8), more=True, identification=2), MAC, NOW + 1.0)
    # A later fragment prolongs nothing (RFC 1122, 3.3.2).
    reassembler.add(fragment(8, bytes(8), more=True, identification=1), MAC, NOW + 20.0)
    assert reassembler.deadline() == NOW + REASSEMBLY_TIME
    assert reassembler.expire(NOW + REASSEMBLY_TIME - 0.1) == []
    assert reassembler.expire(NOW + REASSEMBLY_TIME) == [(with_first, MAC)]
    assert reassembler.deadline() == NOW + 1.0 + REASSEMBLY_TIME
    assert reassembler.expire(NOW + 2 * REASSEMBLY_TIME) == []
    assert reassembler.counters["ipv4.reassembly_timeout"] == 2
    assert reassembler.deadline() == NEVER
