"""ClientHellos: whom they are for, however they are cut, and when nobody can tell."""

import pytest

from qemu_usernat.policy.reading import FLIGHT_MAXIMUM, NEED_MORE, Unreadable
from qemu_usernat.policy.tls_hello import NOT_TLS, Hello, HelloReader, NotTls, read
from tests.policy.flights import (
    ALPN,
    EARLY_DATA,
    ECH,
    KEY_SHARE,
    NAME,
    PADDING,
    VERSIONS,
    captured,
    extension,
    hello,
    hello_message,
    record,
    records,
    server_name,
    vector,
)


def readable(octets: bytes) -> Hello:
    outcome = read(octets)
    assert isinstance(outcome, Hello), outcome
    return outcome


def why(octets: bytes) -> str:
    outcome = read(octets)
    assert isinstance(outcome, Unreadable), outcome
    return outcome.why


def test_a_hello_tells_what_it_offers() -> None:
    """The name, the protocols in the client's order, the versions, and what may follow."""
    octets = hello(
        NAME,
        extension(ALPN, vector(2, b"\x02h2\x08http/1.1")),
        extension(VERSIONS, vector(1, bytes.fromhex("0304 0303"))),
        extension(EARLY_DATA, b""),
    )
    assert readable(octets) == Hello(
        server_name="pypi.org",
        alpn=("h2", "http/1.1"),
        versions=(0x0304, 0x0303),
        has_ech=False,
        has_early_data=True,
        length=len(octets),
    )


@pytest.mark.parametrize("client", captured())
def test_clients_in_use_are_understood(client: str) -> None:
    """Browsers with all their GREASE and post-quantum shares, Go, GnuTLS."""
    octets = captured()[client]
    outcome = readable(octets)
    assert outcome.server_name == "pypi.org"
    assert outcome.alpn == ("h2", "http/1.1")
    assert 0x0304 in outcome.versions
    assert outcome.has_ech is (client in ("chromium", "firefox"))
    assert outcome.length == len(octets)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 50, 2**14])
def test_records_may_cut_it_anywhere(size: int) -> None:
    """Servers put up with records of one octet, so guests may send them."""
    octets = hello(NAME, padding=300, size=size)
    assert readable(octets).server_name == "pypi.org"
    assert readable(octets).length == len(octets)


def test_a_large_hello_is_read() -> None:
    """50 kB over several records, of which nothing can be told before the last octet."""
    octets = hello(NAME, padding=50_000)
    assert read(octets[:-1]) is NEED_MORE
    assert readable(octets).server_name == "pypi.org"


def test_a_hello_may_fill_64_kib_and_no_more() -> None:
    """The bound counts the headers of the records too."""
    overhead = len(hello(NAME, padding=1)) - 1
    room = FLIGHT_MAXIMUM - overhead - 3 * 5  # three records more
    assert len(hello(NAME, padding=room)) == FLIGHT_MAXIMUM
    assert readable(hello(NAME, padding=room)).length == FLIGHT_MAXIMUM
    assert why(hello(NAME, padding=room + 1)) == "flight.too_large"


def test_a_hello_that_will_be_too_large_is_known_early() -> None:
    """Its message says so itself, in its first four octets."""
    assert why(record(b"\x01" + (FLIGHT_MAXIMUM).to_bytes(3, "big"))) == "flight.too_large"


def test_small_records_count_as_what_they_cost() -> None:
    """A hello of 20 kB in records of one octet is 120 kB."""
    assert why(hello(NAME, padding=20_000, size=1)) == "flight.too_large"


def test_what_follows_the_hello_does_not_matter() -> None:
    """Early data in a record of its own comes with the hello of TLS 1.3."""
    octets = hello()
    following = record(b"\x01", 20) + record(b"early data", 23)
    assert readable(octets + following) == readable(octets)


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        (b"pypi.org", "pypi.org"),
        (b"PyPI.Org", "pypi.org"),
        (b"pypi.org.", "pypi.org"),
        (b"localhost", "localhost"),
        (b"my_bucket.s3.example", "my_bucket.s3.example"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"1.example", "1.example"),
        (b"0x7f.example", "0x7f.example"),
        (b"-a-.example", "-a-.example"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
    ],
)
def test_names_have_one_spelling(spelt: bytes, name: str) -> None:
    """Capitals and a dot at the end make no other name."""
    assert readable(hello(spelt)).server_name == name


