"""Nobody speaks as somebody else where a policy holds: a hostile guest against its neighbour."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.config import Network
from qemu_usernat.config.reservations import Reservation
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.addresses import parse_address, parse_mac
from qemu_usernat.testing import FakeGuest, Internet, Outcome, VirtualNetwork
from qemu_usernat.wire.arp import arp_frame
from qemu_usernat.wire.dhcp import DhcpMessage, build_dhcp
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import UDP, Arp
from qemu_usernat.wire.udp import udp_datagram

SITE = "203.0.113.10"


def one_may() -> PolicySettings:
    """The first guest may reach the site, its neighbour nothing."""
    deny_all = NetworkPolicy.deny_all()
    return PolicySettings(policy=deny_all, guests={"one": deny_all.allow_ip(SITE)})


async def listen(stream: trio.abc.HalfCloseableStream) -> None:
    """Until there is nobody to listen to."""
    async for _ in stream:
        pass


@asynccontextmanager
async def two_guests(
    policy: NetworkPolicy | PolicySettings | None,
) -> AsyncIterator[tuple[VirtualNetwork, FakeGuest, FakeGuest]]:
    """One with its lease, and a neighbour with its own."""
    internet = Internet()
    site = internet.host("site.example", SITE)
    site.udp(7, lambda payload, source: payload)
    site.tcp(7, listen)
    with trio.fail_after(60):
        async with (
            VirtualNetwork(internet, policy=policy, guests=("one", "two", "three")) as network,
            network.fake_guest("one") as one,
            network.fake_guest("two", strict=False) as two,
        ):
            await one.dhcp()
            await two.dhcp()
            yield network, one, two


def datagram(
    network: VirtualNetwork,
    mac: str,
    address: str,
    port: int = 4000,
    to: tuple[str, int] = (SITE, 7),
    payload: bytes = b"whoever",
    to_mac: str | None = None,
) -> bytes:
    """A frame with a datagram for the site, or for somebody else, from whomever."""
    source, destination = parse_address(address), parse_address(to[0])
    (frame,) = ipv4_frames(
        parse_mac(mac),
        parse_mac(to_mac) if to_mac else network.settings.gateway_mac,
        source,
        destination,
        UDP,
        udp_datagram(source, port, destination, to[1], payload),
        1500,
        1,
    )
    return frame[4:]


def asks_for(
    network: VirtualNetwork, mac: str, kind: int, address: str, client: bytes, held: str = "0.0.0.0"
) -> bytes:
    """A DHCP message of a client that calls itself `client`."""
    message = DhcpMessage(
        operation=1,
        transaction_id=7,
        seconds=0,
        broadcast=False,
        client_address=parse_address(held),
        your_address=bytes(4),
        server_address=bytes(4),
        relay_address=bytes(4),
        client_mac=parse_mac(mac),
        options={
            53: bytes([kind]),
            61: client,
            **({50: parse_address(address)} if kind == 3 else {54: parse_address("10.0.2.2")}),
        },
    )
    everybody, mac_of_all = ("255.255.255.255", 67), "ff:ff:ff:ff:ff:ff"
    return datagram(network, mac, "0.0.0.0", 68, everybody, build_dhcp(message), mac_of_all)


@pytest.mark.parametrize("policy", [NetworkPolicy.allow_all(), None], ids=["guarded", "twin"])
async def test_a_neighbour_s_address(
    policy: NetworkPolicy | None, autojump_clock: MockClock
) -> None:
    """Dropped and counted; without a policy it passes."""
    async with two_guests(policy) as (network, one, two):
        await two.send_frame(datagram(network, two.mac, str(one.address)))
        await trio.sleep(1)
        assert bool(network.flows) == (policy is None)
        assert network.counters["ipv4.spoofed_source"] == (policy is not None)
        await two.ping("10.0.2.2")


@pytest.mark.parametrize("policy", [NetworkPolicy.allow_all(), None], ids=["guarded", "twin"])
async def test_a_neighbour_s_mac_address(
    policy: NetworkPolicy | None, autojump_clock: MockClock
) -> None:
    """Neither does its frame pass, nor does it get the neighbour's mail."""
    async with two_guests(policy) as (network, one, two):
        await two.send_frame(datagram(network, one.mac, str(one.address)))
        await trio.sleep(1)
        assert bool(network.flows) == (policy is None)
        assert network.counters["ethernet.spoofed_source"] == (policy is not None)
        if policy is not None:
            await one.ping("10.0.2.2")


