"""After an admitted hello: nothing of the guest's may become a hello for another server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.policy.tls_hello import Hello, read
from qemu_usernat.policy.tls_stream import EARLY_DATA_MAXIMUM, REASONS, HelloStream
from tests.policy.flights import (
    EARLY_DATA,
    NAME,
    PADDING,
    extension,
    hello,
    hello_message,
    pieces,
    record,
    records,
    server_name,
)

CHANGE_CIPHER_SPEC = record(b"\x01", 20, 0x0303)
DATA = record(bytes(60), 23, 0x0303)
CLIENT_KEY_EXCHANGE = record(b"\x10\0\0\x21\x20" + bytes(32), 22, 0x0303)
EVIL = hello(b"evil.example")


def stream_after(first: bytes) -> HelloStream:
    outcome = read(first)
    assert isinstance(outcome, Hello)
    return HelloStream(outcome)


def follow(*following: bytes, first: bytes = hello()) -> HelloStream:
    stream = stream_after(first)
    stream.feed(first + b"".join(following))
    return stream


@pytest.mark.parametrize(
    "following",
    [
        [CHANGE_CIPHER_SPEC, DATA],
        [DATA],
        [CLIENT_KEY_EXCHANGE, CHANGE_CIPHER_SPEC, record(bytes(40))],
        [CHANGE_CIPHER_SPEC, record(b"\x01" * 40)],  # a resumption in TLS 1.2: encrypted
        [CHANGE_CIPHER_SPEC, record(b"\x01\0\0\x40" + b"\x99" * 36)],
        [record(b"\x0b\0\0\x03\0\0\0")],
    ],
)
def test_an_ordinary_handshake_is_watched_for_a_flight(following: list[bytes]) -> None:
    """As soon as no hello can come any more, all goes unseen."""
    stream = follow(*following)
    assert stream.is_done
    assert stream.why is None


def test_the_first_hello_was_judged() -> None:
    """It may go, whether it is fed in one piece or not."""
    stream = stream_after(hello())
    assert stream.allowed == len(hello())
    stream.feed(hello()[:50])
    stream.feed(hello()[50:])
    assert stream.allowed == len(hello())
    assert not stream.is_done
    assert stream.why is None


def test_a_second_hello_for_the_same_server_may_go() -> None:
    """As a server asks for that likes no key share of the first."""
    second = hello(b"PyPI.org", padding=700, size=100)
    stream = follow(CHANGE_CIPHER_SPEC, second)
    assert stream.allowed == len(hello() + CHANGE_CIPHER_SPEC + second)
    assert not stream.is_done
    stream.feed(DATA)
    assert stream.is_done


@pytest.mark.parametrize(
    ("following", "reason"),
    [
        ([EVIL], "tls.another_name"),
        ([CHANGE_CIPHER_SPEC, EVIL], "tls.another_name"),
        ([CHANGE_CIPHER_SPEC * 3, hello(b"evil.example", size=1)], "tls.another_name"),
        ([record(b"\x01\0", 21), EVIL], "tls.another_name"),
        ([hello(), EVIL], "tls.another_name"),
        ([records(hello_message())], "tls.another_name"),
        ([records(hello_message(server_name(NAME, b"evil.example")))], "tls.several_names"),
        ([record(hello_message(server_name(NAME)) * 2)], "tls.trailing"),
        ([record(b"\x01\x02\0\0\x03")], "flight.too_large"),
        ([b"GET / HTTP/1.1\r\n\r\n"], "tls.no_record"),
    ],
)
def test_a_hello_for_another_server_closes_it(following: list[bytes], reason: str) -> None:
    """Judged by its first hello and served by its second: no octet of that may go."""
    stream = follow(*following)
    assert stream.why == reason
    assert not stream.is_done
    octets = hello() + b"".join(following)
    end = octets.find(b"evil.example") if b"evil.example" in octets else stream.allowed
    assert stream.allowed <= end
    stream.feed(DATA)
    assert stream.why == reason


def test_early_data_does_not_hide_a_second_hello() -> None:
    """A server that asks for another hello skips early data until it comes."""
    first = hello(NAME, extension(EARLY_DATA, b""))
    stream = follow(DATA, DATA, EVIL, first=first)
    assert stream.why == "tls.another_name"
    assert stream.allowed == len(first + DATA + DATA)


def test_early_data_is_watched_for_64_kib() -> None:
    """No server skips more, and an honest guest sends much."""
    first = hello(NAME, extension(EARLY_DATA, b""))
    large = record(bytes(2**14 - 5), 23)
    stream = follow(*[large] * (EARLY_DATA_MAXIMUM // 2**14), first=first)
    assert not stream.is_done
    stream.feed(DATA)
    assert stream.is_done


def test_a_record_that_was_judged_by_its_header_flows() -> None:
    """What is only skipped is not held until it is complete."""
    first = hello(NAME, extension(EARLY_DATA, b""))
    stream = follow(record(bytes(1000), 23)[:6], first=first)
    assert stream.allowed == len(first) + 1005


def test_its_reasons_are_reached_here() -> None:
    """The others are those of any hello."""
    assert set(REASONS) == {"tls.another_name", "tls.no_record"}


@given(
    st.lists(
        st.sampled_from(
            [
                *(CHANGE_CIPHER_SPEC, DATA, CLIENT_KEY_EXCHANGE, record(b"\x01\x5a", 21)),
                *(hello(), hello(NAME, size=9), EVIL),
                records(hello_message(extension(PADDING, bytes(99))), 30),
            ]
        ),
        max_size=6,
    ),
    st.lists(st.integers(0), max_size=12),
    st.booleans(),
)
def test_a_cut_changes_nothing(following: list[bytes], cuts: list[int], early: bool) -> None:
    """The same octets may go, and it ends in the same way."""
    first = hello(NAME, extension(EARLY_DATA, b"")) if early else hello()
    whole, cut = follow(*following, first=first), stream_after(first)
    octets = first + b"".join(following)
    for piece in pieces(octets, cuts):
        cut.feed(piece)
        allowed = octets[: cut.allowed]
        assert cut.is_done or b"evil.example" not in allowed
    assert (cut.why, cut.is_done) == (whole.why, whole.is_done)
    assert cut.is_done or cut.allowed == whole.allowed