@pytest.mark.parametrize(
    ("spelt", "reason"),
    [
        (b"", "name.empty"),
        (b".", "name.empty"),
        (b"pypi.org..", "name.malformed"),
        (b".pypi.org", "name.malformed"),
        (b"pypi..org", "name.malformed"),
        (b"pypi.org\0.evil.example", "name.malformed"),
        (b"pypi.org\0", "name.malformed"),
        (b"pypi.org\n", "name.malformed"),
        (b"pypi.org:443", "name.malformed"),
        (b"*.pypi.org", "name.malformed"),
        (b"pypi.org ", "name.malformed"),
        ("bücher.example".encode(), "name.malformed"),
        ("\N{KELVIN SIGN}.example".encode(), "name.malformed"),
        (b"a" * 64 + b".example", "name.malformed"),
        (b"a." * 126 + b"aa", "name.malformed"),
        (b"93.184.216.34", "name.is_address"),
        (b"93.184.216.34.", "name.is_address"),
        (b"127.1", "name.is_address"),
        (b"2130706433", "name.is_address"),
        (b"0x7f000001", "name.is_address"),
        (b"a.0x", "name.is_address"),
        (b"::1", "name.is_address"),
        (b"::ffff:93.184.216.34", "name.is_address"),
        (b"fe80::1", "name.is_address"),
    ],
)
def test_what_is_no_host_name_is_unreadable(spelt: bytes, reason: str) -> None:
    """RFC 6066 wants a DNS name in ASCII; of the rest, servers make what they like."""
    assert why(hello(spelt)) == reason


def test_the_longest_name_is_a_name() -> None:
    """253 octets, and one more for a dot at the end."""
    name = (b"a" * 60 + b".") * 4 + b"b" * 9
    assert len(name) == 253
    assert readable(hello(name)).server_name == name.decode()
    assert readable(hello(name + b".")).server_name == name.decode()
    assert why(hello(b"c" + name)) == "name.malformed"


def test_without_the_extension_there_is_no_name() -> None:
    """As when a client dials an address."""
    assert readable(records(hello_message())).server_name is None


def test_a_hello_without_extensions_is_one() -> None:
    """So are those of TLS 1.0 to 1.2, if they want nothing."""
    body = hello_message()[4:-2]
    assert readable(record(b"\x01" + vector(3, body))).versions == (0x0303,)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (records(hello_message(server_name(NAME), server_name(NAME))), "tls.extension_twice"),
        (records(hello_message(server_name(NAME), server_name(b"a.b"))), "tls.extension_twice"),
        (
            records(hello_message(extension(0x0A0A, b""), extension(0x0A0A, b""))),
            "tls.extension_twice",
        ),
        (records(hello_message(server_name(NAME, b"evil.example"))), "tls.several_names"),
        (records(hello_message(server_name(NAME, NAME))), "tls.several_names"),
        (records(hello_message(server_name(NAME, name_type=1))), "tls.name_type"),
        (records(hello_message(server_name())), "tls.malformed"),
        (records(hello_message(extension(0, b""))), "tls.malformed"),
        (records(hello_message(extension(0, vector(2, b"\0") + b"\0"))), "tls.malformed"),
        (
            records(hello_message(extension(0, vector(2, b"\0\0\x08pypi.org") + b"\0"))),
            "tls.malformed",
        ),
    ],
)
def test_a_doubtful_name_is_no_name(octets: bytes, reason: str) -> None:
    """Two extensions, two names, another type: one server takes the first and one the last."""
    assert why(octets) == reason


@pytest.mark.parametrize(
    "message",
    [
        hello_message(server_name(NAME), version=0x0203),
        hello_message(server_name(NAME), version=0xFEFD),
        hello_message(server_name(NAME), session_id=bytes(33)),
        hello_message(server_name(NAME), cipher_suites=b""),
        hello_message(server_name(NAME), cipher_suites=b"\x13\x01\x13"),
        hello_message(server_name(NAME), compression_methods=b""),
        hello_message(server_name(NAME), rest=b"\0"),
        hello_message(server_name(NAME), b"\0"),
        hello_message(server_name(NAME), extension(VERSIONS, b"")),
        hello_message(server_name(NAME), extension(VERSIONS, vector(1, b""))),
        hello_message(server_name(NAME), extension(VERSIONS, vector(1, b"\x03\x04\x03"))),
        hello_message(server_name(NAME), extension(VERSIONS, vector(1, b"\x03\x04") + b"\0")),
        hello_message(server_name(NAME), extension(ALPN, vector(2, b""))),
        hello_message(server_name(NAME), extension(ALPN, vector(2, b"\x02h2\0"))),
        hello_message(server_name(NAME), extension(ALPN, vector(2, b"\x03h2"))),
        hello_message(server_name(NAME))[:1] + vector(3, hello_message()[4:20]),
        b"\x01\0\0\0",
    ],
)
def test_a_wrong_length_anywhere_makes_it_unreadable(message: bytes) -> None:
    """Who reads on where the lengths disagree may read another name."""
    assert why(records(message)) == "tls.malformed"


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (record(b"\x01\0", 21) + hello(), "tls.not_handshake"),
        (record(b"\x01", 20) + hello(), "tls.not_handshake"),
        (record(b"data", 23) + hello(), "tls.not_handshake"),
        (record(b"\x01\0\0", 24) + hello(), "tls.not_handshake"),
        (record(b"\x01\0", 21, version=0x0505), "tls.not_handshake"),
        (record(b"\x01", 20, version=0x0505), "tls.not_handshake"),
        (hello(size=10)[:45] + record(b"\x01\0", 21), "tls.not_handshake"),
        (record(b"\0\0\0\0") + hello(), "tls.not_client_hello"),
        (record(b"\x10\0\0\0"), "tls.not_client_hello"),
        (record(b"") + hello(), "tls.empty_record"),
        (hello(size=10)[:45] + record(b""), "tls.empty_record"),
        (record(hello_message(server_name(NAME), extension(PADDING, bytes(2**14)))),
         "tls.record_too_large"),
        (hello(size=10)[:45] + b"\x16\x03\x01\xff\xff", "tls.record_too_large"),
        (record(hello_message(server_name(NAME)) + b"\0"), "tls.trailing"),
        (record(hello_message(server_name(NAME)) * 2), "tls.trailing"),
    ],
)  # fmt: skip
def test_nothing_comes_before_or_within_a_hello(octets: bytes, reason: str) -> None:
    """The server of Go swallows warnings, that of OpenSSL empty records, and then see a name."""
    assert why(octets) == reason


