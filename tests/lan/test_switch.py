"""The switch as guests see it: who hears whom, and what one guest can do to another."""

import pytest

from qemu_usernat.lan.port import QUEUE_LIMIT, STALLED_AT, Port
from qemu_usernat.lan.switch import ADDRESSES_PER_PORT, Switch
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
        self.one, self.two, self.three = (self.attach(name) for name in ("one", "two", "three"))

    def attach(self, name: str) -> Port:
        port = Port(name, self.counters)
        self.switch.attach(port)
        return port

    def says(self, port: Port, source: bytes, destination: bytes, text: bytes = b"") -> bytes:
        frame = destination + source + b"\x88\xb5" + text
        self.switch.on_frame(port, memoryview(frame), 0.0)
        return frame

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
    """Once a guest has said anything the switch knows where it is."""
    segment.says(segment.one, ONE, TWO)
    assert segment.counters["ethernet.unknown_destination"] == 1
    segment.says(segment.two, TWO, GATEWAY)
    frame = segment.says(segment.one, ONE, TWO, b"x" * 1500)
    assert segment.heard(segment.two) == [on_stream(frame)]
    assert not segment.three.outbox
    assert segment.gateway == [GATEWAY + TWO + b"\x88\xb5"]


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


def test_a_flood_of_addresses_costs_nobody_else_his(segment: Segment) -> None:
    """A guest that invents addresses pushes out its own and has a bounded number of them."""
    segment.says(segment.two, TWO, GATEWAY)
    segment.says(segment.one, ONE, GATEWAY)
    for number in range(10 * ADDRESSES_PER_PORT):
        segment.says(segment.one, mac(number), GATEWAY)
    assert segment.switch.port_of(TWO) is segment.two
    assert len(segment.one.addresses) == ADDRESSES_PER_PORT
    assert segment.switch.port_of(mac(0)) is None
    segment.says(segment.one, ONE, GATEWAY)
    assert segment.switch.port_of(ONE) is segment.one
    segment.switch.detach(segment.one)
    assert segment.switch.port_of(ONE) is None


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
