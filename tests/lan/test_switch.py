"""The switch as guests see it: who hears whom, and what one guest can do to another."""

import pytest

from qemu_usernat.lan import places
from qemu_usernat.lan.places import AGING_TIME, LOOK_INTERVAL, PLACES_PER_PORT
from qemu_usernat.lan.port import QUEUE_LIMIT, QUEUES_LIMIT, STALLED_AT, Port
from qemu_usernat.lan.switch import FLOODS_AT_ONCE, FLOODS_PER_SECOND, Switch
from qemu_usernat.primitives.counters import Counters

GATEWAY = b"\x52\x55\x0a\0\2\2"
ONE = b"\x52\x54\0\0\0\1"
TWO = b"\x52\x54\0\0\0\2"
THREE = b"\x52\x54\0\0\0\3"
EVERYBODY = b"\xff" * 6
GROUP = b"\x01\0\x5e\0\0\xfb"


def mac(number: int) -> bytes:
    return b"\x02\0" + number.to_bytes(4, "big")


class Segment:
    """A switch with three ports, and what the gateway got."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.gateway: list[bytes] = []
        self.switch = Switch(GATEWAY, lambda frame, now: self.gateway.append(bytes(frame)),
                             self.counters)  # fmt: skip
        self.now = 1000.0
        self.one, self.two, self.three = (self.attach(name) for name in ("one", "two", "three"))

    def attach(self, name: str) -> Port:
        port = Port(name, self.counters)
        self.switch.attach(port)
        return port

    def says(self, port: Port, source: bytes, destination: bytes, text: bytes = b"") -> bytes:
        frame = destination + source + b"\x88\xb6" + text
        if self.now >= self.switch.next_look:
            self.switch.look(self.now)
        self.switch.on_frame(port, memoryview(frame), self.now)
        return frame

    def waits(self, port: Port, source: bytes, seconds: float) -> None:
        """Time passes, in which somebody goes on to speak to the gateway."""
        until = self.now + seconds
        while self.now < until:
            self.now += 1
            self.says(port, source, GATEWAY)
        self.gateway.clear()

    def heard(self, port: Port) -> list[bytes]:
        heard = [bytes(piece) for piece in port.outbox]
        port.outbox.clear()
        port.queued = 0
        return heard


def on_stream(frame: bytes) -> bytes:
    padded = frame.ljust(60, b"\0")
    return len(padded).to_bytes(4, "big") + padded


@pytest.fixture
def segment() -> Segment:
    return Segment()


def test_a_broadcast_reaches_the_gateway_and_every_other_guest(segment: Segment) -> None:
    """The guest that shouts does not hear itself; everybody else does, padded to 60 bytes."""
    for destination in (EVERYBODY, GROUP):
        frame = segment.says(segment.one, ONE, destination, b"hello")
        assert segment.gateway.pop() == frame
        assert segment.heard(segment.two) == [on_stream(frame)]
        assert segment.heard(segment.three) == [on_stream(frame)]
        assert segment.heard(segment.one) == []


def test_a_frame_for_the_gateway_is_heard_by_nobody_else(segment: Segment) -> None:
    """What a guest says to the gateway, once and again, stays between the two."""
    frames = [segment.says(segment.one, ONE, GATEWAY, text) for text in (b"a", b"b", b"c")]
    assert segment.gateway == frames
    assert not segment.two.outbox
    assert not segment.three.outbox


def test_a_frame_for_a_guest_goes_to_that_guest(segment: Segment) -> None:
    """Once a guest has said anything the switch knows where it is; until then everybody hears it,
    but for the gateway, who knows its own address."""
    frame = segment.says(segment.one, ONE, TWO)
    assert segment.counters["ethernet.unknown_destination"] == 1
    assert segment.heard(segment.two) == segment.heard(segment.three) == [on_stream(frame)]
    assert segment.heard(segment.one) == []
    segment.says(segment.two, TWO, GATEWAY)
    frame = segment.says(segment.one, ONE, TWO, b"x" * 1500)
    assert segment.heard(segment.two) == [on_stream(frame)]
    assert not segment.three.outbox
    assert segment.gateway == [GATEWAY + TWO + b"\x88\xb6"]


def test_a_frame_to_one_s_own_port_goes_nowhere(segment: Segment) -> None:
    """A bridge inside the guest has delivered it already."""
    segment.says(segment.one, ONE, GATEWAY)
    segment.says(segment.one, TWO, GATEWAY)
    segment.says(segment.one, ONE, TWO)
    assert not segment.one.outbox


def test_a_guest_that_moves_is_found_at_its_new_port(segment: Segment) -> None:
    """The newest port at which an address was seen is where it is; so also when it moves back."""
    segment.says(segment.one, ONE, GATEWAY)
    for port in (segment.two, segment.one, segment.three):
        segment.says(port, ONE, GATEWAY)
        assert segment.switch.port_of(ONE) is port
    assert ONE not in segment.one.addresses


def test_a_guest_whose_link_is_gone_is_nowhere(segment: Segment) -> None:
    """Nothing is queued for a link that is down, and what was queued is dropped."""
    segment.says(segment.one, ONE, GATEWAY)
    segment.one.send(b"queued")
    segment.switch.detach(segment.one)
    assert segment.switch.port_of(ONE) is None
    assert (segment.one.outbox, segment.one.queued) == ([], 0)
    segment.says(segment.two, TWO, EVERYBODY)
    assert not segment.one.outbox


def test_an_address_that_has_moved_survives_the_end_of_its_old_port(segment: Segment) -> None:
    """QEMU's new link comes before we have noticed that the old one is dead."""
    segment.says(segment.one, ONE, GATEWAY)
    segment.says(segment.two, ONE, GATEWAY)
    segment.switch.detach(segment.one)
    assert segment.switch.port_of(ONE) is segment.two


