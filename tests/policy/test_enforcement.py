"""A policy at work, as a guest without QEMU meets it: no is quick and says so, yes works.

Each refusal is looked at from the world's end, too: it has seen no octet. And each has a twin
without the policy, which arrives.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.config.network import Network
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.testing import FakeGuest, Internet, Outcome, VirtualNetwork, icmp
from qemu_usernat.testing.fake_guest.guest import DnsError

GOOD, BAD = "203.0.113.10", "203.0.113.11"
HELLO = b"GET / HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n"


@pytest.fixture
def internet() -> Internet:
    """Two hosts: one that a policy will know, one that it will not."""
    internet = Internet()
    for name, address in (("good.example", GOOD), ("bad.example", BAD)):
        host = internet.host(name, address)
        host.http(f"hello from {name}")
        host.udp(7, lambda payload, source: payload)
    return internet


@asynccontextmanager
async def guest_under(
    policy: NetworkPolicy | None, internet: Internet
) -> AsyncIterator[tuple[FakeGuest, VirtualNetwork]]:
    """A guest with its lease, on a network with that policy."""
    with trio.fail_after(2000):
        async with (
            VirtualNetwork(internet, policy=policy) as network,
            network.fake_guest() as guest,
        ):
            await guest.dhcp()
            yield guest, network


async def page(guest: FakeGuest, where: str, request: bytes = HELLO) -> bytes:
    """What a server answers at port 80."""
    async with await guest.connect_tcp(where, 80) as stream:
        await stream.send_all(request)
        return b"".join([octets async for octets in stream])


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    """Say everything again."""
    async for octets in stream:
        await stream.send_all(octets)


async def echoed(guest: FakeGuest, address: str, port: int = 7) -> bytes:
    """A datagram, and what comes back."""
    with guest.open_udp() as socket:
        await socket.send_to(b"x", address, port)
        return (await socket.receive_from())[0]


async def test_without_a_policy_everything_arrives(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """The twin of all that follow."""
    async with guest_under(None, internet) as (guest, network):
        assert b"hello from bad" in await page(guest, "bad.example")
        assert b"hello from bad" in await page(guest, BAD)
        await guest.ping(BAD)
        assert await echoed(guest, BAD) == b"x"
        assert all(verdict.allowed for verdict in network.verdicts)


async def test_deny_all_denies_at_once(internet: Internet, autojump_clock: MockClock) -> None:
    """A reset, ICMP, NXDOMAIN: within a moment, and nobody outside hears of it."""
    async with guest_under(NetworkPolicy.deny_all(), internet) as (guest, network):
        began = trio.current_time()
        with pytest.raises(ConnectionRefusedError):
            await guest.connect_tcp(BAD, 80)
        with pytest.raises(OSError, match="prohibited"):
            await guest.ping(BAD)
        with pytest.raises(OSError, match="prohibited"):
            await echoed(guest, BAD)
        with pytest.raises(DnsError, match="NXDOMAIN"):
            await guest.resolve("bad.example")
        assert trio.current_time() - began < 1
        assert not network.flows
        assert not network.dns_queries
        assert not internet["bad.example"].connections
        assert {verdict.why for verdict in network.verdicts} == {"default"}
        await guest.ping("10.0.2.2")


async def test_a_name_is_admitted_where_it_was_looked_up(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """By name, yes; by a hard-coded address without asking, no."""
    policy = NetworkPolicy.deny_all().allow_http("good.example")
    async with guest_under(policy, internet) as (guest, network):
        with pytest.raises(ConnectionRefusedError):
            await guest.connect_tcp(GOOD, 80)
        assert b"hello from good" in await page(guest, "good.example")
        with pytest.raises(DnsError, match="NXDOMAIN"):
            await guest.resolve("bad.example")
        assert [query.name for query in network.dns_queries] == ["good.example"]
        assert [flow.address for flow in network.flows] == [GOOD]


async def test_an_address_is_admitted_by_its_rule(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """That one, on that port, and nothing beside it."""
    policy = NetworkPolicy.deny_all().allow_ip(GOOD, on="tcp/80")
    async with guest_under(policy, internet) as (guest, network):
        assert b"hello from good" in await page(guest, GOOD)
        for address, port in ((GOOD, 81), (BAD, 80)):
            with pytest.raises(ConnectionRefusedError):
                await guest.connect_tcp(address, port)
        with pytest.raises(OSError, match="prohibited"):
            await guest.ping(GOOD)
        assert len(network.flows) == 1


async def test_the_request_has_to_name_the_host(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Another name at the right address: 403 with a reason, and not an octet for the server."""
    policy = NetworkPolicy.deny_all().allow_http("good.example")
    async with guest_under(policy, internet) as (guest, network):
        answer = await page(guest, "good.example", HELLO.replace(b"good", b"evil"))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"Denied by the network policy: evil.example.\nReason: other_name.\n" in answer
        assert not internet["good.example"].requests
        assert [flow.sent for flow in network.flows] == [0]


