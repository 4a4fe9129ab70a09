"""What the DHCP server tells a machine that boots from the network.

Owns who asks, and in which fields and options each kind of boot ROM looks for its answer:

- `siaddr` and `file` for everybody, as BOOTP had them; options 66 and 67 for those who ask for
  them, and where a URL is too long for `file`. To a PXE ROM these end with a zero: some need it.
- PXE (option 60 "PXEClient…") is told that a PXE server speaks, and, by option 43, that the file is
  the answer: it does not look for boot servers, and does not wait for a proxy. Its machine
  identifier (97) comes back to it (RFC 4578, 2.3).
- UEFI HTTP boot (option 60 "HTTPClient…") wants its own word back, and a URL.
- iPXE says so in its user class (77), which is how it is told from the ROM that loaded it; by its
  option 175 it hears that no proxy is to be waited for.
"""

from attrs import frozen

from qemu_usernat.config.boot import Boot, is_url
from qemu_usernat.gateway.dhcp_options import PARAMETER_LIST
from qemu_usernat.primitives.addresses import ANY_IPV4, Address, format_address
from qemu_usernat.wire.dhcp import FILE_ROOM, DhcpMessage

VENDOR_OPTIONS = 43  # RFC 2132, 8.4
VENDOR_CLASS = 60  # RFC 2132, 9.13
SERVER_NAME = 66  # RFC 2132, 9.4
BOOT_FILE = 67  # RFC 2132, 9.5
USER_CLASS = 77  # RFC 3004
ARCHITECTURE = 93  # RFC 4578, 2.1
MACHINE_IDENTIFIER = 97  # RFC 4578, 2.3
IPXE_OPTIONS = 175

PXE = b"PXEClient"
HTTP = b"HTTPClient"
IPXE = (b"iPXE", b"\x04iPXE")  # as it says it, and as RFC 3004 would have it

# Intel's PXE specification 2.1, 2.4: PXE_DISCOVERY_CONTROL, bit 3: no discovery, take the file.
NO_DISCOVERY = bytes((6, 1, 8, 255))
NO_PROXY = bytes((176, 1, 1))

ARCHITECTURES = {
    0: "bios",
    6: "uefi_ia32",
    7: "uefi",
    9: "uefi",
    10: "uefi_arm32",
    11: "uefi_arm64",
    27: "uefi_riscv64",
}
"""IANA's registry of processor architecture types (RFC 4578, 2.1; RFC 5970, 3.3)."""


@frozen
class BootAnswer:
    """What to boot, as a reply says it: `siaddr`, `file`, and options."""

    server: Address
    file: bytes
    options: dict[int, bytes]


NOTHING = BootAnswer(ANY_IPV4, b"", {})


def boot_answer(message: DhcpMessage, boot: Boot, server: Address) -> BootAnswer:
    """What the machine that asks is to boot from `server`, or from where a URL says."""
    name = _file_for(message, boot)
    if not name:
        return NOTHING
    told, vendor = name.encode(), message.options.get(VENDOR_CLASS, b"")
    is_pxe = vendor.startswith(PXE)
    end = b"\0" if is_pxe else b""
    available = {BOOT_FILE: told + end}
    if not is_url(name):
        available[SERVER_NAME] = format_address(server).encode() + end
    in_field = told if len(told) <= FILE_ROOM else b""
    asked = message.options.get(PARAMETER_LIST, b"")
    boots = is_pxe or vendor.startswith(HTTP) or not in_field
    options = {code: available[code] for code in available if boots or code in asked}
    if is_pxe:
        options |= {VENDOR_CLASS: PXE, VENDOR_OPTIONS: NO_DISCOVERY}
        if MACHINE_IDENTIFIER in message.options:
            options[MACHINE_IDENTIFIER] = message.options[MACHINE_IDENTIFIER]
    elif vendor.startswith(HTTP):
        options[VENDOR_CLASS] = HTTP
    if _is_ipxe(message):
        options[IPXE_OPTIONS] = NO_PROXY
    return BootAnswer(ANY_IPV4 if is_url(name) else server, in_field, options)


def _file_for(message: DhcpMessage, boot: Boot) -> str:
    """The name or URL for this machine; "" where there is none that it could load."""
    vendor, files = message.options.get(VENDOR_CLASS, b""), boot.files
    other = files.get("other", "")
    if vendor.startswith(HTTP):
        return files.get("http", other if is_url(other) else "")
    own = files.get(ARCHITECTURES.get(_architecture(message), ""), "")
    if _is_ipxe(message):
        return files.get("ipxe", own or other)
    if vendor.startswith(PXE) and is_url(other):
        other = ""  # what a ROM cannot load would only keep it from booting its disk
    return own or other


def _is_ipxe(message: DhcpMessage) -> bool:
    return message.options.get(USER_CLASS, b"") in IPXE


def _architecture(message: DhcpMessage) -> int:
    """The first that the client names, or -1."""
    named = message.options.get(ARCHITECTURE, b"")
    return int.from_bytes(named[:2], "big") if len(named) >= 2 else -1
