"""A small internet of Linux kernels: a host for our server, three routers behind it, a site behind
those.

    server's host -- 172.20.0.2 -- 172.20.0.6 --(MTU 1280)-- 172.20.0.10 -- the site 172.20.9.7

Each is a network namespace, so each takes a hop off the TTL, and speaks for itself where a packet
cannot go on. The second router knows addresses that it refuses in each of the ways there are.
"""

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import frozen

from qemu_usernat.testing.namespace import SOCKET_TIMEOUT, inside_namespace

HOST = "172.20.0.1"
ROUTERS = ("172.20.0.2", "172.20.0.6", "172.20.0.10")
SITE = "172.20.9.7"
NARROW = 1280  # bytes, between the second router and the third

NEIGHBOUR = "172.20.5.9"
"""On the host's own link; nobody answers its ARP."""
NO_HOST = "172.20.9.101"
"""The second router says: host unreachable."""
PROHIBITED = "172.20.9.102"
"""It says: communication administratively prohibited."""
BLACK_HOLE = "172.20.9.103"
"""It says nothing."""
NO_NETWORK = "172.21.0.1"
"""The first router says: network unreachable."""


@frozen
class Kernel:
    """A network namespace, which ends with the process that holds it."""

    process: "subprocess.Popen[bytes]"

    @property
    def path(self) -> str:
        """Of its namespace."""
        return f"/proc/{self.process.pid}/ns/net"

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs `words` in it."""
        return ["nsenter", f"--net={self.path}", "--", *words]

    def run(self, *words: str, input: str = "") -> str:  # noqa: A002
        """Run a program in it to its end; what it wrote."""
        done = subprocess.run(
            self.command(words), input=input, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout

    def open_socket(
        self, kind: socket.SocketKind = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """A socket of its kernel, with a time limit."""
        with Path(self.path).open("rb") as namespace, inside_namespace(namespace.fileno()):
            made = socket.socket(socket.AF_INET, kind, protocol)
        made.settimeout(SOCKET_TIMEOUT)
        return made

    def ip(self, *lines: str) -> None:
        """Configure it by ip(8)."""
        self.run("ip", "-batch", "-", input="\n".join(lines))

    def refuse(self, *rules: str) -> None:
        """What nft(8) says of packets that are to be forwarded.

        Routes of type unreachable would do, but for the kernel's limit of five errors in a row.
        """
        lines = ["type filter hook forward priority 0;", *rules]
        text = "table ip refuse {\nchain forward {\n" + "\n".join(lines) + "\n}\n}\n"
        self.run("nft", "-f", "-", input=text)

    def sysctl(self, **settings: str) -> None:
        """Settings of ``net.ipv4``."""
        for name, value in settings.items():
            self.run("sysctl", "-qw", f"net.ipv4.{name}={value}")


@frozen
class Internetwork:
    """All of them, wired."""

    host: Kernel
    routers: tuple[Kernel, Kernel, Kernel]
    site: Kernel

    def allow_pings(self, group: int | None) -> None:
        """Which group may open datagram ICMP sockets on the host; None: nobody."""
        self.host.sysctl(ping_group_range="1 0" if group is None else f"{group} {group}")


@contextmanager
def internetwork() -> Iterator[Internetwork]:
    """For the length of a ``with``."""
    with ExitStack() as ends:
        host, first, second, third, site = (kernel(ends) for _ in range(5))
        device = wire(host, f"{HOST}/30", first, "172.20.0.2/30")
        wire(first, "172.20.0.5/30", second, "172.20.0.6/30")
        wire(second, "172.20.0.9/30", third, "172.20.0.10/30", mtu=NARROW)
        wire(third, "172.20.9.1/24", site, f"{SITE}/24")
        host.ip("route add default via 172.20.0.2", f"address add 172.20.5.1/24 dev {device}")
        host.run(
            "sysctl",
            "-qw",
            f"net.ipv4.neigh.{device}.mcast_solicit=1",
            f"net.ipv4.neigh.{device}.retrans_time_ms=50",
        )
        first.ip(
            "route add default via 172.20.0.6",
        )
        first.refuse(f"ip daddr {NO_NETWORK} reject with icmp type net-unreachable")
        second.ip(
            "route add 172.20.9.0/24 via 172.20.0.10", "route add 172.20.0.0/30 via 172.20.0.5"
        )
        second.refuse(
            f"ip daddr {NO_HOST} reject with icmp type host-unreachable",
            f"ip daddr {PROHIBITED} reject with icmp type admin-prohibited",
            f"ip daddr {BLACK_HOLE} drop",
        )
        third.ip("route add default via 172.20.0.9")
        site.ip("route add default via 172.20.9.1")
        yield Internetwork(host, (first, second, third), site)


def this_kernel(ends: ExitStack) -> Kernel:
    """The one that the tests are in, until `ends` does."""
    process = ends.enter_context(subprocess.Popen(["sleep", "infinity"]))
    ends.callback(process.kill)
    return Kernel(process)


def kernel(ends: ExitStack) -> Kernel:
    """A new one, until `ends` does."""
    words = ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
    process = ends.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE))
    ends.callback(process.kill)
    assert process.stdout is not None
    process.stdout.readline()
    made = Kernel(process)
    made.ip("link set lo up")
    # Errors to one address a second are the default: a traceroute would wait for each of its own.
    made.sysctl(ip_forward="1", icmp_ratelimit="0")
    return made


def wire(near: Kernel, near_address: str, far: Kernel, far_address: str, mtu: int = 1500) -> str:
    """A link between two, of that MTU in bytes; the name of the near end."""
    count = near.run("ip", "-brief", "link").count("\n")
    here, there = f"to-far{count}", "to-near"
    near.ip(f"link add name {here} type veth peer name {there} netns {far.process.pid}")
    for end, device, address in ((near, here, near_address), (far, there, far_address)):
        end.ip(
            f"link set {device} addrgenmode none",
            f"address add {address} dev {device}",
            f"link set {device} mtu {mtu} up",
        )
    return here
