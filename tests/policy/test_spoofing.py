"""Nobody speaks as somebody else where a policy holds: a hostile guest against its neighbour."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.primitives.addresses import parse_address, parse_mac
from qemu_usernat.testing import FakeGuest, Internet, VirtualNetwork
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import UDP
from qemu_usernat.wire.udp import udp_datagram

SITE = "203.0.113.10"


@asynccontextmanager
async def two_guests(
    policy: NetworkPolicy | None,
) -> AsyncIterator[tuple[VirtualNetwork, FakeGuest, FakeGuest]]:
    """One with its lease, and a neighbour with its own."""
    internet = Internet()
    internet.host("site.example", SITE).udp(7, lambda payload, source: payload)
    with trio.fail_after(60):
        async with (
            VirtualNetwork(internet, policy=policy, guests=("one", "two")) as network,
            network.fake_guest("one") as one,
            network.fake_guest("two", strict=False) as two,
        ):
            await one.dhcp()
            await two.dhcp()
            yield network, one, two


def datagram(network: VirtualNetwork, mac: str, address: str) -> bytes:
    """A frame with a datagram for the site, from whomever."""
    source, site = parse_address(address), parse_address(SITE)
    payload = udp_datagram(source, 4000, site, 7, b"whoever")
    (frame,) = ipv4_frames(
        parse_mac(mac), network.settings.gateway_mac, source, site, UDP, payload, 1500, 1
    )
    return frame[4:]


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


async def test_a_guest_that_comes_again_is_itself(autojump_clock: MockClock) -> None:
    """The same machine on a new connection: its MAC address and its lease are free for it."""
    async with two_guests(NetworkPolicy.allow_all()) as (network, one, _):
        await one.reconnect(network.socket_path("one"))
        await one.dhcp()
        await one.ping("10.0.2.2")
        with one.open_udp() as port:
            await port.send_to(b"x", SITE, 7)
            assert (await port.receive_from())[0] == b"x"
