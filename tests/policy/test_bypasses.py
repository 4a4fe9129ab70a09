"""The ways in which others were passed, tried here; the rest of the list is in the files beside.

`test_enforcement` has hard-coded addresses, answers that lead inward, chains to denied names, other
resolvers and pins of others; `test_first_words` other tenants, the attacker's address, silence,
several requests and CONNECT; `test_tls_hello` and `test_http_requests` every way to write a first
flight; `test_spoofing` forged sources.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.gateway.dns import Upstream
from qemu_usernat.nat.udp import UdpMapping
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.primitives.addresses import parse_address, parse_mac
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.testing import FakeGuest, Internet, VirtualNetwork
from qemu_usernat.testing.fake_guest.guest import DnsError
from qemu_usernat.testing.fake_guest.stream import TcpStream
from qemu_usernat.testing.internet.world import InternetWorld
from qemu_usernat.wire.ipv4 import ipv4_frames

SITE = "203.0.113.10"
ONLY_SITE = NetworkPolicy.deny_all().allow_domain("site.example", "*.wild.example")


@pytest.fixture
def internet() -> Internet:
    """A site, and everything below a name."""
    internet = Internet()
    site = internet.host("site.example", SITE, aliases=["a.wild.example"])
    site.http("hello")
    site.udp(7, lambda payload, source: payload)
    site.udp(53, lambda payload, source: b"not DNS at all")
    return internet


@asynccontextmanager
async def guest_under(
    policy: NetworkPolicy | None, internet: Internet
) -> AsyncIterator[tuple[FakeGuest, VirtualNetwork]]:
    with trio.fail_after(600):
        async with (
            VirtualNetwork(internet, policy=policy) as network,
            network.fake_guest() as guest,
        ):
            await guest.dhcp()
            yield guest, network


@pytest.mark.parametrize("address", ["169.254.169.254", "168.63.129.16", "10.0.2.2", "10.0.2.3"])
async def test_metadata_and_the_gateway_by_udp(
    internet: Internet, address: str, autojump_clock: MockClock
) -> None:
    """Not by another protocol either."""
    async with guest_under(NetworkPolicy.allow_all(), internet) as (guest, network):
        with guest.open_udp() as port:
            await port.send_to(b"x", address, 80)
            with pytest.raises(OSError, match=r"prohibited|refused"):
                await port.receive_from()
        assert not network.flows


@pytest.mark.parametrize("policy", [None, NetworkPolicy.allow_all()], ids=["no policy", "all"])
async def test_the_host_s_own_address_in_its_lan(
    internet: Internet,
    policy: NetworkPolicy | None,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    """The host is no part of its LAN; a rule may name it, by the very address."""
    host, neighbour = "192.168.1.5", "192.168.1.6"
    for address in (host, neighbour):
        internet.host(None, address).http("hello")
    own = parse_address(host)
    monkeypatch.setattr(InternetWorld, "is_of_host", lambda world, address: address == own)
    async with guest_under(policy, internet) as (guest, network):
        async with await guest.connect_tcp(neighbour, 80):
            pass
        with pytest.raises(ConnectionRefusedError):
            await guest.connect_tcp(host, 80)
        assert network.verdicts[-1].why == "floor"
        for wide, named in (("192.168.1.0/24", False), (host, True)):
            network.set_policy(NetworkPolicy.deny_all().allow_ip(wide))
            if named:
                await guest.connect_tcp(host, 80)
            else:
                with pytest.raises(ConnectionRefusedError):
                    await guest.connect_tcp(host, 80)


async def test_port_53_carries_dns_only(internet: Internet, autojump_clock: MockClock) -> None:
    """What is no question goes nowhere; an update and a zone transfer are refused."""
    async with guest_under(ONLY_SITE, internet) as (guest, network):
        with guest.open_udp() as port:
            await port.send_to(b"out?", SITE, 53)
            with pytest.raises(TimeoutError):
                await port.receive_from(1.0)
            update = dns.message.make_query("site.example", "SOA")
            update.set_opcode(dns.opcode.UPDATE)
            await port.send_to(update.to_wire(), SITE, 53)
            assert dns.message.from_wire((await port.receive_from())[0]).rcode() == 4  # NOTIMP
        answer = await guest.query("site.example", "AXFR", over="tcp", server=SITE)
        assert answer.rcode() == 5  # REFUSED
        assert not network.flows
        assert not network.dns_queries


async def test_nothing_of_the_guest_s_but_the_name_leaves(
    internet: Internet, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """No options of EDNS, no capitals, no extra records: each would carry data to a name server."""
    async with guest_under(ONLY_SITE, internet) as (guest, _):
        asked: list[bytes] = []
        ask = InternetWorld.ask

        def watched(
            world: InternetWorld, upstream: Upstream, transport: str, message: bytes, token: int
        ) -> bool:
            asked.append(message)
            return ask(world, upstream, transport, message, token)

        monkeypatch.setattr(InternetWorld, "ask", watched)
        question = dns.message.make_query("SiTe.ExAmPlE", "A")
        option = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"data")
        question.use_edns(options=[option], payload=0x4142)
        question.flags |= dns.flags.CD | dns.flags.AD
        with guest.open_udp() as port:
            await port.send_to(question.to_wire(), "10.0.2.3", 53)
            answer = dns.message.from_wire((await port.receive_from())[0])
        assert str(answer.question[0].name) == "SiTe.ExAmPlE."
        (message,) = asked
        assert b"data" not in message
        assert dns.message.from_wire(message).payload == 1232
        assert dns.message.from_wire(message).flags == dns.flags.RD
        assert b"\x04site\x07example\x00" in message


async def test_a_name_that_only_ends_alike(internet: Internet, autojump_clock: MockClock) -> None:
    """evilsite.example is not site.example, and wild.example not below itself."""
    async with guest_under(ONLY_SITE, internet) as (guest, network):
        for name in ("evilsite.example", "wild.example", "site.example.evil.example", "example"):
            with pytest.raises(DnsError, match="NXDOMAIN"):
                await guest.resolve(name)
        assert await guest.resolve("SITE.EXAMPLE.") == [SITE]
        assert [query.name for query in network.dns_queries] == ["site.example"]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ((b"data.wild", b"example"), r"data\046wild.example"),
        ((b"da.ta", b"wild", b"example"), r"da\046ta.wild.example"),
        ((b"DA TA", b"wild", b"example"), r"da\032ta.wild.example"),
        ((b"a\\.wild", b"example"), r"a\092\046wild.example"),
        ((b"a\0", b"wild", b"example"), r"a\000.wild.example"),
        ((b"site.example",), r"site\046example"),
    ],
)
async def test_a_name_that_only_reads_alike(
    internet: Internet, labels: tuple[bytes, ...], text: str, autojump_clock: MockClock
) -> None:
    """Names are compared label by label, and no host has a dot or a space in one."""
    question = dns.message.make_query(dns.name.Name((*labels, b"")), "A")
    for policy, asked in ((ONLY_SITE, 0), (ONLY_SITE.allow_dns(), 1)):
        async with guest_under(policy, internet) as (guest, network):
            with guest.open_udp() as port:
                await port.send_to(question.to_wire(), "10.0.2.3", 53)
                answer = dns.message.from_wire((await port.receive_from())[0])
            assert answer.rcode() == 3  # nobody has it
            assert len(network.dns_queries) == asked
            assert network.verdicts[-1].name == text


async def test_other_protocols_go_nowhere(internet: Internet, autojump_clock: MockClock) -> None:
    """GRE, SCTP, IPv6 in IPv4: answered by protocol unreachable, whatever the policy."""
    async with guest_under(NetworkPolicy.allow_all(), internet) as (guest, network):
        for protocol in (47, 132, 41, 4):
            source, site = parse_address(str(guest.address)), parse_address(SITE)
            (frame,) = ipv4_frames(
                parse_mac(guest.mac), network.settings.gateway_mac, source, site, protocol,
                b"x" * 40, 1500, 1,
            )  # fmt: skip
            await guest.send_frame(frame[4:])
        await trio.sleep(0.1)
        assert network.counters["ipv4.unknown_protocol"] == 4
        assert not network.flows


async def test_pings_carry_nothing_where_they_are_not_allowed(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """A payload in an echo request is a tunnel like any other."""
    async with guest_under(ONLY_SITE, internet) as (guest, network):
        await guest.resolve("site.example")
        with pytest.raises(OSError, match="prohibited"):
            await guest.ping(SITE, b"data that wants out")
        assert not network.flows
        network.set_policy(ONLY_SITE.allow_ping("site.example"))
        await guest.ping(SITE)


def test_only_who_was_written_to_may_answer() -> None:
    """Another port of the same address is a third party."""

    class Deaf:
        port = 4000

        def __init__(self) -> None:
            self.heard: list[int] = []

        def deliver(self, payload: object, source: bytes, source_port: int) -> None:
            self.heard.append(source_port)

        def refuse(self, *_: object) -> None: ...

        def send(self, *_: object) -> None: ...

        def close(self) -> None: ...

    site, end = parse_address(SITE), Deaf()
    for filters, heard in ((True, [7]), (False, [7, 8])):
        end.heard.clear()
        mapping = UdpMapping((parse_address("10.0.2.15"), 4000), end, Counters(), 0.0)
        mapping.host, mapping.is_guarded = end, filters
        mapping.admit(site, 7, None)  # type: ignore[arg-type]
        mapping.on_guest_datagram(b"x", site, 7, bytes(28), 0.0)
        for port in (7, 8):
            mapping.on_host_datagram(b"x", site, port, 0.0)
        assert end.heard == heard


async def test_a_flood_of_held_connections_is_bounded(
    internet: Internet, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a flow; beyond the bound they are refused, and the others work."""
    monkeypatch.setattr("qemu_usernat.nat.holdings.FLOWS_PER_GUEST", 40)
    async with guest_under(ONLY_SITE, internet) as (guest, network):
        await guest.resolve("site.example")
        held: list[TcpStream] = []
        with suppress(ConnectionRefusedError):
            while len(held) < 60:
                held.append(await guest.connect_tcp(SITE, 80))
        assert 20 <= len(held) <= 40
        for stream in held:
            stream.reset()
        await trio.sleep(1)
        async with await guest.connect_tcp(SITE, 80):
            pass
        assert network.counters["tcp.flows_full"] == 1
