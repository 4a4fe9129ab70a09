"""Two servers, one segment: what crosses, what does not, and joins that may not be."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from qemu_usernat.config import parse_endpoint, read_config
from qemu_usernat.config.redirects import read_redirects
from qemu_usernat.wire.hello import (
    HELLO,
    SERVERS_MAXIMUM,
    Member,
    parse_hello,
)
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    OTHER_MAC,
    ScriptedNetwork,
    ethernet,
    packed,
)
from tests.scripted_join import (
    FAR,
    THIRD,
    THIRD_MAC,
    End,
    Servers,
    frames_of,
    hello,
    joined,
    leases_any,
    network,
    pair,
)


def refusals(*ends: End) -> list[str]:
    return [end.reason for end in ends if end.reason and end.reason.startswith("refused")]


# -- what crosses


def test_guests_of_two_servers_find_each_other() -> None:
    """ARP goes everywhere, its answer to who has asked, and then they talk."""
    servers, one, two = pair()
    here, there = one.guest(GUEST_MAC, GUEST), two.guest(OTHER_MAC, FAR)
    neighbour = two.guest(THIRD_MAC, THIRD)
    here.sends(here.asks_who_has(FAR))
    servers.settle()
    assert there.hears_one().arp.target_address == packed(FAR)
    assert neighbour.hears_one().arp.target_address == packed(FAR)
    there.sends(ethernet(b"\x45" + bytes(60), OTHER_MAC, GUEST_MAC, 0x86DD))
    servers.settle()
    assert [frame[6:12] for frame in here.frames()] == [OTHER_MAC]
    here.sends(here.ping(FAR).replace(GATEWAY_MAC, OTHER_MAC))
    servers.settle()
    assert len(there.frames()) == 1
    assert neighbour.frames() == []


def test_nothing_crosses_before_the_hello() -> None:
    """Whoever has not said who it is hears nothing, and is not heard."""
    one = network()
    guest = one.guest()
    end = End(one, "join")
    guest.sends(guest.asks_who_has(FAR))
    end.hears(ethernet(bytes(46), OTHER_MAC, BROADCAST_MAC, 0x0806))
    assert guest.frames() == []
    assert one.counters["join.not_accepted"] == 1
    assert [frame[12:14] for frame in frames_of(end.out)] == []
    one.advance(0)
    assert [frame[12:14] for frame in frames_of(end.out)] == [b"\x88\xb5"]


def test_who_has_not_said_who_it_is_learns_nothing_and_takes_nothing() -> None:
    """No guest's name, and no share of what is kept for the ports of guests."""
    one = network()
    leases(one, GUEST_MAC, b"web")
    ports = one.router.switch.ports
    (guest,) = ports
    limits = guest.limit, guest.stalled_at
    ends = [End(one, f"mute {number}") for number in range(500)]
    one.advance(0)
    assert ports == [guest]
    assert (guest.limit, guest.stalled_at) == limits
    (said,) = frames_of(ends[0].out)
    assert parse_hello(said).guests == ()
    ends[0].hears(hello().frame(OTHER_MAC))
    one.advance(1)
    assert ends[0].port in ports
    assert parse_hello(frames_of(ends[0].out)[-1]).guests == ((packed(GUEST), "web"),)
    one.advance(7)
    assert {end.reason for end in ends} == {"the other server says nothing"}
    assert ports == [guest]


def test_a_gateways_affairs_do_not_cross() -> None:
    """ARP for the gateway, DHCP, and frames for its MAC address: each guest leaves by its own host,
    though both gateways have one address."""
    servers, one, two = pair()
    guest = one.guest()
    guest.sends(
        guest.asks_who_has(GATEWAY),
        guest.ping(GATEWAY),
        ethernet(guest.datagram(68, "255.255.255.255", 67, b"x")[14:], GUEST_MAC, BROADCAST_MAC),
    )
    one.advance(0)
    crossed = frames_of(servers.joins[0][0].out)
    assert [frame for frame in crossed if frame[12:14] != b"\x88\xb5"] == []
    assert len(guest.frames()) == 2  # of its own gateway
    hostile = servers.joins[0][1]
    before = two.counters["join.gateway_affair"]
    far = two.guest(THIRD_MAC, THIRD)
    frames = [
        guest.asks_who_has(GATEWAY),
        guest.ping(GATEWAY),
        ethernet(bytes(46), GATEWAY_MAC, THIRD_MAC),
        ethernet(guest.datagram(67, "255.255.255.255", 68, b"x")[14:], GUEST_MAC, BROADCAST_MAC),
        ethernet(guest.datagram(68, "255.255.255.255", 67, b"x")[14:], GUEST_MAC, BROADCAST_MAC),
        ethernet(bytes(14) + packed(GATEWAY) + bytes(10), GUEST_MAC, BROADCAST_MAC, 0x0806),
    ]
    hostile.hears(*frames)
    assert two.counters["join.gateway_affair"] - before == len(frames)
    assert far.frames() == []


