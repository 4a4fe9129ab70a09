"""What boot ROMs ask, and what they need to hear; and a stranger's reading of it."""

from pathlib import Path

import pytest
from attrs import evolve

from qemu_usernat.config.boot import Boot
from qemu_usernat.gateway import dhcp
from qemu_usernat.gateway.dhcp import DhcpServer
from qemu_usernat.primitives.addresses import ANY_IPV4
from qemu_usernat.wire.dhcp import DhcpMessage, parse_dhcp
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import UDP
from qemu_usernat.wire.udp import udp_datagram
from tests.gateway.test_dhcp import (
    ALICE,
    FIRST,
    GATEWAY,
    SETTINGS,
    discover,
    init_reboot,
    make_server,
    message,
)
from tests.tshark import complaints, fields, needs_tshark

FOLDER = Path("/srv/tftp")
MENU = "http://10.0.2.2:8000/menu.ipxe"
CHAIN = Boot(
    FOLDER,
    {
        "bios": "undionly.kpxe",
        "uefi": "ipxe.efi",
        "uefi_arm64": "arm64.efi",
        "ipxe": MENU,
        "http": "http://10.0.2.2:8000/ipxe.efi",
    },
)
UUID = b"\0" + bytes(range(16))
ROM_LIST = bytes([1, 3, 43, 60, 66, 67, 128, 129])


def rom(
    architecture: int, vendor: str = "PXEClient", more: dict[int, bytes] | None = None
) -> DhcpMessage:
    """The discover of a boot ROM (RFC 4578)."""
    return message(
        dhcp.DISCOVER,
        options={
            55: ROM_LIST,
            60: f"{vendor}:Arch:{architecture:05}:UNDI:003001".encode(),
            93: architecture.to_bytes(2, "big"),
            94: b"\x01\x03\x01",
            97: UUID,
        }
        | (more or {}),
    )


def server_with(boot: Boot) -> DhcpServer:
    return make_server(evolve(SETTINGS, boot=boot))


def answer(boot: Boot, question: DhcpMessage) -> DhcpMessage:
    """What is told, having gone over the wire once."""
    reply = server_with(boot).answer(question, 0.0)
    assert reply is not None
    return parse_dhcp(reply.payload())


def file_of(told: DhcpMessage) -> str:
    """What a ROM takes: option 67 before the field, without the zero at its end."""
    return told.options.get(67, told.boot_file).rstrip(b"\0").decode()


def test_a_bios_loads_its_file_from_us() -> None:
    """All that a PXE ROM looks at: server and file in fields and options, and that it need not
    look for any other server."""
    told = answer(CHAIN, rom(0))
    assert (told.server_address, told.boot_file) == (GATEWAY, b"undionly.kpxe")
    assert told.options[67] == b"undionly.kpxe\0"
    assert told.options[66] == b"10.0.2.2\0"
    assert told.options[60] == b"PXEClient"
    assert told.options[43] == bytes([6, 1, 8, 255])
    assert told.options[97] == UUID


@pytest.mark.parametrize(
    ("architecture", "file"),
    [(7, "ipxe.efi"), (9, "ipxe.efi"), (11, "arm64.efi"), (0, "undionly.kpxe"), (6, ""), (10, "")],
)
def test_each_architecture_gets_what_it_can_run(architecture: int, file: str) -> None:
    """What there is no file for is told of none, and goes on to its next way to boot."""
    told = answer(CHAIN, rom(architecture))
    assert file_of(told) == file
    if not file:
        assert told.server_address == ANY_IPV4
        assert not told.options.keys() & {43, 60, 66, 67}


@pytest.mark.parametrize("user_class", [b"iPXE", b"\x04iPXE"])
def test_ipxe_is_told_from_the_rom_that_loaded_it(user_class: bytes) -> None:
    """Else it would load itself for ever."""
    told = answer(CHAIN, rom(0, more={77: user_class}))
    assert file_of(told) == MENU
    assert told.server_address == ANY_IPV4  # the URL says where
    assert told.options[175] == bytes([176, 1, 1])


def test_uefi_boots_over_http() -> None:
    """Its word comes back to it, with a URL; its architectures are others."""
    told = answer(CHAIN, rom(16, "HTTPClient"))
    assert told.options[60] == b"HTTPClient"
    assert told.options[67] == b"http://10.0.2.2:8000/ipxe.efi"
    assert 43 not in told.options


