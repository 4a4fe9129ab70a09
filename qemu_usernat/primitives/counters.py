"""Counters: every drop and every rare event has a name, and here is what each name means.

Names are ``room.event`` in lower case. The register is closed: what the code counts stands here
and nothing else does, which a test finds out by reading the source, so that counting stays
what it is, one increment. `docs/counters.md` is made from it.
"""

from collections import Counter

MEANINGS = {
    # The stream to QEMU, and how QEMU comes
    "listener.accept_failed": "A QEMU that came was not served, mostly for want of a descriptor.",
    "listener.connect_failed": "A QEMU that should listen did not; it is tried again.",
    "link.frame_empty": "A frame of length 0 on the stream: the link is closed, its place is lost.",
    "link.frame_too_short": "A frame below 14 bytes on the stream: the link is closed.",
    "link.frame_too_long": "A frame beyond 69,632 bytes on the stream: the link is closed.",
    "link.queue_full": "A frame for a guest that does not take its frames was dropped.",
    "lan.guest_absent": "A frame for a guest whose link is gone was dropped.",
    # Ourselves
    "server.bug": "A bug of ours showed: what it showed in was ended, and the log has it.",
    # Ethernet and ARP
    "ethernet.too_short": "A frame shorter than its own header.",
    "ethernet.802_3": "A frame with a length where the type should be (IEEE 802.3, LLC).",
    "ethernet.vlan": "A frame with a VLAN tag.",
    "ethernet.ipv6_not_supported": "An IPv6 packet: there is no IPv6 yet.",
    "ethernet.unknown_type": "A frame of a type that is neither IPv4 nor ARP.",
    "ethernet.group_source": "A frame that claims to come from a group, which no station does.",
    "ethernet.gateway_source": "A frame that claims to come from the gateway's own MAC address.",
    "ethernet.unknown_destination": "A frame for a MAC address that nobody here has.",
    "arp.too_short": "An ARP packet below 28 bytes.",
    "arp.not_ipv4_over_ethernet": "An ARP packet for other addresses than IPv4 over Ethernet.",
    # IPv4 and its fragments
    "ipv4.too_short": "An IPv4 packet below 20 bytes.",
    "ipv4.bad_version": "A packet of type IPv4 that says it is of another version.",
    "ipv4.bad_header_length": "A header length below 20 bytes.",
    "ipv4.bad_total_length": "A total length below the header's, or beyond the frame.",
    "ipv4.bad_checksum": "A header whose checksum is wrong.",
    "ipv4.bad_option": "An option that does not fit into the header.",
    "ipv4.unknown_protocol": "Neither ICMP, TCP nor UDP: answered by ICMP protocol unreachable.",
    "ipv4.unicast_to_everybody": "A packet for one address in a frame for all (RFC 1122, 3.3.6).",
    "ipv4.broadcast_or_multicast": "TCP or ICMP to a group, which has no answer.",
    "ipv4.martian_source": "A packet from an address that no guest can have (RFC 1812, 5.3.7).",
    "ipv4.martian_destination": "A packet to a loopback, unspecified or reserved address: refused.",
    "ipv4.no_such_guest": "A packet sent to us for another address of the guests' network.",
    "ipv4.ttl_exceeded": "A packet whose time to live ended here: answered by ICMP time exceeded.",
    "ipv4.fragment_length": "A fragment, not the last, of no bytes or not of a multiple of 8.",
    "ipv4.fragment_too_large": "Fragments of more than 65,535 bytes, or too many of them.",
    "ipv4.fragment_overlap": "Fragments that overlap: the whole datagram is dropped.",
    "ipv4.fragment_repeated": "A fragment that came twice.",
    "ipv4.reassembly_full": "The oldest incomplete datagram gave way to a new one.",
    "ipv4.reassembly_timeout": "A datagram whose fragments did not all come in time.",
    # ICMP
    "icmp.too_short": "An ICMP message below 8 bytes.",
    "icmp.bad_checksum": "An ICMP message whose checksum is wrong.",
    "icmp.ignored": "A message to the gateway that is no echo request.",
    "icmp.not_carried": "ICMP to the outside that what is there does not carry: refused.",
    "icmp.error_limited": "An ICMP error that was not sent, as too many were before it.",
    # UDP
    "udp.too_short": "A datagram below 8 bytes.",
    "udp.bad_length": "A length below 8 or beyond the packet.",
    "udp.bad_checksum": "A datagram whose checksum is wrong.",
    "udp.broadcast_or_multicast": "A datagram to a group, where nobody listens.",
    "udp.closed_port": "A datagram to a port of the gateway that is closed: port unreachable.",
    "udp.filtered": "A datagram from an address that the guest has not written to.",
    "udp.mappings_full": "A mapping refused, as there are as many as there may be.",
    "udp.no_descriptor": "A mapping refused, as the host gave no socket.",
    "udp.send_full": "A datagram dropped, as the host's socket was full.",
    "udp.send_unreachable": "A datagram that the host has no way for: the guest is told.",
    "udp.send_failed": "A datagram that the host refused to send for another reason.",
    # TCP
    "tcp.too_short": "A segment below 20 bytes.",
    "tcp.bad_data_offset": "A header length below 20 bytes or beyond the segment.",
    "tcp.bad_checksum": "A segment whose checksum is wrong.",
    "tcp.bad_option": "An option that does not fit into the header, or of a wrong length.",
    "tcp.unknown_flow": "A segment of no connection: reset (RFC 9293, 3.10.7.1).",
    "tcp.flows_full": "A connection refused, as there are as many as there may be.",
    "tcp.time_waits_full": "A connection forgotten before its time, as too many had ended.",
    "tcp.no_descriptor": "A connection refused, as the host gave no socket.",
    "tcp.connect_timeout": "A server that did not answer: the guest is told it is unreachable.",
    "tcp.refused": "A connection that the server refused: the guest gets a reset.",
    "tcp.unreachable": "A connection that the host has no way for: the guest gets ICMP.",
    "tcp.host_reset": "A connection that the server, or the way to it, broke: reset.",
    "tcp.gave_up": "A connection ended because an end of it did not answer any more.",
    "tcp.bad_handshake_ack": "The answer to our SYN,ACK acknowledges something else: reset.",
    "tcp.not_expected": "A segment before our SYN,ACK, or after the end: reset.",
    "tcp.syn_repeated": "A SYN that came again while the server was still being dialled.",
    "tcp.syn_replaced": "A SYN of another number while the server was dialled: it begins anew.",
    "tcp.time_wait_reused": "A SYN in the place of a connection that had ended (RFC 9293, MAY-2).",
    "tcp.no_syn": "Neither a SYN nor a refusal for a guest that we call: dropped.",
    "tcp.no_ack": "A segment without ACK in a connection: dropped.",
    "tcp.out_of_window": "A segment outside of the window: answered by an ACK.",
    "tcp.closed_window": "Octets for a window that is closed: dropped, answered by an ACK.",
    "tcp.reset_out_of_window": "A reset whose number is not in the window: dropped (RFC 5961, 3).",
    "tcp.time_wait": "A segment after the end, neither the last FIN nor a SYN: dropped (RFC 1337).",
    "tcp.ack_of_unsent": "An acknowledgment of what was never sent: challenged (RFC 5961, 5).",
    "tcp.challenge_ack": "A segment that may be forged, or is out of place: answered by an ACK.",
    "tcp.challenge_ack_limited": "A challenge that was not sent, as one was just before it.",
    "tcp.out_of_order": "Octets of the guest beyond a gap: kept, and answered by an ACK.",
    "tcp.out_of_order_full": "Octets beyond more gaps than are kept track of: dropped.",
    "tcp.loss_recovery": "Loss was found by what arrived after it (RFC 8985, RFC 5681).",
    "tcp.retransmitted": "A segment sent again.",
    "tcp.retransmission_timeout": "Nothing was acknowledged in time (RFC 6298, 5).",
    "tcp.tail_probe": "The last segment repeated, to hear of those before it (RFC 8985, 7).",
    "tcp.repeated_needlessly": "The guest says that it got octets twice (RFC 2883).",
    "tcp.reneged": "The guest threw away what it had acknowledged selectively (RFC 2018, 8).",
    "tcp.bad_selective_acknowledgment": "A block of what was never sent: ignored.",
    "tcp.keepalive": "A silent guest was asked whether it is there (RFC 9293, 3.8.4).",
    "tcp.window_probe": "A guest with a closed window was asked whether it has opened.",
    # DHCP
    "dhcp.too_short": "A message without all of its fixed part.",
    "dhcp.not_ethernet": "A message of a client whose hardware is not Ethernet.",
    "dhcp.bad_option": "An option that does not fit into the message.",
    "dhcp.not_a_request": "A message that a server would send.",
    "dhcp.relayed": "A message from a relay: there are none here.",
    "dhcp.bootp": "A message of BOOTP, without a message type.",
    "dhcp.unknown_type": "A message of a type that no client sends.",
    "dhcp.long_client_identifier": "A client identifier beyond 255 bytes.",
    "dhcp.other_server": "A request that chose another server.",
    "dhcp.request_without_address": "A request that names no address.",
    "dhcp.pool_exhausted": "A client that got no offer, as no address is free.",
    "dhcp.nak": "A client that was refused the address it asked for.",
    "dhcp.declined": "A client found its address in use by another: it is kept aside.",
    "dhcp.decline_of_unknown": "A client declined an address that it was not given.",
    "dhcp.release_of_unknown": "A client gave back an address that it did not have.",
    "dhcp.inform_from_elsewhere": "A client asked with an address of another network.",
    # DNS
    "dns.not_a_query": "A message that is no query: not answered.",
    "dns.malformed": "A query that cannot be read: answered FORMERR.",
    "dns.not_implemented": "A message of another kind than a standard query: NOTIMP.",
    "dns.zone_transfer": "A zone transfer was asked for: REFUSED.",
    "dns.too_many_queries": "A query beyond those that may wait at once: SERVFAIL.",
    "dns.no_upstream": "A query that no resolver could be asked: SERVFAIL.",
    "dns.upstream_failed": "A resolver could not be asked, or its connection broke.",
    "dns.upstream_refused": "A resolver answered SERVFAIL or REFUSED; the next one is asked.",
    "dns.mismatched_answer": "An answer that is not to the question that was asked.",
    "dns.timeout": "A query that no resolver answered in time.",
}
"""Name to what it means, in the order of a frame's way."""


class Counters(Counter[str]):
    """Event name to how often it happened."""

    def count(self, name: str, times: int = 1) -> None:
        """Add `times` to the counter of that name, one of `MEANINGS`."""
        self[name] += times
