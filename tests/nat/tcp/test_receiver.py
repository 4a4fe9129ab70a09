"""The guest's octets come out in order, once, and whatever was advertised is accepted."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.nat.tcp.receiver import (
    CAPACITY_INITIAL,
    CAPACITY_MAXIMUM,
    DUPLICATES_TOLD,
    OUT_OF_ORDER_RUNS,
    ROUNDING_ROOM,
    WINDOW_SCALE,
    Receiver,
)
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import MODULUS, add
from qemu_usernat.wire.packets import Buffer

MSS = 1460
UNIT = 1 << WINDOW_SCALE
STREAM = random.Random(9293).randbytes(1 << 20)
"""Octets without a period: one in the wrong place is seen."""

isns = st.sampled_from([0, MODULUS - 1, MODULUS - 2, MODULUS - 700, 1 << 31]) | st.integers(
    0, MODULUS - 1
)


class Server:
    """A host that takes up to `limit` octets a call."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.received = bytearray()

    def send(self, buffers: list[Buffer]) -> int:
        octets = b"".join(buffers)[: self.limit]
        self.received += octets
        return len(octets)


def receiver_at(isn: int, scale: int = WINDOW_SCALE, mss: int = MSS) -> Receiver:
    made = Receiver(mss, Counters())
    made.begin(isn, scaled=bool(scale))
    return made


def accept(receiver: Receiver, isn: int, start: int, octets: bytes) -> bool:
    return receiver.accept(add(isn, 1 + start), memoryview(octets), len(octets))


def kept(receiver: Receiver) -> list[tuple[int, bytes]]:
    """What waits for the gap before it to be filled."""
    return [(start, bytes(octets)) for start, octets in receiver.out_of_order]


@st.composite
def pieces(draw: st.DrawFn, length: int = 3000) -> list[tuple[int, int]]:
    """A stream of `length` octets cut anyhow, with repeats and overlaps, in any order."""
    cuts = sorted(draw(st.lists(st.integers(1, length - 1), max_size=12, unique=True)))
    whole = list(zip([0, *cuts], [*cuts, length], strict=True))
    more = draw(st.lists(st.tuples(st.integers(0, length - 1), st.integers(1, 900)), max_size=8))
    whole += [(start, min(length, start + size)) for start, size in more]
    return draw(st.permutations(whole))


@given(isns, pieces(), st.sets(st.integers(0, 20)))
def test_any_cutting_gives_the_stream_once_and_in_order(
    isn: int, cuts: list[tuple[int, int]], drains: set[int]
) -> None:
    """Cut, overlapped, repeated and shuffled around 2**32: the server reads the stream."""
    receiver, server = receiver_at(isn), Server()
    for number, (start, end) in enumerate(cuts):
        before = receiver.position
        moved = accept(receiver, isn, start, STREAM[start:end])
        assert moved == (receiver.position > before)
        assert receiver.next_sequence == add(isn, 1 + receiver.position)
        starts = [run[0] for run in receiver.out_of_order]
        ends = [run[0] + len(run[1]) for run in receiver.out_of_order]
        assert all(a > receiver.position for a in starts)
        assert all(a <= b for a, b in zip(ends, starts[1:], strict=False))
        if number in drains:
            receiver.drain(server.send)
    receiver.drain(server.send)
    assert server.received == STREAM[:3000]
    assert not receiver.out_of_order


@given(isns, pieces(), st.integers(0, 3000))
def test_a_fin_counts_when_all_before_it_has_come(
    isn: int, cuts: list[tuple[int, int]], when: int
) -> None:
    """The FIN may overtake its data; nothing beyond it is ever taken."""
    receiver, server = receiver_at(isn), Server()
    ends = 0
    for number, (start, end) in enumerate([*cuts, (2900, 3100), (3000, 3001)]):
        if number == when % len(cuts):
            ends += receiver.finish(add(isn, 1 + 3000))
        accept(receiver, isn, start, STREAM[start:end])
        if receiver.fin_position is not None:
            ends += receiver.consume_fin()
    receiver.drain(server.send)
    assert ends == 1
    assert server.received == STREAM[:3000]
    assert receiver.next_sequence == add(isn, 1 + 3001)
    assert not receiver.finish(add(isn, 1 + 3000)), "a FIN repeated is no news"
    assert receiver.room == 0


