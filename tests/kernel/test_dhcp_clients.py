"""The DHCP clients of Linux systems, each with its kernel: a lease, a renewal, its end, and the
same address from a server that was started anew.

What the server knows stands in its lease file, and so the tests look there.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import define

from qemu_usernat.gateway.leases import HeldLease
from qemu_usernat.lease_file import read_leases
from qemu_usernat.primitives.addresses import format_address, parse_mac
from qemu_usernat.testing.namespace import NamespaceGuest, connect_unix
from tests.kernel.laboratory import GUEST, ServerProcess, until

pytestmark = pytest.mark.kernel

MAC = "52:54:00:00:00:0a"
NEWCOMER = "52:54:00:00:00:0b"
LEASE_TIME = 4  # seconds: a renewal is due after half of it
LONG_LEASE_TIME = 60  # seconds: does not end by itself before it is given back

NETWORKD = Path("/lib/systemd/systemd-networkd")

SCRIPT = """#!/bin/sh
# Of udhcpc and of dhclient: what they got, and the address without which nothing is renewed.
echo "$1$reason ${ip:-$new_ip_address} ${router:-$new_routers}" >>events
case "$1$reason" in
bound|BOUND|REBOOT) ip address replace "${ip:-$new_ip_address}/24" dev tap0 ;;
esac
exit 0
"""

# It needs folders of its own, a /sys that says there is no udev, and nobody's D-Bus.
NETWORKD_SCRIPT = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
chown -R systemd-network:systemd-network /run/systemd/netif
mount --bind /sys /sys
mount -o remount,ro,bind /sys
cat >/run/systemd/network/10-tap.network <<END
[Match]
Name=tap0
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
END
exec /lib/systemd/systemd-networkd
"""

COMMANDS = {
    "udhcpc": ["busybox", "udhcpc", "-f", "-R", "-i", "tap0", "-s", "./script"],
    "dhclient": [
        "dhclient",
        "-d",
        "-4",
        "-cf",
        "{0}/conf",
        "-lf",
        "{0}/leases",
        "-pf",
        "{0}/pid",
        "-sf",
        "{0}/script",
        "tap0",
    ],
    "systemd-networkd": ["unshare", "--mount", "sh", "-c", NETWORKD_SCRIPT],
}
PROGRAMS = {"udhcpc": "busybox", "dhclient": "dhclient", "systemd-networkd": str(NETWORKD)}


@define(eq=False)
class Client:
    """A client that runs in a guest."""

    name: str
    guest: NamespaceGuest
    folder: Path
    process: "subprocess.Popen[bytes]"

    def address(self) -> str:
        """The address that the guest's kernel has."""
        words = self.guest.run(["ip", "-4", "-o", "address", "show", "tap0"]).split()
        return words[3] if words else ""

    def renew(self) -> None:
        """Where it can be told; the others do it by themselves, for their lease is short."""
        if self.name == "udhcpc":  # which takes no lease below 16 s seriously
            self.process.send_signal(signal.SIGUSR1)

    def leave(self) -> None:
        """Give the address back, as a system that shuts down may do."""
        if self.name == "dhclient":
            words = [word.replace("{0}", str(self.folder)) for word in COMMANDS[self.name]]
            words[1] = "-r"
            subprocess.run(self.guest.command(words), cwd=self.folder, check=True, timeout=20)
        else:
            self.process.terminate()
        self.process.wait(10)

    def words(self) -> str:
        """All it said."""
        events = self.folder / "events"
        return (self.folder / "log").read_text() + (events.read_text() if events.exists() else "")


@contextmanager
def serving(folder: Path, lease_time: int = LEASE_TIME) -> Iterator[ServerProcess]:
    """A server with a lease file and short leases."""
    (folder / "net.toml").write_text(f"[network]\nlease_time = {lease_time}\n")
    options = ("--config", str(folder / "net.toml"), "--lease-file", str(folder / "leases"))
    server = ServerProcess(folder, 1500, options)
    server.start()
    try:
        yield server
    finally:
        server.end()


@contextmanager
def running(server: ServerProcess, name: str, mac: str, folder: Path) -> Iterator[Client]:
    """A client in a guest of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "script").write_text(SCRIPT)
    (folder / "script").chmod(0o755)
    (folder / "leases").touch()
    (folder / "conf").write_text("initial-delay 0; initial-interval 1; reboot 1;\n")
    with ExitStack() as ends:
        guest = ends.enter_context(NamespaceGuest(connect_unix(server.path), 1500, None))
        guest.run(["ip", "link", "set", "tap0", "address", mac])
        log = ends.enter_context((folder / "log").open("wb"))
        process = ends.enter_context(
            subprocess.Popen(
                guest.command([word.replace("{0}", str(folder)) for word in COMMANDS[name]]),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
        ends.callback(process.kill)
        client = Client(name, guest, folder, process)
        try:
            until(lambda: bool(client.address()), f"an address by {name}", 20)
        except AssertionError as error:
            raise AssertionError(f"{error}: {client.words()}") from error
        yield client


def lease_of(folder: Path, mac: str) -> HeldLease | None:
    """What the server remembers of a machine; times are seconds since 1970."""
    leases, flaws = read_leases((folder / "leases").read_text(), 0.0, 0.0)
    assert flaws == []
    return next((each for each in leases if each.mac == parse_mac(mac)), None)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_client_of_linux(name: str, tmp_path: Path) -> None:
    """It gets an address, renews it, has it again after a restart of the server, gives it back."""
    if shutil.which(PROGRAMS[name]) is None:
        pytest.skip(f"there is no {name}")
    with serving(tmp_path) as server, running(server, name, MAC, tmp_path / "client") as client:
        until(lambda: lease_of(tmp_path, MAC) is not None, "a lease in the file")
        first = lease_of(tmp_path, MAC)
        assert first is not None
        address = f"{format_address(first.address)}/24"
        assert client.address() == address == GUEST

        def renewed() -> bool:
            now = lease_of(tmp_path, MAC)
            return now is not None and now.expires > first.expires

        # The file has whole seconds: a renewal within the first one would not show.
        until(lambda: time.time() > first.expires - LEASE_TIME + 1.5, "another second")
        client.renew()
        until(renewed, f"a renewal by {name}: {client.words()}")
        assert client.address() == address
        assert server.report()["dhcp.nak"] == 0
    with (
        serving(tmp_path, LONG_LEASE_TIME) as server,
        running(server, "udhcpc", NEWCOMER, tmp_path / "newcomer") as newcomer,
        running(server, name, MAC, tmp_path / "client") as client,
    ):
        assert client.address() == address != newcomer.address()
        client.leave()

        def is_free() -> bool:
            now = lease_of(tmp_path, MAC)
            return now is not None and now.expires <= time.time() + 1

        # Sooner than its lease ends by itself.
        until(is_free, f"the end of the lease of {name}: {client.words()}", LONG_LEASE_TIME / 2)
        assert server.report()["dhcp.release_of_unknown"] == 0
