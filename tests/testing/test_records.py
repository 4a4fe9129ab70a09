"""Records are asked as one would ask a person, and an answer that is empty explains itself."""

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest

from qemu_usernat.testing import values
from qemu_usernat.testing.internet.records import DnsQuery
from qemu_usernat.testing.records import (
    FLOW_FIELDS,
    LISTED_MAXIMUM,
    QUERY_FIELDS,
    VERDICT_FIELDS,
    FlowRecord,
    Outcome,
    Records,
    Verdict,
)

WHOSE = {"guest": values.one_of(("alice", "bob"))}
SOURCE = ("10.0.2.15", 40000)


def flow(port: int, outcome: Outcome = Outcome.OPEN) -> FlowRecord:
    return FlowRecord("tcp", "bob", SOURCE, ("203.0.113.10", port), "a.example", 0.0, outcome)


def flows_of(flows: Iterable[FlowRecord] = ()) -> Records[FlowRecord]:
    return Records("flows", {**FLOW_FIELDS, **WHOSE}, flows)


def verdicts_of(verdicts: Iterable[Verdict] = ()) -> Records[Verdict]:
    return Records("verdicts", {**VERDICT_FIELDS, **WHOSE}, verdicts)


def queries_of(queries: Iterable[DnsQuery] = ()) -> Records[DnsQuery]:
    return Records("DNS queries", {**QUERY_FIELDS, **WHOSE}, queries)


def test_where_finds_what_has_these_values() -> None:
    """All of them at once; slices and loops as of any sequence."""
    flows = flows_of([flow(80), flow(443), flow(443, Outcome.REFUSED)])
    assert [each.port for each in flows] == [80, 443, 443]
    assert len(flows.where(port=443)) == 2
    (refused,) = flows.where(port=443, outcome=Outcome.REFUSED)
    assert refused is flows[-1] is flows[1:][1]
    assert not refused.allowed
    assert len(flows.where(guest="bob")) == 3
    assert not flows.where(guest="alice")


def test_what_means_the_same_is_found() -> None:
    """Names in any case and with the final dot, an outcome by its word, types of records."""
    flows = flows_of([flow(443)])
    for words in (
        {"host": "A.example."},
        {"name": "A.EXAMPLE"},
        {"outcome": "open"},
        {"host": "a.example", "source": SOURCE, "protocol": "tcp", "address": "203.0.113.10"},
    ):
        assert flows.where(**words), words
    queries = queries_of([DnsQuery("bob", "a.example", "A", "udp", "NOERROR", (), 0.0)])
    assert queries.where(name="A.Example.", type="a", outcome="noerror", guest="bob")


def test_nothing_found_says_what_there_was() -> None:
    """The reader of a failed assertion sees the port that it was instead."""
    flows = flows_of([flow(80)])
    assert repr(flows.where(port=443, name="a.example")) == (
        "<no flows with port=443, name='a.example', among 1:\n"
        "  <tcp 10.0.2.15:40000 → 203.0.113.10:80 (a.example), open, 0 octets out, 0 in>>"
    )
    assert repr(flows_of().where(port=443)) == "<no flows with port=443>"
    assert repr(flows).startswith("<1 flows:\n  <tcp ")


@pytest.mark.parametrize("having", [[], [flow(80)]])
def test_an_attribute_that_no_record_has_is_an_error(having: list[FlowRecord]) -> None:
    """A typing mistake is no empty answer, also where nothing was recorded yet."""
    with pytest.raises(AttributeError, match=r"flows have no 'prot'; allowed: .*protocol"):
        flows_of(having).where(prot=80)


@pytest.mark.parametrize(
    ("make", "words", "error", "says"),
    [
        (flows_of, {"port": "80"}, TypeError, "port is '80'; allowed: a number from 0"),
        (flows_of, {"port": 70000}, ValueError, "port is 70000; allowed: a number from 0 to 65535"),
        (flows_of, {"port": True}, TypeError, "port is True; allowed"),
        (flows_of, {"protocol": "TCP"}, ValueError, "protocol is 'TCP'; allowed: 'tcp'"),
        (flows_of, {"allowed": 0}, TypeError, "allowed is 0; allowed: True or False"),
        (flows_of, {"guest": "Bob"}, ValueError, "guest is 'Bob'; allowed: 'alice', 'bob'"),
        (flows_of, {"guest": SOURCE}, TypeError, "guest is .*; allowed: 'alice', 'bob'"),
        (flows_of, {"host": "http://a.example"}, ValueError, "host is .*; allowed: a name or an"),
        (flows_of, {"host": "203.0.113.999"}, ValueError, "host is .*; allowed: a name or an"),
        (flows_of, {"name": "203.0.113.10"}, ValueError, "name is .*; allowed: a domain name"),
        (flows_of, {"address": "a.example"}, ValueError, "address is .*; allowed: an address"),
        (flows_of, {"destination": "203.0.113.10"}, TypeError, "destination is .*address and port"),
        (flows_of, {"outcome": "Refused"}, ValueError, "outcome is .*; allowed: .*Outcome.REFUSED"),
        (flows_of, {"sent": "many"}, TypeError, "sent is 'many'; allowed: a number"),
        (verdicts_of, {"why": "no.such.reason"}, ValueError, "why is .*; allowed: .*'martian'"),
        (verdicts_of, {"protocol": "UDP"}, ValueError, "protocol is 'UDP'; allowed: 'tcp'"),
        (queries_of, {"type": "AX"}, ValueError, "type is 'AX'; allowed: a type of DNS"),
        (queries_of, {"outcome": "REFUSE"}, ValueError, "outcome is .*; allowed: a response code"),
        (queries_of, {"transport": "tls"}, ValueError, "transport is 'tls'; allowed: 'udp', 'tcp'"),
    ],
)
def test_a_value_that_no_record_could_have_is_an_error(
    make: Callable[[], Records[Any]], words: dict[str, Any], error: type[Exception], says: str
) -> None:
    """``assert not flows.where(port="80")`` could not fail; here nothing was recorded at all."""
    with pytest.raises(error, match=says):
        make().where(**words)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(FlowRecord, FLOW_FIELDS), (Verdict, VERDICT_FIELDS), (DnsQuery, QUERY_FIELDS)],
)
def test_whatever_a_record_says_may_be_asked_for(kind: type, fields: dict[str, Any]) -> None:
    """Its attributes, and what follows from them."""
    known = {field.name for field in attrs.fields(kind)}
    known |= {name for name, value in vars(kind).items() if isinstance(value, property)}
    assert {name for name in known if not name.startswith("_")} == {*fields, "guest"}


def test_a_long_list_shows_its_end() -> None:
    """What happened last is what failed, as a rule."""
    many = repr(flows_of(flow(port) for port in range(1, LISTED_MAXIMUM + 4)))
    assert many.count("\n") == LISTED_MAXIMUM + 1
    assert "(3 earlier ones left out)" in many
    assert ":3 (" not in many
    assert ":4 (" in many
