"""What an answer costs to read, counted before dnspython reads it."""

import struct

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.gateway.dns_weight import RECORDS_MAXIMUM, is_light
from tests.gateway.test_dns import FIRST, Conversation, alias, ask_for

NAME = "evil.example.com"
QUESTION = dns.message.make_query(NAME, "A").to_wire()
LONG = b"\x01a" * 115 + b"\xc0\x0c"
TO_QUESTION, TO_LONG = b"\xc0\x0c", struct.pack("!H", 0xC000 | len(QUESTION))
HEAVY_TYPES = {"NS": b"", "MX": b"\0\1", "SRV": bytes(6), "RRSIG": bytes(18), "RP": b""}


def answer(*records: tuple[bytes, int, bytes]) -> bytes:
    """Of owner, type and data."""
    header = QUESTION[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0)
    parts = [
        owner + struct.pack("!HHIH", kind, 1, 60, len(data)) + data for owner, kind, data in records
    ]
    return header + QUESTION[12:] + b"".join(parts)


def of_long_names(count: int) -> bytes:
    """Each name another, 117 labels long, in three bytes and a pointer."""
    long = (LONG, 1, bytes(4))
    others = [(b"\x01" + bytes([97 + n % 26]) + TO_LONG, 1, n.to_bytes(4)) for n in range(count)]
    return answer(long, *others)


def of_long_data(kind: str, count: int) -> bytes:
    """Names of 117 labels as data, in two bytes each."""
    number = int(dns.rdatatype.from_text(kind))
    long = (LONG, 1, bytes(4))
    return answer(long, *[(TO_QUESTION, number, HEAVY_TYPES[kind] + TO_LONG)] * count)


@pytest.mark.parametrize(
    "heavy",
    [of_long_names(300), of_long_names(5000), *(of_long_data(kind, 40) for kind in HEAVY_TYPES)],
)
def test_an_answer_that_takes_long_to_read_is_none(heavy: bytes) -> None:
    """A few kilobytes that would hold everybody up for a second are refused unread."""
    assert not is_light(heavy)


def test_large_answers_of_usual_names_are_read() -> None:
    """Hundreds of addresses or services, and the longest alias that there is, are nothing evil."""
    addresses = [(TO_QUESTION, 1, n.to_bytes(4)) for n in range(RECORDS_MAXIMUM)]
    assert is_light(answer(*addresses))
    assert not is_light(answer(*addresses, addresses[0]))
    target = dns.name.from_text("node-17.cluster.local").to_wire() or b""
    assert is_light(answer(*[(TO_QUESTION, 33, bytes(6) + target)] * RECORDS_MAXIMUM))
    longest = dns.name.from_text("a." * 127).to_wire() or b""
    assert is_light(answer(*[(TO_QUESTION, 5, longest)] * 2))


@pytest.mark.parametrize(
    "owner", [b"\xc0\xff", b"\x01a\xc0\x22", b"\x41" + b"a" * 65 + b"\0", b"\x3f"]
)
def test_broken_names_are_no_answer(owner: bytes) -> None:
    """Pointers forward, in circles, labels of no length: an end in bounded time."""
    assert not is_light(answer((owner, 1, bytes(4))))


_owner = st.sampled_from([TO_QUESTION, b"\x01x" + TO_QUESTION, b"\0"])
_records = st.lists(st.tuples(_owner, st.just(16), st.just(b"\3abc")), max_size=5)


@given(_records, st.integers(0, 120), st.binary(min_size=1, max_size=3))
def test_any_bytes_are_light_or_not(
    records: list[tuple[bytes, int, bytes]], at: int, junk: bytes
) -> None:
    """What is whole is light; what is broken raises nothing."""
    whole = answer(*records)
    assert is_light(whole)
    is_light(whole[: 12 + at] + junk + whole[12 + at + len(junk) :])


@pytest.mark.parametrize("heavy", [of_long_names(150), of_long_data("MX", 100)])
def test_what_an_alias_leads_to_holds_nobody_up(heavy: bytes) -> None:
    """A name of the user's that leads to somebody's zone: what is too much work is SERVFAIL."""
    talk = Conversation(FIRST, records=alias("db", NAME))
    talk.query(ask_for("db.internal"), "tcp")
    _, _, question, token = talk.asker.asked[0]
    end = len(QUESTION)
    talk.forwarder.on_answer(
        token, question[:2] + heavy[2:12] + question[12:end] + heavy[end:], 0.0
    )
    assert talk.reply().rcode() == dns.rcode.SERVFAIL
