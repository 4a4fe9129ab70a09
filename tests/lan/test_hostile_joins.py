"""Servers that have joined and mean harm, and what a policy makes of all that comes from there."""

from ipaddress import IPv4Address

import pytest

from qemu_usernat.lan.places import AGING_TIME
from qemu_usernat.lan.port import QUEUE_LIMIT
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.wire.hello import (
    GUESTS_MAXIMUM,
    Member,
    parse_hello,
)
from qemu_usernat.wire.packets import ACK, RST, SYN
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    OTHER_MAC,
    ethernet,
    packed,
)
from tests.scripted_join import (
    FAR,
    THIRD,
    THIRD_MAC,
    End,
    frames_of,
    hello,
    joined,
    leases_any,
    network,
    pair,
    under,
)


def test_a_policy_that_comes_leaves_a_join_its_machines() -> None:
    """Of a guest's link the first MAC address is its own; behind another server there are many."""
    one = network()
    end, guest = End(one, "far"), one.guest()
    end.hears(hello().frame(OTHER_MAC))
    for mac in (OTHER_MAC, THIRD_MAC):
        end.hears(ethernet(bytes(46), mac, BROADCAST_MAC, 0x88B6))
    under(NetworkPolicy.allow_all(), one)
    assert one.router.switch.place_of(THIRD_MAC) is end.port
    assert guest.port in one.router.switch.ports


def test_those_that_have_just_joined_share_what_hellos_are_looked_at() -> None:
    """Whoever joins again and again has no more of them; who is there for long has its own."""
    one = network()
    old = End(one, "far")
    old.hears(hello().frame(OTHER_MAC))
    for _ in range(4):
        one.advance(2)
        old.hears(hello().frame(OTHER_MAC))
    for number in range(20):
        first = IPv4Address("10.0.2.220") + number
        speaker = Member(f"{number:016x}", first.packed, first.packed)
        end = End(one, f"{number}")
        for _ in range(3):
            end.hears(hello(speaker=speaker).frame(OTHER_MAC))
        end.end("it goes")
    assert one.counters["join.hello_limited"] >= 15
    before = one.counters["join.hello_limited"]
    old.hears(hello().frame(OTHER_MAC))
    assert one.counters["join.hello_limited"] == before


def hello_of_mtu(mtu: bytes) -> bytes:
    """What `hello` says, but for this."""
    return hello().frame(OTHER_MAC)[14:].replace(b'"mtu":1500', b'"mtu":' + mtu)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"{",
        b"[" * 40000,
        b"\xff" * 100,
        b'{"version": 2}',
        b'{"version": 1}',
        b'{"version": 1, "speaker": [1, 2, 3], "reaches": [], "subnet": 5, "gateways": 5}',
        b" " * 60000,
        hello_of_mtu(b"1e999"),
        hello_of_mtu(b"1500.0"),
        hello_of_mtu(b"null"),
    ],
)
def test_a_hello_that_cannot_be_read_ends_the_join(told: bytes) -> None:
    """And nothing else."""
    one = network()
    end = End(one, "join")
    end.hears(ethernet(told, OTHER_MAC, BROADCAST_MAC, 0x88B5))
    assert end.reason is not None
    assert one.counters["join.bad_hello"] + one.counters["join.other_version"] == 1


def test_a_flood_of_addresses_finds_a_bounded_table() -> None:
    """And pushes out nobody who is here."""
    one, end = joined()
    guest = one.guest()
    guest.sends(guest.asks_who_has(GATEWAY))
    for number in range(10_000):
        end.hears(ethernet(bytes(46), b"\x02\0" + number.to_bytes(4, "big"), GUEST_MAC))
    assert len(one.router.switch._port_of) < 300
    assert one.router.switch.port_of(GUEST_MAC) is guest.port


def test_a_flood_of_broadcasts_and_of_hellos_is_limited() -> None:
    """As a guest's is."""
    one, end = joined()
    guest = one.guest()
    shout = ethernet(bytes(46), OTHER_MAC, BROADCAST_MAC, 0x0806)[:14] + bytes(28)
    end.hears(*[shout] * 3000)
    assert len(guest.frames()) <= 1100
    assert one.counters["ethernet.flood_limited"] >= 1900
    end.hears(*[hello().frame(OTHER_MAC)] * 100)
    assert one.counters["join.hello_limited"] >= 80
    assert end.reason is None


