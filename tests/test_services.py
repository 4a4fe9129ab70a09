"""The gateway's own services, as a guest's frames reach them."""

from ipaddress import IPv4Address
from unittest.mock import patch

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.config.reservations import Reservation
from qemu_usernat.gateway.dhcp import ACK, BOOT_REPLY, NAK, DhcpServer
from qemu_usernat.gateway.dhcp_options import MESSAGE_TYPE
from qemu_usernat.gateway.dns import GUEST_PENDING_MAXIMUM
from qemu_usernat.gateway.leases import RESTING_PER_LINK, HeldLease
from qemu_usernat.gateway.tftp import TFTP_PORT, TRANSFERS_MAXIMUM
from qemu_usernat.lan.port import STALLED_AT
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.addresses import format_address
from qemu_usernat.wire.dhcp import DhcpMessage, build_dhcp, parse_dhcp
from qemu_usernat.wire.headers import peek
from tests.gateway.test_dhcp import decline, discover, init_reboot
from tests.gateway.test_tftp import File, ack, read_request
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GUEST,
    NAMESERVER,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
)

QUESTIONS = [
    dns.message.make_query("gateway.internal", "A", id=1).to_wire(),
    dns.message.make_query("www.example", "A", id=2, use_edns=0).to_wire(),
    dns.message.make_query("www.example", "AXFR", id=3).to_wire(),
    b"nonsense",
    b"",
    b"\0\7\1\0\0\1" + bytes(6),
    dns.message.make_query("www.example", "A", id=4).to_wire() + bytes(1460),
]

Said = tuple[str, str, bytes, int]

said = st.tuples(
    st.sampled_from([GUEST, OTHER]) | st.sampled_from(["192.0.2.9", GATEWAY, "10.0.2.255"]),
    st.just(NAMESERVER) | st.sampled_from([GATEWAY, SERVER, OTHER, "10.0.2.255", "224.0.0.1"]),
    st.sampled_from(QUESTIONS),
    st.just(64) | st.sampled_from([0, 1, 2]),
)


def _conversation(all_said: list[Said], is_guarded: bool, is_quick: bool) -> object:
    """All that becomes of it: what guests hear, what is asked upstream, what is counted."""
    network = ScriptedNetwork(mtu=9000, dns=[(b"\x7f\0\0\x01", 53)])
    network.router.switch.guard_sources(is_guarded)
    guest, other = network.guest(), network.guest(b"\x52\x54\0\0\0\x99", OTHER)
    heard = []
    with patch("qemu_usernat.router.peek", peek if is_quick else lambda frame: None):
        other.sends(other.datagram(1234, NAMESERVER, 53, QUESTIONS[0]))
        for source, destination, message, ttl in all_said:
            guest.sends(guest.datagram(1234, destination, 53, message, source=source, ttl=ttl))
            heard += guest.frames()
    asked = [(transport, message) for _, transport, message, _ in network.resolvers.asked]
    stranger = network.router.link_of(b"\x0a\0\2\x0f")
    mtu = guest.port.shown_mtu
    return heard, other.frames(), asked, dict(network.counters), stranger, mtu


@given(st.lists(said, min_size=1, max_size=6), st.booleans())
def test_a_question_goes_the_same_way_whether_quick_or_not(
    all_said: list[Said], is_guarded: bool
) -> None:
    """The short way of plain questions is a shortcut, and leads where the long one does."""
    quick = _conversation(all_said, is_guarded, is_quick=True)
    assert quick == _conversation(all_said, is_guarded, is_quick=False)


# Names of guests


def _named(network: ScriptedNetwork) -> list[tuple[str, str]]:
    zone = network.router.dns.zone
    return [(format_address(address), name) for address, name in zone.guests(network.now)]


def _lease(number: int, name: str) -> HeldLease:
    mac = bytes((0x52, 0x54, 0, 0, 0, number))
    return HeldLease(bytes((10, 0, 2, 20 + number)), mac, name, b"\1" + mac, 2000.0)


