"""DHCP messages: a real one, the places where options hide, and bytes that are none."""

import random
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.dhcp import DhcpMessage, build_dhcp, fitting, parse_dhcp
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import UDP
from qemu_usernat.wire.udp import udp_datagram
from tests.tshark import complaints, fields, needs_tshark

GUEST_MAC = bytes.fromhex("525400123456")
COOKIE = bytes.fromhex("63825363")

OFFER = DhcpMessage(
    operation=2,
    transaction_id=0x3903F326,
    seconds=0,
    broadcast=True,
    client_address=bytes(4),
    your_address=bytes([10, 0, 2, 15]),
    server_address=bytes([10, 0, 2, 2]),
    relay_address=bytes(4),
    client_mac=GUEST_MAC,
    options={53: b"\x02", 54: bytes([10, 0, 2, 2]), 1: bytes([255, 255, 255, 0])},
    boot_file=b"pxelinux.0",
)


def message(options: bytes, *, server_name: bytes = b"", boot_file: bytes = b"") -> bytes:
    """A client's message, written field by field (RFC 2131, figure 1)."""
    fixed = b"\x01\x01\x06\0" + bytes.fromhex("3903f326") + b"\0\x05" + b"\x80\0" + bytes(16)
    fixed += GUEST_MAC.ljust(16, b"\0") + server_name.ljust(64, b"\0")
    return fixed + boot_file.ljust(128, b"\0") + options


def options_of(payload: bytes) -> dict[int, bytes]:
    """What the message says beyond its fixed fields."""
    return parse_dhcp(payload).options


def test_a_discover_as_busybox_sends_it() -> None:
    """Fixed fields, then type, client identifier, size, requested list; padded after the end."""
    sent = COOKIE + bytes.fromhex(
        "350101 3d0701525400123456 39020240 370701030c0f1c2a79 3c0c756468637020312e33362e31 ff"
    )
    parsed = parse_dhcp(message(sent + bytes(20)))
    assert parsed == DhcpMessage(
        operation=1,
        transaction_id=0x3903F326,
        seconds=5,
        broadcast=True,
        client_address=bytes(4),
        your_address=bytes(4),
        server_address=bytes(4),
        relay_address=bytes(4),
        client_mac=GUEST_MAC,
        options={
            53: b"\x01",
            61: b"\x01" + GUEST_MAC,
            57: b"\x02\x40",
            55: bytes([1, 3, 12, 15, 28, 42, 121]),
            60: b"udhcp 1.36.1",
        },
    )


def test_pads_may_stand_between_options() -> None:
    """A pad is one byte and has no length (impacket loses what follows it)."""
    assert options_of(message(COOKIE + b"\0\x35\x01\x01\0\0\0\x0c\x01a\0\xff")) == {
        53: b"\x01",
        12: b"a",
    }


def test_passt_16a_nothing_after_the_end_is_an_option() -> None:
    """The end has no length either: what follows is padding, whatever it looks like."""
    assert options_of(message(COOKIE + b"\x35\x01\x01\xff\x0c\xff")) == {53: b"\x01"}


def test_a_missing_end_is_forgiven() -> None:
    """The options are all there; that is enough."""
    assert options_of(message(COOKIE + b"\x35\x01\x01")) == {53: b"\x01"}


def test_an_option_in_pieces_is_one() -> None:
    """RFC 3396: a repeated option is one that was split, in the order of its pieces."""
    split = COOKIE + b"\x79\x02ab\x35\x01\x01\x79\x01c\xff"
    assert options_of(message(split)) == {121: b"abc", 53: b"\x01"}


@pytest.mark.parametrize(
    ("overload", "expected"), [(1, b"ab"), (2, b"ac"), (3, b"abc")], ids=["file", "sname", "both"]
)
def test_options_overflow_into_other_fields(overload: int, expected: bytes) -> None:
    """RFC 2132, 9.3: `file` and then `sname` may hold options, and pieces of options."""
    payload = message(
        COOKIE + bytes([52, 1, overload]) + b"\x0c\x01a\xff",
        boot_file=b"\x0c\x01b\xff",
        server_name=b"\x0c\x01c\xff",
    )
    parsed = parse_dhcp(payload)
    assert parsed.options == {12: expected}
    assert parsed.boot_file == (b"\x0c\x01b\xff" if overload == 2 else b"")