@pytest.mark.parametrize(
    "version", [b"\x00\x02", b"\x03\x00", b"\x03\x01", b"\x03\x03", b"\x03\x05", b"\x03\xff"]
)
def test_a_hello_of_ssl_2_is_unreadable(version: bytes) -> None:
    """It has no room for a name, and OpenSSL may still answer it."""
    octets = b"\x80\x2e\x01" + version + bytes(41)
    assert why(octets) == "tls.ssl2"
    assert read(octets[:4]) is NEED_MORE


@pytest.mark.parametrize("version", [0x0300, 0x0303, 0x0304, 0x0000, 0x0505, 0xFFFF])
def test_the_version_of_a_record_is_ignored(version: int) -> None:
    """RFC 8446 tells servers to, and some do: the hello counts all the same."""
    assert readable(record(hello_message(server_name(NAME)), version=version)).server_name == (
        "pypi.org"
    )


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1",
        b"\0",
        b"\x13BitTorrent protocol",
        b"\x19",
        # MySQL's answer to its server's greeting, of lengths that make it look like records
        bytes.fromhex("16 01 00 01 85a6ff19 00000001 2d"),
        bytes.fromhex("15 01 00 01 85a6ff19 00000001 2d"),
        bytes.fromhex("14 01 00 01 85a6ff19 00000001 2d"),
        bytes.fromhex("17 01 00 01"),
        bytes.fromhex("16 01 00 5a a6ff19 00000001 2d"),
        bytes.fromhex("b7 00 00 01 85a6ff19"),
        bytes.fromhex("80 01 01 01 00"),  # no version of SSL 2
        bytes.fromhex("80 01 01 04 00"),
        bytes.fromhex("80 01 00 01"),  # Thrift
        b"\xff\xff\xff\xff",
    ],
)
def test_other_protocols_are_other_protocols(octets: bytes) -> None:
    """A name of theirs is not looked for, and nothing in them is held against them."""
    assert read(octets) is NOT_TLS


@pytest.mark.parametrize(
    "octets", [b"", b"\x16", b"\x16\x03\x01\x00", b"\x80", b"\x80\x2e\x01", b"\x15", b"\x15\x05"]
)
def test_a_beginning_is_open(octets: bytes) -> None:
    """It may become a hello, or something else."""
    reader = HelloReader()
    assert reader.feed(octets) is NEED_MORE
    assert not reader.is_certain


def test_from_its_sixth_octet_on_it_is_tls_for_certain() -> None:
    """It may still be unreadable, but it is nothing else any more."""
    reader = HelloReader()
    assert reader.feed(hello()[:6]) is NEED_MORE
    assert reader.is_certain


@pytest.mark.parametrize("kind", [ECH, 0xFFCE])
def test_an_encrypted_hello_within_is_told(kind: int) -> None:
    """What it holds nobody can say; the name is the outer one."""
    octets = hello(b"public.example", extension(kind, bytes(186)))
    assert readable(octets).has_ech
    assert readable(octets).server_name == "public.example"


def test_large_shares_are_skipped() -> None:
    """A post-quantum key share makes a hello of more than one segment."""
    share = b"\x11\xec" + vector(2, bytes(1216)) + b"\0\x1d" + vector(2, bytes(32))
    octets = hello(NAME, extension(KEY_SHARE, vector(2, share)))
    assert len(octets) > 1300
    assert readable(octets).server_name == "pypi.org"


def test_outcomes_stay() -> None:
    """What comes after it changes nothing, be it as it may."""
    reader = HelloReader()
    outcome = reader.feed(hello())
    assert reader.feed(hello(b"evil.example")) is outcome
    reader = HelloReader()
    assert isinstance(reader.feed(b"\0"), NotTls)
    assert isinstance(reader.feed(hello()), NotTls)
