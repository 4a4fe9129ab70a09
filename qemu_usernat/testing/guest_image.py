"""A small Linux guest from Debian's own packages: a kernel and an initramfs, nothing else.

Owns the recipe: which kernel, which drivers, which programs, and how they become an initramfs
that has a shell on ttyS0 and a lease on eth0 some seconds after QEMU starts.

Three things are kept in the cache, each under a name made from all that it is made of:

- ``packages/``: Debian's archives, as they were fetched. From then on no network is needed, and
  the same names give the same bytes. Remove a folder to have newer versions.
- ``base/``: the kernel, and the initramfs of a set of packages and modules; they go when nobody
  has used them for a month.
- ``images/``: a base with somebody's files: the kernel reads one archive after the other, so these
  are appended. A certificate made for one run makes such an image; they go after a day.

``python -m qemu_usernat.testing`` builds it and prints where kernel and initramfs are.
"""

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing import debian
from qemu_usernat.testing.initramfs import Initramfs

# Not the cloud kernel: that one knows no card other than virtio's and VMware's.
KERNEL = "linux-image-amd64"
DRIVERS = ("virtio_pci", "virtio_mmio", "virtio_net", "virtio_rng", "e1000")
PACKAGES = (
    "bash",
    "bind9-dnsutils",
    "busybox-static",
    "ca-certificates",
    "curl",
    "ethtool",
    "iperf3",
    "iputils-ping",
    "ncurses-base",
    "openssl",
    "socat",
    "wget",
)
PROGRAMS = ("bash", "curl", "dig", "ethtool", "iperf3", "openssl", "ping", "socat", "wget")
TERMINALS = ("d/dumb", "l/linux", "v/vt100", "x/xterm", "x/xterm-256color")
LOADER = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
ACCOUNTS = {
    "etc/passwd": "root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 guest\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/resolv.conf": "",
}
FOR_PEOPLE = tuple(f"usr/share/{name}/" for name in ("doc", "info", "lintian", "locale", "man"))
BASE_AGE = 30 * 86_400.0  # seconds that a base is kept after its last use
KERNEL_MEMORY = 80  # MiB that a guest's kernel takes for itself, generously
IMAGE_AGE = 86_400.0  # and an image with somebody's files


