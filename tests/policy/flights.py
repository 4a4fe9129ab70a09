"""First flights to read: hellos and requests made by hand, and ways to cut and to bend them."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

from hypothesis import strategies as st

from qemu_usernat.policy.first_flight import FirstFlight, FirstFlightReader, read

NAME = b"pypi.org"

HELLOS = Path(__file__).parent / "hellos"
"""Hellos for pypi.org as real clients sent them to a loopback address: chromium (headless shell)
156 and firefox-esr 153.7 of Debian 12, with GREASE, post-quantum key shares and ECH GREASE; the
crypto/tls of Go 1.19; gnutls-cli 3.7.9."""

SERVER_NAME, PADDING, ALPN, EARLY_DATA, VERSIONS, KEY_SHARE, ECH = 0, 21, 16, 42, 43, 51, 0xFE0D


def vector(size: int, contents: bytes) -> bytes:
    """`contents` behind its length of `size` octets."""
    return len(contents).to_bytes(size, "big") + contents


def extension(kind: int, contents: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, contents)


def server_name(*names: bytes, name_type: int = 0) -> bytes:
    """The extension with all these names."""
    entries = b"".join(bytes((name_type,)) + vector(2, name) for name in names)
    return extension(SERVER_NAME, vector(2, entries))


def hello_message(
    *extensions: bytes,
    version: int = 0x0303,
    session_id: bytes = bytes(32),
    cipher_suites: bytes = bytes.fromhex("1301c02f"),
    compression_methods: bytes = b"\0",
    rest: bytes = b"",
) -> bytes:
    """A handshake message of type client_hello."""
    body = version.to_bytes(2, "big") + bytes(32) + vector(1, session_id)
    body += vector(2, cipher_suites) + vector(1, compression_methods)
    body += vector(2, b"".join(extensions)) + rest
    return b"\x01" + vector(3, body)


def record(contents: bytes, record_type: int = 22, version: int = 0x0301) -> bytes:
    return bytes((record_type,)) + version.to_bytes(2, "big") + vector(2, contents)


def records(message: bytes, size: int = 2**14) -> bytes:
    """A handshake message in records of `size` octets."""
    return b"".join(record(message[n : n + size]) for n in range(0, len(message), size))


def hello(name: bytes = NAME, *extensions: bytes, padding: int = 0, size: int = 2**14) -> bytes:
    """A hello for `name`, as large as `padding` makes it, in records of `size` octets."""
    more = [extension(PADDING, bytes(padding))] if padding else []
    return records(hello_message(server_name(name), *extensions, *more), size)


def request(
    *fields: bytes,
    line: bytes = b"GET / HTTP/1.1",
    host: bytes | None = b"Host: " + NAME,
    body: bytes = b"",
) -> bytes:
    """A request with CR LF where they belong."""
    hosts = [] if host is None else [host]
    return b"\r\n".join((line, *hosts, *fields, b"", b"")) + body


def captured() -> dict[str, bytes]:
    """The hellos of `HELLOS` by client."""
    return {path.stem: bytes.fromhex(path.read_text()) for path in sorted(HELLOS.glob("*.hex"))}


def samples() -> list[bytes]:
    """Flights of every kind, mostly in order."""
    return [
        *captured().values(),
        hello(),
        hello(size=1),
        hello(size=7, padding=300),
        hello(b"a.example", extension(ALPN, vector(2, b"\x02h2\x08http/1.1"))),
        records(hello_message(server_name(b"a.example", b"b.example"))),
        request(),
        request(b"Content-Length: 5", line=b"POST /form HTTP/1.1", body=b"hello"),
        request(
            b"Transfer-Encoding: chunked", line=b"PUT / HTTP/1.1", body=b"2\r\nhi\r\n0\r\n\r\n"
        ),
        request(line=b"GET http://pypi.org/simple HTTP/1.1"),
        request(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"),
        request(b"User-Agent: curl/8", b"Accept: */*", b"Cookie: a=b; c=d"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO client.example\r\n",
        b"0032git-upload-pack /project.git\0host=pypi.org\0",
        bytes.fromhex("1603 0100 02 0100"),
    ]


_PIECES = (
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b"/", b"\xa0", b"\x1c", b"0"),
    *(b"HTTP/1.1", b"Host: evil.example\r\n", b"Content-Length: 3\r\n"),
    b"Transfer-Encoding: chunked\r\n",
    *(b"\x16\x03\x01", b"\x15\x03\x01\x00\x02\x01\x5a", b"\x14\x03\x03\x00\x01\x01"),
    *(b"\x00\x00", b"\xff\xff"),
)


def mutated(random: Random, octets: bytes) -> bytes:
    """`octets` with a few things changed."""
    bent = bytearray(octets)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(bent) + 1)
        match random.randrange(7):
            case 0 | 1 if at < len(bent):
                bent[at] = random.choice((0, 1, 0xFF, bent[at] ^ 1, random.randrange(256)))
            case 2:
                del bent[at : at + random.choice((1, 2, 5, 40))]
            case 3:
                bent[at:at] = random.choice(_PIECES)
            case 4:
                bent[at:at] = bent[at : at + random.choice((1, 4, 30, 200))]
            case 5:
                other = random.choice(SAMPLES)
                start = random.randrange(len(other))
                bent[at:at] = other[start : start + random.choice((4, 30, 300))]
            case 6 if random.random() < 0.3:
                del bent[at:]
    return bytes(bent)


SAMPLES = samples()


def pieces(octets: bytes, cuts: list[int]) -> Iterator[bytes]:
    """`octets` cut at these places, as far as they have them."""
    edges = sorted({0, len(octets), *(cut % (len(octets) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        yield octets[start:end]


def flight_of(parts: Iterator[bytes], port: int) -> FirstFlight:
    """What is known when all parts have come, and that nothing is ever taken back."""
    reader = FirstFlightReader(port)
    known = reader.flight
    for part in parts:
        further = reader.feed(part)
        assert further.possible <= known.possible
        assert known.is_open or further == known
        known = further
    return known


def name_read(octets: bytes, port: int = 443) -> str | None:
    return read(octets, port, at_end=True).name


def why(octets: bytes, port: int = 80) -> str | None:
    return read(octets, port, at_end=True).why


mutants = st.builds(
    lambda sample, seed: mutated(Random(seed), sample), st.sampled_from(SAMPLES), st.integers(0)
)
"""Bent flights."""