def test_the_limits_are_what_is_written() -> None:
    """What one flow may cost: 8 MiB at most, a quarter of one at first, and 512 runs."""
    assert CAPACITY_INITIAL == 262_144
    assert CAPACITY_MAXIMUM == 8_388_608
    assert ROUNDING_ROOM == 65_536
    assert OUT_OF_ORDER_RUNS == 512


def test_a_segment_without_octets_moves_nothing() -> None:
    """A bare ACK is no news of the stream, wherever it stands."""
    receiver = receiver_at(0)
    assert receiver.queued == 0
    for start in (0, 1, receiver.right_edge):
        assert not accept(receiver, 0, start, b"")
    assert (receiver.queued, receiver.position, receiver.out_of_order) == (0, 0, [])
    accept(receiver, 0, 10, STREAM[10:20])
    assert not accept(receiver, 0, 20, b"")
    assert told(receiver) == [(10, 20)]


def test_an_octet_is_news() -> None:
    """The least that there is, in order."""
    receiver = receiver_at(0)
    assert accept(receiver, 0, 0, b"!")
    assert accept(receiver, 0, 1, b"!!")
    assert not accept(receiver, 0, 2, b"!")


def test_what_is_kept_already_is_not_kept_twice() -> None:
    """A guest that repeats everything behind a gap costs nothing more."""
    receiver = receiver_at(0)
    for start, end in [(10, 20), (10, 20), (12, 15), (30, 40), (40, 50), (30, 50), (10, 20)]:
        accept(receiver, 0, start, STREAM[start:end])
    assert kept(receiver) == [(10, STREAM[10:20]), (30, STREAM[30:50])]
    accept(receiver, 0, 5, STREAM[5:60])
    assert b"".join(octets for _, octets in kept(receiver)) == STREAM[5:60]


def test_a_fin_beyond_the_window_is_no_fin() -> None:
    """passt b145441: it would cut off data that is still to come."""
    receiver = receiver_at(0)
    assert not receiver.finish(add(1, receiver.right_edge + 1))
    assert receiver.fin_position is None
    assert not receiver.finish(add(1, receiver.right_edge))
    assert receiver.fin_position == receiver.right_edge


def test_a_fin_that_lies_behind_is_no_fin() -> None:
    """Octets that were accepted stay accepted."""
    receiver = receiver_at(0)
    accept(receiver, 0, 0, b"hello")
    assert not receiver.finish(add(1, 3))
    assert receiver.fin_position is None


def test_octets_that_came_early_and_lie_behind_the_fin_are_forgotten() -> None:
    """The stream ends where the guest has said so, whatever it had sent before."""
    receiver, server = receiver_at(0), Server()
    accept(receiver, 0, 5, b"567")
    accept(receiver, 0, 8, b"89")
    accept(receiver, 0, 20, b"far")
    assert kept(receiver) == [(5, b"56789"), (20, b"far")]
    assert not receiver.finish(add(1, 8))
    assert kept(receiver) == [(5, b"567")]
    accept(receiver, 0, 0, b"01234")
    assert receiver.consume_fin()
    receiver.drain(server.send)
    assert server.received == b"01234567"
    assert not receiver.out_of_order


def test_nothing_is_left_of_what_begins_where_the_guest_has_ended() -> None:
    """Not even an object without octets."""
    receiver = receiver_at(0)
    accept(receiver, 0, 5, b"567")
    accept(receiver, 0, 20, b"far")
    assert not receiver.finish(add(1, 20))
    assert kept(receiver) == [(5, b"567")]