async def test_a_second_mac_address(autojump_clock: MockClock) -> None:
    """A guest does not become another one, for whom another policy might hold."""
    async with two_guests(NetworkPolicy.allow_all()) as (network, _, two):
        await two.send_frame(datagram(network, "52:54:00:00:00:99", "10.0.2.77"))
        await trio.sleep(1)
        assert not network.flows
        assert network.counters["ethernet.spoofed_source"] == 1


async def echoed(guest: FakeGuest) -> bytes:
    """What the site answers, to a datagram of this guest's."""
    with guest.open_udp(4000) as port:
        await port.send_to(b"x", SITE, 7)
        return (await port.receive_from(5))[0]


async def test_a_neighbour_s_lease_is_not_to_be_had(autojump_clock: MockClock) -> None:
    """Not by its name as a client, which everybody can guess, nor by giving it back before: its
    address, its connections and its policy stay its own."""
    async with two_guests(one_may()) as (network, one, two):
        assert await echoed(one) == b"x"
        address, client = str(one.address), b"\x01" + parse_mac(one.mac)
        await two.send_frame(asks_for(network, two.mac, 3, address, client))
        await two.send_frame(asks_for(network, two.mac, 7, address, client, held=address))
        await two.send_frame(asks_for(network, two.mac, 3, address, b"\0mine"))
        await trio.sleep(1)
        await two.send_frame(datagram(network, two.mac, address))
        await trio.sleep(1)
        assert network.counters["ipv4.spoofed_source"] == 1
        assert await echoed(one) == b"x"
        assert len(network.flows) == 1


async def test_an_address_set_by_hand_is_not_leased_to_another(autojump_clock: MockClock) -> None:
    """Whoever uses it has it."""
    policy = NetworkPolicy.allow_all()
    async with two_guests(policy) as (network, _, two):
        await two.release()
        await two.send_frame(datagram(network, two.mac, "10.0.2.50"))
        async with network.fake_guest("three", strict=False) as three:
            await three.send_frame(asks_for(network, three.mac, 3, "10.0.2.50", b"\0mine"))
            await trio.sleep(1)
            assert network.counters["dhcp.nak"] == 1
            assert (await three.dhcp()).address != "10.0.2.50"


async def test_a_reserved_address_waits_for_its_machine(autojump_clock: MockClock) -> None:
    """A neighbour that sets it by hand before is not heard, and the machine gets it."""
    mac = "52:54:00:00:00:77"
    settings = Network(reservations=(Reservation(parse_mac(mac), IPv4Address("10.0.2.77")),))
    with trio.fail_after(60):
        async with (
            VirtualNetwork(
                policy=NetworkPolicy.allow_all(), guests=("one", "two"), settings=settings
            ) as network,
            network.fake_guest("one", strict=False) as one,
            network.fake_guest("two", mac=mac) as two,
        ):
            await one.send_frame(datagram(network, one.mac, "10.0.2.77"))
            assert (await two.dhcp()).address == "10.0.2.77"
            assert network.counters["ipv4.spoofed_source"] == 1


async def test_a_guest_that_has_left_leaves_nothing_to_its_neighbour(
    autojump_clock: MockClock,
) -> None:
    """Its address is free; what it was allowed from there is not."""
    async with two_guests(one_may()) as (network, one, two):
        assert await echoed(one) == b"x"
        await one.connect_tcp(SITE, 7)
        address = str(one.address)
        await one.disconnect()
        await trio.sleep(1)
        for _ in range(3):
            await two.send_frame(datagram(network, two.mac, address))
            await trio.sleep(1)
        assert [verdict.allowed for verdict in network.verdicts[2:]] == [False, False, False]
        (connection,) = network.flows.where(protocol="tcp")
        assert connection.outcome is not Outcome.OPEN