@pytest.mark.parametrize("vendor_area", [b"", bytes(64), b"\x01\x02\x03\x04" + bytes(60)])
def test_a_bootp_message_has_no_options(vendor_area: bytes) -> None:
    """RFC 951: without the magic cookie the area means nothing here."""
    parsed = parse_dhcp(message(vendor_area, boot_file=b"kernel"))
    assert parsed.options == {}
    assert parsed.boot_file == b"kernel"


@pytest.mark.parametrize(
    ("reason", "payload"),
    [
        ("dhcp.too_short", b""),
        ("dhcp.too_short", message(b"")[:235]),
        ("dhcp.not_ethernet", b"\x01\x06" + message(COOKIE)[2:]),
        ("dhcp.not_ethernet", b"\x01\x01\xff" + message(COOKIE)[3:]),
        ("dhcp.bad_option", message(COOKIE + b"\x35")),
        ("dhcp.bad_option", message(COOKIE + b"\x35\x02\x01")),
        ("dhcp.bad_option", message(COOKIE + b"\x35\x01\x01\x0c\xffabc")),
        ("dhcp.bad_option", message(COOKIE + b"\x34\x01\x01", boot_file=b"\x0c\x7f")),
    ],
)
def test_a_malformed_message_is_refused_by_name(reason: str, payload: bytes) -> None:
    """Shorter than its fields, not from Ethernet, or with an option that is cut off."""
    with pytest.raises(Malformed) as refusal:
        parse_dhcp(payload)
    assert refusal.value.reason == reason


def test_a_reply_is_written_as_the_rfc_draws_it() -> None:
    """Field by field, in the order of the options, to the 300 bytes that BOOTP wants."""
    expected = bytes.fromhex("02010600 3903f326 0000 8000 00000000 0a00020f 0a000202 00000000")
    expected += GUEST_MAC + bytes(10) + bytes(64) + b"pxelinux.0".ljust(128, b"\0")
    expected += COOKIE + bytes.fromhex("350102 36040a000202 0104ffffff00 ff")
    assert build_dhcp(OFFER) == expected.ljust(300, b"\0")


def test_a_long_option_is_sent_in_pieces() -> None:
    """255 bytes are all that a length can say; RFC 3396 splits the rest off."""
    value = bytes(range(256)) * 2
    built = build_dhcp(evolve(OFFER, options={119: value}))
    assert built[240:].startswith(b"\x77\xff" + value[:255] + b"\x77\xff" + value[255:510])
    assert parse_dhcp(built).options == {119: value}


def test_a_boot_file_that_does_not_fit_is_refused() -> None:
    """127 characters and a zero fill the field."""
    build_dhcp(evolve(OFFER, boot_file=b"f" * 127))
    with pytest.raises(ValueError, match="127"):
        build_dhcp(evolve(OFFER, boot_file=b"f" * 128))


def test_what_finds_no_room_goes_into_the_fields_of_old() -> None:
    """RFC 2132, 9.3: first `file`, then `sname`, and the client is told where to look."""
    full = evolve(
        OFFER, boot_file=b"", options={53: b"\x02", 119: bytes(200), 15: b"x" * 100, 12: b"y" * 60}
    )
    built = build_dhcp(full, 500)
    assert len(built) <= 500
    assert built[240:].startswith(bytes.fromhex("340103 350102 77c8"))
    assert built[108:].startswith(b"\x0f\x64" + b"x" * 100 + b"\xff\0")
    assert built[44:].startswith(b"\x0c\x3c" + b"y" * 60 + b"\xff\0")
    assert parse_dhcp(built).options == full.options
    assert build_dhcp(full)[240:].startswith(bytes.fromhex("350102 77c8"))


def test_a_boot_file_keeps_its_field() -> None:
    """Options do not overwrite the name that the machine is to boot."""
    full = evolve(OFFER, options={53: b"\x02", 119: bytes(200), 15: b"x" * 100, 12: b"y" * 60})
    read = parse_dhcp(build_dhcp(full, 500))
    assert read.boot_file == b"pxelinux.0"
    assert set(read.options) == set(fitting(full, 500).options) == {53, 119, 12}