def test_who_does_not_read_fills_no_more_than_a_queue() -> None:
    """And keeps nobody waiting."""
    one, end = joined()
    end.reads = False
    guest, friend = one.guest(), one.guest(OTHER_MAC, "10.0.2.16")
    big = ethernet(bytes(1500), GUEST_MAC, THIRD_MAC)
    end.hears(ethernet(bytes(46), THIRD_MAC, GUEST_MAC))
    for _ in range(2000):
        guest.sends(big)
    assert end.port.queued < QUEUE_LIMIT + 2000
    assert one.counters["link.queue_full"] > 0
    friend.frames()
    guest.sends(ethernet(bytes(46), GUEST_MAC, BROADCAST_MAC))
    assert len(friend.frames()) == 1


def test_a_guest_cannot_speak_as_a_server() -> None:
    """A hello from a guest's port goes nowhere."""
    one, end = joined()
    guest, friend = one.guest(), one.guest(OTHER_MAC, "10.0.2.16")
    frames_of(end.out)
    guest.sends(hello().frame(GUEST_MAC))
    assert friend.frames() == []
    assert [f for f in frames_of(end.out) if f[6:12] == GUEST_MAC] == []


def test_a_server_shows_no_local_guests_address_where_sources_are_guarded() -> None:
    """The guard lets it show those that are no guest's here."""
    one, end = joined()
    one.router.switch.guard_sources(True)
    guest = one.guest()
    guest.sends(guest.asks_who_has(GATEWAY))
    end.hears(ethernet(bytes(46), GUEST_MAC, BROADCAST_MAC, 0x0806))
    assert one.counters["ethernet.spoofed_source"] == 1
    for mac in (OTHER_MAC, THIRD_MAC):
        end.hears(ethernet(bytes(46), mac, BROADCAST_MAC, 0x0806))
    assert {OTHER_MAC, THIRD_MAC} <= set(end.port.addresses)


@pytest.mark.parametrize("allowed", ["10.0.2.0/24", "198.51.100.0/24"])
@pytest.mark.parametrize("judge", [0, 1])
def test_a_policy_judges_what_crosses(allowed: str, judge: int) -> None:
    """Guests of another server are neighbours like those here, whichever side judges."""
    servers, one, two = pair()
    under(NetworkPolicy.deny_all().allow_ip(allowed), (one, two)[judge])
    here, there = one.guest(GUEST_MAC, GUEST), two.guest(OTHER_MAC, FAR)
    for guest, target in ((here, FAR), (there, GUEST)):
        guest.sends(guest.asks_who_has(target))
        servers.settle()
    there.frames()
    here.sends(here.ping(FAR).replace(GATEWAY_MAC, OTHER_MAC))
    servers.settle()
    assert len(there.frames()) == (allowed == "10.0.2.0/24")


@pytest.mark.parametrize("guarded", [1, 2])
def test_what_the_other_servers_policy_denies_is_reset(guarded: int) -> None:
    """In the name of the guest that was called: nobody waits for an answer that never comes."""
    servers, one, two = pair()
    under(NetworkPolicy.deny_all(), two)
    if guarded == 2:
        under(NetworkPolicy.allow_all(), one)
    here, there = one.guest(GUEST_MAC, GUEST), two.guest(OTHER_MAC, FAR)
    for guest, target in ((here, FAR), (there, GUEST)):
        guest.sends(guest.asks_who_has(target))
        servers.settle()
    here.frames()
    there.frames()
    syn = here.segment(1234, FAR, 80, SYN, 1000)
    here.sends(OTHER_MAC + syn[6:])
    servers.settle()
    assert there.frames() == []
    heard = here.hears_one()
    assert (heard.source_mac, heard.source, heard.tcp.flags) == (OTHER_MAC, FAR, RST | ACK)
    assert heard.tcp.acknowledgment == 1001