async def test_another_resolver_is_ours(internet: Internet, autojump_clock: MockClock) -> None:
    """Whomever the guest asks at port 53: the gateway answers, over UDP and TCP."""
    policy = NetworkPolicy.deny_all().allow_http("good.example")
    async with guest_under(policy, internet) as (guest, network):
        for over in ("udp", "tcp"):
            assert await guest.resolve("good.example", server=BAD, over=over) == [GOOD]
            with pytest.raises(DnsError, match="NXDOMAIN"):
                await guest.resolve("secret.bad.example", server=BAD, over=over)
        with pytest.raises(ConnectionRefusedError):
            await guest.connect_tcp(BAD, 853)
        assert not network.flows


async def test_a_denied_name_says_why(internet: Internet, autojump_clock: MockClock) -> None:
    """NXDOMAIN with an SOA, which says for how long."""
    policy = NetworkPolicy.allow_all().deny_domain("*.bad.example", "bad.example").named("bad ones")
    async with guest_under(policy, internet) as (guest, _):
        answer = await guest.query("bad.example")
        assert answer.rcode() == 3
        assert [rrset.rdtype.name for rrset in answer.authority] == ["SOA"]
        assert b"hello from good" in await page(guest, "good.example")


async def test_no_address_leads_inward(internet: Internet, autojump_clock: MockClock) -> None:
    """An allowed name that suddenly says a private address: it is left out of the answer."""
    internet.dns("good.example", "A", GOOD, "10.0.0.5", "169.254.169.254", "127.0.0.1")
    policy = NetworkPolicy.deny_all().allow_http("good.example")
    async with guest_under(policy, internet) as (guest, network):
        assert await guest.resolve("good.example") == [GOOD]
        assert network.counters["dns.inward_answer"] == 3
    async with guest_under(policy.allow_ip("10.0.0.0/8"), internet) as (guest, network):
        assert await guest.resolve("good.example") == [GOOD, "10.0.0.5"]