def test_a_guest_that_moves_is_found_where_it_is() -> None:
    """From one host to the other: what is for it follows its first word."""
    servers, one, two = pair()
    at_home = one.guest(GUEST_MAC, GUEST)
    friend = one.guest(OTHER_MAC, "10.0.2.16")
    at_home.sends(at_home.asks_who_has(FAR))
    servers.settle()
    moved = two.guest(GUEST_MAC, GUEST)
    moved.sends(moved.asks_who_has(FAR))
    servers.settle()
    at_home.frames()
    friend.sends(friend.ping(GUEST).replace(GATEWAY_MAC, GUEST_MAC))
    servers.settle()
    assert len(moved.frames()) == 1
    assert at_home.frames() == []


def test_who_was_behind_a_join_is_forgotten_with_it() -> None:
    """Its addresses lead nowhere, and its names to nobody."""
    servers, one, two = pair()
    far = two.guest(OTHER_MAC, FAR)
    far.sends(far.asks_who_has(GUEST))
    servers.settle()
    assert one.router.switch._port_of.get(OTHER_MAC) is servers.joins[0][0].port
    servers.joins[0][0].end("gone")
    assert OTHER_MAC not in one.router.switch._port_of
    assert list(one.router.joins.guests()) == []


def test_three_in_a_row_are_one_segment() -> None:
    """What comes by one join goes on by the others."""
    one, two, three = network(0), network(1), network(2)
    servers = Servers(one, two, three)
    servers.join(one, two)
    servers.join(two, three)
    servers.settle()
    here, there = one.guest(GUEST_MAC, GUEST), three.guest(OTHER_MAC, THIRD)
    here.sends(here.asks_who_has(THIRD))
    servers.settle()
    assert there.hears_one().arp.target_address == packed(THIRD)


# -- joins that may not be


def test_no_server_joins_itself() -> None:
    """Its own name in the hello says so."""
    one = network()
    servers = Servers(one)
    ends = servers.join(one, one)
    servers.settle()
    assert refusals(*ends) == ["refused: it leads back to this server"]


def test_two_servers_join_once() -> None:
    """The second stream between them would send every broadcast round for ever."""
    servers, one, two = pair()
    second = servers.join(one, two, "second")
    servers.settle()
    assert len(refusals(*second)) == 1
    assert [end.reason for end in servers.joins[0]] == [None, None]


def test_three_servers_are_no_triangle() -> None:
    """The join that would close the loop is refused, whichever it is; the others stay."""
    one, two, three = network(0), network(1), network(2)
    servers = Servers(one, two, three)
    servers.join(one, two, "one-two")
    servers.join(two, three, "two-three")
    servers.settle()
    closing = servers.join(three, one, "three-one")
    servers.settle()
    assert len(refusals(*closing)) == 1
    here = one.guest()
    here.sends(here.asks_who_has(THIRD))
    servers.settle()  # and nothing goes round
    assert one.counters["ethernet.flood_limited"] == 0
    assert [end.reason for ends in servers.joins[:2] for end in ends] == [None] * 4


def test_a_triangle_that_arises_at_once_does_not_stay() -> None:
    """When all three connect in one moment at least one is refused, and no loop is left."""
    one, two, three = network(0), network(1), network(2)
    servers = Servers(one, two, three)
    for pair_of in ((one, two), (two, three), (three, one)):
        servers.join(*pair_of)
    servers.settle()
    alive = [ends for ends in servers.joins if ends[0].reason is None]
    assert len(alive) < 3
    here = one.guest()
    here.sends(here.asks_who_has(THIRD))
    servers.settle()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"first_lease": IPv4Address("10.0.2.30")},
            "two servers lease 10.0.2.30 to 10.0.2.64; allowed: other addresses for each, in the "
            "table [network] of the file of its --config, like "
            'first_lease = "10.0.2.15", last_lease = "10.0.2.64" in one and '
            'first_lease = "10.0.2.65", last_lease = "10.0.2.114" in the other',
        ),
        ({"mtu": 9000}, "its mtu is "),
        (
            {
                "subnet": IPv4Network("10.0.3.0/24"),
                "first_lease": IPv4Address("10.0.3.15"),
                "last_lease": IPv4Address("10.0.3.20"),
            },
            "its subnet is 10.0.",
        ),
        ({"gateway": IPv4Address("10.0.2.20")}, "10.0.2.20 is in use there, and leased here"),
    ],
)
def test_servers_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    """The log says what to change."""
    one, two = network(0), network(1, **settings)
    servers = Servers(one, two)
    ends = servers.join(one, two)
    servers.settle()
    said = refusals(*ends)
    assert said
    assert words in said[0]


