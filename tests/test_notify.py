"""sd_notify: one datagram, to a path or an abstract name, and no fuss where nobody listens."""

import os
import socket
from pathlib import Path

import pytest

from qemu_usernat.notify import notify_ready


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_that_we_are_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    """Type=notify units leave "activating" at the moment we listen."""
    name = f"qemu-usernat-test-{os.getpid()}" if abstract else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(5)
        systemd.bind(f"\0{name}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        notify_ready()
        assert systemd.recv(100) == b"READY=1"


@pytest.mark.parametrize("name", [None, "", "vsock:2:1234", "/nowhere/notify", "/" + "x" * 200])
def test_without_a_listener_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """Started by hand, or by something odd: the network runs all the same."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if name is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify_ready()
