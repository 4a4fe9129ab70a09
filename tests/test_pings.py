"""Pings to the world: which flow takes one, what comes back, and what the guest hears instead."""

import pytest

from qemu_usernat.admission import Decision, Guest
from qemu_usernat.nat.echo import ASKED_MAXIMUM, IDLE_TIME, PEERS_MAXIMUM
from qemu_usernat.pings import FLOWS_MAXIMUM, FLOWS_OF_GUEST_MAXIMUM
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import DROP, PolicySettings
from qemu_usernat.policy.why import Why
from qemu_usernat.wire.icmp import (
    ECHO_REPLY,
    ECHO_REQUEST,
    HOST_UNREACHABLE,
    IcmpError,
    too_large,
    unreachable,
)
from qemu_usernat.wire.packets import ICMP
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    SERVER,
    ScriptedGuest,
    ScriptedNetwork,
    icmp,
    packed,
)

ROUTER = "192.0.2.1"
STRANGER = "203.0.113.9"


@pytest.fixture
def network() -> ScriptedNetwork:
    return ScriptedNetwork(mtu=1500)


@pytest.fixture
def guest(network: ScriptedNetwork) -> ScriptedGuest:
    return network.guest()


def asks(
    guest: ScriptedGuest,
    destination: str = SERVER,
    identifier: int = 0x1234,
    sequence: int = 1,
    payload: bytes = b"anybody?",
    source: str = GUEST,
    **fields: int,
) -> bytes:
    """The frame of an echo request."""
    rest = identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big")
    message = icmp(ECHO_REQUEST, 0, rest, payload)
    return guest.packet(message, ICMP, destination, source=source, **fields)


