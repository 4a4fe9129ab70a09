"""ARP (RFC 826): the gateway tells where its own addresses live, and nothing else.

It is no proxy: an address of somebody else, above all the guest's own that it probes before
using it (RFC 5227, 2.1.1), is met with silence. It keeps no table either: the guest's MAC
address is learned by the link from every frame.
"""

from attrs import frozen

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.wire.packets import ARP_REPLY, ARP_REQUEST, Arp

_GROUP_BIT = 1
"""Lowest bit of a MAC address's first octet: set for multicast and broadcast (IEEE 802)."""


@frozen
class ArpResponder:
    """Answers for `addresses`, all of which live at `mac`."""

    mac: MacAddress
    addresses: frozenset[Address]

    def answer(self, arp: Arp, now: float) -> Arp | None:
        """The reply to a request for one of our addresses; None for all else.

        A probe for one of them (sender address 0.0.0.0) is answered too: the guest must learn
        that the address is taken (RFC 5227, 2.4). No single station lives at a group address,
        so a sender that claims one is not believed (RFC 1812, 3.3.2).
        """
        if arp.operation != ARP_REQUEST or arp.target_address not in self.addresses:
            return None
        if arp.sender_mac[0] & _GROUP_BIT:
            return None
        return Arp(
            operation=ARP_REPLY,
            sender_mac=self.mac,
            sender_address=arp.target_address,
            target_mac=arp.sender_mac,
            target_address=arp.sender_address,
        )
