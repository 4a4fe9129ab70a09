"""Sequence numbers wrap at 2**32 and are compared by their distance (RFC 9293, 3.4)."""

from hypothesis import example, given
from hypothesis import strategies as st

from qemu_usernat.primitives.sequence import MODULUS, add, difference

numbers = st.integers(0, MODULUS - 1)


@given(numbers, st.integers(-(1 << 31), (1 << 31) - 1))
@example(MODULUS - 1, 1)
@example(0, -1)
@example(0, -(1 << 31))
@example(0, (1 << 31) - 1)
def test_a_step_is_the_distance_it_makes(sequence: int, step: int) -> None:
    """However near the wrap, so many octets later is so many octets later."""
    later = add(sequence, step)
    assert 0 <= later < MODULUS
    assert difference(later, sequence) == step


@given(numbers, numbers)
def test_only_one_of_two_numbers_is_ahead(one: int, other: int) -> None:
    """Seen from the other side the distance is the opposite; half way round both are behind."""
    there, back = difference(one, other), difference(other, one)
    assert there == -back or there == back == -(1 << 31)
