"""The ClientHello at the start of a TLS connection (RFC 8446, 4.1.2 and 5.1; RFC 5246, 7.4.1.2).

Records are joined before anything is read, for a hello may be cut into records as small as one
octet. A record's version is ignored, as RFC 8446 says and some servers do: what makes a hello is
a handshake record whose message is a client_hello. What else a server might swallow before a
hello (Go's does so with warnings, whatever their version, OpenSSL's with empty records) is
unreadable, as is the hello of SSL 2, which has no names. Extensions that we do not know are
skipped, GREASE (RFC 8701) and key shares of any size among them.

The name is exactly one host_name (RFC 6066, 3). Servers differ in what they make of two
extensions, two names, an unknown type of name or octets left over, so none of these has a name.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

from attrs import define, field, frozen

from qemu_usernat.policy.reading import (
    FLIGHT_MAXIMUM,
    NEED_MORE,
    Buffer,
    NeedMore,
    Unreadable,
    read_name,
)
from qemu_usernat.primitives.errors import Malformed

# Types of records (RFC 8446, 5.1; RFC 6520, 3)
CHANGE_CIPHER_SPEC: Final = 20
ALERT: Final = 21
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23
HEARTBEAT: Final = 24

RECORD_HEADER: Final = 5  # octets: type, version, length
FRAGMENT_MAXIMUM: Final = 2**14  # octets of a record's plaintext (RFC 8446, 5.1)

MESSAGE_HEADER: Final = 4  # octets: type, length (RFC 8446, 4)
CLIENT_HELLO: Final = 1

# Extensions (IANA, TLS ExtensionType Values)
_SERVER_NAME = 0
_ALPN = 16
_EARLY_DATA = 42
_SUPPORTED_VERSIONS = 43
_ECH = (0xFE0D, 0xFFCE)  # encrypted_client_hello (RFC 9849), and what it was as a draft

_HOST_NAME = 0  # the only type of name (RFC 6066, 3)
_RANDOM = 32  # octets
_SESSION_ID_MAXIMUM = 32  # octets

_SSL2_BIT = 0x80  # of the first octet, where a record of SSL 2 has no padding
_SSL2_VERSION = b"\x00\x02"
_MAJOR = 3  # of the versions of TLS, as of SSL 3, and as of those that are still to come

_LENGTHS_BEFORE: Final = {CHANGE_CIPHER_SPEC: 1, ALERT: 2}
"""Length of the records that a server might skip before a hello, whatever their version."""

REASONS: Final[Mapping[str, str]] = {
    "tls.ssl2": "It is a hello of SSL 2, which has no server name.",
    "tls.not_handshake": "A record of another type comes before the hello, or within it.",
    "tls.not_client_hello": "The first handshake message is not a client_hello.",
    "tls.empty_record": "A handshake record is empty.",
    "tls.record_too_large": "A record is larger than 16 KiB.",
    "tls.trailing": "The record of the hello goes on after it.",
    "tls.malformed": "A length in the hello is wrong, or its version is none of TLS.",
    "tls.extension_twice": "The hello has two extensions of one type.",
    "tls.several_names": "The hello names several servers.",
    "tls.name_type": "The hello names a server by something else than a host_name.",
    "tls.no_name": "The hello names no server.",
}


@frozen
class Hello:
    """A ClientHello, as far as it tells whom it is for."""

    server_name: str | None
    """As `read_name` spells it; None without the extension, as when a client dials an address."""
    alpn: tuple[str, ...]
    """Application protocols offered (RFC 7301), best first, GREASE and all."""
    versions: tuple[int, ...]
    """Versions offered, as 0x0304 for TLS 1.3, in the client's order, GREASE and all."""
    has_ech: bool
    """It may have another, encrypted hello inside, or only look so: GREASE is made to."""
    has_early_data: bool
    """Application data may follow before the server has answered."""
    length: int
    """Octets from the connection's first to the hello's last, headers of records included."""


@frozen
class NotTls:
    """No server would take this for the beginning of TLS."""


NOT_TLS: Final = NotTls()

