"""The guest's image: what goes in is in it, the same goes in the same way, and it is kept."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing import debian
from qemu_usernat.testing.guest_image import BASE_AGE, IMAGE_AGE, GuestImage, default_cache

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]  # the first fetches packages

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture(scope="session")
def base() -> GuestImage:
    """The image without additions, in the usual cache."""
    return GuestImage.build()


@pytest.fixture
def cache(base: GuestImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another cache, which has the packages, on a host without a network."""
    (tmp_path / "packages").symlink_to(default_cache() / "packages")

    def no_network(*_: object) -> None:
        raise UserError("apt-get failed: no network")

    monkeypatch.setattr(debian, "download", no_network)
    return tmp_path


def with_base(cache: Path, base: GuestImage) -> Path:
    (cache / "base").symlink_to(base.initrd.parents[1])
    return cache


def unpacked(image: GuestImage, folder: Path, added: int) -> Path:
    """The archive behind the first `added` bytes, below `folder`."""
    subprocess.run(
        ["cpio", "-id", "--quiet"], input=image.initrd.read_bytes()[added:], cwd=folder, check=True
    )
    return folder


@pytest.mark.deep
def test_the_same_packages_give_the_same_bytes(base: GuestImage, cache: Path) -> None:
    """Built again elsewhere, without a network, kernel and initramfs are the same."""
    again = GuestImage.build(cache=cache)
    assert again.initrd.parent != base.initrd.parent
    assert again.kernel.read_bytes() == base.kernel.read_bytes()
    assert again.initrd.read_bytes() == base.initrd.read_bytes()


def test_files_and_certificates_are_added(base: GuestImage, cache: Path, tmp_path: Path) -> None:
    """Each file is there with its contents, programs can be run, the authority is trusted."""
    host = tmp_path / "tool"
    host.write_bytes(b"binary")
    host.chmod(0o700)
    script = tmp_path / "script"
    script.write_bytes(b"#!/bin/sh\n")
    files: dict[str, bytes | Path] = {
        "/opt/a/script": b"#!/bin/sh\n",
        "/opt/a/copy": script,
        "/etc/data": b"\0\xff",
        "/usr/bin/tool": host,
    }
    image = GuestImage.build(files=files, ca=CERTIFICATE, cache=with_base(cache, base))
    assert image.kernel.read_bytes() == base.kernel.read_bytes()
    room = tmp_path / "unpacked"
    room.mkdir()
    guest = unpacked(image, room, base.initrd.stat().st_size)
    assert (guest / "opt/a/script").read_bytes() == b"#!/bin/sh\n"
    assert (guest / "opt/a/script").stat().st_mode & 0o777 == 0o755
    assert (guest / "opt/a/copy").stat().st_mode & 0o777 == 0o755
    assert (guest / "etc/data").read_bytes() == b"\0\xff"
    assert (guest / "etc/data").stat().st_mode & 0o777 == 0o644
    assert (guest / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    bundle = (guest / "etc/ssl/certs/ca-certificates.crt").read_bytes()
    assert bundle == base.ca_bundle.read_bytes() + CERTIFICATE == image.ca_bundle.read_bytes()


def test_an_image_is_kept_by_its_contents(base: GuestImage, cache: Path, tmp_path: Path) -> None:
    """The same additions are the same files; other contents are another image."""
    with_base(cache, base)
    source = tmp_path / "source"
    source.write_text("one")
    first = GuestImage.build(files={"/a": source}, cache=cache)
    before = first.initrd.stat()
    assert GuestImage.build(files={"/a": b"one"}, cache=cache) == first
    assert first.initrd.stat().st_mtime_ns == before.st_mtime_ns
    source.write_text("two")
    assert GuestImage.build(files={"/a": source}, cache=cache) != first
    assert first.initrd.exists()


def test_builds_at_once_do_not_meet(base: GuestImage, cache: Path) -> None:
    """Eight at the same time, of two images: each has its own, whole."""
    with_base(cache, base)
    jobs = [{"/a": b"one" * (1 + number % 2)} for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        build = partial(GuestImage.build, cache=cache)
        images = list(pool.map(lambda files: build(files=files), jobs))
    assert len({image.initrd for image in images}) == 2
    assert images[0].initrd.read_bytes() != images[1].initrd.read_bytes()
    assert sorted(path.name for path in cache.glob("images/build-*")) == []


def test_what_cannot_be_is_told(base: GuestImage, cache: Path, tmp_path: Path) -> None:
    """A mistake names the argument, and what is allowed."""
    build = partial(GuestImage.build, cache=with_base(cache, base))
    with pytest.raises(UserError, match=r"files: 'etc/x'; allowed: the absolute path"):
        build(files={"etc/x": b""})
    with pytest.raises(UserError, match=r"files\['/x'\]: .*none: No such file"):
        build(files={"/x": tmp_path / "none"})
    with pytest.raises(UserError, match=r"files\['/x'\]: 'text'; allowed: contents as bytes, or"):
        build(files={"/x": "text"})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"ca: no certificate in it; allowed: .*PEM"):
        build(ca=b"\x30\x82")
    with pytest.raises(UserError, match="no network"):
        build(packages=["not-fetched-yet"])


def test_the_cache_is_where_one_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable names it; else it is in the user's cache folder."""
    monkeypatch.setenv("QEMU_USERNAT_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("QEMU_USERNAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/qemu-usernat")


def test_what_nobody_has_used_for_long_goes(base: GuestImage, cache: Path) -> None:
    """Images with files after a day, bases after a month: a cache that only grows fills a disk."""
    old, recent = cache / "images" / "old", cache / "images" / "recent"
    for folder, age in ((old, IMAGE_AGE + 60), (recent, IMAGE_AGE - 600)):
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    image = GuestImage.build(files={"/new": b"new"}, cache=with_base(cache, base))
    assert sorted((cache / "images").iterdir()) == sorted([recent, image.initrd.parent])
    assert time.time() - base.initrd.parent.stat().st_mtime < BASE_AGE / 2, "used just now"