def test_octets_beyond_the_window_are_cut_off() -> None:
    """What was advertised is accepted to the last octet, and not one more."""
    receiver, server = receiver_at(0), Server()
    edge = receiver.right_edge
    accept(receiver, 0, 10, STREAM[10 : edge + 50])
    accept(receiver, 0, edge, b"beyond")
    accept(receiver, 0, edge + 1, b"beyond")
    assert kept(receiver) == [(10, STREAM[10:edge])]
    accept(receiver, 0, 0, STREAM[:10])
    receiver.drain(server.send)
    assert server.received == STREAM[:edge]


def test_the_syn_acks_window_is_not_scaled() -> None:
    """RFC 7323, 2.2: 65535 is the most that a SYN,ACK can promise."""
    assert receiver_at(0).right_edge == 65535


@given(isns, st.sampled_from([0, WINDOW_SCALE]), st.sampled_from([48, 536, MSS, 65480]), st.data())
def test_the_window_never_moves_back_and_is_always_kept(
    isn: int, scale: int, mss: int, data: st.DataObject
) -> None:
    """A guest that fills every window it is offered, over a host of any slowness.

    The right edge stays where it was or moves on, but for less than one unit of the scale;
    what is inside it is accepted at once; and the queue is bounded by the capacity.
    """
    receiver, server = receiver_at(isn, scale, mss), Server()
    unit = 1 << scale
    advertised = receiver.right_edge
    for _ in range(data.draw(st.integers(1, 30))):
        room = advertised - receiver.position
        size = data.draw(st.sampled_from([1, mss // 2, mss, room])) if room else 0
        size = min(size, room)
        start = receiver.position
        chunk = STREAM[start % 500_000 :][:size]
        accept(receiver, isn, start, chunk)
        assert receiver.position == start + len(chunk), "advertised and not accepted"
        server.limit = data.draw(st.sampled_from([0, 1, 100, mss, 1 << 30]))
        receiver.drain(server.send)
        window = receiver.window()
        assert 0 <= window <= 0xFFFF
        edge = receiver.position + (window << scale)
        assert edge > advertised - unit
        assert edge <= receiver.right_edge, "more advertised than will be accepted"
        advertised = max(advertised, edge)
        assert receiver.queued <= receiver.capacity + ROUNDING_ROOM + mss
        assert receiver.right_edge - receiver.position + receiver.queued <= (
            receiver.capacity + ROUNDING_ROOM + unit
        )


def test_single_octets_into_a_full_queue_do_not_stretch_it() -> None:
    """Rounding up costs a little room with each octet: it must come to an end."""
    receiver, server = receiver_at(0), Server(0)
    receiver.capacity = 1 << 14
    while window := receiver.window():
        assert 0 <= receiver.right_edge - receiver.position - window * UNIT < UNIT
        accept(receiver, 0, receiver.position, b"x")
        receiver.drain(server.send)
        assert receiver.queued <= (1 << 14) + ROUNDING_ROOM + UNIT


def test_a_window_moves_by_a_segment_or_not_at_all() -> None:
    """RFC 9293, 3.8.6.2.2: no silly windows; passt cf1925f: never less than an MSS."""
    receiver, server = receiver_at(0), Server(0)
    while window := receiver.window():
        size = min(window << WINDOW_SCALE, len(STREAM))
        accept(receiver, 0, receiver.position, STREAM[:size])
        receiver.drain(server.send)
    server.limit = MSS // 2
    receiver.drain(server.send)
    assert receiver.window() == 0
    assert not receiver.window_update_due()
    server.limit = 1 << 30
    receiver.drain(server.send)
    assert receiver.window_update_due()
    assert receiver.window() << WINDOW_SCALE >= MSS


@pytest.mark.parametrize(("taken", "edge"), [(MSS - 1, 10_000), (MSS, 10_000 + MSS)])
def test_a_window_moves_from_a_segment_on(taken: int, edge: int) -> None:
    """To the octet."""
    receiver, server = Receiver(MSS, Counters(), capacity=10_000), Server(taken)
    receiver.begin(0, scaled=False)
    accept(receiver, 0, 0, STREAM[:5000])
    receiver.drain(server.send)
    assert receiver.position + receiver.window() == receiver.right_edge == edge


@pytest.mark.parametrize(("capacity", "window"), [(UNIT, 257), (UNIT - 1, 256)])
def test_rounding_up_costs_64_kib_at_most(capacity: int, window: int) -> None:
    """Beyond what there is room for; a queue that is fuller rounds down."""
    receiver = receiver_at(0)
    receiver.capacity = capacity
    receiver.right_edge = ROUNDING_ROOM + 100
    assert receiver.window() == window
    assert receiver.right_edge == max(ROUNDING_ROOM + 100, (window << WINDOW_SCALE))


def test_without_scaling_a_drained_queue_is_no_news() -> None:
    """A window of 65535 cannot grow: repeating it would read as a duplicate acknowledgment."""
    receiver, server = receiver_at(0, scale=0), Server(0)
    accept(receiver, 0, 0, STREAM[:1000])
    receiver.drain(server.send)
    assert receiver.window() == 0xFFFF
    server.limit = 100
    receiver.drain(server.send)
    assert not receiver.window_update_due()


def test_tiny_segments_in_disorder_cost_a_bounded_number_of_objects() -> None:
    """Every second octet of a window: the store is full after so many runs, and still right."""
    receiver, server = receiver_at(0), Server()
    for start in range(1, 4 * OUT_OF_ORDER_RUNS, 2):
        accept(receiver, 0, start, STREAM[start : start + 1])
    assert len(receiver.out_of_order) == OUT_OF_ORDER_RUNS
    accept(receiver, 0, 0, STREAM[: 4 * OUT_OF_ORDER_RUNS])
    receiver.drain(server.send)
    assert server.received == STREAM[: 4 * OUT_OF_ORDER_RUNS]


def test_all_of_a_large_window_is_kept_behind_one_gap() -> None:
    """One lost segment at the head of a window does not cost the segments behind it."""
    receiver, server = Receiver(536, Counters(), capacity=len(STREAM)), Server()
    receiver.begin(0, scaled=True)
    receiver.window()
    for start in range(536, len(STREAM), 536):
        accept(receiver, 0, start, STREAM[start : start + 536])
    accept(receiver, 0, 0, STREAM[:536])
    receiver.drain(server.send)
    assert server.received == STREAM


def test_what_the_host_does_not_take_outlives_the_turn() -> None:
    """The octets of a turn are views of a buffer that is used again."""
    receiver, server = receiver_at(0), Server(3)
    buffer = bytearray(b"abcdef")
    receiver.accept(1, memoryview(buffer), 6)
    receiver.drain(server.send)
    buffer[:] = b"\xee" * 6
    for _ in range(3):
        receiver.drain(server.send)
    assert server.received == b"abcdef"


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 3000)), max_size=20))
def test_short_writes_lose_nothing(turns: list[tuple[int, int]]) -> None:
    """passt a947839: whatever each write leaves is offered again, first, and once."""
    receiver, server = receiver_at(7), Server()
    position = 0
    for size, limit in turns:
        middle = position + size // 2
        accept(receiver, 7, position, STREAM[position:middle])
        accept(receiver, 7, middle, STREAM[middle : position + size])
        position += size
        server.limit = limit
        receiver.drain(server.send)
        assert receiver.queued == position - len(server.received)
    server.limit = 1 << 30
    receiver.drain(server.send)
    assert server.received == STREAM[:position]