async def test_a_chain_of_aliases_is_the_first_name_s(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """What the guest asked for is what it may say; a chain through a denied name is refused."""
    internet.dns("www.good.example", "CNAME", "good.example")
    internet.dns("sly.good.example", "CNAME", "bad.example")
    policy = NetworkPolicy.deny_all().deny_domain("bad.example").allow_http("*.good.example")
    async with guest_under(policy, internet) as (guest, _):
        assert await guest.resolve("www.good.example") == [GOOD]
        answer = await page(guest, GOOD, HELLO.replace(b"good", b"www.good"))
        assert b"hello from good" in answer
        with pytest.raises(DnsError, match="NXDOMAIN"):
            await guest.resolve("sly.good.example")


@pytest.mark.parametrize("record_type", ["HTTPS", "SVCB", "ANY"])
async def test_records_that_carry_more_than_addresses_are_empty(
    internet: Internet, record_type: str, autojump_clock: MockClock
) -> None:
    """No error, and no record: the client goes on with A."""
    policy = NetworkPolicy.deny_all().allow_http("good.example")
    async with guest_under(policy, internet) as (guest, network):
        answer = await guest.query("good.example", record_type)
        assert (answer.rcode(), answer.answer) == (0, [])
        assert not network.dns_queries


async def test_the_floor_is_below_every_policy(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Metadata, link-local and the gateway's host: not without a policy, not with `any`."""
    for policy in (None, NetworkPolicy.allow_all(), NetworkPolicy.deny_all().allow_https()):
        async with guest_under(policy, internet) as (guest, network):
            for address in ("169.254.169.254", "169.254.1.1", "100.100.100.200", "10.0.2.2"):
                with pytest.raises(ConnectionRefusedError):
                    await guest.connect_tcp(address, 443)
            assert not network.flows


@pytest.mark.parametrize("allowed", [True, False])
async def test_the_host_by_its_own_name(allowed: bool, autojump_clock: MockClock) -> None:
    """A rule that names it names the host: what the gateway says of its own names is believed."""
    internet = Internet()
    internet.host(None, "127.0.0.1").tcp(7, echo)
    policy = NetworkPolicy.deny_all().allow_domain("host.internal" if allowed else "good.example")
    settings = Network(host_loopback=True)
    async with (
        VirtualNetwork(internet, settings, policy=policy) as network,
        network.fake_guest() as guest,
    ):
        await guest.dhcp()
        await guest.resolve("host.internal")
        if allowed:
            stream = await guest.connect_tcp("host.internal", 7)
            await stream.send_all(b"you, there?\n")
            assert await stream.receive_some() == b"you, there?\n"
        else:
            with pytest.raises(ConnectionRefusedError):
                await guest.connect_tcp("host.internal", 7)


async def test_a_new_policy_ends_what_it_denies_and_nothing_else(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Two connections and a conversation of datagrams; the one that may stay notices nothing."""
    for name in ("good.example", "bad.example"):
        internet[name].tcp(7, echo)
    async with guest_under(NetworkPolicy.allow_all(), internet) as (guest, network):
        good = await guest.connect_tcp(GOOD, 7)
        bad = await guest.connect_tcp(BAD, 7)
        assert await echoed(guest, BAD) == b"x"
        network.set_policy(NetworkPolicy.deny_all().allow_ip(GOOD))
        with pytest.raises(trio.BrokenResourceError):
            await bad.receive_some()
        with pytest.raises(OSError, match="prohibited"):
            await echoed(guest, BAD)
        await good.send_all(b"still here")
        assert await good.receive_some() == b"still here"
        (record,) = network.flows.where(address=BAD, protocol="tcp")
        assert record.outcome in (Outcome.RESET_BY_GUEST, Outcome.ENDED)
        assert network.counters["policy.revoked"] == 2


async def test_another_resolver_s_connection_ends(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """It was opened before there was a policy, and would carry names past it."""
    internet["good.example"].tcp(53, echo)
    async with guest_under(None, internet) as (guest, network):
        stream = await guest.connect_tcp(GOOD, 53)
        network.set_policy(NetworkPolicy.allow_all())
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_name_denied_later_ends_only_what_may_have_said_it(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """A connection to an address that nobody has called so goes on, though nobody has read it."""
    for name in ("good.example", "bad.example"):
        internet[name].tcp(22, echo)
    async with guest_under(NetworkPolicy.allow_all(), internet) as (guest, network):
        good = await guest.connect_tcp(GOOD, 22)
        bad = await guest.connect_tcp("bad.example", 22)
        network.set_policy(NetworkPolicy.allow_all().deny_domain("bad.example"))
        await good.send_all(b"still here")
        assert await good.receive_some() == b"still here"
        with pytest.raises(trio.BrokenResourceError):
            await bad.receive_some()


async def test_a_pin_is_one_guest_s(internet: Internet, autojump_clock: MockClock) -> None:
    """What one guest was told does not let another one through."""
    policy = NetworkPolicy.deny_all().allow_http("good.example")
    with trio.fail_after(60):
        async with (
            VirtualNetwork(internet, policy=policy, guests=("one", "two")) as network,
            network.fake_guest("one") as one,
            network.fake_guest("two") as two,
        ):
            await one.dhcp()
            await two.dhcp()
            assert await one.resolve("good.example") == [GOOD]
            with pytest.raises(ConnectionRefusedError):
                await two.connect_tcp(GOOD, 80)
            assert b"hello" in await page(one, GOOD)


async def test_a_pin_outlives_its_record_for_a_while(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """A TTL of a minute: good for three, and no longer."""
    policy = NetworkPolicy.deny_all().allow_http("good.example")
    async with guest_under(policy, internet) as (guest, _):
        (address,) = await guest.resolve("good.example")
        await trio.sleep(170)
        assert b"hello" in await page(guest, address)
        await trio.sleep(20)
        with pytest.raises(ConnectionRefusedError):
            await guest.connect_tcp(address, 80)


async def test_udp_and_quic_have_to_be_said(internet: Internet, autojump_clock: MockClock) -> None:
    """A name admits TCP; UDP only where the rule says so, and never to port 443."""
    internet["good.example"].udp(443, lambda payload, source: payload)
    policy = NetworkPolicy.deny_all().allow_domain("good.example", on=["443", "udp/7"])
    async with guest_under(policy, internet) as (guest, network):
        await guest.resolve("good.example")
        assert await echoed(guest, GOOD) == b"x"
        with pytest.raises(OSError, match="prohibited"):
            await echoed(guest, GOOD, 443)
        assert network.verdicts[-1].why == "quic"
        network.capture.assert_some(icmp.code == 13)
