"""The closed list of reasons: each is met by a guest, and told in the record of a verdict."""

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import dns.message
import dns.rdataclass
import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.config import Network
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import parse_address, parse_mac
from qemu_usernat.testing import FakeGuest, Internet, VirtualNetwork
from qemu_usernat.testing.fake_guest.guest import DnsError
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import UDP
from qemu_usernat.wire.udp import udp_datagram

SITE, OTHER = "203.0.113.10", "203.0.113.11"
SITE_ONLY = NetworkPolicy.deny_all().allow_domain("site.example", "inward.example")

Act = Callable[[FakeGuest, VirtualNetwork], Awaitable[None]]


async def greet(stream: trio.abc.HalfCloseableStream) -> None:
    """Say something when something was said."""
    await stream.receive_some()
    await stream.send_all(b"hello")


@pytest.fixture
def internet() -> Internet:
    """A site that may be reached, another one, and a name that leads inward."""
    internet = Internet()
    for name, address in (("site.example", SITE), ("other.example", OTHER)):
        host = internet.host(name, address)
        host.https("hello")
        host.http("hello")
        host.tcp(22, greet)
    internet.host("inward.example", "10.9.9.9").http("hello")
    return internet


def speaks(port: int, octets: bytes, address: str = SITE) -> Act:
    """Look up what there is, connect, say this, and hear what becomes of it."""

    async def act(guest: FakeGuest, network: VirtualNetwork) -> None:
        for name in ("site.example", "inward.example"):
            with suppress(DnsError):
                await guest.resolve(name)
        with suppress(OSError, trio.BrokenResourceError):
            async with await guest.connect_tcp(address, port, timeout=3) as stream:
                await stream.send_all(octets)
                while await stream.receive_some():
                    pass

    return act


def says_hello(name: str | None, address: str = SITE) -> Act:
    """As `speaks`, of TLS that is for `name`."""
    context = ssl.create_default_context()
    context.check_hostname = False
    hello = ssl.MemoryBIO()
    secure = context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        secure.do_handshake()
    return speaks(443, hello.read(), address)


def requests(text: str) -> Act:
    """As `speaks`, of HTTP."""
    return speaks(80, text.replace("\n", "\r\n").encode())


def sends(port: int, address: str = SITE) -> Act:
    """A datagram, to a site that was looked up."""

    async def act(guest: FakeGuest, network: VirtualNetwork) -> None:
        await guest.resolve("site.example")
        with guest.open_udp() as socket, suppress(OSError):
            await socket.send_to(b"x", address, port)
            await socket.receive_from(1)

    return act


async def asks_another_class(guest: FakeGuest, network: VirtualNetwork) -> None:
    """CHAOS, where servers keep their versions."""
    question = dns.message.make_query("site.example", "TXT", dns.rdataclass.CH)
    with guest.open_udp() as socket:
        await socket.send_to(question.to_wire(), "10.0.2.3", 53)
        await socket.receive_from()


async def asks_for_the_zone(guest: FakeGuest, network: VirtualNetwork) -> None:
    """All of it."""
    await guest.query("site.example", "AXFR", over="tcp")


async def forges(guest: FakeGuest, network: VirtualNetwork) -> None:
    """A datagram from its neighbour's address."""
    async with network.fake_guest("neighbour") as neighbour:
        source, site = parse_address((await neighbour.dhcp()).address), parse_address(SITE)
        payload = udp_datagram(source, 4000, site, 7, b"x")
        (frame,) = ipv4_frames(
            parse_mac(guest.mac), network.settings.gateway_mac, source, site, UDP, payload, 1500, 1
        )
        await guest.send_frame(frame[4:])
        await trio.sleep(1)


async def tunnels(guest: FakeGuest, network: VirtualNetwork) -> None:
    """A packet of GRE."""
    (frame,) = ipv4_frames(
        parse_mac(guest.mac),
        network.settings.gateway_mac,
        parse_address(guest.address or ""),
        parse_address(SITE),
        47,
        b"out?",
        1500,
        1,
    )
    await guest.send_frame(frame[4:])
    await trio.sleep(1)