def test_under_a_policy_a_joined_server_takes_no_address_that_is_leased_here() -> None:
    """Whatever its machines say who they are, guests here find one; and what these have taken
    elsewhere is free when the join ends, but for the one that has come to us, which it may when it
    was silent there for long: before that, who shows its MAC address here is another one."""
    servers, one, _ = pair()
    under(NetworkPolicy.allow_all(), one)
    end = servers.joins[0][0]
    speaker = one.guest(THIRD_MAC, GUEST)

    def speaks(number: int, address: str) -> None:
        frame = speaker.asks_who_has("10.0.2.9").replace(packed(GUEST), packed(address), 1)
        end.hears(frame.replace(THIRD_MAC, bytes([2, 0, 0, 0, 0, number])))

    for number in range(50):
        speaks(number, f"10.0.2.{15 + number}")
    leases_any(one, GUEST_MAC)
    assert [str(IPv4Address(each.address)) for each in one.router.dhcp.leases(one.now)] == [GUEST]
    guard = one.router.switch.guard
    mobile, other = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
    speaks(1, FAR)
    speaks(2, THIRD)
    assert guard.is_owner(packed(FAR), mobile)
    moved = one.guest(mobile, FAR)
    moved.sends(moved.asks_who_has(GATEWAY))
    assert moved.frames() == []
    assert one.counters["ethernet.spoofed_source"] == 1
    one.now += AGING_TIME  # in which the join has lived on
    moved.sends(moved.asks_who_has(GATEWAY))
    assert moved.hears_one().arp.sender_address == packed(GATEWAY)
    one.router.switch._places.forget(other)  # it was silent for long, and others are there now
    end.end("gone")
    assert guard.is_owner(packed(FAR), mobile)
    assert not guard.is_owner(packed(THIRD), other)


def test_a_hello_comes_back_as_it_was_written() -> None:
    """Also one that is full."""
    many = tuple((packed("10.0.2.201"), "n" * 63) for _ in range(GUESTS_MAXIMUM))
    full = hello(guests=many, reaches=tuple(hello().speaker for _ in range(64)))
    frame = full.frame(OTHER_MAC)
    assert parse_hello(frame) == full
    assert len(frame) < 69632


def test_what_a_server_had_said_before_it_was_refused_is_not_heard() -> None:
    """Frames of one read: behind the hello that does not fit there may be more."""
    one = network()
    end, guest = End(one, "far"), one.guest()
    end.hears(
        hello(mtu=576).frame(OTHER_MAC), ethernet(bytes(46), OTHER_MAC, BROADCAST_MAC, 0x88B6)
    )
    assert end.reason is not None
    assert guest.frames() == []
    assert one.counters["join.not_accepted"] == 0


def test_a_machine_that_comes_from_another_server_brings_no_address() -> None:
    """What was its own there it has to show here, where another one may have it by now."""
    one = network()
    under(NetworkPolicy.allow_all(), one)
    end, guard = End(one, "far"), one.router.switch.guard
    end.hears(hello().frame(OTHER_MAC))
    there = one.guest(THIRD_MAC, FAR)
    end.hears(there.asks_who_has("10.0.2.9").replace(THIRD_MAC, OTHER_MAC))
    assert guard.is_owner(packed(FAR), OTHER_MAC)
    one.now += AGING_TIME
    moved = one.guest(OTHER_MAC, "10.0.2.120", "moved")
    moved.sends(moved.asks_who_has(GATEWAY))
    assert guard.is_owner(packed("10.0.2.120"), OTHER_MAC)
    assert not guard.is_owner(packed(FAR), OTHER_MAC)


def test_what_machines_of_another_server_say_costs_no_guest_its_names() -> None:
    """Nothing is kept of what they were told, for they were told nothing."""
    one = network()
    end, guest = End(one, "far"), one.guest()
    end.hears(hello().frame(OTHER_MAC))
    guest.sends(guest.asks_who_has(GATEWAY))
    under(NetworkPolicy.deny_all(), one)
    guest.sends(guest.asks_who_has(GATEWAY))
    before = len(one.admission._pins)
    stranger = one.guest(THIRD_MAC, FAR)
    for number in range(20):
        mac = bytes([2, 0, 0, 0, 0, number])
        frame = stranger.datagram(
            4000, GUEST, 7, b"?", source=str(IPv4Address(FAR) + number), destination_mac=GUEST_MAC
        )
        end.hears(frame.replace(THIRD_MAC, mac))
    assert one.counters["policy.denied"] == 20
    assert len(one.admission._pins) == before
