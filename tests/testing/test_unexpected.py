"""All that a guest reaches for and the test has not defined is told; what systems do by themselves
is told apart, and fails no test."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.config.network import Network
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.testing import FakeGuest, Internet, Response, VirtualNetwork
from qemu_usernat.testing.fake_guest.guest import DnsError
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    SERVER,
    ethernet,
    ipv4,
    packed,
    udp,
)
from tests.testing.sample_frames import arp_frame

SITE = "203.0.113.10"
NEIGHBOUR = "10.0.2.99"
IPV6 = 0x86DD
OURS, OTHERS = "fe80::5054:ff:fe12:3456", "2001:db8::1"

Deed = Callable[[FakeGuest], Awaitable[object]]


@pytest.fixture
def internet() -> Internet:
    """One host, with a page, and a page inside TLS."""
    internet = Internet()
    host = internet.host("site.example", SITE, aliases=["www.site.example"])
    host.http({"/": "hello", "/gone": Response("no more", 404)})
    host.https({"/": "hello"})
    internet.dns("moved.example", "A", SITE)
    internet.dns("alias.example", "CNAME", "moved.example")
    return internet


@asynccontextmanager
async def guest_of(
    internet: Internet,
    policy: NetworkPolicy | PolicySettings | None = None,
    *,
    loopback: bool = False,
) -> AsyncIterator[FakeGuest]:
    """A guest that has its lease."""
    network = VirtualNetwork(internet, Network(host_loopback=loopback), policy)
    with trio.fail_after(600):
        async with network, network.fake_guest() as guest:
            await guest.dhcp()
            yield guest


# -- what a guest does


def connects(address: str, port: int) -> Deed:
    async def connect(guest: FakeGuest) -> None:
        with suppress(OSError):
            async with await guest.connect_tcp(address, port):
                pass

    return connect


def datagram(address: str, port: int) -> Deed:
    async def send(guest: FakeGuest) -> None:
        with guest.open_udp() as socket, suppress(OSError):
            await socket.send_to(b"x", address, port)
            await socket.receive_from(1)

    return send


def pings(address: str) -> Deed:
    async def ping(guest: FakeGuest) -> None:
        with suppress(OSError):
            await guest.ping(address, timeout=1)

    return ping


def asks(name: str, kind: str = "A") -> Deed:
    async def ask(guest: FakeGuest) -> None:
        with suppress(DnsError):
            await guest.resolve(name, kind)

    return ask


def sends(*frames: bytes) -> Deed:
    async def send(guest: FakeGuest) -> None:
        for frame in frames:
            await guest.send_frame(frame)
        await guest.ping(GATEWAY)  # by then they have arrived

    return send


def packet(
    destination: str, protocol: int = 132, payload: bytes = bytes(12), source: str = GUEST
) -> Deed:
    return sends(ethernet(ipv4(source, destination, protocol, payload), GUEST_MAC))


def ipv6(destination: str, following: int, payload: bytes, source: str = OURS) -> Deed:
    header = bytes.fromhex("60000000") + len(payload).to_bytes(2, "big") + bytes((following, 255))
    octets = header + packed(source) + packed(destination) + payload
    return sends(ethernet(octets, GUEST_MAC, bytes.fromhex("333300000001"), IPV6))


def requests(head: str, path: str = "/") -> Deed:
    async def request(guest: FakeGuest) -> None:
        async with await guest.connect_tcp(SITE, 80) as stream:
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n".encode()
            )
            async for _ in stream:
                pass

    return request


def shakes_hands(name: str | None) -> Deed:
    async def shake(guest: FakeGuest) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        async with await guest.connect_tcp(SITE, 443) as stream:
            tls = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
            await tls.do_handshake()

    return shake


LOOKS = bytes((135, 0)) + bytes(6) + packed(OTHERS)


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        # the gateway's own addresses
        (connects(GATEWAY, 8080), [f"TCP to {GATEWAY} port 8080"]),
        (connects("10.0.2.3", 80), ["TCP to 10.0.2.3 port 80"]),
        (datagram(GATEWAY, 69), [f"UDP to {GATEWAY} port 69"]),
        # what the gateway refuses whatever is there
        (connects("169.254.169.254", 80), ["TCP to 169.254.169.254 port 80"]),
        (connects("127.0.0.1", 22), ["TCP to 127.0.0.1 port 22"]),
        (datagram("240.0.0.1", 9), ["UDP to 240.0.0.1 port 9"]),
        (pings("0.0.0.1"), ["ping of 0.0.0.1"]),
        (packet(SITE), [f"protocol 132 to {SITE} (site.example)"]),
        # neighbours
        (sends(arp_frame(NEIGHBOUR)), [f"ARP request for {NEIGHBOUR}"]),
        (packet(NEIGHBOUR), [f"protocol 132 to {NEIGHBOUR}"]),
        # IPv6
        (ipv6(OTHERS, 58, LOOKS), [f"NDP request for {OTHERS} from {OURS}"]),
        (ipv6(OTHERS, 6, b"\0\0\0\x50" + bytes(16)), [f"TCP to {OTHERS} port 80 from {OURS}"]),
        # names
        (asks("nosuch.example"), ["DNS query for nosuch.example (A)"]),
        (asks("site.example", "MX"), ["DNS query for site.example (MX)"]),
        # what is asked of a host
        (requests("Host: site.example", "/nowhere"),
            [f"HTTP request for /nowhere to {SITE} (site.example) port 80"]),
        (requests("Host: other.example"), [f"HTTP to {SITE} (other.example) port 80"]),
        (shakes_hands("other.example"), [f"TLS to {SITE} (other.example) port 443"]),
    ],
)  # fmt: skip
async def test_it_is_told_and_fails_a_strict_test(
    internet: Internet, deed: Deed, told: list[str], autojump_clock: MockClock
) -> None:
    """Whatever the gateway or a host does about it."""
    async with guest_of(internet) as guest:
        await deed(guest)
    assert [str(note).removesuffix(f" from {GUEST}") for note in internet.unexpected] == told
    assert {note.guest for note in internet.unexpected} == {"guest"}
    with pytest.raises(AssertionError) as raised:
        internet.assert_nothing_unexpected()
    assert told[0] in str(raised.value)
    assert not internet.unusual


MDNS = ethernet(
    ipv4(GUEST, "224.0.0.251", 17, udp(GUEST, 5353, "224.0.0.251", 5353, b"who is there")),
    GUEST_MAC,
    bytes.fromhex("01005e0000fb"),
)
IGMP = ethernet(ipv4(GUEST, "224.0.0.22", 2, bytes(8)), GUEST_MAC, bytes.fromhex("01005e000016"))
IGMP_OF_NOBODY = ethernet(
    ipv4("0.0.0.0", "224.0.0.22", 2, bytes(8)), GUEST_MAC, bytes.fromhex("01005e000016")
)


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        (sends(MDNS), ["UDP to 224.0.0.251 port 5353"]),
        (sends(IGMP), ["protocol 2 to 224.0.0.22"]),
        (sends(IGMP_OF_NOBODY), ["protocol 2 to 224.0.0.22 from 0.0.0.0"]),
        (datagram("255.255.255.255", 9), ["UDP to 255.255.255.255 port 9"]),
        (datagram("10.0.2.255", 137), ["UDP to 10.0.2.255 port 137"]),
        (ipv6("ff02::2", 58, bytes((133, 0)) + bytes(6)), [f"ICMPV6 to ff02::2 from {OURS}"]),
        (ipv6("ff02::16", 0, bytes(8), "::"), ["protocol 0 to ff02::16 from ::"]),
        (
            ipv6("ff02::1:ff00:1", 58, LOOKS, "::"),
            ["ICMPV6 to ff02::1:ff00:1 from ::"],
        ),
    ],
)
async def test_what_systems_do_by_themselves_is_unusual_and_fails_nobody(
    internet: Internet, deed: Deed, told: list[str], autojump_clock: MockClock
) -> None:
    """A router solicited, a name announced, a group joined: any Linux does it as it boots."""
    async with guest_of(internet) as guest:
        await deed(guest)
    internet.assert_nothing_unexpected()
    assert [str(note).removesuffix(f" from {GUEST}") for note in internet.unusual] == told


@pytest.mark.parametrize(
    "deed",
    [
        sends(arp_frame(GATEWAY), arp_frame("10.0.2.3"), arp_frame(GUEST)),
        sends(
            ethernet(
                bytes.fromhex("0001080006040001") + GUEST_MAC + bytes(10) + packed(NEIGHBOUR),
                GUEST_MAC,
                b"\xff" * 6,
                0x0806,
            )
        ),
        pings(GATEWAY),
        asks("host.internal"),
        asks("site.example", "AAAA"),
        asks("site.example", "HTTPS"),
        requests("Host: site.example"),
        requests("Host: WWW.Site.Example.:80"),
        requests("Host: moved.example"),
        requests("Host: alias.example"),
        requests(f"Host: {SITE}"),
        requests("Host: site.example", "/gone"),
        shakes_hands("www.site.example"),
        shakes_hands("alias.example"),
        shakes_hands(None),
    ],
)
async def test_what_is_defined_is_no_surprise(
    internet: Internet, deed: Deed, autojump_clock: MockClock
) -> None:
    """Nor is what belongs to a network: DHCP, ARP for the gateway and for oneself, a probe for an
    address, a question for the address of the other family."""
    async with guest_of(internet) as guest:
        await guest.release()
        await guest.dhcp()
        await deed(guest)
    assert not internet.unexpected
    assert not internet.unusual


async def test_what_a_policy_denies_is_unexpected_only_if_it_is_not_defined(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """A test of a policy defines what is denied, too: its refusal is a verdict, and no surprise."""
    async with guest_of(internet, NetworkPolicy.deny_all()) as guest:
        for deed in (connects(SITE, 80), pings(SITE), asks("site.example")):
            await deed(guest)
        internet.assert_nothing_unexpected()
        for deed in (connects(SITE, 81), datagram(SITE, 9), asks("nosuch.example")):
            await deed(guest)
    assert [(note.protocol, note.host, note.port) for note in internet.unexpected] == [
        ("tcp", "site.example", 81),
        ("udp", "site.example", 9),
        ("dns", "nosuch.example", None),
    ]


async def test_what_is_only_learned_is_told_once(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """It goes on into the world, and is noted there."""
    policy = PolicySettings(policy=NetworkPolicy.deny_all(), mode="learn")
    async with guest_of(internet, policy) as guest:
        await connects(SERVER, 80)(guest)
    assert [note.host for note in internet.unexpected] == [SERVER]


async def test_what_the_gateway_stands_for_is_defined_there(autojump_clock: MockClock) -> None:
    """The host's loopback, as its remedy says; then it is called by all names of the gateway."""
    internet = Internet()
    async with guest_of(internet) as guest:
        await connects(GATEWAY, 8080)(guest)
    with pytest.raises(AssertionError) as raised:
        internet.assert_nothing_unexpected()
    assert 'host_loopback=True), and internet.host(None, "127.0.0.1").tcp(8080' in str(raised.value)
    internet.unexpected.clear()

    internet.host(None, "127.0.0.1").http("hello", port=8080)
    request = b"GET / HTTP/1.0\r\nHost: host.internal:8080\r\n\r\n"
    async with guest_of(internet, loopback=True) as guest:
        stream = await guest.connect_tcp("host.internal", 8080)
        await stream.send_all(request)
        assert b"hello" in b"".join([octets async for octets in stream])
        await stream.aclose()
    internet.assert_nothing_unexpected()


