"""DNS over TCP (RFC 7766), as the host half of a guest's connection to the name server.

Knows the two-byte lengths and nothing of TCP: bytes of the guest's go in, framed answers come
out by a callback, in the order in which they are ready (RFC 7766, 6.2.1.1). What does not look
like DNS ends the connection.
"""

from collections.abc import Callable

from attrs import define, field

LENGTH_SIZE = 2  # bytes (RFC 1035, 4.2.2)

PIPELINE_MAXIMUM = 128
"""Queries of one connection that may wait for their answers: more than stub resolvers send."""

ReplyCallback = Callable[[bytes], None]


@define
class DnsStream:
    """One connection. `on_query` is `DnsForwarder.on_query`; `write` takes bytes for the guest.

    `close` is called once, at the end: when the guest has finished and has all its answers, or at
    once where it broke the rules. Nothing is written after it.
    """

    on_query: Callable[[bytes, str, ReplyCallback, float], bool]
    write: Callable[[bytes], None]
    close: Callable[[], None]
    _buffer: bytearray = field(factory=bytearray, init=False)
    _unanswered: int = field(default=0, init=False)
    _finishing: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)

    def feed(self, data: bytes | memoryview, now: float) -> None:
        """Take bytes of the guest's, in any pieces; each complete message is a query.

        What is kept is at most one incomplete message, so less than 65537 bytes.
        """
        if self._closed or self._finishing:
            return
        self._buffer += data
        while len(self._buffer) >= LENGTH_SIZE and not self._closed:
            length = int.from_bytes(self._buffer[:LENGTH_SIZE], "big")
            if length == 0 or self._unanswered == PIPELINE_MAXIMUM:
                self._close()
                return
            end = LENGTH_SIZE + length
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[LENGTH_SIZE:end])
            del self._buffer[:end]
            self._unanswered += 1
            if not self.on_query(message, "tcp", self._on_reply, now):
                self._close()

    def finish(self) -> None:
        """The guest sends no more: close when the last answer is written."""
        self._finishing = True
        self._close_if_done()

    def abandon(self) -> None:
        """The connection is gone: answers that still come are nobody's."""
        self._closed = True
        self._buffer.clear()

    def _on_reply(self, message: bytes) -> None:
        if self._closed:
            return
        self._unanswered -= 1
        self.write(len(message).to_bytes(LENGTH_SIZE, "big") + message)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._finishing and self._unanswered == 0 and not self._closed:
            self._close()

    def _close(self) -> None:
        self.abandon()
        self.close()
