"""Where the guest is that a published port leads to, as clients of its ports find it."""

import struct
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from qemu_usernat.admission import Guest
from qemu_usernat.arrivals import GUEST_WAIT
from qemu_usernat.config.publish import Publication
from qemu_usernat.config.reservations import Reservation
from qemu_usernat.whereabouts import ASK_INTERVAL, RESIDENT_TIME, Whereabouts
from qemu_usernat.wire.packets import SYN
from tests.scripted_client import CLIENT, PORT, Answering, Published, ScriptedCaller
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    ScriptedGuest,
    packed,
)


def comes_by_arp(guest: ScriptedGuest) -> None:
    guest.sends(guest.answers_who_has())


def speaks(guest: ScriptedGuest) -> None:
    guest.sends(guest.asks_who_has(GATEWAY))


@pytest.mark.parametrize("comes", [comes_by_arp, speaks])
@pytest.mark.parametrize("text", ["8080:80", "8080:10.0.2.15:80"])
def test_a_guest_that_comes_meanwhile_is_called_in_that_very_turn(
    comes: Callable[[ScriptedGuest], None], text: str
) -> None:
    """It answers our question, or says something by itself."""
    here = Published(text)
    client = here.client()
    here.network.advance(5)
    guest = here.network.guest()
    comes(guest)
    syns = [heard for heard in guest.hears() if heard.packet is not None]
    assert [heard.tcp.flags for heard in syns] == [SYN]
    assert not client.was_reset
    here.network.advance(GUEST_WAIT)
    assert not client.was_reset


def test_a_whole_network_is_asked_where_nobody_was_named() -> None:
    """A guest with an address of its own need not have said anything to anybody."""
    here = Published()
    guest = here.network.guest(address="10.0.2.77")
    here.client()
    asked = {heard.arp.target_address for heard in guest.hears()}
    assert packed("10.0.2.77") in asked
    assert len(asked) == 252  # a /24 without the gateway and the name server
    guest.sends(guest.answers_who_has())
    assert guest.hears_one().tcp.flags == SYN


def test_an_address_of_a_link_that_is_gone_is_not_there() -> None:
    """Whoever has it now says so itself, from the link that it has now."""
    here = Published()
    guest = here.guest()
    router = here.network.router
    router.switch.detach(guest.guest.port)
    router.on_link_down(guest.guest.port, here.network.now)
    client = here.client()
    again = here.network.guest()
    assert again.hears() == []
    again.sends(again.asks_who_has("10.0.2.99"))
    assert [heard.tcp.flags for heard in again.hears()] == [SYN]
    assert not client.was_reset


def test_of_several_guests_the_one_whose_link_came_first_is_meant() -> None:
    """Unless one is named by its address."""
    here = Published()
    first, second = here.guest(), here.guest(OTHER_MAC, OTHER, "other")
    here.client()
    first.is_called()
    here.client(door=here.at(f"8081:{OTHER}:81"))
    second.is_called()


def test_no_neighbour_takes_the_place_of_a_guest_that_reboots() -> None:
    """Clients wait for it, and find it there again, though its link is now the younger one; also
    where nobody had called before."""
    here = Published()
    first, second = here.guest(), here.guest(OTHER_MAC, OTHER, "other")
    here.leaves(first)
    client = here.client()
    assert all(heard.packet is None for heard in second.guest.hears())
    again = Answering(here.network.guest())
    again.guest.sends(again.guest.asks_who_has(GATEWAY))
    again.is_called()
    assert not client.was_reset
    here.client(port=PORT + 1)
    again.is_called()
    assert all(heard.packet is None for heard in second.guest.hears())


def test_a_guest_that_stays_away_is_followed_by_another() -> None:
    """After ten minutes; and then that one keeps the place."""
    here = Published()
    first, second = here.guest(), here.guest(OTHER_MAC, OTHER, "other")
    here.network.advance(RESIDENT_TIME)  # it may be there for as long as it likes
    here.leaves(first)
    here.network.advance(RESIDENT_TIME - GUEST_WAIT - 1)
    early = here.client()
    here.network.advance(GUEST_WAIT)
    assert early.was_reset
    second.guest.hears()
    here.client(port=PORT + 1)
    here.network.advance(ASK_INTERVAL)
    second.is_called()
    again = here.guest()
    here.client(port=PORT + 2)
    second.is_called()
    assert again.guest.hears() == []


def test_a_guest_that_was_alone_is_followed_at_once() -> None:
    """Another machine in its place is what somebody has begun there."""
    here = Published()
    here.leaves(here.guest())
    second = here.guest(OTHER_MAC, OTHER)
    here.client()
    second.is_called()