async def test_guests_may_look_for_each_other(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Also for one that has its lease, and has said nothing yet."""
    network = VirtualNetwork(internet, guests=("one", "two"))
    async with network, network.fake_guest("one") as one, network.fake_guest("two") as two:
        await one.dhcp()
        assert (await two.dhcp()).address
        assert two.address
        assert await one.arp(two.address) == two.mac
        internet.assert_nothing_unexpected()
        with pytest.raises(TimeoutError):
            await one.arp(NEIGHBOUR)
    assert {(note.guest, note.destination) for note in internet.unexpected} == {("one", NEIGHBOUR)}


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        (
            requests("Host: site.example", "/new"),
            'internet["site.example"].http({"/new": ...}, 80)',
        ),
        (requests("Host: other.example"), 'aliases=["other.example"]'),
        (sends(arp_frame(NEIGHBOUR)), "no host of an internet can be there"),
        (packet(SITE), "no host of an internet can be there"),
        (connects("127.0.0.1", 22), "no host of an internet can be there"),
        (connects("10.0.2.3", 80), "no host of an internet can be there"),
        (
            connects("169.254.169.254", 80),
            'internet.host(None, "169.254.169.254").tcp(80, handler)',
        ),
    ],
)
async def test_the_message_says_how_it_is_defined(
    internet: Internet, deed: Deed, says: str, autojump_clock: MockClock
) -> None:
    """Or that it cannot be."""
    async with guest_of(internet) as guest:
        await deed(guest)
    with pytest.raises(AssertionError) as raised:
        internet.assert_nothing_unexpected()
    assert says in str(raised.value)


async def test_the_event_log_tells_of_what_is_unusual_once(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """With how often it was: systems repeat it."""
    async with VirtualNetwork(internet) as network, network.fake_guest() as guest:
        await guest.dhcp()
        await sends(MDNS, MDNS, MDNS)(guest)
        told = network.event_log()
        assert "unusual: UDP to 224.0.0.251 port 5353 from 10.0.2.15, 3 times\n" in told
        assert told.count("224.0.0.251") == 1
        network.clear()
        assert not internet.unusual
