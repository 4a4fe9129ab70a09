"""Telling systemd that we are ready: sd_notify(3), the one datagram of it that is needed."""

import os
import socket


def notify_ready() -> None:
    """Send READY=1 to $NOTIFY_SOCKET, a path or an @abstract name, where there is one.

    A service manager that cannot be told (OSError) is its own trouble, not the guests'.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(b"READY=1", address)
    except OSError:
        return