def test_a_ping_goes_out_and_its_answer_comes_back(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Sequence number and payload are carried both ways; the identifier is the guest's again."""
    guest.sends(asks(guest, sequence=7))
    (echo,) = network.host.echoes
    assert (echo.sent, guest.hears()) == ([(b"anybody?", SERVER, 7)], [])

    echo.hears(b"anybody?", SERVER, 7, ttl=55)
    answer = guest.hears_one()
    assert (answer.source, answer.destination) == (SERVER, GUEST)
    assert answer.packet is not None
    assert answer.packet.ttl == 54, "one hop is ours"
    assert (answer.icmp.type, answer.icmp.rest) == (ECHO_REPLY, b"\x12\x34\0\x07")
    assert answer.icmp.payload == b"anybody?"


def test_one_program_that_pings_is_one_flow(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """Whatever its sequence numbers and destinations; another identifier, or guest, is another."""
    guest.sends(asks(guest), asks(guest, sequence=2), asks(guest, STRANGER))
    guest.sends(asks(guest, identifier=9), asks(guest, source="10.0.2.77"))
    assert [len(echo.sent) for echo in network.host.echoes] == [3, 1, 1]


def test_a_ping_of_64_kilobytes_goes_and_comes_whole(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """What came in fragments is one ping, and so is its answer, at the largest size there is."""
    payload = (bytes(range(251)) * 261)[:65507]
    guest.sends(*guest.fragments(icmp(8, 0, b"\x12\x34\0\1", payload), ICMP, SERVER))
    (echo,) = network.host.echoes
    assert echo.sent == [(payload, SERVER, 1)]
    echo.hears(payload, SERVER, 1)
    assert guest.hears_one().icmp.payload == payload


def test_hops_and_the_df_bit_are_carried(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """One hop is ours; whether a request may be cut is the guest's to say."""
    guest.sends(asks(guest), asks(guest, ttl=2, fragment=0x4000), asks(guest, ttl=255))
    assert network.host.echoes[0].ways == [(63, False), (1, True), (254, False)]


def test_the_gateway_is_the_first_hop(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """A request whose hops end here is answered by us, and goes nowhere."""
    frame = asks(guest, ttl=1)
    guest.sends(frame)
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (GATEWAY, 11, 0)
    assert error.icmp.payload == frame[14:]
    assert network.host.echoes == []


def test_an_answer_to_nothing_is_not_passed_on(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Neither from another host, nor of a sequence number that was never sent."""
    guest.sends(asks(guest))
    (echo,) = network.host.echoes
    echo.hears(b"me", STRANGER, 1)
    echo.hears(b"me", SERVER, 2)
    assert guest.hears() == []
    assert network.counters["icmp.unsolicited"] == 2


def test_an_answer_that_comes_twice_is_heard_twice(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """ping(8) says "DUP!": it is a tool to find such things."""
    guest.sends(asks(guest))
    for _ in range(2):
        network.host.echoes[0].hears(b"me", SERVER, 1)
    assert len(guest.hears()) == 2


def test_routers_on_the_way_are_heard_by_their_own_names(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """traceroute -I: time exceeded comes from the router, and quotes what the guest has sent."""
    frame = asks(guest, ttl=3, payload=bytes(range(60)), identification=99)
    guest.sends(frame)
    network.host.echoes[0].fails(IcmpError(11, 0, offender=packed(ROUTER)), SERVER, 1)
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (ROUTER, 11, 0)
    assert error.icmp.payload == frame[14:]


def test_a_narrow_path_is_told_with_its_mtu(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """Fragmentation needed: the guest's kernel learns how much fits (RFC 1191)."""
    guest.sends(asks(guest, payload=bytes(1400), fragment=0x4000))
    network.host.echoes[0].fails(too_large(1280, packed(ROUTER)), SERVER, 1, bytes(300))
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (ROUTER, 3, 4)
    assert error.icmp.rest == b"\0\0\x05\0"
    assert len(error.icmp.payload) == 20 + 8 + 300


def test_where_the_host_has_no_way_the_gateway_says_so(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Nobody else could."""
    guest.sends(asks(guest))
    network.host.echoes[0].fails(unreachable(HOST_UNREACHABLE), SERVER, 1)
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (GATEWAY, 3, 1)


def test_an_error_about_what_was_never_asked_is_not_believed(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Whoever forges one must know whom the guest pings, and with which number."""
    guest.sends(asks(guest))
    (echo,) = network.host.echoes
    echo.fails(IcmpError(3, 1, offender=packed(ROUTER)), STRANGER, 1)
    echo.fails(IcmpError(3, 1, offender=packed(ROUTER)), SERVER, 2)
    assert guest.hears() == []
    assert network.counters["icmp.unsolicited"] == 2


def test_where_the_host_may_not_ping_the_guest_is_told(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Administratively prohibited, at once: never silence."""
    network.host.carries_pings = False
    frame = asks(guest)
    guest.sends(frame)
    error = guest.hears_one()
    assert (error.source, error.icmp.type, error.icmp.code) == (GATEWAY, 3, 13)
    assert error.icmp.payload == frame[14:]
    assert network.counters["icmp.no_socket"] == 1
    network.assert_nothing_left()


def test_icmp_that_is_no_ping_does_not_reach_the_world(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Only echo requests are carried: a timestamp request is refused, an answer to nobody, too."""
    guest.sends(guest.packet(icmp(13, 0, b"\x12\x34\0\1", bytes(12)), ICMP, SERVER))
    guest.sends(guest.packet(icmp(0, 0, b"\x12\x34\0\1", bytes(12)), ICMP, SERVER))
    guest.sends(guest.packet(icmp(8, 1, b"\x12\x34\0\1", bytes(12)), ICMP, SERVER))
    assert [heard.icmp.code for heard in guest.hears()] == [13, 13, 13]
    told: list[Decision] = []
    network.router.admission.on_decision = lambda decision, now: told.append(decision)
    settings = PolicySettings(policy=NetworkPolicy.deny_all(), on_deny=DROP)
    network.router.admission.replace(settings)
    guest.sends(guest.packet(icmp(13, 0, b"\x12\x34\0\1", bytes(12)), ICMP, SERVER))
    assert guest.hears() == [], "nothing is said where the policy wants silence"
    assert [decision.verdict.why for decision in told] == [Why.UNCARRIED]
    network.counters["icmp.not_carried"] -= 1
    assert network.counters["icmp.not_carried"] == 3
    assert network.host.echoes == []


# -- how long, and how many


def test_a_flow_ends_when_nobody_pings(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """A minute after the last request, whatever came back meanwhile (RFC 5508, REQ-2)."""
    guest.sends(asks(guest))
    (echo,) = network.host.echoes
    network.advance(IDLE_TIME - 1)
    guest.sends(asks(guest, sequence=2))
    network.advance(IDLE_TIME - 1)
    echo.hears(b"late", SERVER, 2)
    assert (len(guest.hears()), echo.closed) == (1, False)
    network.advance(1)
    assert echo.closed
    network.assert_nothing_left()


def test_the_flow_idle_for_longest_gives_way(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A guest that starts ping after ping keeps the newest, and the one that it still uses."""
    for identifier in range(FLOWS_OF_GUEST_MAXIMUM):
        guest.sends(asks(guest, identifier=identifier))
    guest.sends(asks(guest, identifier=0, sequence=2))
    guest.sends(asks(guest, identifier=0x7777))
    closed = [echo.flow.key[1] for echo in network.host.echoes if echo.closed]
    assert closed == [1]
    assert network.counters["icmp.flow_gave_way"] == 1


def test_one_guest_s_flood_takes_nothing_from_another(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Each link has its own share of the flows, however many addresses speak there."""
    other = network.guest(OTHER_MAC, OTHER)
    other.sends(asks(other, source=OTHER))
    for number in range(8 * FLOWS_OF_GUEST_MAXIMUM):
        source = f"10.0.2.{20 + number // FLOWS_OF_GUEST_MAXIMUM}"
        guest.sends(asks(guest, identifier=number, source=source))
    assert not network.host.echoes[0].closed
    assert sum(not echo.closed for echo in network.host.echoes) == FLOWS_OF_GUEST_MAXIMUM + 1


def test_all_together_are_bounded(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """However many addresses there are: a descriptor for each flow."""
    others = [
        network.guest(OTHER_MAC[:5] + bytes([100 + number]), f"10.0.2.{20 + number}")
        for number in range(FLOWS_MAXIMUM // FLOWS_OF_GUEST_MAXIMUM)
    ]
    guest.sends(asks(guest, identifier=0x7777))
    for other in others:
        for number in range(FLOWS_OF_GUEST_MAXIMUM):
            other.sends(asks(other, identifier=number, source=other.address))
    closed = [echo for echo in network.host.echoes if echo.closed]
    assert [echo.flow.key[1] for echo in closed] == [0]
    assert len(network.host.echoes) == FLOWS_MAXIMUM + 1


def test_what_a_flow_remembers_is_bounded(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """A program that pings the whole world hears of the newest part of it."""
    count = max(ASKED_MAXIMUM, PEERS_MAXIMUM) + 1
    for number in range(count):
        guest.sends(asks(guest, f"198.51.{number >> 8}.{number & 255}"))
    (echo,) = network.host.echoes
    for number in (0, 1, count - 1):
        echo.hears(b"me", f"198.51.{number >> 8}.{number & 255}", 1)
    assert [heard.source for heard in guest.hears()] == ["198.51.0.1", "198.51.1.0"]


def test_what_is_asked_again_is_not_the_oldest(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """A sequence number comes round; its answer is waited for from then on."""
    for sequence in (*range(10), 0, *range(10, ASKED_MAXIMUM + 1)):
        guest.sends(asks(guest, sequence=sequence))
    (echo,) = network.host.echoes
    for sequence in (0, 1):
        echo.hears(b"me", SERVER, sequence)
    assert [heard.icmp.rest[3] for heard in guest.hears()] == [0]


def test_without_descriptors_the_guest_is_told(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """And whoever has one goes on."""
    guest.sends(asks(guest))
    network.host.descriptors = 0
    guest.sends(asks(guest, identifier=9))
    assert guest.hears_one().icmp.code == 13
    guest.sends(asks(guest, sequence=2))
    assert len(network.host.echoes[0].sent) == 2


def test_errors_are_limited(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """Hosts that are not there cannot be made to flood the guest (RFC 1812, 4.3.2.8)."""
    guest.sends(asks(guest))
    (echo,) = network.host.echoes
    for _ in range(1000):
        echo.fails(unreachable(HOST_UNREACHABLE), SERVER, 1)
    assert len(guest.hears()) == 50
    assert network.counters["icmp.error_limited"] == 950


def test_flows_that_have_ended_do_not_count(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """A guest that pings all day long, a program at a time, is never short of flows."""
    for round_ in range(2 + FLOWS_MAXIMUM // 100):
        for number in range(100):
            guest.sends(asks(guest, identifier=round_ * 100 + number))
        network.advance(IDLE_TIME)
    assert network.counters["icmp.flow_gave_way"] == 0
    network.assert_nothing_left()


def test_one_guest_s_errors_take_nothing_from_another(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Two QEMUs at one listener have a link of one name, and are two guests all the same."""
    other = network.guest(OTHER_MAC, OTHER)
    guest.sends(asks(guest))
    other.sends(asks(other, source=OTHER))
    loud, quiet = network.host.echoes
    for _ in range(60):
        loud.fails(unreachable(HOST_UNREACHABLE), SERVER, 1)
    quiet.fails(unreachable(HOST_UNREACHABLE), SERVER, 1)
    assert (len(guest.hears()), len(other.hears())) == (50, 1)


def test_a_link_that_comes_back_begins_anew(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """How many errors it had provoked goes with it: names of links do not pile up."""
    guest.sends(asks(guest))
    (echo,) = network.host.echoes
    for _ in range(60):
        echo.fails(unreachable(HOST_UNREACHABLE), SERVER, 1)
    assert len(guest.hears()) == 50
    network.router.on_link_down(guest.port, network.now)
    echo.fails(unreachable(HOST_UNREACHABLE), SERVER, 1)
    assert len(guest.hears()) == 1


# -- who asks


def test_an_answer_finds_the_machine_that_asked_last(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """An address that has moved to another machine takes its pings along."""
    guest.sends(asks(guest))
    other = network.guest(OTHER_MAC)
    other.sends(asks(other, sequence=2))
    network.host.echoes[0].hears(b"me", SERVER, 2)
    assert (len(guest.hears()), len(other.hears())) == (0, 1)


def test_who_takes_over_an_address_does_not_inherit_its_pings(
    network: ScriptedNetwork, guest: ScriptedGuest
) -> None:
    """Where addresses are guarded, another machine begins anew; the same one goes on."""
    guest.sends(asks(guest))
    (echo,) = network.host.echoes
    network.router.pings.end_others(Guest(GUEST_MAC, "guest", packed(GUEST)))
    assert not echo.closed
    network.router.pings.end_others(Guest(OTHER_MAC, "guest", packed(GUEST)))
    assert echo.closed
    network.assert_nothing_left()


def test_a_new_policy_ends_what_it_forbids(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """Its answers are not heard any more, and what is asked again is refused; the rest goes on."""
    guest.sends(asks(guest), asks(guest, STRANGER))
    (echo,) = network.host.echoes
    policy = NetworkPolicy.deny_all().allow_ping(STRANGER)
    network.router.admission.replace(PolicySettings(policy=policy))
    network.router.on_policy(guarded=False, now=network.now)
    echo.hears(b"me", SERVER, 1)
    assert guest.hears() == []
    echo.hears(b"me", STRANGER, 1)
    assert guest.hears_one().source == STRANGER
    guest.sends(asks(guest, sequence=2))
    assert guest.hears_one().icmp.code == 13
    assert (len(echo.sent), network.counters["policy.denied"]) == (2, 1)
    echo.fails(unreachable(HOST_UNREACHABLE), SERVER, 1)
    assert guest.hears() == []


def test_a_policy_may_be_silent(network: ScriptedNetwork, guest: ScriptedGuest) -> None:
    """``on_deny = "drop"``, for tests of timeouts: no word, and nothing goes out."""
    settings = PolicySettings(policy=NetworkPolicy.deny_all(), on_deny=DROP)
    network.router.admission.replace(settings)
    guest.sends(asks(guest))
    assert (guest.hears(), network.host.echoes) == ([], [])
    assert network.counters["policy.dropped"] == 1
