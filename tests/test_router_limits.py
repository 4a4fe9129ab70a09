"""What a guest may hold of ours, and all together; beyond it is refused, and no other notices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.admission import Guest
from qemu_usernat.nat import holdings
from qemu_usernat.nat.holdings import OCTETS_AT_LEAST, Holdings
from qemu_usernat.nat.tcp.receiver import CAPACITY_INITIAL, ROUNDING_ROOM
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, Buffer
from tests.scripted_guest import (
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedConnection,
    ScriptedGuest,
    ScriptedNetwork,
    packed,
)

BLACK_HOLE = "192.0.2.1"
WINDOW_SCALE = b"\2\4\x05\xb4\1\3\3\7"


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(mtu=1500)


@pytest.fixture
def guest(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest()


@pytest.fixture
def other(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest(OTHER_MAC, OTHER, "other")


def _is_refused(guest: ScriptedGuest, sport: int) -> bool:
    guest.sends(guest.segment(sport, SERVER, 80, SYN, 1000))
    return [heard.tcp.flags for heard in guest.hears()] == [RST | ACK]


@pytest.mark.parametrize(
    ("limit", "written"),
    [
        (holdings.FLOWS_PER_GUEST, 16_384),
        (holdings.FLOWS_MAXIMUM, 65_536),
        (holdings.HALF_OPEN_PER_GUEST, 4_096),
        (holdings.HALF_OPEN_MAXIMUM, 16_384),
        (holdings.OCTETS_PER_GUEST, 268_435_456),
        (holdings.OCTETS_MAXIMUM, 1_073_741_824),
        (holdings.OCTETS_ALWAYS, 16_777_216),
        (OCTETS_AT_LEAST, 65_536),
    ],
)
def test_a_limit_is_what_is_written(limit: int, written: int) -> None:
    """Whoever changes one has thought of who relies on it."""
    assert limit == written


def test_a_guest_with_all_its_connections_is_refused_more_and_its_neighbour_none(
    network: ScriptedNetwork,
    guest: ScriptedGuest,
    other: ScriptedGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One guest's connections are no other's affair; when one ends, the next may begin."""
    monkeypatch.setattr(holdings, "FLOWS_PER_GUEST", 2)
    connection, _ = guest.connects(40000), guest.connects(40001)
    assert _is_refused(guest, 40002)
    assert network.counters["tcp.flows_full"] == 1
    other.connects(40000)
    guest.sends(connection.segment(RST))
    guest.connects(40003)


