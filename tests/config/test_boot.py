"""What machines boot, as a person writes it, and every way to write it wrong."""

from pathlib import Path

import pytest

from qemu_usernat.config import Config, parse_endpoint, read_config
from qemu_usernat.config.boot import Boot
from qemu_usernat.primitives.errors import UserError


def read(tmp_path: Path, text: str, **options: str) -> Config:
    file = tmp_path / "net.toml"
    file.write_text(text)
    return read_config(file, options, listen=parse_endpoint("unix:/nowhere"))


def test_one_file_for_all_machines(tmp_path: Path) -> None:
    """A folder and a name; the options win."""
    text = 'tftp = "/srv/tftp"\nbootfile = "pxelinux.0"'
    assert read(tmp_path, text).network.boot == Boot(Path("/srv/tftp"), {"other": "pxelinux.0"})
    boot = read(tmp_path, text, bootfile="boot.ipxe", tftp="/boot").network.boot
    assert boot == Boot(Path("/boot"), {"other": "boot.ipxe"})


def test_a_file_by_kind_of_machine(tmp_path: Path) -> None:
    """The chain of a laboratory: a ROM loads iPXE, and iPXE a script from the web."""
    text = """
    tftp = "/srv/tftp"
    [bootfile]
    bios = "undionly.kpxe"
    uefi = "ipxe.efi"
    ipxe = "http://10.0.2.2:8000/menu.ipxe"
    """
    boot = read(tmp_path, text).network.boot
    assert boot.files["ipxe"] == "http://10.0.2.2:8000/menu.ipxe"
    assert boot.names == ["undionly.kpxe", "ipxe.efi"]


def test_a_url_needs_no_folder_and_a_folder_no_bootfile(tmp_path: Path) -> None:
    """Either makes sense by itself."""
    assert read(tmp_path, 'bootfile = "http://a/b"').network.boot.folder is None
    assert read(tmp_path, 'tftp = "/srv"').network.boot == Boot(Path("/srv"), {})
    assert read(tmp_path, "").network.boot == Boot()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tftp = 5", 'key "tftp" is 5; allowed: the path of a folder'),
        ("tftp = ''", 'key "tftp" is "" (it is empty); allowed: the path of a folder'),
        (
            "bootfile = 'pxelinux.0'",
            'net.toml: key "bootfile" is "pxelinux.0"; allowed: a URL like http://HOST/FILE, '
            "or a file beside --tftp DIR (tftp)",
        ),
        ("[bootfile]\nbios = 'a'\nipxe = 'http://a/b'", 'key "bootfile" is "a"; allowed: a URL'),
        ("bootfile = 5", 'key "bootfile" is 5; allowed: the name of a file in the folder'),
        ("bootfile = ''", '("" is empty or has spaces)'),
        ("bootfile = 'a b'", '("a b" is empty or has spaces)'),
        ("bootfile = 'gopher://a/b'", '("gopher://a/b" is not a URL of http, https, tftp, ftp'),
        ("bootfile = 'http://'", "is not a URL of"),
        ("tftp = '/'\n[bootfile]\nhttp = 'vmlinuz'", '"http" is "vmlinuz", no URL'),
        (f"bootfile = '{'x' * 128}'", "(a name is longer than 127 bytes)"),
        (f"bootfile = 'http://{'x' * 249}'", "(a URL is longer than 255 bytes)"),
        ("[bootfile]", 'key "bootfile" is a table; allowed: the name of a file'),
        ("[bootfile]\nefi = 'a'", '("efi" is no kind of machine); allowed: the name of a file'),
        ("[bootfile]\nbios = 5", '("bios" is not a name); allowed: the name of a file'),
        ("[bootfile]\nbios = ''", '("" is empty or has spaces)'),
    ],
)
def test_a_mistake_says_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    """Whoever reads the message can mend the file without opening the manual."""
    with pytest.raises(UserError) as refusal:
        read(tmp_path, text)
    assert message in str(refusal.value)