async def calls_a_neighbour(guest: FakeGuest, network: VirtualNetwork) -> None:
    """By way of the gateway."""
    source, neighbour = parse_address(guest.address or ""), parse_address("10.0.2.99")
    payload = udp_datagram(source, 4000, neighbour, 7, b"x")
    (frame,) = ipv4_frames(
        parse_mac(guest.mac), network.settings.gateway_mac, source, neighbour, UDP, payload, 1500, 1
    )
    await guest.send_frame(frame[4:])
    await trio.sleep(1)


GET = "GET / HTTP/1.1\nHost: site.example\n"
THEN = GET + "\n" + GET
OTHER_TOO = NetworkPolicy.deny_all().allow_domain("other.example").rule("allow site.example")
BY_ADDRESS = NetworkPolicy.deny_all().allow_dns().allow_ip(SITE)

CONVERSATIONS: dict[Why, tuple[NetworkPolicy, Act]] = {
    Why.RULE: (BY_ADDRESS, requests(GET + "Connection: close\n\n")),
    Why.PIN: (SITE_ONLY, speaks(22, b"SSH-2.0-x\r\n")),
    Why.DEFAULT: (SITE_ONLY, speaks(80, b"", OTHER)),
    Why.FLOOR: (NetworkPolicy.allow_all(), speaks(80, b"", "169.254.169.254")),
    Why.NOT_PINNED: (OTHER_TOO, says_hello("other.example")),
    Why.OTHER_NAME: (SITE_ONLY, says_hello("other.example")),
    Why.NO_NAME: (SITE_ONLY, says_hello(None)),
    Why.UNREADABLE: (SITE_ONLY, speaks(443, b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00")),
    Why.NOT_TLS: (SITE_ONLY, speaks(443, b"GET / HTTP/1.1\r\nHost: site.example:443\r\n\r\n")),
    Why.NOT_HTTP: (SITE_ONLY, speaks(80, b"SSH-2.0-x\r\n")),
    Why.QUIC: (SITE_ONLY.allow_domain("site.example", on="udp"), sends(443)),
    Why.PROTOCOL: (SITE_ONLY, sends(7)),
    Why.INWARD: (SITE_ONLY.allow_ip("10.9.9.9", on="tcp/22"), speaks(80, b"", "10.9.9.9")),
    Why.NAME_SERVICE: (NetworkPolicy.allow_all(), speaks(853, b"")),
    Why.MARTIAN: (NetworkPolicy.allow_all(), speaks(80, b"", "127.0.0.1")),
    Why.SPOOFED: (NetworkPolicy.allow_all(), forges),
    Why.ISOLATED: (NetworkPolicy.allow_all(), calls_a_neighbour),
    Why.UNCARRIED: (NetworkPolicy.allow_all(), tunnels),
    Why.QUESTION: (SITE_ONLY, asks_another_class),
    Why.CONNECT: (SITE_ONLY, requests(GET + "\nCONNECT x:443 HTTP/1.1\nHost: site.example\n\n")),
    Why.UPGRADE: (SITE_ONLY, requests(THEN + "Connection: upgrade\nUpgrade: websocket\n\n")),
    Why.FRAMING: (SITE_ONLY, requests(THEN + "Content-Length: 1\nContent-Length: 2\n\n")),
}


@pytest.mark.parametrize("why", CONVERSATIONS, ids=lambda why: why.value)
async def test_a_guest_that_meets_this_reason(
    why: Why, internet: Internet, autojump_clock: MockClock
) -> None:
    """Its verdict names it."""
    policy, act = CONVERSATIONS[why]
    settings = Network(mtu=1500, isolate=why is Why.ISOLATED)
    with trio.fail_after(600):
        async with (
            VirtualNetwork(
                internet, settings, policy=policy, guests=("guest", "neighbour")
            ) as network,
            network.fake_guest("guest", strict=False) as guest,
        ):
            await guest.dhcp()
            await act(guest, network)
            assert why.value in {verdict.why for verdict in network.verdicts}


async def test_a_zone_transfer_is_no_question(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """It is refused, and told."""
    async with (
        VirtualNetwork(internet, policy=SITE_ONLY) as network,
        network.fake_guest() as guest,
    ):
        await guest.dhcp()
        await asks_for_the_zone(guest, network)
        assert [verdict.why for verdict in network.verdicts] == ["question"]


def test_the_list_is_whole() -> None:
    """All but the one that is no verdict yet."""
    assert set(CONVERSATIONS) == set(Why) - {Why.HELD}