async def test_a_guest_that_has_come_back_has_its_address_again(
    autojump_clock: MockClock,
) -> None:
    """From its first datagram on, though that is one of a conversation that goes on."""
    async with two_guests(one_may()) as (network, one, two):
        with one.open_udp(4000) as port:
            await port.send_to(b"x", SITE, 7)
            await port.receive_from(5)
            await one.reconnect(network.socket_path("one"))
            await trio.sleep(5)
            await port.send_to(b"x", SITE, 7)
            await port.receive_from(5)
            await two.send_frame(datagram(network, two.mac, str(one.address)))
            await trio.sleep(1)
            assert network.counters["ipv4.spoofed_source"] == 1
            await port.send_to(b"x", SITE, 7)
            assert (await port.receive_from(5))[0] == b"x"


async def test_nobody_plays_the_gateway_to_its_neighbour(autojump_clock: MockClock) -> None:
    """Neither its answers to ARP, nor to DNS, nor leases reach another guest; what is the guest's
    own does."""
    async with two_guests(NetworkPolicy.allow_all()) as (network, one, two):
        lie = Arp(2, parse_mac(two.mac), parse_address("10.0.2.2"), parse_mac(one.mac), bytes(4))
        await two.send_frame(arp_frame(lie, parse_mac(one.mac), parse_mac(two.mac))[4:])
        to_one = (str(one.address), 4000)
        for source, port in (("10.0.2.3", 53), (str(two.address), 67)):
            frame = datagram(network, two.mac, source, port, to_one, b"lie", one.mac)
            await two.send_frame(frame)
        with one.open_udp(4000) as socket:
            with pytest.raises(TimeoutError):
                await socket.receive_from(1)
            assert network.counters["ethernet.guarded"] == 3
            own = datagram(network, two.mac, str(two.address), 5000, to_one, b"hello", one.mac)
            await two.send_frame(own)
            assert (await socket.receive_from(1))[0] == b"hello"
        assert await one.arp("10.0.2.2") != two.mac


async def test_a_link_s_policy_is_before_that_of_a_mac_address(autojump_clock: MockClock) -> None:
    """A guest chooses its MAC address at boot, and not its link."""
    deny_all = NetworkPolicy.deny_all()
    settings = PolicySettings(
        policy=deny_all, guests={"two": deny_all, "52:54:00:12:34:99": NetworkPolicy.allow_all()}
    )
    async with two_guests(settings) as (network, _, two):
        await two.disconnect()
        async with network.fake_guest("two", mac="52:54:00:12:34:99") as again:
            await again.dhcp()
            with pytest.raises(OSError, match="prohibited"):
                await echoed(again)


async def test_what_was_shown_before_a_policy_is_not_believed(autojump_clock: MockClock) -> None:
    """A guest that has spoken as its neighbour is itself again, and so is the neighbour."""
    async with two_guests(None) as (network, one, two):
        await two.send_frame(datagram(network, one.mac, str(one.address)))
        await trio.sleep(1)
        network.set_policy(one_may())
        await two.send_frame(datagram(network, one.mac, str(one.address), 4001))
        await trio.sleep(1)
        assert network.counters["ethernet.spoofed_source"] == 1
        assert await echoed(one) == b"x"


async def test_a_pin_is_not_found_on_another_link(autojump_clock: MockClock) -> None:
    """A guest that takes the MAC address of one that has left was not told what that one was."""
    async with two_guests(NetworkPolicy.deny_all().allow_domain("site.example")) as (
        network,
        one,
        two,
    ):
        await one.resolve("site.example")
        await one.disconnect()
        await two.disconnect()
        async with network.fake_guest("two", mac=one.mac) as again:
            await again.dhcp()
            with pytest.raises(ConnectionRefusedError):
                await again.connect_tcp(SITE, 7)
            assert not network.flows


async def test_a_guest_that_comes_again_is_itself(autojump_clock: MockClock) -> None:
    """The same machine on a new connection: its MAC address and its lease are free for it."""
    async with two_guests(NetworkPolicy.allow_all()) as (network, one, _):
        await one.reconnect(network.socket_path("one"))
        await one.dhcp()
        await one.ping("10.0.2.2")
        with one.open_udp() as port:
            await port.send_to(b"x", SITE, 7)
            assert (await port.receive_from())[0] == b"x"