def test_a_server_that_takes_everything_earns_a_larger_window() -> None:
    """And one that does not keeps the first one; there is a ceiling for all."""
    receiver, server = receiver_at(0), Server()
    for _ in range(200):
        octets = STREAM[: receiver.right_edge - receiver.position]
        accept(receiver, 0, receiver.position, octets)
        receiver.drain(server.send)
        receiver.window()
    assert receiver.capacity == CAPACITY_MAXIMUM


def test_the_window_grows_when_a_whole_one_was_taken_without_a_stop() -> None:
    """Not an octet earlier; and what the server leaves lying begins the count anew."""
    receiver, server = receiver_at(0), Server()
    step = CAPACITY_INITIAL // 8

    def server_takes(octets: int) -> int:
        accept(receiver, 0, receiver.position, STREAM[:octets])
        receiver.drain(server.send)
        receiver.window()
        return receiver.capacity

    for _ in range(7):
        assert server_takes(step) == CAPACITY_INITIAL
    assert server_takes(step - 1) == CAPACITY_INITIAL
    server.limit = 0
    assert server_takes(1) == CAPACITY_INITIAL
    server.limit = 1 << 30
    for _ in range(7):
        assert server_takes(step) == CAPACITY_INITIAL
    assert server_takes(step - 2) == CAPACITY_INITIAL
    assert server_takes(1) == 2 * CAPACITY_INITIAL


