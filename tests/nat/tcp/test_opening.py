"""What the guest's SYN makes of a flow, and the number that our own octets begin with."""

import pytest

from qemu_usernat.nat.tcp.opening import TcpSettings, initial_sequence, open_flow
from qemu_usernat.nat.tcp.receiver import WINDOW_SCALE
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import MODULUS, add, difference
from qemu_usernat.wire.packets import SYN, TcpSegment
from tests.nat.tcp.conversation import KEY, SECRET, Conversation, Line


def test_the_initial_sequence_number_moves_on_every_4_us() -> None:
    """RFC 6528, 3: M counts in steps of 4 µs, for as long as it likes."""
    first = initial_sequence(KEY, SECRET, 0.0)
    assert difference(initial_sequence(KEY, SECRET, 0.000_008), first) == 2
    assert difference(initial_sequence(KEY, SECRET, 1000.0), first) == 250_000_000


def test_initial_sequence_numbers_are_spread_over_the_whole_space() -> None:
    """RFC 6528, 1: whoever must guess one has 32 bits to guess."""
    found = [
        initial_sequence((KEY[0], port, KEY[2], KEY[3]), SECRET, 0.0) for port in range(1024, 2048)
    ]
    for bit in range(32):
        share = sum(number >> bit & 1 for number in found) / len(found)
        assert 0.4 < share < 0.6
    assert max(found) < MODULUS


@pytest.mark.parametrize(("asked", "used"), [(None, 0), (0, WINDOW_SCALE), (9, WINDOW_SCALE)])
def test_our_windows_are_scaled_for_a_guest_that_knows_of_it(asked: int | None, used: int) -> None:
    """RFC 7323, 2.2: one that has not sent the option reads the field as it stands."""
    assert Conversation(scale=asked).flow.receiver.scale == used


@pytest.mark.parametrize(("ahead", "moved"), [(1, False), (0, True), (-1, True), (-70_000, True)])
def test_numbers_used_a_moment_ago_are_not_used_again(ahead: int, moved: bool) -> None:
    """RFC 9293, 3.10.7.4 (MAY-2): the clock may be behind a connection that has said much."""
    clocked = initial_sequence(KEY, SECRET, 1000.0)
    beyond = add(clocked, -ahead)
    syn = TcpSegment(KEY[1], KEY[3], 1, 0, SYN, 65535)
    settings = TcpSettings(1500, SECRET)
    flow = open_flow(KEY, syn, Line(1, 0, 0), settings, Counters(), 1000.0, beyond)
    assert flow.sender.initial_sequence == (add(beyond, 65_537) if moved else clocked)
