"""A guest without QEMU: it speaks the stream protocol, and its TCP is the server's own engine.

`guest` is what a test holds; `stack` (addresses, ARP, ICMP), `tcp` and `stream`, `udp` and `dhcp`
are what it is made of, over a `link` that carries frames.
"""

from qemu_usernat.testing.fake_guest.dhcp import DhcpRefused, Lease
from qemu_usernat.testing.fake_guest.guest import DnsError, FakeGuest
from qemu_usernat.testing.fake_guest.link import MalformedFrame
from qemu_usernat.testing.fake_guest.stream import TcpStream
from qemu_usernat.testing.fake_guest.tcp import TcpListener
from qemu_usernat.testing.fake_guest.udp import UdpSocket

__all__ = [
    "DhcpRefused",
    "DnsError",
    "FakeGuest",
    "Lease",
    "MalformedFrame",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
]