def test_guests_are_known_by_what_they_call_themselves() -> None:
    """For as long as they have their leases; but not by a name that is kept for another."""
    kept = Reservation(bytes((0x52, 0x54, 0, 0, 0, 9)), IPv4Address("10.0.2.200"), "db")
    network = ScriptedNetwork(reservations=(kept,))
    names = ["web", "", "db", "wpad", "localhost"]
    network.router._services.dhcp.restore(_lease(n, name) for n, name in enumerate(names))
    assert _named(network) == [("10.0.2.20", "web")]
    network.now = 2000.0
    assert _named(network) == []


@pytest.mark.parametrize(
    ("domain", "known"),
    [("internal", ["web", "db"]), ("lab.internal", ["web", "db"]), ("example.com", ["db"])],
)
def test_under_a_policy_no_guest_takes_a_name_of_the_world(domain: str, known: list[str]) -> None:
    """In a domain that others have, too, only the operator gives names: a guest that calls itself
    `www` would be `www.example.com` to its neighbours."""
    mac = bytes((0x52, 0x54, 0, 0, 0, 1))
    kept = Reservation(mac, IPv4Address("10.0.2.21"), "db")
    network = ScriptedNetwork(reservations=(kept,), domain=domain)
    network.admission.replace(PolicySettings(policy=NetworkPolicy.allow_all()))
    network.router._services.dhcp.restore([_lease(0, "web"), _lease(1, "db")])
    assert [name for _, name in _named(network)] == known


def test_leases_are_looked_through_when_they_have_changed() -> None:
    """Not for each question: when one begins, ends or is renewed, or another policy holds."""
    network = ScriptedNetwork(domain="example.com")
    dhcp = network.router._services.dhcp
    dhcp.restore([_lease(0, "web"), _lease(1, "db")])
    zone = network.router.dns.zone
    with patch.object(DhcpServer, "leases", autospec=True, side_effect=DhcpServer.leases) as leases:
        for _ in range(5):
            assert len(zone.guests(network.now)) == 2
        assert leases.call_count == 1
        dhcp.on_gone({_lease(0, "").mac}, network.now)
        assert _named(network) == [("10.0.2.21", "db")]
        network.admission.replace(PolicySettings(policy=NetworkPolicy.allow_all()))
        assert _named(network) == []
        network.admission.replace(None)
        assert _named(network) == [("10.0.2.21", "db")]
        network.now = 2000.0
        assert _named(network) == []
        assert leases.call_count == 5


# Questions of many guests


def test_guests_at_links_of_one_name_have_shares_of_their_own() -> None:
    """Several QEMUs at one listener have one name in the log: a flood of one's questions, from
    whatever addresses, is still its own affair."""
    network = ScriptedNetwork(mtu=1500, dns=[(b"\x7f\0\0\x01", 53)])
    flood, other = network.guest(), network.guest(b"\x52\x54\0\0\0\x99", OTHER)
    assert flood.port.name == other.port.name
    for n in range(GUEST_PENDING_MAXIMUM + 10):
        flood.mac = bytes((0x52, 0x54, 0, 0, 1, n % 4))
        question = dns.message.make_query(f"n{n}.example", "A").to_wire()
        flood.sends(flood.datagram(1234, NAMESERVER, 53, question))
    assert network.counters["dns.too_many_queries"] == 10
    other.sends(other.datagram(1234, NAMESERVER, 53, QUESTIONS[1]))
    assert network.counters["dns.too_many_queries"] == 10
    assert len(network.resolvers.asked) == GUEST_PENDING_MAXIMUM + 1


# Addresses


def _asks_dhcp(guest: ScriptedGuest, message: DhcpMessage) -> list[DhcpMessage]:
    """Of everybody, and what it is answered."""
    destination, payload = "255.255.255.255", build_dhcp(message)
    guest.sends(
        guest.datagram(
            68, destination, 67, payload, source="0.0.0.0", destination_mac=BROADCAST_MAC
        )
    )
    heard = [parse_dhcp(heard.udp.payload) for heard in guest.hears()]
    return [each for each in heard if each.operation == BOOT_REPLY]


def _is_offered_an_address(guest: ScriptedGuest) -> bool:
    """Whether it hears of one when it asks."""
    return bool(_asks_dhcp(guest, discover(guest.mac)))


