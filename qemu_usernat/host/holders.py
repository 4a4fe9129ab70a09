"""Who holds a port of the host, as far as the kernel tells.

/proc/net lists sockets with their inodes, and each process its descriptors, which name those. Of
other people's processes only root may read them, and elsewhere than on Linux there is no such list:
then nobody is known.
"""

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_PROC = Path("/proc")
_LISTENS = "0A"
"""TCP_LISTEN, of linux/tcp_states.h."""


ANOTHERS = "a process of another user"


def holder(protocol: str, address: IPv4Address | IPv6Address, port: int) -> str:
    """Like "python3 (pid 4711)", or `ANOTHERS`; "" where nothing can be told."""
    hidden = False
    inodes = {f"socket:[{inode}]" for inode in _inodes(protocol, address, port)}
    for descriptors in _PROC.glob("[0-9]*/fd") if inodes else ():
        try:
            if any(_link(each) in inodes for each in descriptors.iterdir()):
                pid = descriptors.parent.name
                if int(pid) == os.getpid():
                    return "this very process"
                return f"{(descriptors.parent / 'comm').read_text().strip()} (pid {pid})"
        except PermissionError:
            hidden = True
        except OSError:  # it has ended
            continue
    return ANOTHERS if hidden else ""


def _link(descriptor: Path) -> str:
    """What it is of; "" where it is closed by now, as the one is that lists them."""
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""


def _inodes(protocol: str, address: IPv4Address | IPv6Address, port: int) -> Iterator[str]:
    """Of the sockets that are in the way of one at `address` and `port`."""
    for name in (protocol, f"{protocol}6"):
        try:
            lines = (_PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            host, _, number = fields[1].partition(":")
            if int(number, 16) != port or (protocol == "tcp" and fields[3] != _LISTENS):
                continue
            there = _address(host)
            if there == address or there.is_unspecified or address.is_unspecified:
                yield fields[9]


def _address(text: str) -> IPv4Address | IPv6Address:
    """Of /proc/net: words of 32 bits, each as a little-endian machine would print it."""
    words = [text[at : at + 8] for at in range(0, len(text), 8)]
    return ip_address(b"".join(bytes.fromhex(word)[::-1] for word in words))
