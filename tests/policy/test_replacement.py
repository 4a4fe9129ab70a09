"""A policy is replaced while connections come, talk and go: at each moment one of them holds."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

import trio
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.testing import FakeGuest, Internet, VirtualNetwork

SITES = ("203.0.113.10", "203.0.113.11", "203.0.113.12")
MOST = NetworkPolicy.allow_all().deny_ip(SITES[0])
POLICIES = (
    None,
    MOST,
    NetworkPolicy.deny_all(),
    *(NetworkPolicy.deny_all().allow_ip(site) for site in SITES),
)


@frozen
class Replace:
    """The policy."""

    policy: NetworkPolicy | None


@frozen
class Connect:
    """The guest, to a site."""

    site: str


@frozen
class Talk:
    """On one of its connections."""

    number: int


Step: TypeAlias = Replace | Connect | Talk


def allows(policy: NetworkPolicy | None, site: str) -> bool:
    """As a person would say of these."""
    return policy is None or (policy == MOST and site != SITES[0]) or f"allow {site}" in str(policy)


async def live_through(steps: Sequence[Step]) -> None:
    """Go all steps, with an eye on what every site hears."""
    heard = dict.fromkeys(SITES, 0)
    internet = Internet()

    def echo_at(address: str) -> None:
        async def echo(stream: trio.abc.HalfCloseableStream) -> None:
            async for octets in stream:
                heard[address] += len(octets)
                await stream.send_all(octets)

        internet.host(None, address).tcp(7, echo)

    for address in SITES:
        echo_at(address)
    async with VirtualNetwork(internet) as network, network.fake_guest() as guest:
        await guest.dhcp()
        policy: NetworkPolicy | None = None
        live: list[tuple[str, trio.abc.Stream]] = []
        for step in steps:
            match step:
                case Replace(policy):
                    network.set_policy(policy)
                    before = dict(heard)
                    for stream in [stream for site, stream in live if not allows(policy, site)]:
                        assert await is_over(stream)
                    assert heard == before
                    live = [(site, stream) for site, stream in live if allows(policy, site)]
                case Connect(site):
                    opened = await connected(guest, site)
                    assert (opened is not None) == allows(policy, site)
                    if opened is not None:
                        live.append((site, opened))
                case Talk(number) if live:
                    _, stream = live[number % len(live)]
                    await stream.send_all(b"hello")
                    assert await stream.receive_some() == b"hello"


async def connected(guest: FakeGuest, site: str) -> trio.abc.Stream | None:
    """A connection, or None if it is refused."""
    with suppress(ConnectionRefusedError):
        return await guest.connect_tcp(site, 7)
    return None


async def is_over(stream: trio.abc.Stream) -> bool:
    """Whether the other side has reset it."""
    try:
        await stream.send_all(b"still there?")
        await stream.receive_some()
    except trio.BrokenResourceError:
        return True
    return False


@given(
    st.lists(
        st.one_of(
            st.builds(Replace, st.sampled_from(POLICIES)),
            st.builds(Connect, st.sampled_from(SITES)),
            st.builds(Talk, st.integers(0, 7)),
        ),
        max_size=30,
    )
)
def test_each_flow_meets_the_policy_of_its_moment(steps: list[Step]) -> None:
    """What a replacement allows goes on over it and notices nothing; what it denies has ended
    before another octet passes, and nothing new of it begins."""
    trio.run(live_through, steps, clock=MockClock(autojump_threshold=0))
