"""Random numbers from a supply."""

from collections import Counter

from qemu_usernat.host.chance import BYTES, Chance


def test_numbers_are_spread_over_all_that_may_be() -> None:
    """Identifiers of 16 bits, places of 16: none is favoured, and the supply is filled again."""
    chance = Chance()
    numbers = [chance() for _ in range(8 * BYTES)]
    assert min(numbers) < 64
    assert max(numbers) > 65535 - 64
    assert len(set(numbers)) > 20_000
    places = Counter(chance.below(16) for _ in range(16_000))
    assert set(places) == set(range(16))
    assert 700 < min(places.values()) <= max(places.values()) < 1300


def test_two_supplies_have_nothing_in_common() -> None:
    """Nobody learns another's numbers from his own."""
    first, second = Chance(), Chance()
    assert [first() for _ in range(16)] != [second() for _ in range(16)]