@attrs.frozen
class GuestImage:
    """What QEMU boots: files for `-kernel` and `-initrd`, and what the guest's curl trusts."""

    kernel: Path
    initrd: Path
    ca_bundle: Path

    @property
    def vmlinuz(self) -> Path:
        """The kernel as Debian packs it: for boot loaders. QEMU itself starts `kernel` sooner."""
        return self.kernel.with_name("vmlinuz")

    @property
    def memory_minimum(self) -> int:
        """MiB of memory that it can be unpacked in.

        The archive is there until all of it is unpacked, and what is unpacked may take half of the
        rest: beyond that the kernel leaves files out, without a word.
        """
        return KERNEL_MEMORY + 3 * -(-self.initrd.stat().st_size // (1 << 20))

    @classmethod
    def build(
        cls,
        *,
        packages: Sequence[str] = (),
        files: Mapping[str, bytes | Path] | None = None,
        ca: bytes | None = None,
        modules: Sequence[str] = (),
        cache: Path | None = None,
    ) -> "GuestImage":
        """The guest with these additions, from the cache, or built into it.

        - `packages`: Debian packages; all their files, and those of the packages they depend on,
          but documentation. Their installation scripts are not run.
        - `files`: by their path in the guest: contents, or a file of the host to take them from.
          What begins with ``#!`` or is an ELF program can be run in the guest, and so can a file
          of the host's that is executable.
        - `ca`: certificates in PEM that the guest trusts besides Debian's.
        - `modules`: kernel modules to load at boot, with those they depend on.
        - `cache`: the folder to keep all of it in; else $QEMU_USERNAT_CACHE, else
          ~/.cache/qemu-usernat. Several builds at once wait for each other.

        It blocks, and for long where it has to fetch packages (some 120 MB). UserError when these
        cannot be fetched, or when an argument is wrong.
        """
        added = _checked(files or {}, ca)
        folder = default_cache() if cache is None else cache
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            base = _base(folder, sorted(set(packages)), sorted(set(modules)))
            return _with_files(folder, base, added, ca) if added or ca else base


def default_cache() -> Path:
    """$QEMU_USERNAT_CACHE, else `qemu-usernat` in the user's cache folder."""
    if named := os.environ.get("QEMU_USERNAT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qemu-usernat"


def _checked(files: Mapping[str, bytes | Path], ca: bytes | None) -> dict[str, tuple[bytes, int]]:
    """Contents and permissions by path."""
    if ca is not None and b"-----BEGIN CERTIFICATE-----" not in ca:
        raise UserError("ca: no certificate in it; allowed: certificates in PEM, as bytes")
    added = {}
    for path, source in files.items():
        if not path.startswith("/") or path.endswith("/"):
            raise UserError(f"files: {path!r}; allowed: the absolute path of a file in the guest")
        if isinstance(source, Path):
            try:
                content, executable = source.read_bytes(), os.access(source, os.X_OK)
            except OSError as error:
                raise UserError(f"files[{path!r}]: {source}: {error.strerror}") from error
        elif isinstance(source, bytes):
            content, executable = source, False
        else:
            raise UserError(f"files[{path!r}]: {source!r}; allowed: contents as bytes, or a Path")
        executable = executable or content.startswith((b"#!", b"\x7fELF"))
        added[path] = content, 0o755 if executable else 0o644
    return added


def _base(cache: Path, packages: list[str], modules: list[str]) -> GuestImage:
    kept = cache / "base" / _name(_recipe(), *packages, "", *modules)
    image = _image(kept)
    if kept.exists():
        os.utime(kept)
    else:
        _forget_old(kept.parent, BASE_AGE)
        ours = _archives(cache, [KERNEL, *PACKAGES])
        theirs = _archives(cache, packages) if packages else []
        with _workshop(kept) as workshop:
            root, added = workshop / "ours", workshop / "theirs"
            debian.unpack(ours, root)
            debian.unpack(theirs, added)
            certificates = _certificates(root)
            guest = _initramfs(root, certificates)
            _add_drivers(guest, root, [*DRIVERS, *modules])
            _add_packages(guest, added)
            packed = next((root / "boot").glob("vmlinuz-*")).read_bytes()
            _keep(
                workshop,
                kept,
                {
                    image.kernel: _unpacked(packed),
                    image.vmlinuz: packed,
                    image.initrd: guest.archive(),
                    image.ca_bundle: certificates,
                },
            )
    return image


def _with_files(
    cache: Path, base: GuestImage, added: dict[str, tuple[bytes, int]], ca: bytes | None
) -> GuestImage:
    parts = [
        word
        for path, (content, mode) in sorted(added.items())
        for word in (path, str(mode), content)
    ]
    kept = cache / "images" / _name(base.initrd.parent.name, *parts, "ca", ca or b"")
    image = attrs.evolve(_image(kept), kernel=base.kernel)
    if kept.exists():
        os.utime(kept)
        return image
    _forget_old(kept.parent, IMAGE_AGE)
    certificates = base.ca_bundle.read_bytes() + (ca or b"")
    guest = Initramfs()
    if ca is not None:
        guest.file(CA_BUNDLE, certificates)
    for path, (content, mode) in added.items():
        guest.file(path, content, mode)
    with _workshop(kept) as workshop:
        _keep(
            workshop,
            kept,
            {
                image.initrd: base.initrd.read_bytes() + guest.archive(),
                image.ca_bundle: certificates,
            },
        )
    return image


def _archives(cache: Path, packages: list[str]) -> list[Path]:
    kept = cache / "packages" / _name(*packages)
    if not kept.exists():
        with _workshop(kept) as workshop:
            archives = debian.download(packages, workshop)
            (workshop / "kept").mkdir()
            for archive in archives:
                archive.rename(workshop / "kept" / archive.name)
            (workshop / "kept").rename(kept)
    return sorted(kept.glob("*.deb"))


def _image(folder: Path) -> GuestImage:
    return GuestImage(folder / "vmlinux", folder / "initrd", folder / "ca-certificates.crt")


def _name(*parts: str | bytes) -> str:
    """A name for all of these, in this order."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        whole.update(b"%d:" % len(content) + content)
    return whole.hexdigest()[:32]


def _recipe() -> str:
    """A name for all that the image is made by."""
    here = Path(__file__).parent
    return _name(
        *(
            (here / name).read_bytes()
            for name in ("guest_image.py", "initramfs.py", "guest_init.sh", "guest_dhcp.sh")
        )
    )


@contextmanager
def _workshop(kept: Path) -> Iterator[Path]:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="build-") as workshop:
        yield Path(workshop)


def _keep(workshop: Path, kept: Path, files: Mapping[Path, bytes]) -> None:
    """Under its name a folder is whole, or it is not there."""
    whole = workshop / "whole"
    whole.mkdir()
    for path, content in files.items():
        (whole / path.name).write_bytes(content)
    whole.rename(kept)


def _forget_old(images: Path, age: float) -> None:
    if images.exists():
        for image in images.iterdir():
            if image.stat().st_mtime < time.time() - age:
                shutil.rmtree(image, ignore_errors=True)


def _unpacked(kernel: bytes) -> bytes:
    """The ELF file inside a compressed kernel; QEMU starts it directly, by the PVH entry.

    Under emulation it takes the guest three seconds to unpack it. The offsets are those of
    Linux's boot protocol (Documentation/arch/x86/boot.rst).
    """
    setup_sectors = kernel[0x1F1]
    offset, length = struct.unpack_from("<II", kernel, 0x248)  # payload_offset, payload_length
    start = (setup_sectors + 1) * 512 + offset
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(kernel[start : start + length])


def _initramfs(root: Path, certificates: bytes) -> Initramfs:
    here = Path(__file__).parent
    guest = Initramfs()
    for folder in ("dev", "proc", "sys", "tmp", "run", "root", "bin", "sbin", "var/tmp"):
        guest.directory(folder)
    guest.character_device("dev/console", 5, 1)
    guest.file("init", (here / "guest_init.sh").read_bytes(), 0o755)
    guest.file("etc/dhcp.sh", (here / "guest_dhcp.sh").read_bytes(), 0o755)
    guest.file("bin/busybox", (root / "bin/busybox").read_bytes(), 0o755)
    for path, text in ACCOUNTS.items():
        guest.file(path, text.encode())
    guest.file(CA_BUNDLE, certificates)
    guest.link("usr/lib/ssl/certs", "/etc/ssl/certs")
    guest.link("usr/lib/ssl/cert.pem", f"/{CA_BUNDLE}")
    guest.file("usr/lib/ssl/openssl.cnf", (root / "etc/ssl/openssl.cnf").read_bytes())
    for terminal in TERMINALS:
        guest.file(f"lib/terminfo/{terminal}", (root / "lib/terminfo" / terminal).read_bytes())
    _add_programs(guest, root)
    return guest


def _add_programs(guest: Initramfs, root: Path) -> None:
    """Each program with the libraries that Debian's own loader says it needs."""
    folders = ":".join(str(root / folder) for folder in LIBRARY_FOLDERS)
    for name in PROGRAMS:
        program = next(
            root / folder / name
            for folder in ("usr/bin", "bin", "usr/sbin", "sbin")
            if (root / folder / name).exists()
        )
        guest.file(f"usr/bin/{name}", program.read_bytes(), 0o755)
        listing = subprocess.run(
            [root / LOADER, "--list", "--library-path", folders, program],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for library in re.findall(rf"=> {re.escape(str(root))}/(\S+)", listing):
            guest.file(library, (root / library).read_bytes(), 0o755)
    guest.file("lib64/ld-linux-x86-64.so.2", (root / LOADER).read_bytes(), 0o755)


def _add_drivers(guest: Initramfs, root: Path, drivers: Iterable[str]) -> None:
    """The drivers, and /etc/modules to load them by: each after those it depends on."""
    modules = {_module_name(path.stem): path for path in (root / "lib/modules").rglob("*.ko")}
    order: list[str] = []

    def load(names: Iterable[str]) -> None:
        for name in map(_module_name, names):
            if name not in modules:
                raise UserError(f"modules: {name!r}; allowed: the modules of Debian's {KERNEL}")
            if name not in order:
                load(_dependencies(modules[name].read_bytes()))
                order.append(name)

    load(drivers)
    for name in order:
        guest.file(f"lib/modules/{name}.ko", modules[name].read_bytes())
    guest.file("etc/modules", "".join(f"/lib/modules/{name}.ko\n" for name in order).encode())


def _dependencies(module: bytes) -> list[str]:
    """The names in a kernel module's `depends=` field, which depmod reads too."""
    field = re.search(rb"\0depends=([^\0]*)\0", module)
    return [_module_name(name) for name in field[1].decode().split(",") if name] if field else []


def _module_name(name: str) -> str:
    return name.replace("-", "_")


def _certificates(root: Path) -> bytes:
    """The bundle that `update-ca-certificates` would have made on installation."""
    folder = root / "usr/share/ca-certificates"
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*.crt")))


def _add_packages(guest: Initramfs, root: Path) -> None:
    """All files of unpacked packages but those that only people read."""
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.startswith(FOR_PEOPLE):
            continue
        if path.is_symlink():
            guest.link(name, str(path.readlink()))
        elif path.is_dir():
            guest.directory(name)
        elif path.is_file():
            guest.file(name, path.read_bytes(), path.stat().st_mode & 0o7777)