@pytest.mark.parametrize("scale", [0, WINDOW_SCALE])
def test_the_largest_capacity_fits_the_window_field(scale: int) -> None:
    """The field has 16 bits whatever the capacity has grown to."""
    receiver = receiver_at(0, scale)
    receiver.capacity = CAPACITY_MAXIMUM
    assert receiver.window() <= 0xFFFF
    assert receiver.right_edge == min(CAPACITY_MAXIMUM, 0xFFFF << scale)


def test_nothing_is_left_after_a_reset() -> None:
    """There is nobody to take it."""
    receiver = receiver_at(0)
    accept(receiver, 0, 0, b"hello")
    accept(receiver, 0, 100, b"far")
    receiver.discard()
    assert receiver.queued == 0
    assert not receiver.out_of_order
    server = Server()
    receiver.drain(server.send)
    assert not server.received


# -- what is told beside the acknowledgment (RFC 2018, RFC 2883)


def told(receiver: Receiver, isn: int = 0) -> list[tuple[int, int]]:
    """The blocks of the next ACK, as positions."""
    edges = [(edge - add(isn, 1)) % MODULUS for edge in receiver.selective_edges()]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_the_newest_block_stands_first_and_the_others_in_their_order() -> None:
    """RFC 2018, 4: so that each block is repeated in several ACKs, of which some may be lost."""
    receiver = receiver_at(0)
    assert not receiver.untold
    for start in (20, 40, 60, 80, 100):
        accept(receiver, 0, start, STREAM[start : start + 10])
        assert receiver.untold
    assert told(receiver) == [(100, 110), (80, 90), (60, 70), (40, 50)]
    accept(receiver, 0, 70, STREAM[70:80])
    assert told(receiver) == [(60, 90), (100, 110), (40, 50), (20, 30)]
    accept(receiver, 0, 0, STREAM[:100])
    assert told(receiver) == []


def test_what_came_twice_is_told_of_first_and_once() -> None:
    """RFC 2883, 4: below the acknowledgment, or within the block that follows."""
    receiver = receiver_at(0)
    accept(receiver, 0, 0, STREAM[:50])
    assert not receiver.untold
    receiver.on_duplicate(add(0, 1 + 10), 20)
    assert receiver.untold
    assert told(receiver) == [(10, 30)]
    assert not receiver.untold
    accept(receiver, 0, 100, STREAM[100:200])
    assert told(receiver) == [(100, 200)]
    accept(receiver, 0, 120, STREAM[120:130])
    assert told(receiver) == [(120, 130), (100, 200)]
    accept(receiver, 0, 40, STREAM[40:60])
    assert told(receiver) == [(40, 50), (100, 200)]
    receiver.on_duplicate(add(0, 1 + 60), 1)
    receiver.on_duplicate(add(0, 1 + 55), 6)
    receiver.on_duplicate(add(0, 1 + 55), 0)
    assert told(receiver) == [(100, 200)], "not what lies ahead, nor nothing"


