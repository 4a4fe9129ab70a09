"""Pinging the gateway, and when it must hold its tongue."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.gateway.icmp import (
    ERRORS_AT_ONCE,
    ERRORS_PER_SECOND,
    EchoResponder,
    ErrorLimiter,
)
from qemu_usernat.primitives.addresses import parse_address
from qemu_usernat.wire.packets import ICMP, TCP, UDP, IcmpMessage, IpPacket

PACKET = IpPacket(
    source=parse_address("10.0.2.15"),
    destination=parse_address("192.0.2.1"),
    protocol=UDP,
    ttl=64,
    identification=1,
    dont_fragment=False,
    more_fragments=False,
    fragment_offset=0,
    header=bytes(20),
    payload=bytes(8),
)


@pytest.fixture
def limiter() -> ErrorLimiter:
    return ErrorLimiter(parse_address("10.0.2.255"))


@given(rest=st.binary(min_size=4, max_size=4), payload=st.binary())
def test_echo_gives_back_exactly_what_was_sent(rest: bytes, payload: bytes) -> None:
    """Identifier, sequence number and every byte of data return unchanged."""
    answer = EchoResponder().answer(IcmpMessage(8, 0, rest, payload), 0.0)
    assert answer == IcmpMessage(0, 0, rest, payload)


def test_the_largest_ping_is_answered() -> None:
    """`ping -s 65507` works."""
    payload = bytes(range(256)) * 255 + bytes(227)
    answer = EchoResponder().answer(IcmpMessage(8, 0, b"\x12\x34\0\x01", payload), 0.0)
    assert answer is not None
    assert answer.payload == payload


@given(type_=st.integers(0, 255), code=st.integers(0, 255))
def test_nothing_but_an_echo_request_is_answered(type_: int, code: int) -> None:
    """Replies, errors, timestamps and nonsense get no answer."""
    answer = EchoResponder().answer(IcmpMessage(type_, code, bytes(4), b""), 0.0)
    assert (answer is not None) == ((type_, code) == (8, 0))


def test_an_ordinary_packet_may_be_reported(limiter: ErrorLimiter) -> None:
    """A datagram, a segment or a ping that cannot be delivered earns an error."""
    assert limiter.may_report(PACKET)
    assert limiter.may_report(evolve(PACKET, protocol=TCP))
    assert limiter.may_report(evolve(PACKET, protocol=ICMP, payload=b"\x08\0" + bytes(6)))
    assert limiter.may_report(evolve(PACKET, more_fragments=True))


@pytest.mark.parametrize("error", [3, 4, 5, 11, 12])
def test_no_error_about_an_error(limiter: ErrorLimiter, error: int) -> None:
    """Two routers must never answer each other's errors for ever."""
    packet = evolve(PACKET, protocol=ICMP, payload=bytes([error, 0]) + bytes(6))
    assert not limiter.may_report(packet)


def test_no_error_about_icmp_that_has_no_type(limiter: ErrorLimiter) -> None:
    """What cannot be told from an error is treated as one."""
    assert not limiter.may_report(evolve(PACKET, protocol=ICMP, payload=b""))


def test_no_error_about_a_later_fragment(limiter: ErrorLimiter) -> None:
    """Only the first fragment of a datagram speaks for it."""
    assert not limiter.may_report(evolve(PACKET, fragment_offset=8))


@pytest.mark.parametrize("destination", ["255.255.255.255", "10.0.2.255", "224.0.0.251"])
def test_no_error_about_what_went_to_many(limiter: ErrorLimiter, destination: str) -> None:
    """A broadcast or multicast that nobody takes is no error."""
    assert not limiter.may_report(evolve(PACKET, destination=parse_address(destination)))


@pytest.mark.parametrize(
    "source",
    ["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "10.0.2.255"],
)
def test_no_error_to_a_source_that_is_not_one_host(limiter: ErrorLimiter, source: str) -> None:
    """An error goes to one machine or to nobody."""
    assert not limiter.may_report(evolve(PACKET, source=parse_address(source)))


def test_a_burst_is_allowed_and_a_flood_is_not(limiter: ErrorLimiter) -> None:
    """A port scan gets its first errors at once, then the sustained rate and no more."""
    at_once = sum(limiter.may_send("link", 100.0) for _ in range(1000))
    assert at_once == ERRORS_AT_ONCE
    flood = sum(limiter.may_send("link", 100.0 + n / 100_000) for n in range(1, 100_001))
    assert flood == pytest.approx(ERRORS_PER_SECOND, abs=2)


def test_quiet_time_fills_the_bucket_but_never_beyond_a_burst(limiter: ErrorLimiter) -> None:
    """After an hour of silence there is one burst again, not an hour's worth."""
    while limiter.may_send("link", 0.0):
        pass
    assert sum(limiter.may_send("link", 3600.0) for _ in range(1000)) == ERRORS_AT_ONCE


def test_one_guest_s_flood_takes_nothing_from_another(limiter: ErrorLimiter) -> None:
    """Each link has its own share, as each interface of a router has."""
    while limiter.may_send("loud", 0.0):
        pass
    assert limiter.may_send("quiet", 0.0)
    limiter.forget("loud")
    assert limiter.may_send("loud", 0.0)
