"""Frames to filter, to capture and to carry: what guests say, made by struct alone."""

import struct

from hypothesis import strategies as st

from qemu_usernat.testing.frames import Frame
from qemu_usernat.wire.packets import ACK, ICMP, PSH, SYN, TCP, UDP
from tests.scripted_guest import (
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    SERVER,
    ethernet,
    icmp,
    ipv4,
    packed,
    tcp,
    udp,
)


def tcp_frame(
    source: str = GUEST,
    sport: int = 40000,
    destination: str = SERVER,
    dport: int = 443,
    flags: int = SYN,
    payload: bytes = b"",
) -> bytes:
    segment = tcp(source, sport, destination, dport, flags, 7, payload=payload)
    return ethernet(ipv4(source, destination, TCP, segment), GUEST_MAC)


def udp_frame(payload: bytes = b"hello", dport: int = 9, sport: int = 5000) -> bytes:
    return ethernet(ipv4(GUEST, SERVER, UDP, udp(GUEST, sport, SERVER, dport, payload)), GUEST_MAC)


def ping_frame(payload: bytes = b"ping") -> bytes:
    return ethernet(ipv4(GUEST, GATEWAY, ICMP, icmp(8, 0, b"\0\1\0\1", payload)), GUEST_MAC)


def arp_frame(target: str = GATEWAY) -> bytes:
    packet = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + packed(GUEST)
    return ethernet(packet + bytes(6) + packed(target), GUEST_MAC, b"\xff" * 6, 0x0806)


def numbered(number: int, size: int = 100) -> bytes:
    """A frame that is not like any other number's."""
    return ethernet(struct.pack(">I", number).ljust(size, b"."), GUEST_MAC, GATEWAY_MAC, 0x88B5)


def seen(octets: bytes, *, from_guest: bool = True) -> Frame:
    return Frame(octets, 0.0, from_guest)


PORTS = st.sampled_from([53, 80, 443, 40000])
ADDRESSES = st.sampled_from([GUEST, GATEWAY, SERVER, "203.0.113.10"])
FRAMES = st.one_of(
    st.builds(
        tcp_frame,
        ADDRESSES,
        PORTS,
        ADDRESSES,
        PORTS,
        st.sampled_from([SYN, ACK, SYN | ACK, PSH | ACK]),
        st.sampled_from([b"", b"GET /"]),
    ),
    st.builds(udp_frame, st.binary(max_size=40), PORTS),
    st.builds(ping_frame),
    st.builds(arp_frame, ADDRESSES),
    st.builds(numbered, st.integers(0, 9)),
    st.binary(max_size=80),
)
