"""A client of published ports that takes all it can get, at the limits as they are: each refusal is
counted under its name, and the clients of the guest beside it notice nothing."""

from collections.abc import Callable, Hashable

import pytest
from attrs import define, field

from qemu_usernat.arrivals import CALLS_PER_PORT, WAITING_MAXIMUM, WAITING_PER_PORT, Door
from qemu_usernat.config.publish import parse_publication
from qemu_usernat.nat import holdings
from qemu_usernat.nat.holdings import HALF_OPEN_PER_GUEST
from qemu_usernat.nat.tcp.flow import CONNECT_TIMEOUT
from qemu_usernat.visits import HELD_MAXIMUM, VISITS_MAXIMUM, VISITS_PER_PORT, UdpDoor
from qemu_usernat.wire.packets import SYN, TCP, UDP, Buffer
from tests.scripted_client import ScriptedCaller
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    ScriptedGuest,
    ScriptedNetwork,
    packed,
)

ABSENT = "10.0.2.99"
FRIEND = "198.51.100.9"
AT_ONCE = 256  # clients in one turn


@define(eq=False)
class Place:
    """Two guests with published ports; an `Outlet`."""

    network: ScriptedNetwork = field(factory=ScriptedNetwork)
    sent: list[tuple[bytes, Hashable]] = field(factory=list)
    guests: dict[str, ScriptedGuest] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for mac, address in ((GUEST_MAC, GUEST), (OTHER_MAC, OTHER)):
            guest = self.guests[address] = self.network.guest(mac, address, address)
            guest.sends(guest.asks_who_has(GATEWAY))
            guest.hears()

    def send(self, payload: Buffer, client: Hashable) -> None:
        self.sent.append((bytes(payload), client))

    def udp(self, guest: str, port: int = 53) -> UdpDoor:
        return UdpDoor(parse_publication(f"udp:0:{guest}:{port}"), port, self)

    def tcp(self, guest: str, port: int = 80) -> Door:
        return Door(parse_publication(f"0:{guest}:{port}"), port)

    def writes(self, door: UdpDoor, address: str, port: int, payload: bytes = b"?") -> None:
        client = packed(address), port
        self.network.router.visits.on_client(door, client, client, payload, self.network.now)

    def flood(self, door: UdpDoor, count: int) -> None:
        """Under as many ports."""
        for number in range(count):
            self.writes(door, "192.0.2.66", 1024 + number)
            if number % AT_ONCE == 0:
                self.end_turn()
        self.end_turn()

    def end_turn(self) -> None:
        self.network.end_turn()
        for guest in self.guests.values():
            guest.stream.clear()

    def connects(self, door: Door, port: int, address: str = FRIEND) -> ScriptedCaller:
        caller = ScriptedCaller(self.network, (packed(address), port))
        self.network.router.arrivals.on_caller(caller, door, self.network.now)
        return caller


def floods(place: Place, door: Door, count: int) -> list[ScriptedCaller]:
    """So many clients at one port."""
    callers = []
    for number in range(count):
        callers.append(place.connects(door, 1024 + number))
        if number % AT_ONCE == 0:
            place.end_turn()
    place.end_turn()
    return callers


Story = Callable[[Place], None]
STORIES: dict[str, Story] = {}


def meets(counter: str, how: str) -> Callable[[Story], Story]:
    """What the story does is refused in the end, under this name."""

    def note(story: Story) -> Story:
        STORIES[f"{counter} {how}"] = story
        return story

    return note


@meets("publish.visit_gave_way", "at a port")
def calls_under_every_port(place: Place) -> None:
    place.flood(place.udp(GUEST), VISITS_PER_PORT + 1)


