"""A small Linux guest from Debian's own packages: a kernel and an initramfs, nothing else.

Owns the recipe: which kernel, which drivers, which programs, and how they become an initramfs
that has a shell on ttyS0 and a lease on eth0 some seconds after QEMU starts. Built once for each
recipe and kept in a folder; the same packages give the same bytes.

``python -m qemu_usernat.testing.guest_image FOLDER`` builds it for scripts.
"""

import hashlib
import lzma
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import attrs

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


@attrs.frozen
class GuestImage:
    """What QEMU boots: files for `-kernel` and `-initrd`, and what the guest's curl trusts."""

    kernel: Path
    initrd: Path
    ca_bundle: Path


def build(folder: Path) -> GuestImage:
    """The guest of this recipe, from `folder` or built into it (some 120 MB are fetched then).

    Raises UserError when the packages cannot be fetched.
    """
    image = GuestImage(folder / "vmlinux", folder / "initrd", folder / "ca-certificates.crt")
    recipe, recipe_file = _recipe(), folder / "recipe"
    if recipe_file.exists() and recipe_file.read_text() == recipe:
        return image
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as workshop:
        root = debian.fetch([KERNEL, *PACKAGES], Path(workshop))
        certificates = _certificates(root)
        for path, content in (
            (image.kernel, _unpacked(next((root / "boot").glob("vmlinuz-*")).read_bytes())),
            (image.initrd, _initramfs(root, certificates).archive()),
            (image.ca_bundle, certificates),
            (recipe_file, recipe.encode()),  # last: it says that the others are whole
        ):
            _replace(path, content)
    return image


def _recipe() -> str:
    """A name for all that the image is made from, except the packages' versions."""
    here = Path(__file__).parent
    ingredients = hashlib.sha256()
    for name in ("guest_image.py", "initramfs.py", "guest_init.sh", "guest_dhcp.sh"):
        ingredients.update((here / name).read_bytes())
    return ingredients.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Never leave half a file under the name, even when two builds run at once."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as half:
        half.write(content)
    Path(half.name).chmod(0o644)
    Path(half.name).replace(path)


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
    _add_drivers(guest, root)
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


def _add_drivers(guest: Initramfs, root: Path) -> None:
    """The drivers, and /etc/modules to load them by: each after those it depends on."""
    modules = {_module_name(path.stem): path for path in (root / "lib/modules").rglob("*.ko")}
    order: list[str] = []

    def load(names: Iterable[str]) -> None:
        for name in names:
            if name not in order:
                load(_dependencies(modules[name].read_bytes()))
                order.append(name)

    load(DRIVERS)
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


if __name__ == "__main__":
    made = build(Path(sys.argv[1]))
    print(made.kernel, made.initrd)