def test_all_guests_together_have_a_limit(
    guest: ScriptedGuest, other: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many guests there are."""
    monkeypatch.setattr(holdings, "FLOWS_MAXIMUM", 2)
    guest.connects(40000)
    other.connects(40000)
    assert _is_refused(guest, 40001)
    assert _is_refused(other, 40001)


def test_all_guests_together_have_a_limit_of_half_open_connections(
    guest: ScriptedGuest, other: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each server that is called is a descriptor of ours."""
    monkeypatch.setattr(holdings, "HALF_OPEN_MAXIMUM", 2)
    for each in (guest, other):
        each.sends(each.segment(40000, BLACK_HOLE, 80, SYN, 1000))
    assert _is_refused(guest, 40001)
    assert _is_refused(other, 40001)


def test_all_guests_together_have_a_limit_of_octets(
    guest: ScriptedGuest, other: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others hold all of it, a guest still gets the least."""
    monkeypatch.setattr(holdings, "OCTETS_MAXIMUM", 2 * CAPACITY_INITIAL)
    monkeypatch.setattr(holdings, "OCTETS_ALWAYS", 0)
    for sport in (40000, 40001):
        _connects_scaled(guest, sport)
    assert _fills(_connects_scaled(other, 40000)) <= OCTETS_AT_LEAST + ROUNDING_ROOM


def test_a_small_window_opens_again_for_the_largest_segments() -> None:
    """The least window is one segment at the largest MTU: when it was taken, the guest hears."""
    guest = ScriptedNetwork(mtu=65520).guest()
    network = guest.network
    first = _connects_scaled(guest, 40001)
    first.server.flow.holdings.add(0, 0, holdings.OCTETS_PER_GUEST)
    connection = _connects_scaled(guest, 40000)
    connection.server.takes = 0
    guest.sends(connection.segment(ACK | PSH, bytes(65480)))
    guest.hears()
    connection.server.takes = 1 << 30
    network.router.touch(connection.server.flow)
    network.end_turn()
    assert guest.hears_one().tcp.window << 8 >= 65480


def test_a_guest_that_calls_nobody_is_there_waits_for_as_many_as_it_may(
    network: ScriptedNetwork,
    guest: ScriptedGuest,
    other: ScriptedGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half-open connections are counted apart; those that are made, or given up, no more."""
    monkeypatch.setattr(holdings, "HALF_OPEN_PER_GUEST", 3)
    for sport in (40000, 40001):
        guest.connects(sport)
    for sport in (40002, 40003, 40004):
        guest.sends(guest.segment(sport, BLACK_HOLE, 80, SYN, 1000))
    assert guest.hears() == []
    assert _is_refused(guest, 40005)
    assert network.counters["tcp.half_open_full"] == 1
    other.connects(40000)
    guest.sends(guest.segment(40002, BLACK_HOLE, 80, RST, 1001))
    guest.connects(40006)
    guest.connects(40007)


def test_a_guest_that_never_ends_its_handshakes_meets_the_same_limit(
    network: ScriptedNetwork, guest: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its servers answer, and it does not: each is half open for minutes."""
    monkeypatch.setattr(holdings, "HALF_OPEN_PER_GUEST", 2)
    for sport in (40000, 40001):
        guest.sends(guest.segment(sport, SERVER, 80, SYN, 1000))
        network.host.servers[-1].accepts()
        assert guest.hears_one().tcp.flags == SYN | ACK
    assert _is_refused(guest, 40002)
    network.advance(600)
    assert not network.router.connections.flows
    guest.hears()
    guest.connects(40003)


def _fills(connection: ScriptedConnection) -> int:
    """How many octets the guest gets rid of, as its server takes none."""
    network = connection.guest.network
    connection.server.takes = 0
    receiver = network.router.connections.flows[connection.key].receiver
    taken = 0
    while receiver.room >= 1460:
        connection.guest.sends(connection.segment(ACK | PSH, bytes(1460)))
        connection.guest.hears()
        taken += 1460
    return taken


def _connects_scaled(guest: ScriptedGuest, sport: int) -> ScriptedConnection:
    connection = ScriptedConnection(guest, sport, SERVER, 80)
    guest.sends(guest.segment(sport, SERVER, 80, SYN, 1000, options=WINDOW_SCALE))
    connection.server = guest.network.host.servers[-1]
    connection.server.accepts()
    connection.received = guest.hears_one().tcp.sequence + 1
    guest.sends(connection.segment(ACK))
    guest.hears()
    return connection


def test_windows_are_small_when_a_guest_holds_much(
    network: ScriptedNetwork,
    guest: ScriptedGuest,
    other: ScriptedGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What slow servers leave lying is bounded for each guest; each connection goes on."""
    monkeypatch.setattr(holdings, "OCTETS_PER_GUEST", 2 * CAPACITY_INITIAL)
    first, second, third = (_connects_scaled(guest, sport) for sport in (40000, 40001, 40002))
    assert _fills(first) > CAPACITY_INITIAL - 1460
    assert _fills(second) > CAPACITY_INITIAL - 1460
    assert OCTETS_AT_LEAST - 1460 < _fills(third) <= OCTETS_AT_LEAST + ROUNDING_ROOM
    assert _fills(_connects_scaled(other, 40000)) > CAPACITY_INITIAL - 1460
    third.server.takes = 1 << 30
    network.router.touch(third.server.flow)
    network.end_turn()
    assert guest.hears()[-1].tcp.window > 0, "it may go on"
    guest.sends(third.segment(ACK | PSH, b"goes on"))
    assert third.server.received.endswith(b"goes on")


def test_a_window_does_not_grow_when_a_guest_holds_much(
    network: ScriptedNetwork, guest: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast server earns a larger window, but not at the cost of all memory; it is counted."""
    monkeypatch.setattr(holdings, "OCTETS_PER_GUEST", CAPACITY_INITIAL)
    connection = _connects_scaled(guest, 40000)
    receiver = connection.server.flow.receiver
    while len(connection.server.received) < 4 * CAPACITY_INITIAL:
        guest.sends(connection.segment(ACK | PSH, bytes(1460)))
        guest.hears()
    assert receiver.capacity == CAPACITY_INITIAL
    assert network.counters["tcp.octets_full"] >= 2
    monkeypatch.setattr(holdings, "OCTETS_PER_GUEST", 1 << 30)
    while len(connection.server.received) < 6 * CAPACITY_INITIAL:
        guest.sends(connection.segment(ACK | PSH, bytes(1460)))
        guest.hears()
    assert receiver.capacity >= 2 * CAPACITY_INITIAL


def test_servers_are_not_read_when_a_guest_leaves_too_much_lying(
    network: ScriptedNetwork,
    guest: ScriptedGuest,
    other: ScriptedGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A guest that acknowledges nothing has no more of us than its bound, and a little for each."""
    monkeypatch.setattr(holdings, "OCTETS_PER_GUEST", 5 * CAPACITY_INITIAL)
    connections = [_connects_scaled(guest, 40000 + each) for each in range(4)]
    talk = b"x" * (4 * CAPACITY_INITIAL)
    said = [connection.server.says(talk) for connection in connections]
    assert said[0] >= CAPACITY_INITIAL
    assert said[3] <= OCTETS_AT_LEAST
    assert network.router.connections.everybody.octets < 6 * CAPACITY_INITIAL + 3 * OCTETS_AT_LEAST
    heard = _connects_scaled(other, 40000).server.says(talk)
    assert heard >= CAPACITY_INITIAL, "another guest's bound is its own"
    last, more = connections[3], said[3]
    for _ in range(8):  # each acknowledgment brings more, with the others still silent
        last.received += more
        guest.sends(last.segment(ACK))
        more = last.server.says(talk)
        assert 0 < more <= OCTETS_AT_LEAST, "it goes on, if more slowly"


def test_when_all_has_ended_nothing_is_held(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """Whatever way a connection ends: by both, by either's reset, by refusal, by silence."""
    ended = guest.connects(40000)
    ended.server.says(b"farewell")
    ended.reads()
    guest.sends(ended.segment(FIN | ACK))
    ended.server.ends()
    ended.reads()
    guest.connects(40001).server.fails()
    guest.hears()
    reset = guest.connects(40002)
    reset.server.says(b"unread")
    guest.sends(reset.segment(RST))
    guest.hears()
    guest.sends(guest.segment(40003, SERVER, 80, SYN, 1000))
    network.host.servers[-1].fails()
    guest.hears()
    guest.sends(guest.segment(40004, BLACK_HOLE, 80, SYN, 1000))
    guest.connects(40005)
    network.advance(3 * 3600)
    guest.hears()
    network.assert_nothing_left()


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(-3, 3), st.integers(-3, 3), st.integers(-9, 9))
    )
)
def test_everybody_is_the_sum_of_all(changes: list[tuple[int, int, int, int]]) -> None:
    """Whoever takes and gives back, and in whatever order."""
    everybody = Holdings()
    guests = [Holdings(everybody) for _ in range(3)]
    for whose, flows, half_open, octets in changes:
        guests[whose].add(flows, half_open, octets)
    assert everybody.flows == sum(each.flows for each in guests)
    assert everybody.half_open == sum(each.half_open for each in guests)
    assert everybody.octets == sum(each.octets for each in guests)


# -- calls from outside


class _Client:
    """A client of a published port, which our kernel has accepted."""

    def send(self, buffers: list[Buffer], now: float) -> int:
        return sum(map(len, buffers))

    def shutdown(self) -> None: ...

    def reset(self) -> None: ...

    def hang_up(self) -> None: ...

    def close(self) -> None: ...

    def watch(self, read: bool, write: bool, now: float) -> None: ...


def _calls(guest: ScriptedGuest, count: int) -> int:
    """How many clients at once get as far as a SYN to the guest."""
    network = guest.network
    network.router._delivery.on_neighbour(packed(guest.address), guest.mac, network.now)
    owner = Guest(guest.mac, guest.port.name, packed(guest.address))
    begun = 0
    for number in range(count):
        key = packed(guest.address), 80, packed(SERVER), 2000 + number
        begun += network.router.connections.call(key, _Client(), owner, network.now) is not None
    network.end_turn()
    return begun


def test_a_flood_of_clients_costs_the_guest_none_of_its_own(
    network: ScriptedNetwork, guest: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that it does not answer are half open, have a bound, hold nothing, and are counted
    apart from what it begins itself."""
    monkeypatch.setattr(holdings, "FLOWS_PER_GUEST", 5)
    monkeypatch.setattr(holdings, "HALF_OPEN_PER_GUEST", 4)
    guest.sends(guest.ping("10.0.2.2"))
    assert _calls(guest, 10) == 4
    assert network.counters["tcp.half_open_full"] == 6
    assert network.router.connections.everybody.octets == 0
    guest.hears()
    for sport in range(40000, 40005):
        guest.connects(sport)
    network.advance(7200 * 3)


def test_a_guest_has_its_own_share_whatever_others_hold(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """One that holds little is not throttled as all together hold much; one that holds more is."""
    network.router.connections.everybody.add(0, 0, holdings.OCTETS_MAXIMUM)
    connection = _connects_scaled(guest, 40000)
    assert _fills(connection) > CAPACITY_INITIAL - 1460
    connection.server.flow.holdings.add(0, 0, holdings.OCTETS_ALWAYS)
    assert _fills(_connects_scaled(guest, 40001)) <= OCTETS_AT_LEAST + ROUNDING_ROOM
