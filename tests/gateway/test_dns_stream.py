"""DNS over one of the guest's TCP connections, in whatever pieces it comes."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.gateway.dns_stream import PIPELINE_MAXIMUM, DnsStream


class Connection:
    """A stream, the queries that came out of it, and what was written to the guest."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.queries: list[tuple[bytes, str, float]] = []
        self.answers: list[Callable[[bytes], None]] = []
        self.written = b""
        self._closings = 0
        self.accepts = accepts
        self.stream = DnsStream(self._query, self._write, self._close)

    def _query(
        self, message: bytes, transport: str, reply: Callable[[bytes], None], now: float
    ) -> bool:
        self.queries.append((message, transport, now))
        self.answers.append(reply)
        return self.accepts

    def _write(self, data: bytes) -> None:
        assert not self._closings
        self.written += data

    def _close(self) -> None:
        self._closings += 1

    def closings(self) -> int:
        """How often the stream closed: once at most."""
        return self._closings

    def messages(self) -> list[bytes]:
        return [message for message, _, _ in self.queries]


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=10),
    st.lists(st.integers(1, 30), min_size=1, max_size=10),
)
def test_queries_come_out_whole_however_they_are_cut(
    messages: list[bytes], cuts: list[int]
) -> None:
    """Pipelined queries in pieces of any size are the same queries, in order."""
    connection, rest = Connection(), framed(*messages)
    n = 0
    while rest:
        size = cuts[n % len(cuts)]
        connection.stream.feed(memoryview(rest)[:size], 7.0)
        rest, n = rest[size:], n + 1
    assert connection.queries == [(message, "tcp", 7.0) for message in messages]
    assert not connection.closings()


def test_answers_are_framed_in_the_order_of_their_coming() -> None:
    """A slow name does not hold up a quick one (RFC 7766)."""
    connection = Connection()
    connection.stream.feed(framed(b"slow", b"quick"), 0.0)
    connection.answers[1](b"quickly")
    connection.answers[0](b"slowly")
    assert connection.written == framed(b"quickly", b"slowly")


def test_the_largest_message_passes() -> None:
    """65535 bytes, in both directions."""
    connection, large = Connection(), bytes(65535)
    connection.stream.feed(framed(large), 0.0)
    assert connection.messages() == [large]
    connection.answers[0](large)
    assert connection.written == framed(large)


def test_a_message_of_no_length_closes() -> None:
    """What does not look like DNS is not waited for."""
    connection = Connection()
    connection.stream.feed(framed(b"good") + b"\0\0" + framed(b"more"), 0.0)
    assert connection.messages() == [b"good"]
    assert connection.closings() == 1
    connection.stream.feed(framed(b"later"), 0.0)
    connection.answers[0](b"late")
    assert connection.messages() == [b"good"]
    assert connection.written == b""


def test_what_is_no_query_closes() -> None:
    """A message that gets no answer would keep the connection for ever."""
    connection = Connection(accepts=False)
    connection.stream.feed(framed(b"response", b"query"), 0.0)
    assert connection.messages() == [b"response"]
    assert connection.closings() == 1


def test_a_guest_that_asks_without_end_is_closed() -> None:
    """Only so many queries wait at once."""
    connection = Connection()
    connection.stream.feed(framed(*[b"q"] * PIPELINE_MAXIMUM), 0.0)
    assert not connection.closings()
    connection.answers[0](b"a")
    connection.stream.feed(framed(b"q"), 0.0)
    assert not connection.closings()
    connection.stream.feed(framed(b"q"), 0.0)
    assert connection.closings() == 1
    assert len(connection.queries) == PIPELINE_MAXIMUM + 1


@pytest.mark.parametrize("answers_first", [True, False])
def test_a_half_closed_connection_ends_after_its_last_answer(answers_first: bool) -> None:
    """A guest that shuts its side down after asking still hears everything."""
    connection = Connection()
    connection.stream.feed(framed(b"one", b"two"), 0.0)
    if answers_first:
        connection.answers[0](b"1")
    connection.stream.finish()
    assert not connection.closings()
    for answer in connection.answers[answers_first:]:
        answer(b"x")
    assert connection.closings() == 1
    assert connection.written == framed(b"1" if answers_first else b"x", b"x")


def test_a_connection_that_asks_nothing_ends_at_once() -> None:
    """Connect and shut down: closed, and half a query with it."""
    connection = Connection()
    connection.stream.feed(framed(b"unfinished")[:5], 0.0)
    connection.stream.finish()
    assert connection.closings() == 1


def test_answers_for_a_connection_that_is_gone_go_nowhere() -> None:
    """A guest that resets its connection does not hear of it again."""
    connection = Connection()
    connection.stream.feed(framed(b"one"), 0.0)
    connection.stream.abandon()
    connection.answers[0](b"late")
    connection.stream.finish()
    assert connection.written == b""
    assert not connection.closings()
