"""The short way of reading a query, beside the long way by dnspython and dnspython's own."""

import contextlib

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.gateway import dns_message
from qemu_usernat.primitives.errors import Malformed

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=6).map(
    lambda labels: dns.name.Name([*labels, b""]) if sum(map(len, labels)) < 240 else dns.name.root
)
option_codes = st.sampled_from([dns.edns.OptionType.make(n) for n in (3, 8, 10, 11, 12, 65001)])
options: st.SearchStrategy[dns.edns.Option] = st.builds(
    dns.edns.GenericOption, option_codes, st.binary(max_size=20)
)


@st.composite
def queries(draw: st.DrawFn) -> dns.message.QueryMessage:
    """Queries as resolvers make them, and some as none does."""
    edns = draw(st.sampled_from([-1, 0, 0, 0, 1]))
    query = dns.message.make_query(
        draw(names),
        dns.rdatatype.RdataType(draw(st.sampled_from([1, 2, 5, 28, 41, 65, 127, 128, 255, 256]))),
        draw(st.sampled_from(["IN", "CH", "ANY"])),
        use_edns=edns,
        payload=draw(st.sampled_from([0, 512, 1232, 65535])),
        ednsflags=draw(st.sampled_from([0, 0x8000, 0x4000])) if edns >= 0 else None,
        options=draw(st.lists(options, max_size=3)) if edns >= 0 else None,
        id=draw(st.integers(0, 65535)),
    )
    query.flags = dns.flags.Flag(draw(st.sampled_from([0, 0x100, 0x120, 0x130, 0x140, 0x480])))
    return query


def _broken(wire: bytes, at: int, byte: int) -> bytes:
    return wire[: at % len(wire)] + bytes([byte]) + wire[at % len(wire) + 1 :]


wires = queries().map(lambda query: query.to_wire())
hostile = st.one_of(
    wires,
    st.builds(_broken, wires, st.integers(0, 400), st.integers(0, 255)),
    st.builds(_broken, wires, st.just(12), st.integers(0, 255)),
    st.builds(lambda wire, end: wire[: max(12, end)], wires, st.integers(12, 100)),
    st.builds(lambda wire, more: wire + more, wires, st.binary(max_size=12)),
    st.binary(min_size=12, max_size=80),
)


@given(hostile)
def test_the_short_way_reads_what_the_long_way_reads(message: bytes) -> None:
    """Whatever a guest sends: where the quick reader says anything, it is what dnspython says."""
    quick = dns_message._read_plain(message)
    if quick is not None:
        assert quick == dns_message._read_any(message)


@given(queries())
def test_a_query_is_read_as_dnspython_has_written_it(query: dns.message.QueryMessage) -> None:
    """Name, type, class, EDNS and its size: and the plain ones by the quick reader."""
    wire = query.to_wire()
    read = dns_message._read_plain(wire)
    assert read is not None
    question = query.question[0]
    assert (read.identifier, read.flags) == (query.id, int(query.flags))
    assert read.name == question.name
    assert (read.record_type, read.record_class) == (question.rdtype, question.rdclass)
    assert read.has_edns == (query.edns >= 0)
    assert read.udp_size == max(512, query.payload)
    assert read.dnssec_ok == bool(query.ednsflags & 0x8000)
    folded = question.name.canonicalize().to_wire()
    assert folded is not None
    assert read.folded == folded + read.question[-4:]


@pytest.mark.parametrize(
    ("change", "is_shareable"),
    [
        ({}, True),
        ({"use_edns": 0}, True),
        ({"use_edns": 0, "want_dnssec": True}, True),
        ({"use_edns": 0, "options": [dns.edns.GenericOption("COOKIE", b"12345678")]}, True),
        ({"use_edns": 0, "options": [dns.edns.ECSOption("192.0.2.0", 24)]}, False),
        ({"use_edns": 1}, False),
        ({"flags": dns.flags.RD | dns.flags.TC}, False),
        ({"rdtype": "ANY"}, False),
    ],
)
def test_what_one_is_told_is_told_to_others_only_if_they_asked_the_same(
    change: dict[str, object], is_shareable: bool
) -> None:
    """A subnet in the question (RFC 7871) or what nobody knows makes an answer somebody's own."""
    words: dict[str, object] = {"qname": "www.example", "rdtype": "A", **change}
    query = dns.message.make_query(**words)  # type: ignore[arg-type]
    assert dns_message.read_query(query.to_wire()).is_shareable is is_shareable


def test_a_query_with_more_than_an_opt_record_is_nobody_else_s() -> None:
    """A signature, or anything that is not known here, may change what is answered."""
    query = dns.message.make_query("www.example", "A")
    query.additional.append(dns.rrset.from_text("www.example.", 60, "IN", "TXT", "x"))
    assert not dns_message.read_query(query.to_wire()).is_shareable


@given(st.binary(min_size=12, max_size=60))
def test_nothing_but_malformed_is_raised(message: bytes) -> None:
    """Any bytes are a query or none."""
    with contextlib.suppress(Malformed):
        dns_message.read_query(message)