HelloOutcome: TypeAlias = NeedMore | Hello | NotTls | Unreadable


@define(eq=False)
class HelloReader:
    """Reads one hello. It keeps at most the message, so 64 KiB."""

    outcome: HelloOutcome = field(default=NEED_MORE, init=False)
    _position: int = field(default=0, init=False)
    """Octets taken in."""
    message: bytearray = field(factory=bytearray, init=False)
    """The handshake message as far as it has come, with its header."""
    _header: bytearray = field(factory=bytearray, init=False)
    """Of a record, until it is complete."""
    _left: int = field(default=0, init=False)
    """Octets of the current record that have not come."""
    _major: int = field(default=_MAJOR, init=False)
    """Of the first record's version: what else it is that seems to be no TLS at all."""

    @property
    def is_certain(self) -> bool:
        """Whether what is open can only become a hello, or unreadable."""
        return self.message[:1] == bytes((CLIENT_HELLO,))

    def feed(self, octets: Buffer) -> HelloOutcome:
        """Take in what came next; the outcome, now or since earlier."""
        view = memoryview(octets)
        at = 0
        end = min(len(view), FLIGHT_MAXIMUM - self._position)
        while at < end and self.outcome is NEED_MORE:
            wanted = self._left or RECORD_HEADER - len(self._header)
            piece = view[at : min(end, at + wanted)]
            at += len(piece)
            self._position += len(piece)
            try:
                self.outcome = self._take_payload(piece) if self._left else self._take_header(piece)
            except Malformed as problem:
                self.outcome = Unreadable(problem.reason)
        if self.outcome is NEED_MORE and self._position == FLIGHT_MAXIMUM:
            self.outcome = Unreadable("flight.too_large")
        return self.outcome

    def _take_header(self, piece: memoryview) -> HelloOutcome:
        """Some octets more of a record's header."""
        header = self._header
        header += piece
        if header[0] != HANDSHAKE:
            return self._no_handshake(header)
        if len(header) < RECORD_HEADER:
            return NEED_MORE
        length = int.from_bytes(header[3:], "big")
        if not self.message:
            self._major = header[1]
        if length > FRAGMENT_MAXIMUM:
            return self._unless_other("tls.record_too_large")
        if length == 0:
            raise Malformed("tls.empty_record")
        self._left = length
        header.clear()
        return NEED_MORE

    def _no_handshake(self, header: bytearray) -> HelloOutcome:
        """What a record of another type is, from as many octets of its header as it takes."""
        first = header[0]
        if self.message:
            raise Malformed("tls.not_handshake")
        if first & _SSL2_BIT:
            if bytes(header[2:3]) not in (b"", b"\x01"):  # client_hello (RFC 5246, E.2)
                return NOT_TLS
            if len(header) < RECORD_HEADER:
                return NEED_MORE
            if header[3] != _MAJOR and header[3:] != _SSL2_VERSION:
                return NOT_TLS
            raise Malformed("tls.ssl2")
        if not CHANGE_CIPHER_SPEC <= first <= HEARTBEAT:
            return NOT_TLS
        if len(header) == 1:
            return NEED_MORE
        if header[1] == _MAJOR:
            raise Malformed("tls.not_handshake")
        if first not in _LENGTHS_BEFORE:
            return NOT_TLS
        if len(header) < RECORD_HEADER:
            return NEED_MORE
        if int.from_bytes(header[3:], "big") != _LENGTHS_BEFORE[first]:
            return NOT_TLS
        raise Malformed("tls.not_handshake")

    def _take_payload(self, piece: memoryview) -> HelloOutcome:
        """Some octets more of the handshake message."""
        message = self.message
        message += piece
        self._left -= len(piece)
        if message[0] != CLIENT_HELLO:
            return self._unless_other("tls.not_client_hello")
        if len(message) < MESSAGE_HEADER:
            return NEED_MORE
        missing = MESSAGE_HEADER + int.from_bytes(message[1:4], "big") - len(message)
        if self._position + missing > FLIGHT_MAXIMUM:
            raise Malformed("flight.too_large")
        if missing > 0:
            return NEED_MORE
        if missing < 0 or self._left:
            raise Malformed("tls.trailing")
        return _read_hello(bytes(message[MESSAGE_HEADER:]), self._position)

    def _unless_other(self, why: str) -> HelloOutcome:
        """Unreadable, or of another protocol if its version is not one of TLS either."""
        if self._major != _MAJOR and not self.is_certain:
            return NOT_TLS
        raise Malformed(why)


