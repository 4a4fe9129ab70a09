"""As whom a guest sees a client of a published port: an address and a port.

A client's own address is the honest answer wherever it can be one: where the guest sends its
answers to the gateway for it, and where it is nobody else's there. What the guest would keep to
itself, or send elsewhere, is seen as the gateway: the loopback, unix sockets and IPv6, addresses of
the guests' own network, the gateway's among them, and of any link, and those that nobody has.
"""

from collections.abc import Callable

from attrs import define

from qemu_usernat.config.publish import SOURCES
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.policy.groups import is_martian
from qemu_usernat.primitives.addresses import (
    DNS_PORT,
    Address,
    is_loopback,
    is_multicast_or_broadcast,
)

CLIENT, GATEWAY = SOURCES

PORT_MINIMUM = 1024
"""Below it is nothing that we choose: the gateway's own services are there."""

NEVER_SHOWN = frozenset({DNS_PORT, 67, 68, 69})
"""Ports at which a guest may mean the gateway, whatever the address: DNS, DHCP, TFTP."""

PORTS = range(PORT_MINIMUM, 65536)
"""Those that we choose from, one after the other: one in use is passed once a round."""

_LINK_LOCAL = b"\xa9\xfe"
"""169.254/16 (RFC 3927): never routed, so a guest would look for it on its own link."""

Face = tuple[Address, int]


@define(eq=False)
class Faces:
    """Chooses them, for the clients of one network."""

    addressing: Addressing
    source: str = CLIENT
    """One of `SOURCES`."""
    _next: int = 0
    """Of `PORTS`."""

    def choose(self, client: Face | None, is_free: Callable[[Face], bool]) -> Face | None:
        """For `client`, None where it has no address; None if no port is free.

        Its own port, if it can be: who looks at both ends finds it again.
        """
        address, port = self._address(client), 0 if client is None else client[1]
        own = port not in NEVER_SHOWN if self._is_clients(client) else port >= PORT_MINIMUM
        if port and own and is_free((address, port)):
            return address, port
        for _ in PORTS:
            face = address, PORTS[self._next]
            self._next = (self._next + 1) % len(PORTS)
            if is_free(face):
                return face
        return None

    def _address(self, client: Face | None) -> Address:
        if client is not None and self._is_clients(client):
            return client[0]
        return self.addressing.network.gateway.packed

    def _is_clients(self, client: Face | None) -> bool:
        """Whether it is seen as what it is."""
        if client is None or self.source == GATEWAY:
            return False
        address = client[0]
        return not (
            len(address) != 4
            or is_loopback(address)
            or is_martian(address)
            or is_multicast_or_broadcast(address)
            or address.startswith(_LINK_LOCAL)
            or self.addressing.is_local(address)
            or address in self.addressing.ours
        )
