"""A UDP mapping by itself: whom it lets in, what it passes on, how long it lives."""

from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.nat.udp import (
    ADDRESS,
    ADDRESS_PORT,
    DNS_IDLE_TIME,
    ENDPOINT,
    IDLE_TIME,
    PEERS_MAXIMUM,
    PEERS_PER_GUEST,
    QUOTED_PAYLOAD,
    Tally,
    UdpMapping,
)
from qemu_usernat.primitives.addresses import Address, parse_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import Buffer
from tests.scripted_guest import ipv4, udp

GUEST = (parse_address("10.0.2.15"), 1234)
SERVER = parse_address("198.51.100.7")
STRANGER = parse_address("203.0.113.9")
PORT_UNREACHABLE = IcmpError(3, 3, offender=STRANGER)
HEAD = ipv4("10.0.2.15", "198.51.100.7", 17, udp("10.0.2.15", 1234, "198.51.100.7", 99, b"hello"))


@define
class Ends:
    """Both sinks of a mapping, as a list of what was said."""

    port: int = 40000
    said: list[tuple[object, ...]] = field(factory=list)
    ways: list[tuple[int, bool]] = field(factory=list)
    """TTL and DF bit of what was sent."""

    def send(
        self,
        payload: Buffer,
        address: Address,
        port: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        self.said.append(("host", bytes(payload), address, port))
        self.ways.append((ttl, dont_fragment))

    def close(self) -> None:
        self.said.append(("closed",))

    def deliver(self, payload: Buffer, source: Address, source_port: int) -> None:
        self.said.append(("guest", bytes(payload), source, source_port))

    def refuse(self, error: IcmpError, peer: Address, port: int, quoted: bytes, now: float) -> None:
        self.said.append(("refused", error, peer, port, quoted))


def new_mapping(filtering: str = ADDRESS, **fields: Any) -> tuple[UdpMapping, Ends]:
    ends = Ends()
    mapping = UdpMapping(GUEST, ends, Counters(), 100.0, filtering, **fields)
    mapping.host = ends
    return mapping, ends


def test_what_the_guest_sends_goes_out_as_it_is() -> None:
    """Payload, address and port are the host's to send; an empty datagram is one too."""
    mapping, ends = new_mapping()
    mapping.on_guest_datagram(memoryview(b"hello"), SERVER, 99, HEAD, 100.0)
    mapping.on_guest_datagram(b"", SERVER, 98, HEAD, 100.0)
    assert ends.said == [("host", b"hello", SERVER, 99), ("host", b"", SERVER, 98)]


def test_only_peers_are_let_in() -> None:
    """Who was written to may answer, from any port; others are filtered and counted."""
    mapping, ends = new_mapping()
    mapping.on_host_datagram(b"early", SERVER, 99, 200.0)
    mapping.on_guest_datagram(b"hello", SERVER, 99, HEAD, 100.0)
    mapping.on_host_datagram(b"answer", SERVER, 77, 200.0)
    mapping.on_host_datagram(b"spam", STRANGER, 99, 200.0)
    assert ends.said[1:] == [("guest", b"answer", SERVER, 77)]
    assert mapping.counters["udp.filtered"] == 2


def test_only_errors_about_peers_are_passed_on() -> None:
    """The offender may be anybody on the way; the peer must be one of ours."""
    mapping, ends = new_mapping()
    mapping.on_guest_datagram(b"hello", SERVER, 99, HEAD, 100.0)
    mapping.on_host_error(PORT_UNREACHABLE, STRANGER, 99, b"hello", 100.0)
    mapping.on_host_error(PORT_UNREACHABLE, SERVER, 98, b"hello", 100.0)
    mapping.on_host_error(PORT_UNREACHABLE, SERVER, 99, b"hello", 100.0)
    assert ends.said[1:] == [("refused", PORT_UNREACHABLE, SERVER, 99, HEAD)]


def test_an_error_quotes_what_the_guest_has_sent() -> None:
    """The packet as it was, options included, and as much of it as the error quotes or is kept."""
    mapping, ends = new_mapping()
    payload = bytes(range(200))
    datagram = udp("10.0.2.15", 1234, "198.51.100.7", 99, payload)
    packet = ipv4("10.0.2.15", "198.51.100.7", 17, datagram, options=bytes([1] * 4))
    head = packet[: 24 + 8 + QUOTED_PAYLOAD]
    mapping.on_guest_datagram(payload, SERVER, 99, head, 100.0)
    for quoted in (b"", payload[:4], payload[:100], payload):
        mapping.on_host_error(PORT_UNREACHABLE, SERVER, 99, quoted, 100.0)
    kept = [len(said[4]) - 32 for said in ends.said[1:]]  # type: ignore[arg-type]
    assert kept == [QUOTED_PAYLOAD, QUOTED_PAYLOAD, 100, 200]
    assert all(packet.startswith(said[4]) for said in ends.said[1:])  # type: ignore[arg-type]


def test_hops_and_the_df_bit_are_carried() -> None:
    """One hop is ours; whether a datagram may be cut is the guest's to say."""
    mapping, ends = new_mapping()
    for ttl, fragment in ((64, 0), (2, 0x4000), (255, 0x4000)):
        head = ipv4("10.0.2.15", "198.51.100.7", 17, HEAD[20:], ttl=ttl, fragment=fragment)
        mapping.on_guest_datagram(b"hello", SERVER, 99, head, 100.0)
    assert ends.ways == [(63, False), (1, True), (254, True)]


def test_the_guest_alone_keeps_a_mapping_alive() -> None:
    """RFC 4787, REQ-6: inbound traffic must not hold a port open for ever."""
    mapping, _ = new_mapping()
    mapping.on_guest_datagram(b"x", SERVER, 99, HEAD, 200.0)
    mapping.on_host_datagram(b"y", SERVER, 99, 200.0)
    assert mapping.deadline() == 200.0 + IDLE_TIME
    assert not mapping.expired(200.0 + IDLE_TIME - 0.001)
    assert mapping.expired(200.0 + IDLE_TIME)


def test_a_mapping_for_dns_alone_is_short() -> None:
    """Until anything else is sent from the port; then it lives as long as every other."""
    mapping, _ = new_mapping()
    mapping.on_guest_datagram(b"?", SERVER, 53, HEAD, 100.0)
    assert mapping.deadline() == 100.0 + DNS_IDLE_TIME
    mapping.on_guest_datagram(b"x", SERVER, 99, HEAD, 100.0)
    mapping.on_guest_datagram(b"?", SERVER, 53, HEAD, 100.0)
    assert mapping.deadline() == 100.0 + IDLE_TIME


def knows(mapping: UdpMapping, address: bytes) -> bool:
    return mapping.lets_in(address, 99, 100.0)


def test_peers_are_bounded() -> None:
    """A port that writes to the whole world remembers the newest thousand of it."""
    mapping, ends = new_mapping()
    for number in range(PEERS_MAXIMUM + 1):
        mapping.on_guest_datagram(b"x", number.to_bytes(4, "big"), 99, HEAD, 100.0)
    assert not knows(mapping, bytes(4))
    assert knows(mapping, (1).to_bytes(4, "big"))
    assert knows(mapping, PEERS_MAXIMUM.to_bytes(4, "big"))
    ends.said.clear()
    for number in (0, 1):
        mapping.on_host_error(PORT_UNREACHABLE, number.to_bytes(4, "big"), 99, b"", 100.0)
    assert [said[2] for said in ends.said] == [(1).to_bytes(4, "big")]


def test_a_busy_peer_is_not_forgotten_for_new_ones() -> None:
    """The address written to longest ago gives way, not the one talked to all the time."""
    mapping, _ = new_mapping()
    for number in range(2 * PEERS_MAXIMUM):
        mapping.on_guest_datagram(b"x", SERVER, 99, HEAD, 100.0)
        mapping.on_guest_datagram(b"x", number.to_bytes(4, "big"), 99, HEAD, 100.0)
    assert knows(mapping, SERVER)


def test_the_peers_of_all_ports_of_a_guest_are_bounded() -> None:
    """A guest with thousands of ports that write to thousands of places holds what it may hold."""
    tally = Tally()
    mappings = [new_mapping(tally=tally)[0] for _ in range(PEERS_PER_GUEST // PEERS_MAXIMUM + 9)]
    for mapping in mappings:
        for number in range(PEERS_MAXIMUM):
            mapping.on_guest_datagram(b"x", number.to_bytes(4, "big"), 99, HEAD, 100.0)
    assert PEERS_PER_GUEST <= tally.peers <= PEERS_PER_GUEST + len(mappings)
    assert knows(mappings[-1], (PEERS_MAXIMUM - 1).to_bytes(4, "big"))
    for mapping in mappings:
        mapping.forget_peers()
    assert tally.peers == 0


# -- filtering


@pytest.mark.parametrize(
    ("filtering", "guarded", "heard"),
    [
        (ENDPOINT, False, "the very port, another port, a stranger"),
        (ADDRESS, False, "the very port, another port"),
        (ADDRESS_PORT, False, "the very port"),
        (ADDRESS, True, "the very port"),
        (ADDRESS_PORT, True, "the very port"),
    ],
)
def test_who_is_let_in_is_chosen(filtering: str, guarded: bool, heard: str) -> None:
    """Everybody, those who were written to, or their very ports; with a policy the last at most,
    unless it admits the stranger."""
    mapping, ends = new_mapping(
        filtering, is_guarded=guarded, admits_stranger=lambda address, port, now: True
    )
    mapping.on_guest_datagram(b"hello", SERVER, 99, HEAD, 100.0)
    mapping.on_host_datagram(b"the very port", SERVER, 99, 100.0)
    mapping.on_host_datagram(b"another port", SERVER, 98, 100.0)
    mapping.on_host_datagram(b"a stranger", STRANGER, 99, 100.0)
    assert b", ".join(said[1] for said in ends.said[1:]) == heard.encode()  # type: ignore[misc]
    assert mapping.counters["udp.filtered"] == 2 - heard.count(",")


def test_who_is_open_to_everybody_asks_about_each_stranger() -> None:
    """Whoever was written to needs no leave; others have it for this moment, and this port."""
    asked = []

    def admits(address: Address, port: int, now: float) -> bool:
        asked.append((address, port, now))
        return port == 7

    mapping, ends = new_mapping(ENDPOINT, admits_stranger=admits)
    mapping.on_guest_datagram(b"hello", SERVER, 99, HEAD, 100.0)
    for port, now in ((99, 101.0), (7, 102.0), (8, 103.0), (7, 104.0)):
        mapping.on_host_datagram(b"x", SERVER, port, now)
    assert asked == [(SERVER, 7, 102.0), (SERVER, 8, 103.0), (SERVER, 7, 104.0)]
    assert [said[3] for said in ends.said[1:]] == [99, 7, 7]


@given(
    st.sampled_from([ENDPOINT, ADDRESS, ADDRESS_PORT]),
    st.booleans(),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3)), max_size=30),
)
def test_whom_a_mapping_lets_in_is_what_the_rfc_says(
    filtering: str, guarded: bool, script: list[tuple[bool, int, int]]
) -> None:
    """RFC 4787, 5, against three lines of it, however sending, hearing and revoking follow."""
    mapping, _ = new_mapping(filtering, is_guarded=guarded)
    written: set[tuple[bytes, int]] = set()
    for sends, number, port in script:
        address = bytes([10, 0, 0, number])
        if sends:
            mapping.on_guest_datagram(b"x", address, port, HEAD, 100.0)
            written.add((address, port))
        elif (address, port) in written:
            mapping.revoke(address, port)
            written.remove((address, port))
        for where in ((bytes([10, 0, 0, n]), p) for n in range(4) for p in range(4)):
            by_address = filtering == ADDRESS and not guarded
            known = where[0] in {peer[0] for peer in written} if by_address else where in written
            assert mapping.lets_in(*where, 100.0) == known