codes = st.integers(1, 254).filter(lambda code: code != 52)
addresses = st.binary(min_size=4, max_size=4)
messages = st.builds(
    DhcpMessage,
    operation=st.integers(1, 2),
    transaction_id=st.integers(0, 0xFFFFFFFF),
    seconds=st.integers(0, 0xFFFF),
    broadcast=st.booleans(),
    client_address=addresses,
    your_address=addresses,
    server_address=addresses,
    relay_address=addresses,
    client_mac=st.binary(min_size=6, max_size=6),
    options=st.dictionaries(codes, st.binary(max_size=600), max_size=8),
    boot_file=st.binary(max_size=127).map(lambda name: name.replace(b"\0", b"x")),
)


@given(messages)
def test_what_is_built_is_what_is_parsed(original: DhcpMessage) -> None:
    """No field and no byte of an option is lost, in their order."""
    payload = build_dhcp(original)
    parsed = parse_dhcp(payload)
    assert parsed == original
    assert list(parsed.options) == list(original.options)
    assert len(payload) >= 300


@given(messages, st.integers(300, 1500))
def test_within_a_limit_all_that_fits_arrives(original: DhcpMessage, limit: int) -> None:
    """No byte beyond the limit, none changed; what is left out has no room in the first field."""
    kept = fitting(original, limit)
    payload = build_dhcp(kept, limit)
    assert len(payload) <= limit
    assert parse_dhcp(payload) == kept
    assert build_dhcp(original, limit) == payload
    assert kept.options.items() <= original.options.items()
    smallest = min((len(value) for code, value in original.options.items()
                    if code not in kept.options), default=None)  # fmt: skip
    if smallest is not None:
        used = sum(
            2 * max(1, -(-len(value) // 255)) + len(value) for value in kept.options.values()
        )
        assert used + 2 * max(1, -(-smallest // 255)) + smallest > limit - 236 - 4 - 1 - 3


@settings(deadline=timedelta(seconds=1))
@given(
    st.binary(max_size=700)
    | st.binary(max_size=400).map(lambda options: message(COOKIE + options))
    | st.builds(
        lambda options, name, file: message(
            COOKIE + b"\x34\x01\x03" + options, server_name=name, boot_file=file
        ),
        st.binary(max_size=100),
        st.binary(max_size=64),
        st.binary(max_size=128),
    )
)
def test_any_bytes_are_a_message_or_malformed(payload: bytes) -> None:
    """Nothing else is raised, and every byte of an option was in the message."""
    try:
        parsed = parse_dhcp(payload)
    except Malformed:
        return
    assert sum(map(len, parsed.options.values())) <= len(payload)


def test_a_message_of_nothing_but_options_costs_no_more_than_its_size() -> None:
    """65507 bytes of one option in the smallest pieces are joined once, not piece by piece."""
    pieces = b"\x0c\x01a" * 21000
    assert options_of(message(COOKIE + pieces)) == {12: b"a" * 21000}


def _some_message(chance: random.Random, size: int) -> DhcpMessage:
    """Options that mean nothing to anybody (RFC 3942), about as many as there is room for."""
    options, filled = {53: b"\x02"}, 0
    while filled < size:
        value = chance.randbytes(chance.choice((1, 4, 60, 126, 300)))
        options[chance.randrange(224, 240)] = value
        filled += len(value)
    return evolve(OFFER, options=options, boot_file=chance.choice((b"", b"pxelinux.0")))


@needs_tshark
def test_a_stranger_reads_what_we_have_written(tmp_path: Path) -> None:
    """tshark finds every option, in whatever field it is, and the boot file where that is."""
    chance = random.Random("dhcp")
    frames, kept = [], []
    for limit in chance.choices(range(548, 1400), k=60):
        kept.append(fitting(_some_message(chance, limit), limit))
        datagram = udp_datagram(bytes(4), 67, b"\xff" * 4, 68, build_dhcp(kept[-1], limit))
        framing = (GUEST_MAC, b"\xff" * 6, bytes(4), b"\xff" * 4, UDP)
        (frame,) = ipv4_frames(*framing, datagram, 1500, 1)
        frames.append(frame[4:])
    assert complaints(frames, tmp_path) == []
    read = fields(frames, tmp_path, "dhcp.option.type", "dhcp.file")
    overloaded = 0
    for each, (options, file) in zip(kept, read, strict=True):
        told = {int(code) for code in options.split(",")}
        overloaded += 52 in told
        assert told - {0, 52, 255} == set(each.options)
        assert file == each.boot_file.decode()
    assert overloaded > 3
