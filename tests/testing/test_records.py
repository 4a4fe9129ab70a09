"""Records are asked as one would ask a person, and an answer that is empty explains itself."""

import pytest

from qemu_usernat.testing.records import LISTED_MAXIMUM, FlowRecord, Outcome, Records


def flow(port: int, outcome: Outcome = Outcome.OPEN) -> FlowRecord:
    return FlowRecord(
        "tcp", ("10.0.2.15", 40000), ("203.0.113.10", port), "a.example", 0.0, outcome
    )


def test_where_finds_what_has_these_values() -> None:
    """All of them at once; slices and loops as of any sequence."""
    flows = Records("flows", [flow(80), flow(443), flow(443, Outcome.REFUSED)])
    assert [each.port for each in flows] == [80, 443, 443]
    assert len(flows.where(port=443)) == 2
    (refused,) = flows.where(port=443, outcome=Outcome.REFUSED)
    assert refused is flows[-1] is flows[1:][1]
    assert not refused.allowed


def test_nothing_found_says_what_there_was() -> None:
    """The reader of a failed assertion sees the port that it was instead."""
    flows = Records("flows", [flow(80)])
    assert repr(flows.where(port=443, name="a.example")) == (
        "<no flows with port=443, name='a.example', among 1:\n"
        "  <tcp 10.0.2.15:40000 → 203.0.113.10:80 (a.example), open, 0 octets out, 0 in>>"
    )
    assert repr(Records("flows").where(port=443)) == "<no flows with port=443>"
    assert repr(flows).startswith("<1 flows:\n  <tcp ")


def test_an_attribute_that_no_record_has_is_an_error() -> None:
    """A typing mistake is no empty answer."""
    with pytest.raises(AttributeError, match="prot"):
        Records("flows", [flow(80)]).where(prot=80)


def test_a_long_list_shows_its_end() -> None:
    """What happened last is what failed, as a rule."""
    many = repr(Records("flows", [flow(port) for port in range(1, LISTED_MAXIMUM + 4)]))
    assert many.count("\n") == LISTED_MAXIMUM + 1
    assert "(3 earlier ones left out)" in many
    assert ":3 (" not in many
    assert ":4 (" in many
