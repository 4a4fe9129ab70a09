"""What guests say against packets of ours: their ICMP errors (RFC 792), as far as they help.

A guest may route for others, containers or a tunnel, and the way there may be narrower than its
link: then it says so, fragmentation needed, and what is sent there is cut smaller from now on
(RFC 1191). That nobody listens at a published port ends the client's visit. All else is counted:
who sent the packet is a host of the world, and to write to it in the guest's name takes privileges
that we do not have.
"""

from attrs import define

from qemu_usernat.connections import Connections
from qemu_usernat.datagrams import Datagrams
from qemu_usernat.delivery import Delivery
from qemu_usernat.pings import Pings
from qemu_usernat.primitives.addresses import FlowKey
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.visits import Visits
from qemu_usernat.wire.icmp import (
    DESTINATION_UNREACHABLE,
    FRAGMENTATION_NEEDED,
    PORT_UNREACHABLE,
    Quote,
    read_quote,
)
from qemu_usernat.wire.packets import ICMP, TCP, UDP, IcmpMessage, IpPacket


@define(eq=False)
class GuestErrors:
    """Hears the errors of one network's guests."""

    delivery: Delivery
    connections: Connections
    datagrams: Datagrams
    visits: Visits
    pings: Pings
    counters: Counters

    def on_error(self, message: IcmpMessage, packet: IpPacket) -> None:
        """An ICMP error in `packet`. Malformed where it quotes nothing.

        It is believed of what really goes on: anybody in the guest may send such a thing, but only
        whoever sees the flow knows its ports, or its numbers (RFC 5927, 4.1).
        """
        self.counters.count("icmp.guest_error")
        quote = read_quote(message.payload)
        mtu = int.from_bytes(message.rest[2:], "big")
        if message.type != DESTINATION_UNREACHABLE or quote.destination != packet.source:
            return
        if message.code == PORT_UNREACHABLE and quote.protocol == UDP:
            self.visits.on_guest_refuses(_key(quote))
        elif message.code == FRAGMENTATION_NEEDED and mtu and self._goes_on(quote, mtu):
            self.counters.count("icmp.guest_path_mtu")

    def _goes_on(self, quote: Quote, mtu: int) -> bool:
        """Whether what is quoted is of a conversation that goes on; then it is told."""
        key = _key(quote)
        if quote.protocol == TCP:
            flow = self.connections.flows.get(key)
            sequence = int.from_bytes(quote.beginning[4:], "big")
            if flow is None or not flow.on_path_mtu(sequence, mtu):
                return False
            self.connections.touch(flow)
            return True
        known = (
            key[:2] in self.datagrams.mappings or key in self.visits.by_key
            if quote.protocol == UDP
            else quote.protocol == ICMP and quote.destination in self.pings.flows
        )
        if known:
            self.delivery.on_path_mtu(quote.destination, mtu)
        return known


def _key(quote: Quote) -> FlowKey:
    """What is quoted has come to the guest; this is how the guest sees it."""
    host_port, guest_port = quote.ports
    return quote.destination, guest_port, quote.source, host_port