def test_who_does_not_fit_to_others_disturbs_none_of_them() -> None:
    """A third server that leases what the second does is refused by the first, and the second
    does not hear of it."""
    servers, one, two = pair()
    third = End(one, "third")
    speaker = Member("f" * 16, packed("10.0.2.114"), packed("10.0.2.120"))
    third.hears(hello(speaker=speaker).frame(OTHER_MAC))
    assert refusals(third)[0].startswith(
        "refused: two servers lease 10.0.2.114 to 10.0.2.114; allowed: other addresses for each, "
    )
    servers.settle()
    assert [end.reason for end in servers.joins[0]] == [None, None]
    assert two.counters["join.refused"] == 0


def test_two_that_say_nothing_of_leases_never_give_one_address_twice(tmp_path: Path) -> None:
    """With no word but where to join: while they are apart, as one LAN, and when the join comes
    again, until neither has any address left."""
    networks = []
    file = tmp_path / "net.toml"
    for key in ("join_listen", "join"):
        file.write_text(f'{key} = "unix:/join"\n[network]\nsubnet = "10.0.2.0/28"\n')
        settings = read_config(file, {}, listen=parse_endpoint("unix:/nowhere")).network
        leased = {"first_lease": settings.first_lease, "last_lease": settings.last_lease}
        networks.append(network(0, subnet=settings.subnet, **leased))
    here, there = networks
    servers = Servers(here, there)
    for number in range(16):
        if number % 4 == 1:
            servers.join(here, there)
        elif number % 4 == 3:
            servers.joins[-1][0].end("cut")
        servers.settle()
        for each, mac in zip(networks, (GUEST_MAC, OTHER_MAC), strict=True):
            leases_any(each, mac[:5] + bytes([number]))
        servers.settle()
        assert refusals(*(end for ends in servers.joins for end in ends)) == []
    one, two = ({each.address for each in x.router.dhcp.leases(x.now)} for x in networks)
    assert len(one) == 5  # the gateway and its name server are two of the lower half
    assert len(two) == 7
    assert not one & two


def test_a_segment_has_a_bound_of_servers() -> None:
    """The join that would bring in one too many is refused; one less may be."""
    for count, is_let_in in ((SERVERS_MAXIMUM - 1, True), (SERVERS_MAXIMUM, False)):
        end = End(network(), "join")
        leased = [packed(f"10.0.2.{number}") for number in range(120, 120 + count)]
        speaker, *reaches = (
            Member(f"{1000 + number:016x}", each, each) for number, each in enumerate(leased)
        )
        end.hears(hello(speaker=speaker, reaches=tuple(reaches)).frame(OTHER_MAC))
        assert end.port.accepted is is_let_in
        expected = [] if is_let_in else ["refused: it would make more than 64 servers"]
        assert refusals(end) == expected


def test_what_is_led_elsewhere_by_its_address_does_not_cross() -> None:
    """Nobody of another server answers for an address of ours that stands in for another."""
    stand_in = "10.0.2.77"
    redirects = read_redirects([{"from": stand_in, "to": "127.0.0.1"}])
    one = network(redirects=redirects)
    end = End(one, "join")
    end.hears(hello().frame(OTHER_MAC))
    guest = one.guest()
    guest.sends(guest.asks_who_has(stand_in), guest.asks_who_has(FAR))
    assert len([each for each in frames_of(end.out) if each[12:14] != HELLO]) == 1
    assert guest.hears_one().arp.sender_address == packed(stand_in)
    far = guest.asks_who_has(GUEST).replace(packed(GUEST), packed(stand_in), 1)
    end.hears(far.replace(GUEST_MAC, OTHER_MAC))
    assert guest.frames() == []
    assert one.counters["join.gateway_affair"] == 1


def test_silence_ends_a_join() -> None:
    """Three hellos that did not come; one that speaks stays."""
    servers, one, _ = pair()
    servers.advance(20)
    assert [end.reason for end in servers.joins[0]] == [None, None]
    one.advance(7)
    assert servers.joins[0][0].reason == "the other server says nothing"
    mute = End(one, "mute")
    one.advance(7)
    assert mute.reason == "the other server says nothing"


