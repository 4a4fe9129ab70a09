"""TFTP packets to and from bytes (RFC 1350, 5; options: RFC 2347).

Form only. Option names are in lower case here, as they compare without case; of one that is named
twice the first counts.
"""

from collections.abc import Mapping

from attrs import frozen

from qemu_usernat.primitives.errors import Malformed

READ = 1
WRITE = 2
DATA = 3
ACKNOWLEDGMENT = 4
ERROR = 5
OPTIONS_ACKNOWLEDGMENT = 6  # RFC 2347

# Error codes (RFC 1350, appendix I)
NOT_DEFINED = 0
FILE_NOT_FOUND = 1
ACCESS_VIOLATION = 2
ILLEGAL_OPERATION = 4

HEADER = 4  # bytes of a DATA packet before its data


@frozen
class TftpRequest:
    """A request to read or to write: `mode` in lower case, options by name, values as sent."""

    operation: int
    filename: bytes
    mode: bytes
    options: Mapping[bytes, bytes]


def operation_of(payload: bytes) -> int:
    """What kind of packet it is; Malformed where it has not even that."""
    if len(payload) < 4:
        raise Malformed("tftp.malformed")
    return int.from_bytes(payload[:2], "big")


def parse_request(payload: bytes) -> TftpRequest:
    """A READ or WRITE; Malformed where its strings do not end, or an option has no value."""
    *strings, rest = payload[2:].split(b"\0")
    if rest or len(strings) < 2 or len(strings) % 2:
        raise Malformed("tftp.malformed")
    filename, mode, *words = strings
    options: dict[bytes, bytes] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        options.setdefault(name.lower(), value)
    return TftpRequest(operation_of(payload), filename, mode.lower(), options)


def number_of(payload: bytes) -> int:
    """The block number of a DATA or an ACKNOWLEDGMENT, the code of an ERROR."""
    return int.from_bytes(payload[2:4], "big")


def data(number: int, octets: bytes) -> bytes:
    """A block; numbers begin anew after 65535."""
    return b"\0\x03" + (number & 0xFFFF).to_bytes(2, "big") + octets


def error(code: int, words: bytes) -> bytes:
    """An end that is no success."""
    return b"\0\x05" + code.to_bytes(2, "big") + words + b"\0"


def options_acknowledgment(options: Mapping[bytes, bytes]) -> bytes:
    """The options that are agreed on."""
    return b"\0\x06" + b"".join(b"%b\0%b\0" % pair for pair in options.items())