def _declines_an_address(guest: ScriptedGuest) -> bytes:
    """That it is offered: which one."""
    (offer,) = _asks_dhcp(guest, discover(guest.mac))
    assert _asks_dhcp(guest, decline(offer.your_address, guest.mac)) == []
    return offer.your_address


def test_a_guest_that_declines_all_that_it_gets_does_not_undo_what_another_has_found() -> None:
    """What its neighbour has found in use rests, of its own the last ones only; whatever MAC
    address it has."""
    network = ScriptedNetwork()
    hostile, other = network.guest(), network.guest(OTHER_MAC, OTHER)
    found = _declines_an_address(other)
    declined = []
    for number in range(RESTING_PER_LINK + 1):
        hostile.mac = b"\x02" + number.to_bytes(5, "big")
        declined.append(_declines_an_address(hostile))
    answers = [
        _asks_dhcp(other, init_reboot(address, OTHER_MAC))[0].options[MESSAGE_TYPE]
        for address in (found, declined[1], declined[0])
    ]
    assert answers == [bytes([NAK]), bytes([NAK]), bytes([ACK])]


def test_a_guest_that_speaks_from_every_address_leaves_one_for_its_neighbour() -> None:
    """Under a policy, where an address is of whoever used it first; now, and when it has left."""
    network = ScriptedNetwork()
    network.router.on_policy(True, network.now)
    hostile, other = network.guest(), network.guest(OTHER_MAC, OTHER)
    for number in range(4, 255):
        hostile.sends(hostile.ping(GATEWAY, source=f"10.0.2.{number}"))
    assert _is_offered_an_address(other)
    network.router.switch.detach(hostile.port)
    network.router.on_link_down(hostile.port, network.now)
    network.advance(86400)
    assert _is_offered_an_address(other)


# Files


def _asks(guest: ScriptedGuest, port: int, request: bytes) -> list[bytes]:
    """For a file, and what it hears."""
    guest.sends(guest.datagram(port, GATEWAY, TFTP_PORT, request))
    return [heard.udp.payload for heard in guest.hears()]


def test_a_guest_with_many_mac_addresses_has_one_guest_s_share_of_transfers() -> None:
    """Without a policy, too, its neighbour boots."""
    network = ScriptedNetwork(open_file=lambda name: File(bytes(2000)))
    hostile, other = network.guest(), network.guest(OTHER_MAC, OTHER)
    for number in range(TRANSFERS_MAXIMUM):
        hostile.mac = b"\x02" + number.to_bytes(5, "big")
        _asks(hostile, 6000 + number, read_request(timeout=255))
    assert _asks(other, 2000, read_request())[0][:4] == b"\0\3\0\1"
    network.advance(120)
    network.assert_nothing_left()


def test_no_block_is_made_for_a_guest_that_does_not_read() -> None:
    """Its queue would drop it; it is sent when its time has come, and the guest reads again."""
    network = ScriptedNetwork(open_file=lambda name: File(bytes(100_000)))
    guest = network.guest()
    guest.sends(guest.datagram(2000, GATEWAY, TFTP_PORT, read_request(windowsize=16)))
    port = guest.hears_one().udp.source_port
    guest.reads = False
    guest.port.send(bytes(STALLED_AT))
    guest.sends(guest.datagram(2000, GATEWAY, port, ack(0)))
    assert guest.port.queued == STALLED_AT
    assert network.counters["tftp.held_back"] == 16
    guest.port.outbox.clear()
    guest.port.queued = 0
    guest.reads = True
    network.advance(1)
    assert len(guest.hears()) == 16


def test_the_files_of_a_guest_that_has_left_are_closed() -> None:
    """Of whatever MAC address, and those of others are not."""
    opened: list[File] = []

    def open_file(name: bytes) -> File:
        opened.append(File(bytes(2000)))
        return opened[-1]

    network = ScriptedNetwork(open_file=open_file)
    guest, other = network.guest(), network.guest(OTHER_MAC, OTHER)
    _asks(guest, 2000, read_request())
    _asks(other, 2000, read_request())
    network.router.switch.detach(guest.port)
    network.router.on_link_down(guest.port, network.now)
    assert [file.closed for file in opened] == [True, False]
