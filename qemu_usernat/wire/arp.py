"""ARP towards the guest (RFC 826): IPv4 over Ethernet, the only kind there is here."""

from struct import Struct

from qemu_usernat.primitives.addresses import MacAddress
from qemu_usernat.wire.emit import framed
from qemu_usernat.wire.packets import ETHERTYPE_ARP, ETHERTYPE_IPV4, Arp

HARDWARE_ETHERNET = 1  # RFC 826 (IANA: ar$hrd)

_PACKET = Struct(">HHBBH6s4s6s4s")


def arp_frame(arp: Arp, destination_mac: MacAddress, source_mac: MacAddress) -> bytes:
    """The frame that carries `arp`, as the stream takes it."""
    packet = _PACKET.pack(
        HARDWARE_ETHERNET,
        ETHERTYPE_IPV4,
        6,
        4,
        arp.operation,
        arp.sender_mac,
        arp.sender_address,
        arp.target_mac,
        arp.target_address,
    )
    return framed(destination_mac, source_mac, ETHERTYPE_ARP, packet)