def test_one_name_is_for_all_that_can_load_it() -> None:
    """A file is not for HTTP, and a URL not for a ROM that knows TFTP only."""
    file, url = Boot(FOLDER, {"other": "boot.ipxe"}), Boot(None, {"other": MENU})
    assert file_of(answer(file, rom(0))) == file_of(answer(file, rom(11))) == "boot.ipxe"
    assert file_of(answer(file, rom(0, more={77: b"iPXE"}))) == "boot.ipxe"
    assert file_of(answer(file, rom(16, "HTTPClient"))) == ""
    assert file_of(answer(url, rom(16, "HTTPClient"))) == MENU
    assert file_of(answer(url, rom(0, more={77: b"iPXE"}))) == MENU
    assert file_of(answer(url, rom(0))) == ""


def test_who_is_no_rom_gets_what_bootp_had() -> None:
    """U-Boot and others read `siaddr` and `file`; options go by their list."""
    boot = Boot(FOLDER, {"other": "boot.scr"})
    told = answer(boot, discover(parameter_list=bytes([1, 3, 67])))
    assert (told.server_address, told.boot_file) == (GATEWAY, b"boot.scr")
    assert told.options[67] == b"boot.scr"
    assert not told.options.keys() & {43, 60, 66, 97, 175}
    told = answer(boot, discover(parameter_list=bytes([1, 3])))
    assert (told.boot_file, 67 in told.options) == (b"boot.scr", False)


def test_a_url_beyond_the_field_is_an_option() -> None:
    """The field `file` has 128 bytes."""
    url = "http://10.0.2.2/" + "x" * 200
    told = answer(Boot(None, {"other": url}), discover(parameter_list=b"\x01"))
    assert (told.boot_file, told.options[67]) == (b"", url.encode())


def test_without_anything_to_boot_nothing_is_told() -> None:
    """As before there was any of this."""
    told = answer(Boot(), rom(0))
    assert (told.server_address, told.boot_file) == (ANY_IPV4, b"")
    assert not told.options.keys() & {43, 60, 66, 67, 97, 175}


@pytest.mark.parametrize("odd", [b"", b"\x01", b"\xff" * 300])
def test_odd_options_of_a_rom_are_survived(odd: bytes) -> None:
    """Empty, cut off, or far too long."""
    for code in (60, 77, 93, 97):
        told = answer(CHAIN, rom(0, more={code: odd}))
        assert told.options[53] == bytes([dhcp.OFFER])


@needs_tshark
def test_tshark_reads_our_replies(tmp_path: Path) -> None:
    """Offers and acknowledgments for all kinds of ROM, with everything there is to tell; a refusal;
    and what overflows into the fields of old."""
    full = evolve(
        SETTINGS,
        boot=CHAIN,
        ntp_servers=(GATEWAY,),
        domain=".".join(["a" * 49] * 4),
        search=("lab.example", "other.example"),
    )
    server = make_server(full)
    everything = {55: bytes([*ROM_LIST, *range(1, 130)])}
    questions = [
        discover(),
        message(None),
        rom(0, more=everything),
        rom(0, more={77: b"iPXE"} | everything),
        rom(7, more=everything),
        rom(16, "HTTPClient", more=everything),
        message(
            dhcp.REQUEST,
            options={50: FIRST, 54: GATEWAY} | dict(rom(0).options.items()) | {53: b"\x03"},
        ),
        init_reboot(bytes([192, 0, 2, 1])),
        message(dhcp.INFORM, ciaddr=FIRST),
    ]
    replies = [reply for each in questions if (reply := server.answer(each, 0.0))]
    frames = []
    for reply in replies:
        datagram = udp_datagram(GATEWAY, 67, FIRST, 68, reply.payload())
        (frame,) = ipv4_frames(ALICE, ALICE, GATEWAY, FIRST, UDP, datagram, 1500, 1)
        frames.append(frame[4:])
    assert complaints(frames, tmp_path) == []
    kinds = [kind for (kind,) in fields(frames, tmp_path, "dhcp.option.dhcp")]
    assert kinds == ["2"] * (len(replies) - 3) + ["5", "6", "5"]
    assert max(map(len, frames)) <= 14 + 576
