"""A guest that routes for others says what does not get through there."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.nat.tcp.sender import HEADERS, MSS_MINIMUM
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.wire.icmp import Quote, read_quote
from qemu_usernat.wire.packets import ICMP, TCP, UDP
from tests.scripted_guest import (
    GUEST,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
    icmp,
    ipv4,
    packed,
    udp,
)


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(mtu=1500)


@pytest.fixture
def guest(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest()


def too_large(guest: ScriptedGuest, mtu: int, about: bytes, destination: str = SERVER) -> bytes:
    """The frame in which the guest says: fragmentation needed, about the packet `about`."""
    message = icmp(3, 4, mtu.to_bytes(4, "big"), about[:28])
    return guest.packet(message, ICMP, destination)


def segment(sequence: int, sport: int = 80, dport: int = 40000) -> bytes:
    """A packet of ours, as far as an error quotes it."""
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    return ipv4(SERVER, GUEST, TCP, ports + sequence.to_bytes(4, "big") + bytes(12))


def sizes(guest: ScriptedGuest) -> list[int]:
    """Of the payloads of the segments that have come."""
    return [len(heard.tcp.payload) for heard in guest.hears()]


def test_a_connection_through_the_guest_goes_on_in_smaller_segments(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """What did not get through is sent again at once, smaller, and so is all that follows."""
    connection = guest.connects()
    first = connection.received
    connection.server.says(bytes(4000))
    assert sizes(guest) == [1460, 1460, 1080]
    guest.sends(too_large(guest, 1000, segment(first)))
    again = sizes(guest)
    assert (sum(again), max(again)) == (4000, 960)
    connection.server.says(bytes(2000))
    assert max(sizes(guest)) == 960
    assert network.counters["icmp.guest_path_mtu"] == 1


@pytest.mark.parametrize(
    ("offset", "ports"),
    [
        pytest.param(4000, (80, 40000), id="beyond what was sent"),
        pytest.param(-1, (80, 40000), id="acknowledged long ago"),
        pytest.param(0, (81, 40000), id="of another port of the server"),
        pytest.param(0, (80, 40001), id="of another port of the guest"),
    ],
)
def test_what_quotes_nothing_that_is_under_way_is_not_believed(
    network: ScriptedNetwork, guest: ScriptedGuest, offset: int, ports: tuple[int, int]
) -> None:
    """Whoever does not see the connection cannot make it slow (RFC 5927)."""
    connection = guest.connects()
    first = connection.received
    connection.server.says(bytes(4000))
    assert len(guest.hears()) == 3
    guest.sends(too_large(guest, 576, segment((first + offset) % (1 << 32), *ports)))
    assert guest.hears() == []
    assert network.counters["icmp.guest_error"] == 1
    assert network.counters["icmp.guest_path_mtu"] == 0


def test_no_word_makes_segments_of_a_few_octets(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A guest that says 1 byte, or 0, costs us no more than any other."""
    for said, largest in ((0, 1460), (1, MSS_MINIMUM), (HEADERS, MSS_MINIMUM)):
        connection = guest.connects(sport=41000 + said)
        connection.server.says(bytes(1460))
        (before,) = guest.hears()
        guest.sends(too_large(guest, said, segment(before.tcp.sequence, dport=41000 + said)))
        assert max(sizes(guest), default=1460) == largest


def test_datagrams_are_cut_smaller_for_the_address_that_says_so(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """UDP and pings; another guest's are as large as ever; and less than 576 is not believed."""
    guest.sends(guest.datagram(1234, SERVER, 99, b"?"))
    guest.sends(guest.datagram(1234, SERVER, 99, b"?", source="10.0.2.77"))
    one, other = network.host.sockets
    for mtu, largest in ((1280, 1280), (1400, 1280), (68, 576)):
        about = ipv4(SERVER, GUEST, UDP, udp(SERVER, 99, GUEST, 1234, b""))
        guest.sends(too_large(guest, mtu, about))
        one.hears(bytes(3000), SERVER, 99)
        frames = guest.frames()
        assert largest - 8 < max(map(len, frames)) - 14 <= largest
    other.hears(bytes(3000), SERVER, 99)
    assert max(map(len, guest.frames())) - 14 == 1500


def test_pings_are_cut_smaller_as_well(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """Where the guest has pinged; an address that never has is not believed."""
    guest.sends(guest.ping(SERVER, bytes(3000 - 28)[:1400]))
    for address in ("10.0.2.77", GUEST):
        about = ipv4(SERVER, address, ICMP, icmp(0, 0, bytes(4), b""))
        message = icmp(3, 4, (1000).to_bytes(4, "big"), about[:28])
        guest.sends(guest.packet(message, ICMP, SERVER, source=address))
    assert network.counters["icmp.guest_path_mtu"] == 1
    network.host.echoes[0].hears(bytes(1400), SERVER, 1)
    assert max(map(len, guest.frames())) - 14 <= 1000


def test_nobody_speaks_for_another(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """Whose the packet was says what became of it, and no other guest."""
    connection = guest.connects()
    first = connection.received
    connection.server.says(bytes(4000))
    assert len(guest.hears()) == 3
    message = icmp(3, 4, (576).to_bytes(4, "big"), segment(first)[:28])
    guest.sends(guest.packet(message, ICMP, SERVER, source="10.0.2.77"))
    assert guest.hears() == []
    assert network.counters["icmp.guest_path_mtu"] == 0


def test_errors_that_help_nobody_are_counted(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Port unreachable, time exceeded, a word too short: no answer, no harm."""
    connection = guest.connects()
    connection.server.says(b"hello")
    guest.hears()
    for kind, code in ((3, 3), (11, 0), (12, 0), (5, 1), (4, 0)):
        guest.sends(guest.packet(icmp(kind, code, bytes(4), segment(1)[:28]), ICMP, SERVER))
    guest.sends(guest.packet(icmp(3, 4, b"\0\0\4\0", b"\x45" + bytes(20)), ICMP, SERVER))
    assert guest.hears() == []
    assert network.counters["icmp.guest_error"] == 6
    assert network.counters["icmp.bad_quote"] == 1


@given(payload=st.binary(max_size=80))
def test_a_quote_is_read_or_refused(payload: bytes) -> None:
    """Whatever a guest quotes."""
    with suppress(Malformed):
        assert len(read_quote(payload).beginning) == 8


def test_a_quote_is_the_packet_that_was_quoted() -> None:
    """Options of the header included."""
    datagram = udp(SERVER, 99, GUEST, 1234, b"hello")
    packet = ipv4(SERVER, GUEST, UDP, datagram, options=bytes([1] * 8))
    quote = read_quote(packet[: 28 + 8])
    assert quote == Quote(packed(SERVER), packed(GUEST), UDP, datagram[:8])
    assert quote.ports == (99, 1234)
