"""Whose an address is: the gateway's, a guest's, everybody's, or of the host's world.

It owns the guests' subnet and the gateway's addresses in it, as packed values; who of the guests
has which of the others is not known here.
"""

from attrs import field, frozen

from qemu_usernat.config.network import Network
from qemu_usernat.primitives.addresses import Address, is_multicast_or_broadcast


@frozen
class Addressing:
    """The addresses of one network."""

    network: Network
    own: frozenset[Address] = field(init=False)
    """Those of the gateway itself."""
    ours: frozenset[Address] = field(init=False)
    """With those at which nobody is, but for what is redirected from there: no guest has one."""
    _first: int = field(init=False)
    _last: int = field(init=False)

    @own.default
    def _own_of_network(self) -> frozenset[Address]:
        return frozenset({self.network.gateway.packed, self.network.nameserver.packed})

    @ours.default
    def _ours_of_network(self) -> frozenset[Address]:
        return self.own | self.network.stand_ins

    @_first.default
    def _first_of_subnet(self) -> int:
        return int(self.network.subnet.network_address)

    @_last.default
    def _last_of_subnet(self) -> int:
        return int(self.network.subnet.broadcast_address)

    def is_guest(self, address: Address) -> bool:
        """Whether a guest may have it."""
        number = int.from_bytes(address, "big")
        return self._first < number < self._last and address not in self.ours

    def is_local(self, address: Address) -> bool:
        """Whether it is of the guests' subnet, where nothing is routed to."""
        number = int.from_bytes(address, "big")
        return self._first <= number <= self._last and address not in self.ours

    def is_group(self, address: Address) -> bool:
        """Multicast, or broadcast to everybody or to the guests' subnet."""
        return is_multicast_or_broadcast(address) or int.from_bytes(address, "big") == self._last

    def is_for_gateway(self, address: Address) -> bool:
        """Whether the gateway takes it in: its own, and what is everybody's."""
        return address in self.own or self.is_group(address)