def test_a_join_lasts_for_as_long_as_anything_is_said() -> None:
    """Where there is more to say than the stream takes, hellos are late; then it is silence that
    counts, of one that has said who it is."""
    one = network()
    end, nobody = End(one, "far"), End(one, "nobody")
    end.hears(hello().frame(OTHER_MAC))
    for _ in range(10):
        end.hears(ethernet(bytes(46), OTHER_MAC, BROADCAST_MAC, 0x88B6))
        nobody.hears(ethernet(bytes(46), THIRD_MAC, BROADCAST_MAC, 0x88B6))
        one.advance(2)
    assert (end.reason, nobody.reason) == (None, "the other server says nothing")
    one.advance(7)
    assert end.reason == "the other server says nothing"


def test_there_is_room_for_a_hello_in_a_full_queue() -> None:
    """But not without a bound: who reads nothing is told nothing more in the end."""
    one = network()
    end, guest = End(one, "far"), one.guest()
    end.hears(hello().frame(OTHER_MAC))
    end.reads = False
    end.port.queued = end.port.limit
    before = len(end.port.outbox)
    guest.sends(ethernet(bytes(46), GUEST_MAC, BROADCAST_MAC, 0x88B6))
    assert len(end.port.outbox) == before
    one.advance(3)
    assert {bytes(piece[16:18]) for piece in end.port.outbox[before:]} == {HELLO}
    end.port.queued, before = 2 * end.port.limit, len(end.port.outbox)
    one.advance(2)
    assert len(end.port.outbox) == before


# -- names and addresses


def leases(network: ScriptedNetwork, mac: bytes, name: bytes, kind: int = 3) -> None:
    """A machine asks for the first address of `network` by the name given, or, of kind 7, gives it
    back."""
    first = network.router.network.first_lease.packed
    end = b"\x0c" + bytes([len(name)]) + name if kind == 3 else b"\x36\x04" + packed(GATEWAY)
    message = bytes([1, 1, 6, 0]) + mac[2:] + bytes(4) + (bytes(4) if kind == 3 else first)
    message += bytes(12) + mac.ljust(208, b"\0") + b"\x63\x82\x53\x63\x35\x01" + bytes([kind])
    message += (b"\x32\x04" + first if kind == 3 else b"") + end + b"\xff"
    guest = network.guest(mac, "0.0.0.0" if kind == 3 else str(IPv4Address(first)))
    guest.sends(guest.datagram(68, "255.255.255.255", 67, message))


def names_at(network: ScriptedNetwork) -> set[str]:
    return {name for _, name in network.router.joins.guests()}


def test_news_of_guests_travel_at_once() -> None:
    """A lease that begins, one whose name changes and one that ends are known to all other servers
    in the same moment, also behind the next one, and so is who has gone with a server."""
    one, two, three = network(0), network(1), network(2)
    servers = Servers(one, two, three)
    servers.join(one, two)
    servers.join(two, three)
    servers.settle()
    leases(one, GUEST_MAC, b"web")
    servers.settle()
    assert names_at(two) == names_at(three) == {"web"}
    leases(one, GUEST_MAC, b"mail")
    servers.settle()
    assert names_at(two) == names_at(three) == {"mail"}
    leases(one, GUEST_MAC, b"", kind=7)
    servers.settle()
    assert names_at(two) == names_at(three) == set()
    leases(one, GUEST_MAC, b"web")
    servers.settle()
    assert names_at(three) == {"web"}
    servers.joins[0][0].end("gone")
    servers.settle()
    assert names_at(two) == names_at(three) == set()


def test_news_are_told_so_often_and_no_more() -> None:
    """A guest that renews all the time makes its server say ten hellos a second, and the other one
    hears each of them; the last news are not lost."""
    servers, one, two = pair()
    said = 0
    for number in range(200):
        leases(one, GUEST_MAC, f"name-{number}".encode())
        one.advance(0.01)
        frames = [each for each in frames_of(servers.joins[0][0].out) if each[12:14] == HELLO]
        said += len(frames)
        two.advance(0.01)
        servers.joins[0][1].hears(*frames)
    assert 20 <= said <= 31
    assert two.counters["join.hello_limited"] == 0
    servers.advance(1)
    assert names_at(two) == {"name-199"}


def test_names_of_others_shadow_nobodys() -> None:
    """The gateway's, the user's own, those kept for machines, and guests here come first."""
    told = [(packed("10.0.2.201"), name) for name in ("gateway", "host", "wpad", "far")]
    one, _ = joined(guests=tuple(told))
    zone = one.router.dns.zone
    names = {name: address for address, name in zone.guests(one.now)}
    assert names["far"] == packed("10.0.2.201")
    assert "wpad" not in names


def test_an_address_outside_is_nobodys_name() -> None:
    """Another server tells of guests of this network, not of the world."""
    one, _ = joined(guests=((packed("8.8.8.8"), "far"), (packed(GATEWAY), "near")))
    assert list(one.router.dns.zone.guests(one.now)) == []