@pytest.mark.parametrize("asked", [True, False])
def test_what_follows_on_octets_that_were_not_kept(asked: bool) -> None:
    """A guest with too many gaps, whose latest segments were all dropped: what comes then is kept
    where it continues a run, and told of."""
    receiver = receiver_at(0)
    for start in range(10, 10 + 3 * OUT_OF_ORDER_RUNS, 3):
        accept(receiver, 0, start, b"!")
    end = 10 + 3 * OUT_OF_ORDER_RUNS - 2
    for start in range(2000, 2024, 3):
        accept(receiver, 0, start, b"?")
    accept(receiver, 0, end - 2, b"?!")
    if asked:
        assert told(receiver) == []
    accept(receiver, 0, end, b"more")
    assert told(receiver) == [(end - 1, end + 4)]


def test_octets_that_follow_any_run_make_it_longer() -> None:
    """Not only the last one: neighbours cost one object, wherever they are."""
    receiver = receiver_at(0)
    for start, end in ((10, 20), (30, 40), (50, 60), (40, 45), (20, 25), (60, 70)):
        accept(receiver, 0, start, STREAM[start:end])
    assert [(start, start + len(octets)) for start, octets in receiver.out_of_order] == [
        (10, 25),
        (30, 45),
        (50, 70),
    ]


def test_octets_that_follow_no_run_are_one_of_their_own() -> None:
    """However long the others are: 40 is as far behind the last one as the first one is long."""
    receiver = receiver_at(0)
    for start, end in ((10, 20), (30, 35), (40, 45)):
        accept(receiver, 0, start, STREAM[start:end])
    assert kept(receiver) == [(10, STREAM[10:20]), (30, STREAM[30:35]), (40, STREAM[40:45])]


def test_the_newest_block_is_told_first_though_its_beginning_was_not_kept() -> None:
    """There was no room for that, and the block had been told of long ago (RFC 2018, 4)."""
    receiver = receiver_at(0)
    last = 10 + 3 * OUT_OF_ORDER_RUNS
    for start in (last, *range(10, last - 3, 3)):
        accept(receiver, 0, start, b"!")
    assert len(receiver.out_of_order) == OUT_OF_ORDER_RUNS
    accept(receiver, 0, last - 1, b"?!")
    accept(receiver, 0, last + 1, b"more")
    assert told(receiver)[0] == (last, last + 5)


def test_half_of_a_window_that_is_not_scaled_is_worth_telling() -> None:
    """Two large segments would be more than such a window can ever be."""
    receiver, server = Receiver(65480, Counters(), capacity=65535), Server()
    receiver.begin(0, scaled=False)
    receiver.accept(1, bytes(65535), 65535)
    receiver.window()
    for takes, due in ((0, False), (30_000, False), (3_000, True)):
        server.limit = takes
        receiver.drain(server.send)
        assert receiver.window_update_due() is due


def test_what_came_twice_costs_a_bounded_memory() -> None:
    """A guest that repeats everything in pieces, and may not even hear of it."""
    receiver = receiver_at(0)
    accept(receiver, 0, 0, STREAM[:1000])
    for start in range(0, 1000, 2):
        receiver.on_duplicate(add(0, 1 + start), 1)
    assert len(receiver.duplicates) == DUPLICATES_TOLD == 64


def test_with_something_twice_three_blocks_are_left() -> None:
    """The options have room for four."""
    receiver = receiver_at(0)
    for start in (20, 40, 60, 80):
        accept(receiver, 0, start, STREAM[start : start + 10])
    accept(receiver, 0, 40, STREAM[40:50])
    assert told(receiver) == [(40, 50), (40, 50), (80, 90), (60, 70)]