def read(octets: Buffer) -> HelloOutcome:
    """What the octets are that a client has sent so far."""
    return HelloReader().feed(octets)


@define
class _Cursor:
    """A walk over octets that must not go beyond them: Malformed(tls.malformed)."""

    octets: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > len(self.octets):
            raise Malformed("tls.malformed")
        return self.octets[start : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """A vector whose length is a number of `size` octets (RFC 8446, 3.4)."""
        return self.take(self.number(size))

    def vectors(self, size: int) -> list[bytes]:
        """All that is left, which is vectors."""
        found = []
        while self.at < len(self.octets):
            found.append(self.vector(size))
        return found

    def finish(self) -> None:
        if self.at != len(self.octets):
            raise Malformed("tls.malformed")


def _only_vector(octets: bytes, size: int) -> bytes:
    """The contents of a vector that is all there is, and is not empty."""
    cursor = _Cursor(octets)
    contents = cursor.vector(size)
    cursor.finish()
    if not contents:
        raise Malformed("tls.malformed")
    return contents


def _numbers(octets: bytes) -> tuple[int, ...]:
    """Numbers of two octets each."""
    if len(octets) % 2:
        raise Malformed("tls.malformed")
    return tuple(int.from_bytes(octets[n : n + 2], "big") for n in range(0, len(octets), 2))


def _read_hello(body: bytes, length: int) -> Hello:
    """A whole client_hello, without the header of the message."""
    cursor = _Cursor(body)
    version = cursor.number(2)
    cursor.take(_RANDOM)
    session_id = cursor.vector(1)
    cipher_suites = cursor.vector(2)
    compression_methods = cursor.vector(1)
    extensions = {} if cursor.at == len(body) else _read_extensions(cursor.vector(2))
    cursor.finish()
    if (
        version >> 8 != _MAJOR
        or len(session_id) > _SESSION_ID_MAXIMUM
        or not _numbers(cipher_suites)
        or not compression_methods
    ):
        raise Malformed("tls.malformed")
    name, protocols, versions = map(extensions.get, (_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS))
    return Hello(
        server_name=None if name is None else _read_server_name(name),
        alpn=() if protocols is None else _read_alpn(protocols),
        versions=(version,) if versions is None else _numbers(_only_vector(versions, 1)),
        has_ech=not extensions.keys().isdisjoint(_ECH),
        has_early_data=_EARLY_DATA in extensions,
        length=length,
    )


def _read_extensions(octets: bytes) -> dict[int, bytes]:
    """Extensions by type; of each there is one (RFC 8446, 4.2)."""
    cursor = _Cursor(octets)
    extensions: dict[int, bytes] = {}
    while cursor.at < len(octets):
        extension = cursor.number(2)
        if extension in extensions:
            raise Malformed("tls.extension_twice")
        extensions[extension] = cursor.vector(2)
    return extensions


def _read_server_name(octets: bytes) -> str:
    """The one name of a ServerNameList (RFC 6066, 3)."""
    cursor = _Cursor(_only_vector(octets, 2))
    name_type = cursor.number(1)
    name = cursor.vector(2)
    if name_type != _HOST_NAME:
        raise Malformed("tls.name_type")
    if cursor.at != len(cursor.octets):
        raise Malformed("tls.several_names")
    return read_name(name)


def _read_alpn(octets: bytes) -> tuple[str, ...]:
    """The names of a ProtocolNameList (RFC 7301, 3.1), none of them empty."""
    names = _Cursor(_only_vector(octets, 2)).vectors(1)
    if not all(names):
        raise Malformed("tls.malformed")
    return tuple(name.decode("ascii", "backslashreplace") for name in names)
