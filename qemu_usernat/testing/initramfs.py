"""An initramfs as a value: paths in, one cpio archive in the `newc` format out.

Owns the archive format alone (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
Refuses to know what is in the files. The same entries always give the same bytes: entries are
sorted, times are zero and inode numbers count up. The archive is not compressed, since under
emulation the guest takes longer to unpack it than QEMU takes to read it.
"""

import stat
from pathlib import PurePosixPath

MAGIC = b"070701"
ALIGNMENT = 4  # bytes; header with name, and data, are each padded to it


class Initramfs:
    """Files, directories, links and device nodes of a guest's first root."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def directory(self, path: str, permissions: int = 0o755) -> None:
        """Add a directory, and its parents where they are missing."""
        name = _name(path)
        for parent in reversed(PurePosixPath(name).parents):
            if str(parent) != ".":
                self._entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b"", (0, 0)))
        self._entries[name] = (stat.S_IFDIR | permissions, b"", (0, 0))

    def file(self, path: str, content: bytes, permissions: int = 0o644) -> None:
        """Add a regular file."""
        self._add(path, stat.S_IFREG | permissions, content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a device node."""
        self._add(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def archive(self) -> bytes:
        """The whole archive, ready for QEMU's `-initrd`."""
        pieces: list[bytes] = []
        for inode, (name, entry) in enumerate(sorted(self._entries.items()), start=1):
            pieces += _member(name, inode, *entry)
        pieces += _member("TRAILER!!!", 0, 0, b"", (0, 0))
        return b"".join(pieces)

    def _add(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = _name(path)
        parent = str(PurePosixPath(name).parent)
        if parent != "." and parent not in self._entries:
            self.directory(parent)
        self._entries[name] = (mode, content, device)


def _name(path: str) -> str:
    return str(PurePosixPath(path)).lstrip("/")


def _member(
    name: str, inode: int, mode: int, content: bytes, device: tuple[int, int]
) -> list[bytes]:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device (2), device node (2), name size, check
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
    header = MAGIC + b"".join(b"%08x" % field for field in fields)
    return [_padded(header + encoded), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