def test_arrivals_beyond_a_gap_are_not_remembered_without_end() -> None:
    """Nobody asks for them where the guest has not offered to hear."""
    receiver = receiver_at(0)
    for start in range(10, 2000, 2):
        accept(receiver, 0, start, STREAM[start : start + 1])
    assert len(receiver._recent) <= 8


def test_eight_arrivals_beyond_a_gap_are_remembered() -> None:
    """Those of two ACKs: where the newest four have become one block, older ones are told of."""
    receiver = receiver_at(0)
    for start in (10, 20, 30, 40, 50, 60, 70, 80, 75, 65, 55):
        accept(receiver, 0, start, STREAM[start : start + 5])
    assert told(receiver) == [(50, 85), (40, 45)]


@given(isn=isns, arrivals=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=40))
def test_what_is_told_is_what_has_come(isn: int, arrivals: list[tuple[int, int]]) -> None:
    """Every block is as large as it can be, no two are the same, and the newest is the first."""
    receiver = receiver_at(isn)
    came = bytearray(100)
    crowded = False
    for start, length in arrivals:
        fresh = came.find(0, start, start + length) != -1
        beyond = start > receiver.position
        accept(receiver, isn, start, STREAM[start : start + length])
        came[start : start + length] = b"\1" * length
        assert receiver.position == came.index(0)
        blocks = told(receiver, isn)
        runs = [
            match.span() for match in re.finditer(b"\1+", came) if match.start() > receiver.position
        ]
        crowded = crowded or len(runs) > 4
        if not fresh or start < receiver.position - length:
            blocks = blocks[1:] if blocks and blocks[0] not in runs else blocks
        plain = [block for block in blocks if block in runs]
        assert len(blocks) <= 4
        if beyond and fresh:
            assert plain[0][0] <= start < plain[0][1]
        if not crowded and fresh and beyond:
            assert sorted(plain) == runs


def test_what_is_queued_is_what_was_left_and_what_has_come_since() -> None:
    """The backlog of earlier turns, and the pieces of this one."""
    receiver, server = receiver_at(0), Server(limit=30)
    accept(receiver, 0, 0, STREAM[:100])
    receiver.drain(server.send)
    accept(receiver, 0, 100, STREAM[100:150])
    assert receiver.queued == 120
    assert receiver.window() == (CAPACITY_INITIAL - 120 + UNIT - 1) // UNIT


@pytest.mark.parametrize(
    ("mss", "taken", "due"), [(1460, 2919, False), (1460, 2920, True), (65480, 130_960, True)]
)
@pytest.mark.parametrize("scale", [0, WINDOW_SCALE])
def test_a_window_update_is_due_from_two_segments_on(
    mss: int, taken: int, due: bool, scale: int
) -> None:
    """Or from half of the capacity on, if that is less: RFC 9293, 3.8.6.2.2. Whether or not the
    window is scaled, to the octet."""
    receiver, server = receiver_at(0, scale, mss), Server()
    receiver.window()
    accept(receiver, 0, 0, STREAM[:taken])
    receiver.drain(server.send)
    assert receiver.window_update_due() is due


def test_each_growth_is_earned_anew() -> None:
    """What was taken for the first doubling does not count for the second."""
    receiver, server = receiver_at(0), Server()
    position = 0

    def takes(length: int) -> None:
        nonlocal position
        while length:
            receiver.window()
            size = min(length, MSS)
            accept(receiver, 0, position, bytes(size))
            receiver.drain(server.send)
            position, length = position + size, length - size

    takes(CAPACITY_INITIAL)
    assert receiver.capacity == 2 * CAPACITY_INITIAL
    takes(2 * CAPACITY_INITIAL - 1)
    assert receiver.capacity == 2 * CAPACITY_INITIAL
    takes(1)
    assert receiver.capacity == 4 * CAPACITY_INITIAL
