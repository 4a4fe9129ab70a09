"""What follows a ClientHello: a second one must be for the same server.

A server of TLS 1.3 that likes none of the key shares asks for another hello (HelloRetryRequest,
RFC 8446, 4.1.4), and the guest decides what is in that one: a guest that sends no usable share
has its first hello judged and its second believed, as servers look at the name again. So
records are watched until no hello can come any more: until another handshake message (TLS 1.2
goes on with those), or application data that is no early data. Early data may precede the second
hello, as far as servers skip it.
"""

from typing import Final

from attrs import define, field

from qemu_usernat.policy.reading import NEED_MORE, Buffer, Unreadable
from qemu_usernat.policy.tls_hello import (
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    CLIENT_HELLO,
    HANDSHAKE,
    HEARTBEAT,
    MESSAGE_HEADER,
    RECORD_HEADER,
    Hello,
    HelloReader,
)

EARLY_DATA_MAXIMUM: Final = 64 * 1024
"""Octets of early data behind which no server looks for a hello: most skip 16 KiB."""

_VERSION_AT = MESSAGE_HEADER  # of the legacy_version's first octet in a client_hello
_LENGTH_HIGH_MAXIMUM = 2  # first octet of a hello's length: OpenSSL takes hellos up to 128 KiB

REASONS: Final = {
    "tls.another_name": "A second hello of the connection names another server.",
    "tls.no_record": "What follows the hello is no record of TLS.",
}


@define(eq=False)
class HelloStream:
    """A guest's octets from the first of a connection whose hello `first` was admitted.

    `allowed` of them may be forwarded; once `is_done`, all that come may, unseen. If `why` is not
    None, the connection is to be closed, and no further octet goes.
    """

    first: Hello
    allowed: int = field(init=False)
    is_done: bool = field(default=False, init=False)
    why: str | None = field(default=None, init=False)
    _held: bytearray = field(factory=bytearray, init=False)
    """What is not yet allowed, if it is not yet known to be skipped."""
    _skip: int = field(init=False)
    """Octets of what was judged that have not come."""
    _early: int = field(default=0, init=False)
    """Octets of application data that may have been early."""
    _reader: HelloReader | None = field(default=None, init=False)
    """Of a second hello, if one may have begun."""
    _read: int = field(default=0, init=False)
    """Octets held that the reader has."""

    def __attrs_post_init__(self) -> None:
        self.allowed = self._skip = self.first.length

    def feed(self, octets: Buffer) -> None:
        """Take in what came next."""
        view = memoryview(octets)
        if self.why is None and not self.is_done:
            skipped = min(self._skip, len(view))
            self._skip -= skipped
            self._held += view[skipped:]
            while self._held and self._step():
                pass

    def _step(self) -> bool:
        """Judge one record, or one hello, of what is held; whether there may be more to judge."""
        if self._reader is not None:
            return self._read_hello(self._reader)
        if len(self._held) < RECORD_HEADER:
            return False
        record_type = self._held[0]
        if not CHANGE_CIPHER_SPEC <= record_type <= HEARTBEAT:
            return self._close("tls.no_record")
        if record_type == HANDSHAKE:
            self._reader = HelloReader()
            return True
        length = RECORD_HEADER + int.from_bytes(self._held[3:RECORD_HEADER], "big")
        if record_type == APPLICATION_DATA:
            self._early += length
            if not self.first.has_early_data or self._early > EARLY_DATA_MAXIMUM:
                return self._finish()
        return self._allow(length)

    def _read_hello(self, reader: HelloReader) -> bool:
        """Go on with a handshake message that may be a second hello."""
        outcome = reader.feed(memoryview(self._held)[self._read :])
        self._read = len(self._held)
        if _is_other_message(bytes(reader.message[: _VERSION_AT + 1])):
            return self._finish()
        if outcome is NEED_MORE:
            return False
        if isinstance(outcome, Unreadable):
            return self._close(outcome.why)
        if not isinstance(outcome, Hello) or outcome.server_name != self.first.server_name:
            return self._close("tls.another_name")
        self._reader, self._read = None, 0
        return self._allow(outcome.length)

    def _allow(self, length: int) -> bool:
        """The next `length` octets may go, whether or not they have come."""
        self.allowed += length
        self._skip = max(0, length - len(self._held))
        del self._held[:length]
        return True

    def _finish(self) -> bool:
        self.is_done = True
        self._held.clear()
        return False

    def _close(self, why: str) -> bool:
        self.why = why
        self._held.clear()
        return False


def _is_other_message(message: bytes) -> bool:
    """Whether what begins so, plaintext or encrypted, is no hello that a server would take."""
    return (
        message[:1] not in (b"", bytes((CLIENT_HELLO,)))
        or message[1:2] > bytes((_LENGTH_HIGH_MAXIMUM,))
        or message[_VERSION_AT:] not in (b"", b"\x03")
    )