def test_a_guest_that_has_changed_its_address_is_called_at_the_new_one() -> None:
    """At once, and for good; the old one was never taken back by anybody."""
    here = Published()
    guest = here.guest(address="10.0.2.50")
    for address in ("10.0.2.60", "10.0.2.50", "10.0.2.70"):
        here.network.advance(3600)
        guest.guest.address = address
        guest.guest.sends(guest.guest.asks_who_has(GATEWAY))
        guest.guest.hears()
        here.client()
        guest.is_called()


def leases(guest: ScriptedGuest, identifier: bytes) -> str:
    """An address, as a client of that identifier (RFC 2132, 9.14); it speaks from there."""

    def asks(kind: int, *options: bytes) -> bytes:
        head = struct.pack(">BBBBIHH16s", 1, 1, 6, 0, 7, 0, 0x8000, bytes(16))
        own = b"\x3d" + bytes([len(identifier)]) + identifier
        message = head + guest.mac.ljust(208, b"\0") + b"\x63\x82\x53\x63\x35\x01"
        message += bytes([kind]) + own + b"".join(options) + b"\xff"
        everybody = {"source": "0.0.0.0", "destination_mac": b"\xff" * 6}
        guest.sends(guest.datagram(68, "255.255.255.255", 67, message, **everybody))
        return guest.hears_one().udp.payload[16:20]

    offered = asks(1)
    asks(3, b"\x32\x04", offered, b"\x36\x04", packed(GATEWAY))
    guest.address = str(IPv4Address(offered))
    guest.sends(guest.asks_who_has(GATEWAY))
    guest.hears()
    return guest.address


def test_of_two_leases_of_one_machine_the_later_is_meant() -> None:
    """An initramfs asks by its MAC address, the system after it by an identifier of its own; one
    that was not leased does not come before."""
    here = Published()
    guest = Answering(here.network.guest())
    first = leases(guest.guest, b"\1" + GUEST_MAC)
    here.network.advance(5)
    assert leases(guest.guest, b"\xffduid") != first
    here.client()
    guest.is_called()
    guest.guest.sends(guest.guest.ping(GATEWAY, source="10.0.2.200"))
    guest.guest.hears()
    here.client(port=PORT + 1)
    guest.is_called()


def test_machines_behind_a_bridge_do_not_take_its_clients() -> None:
    """However much later they speak: who was there first is meant."""
    here = Published()
    guest = here.guest()
    here.network.advance(60)
    nested = guest.guest.asks_who_has(GATEWAY).replace(GUEST_MAC, OTHER_MAC)
    guest.guest.sends(nested.replace(packed(GUEST), packed(OTHER)))
    guest.guest.hears()
    here.client()
    guest.is_called()


def test_a_thousand_clients_look_for_a_guest_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes, and who waits as somebody else shows: else a guest with many neighbours, or one
    that changes its MAC address with each frame, would keep all the others waiting."""
    looked = 0
    look = Whereabouts._find

    def counted(self: Whereabouts, publication: Publication, now: float) -> Guest | None:
        nonlocal looked
        looked += 1
        return look(self, publication, now)

    monkeypatch.setattr(Whereabouts, "_find", counted)
    here = Published("8080:10.0.2.99:80")
    doors = [here.at(f"{9000 + number}:10.0.2.99:80") for number in range(5)]
    arrivals = here.network.router.arrivals
    for number in range(1000):
        caller = ScriptedCaller(here.network, (packed(CLIENT), 2000 + number))
        arrivals.on_caller(caller, doors[number % 5], here.network.now)
    here.network.end_turn()
    assert looked == 1
    guest = here.guest().guest
    assert looked == 2
    ping = guest.ping(GATEWAY)
    guest.sends(ping, ping.replace(GUEST_MAC, OTHER_MAC))
    assert looked == 3
    assert len(arrivals.waiting) == 1000


def test_a_guest_may_be_named() -> None:
    """By the name that was reserved for it, without a lease, and by one that there is not."""
    reservation = Reservation(OTHER_MAC, IPv4Address(OTHER), "web")
    here = Published("8080:web:80", reservations=(reservation,))
    here.guest()
    web = here.network.guest(OTHER_MAC, OTHER, "other")
    here.client()
    assert [heard.arp.target_address for heard in web.hears()] == [packed(OTHER)]
    web.sends(web.answers_who_has())
    assert web.hears_one().tcp.flags == SYN
    nobody = here.client(door=here.at("8081:nobody:80"))
    here.network.advance(GUEST_WAIT)
    assert nobody.was_reset


def test_a_guest_may_be_named_by_its_link() -> None:
    """Whatever its address is, and wherever another one's came first."""
    here = Published("8080:other:80")
    here.guest()
    other = here.network.guest(OTHER_MAC, OTHER, "other")
    here.client()
    assert packed(OTHER) in {heard.arp.target_address for heard in other.hears()}
    other.sends(other.answers_who_has())
    assert other.hears_one().tcp.flags == SYN
