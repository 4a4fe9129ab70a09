"""How a policy is applied: by guest, only telling, or in silence."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import DROP, LEARN, PolicySettings
from qemu_usernat.testing import FakeGuest, Internet, VirtualNetwork
from qemu_usernat.testing.fake_guest.guest import DnsError

SITE = "203.0.113.10"
HELLO = b"GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def guests_under(
    settings: PolicySettings,
) -> AsyncIterator[tuple[VirtualNetwork, FakeGuest, FakeGuest]]:
    """Two guests with their leases."""
    internet = Internet()
    internet.host("site.example", SITE).http("hello")
    with trio.fail_after(600):
        async with (
            VirtualNetwork(internet, policy=settings, guests=("one", "two")) as network,
            network.fake_guest("one") as one,
            network.fake_guest("two") as two,
        ):
            await one.dhcp()
            await two.dhcp()
            yield network, one, two


async def page(guest: FakeGuest, where: str) -> bytes:
    async with await guest.connect_tcp(where, 80) as stream:
        await stream.send_all(HELLO)
        return b"".join([octets async for octets in stream])


@pytest.mark.parametrize("key", ["two", "52:54:00:12:34:57"], ids=["link", "mac"])
async def test_a_guest_may_have_a_policy_of_its_own(key: str, autojump_clock: MockClock) -> None:
    """By the name of its link or its MAC address; the others have everybody's."""
    settings = PolicySettings(
        policy=NetworkPolicy.deny_all(), guests={key: NetworkPolicy.allow_all()}
    )
    async with guests_under(settings) as (_, one, two):
        assert b"hello" in await page(two, SITE)
        with pytest.raises(ConnectionRefusedError):
            await page(one, SITE)
        with pytest.raises(DnsError):
            await one.resolve("site.example")
        assert await two.resolve("site.example") == [SITE]


async def test_learning_tells_and_lets_through(autojump_clock: MockClock) -> None:
    """What a policy would deny is told as denied, and works."""
    settings = PolicySettings(
        policy=NetworkPolicy.deny_all().allow_domain("other.example"), mode=LEARN
    )
    async with guests_under(settings) as (network, one, _):
        assert b"hello" in await page(one, "site.example")
        await one.ping(SITE)
        verdicts = [(verdict.protocol, verdict.allowed) for verdict in network.verdicts]
        assert verdicts == [("dns", False), ("tcp", False), ("icmp", False)]


async def test_learning_keeps_the_floor(autojump_clock: MockClock) -> None:
    """Nobody learns what a guest wants by letting it reach the host, or the cloud's secrets."""
    settings = PolicySettings(policy=NetworkPolicy.allow_all(), mode=LEARN)
    async with guests_under(settings) as (network, one, _):
        for address in ("10.0.2.2", "169.254.169.254"):
            with pytest.raises(ConnectionRefusedError):
                await one.connect_tcp(address, 80)
        assert not network.flows


async def test_dropping_says_nothing(autojump_clock: MockClock) -> None:
    """For those who test what their programs do when nobody answers."""
    settings = PolicySettings(policy=NetworkPolicy.deny_all(), on_deny=DROP)
    async with guests_under(settings) as (network, one, _):
        with pytest.raises(TimeoutError):
            await one.connect_tcp(SITE, 80, timeout=20)
        with pytest.raises(TimeoutError):
            await one.ping(SITE)
        with one.open_udp() as port:
            await port.send_to(b"x", SITE, 7)
            with pytest.raises(TimeoutError):
                await port.receive_from(5)
        with pytest.raises(TimeoutError):
            await one.resolve("site.example", timeout=5)
        assert not network.flows
        assert network.counters["policy.dropped"] > 4


async def test_dropping_what_was_said_to_another(autojump_clock: MockClock) -> None:
    """A connection that was held is left waiting, too, and ends after some minutes."""
    settings = PolicySettings(
        policy=NetworkPolicy.deny_all().allow_domain("site.example"), on_deny=DROP
    )
    async with guests_under(settings) as (network, one, _):
        await one.resolve("site.example")
        async with await one.connect_tcp(SITE, 80) as stream:
            await stream.send_all(HELLO.replace(b"site", b"other"))
            with trio.move_on_after(200) as waiting:
                await stream.receive_some()
            assert waiting.cancelled_caught
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        assert network.flows[-1].sent == 0