def test_a_flood_of_addresses_costs_nobody_his(segment: Segment) -> None:
    """A guest that invents addresses has a bounded number of them; what it says from more of them
    is not heard, and neither its neighbour's address gives way nor its own first one."""
    segment.says(segment.two, TWO, GATEWAY)
    segment.says(segment.one, ONE, GATEWAY)
    segment.gateway.clear()
    for number in range(10 * PLACES_PER_PORT):
        segment.says(segment.one, mac(number), GATEWAY)
    assert segment.switch.port_of(TWO) is segment.two
    assert segment.switch.port_of(ONE) is segment.one
    assert len(segment.one.addresses) == PLACES_PER_PORT
    assert segment.counters["ethernet.table_full"] == 9 * PLACES_PER_PORT + 1
    assert len(segment.gateway) == PLACES_PER_PORT - 1
    segment.switch.detach(segment.one)
    assert segment.switch.port_of(ONE) is None
    assert segment.switch.port_of(TWO) is segment.two


def test_a_flood_ages(segment: Segment) -> None:
    """What was invented gives way to new machines when it was silent for five minutes; who speaks
    now and then, if only to the gateway, does not."""
    segment.says(segment.one, ONE, GATEWAY)
    for number in range(PLACES_PER_PORT - 1):
        segment.says(segment.one, mac(number), GATEWAY)
    segment.waits(segment.one, ONE, AGING_TIME - 2)
    segment.says(segment.one, TWO, GATEWAY)
    assert segment.switch.port_of(TWO) is None
    segment.waits(segment.one, ONE, 2)
    for number in range(PLACES_PER_PORT - 1):
        segment.says(segment.one, mac(1000 + number), GATEWAY)
    segment.says(segment.one, TWO, GATEWAY)
    assert segment.switch.port_of(mac(1000)) is segment.one
    assert segment.switch.port_of(mac(0)) is None
    assert segment.switch.port_of(ONE) is segment.one
    assert segment.counters["ethernet.table_full"] == 2


