"""Booting from the network: which file a machine is led to, and the folder that holds it.

Owns who is told apart: not every machine can load everything. ``bootfile`` is one name for all of
them, or a table by kind of machine; each is a path in the folder of ``tftp``, or a URL.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

KINDS = {
    "ipxe": "iPXE, in a ROM or loaded by one: a script, a kernel, or a URL",
    "http": "UEFI that boots over HTTP: a URL",
    "bios": "PXE of a BIOS",
    "uefi": "PXE of UEFI for x86-64",
    "uefi_ia32": "PXE of UEFI for x86, 32 bits",
    "uefi_arm32": "PXE of UEFI for Arm, 32 bits",
    "uefi_arm64": "PXE of UEFI for Arm, 64 bits",
    "uefi_riscv64": "PXE of UEFI for RISC-V, 64 bits",
    "other": "all that have no line of their own",
}

ALLOWED = (
    f"the name of a file in the folder of tftp, or a URL like http://HOST/FILE; or a table of "
    f"these with the keys {', '.join(KINDS)}"
)
ALLOWED_WITHOUT_FOLDER = "a URL like http://HOST/FILE, or a file beside --tftp DIR (tftp)"

NAME_MAXIMUM = 127  # bytes; the field `file` (RFC 2131, 2), which is all that some ROMs read
URL_MAXIMUM = 255  # bytes; one option (RFC 2132, 9.5)

_URL = re.compile(r"(https?|tftp|ftp|nfs)://[!-~]+")
_NAME = re.compile(r"[^\x00-\x20\x7f]+")


@attrs.frozen
class Boot:
    """What machines boot: names and URLs by kind, and the folder of the names."""

    folder: Path | None = None
    files: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def names(self) -> list[str]:
        """Those files that are in the folder."""
        return [file for file in self.files.values() if not is_url(file)]


def is_url(file: str) -> bool:
    """Whether it says itself where it is."""
    return "://" in file


def read_bootfiles(raw: Any) -> dict[str, str]:
    """One for all, or a table."""
    if isinstance(raw, str):
        return {"other": _file(raw)}
    if not isinstance(raw, dict) or not raw:
        raise ValueError
    for kind, file in raw.items():
        if kind not in KINDS:
            raise ValueError(f'"{kind}" is no kind of machine')
        if not isinstance(file, str):
            raise ValueError(f'"{kind}" is not a name')
        if kind == "http" and not is_url(file):
            raise ValueError(f'"http" is "{file}", no URL: that firmware has no other way')
    return {kind: _file(file) for kind, file in raw.items()}


def _file(text: str) -> str:
    if is_url(text):
        if not _URL.fullmatch(text):
            raise ValueError(f'"{text}" is not a URL of http, https, tftp, ftp or nfs')
        if len(text) > URL_MAXIMUM:
            raise ValueError(f"a URL is longer than {URL_MAXIMUM} bytes")
    elif not _NAME.fullmatch(text):
        raise ValueError(f'"{text}" is empty or has spaces')
    elif len(text.encode()) > NAME_MAXIMUM:
        raise ValueError(f"a name is longer than {NAME_MAXIMUM} bytes")
    return text