@meets("publish.visit_gave_way", "in all")
def calls_many_ports(place: Place) -> None:
    for port in range(VISITS_MAXIMUM // VISITS_PER_PORT + 1):
        place.flood(place.udp(GUEST, 7000 + port), VISITS_PER_PORT)


@meets("publish.waiting_full", "at a port")
def waits_for_nobody(place: Place) -> None:
    door = place.tcp(ABSENT)
    for number in range(WAITING_PER_PORT + 1):
        place.connects(door, 1024 + number)


@meets("publish.waiting_full", "in all")
def waits_for_nobody_everywhere(place: Place) -> None:
    for _ in range(WAITING_MAXIMUM // WAITING_PER_PORT):
        door = place.tcp(ABSENT)
        for number in range(WAITING_PER_PORT):
            place.connects(door, 1024 + number)
    assert not place.network.counters["publish.waiting_full"]
    place.connects(place.tcp(ABSENT), 1024)


@meets("publish.calls_full", "at a port")
def calls_a_guest_that_does_not_answer(place: Place) -> None:
    floods(place, place.tcp(GUEST), CALLS_PER_PORT + 1)


@meets("publish.calls_full", "at a guest")
def calls_many_ports_of_a_guest_that_does_not_answer(place: Place) -> None:
    for number in range(HALF_OPEN_PER_GUEST // CALLS_PER_PORT):
        floods(place, place.tcp(GUEST, 81 + number), CALLS_PER_PORT)
    assert not place.network.counters["publish.calls_full"]
    place.connects(place.tcp(GUEST, 99), 1024)


@meets("publish.datagram_lost", "in all")
def writes_to_nobody(place: Place) -> None:
    place.flood(place.udp(ABSENT), HELD_MAXIMUM + 1)


@pytest.mark.parametrize("story", STORIES)
def test_a_hostile_client_meets_its_limit_and_nobody_else_does(story: str) -> None:
    """Whoever visits another guest stays, and another port; who waits for a guest is served as it
    comes."""
    place, counter = Place(), story.split()[0]
    door = place.udp(OTHER)
    place.writes(door, FRIEND, 4000)
    quiet = place.udp(GUEST, 99)
    place.writes(quiet, FRIEND, 4001)
    STORIES[story](place)
    assert place.network.counters[counter] >= 1
    assert list(quiet.visits) == [(packed(FRIEND), 4001)]
    other = place.guests[OTHER]
    other.sends(other.datagram(53, FRIEND, 4000, b"answer"))
    assert place.sent == [(b"answer", (packed(FRIEND), 4000))]
    late = "10.0.2.88"
    place.connects(place.tcp(late), 5000)
    place.writes(place.udp(late), FRIEND, 5001, b"early")
    guest = place.network.guest(b"\x02late!"[:6], late, "late")
    guest.sends(guest.asks_who_has(GATEWAY))
    heard = {each.packet.protocol: each for each in guest.hears() if each.packet is not None}
    assert heard[UDP].udp.payload == b"early"
    assert heard[TCP].tcp.flags == SYN


def test_a_port_whose_clients_are_not_answered_costs_no_other() -> None:
    """Of the same guest; and once they are given up, it takes clients in again."""
    place = Place()
    flooded, other = place.tcp(GUEST, 80), place.tcp(GUEST, 443)
    *_, last = floods(place, flooded, CALLS_PER_PORT + 1)
    assert last.was_reset
    assert not place.connects(other, 1024).was_reset
    place.network.advance(CONNECT_TIMEOUT)
    assert not place.connects(flooded, 1024).was_reset


def test_clients_that_come_from_outside_leave_guests_what_is_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as may be call one guest; all others begin connections as before, and itself."""
    monkeypatch.setattr(holdings, "HALF_OPEN_MAXIMUM", CALLS_PER_PORT)
    place = Place()
    floods(place, place.tcp(GUEST), CALLS_PER_PORT)
    assert place.connects(place.tcp(OTHER), 1024).was_reset
    for guest in place.guests.values():
        guest.sends(guest.segment(4000, FRIEND, 80, SYN, 1000))
    assert len(place.network.host.servers) == 2
    assert place.network.counters["tcp.half_open_full"] == 1
