"""A folder of the host whose files guests may read, and nothing beside it.

A name is a path below the folder, whatever it begins with: boot loaders write ``/grub/grub.cfg``,
and some of them backslashes. What is judged is the opened thing itself: a symbolic link may lead
anywhere inside the folder, and what it leads to is a regular file, or it is not there. Opening for
the judgement (O_PATH) has no effect on devices, and does not wait for the writer of a FIFO.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from attrs import define

from qemu_usernat.gateway.tftp import RefusalError
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.wire.tftp import ACCESS_VIOLATION, FILE_NOT_FOUND, NOT_DEFINED

AHEAD = 1 << 20
"""Bytes that the kernel is asked to have at hand before they are read."""


@define(eq=False)
class HostFile:
    """An opened file: an `OpenedFile`. Reads are short, and of what the kernel was told about."""

    size: int
    _descriptor: int
    _changed: int
    """When, as it was opened."""
    _announced: int = 0

    def read(self, offset: int, count: int) -> bytes:
        """As many bytes, fewer only at the end; RefusalError where the file is being written."""
        if offset + count > self._announced:
            os.posix_fadvise(self._descriptor, offset, AHEAD, os.POSIX_FADV_WILLNEED)
            self._announced = offset + AHEAD // 2
        wanted = min(count, self.size - offset)
        try:
            octets = os.pread(self._descriptor, wanted, offset)
            state = os.fstat(self._descriptor)
        except OSError as error:
            raise RefusalError(NOT_DEFINED, f"cannot be read: {error.strerror}") from error
        if len(octets) < wanted or (state.st_mtime_ns, state.st_size) != (self._changed, self.size):
            raise RefusalError(NOT_DEFINED, "the file was changed while it was read")
        return octets

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)


@define
class Folder:
    """The folder at `path`, as it is at each moment."""

    path: Path

    def open(self, name: bytes) -> HostFile:
        """The file of that name; RefusalError where there is none to be had."""
        parts = [part for part in name.replace(b"\\", b"/").split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise RefusalError(ACCESS_VIOLATION, "not outside of the folder")
        if not parts:
            raise RefusalError(FILE_NOT_FOUND, "no such file")
        try:
            return self._open(os.fsencode(self.path.resolve()), b"/".join(parts))
        except OSError as error:
            if isinstance(error, PermissionError):
                raise RefusalError(ACCESS_VIOLATION, "not allowed") from error
            raise RefusalError(FILE_NOT_FOUND, "no such file") from error

    def _open(self, root: bytes, below: bytes) -> HostFile:
        found = os.open(root + b"/" + below, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise RefusalError(ACCESS_VIOLATION, "not a regular file")
            link = f"/proc/self/fd/{found}"
            if not os.fsencode(os.readlink(link)).startswith(root.rstrip(b"/") + b"/"):  # noqa: PTH115
                raise RefusalError(ACCESS_VIOLATION, "not outside of the folder")
            opened = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
        state = os.fstat(opened)
        return HostFile(state.st_size, opened, state.st_mtime_ns)

    def check(self, names: Iterable[str]) -> None:
        """UserError if the folder cannot be served, or if one of its files is missing."""
        try:
            with os.scandir(self.path):
                pass
        except OSError as error:
            raise UserError(
                f"tftp (--tftp) is {self.path}: {error.strerror}; allowed: a folder that can be "
                "read"
            ) from error
        for name in names:
            try:
                self.open(os.fsencode(name)).close()
            except RefusalError as refusal:
                raise UserError(
                    f'bootfile (--bootfile) "{name}" is not to be had from {self.path}: {refusal}; '
                    "allowed: a file in the folder of --tftp, or a URL like http://HOST/FILE"
                ) from refusal
