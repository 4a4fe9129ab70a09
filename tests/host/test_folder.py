"""The folder that guests read from: what is in it they get, what is beside it they do not."""

import os
from pathlib import Path

import pytest

from qemu_usernat.gateway.tftp import RefusalError
from qemu_usernat.host.folder import Folder
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.wire.tftp import ACCESS_VIOLATION, FILE_NOT_FOUND, NOT_DEFINED


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder with a file, another below, and a secret beside it."""
    root = tmp_path / "tftp"
    (root / "boot" / "grub").mkdir(parents=True)
    (root / "kernel").write_bytes(b"kernel")
    (root / "boot" / "grub" / "grub.cfg").write_bytes(b"config")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "tftp-beside").mkdir()
    (tmp_path / "tftp-beside" / "secret").write_bytes(b"secret")
    return Folder(root)


def contents(folder: Folder, name: bytes) -> bytes:
    """All of a file."""
    file = folder.open(name)
    try:
        return file.read(0, file.size)
    finally:
        file.close()


def refusal(folder: Folder, name: bytes) -> int:
    """The code of the error that a guest gets; and nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(RefusalError) as refused:
        folder.open(name)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    return refused.value.code


@pytest.mark.parametrize(
    "name",
    [
        b"boot/grub/grub.cfg",
        b"/boot/grub/grub.cfg",
        b"//boot/./grub//grub.cfg",
        b"\\boot\\grub\\grub.cfg",
    ],
)
def test_a_name_is_a_path_below_the_folder(folder: Folder, name: bytes) -> None:
    """However boot loaders write it: GRUB with a slash in front, Windows with backslashes."""
    assert contents(folder, name) == b"config"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"nothing", FILE_NOT_FOUND),
        (b"", FILE_NOT_FOUND),
        (b"/", FILE_NOT_FOUND),
        (b".", FILE_NOT_FOUND),
        (b"kernel/below", FILE_NOT_FOUND),
        (b"x" * 5000, FILE_NOT_FOUND),
        (b"Kernel", FILE_NOT_FOUND),
        (b"boot", ACCESS_VIOLATION),
        (b"../secret", ACCESS_VIOLATION),
        (b"boot/../../secret", ACCESS_VIOLATION),
        (b"..\\secret", ACCESS_VIOLATION),
        (b"boot/../kernel", ACCESS_VIOLATION),
        (b"/etc/passwd", FILE_NOT_FOUND),
        (b"/proc/self/environ", FILE_NOT_FOUND),
        (b"\xff\xfe", FILE_NOT_FOUND),
    ],
)
def test_what_is_not_there_or_not_below_is_refused(folder: Folder, name: bytes, code: int) -> None:
    """By the code that says why."""
    assert refusal(folder, name) == code


def test_a_link_may_lead_anywhere_inside(folder: Folder) -> None:
    """Not outside, neither straight nor by a folder, nor to a folder whose name begins alike."""
    (folder.path / "link").symlink_to("boot/grub/grub.cfg")
    (folder.path / "absolute").symlink_to(folder.path / "kernel")
    assert contents(folder, b"link") == b"config"
    assert contents(folder, b"absolute") == b"kernel"
    (folder.path / "out").symlink_to("../secret")
    (folder.path / "etc").symlink_to("/etc")
    (folder.path / "beside").symlink_to("../tftp-beside")
    (folder.path / "proc").symlink_to("/proc/self")
    (folder.path / "loop").symlink_to("loop")
    for name in (b"out", b"etc/passwd", b"beside/secret", b"proc/root/etc/passwd"):
        assert refusal(folder, name) == ACCESS_VIOLATION
    assert refusal(folder, b"loop") == FILE_NOT_FOUND


def test_the_folder_itself_may_be_a_link(folder: Folder, tmp_path: Path) -> None:
    """Also one that is turned to another folder while we serve, as releases are made current."""
    link = tmp_path / "current"
    link.symlink_to("tftp")
    current = Folder(link)
    assert contents(current, b"kernel") == b"kernel"
    link.unlink()
    link.symlink_to("tftp-beside")
    assert refusal(current, b"kernel") == FILE_NOT_FOUND
    assert contents(current, b"secret") == b"secret"


def test_only_regular_files_are_files(folder: Folder) -> None:
    """A FIFO without a writer does not hold us up; devices and sockets are not touched."""
    os.mkfifo(folder.path / "fifo")
    (folder.path / "null").symlink_to("/dev/null")
    assert refusal(folder, b"fifo") == ACCESS_VIOLATION
    assert refusal(folder, b"null") == ACCESS_VIOLATION


def test_what_we_may_not_read_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the code for it. (The tests run as root, whom nothing is forbidden.)"""

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert refusal(folder, b"kernel") == ACCESS_VIOLATION


def test_a_file_is_read_in_parts(folder: Folder) -> None:
    """From anywhere, and not beyond its end."""
    octets = bytes(range(256)) * 20_000
    (folder.path / "large").write_bytes(octets)
    file = folder.open(b"large")
    assert file.size == len(octets)
    assert b"".join(file.read(at, 65_000) for at in range(0, len(octets), 65_000)) == octets
    assert file.read(len(octets), 512) == b""
    file.close()


@pytest.mark.parametrize("change", [b"kernex", b"ker", b"kernel and more"])
def test_a_file_that_changes_is_not_the_same(folder: Folder, change: bytes) -> None:
    """Overwritten, cut off, or grown: it is said, and no mixture is sent."""
    file = folder.open(b"kernel")
    path = folder.path / "kernel"
    path.write_bytes(change)
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))
    with pytest.raises(RefusalError, match="changed") as refused:
        file.read(0, 6)
    assert refused.value.code == NOT_DEFINED
    file.close()


def test_a_file_that_is_replaced_is_read_to_its_end(folder: Folder) -> None:
    """A new one under its name is another file; who has begun gets the old one whole."""
    file = folder.open(b"kernel")
    (folder.path / "new").write_bytes(b"another")
    (folder.path / "new").rename(folder.path / "kernel")
    assert file.read(0, 6) == b"kernel"
    file.close()


def test_a_mistake_is_told_at_the_start(folder: Folder, tmp_path: Path) -> None:
    """Before any guest waits for what is not there."""
    folder.check(["kernel", "/boot/grub/grub.cfg"])
    with pytest.raises(UserError, match=r'"pxelinux.0" is not to be had from .*/tftp'):
        folder.check(["pxelinux.0"])
    with pytest.raises(UserError, match=r"not outside of the folder; allowed: a file in the"):
        folder.check(["../secret"])
    with pytest.raises(
        UserError, match=r"tftp \(--tftp\) is .*/no: No such file .*allowed: a folder"
    ):
        Folder(tmp_path / "no").check([])
    with pytest.raises(UserError, match=r"tftp \(--tftp\) is .*/secret: Not a directory"):
        Folder(tmp_path / "secret").check([])
