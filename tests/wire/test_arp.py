"""ARP replies for the guest."""

from impacket.ImpactDecoder import EthDecoder

from qemu_usernat.wire.arp import arp_frame
from qemu_usernat.wire.decoder import decode
from qemu_usernat.wire.packets import ARP_REPLY, Arp

GUEST_MAC = bytes.fromhex("525400123456")
GATEWAY_MAC = bytes.fromhex("52550a000202")
REPLY = Arp(ARP_REPLY, GATEWAY_MAC, bytes([10, 0, 2, 2]), GUEST_MAC, bytes([10, 0, 2, 15]))


def test_impacket_reads_what_was_meant() -> None:
    """A reply of 42 bytes, padded to 60, with every field where RFC 826 puts it."""
    wire = arp_frame(REPLY, GUEST_MAC, GATEWAY_MAC)
    assert wire[:4] == b"\0\0\0\x3c"
    assert len(wire) == 64
    ethernet = EthDecoder().decode(wire[4:])
    arp = ethernet.child()
    assert bytes(ethernet.get_ether_dhost()) == GUEST_MAC
    assert bytes(ethernet.get_ether_shost()) == GATEWAY_MAC
    assert (arp.get_ar_hrd(), arp.get_ar_pro(), arp.get_ar_op()) == (1, 0x0800, 2)
    assert (arp.get_ar_hln(), arp.get_ar_pln()) == (6, 4)
    assert bytes(arp.get_ar_sha()) == GATEWAY_MAC
    assert bytes(arp.get_ar_spa()) == bytes([10, 0, 2, 2])
    assert bytes(arp.get_ar_tha()) == GUEST_MAC
    assert bytes(arp.get_ar_tpa()) == bytes([10, 0, 2, 15])


def test_it_comes_back_as_it_went_out() -> None:
    """What is built is what is parsed."""
    assert decode(arp_frame(REPLY, GUEST_MAC, GATEWAY_MAC)[4:]).content == REPLY
