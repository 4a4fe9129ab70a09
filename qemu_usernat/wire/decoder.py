"""The slow tier: any frame to its meaning, by impacket, behind the guard.

Whatever `headers.peek` does not know comes here: ARP, ICMP, fragments, options, a flow's first
segment, garbage. The only exception is `Malformed`; any other is a bug of ours, and nothing a
guest sends makes it slow: `guard` has refused all that impacket cannot bear.

impacket reads the header fields. It is shown bytes, as it is slow with anything else, and one
header at a time: where a payload begins it would conclude from the options that it found, so that
an early end of options moves the payload, and the ports with it. That is said by IHL, data offset
and the lengths instead, which is what the other end will go by. Of a SACK option impacket knows
nothing but its kind: `tcp_options` reads that.
"""

from impacket import ImpactPacket

from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire import guard
from qemu_usernat.wire.packets import (
    ETHERTYPE_ARP,
    ICMP,
    TCP,
    UDP,
    Arp,
    Buffer,
    Frame,
    IcmpMessage,
    IpPacket,
    TcpSegment,
    UdpDatagram,
)
from qemu_usernat.wire.tcp_options import selective_edges


def decode(frame: Buffer) -> Frame:
    """An Ethernet II frame, padded or not, with ARP or IPv4 in it; raises only `Malformed`.

    Checked: all lengths, the IP header's checksum and options. Not yet the transport.
    """
    frame = bytes(frame)
    guard.check_ethernet(frame)
    ethernet = ImpactPacket.Ethernet(frame[:14])
    is_arp = ethernet.get_ether_type() == ETHERTYPE_ARP
    return Frame(
        destination=bytes(ethernet.get_ether_dhost()),
        source=bytes(ethernet.get_ether_shost()),
        content=_arp(frame[14:]) if is_arp else _ipv4(frame[14:]),
    )


def decode_transport(packet: IpPacket) -> TcpSegment | UdpDatagram | IcmpMessage:
    """What an unfragmented or reassembled packet carries; raises only `Malformed`.

    Checked: all lengths, options, the checksum. "ipv4.unknown_protocol" is for the caller to
    answer with ICMP 3/2.
    """
    if packet.protocol == TCP:
        return _tcp(packet)
    if packet.protocol == UDP:
        return _udp(packet)
    if packet.protocol == ICMP:
        return _icmp(packet)
    raise Malformed("ipv4.unknown_protocol")


def _arp(packet: bytes) -> Arp:
    guard.check_arp(packet)
    arp = ImpactPacket.ARP(packet[:28])
    return Arp(
        operation=arp.get_ar_op(),
        sender_mac=bytes(arp.get_ar_sha()),
        sender_address=bytes(arp.get_ar_spa()),
        target_mac=bytes(arp.get_ar_tha()),
        target_address=bytes(arp.get_ar_tpa()),
    )


def _ipv4(packet: bytes) -> IpPacket:
    guard.check_ipv4(packet)
    # Nobody here reads IP options, and RFC 1122 (3.2.1.8) lets a host ignore them. impacket
    # cannot hold one of 2 bytes, so it is shown the header as if there were none.
    ip = ImpactPacket.IP(b"\x45" + packet[1:20])
    header_length = (packet[0] & 15) * 4
    return IpPacket(
        source=bytes(ip.get_bytes()[12:16]),
        destination=bytes(ip.get_bytes()[16:20]),
        protocol=ip.get_ip_p(),
        ttl=ip.get_ip_ttl(),
        identification=ip.get_ip_id(),
        dont_fragment=bool(ip.get_ip_df()),
        more_fragments=bool(ip.get_ip_mf()),
        fragment_offset=ip.get_ip_offmask() * 8,
        header=packet[:header_length],
        payload=packet[header_length : ip.get_ip_len()],
    )


def _tcp(packet: IpPacket) -> TcpSegment:
    segment = packet.payload
    guard.check_tcp(segment, packet.source, packet.destination)
    data_offset = (segment[12] >> 4) * 4
    tcp = ImpactPacket.TCP(segment[:data_offset])
    maximum_segment_size = window_scale = None
    sack_permitted = False
    for option in tcp.get_options():  # of two of a kind, the last counts
        kind = option.get_kind()
        if kind == ImpactPacket.TCPOption.TCPOPT_MAXSEG:
            maximum_segment_size = option.get_mss()
        elif kind == ImpactPacket.TCPOption.TCPOPT_WINDOW:
            window_scale = option.get_shift_cnt()
        elif kind == ImpactPacket.TCPOption.TCPOPT_SACK_PERMITTED:
            sack_permitted = True
    return TcpSegment(
        source_port=tcp.get_th_sport(),
        destination_port=tcp.get_th_dport(),
        sequence=tcp.get_th_seq(),
        acknowledgment=tcp.get_th_ack(),
        flags=tcp.get_th_flags(),
        window=tcp.get_th_win(),
        maximum_segment_size=maximum_segment_size,
        window_scale=window_scale,
        sack_permitted=sack_permitted,
        payload=segment[data_offset:],
        selective=selective_edges(segment[20:data_offset]),
    )


def _udp(packet: IpPacket) -> UdpDatagram:
    datagram = packet.payload
    guard.check_udp(datagram, packet.source, packet.destination)
    udp = ImpactPacket.UDP(datagram[:8])
    return UdpDatagram(
        source_port=udp.get_uh_sport(),
        destination_port=udp.get_uh_dport(),
        payload=datagram[8 : udp.get_uh_ulen()],
    )


def _icmp(packet: IpPacket) -> IcmpMessage:
    message = packet.payload
    guard.check_icmp(message)
    icmp = ImpactPacket.ICMP(message[:8])
    return IcmpMessage(
        type=icmp.get_icmp_type(),
        code=icmp.get_icmp_code(),
        rest=icmp.get_icmp_void().to_bytes(4, "big"),
        payload=message[8:],
    )