def test_a_full_segment_has_room_for_one_of_each(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many addresses the others have invented, a machine that comes is heard."""
    monkeypatch.setattr(places, "PLACES_MAXIMUM", 8)
    for number in range(8):
        segment.says((segment.one, segment.two)[number % 2], mac(number), GATEWAY)
    segment.says(segment.one, mac(8), GATEWAY)
    assert segment.counters["ethernet.table_full"] == 1
    segment.says(segment.three, THREE, GATEWAY)
    assert segment.switch.port_of(THREE) is segment.three
    segment.says(segment.three, mac(9), GATEWAY)
    assert segment.switch.port_of(mac(9)) is None
    segment.says(segment.two, mac(0), GATEWAY)  # one that moves is no one more
    assert segment.switch.port_of(mac(0)) is segment.two


def test_a_thief_with_a_full_table_gets_nothing(segment: Segment) -> None:
    """A flood that meets a neighbour's address does not take it away."""
    segment.says(segment.two, TWO, GATEWAY)
    for number in range(PLACES_PER_PORT):
        segment.says(segment.one, mac(number), GATEWAY)
    segment.says(segment.one, TWO, GATEWAY)
    assert segment.switch.port_of(TWO) is segment.two


def test_one_that_was_silent_for_long_is_looked_for_everywhere(segment: Segment) -> None:
    """Where it was heard last, first of all: a server that only answers stays within reach."""
    segment.says(segment.two, TWO, GATEWAY)
    segment.waits(segment.one, ONE, AGING_TIME - LOOK_INTERVAL - 1)
    frame = segment.says(segment.one, ONE, TWO)
    assert segment.heard(segment.two) == [on_stream(frame)]
    assert segment.heard(segment.three) == []
    segment.waits(segment.one, ONE, LOOK_INTERVAL + 1)
    frame = segment.says(segment.one, ONE, TWO)
    assert segment.heard(segment.two) == segment.heard(segment.three) == [on_stream(frame)]
    segment.says(segment.two, TWO, ONE)
    frame = segment.says(segment.one, ONE, TWO)
    assert segment.heard(segment.two) == [on_stream(frame)]
    assert segment.heard(segment.three) == []


@pytest.mark.parametrize("destination", [EVERYBODY, GROUP, mac(7)])
def test_who_shouts_too_much_is_heard_by_the_gateway_only(
    segment: Segment, destination: bytes
) -> None:
    """A thousand frames a second for all are more than any machine has to say; another guest has
    a thousand of its own."""
    for _ in range(int(FLOODS_AT_ONCE) + 100):
        segment.says(segment.one, ONE, destination)
    assert len(segment.heard(segment.two)) == FLOODS_AT_ONCE
    assert segment.counters["ethernet.flood_limited"] == 100
    heard = 0 if destination == mac(7) else FLOODS_AT_ONCE + 100
    assert len(segment.gateway) == heard
    segment.heard(segment.three)
    segment.says(segment.two, TWO, destination)
    assert len(segment.heard(segment.three)) == 1
    segment.now += 0.5
    for _ in range(int(FLOODS_PER_SECOND)):
        segment.says(segment.one, ONE, destination)
    assert len(segment.heard(segment.two)) == FLOODS_PER_SECOND / 2


@pytest.mark.parametrize("destination", [EVERYBODY, GROUP, TWO, mac(7)])
def test_isolated_guests_do_not_hear_each_other(segment: Segment, destination: bytes) -> None:
    """Whomever a frame is for, and whatever is in it; the gateway hears what is for all."""
    segment.switch.isolated = True
    segment.says(segment.two, TWO, GATEWAY)
    segment.says(segment.one, ONE, destination)
    assert (segment.heard(segment.two), segment.heard(segment.three)) == ([], [])
    assert segment.counters["ethernet.isolated"] == 1
    assert len(segment.gateway) == 1 + (destination[0] & 1)


@pytest.mark.parametrize("destination", [GATEWAY, EVERYBODY, TWO])
def test_nobody_speaks_as_the_gateway(segment: Segment, destination: bytes) -> None:
    """A guest with the gateway's address is counted each time, and is heard by nobody."""
    segment.says(segment.two, TWO, GATEWAY)
    segment.gateway.clear()
    for times in (1, 2, 3):
        segment.says(segment.one, GATEWAY, destination)
        assert segment.counters["ethernet.gateway_source"] == times
    assert segment.switch.port_of(GATEWAY) is None
    assert (segment.gateway, segment.two.outbox, segment.three.outbox) == ([], [], [])


def test_a_source_is_one_station(segment: Segment) -> None:
    """A group address as source would make every answer a broadcast: dropped."""
    segment.says(segment.one, EVERYBODY, GATEWAY)
    assert segment.counters["ethernet.group_source"] == 1
    assert segment.gateway == []


# -- ports


def test_a_port_s_queue_is_bounded() -> None:
    """A guest that does not read costs two megabytes; the rest is dropped and counted."""
    counters = Counters()
    port = Port("full", counters)
    for _ in range(1000):
        port.send(bytes(65000))
    assert QUEUE_LIMIT <= port.queued == sum(map(len, port.outbox)) < QUEUE_LIMIT + 65000
    assert counters["link.queue_full"] == 1000 - len(port.outbox)


def test_the_queues_of_all_guests_are_bounded(segment: Segment) -> None:
    """Where there are many that do not read, each has less; when they are gone, as much again."""
    ports = [segment.attach(f"{number}") for number in range(253)]
    for port in segment.switch.ports:
        while not segment.counters["link.queue_full"]:
            port.send(bytes(65000))
        segment.counters.clear()
    total = sum(port.queued for port in segment.switch.ports)
    assert QUEUES_LIMIT <= total <= QUEUES_LIMIT + 256 * 65000
    assert segment.one.stalled_at < segment.one.limit < STALLED_AT * 2
    for port in ports:
        segment.switch.detach(port)
    assert (segment.one.limit, segment.one.stalled_at) == (QUEUE_LIMIT, STALLED_AT)


def test_a_port_tries_the_link_before_it_calls_itself_stalled() -> None:
    """Only a guest that takes nothing is stalled: a busy turn alone makes nobody wait."""
    port = Port("busy", Counters())

    def empty() -> None:
        port.outbox.clear()
        port.queued = 0

    port.send(bytes(STALLED_AT))
    assert port.stalled()
    port.transmit = empty
    assert not port.stalled()
    assert port.queued == 0


# -- guarded


def test_a_link_is_one_machine_where_sources_are_guarded(segment: Segment) -> None:
    """The first that it shows; nobody else may be that one while its link is there, hang as it
    may, and its next link is it as soon as the old one is gone."""
    segment.switch.guard_sources(True)
    segment.says(segment.one, ONE, GATEWAY)
    segment.says(segment.two, TWO, GATEWAY)
    segment.gateway.clear()
    segment.says(segment.one, THREE, GATEWAY)
    segment.says(segment.two, ONE, GATEWAY)
    again = segment.attach("again")
    segment.says(again, ONE, GATEWAY)
    assert segment.gateway == []
    assert segment.counters["ethernet.spoofed_source"] == 3
    assert segment.switch.port_of(ONE) is segment.one
    segment.now += 10 * AGING_TIME  # silence is no reason
    segment.says(again, ONE, GATEWAY)
    assert segment.switch.port_of(ONE) is segment.one
    segment.switch.detach(segment.one)
    segment.says(again, ONE, GATEWAY)
    assert segment.switch.port_of(ONE) is again
    assert len(segment.gateway) == 1


def test_a_flood_of_addresses_where_sources_are_guarded(segment: Segment) -> None:
    """Costs an entry."""
    segment.switch.guard_sources(True)
    for number in range(1000):
        segment.says(segment.one, mac(number), GATEWAY)
    assert list(segment.one.addresses) == [mac(0)]
    assert segment.counters["ethernet.spoofed_source"] == 999
