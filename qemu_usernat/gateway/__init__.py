"""What the guest's own router answers itself: ARP, echo, DHCP and DNS.

One class a protocol, each sans-IO: a parsed message and the time go in, an answer comes out.
Who sends it, and in which frame, is the router's affair.
"""
