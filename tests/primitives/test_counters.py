"""Counters and errors share their names."""

from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed


def test_an_event_is_counted_under_its_name() -> None:
    """Once, or so many times at once; what never happened is zero."""
    counters = Counters()
    counters.count("tcp.refused")
    counters.count("tcp.refused", 3)
    assert (counters["tcp.refused"], counters["tcp.never"]) == (4, 0)


def test_what_is_malformed_says_why_by_the_counter_s_name() -> None:
    """The reason of a refusal can be counted as it is."""
    error = Malformed("ipv4.bad_checksum")
    assert (error.reason, str(error)) == ("ipv4.bad_checksum", "ipv4.bad_checksum")
