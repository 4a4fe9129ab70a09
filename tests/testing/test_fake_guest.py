"""A guest without QEMU: what it does is done, what it is told is true, and it takes no time."""

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from qemu_usernat.server import Server
from qemu_usernat.testing.capture import Capture
from qemu_usernat.testing.fake_guest import (
    DhcpRefused,
    DnsError,
    FakeGuest,
    MalformedFrame,
    TcpStream,
)
from qemu_usernat.testing.faults import Faults
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.wire import Wire
from tests.scripted_guest import (
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    ethernet,
    icmp,
    ipv4,
    packed,
)
from tests.testing.internet.room import server_of
from tests.testing.sample_frames import ping_frame, tcp_frame, udp_frame

SITE = "203.0.113.10"
OTHER_MAC = "52:54:00:12:34:57"


def wire_to(server: Server, name: str = "guest") -> socket.socket:
    """The guest's end of a wire to `server`."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    server.on_connection(theirs, name)
    return ours


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    while octets := await stream.receive_some():
        await stream.send_all(octets)


def internet_with_a_site() -> Internet:
    internet = Internet()
    site = internet.host("example.com", SITE)
    site.tcp(7, echo)
    site.udp(7, lambda payload, source: payload[::-1])
    return internet


@asynccontextmanager
async def world(internet: Internet) -> AsyncIterator[Server]:
    async with internet.running(), server_of(internet) as server:
        yield server


@asynccontextmanager
async def guest_in(internet: Internet, **options: Any) -> AsyncIterator[FakeGuest]:
    """A guest in a network of its own, with a lease."""
    async with world(internet) as server, FakeGuest.connect(wire_to(server), **options) as guest:
        await guest.dhcp()
        yield guest


@asynccontextmanager
async def two_guests() -> AsyncIterator[tuple[FakeGuest, FakeGuest]]:
    """On one segment, 10.0.2.20 and 10.0.2.21."""
    async with (
        world(Internet()) as server,
        FakeGuest.connect(wire_to(server, "one"), address="10.0.2.20") as one,
        FakeGuest.connect(wire_to(server, "two"), mac=OTHER_MAC, address="10.0.2.21") as two,
    ):
        yield one, two


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    octets = b""
    while more := await stream.receive_some():
        octets += more
    return octets


# -- the whole way


async def test_from_nothing_to_a_conversation(autojump_clock: MockClock) -> None:
    """Address, name, connection, both ends in order: without a second of anybody's time."""
    async with world(internet_with_a_site()) as server:
        async with FakeGuest.connect(wire_to(server)) as guest:
            lease = await guest.dhcp()
            assert (lease.address, lease.gateway) == (guest.address, "10.0.2.2")
            assert await guest.resolve("example.com") == [SITE]
            stream = await guest.connect_tcp("example.com", 7)
            assert stream.peer == (SITE, 7)
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert await everything(stream) == b"hello"
            await stream.aclose()
        assert trio.current_time() == 0


async def test_it_connects_to_the_socket_of_a_server(
    tmp_path: Any, autojump_clock: MockClock
) -> None:
    """By the path, as QEMU does."""
    path = tmp_path / "guest.sock"
    async with world(Internet()) as server:
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(str(path))
            listener.listen()
            async with FakeGuest.connect(path) as guest:
                sock, _ = await listener.accept()
                server.on_connection(socket.socket(fileno=sock.detach()), "guest")
                assert (await guest.dhcp()).address


# -- DHCP


async def test_a_lease_is_renewed_and_given_back(autojump_clock: MockClock) -> None:
    """More time for the same address; once it is given back there is none."""
    async with world(Internet()) as server, FakeGuest.connect(wire_to(server)) as guest:
        lease = await guest.dhcp(host_name="box")
        assert (lease.host_name, lease.prefix_length) == ("box", 24)
        await trio.sleep(1000)
        assert await guest.renew() == lease
        await guest.release()
        assert guest.address is None
        with pytest.raises(OSError, match="no address"):
            await guest.ping("10.0.2.2")
        with pytest.raises(ValueError, match="no lease"):
            await guest.renew()
        assert server.counters == {}


async def test_a_refused_lease(autojump_clock: MockClock) -> None:
    """After a move to another server the address may be somebody else's: then it says no."""
    async with (
        world(Internet()) as before,
        world(Internet()) as after,
        FakeGuest.connect(wire_to(before)) as guest,
        FakeGuest.connect(wire_to(after), mac=OTHER_MAC) as owner,
    ):
        lease = await guest.dhcp()
        assert (await owner.dhcp()).address == lease.address
        await guest.reconnect(wire_to(after))
        with pytest.raises(DhcpRefused, match="refused the address"):
            await guest.renew()


async def test_nobody_answers(autojump_clock: MockClock) -> None:
    """It asks again, and says at last what it waited for."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with FakeGuest.connect(ours) as guest:
            with pytest.raises(TimeoutError, match="DHCPDISCOVER"):
                await guest.dhcp(timeout=15)
            assert trio.current_time() == 15
            assert theirs.recv(1 << 16).count(bytes.fromhex("63825363")) == 3, "at 0, 4 and 12 s"
            with pytest.raises(TimeoutError, match=r"who has 10\.0\.2\.2, within 3 s"):
                await guest.arp("10.0.2.2", timeout=3)


# -- neighbours and ping


async def test_neighbours_answer(autojump_clock: MockClock) -> None:
    """Two guests find each other by ARP, and ping each other and the gateway."""
    async with two_guests() as (one, two):
        assert await one.arp("10.0.2.21") == OTHER_MAC == two.mac
        assert await one.ping("10.0.2.21", b"payload") == 0
        assert await two.ping("10.0.2.2") == 0
        with pytest.raises(OSError, match=r"nobody says who has 10\.0\.2\.99") as refusal:
            await one.ping("10.0.2.99")
        assert refusal.value.errno == errno.EHOSTUNREACH


async def test_a_ping_takes_as_long_as_it_takes(autojump_clock: MockClock) -> None:
    """The time that it says is the world's; a refusal is told by its name, silence by time."""
    internet = internet_with_a_site()
    internet["example.com"].latency = 0.03
    async with guest_in(internet) as guest:
        assert await guest.ping("example.com") == pytest.approx(0.06)
        with pytest.raises(OSError, match="ICMP communication administratively prohibited"):
            await guest.ping("192.0.2.99")
        internet["example.com"].black_hole()
        with pytest.raises(TimeoutError, match=r"203.0.113.10 did not answer the ping, within 2 s"):
            await guest.ping(SITE, timeout=2)


async def test_an_answer_to_another_ping(autojump_clock: MockClock) -> None:
    """What comes back is compared with what was sent."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with FakeGuest.connect(ours, address="10.0.2.15") as guest:
            guest._stack.neighbours[packed(GATEWAY)] = GATEWAY_MAC
            answer = ipv4(GATEWAY, GUEST, 1, icmp(0, 0, b"\0\1\0\1", b"other words"))
            frame = ethernet(answer, GATEWAY_MAC, GUEST_MAC).ljust(60, b"\0")

            async def reply() -> None:
                await trio.sleep(1)
                theirs.sendall(len(frame).to_bytes(4, "big") + frame)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(reply)
                with pytest.raises(MalformedFrame, match=r"icmp\.other_payload"):
                    await guest.ping(GATEWAY, b"my words")


# -- names


async def test_names(autojump_clock: MockClock) -> None:
    """Records as text, over both transports; errors by their code; no records are none."""
    internet = internet_with_a_site()
    internet.dns("example.com", "TXT", *(f"{number:0200}" for number in range(9)))
    internet.dns_fails("broken.example")
    async with guest_in(internet) as guest:
        assert await guest.resolve("EXAMPLE.com", over="tcp") == [SITE]
        assert await guest.resolve("example.com", "AAAA") == []
        assert (await guest.query("example.com")).answer
        assert len(await guest.resolve("example.com", "TXT")) == 9, "too long for a datagram"
        for name, rcode in (("nowhere.example", "NXDOMAIN"), ("broken.example", "SERVFAIL")):
            with pytest.raises(DnsError, match=rcode) as failure:
                await guest.resolve(name)
            assert failure.value.rcode == rcode
        internet.dns_is_silent("silent.example")
        with pytest.raises(TimeoutError, match=r"10\.0\.2\.3 did not answer for silent.example A"):
            await guest.resolve("silent.example", timeout=3)


# -- TCP


async def test_connections_that_do_not_come_about(autojump_clock: MockClock) -> None:
    """Refused, unreachable, silent: each as connect(2) would tell it."""
    internet = internet_with_a_site()
    async with guest_in(internet) as guest:
        with pytest.raises(ConnectionRefusedError, match=r"203.0.113.10 port 81 refused"):
            await guest.connect_tcp("example.com", 81)
        with pytest.raises(OSError, match="ICMP communication administratively") as unreachable:
            await guest.connect_tcp("240.0.0.1", 80)
        assert unreachable.value.errno == errno.EHOSTUNREACH
        internet["example.com"].black_hole(7)
        before = trio.current_time()
        with pytest.raises(TimeoutError, match="port 7 did not answer, within 4 s"):
            await guest.connect_tcp(SITE, 7, timeout=4)
        assert trio.current_time() == before + 4


async def test_a_reset_is_told_from_an_end(autojump_clock: MockClock) -> None:
    """BrokenResourceError from ConnectionResetError, after what had come before."""

    async def rude(stream: Any) -> None:
        await stream.send_all(b"first")
        await trio.sleep(1)
        stream.reset()

    internet = internet_with_a_site()
    internet["example.com"].tcp(8, rude)
    async with guest_in(internet) as guest:
        stream = await guest.connect_tcp("example.com", 8)
        await trio.sleep(2)
        assert await stream.receive_some() == b"first"
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.receive_some()
        assert isinstance(broken.value.__cause__, ConnectionResetError)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"more")


async def test_the_other_end_hears_how_it_ended(autojump_clock: MockClock) -> None:
    """A close is an end, and a reset a reset; so is a close with something unread."""
    ends: list[object] = []

    async def note(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(b"unread")
        try:
            ends.append(await everything(stream))
        except trio.BrokenResourceError:
            ends.append("reset")
            raise

    internet = internet_with_a_site()
    internet["example.com"].tcp(8, note)
    async with guest_in(internet) as guest:
        for reads, ends_by in ((True, TcpStream.aclose), (False, TcpStream.aclose)):
            stream = await guest.connect_tcp("example.com", 8)
            await stream.send_all(b"said")
            await trio.sleep(1)
            if reads:
                await stream.receive_some()
            await ends_by(stream)
            await trio.sleep(1)
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"late")
    assert ends == [b"said", "reset"]


async def test_a_port_is_free_again(autojump_clock: MockClock) -> None:
    """When its connection is over, and not before."""
    async with guest_in(internet_with_a_site()) as guest:
        stream = await guest.connect_tcp(SITE, 7, local_port=5000)
        assert stream.local == (guest.address, 5000)
        with pytest.raises(OSError, match="TCP port 5000 is in use"):
            await guest.connect_tcp(SITE, 7, local_port=5000)
        stream.reset()
        await (await guest.connect_tcp(SITE, 7, local_port=5000)).aclose()


async def test_nothing_piles_up_without_a_link(autojump_clock: MockClock) -> None:
    """A guest that is unplugged for hours says what it says into the void."""
    async with guest_in(internet_with_a_site()) as guest:
        stream = await guest.connect_tcp(SITE, 7)
        await guest.disconnect()
        await stream.aclose()
        await guest.send_frame(udp_frame())
        await trio.sleep(100)
        assert guest._stack.link.outbox == []


SIZES = st.lists(st.sampled_from([0, 1, 1459, 65480, 300_000]), max_size=4)


@settings(max_examples=25)
@given(SIZES, st.sampled_from([576, 1500, 65520]), st.sampled_from([1, 5000, None]))
def test_octets_arrive(sizes: list[int], mtu: int, reads: int | None) -> None:
    """Whatever is written comes back, once, in order, at any MTU and at any pace of reading."""

    async def run() -> None:
        async with world(internet_with_a_site()) as server:
            options = {"address": "10.0.2.20", "gateway": "10.0.2.2", "mtu": mtu}
            async with FakeGuest.connect(wire_to(server), **options) as guest:  # type: ignore[arg-type]
                stream = await guest.connect_tcp(SITE, 7)
                sent = [bytes((number % 251,)) * size for number, size in enumerate(sizes)]

                async def write() -> None:
                    for octets in sent:
                        await stream.send_all(octets)
                    await stream.send_eof()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write)
                    received = bytearray()
                    while octets := await stream.receive_some(reads and max(reads, len(received))):
                        received += octets
                assert received == b"".join(sent)

    trio.run(run, clock=MockClock(autojump_threshold=0))


async def test_a_server_that_does_not_read_holds_the_guest_back(autojump_clock: MockClock) -> None:
    """What is written waits, within bounds, and nothing is lost when reading begins again."""
    reads = trio.Event()
    octets = bytes(range(256)) * (40 << 10)
    heard = []

    async def slow(stream: trio.abc.HalfCloseableStream) -> None:
        await reads.wait()
        heard.append(await everything(stream))

    internet = internet_with_a_site()
    internet["example.com"].tcp(8, slow)
    async with guest_in(internet) as guest, trio.open_nursery() as nursery:
        stream = await guest.connect_tcp("example.com", 8)
        nursery.start_soon(stream.send_all, octets)
        await trio.sleep(60)
        assert len(nursery.child_tasks) == 1, "it is still being written"
        with pytest.raises(trio.BusyResourceError):
            await stream.send_all(b"in between")
        reads.set()
        await trio.sleep(1)
        await stream.send_eof()
        assert await everything(stream) == b""
    assert heard == [octets]


@pytest.mark.timeout(30)
async def test_a_link_that_takes_no_more(autojump_clock: MockClock) -> None:
    """Connections wait for it, and go on as soon as it takes more: no timer has to ring."""
    internet, faults = internet_with_a_site(), Faults()
    octets = bytes(200_000)
    ours, theirs = socket.socketpair()
    async with world(internet) as server, trio.open_nursery() as nursery:
        wire = Wire("guest", lambda: wire_to(server), Capture(), faults)
        nursery.start_soon(wire.run, theirs)
        async with FakeGuest.connect(ours) as guest:
            await guest.dhcp()
            streams = [await guest.connect_tcp(SITE, 7) for _ in range(12)]
            autojump_clock.autojump_threshold = inf
            faults.pause()
            for stream in streams:
                await stream.send_all(octets)
            assert guest._tcp.waiting
            faults.resume()
            for stream in streams:
                received = 0
                while received < len(octets):
                    received += len(await stream.receive_some())
        nursery.cancel_scope.cancel()


async def test_a_stream_is_one_of_trios(autojump_clock: MockClock) -> None:
    """By trio's own checks of what a stream that ends each way alone must do."""
    async with two_guests() as (one, two):
        listener, ports = two.listen_tcp(22), []

        async def pair() -> tuple[TcpStream, TcpStream]:
            ours = await one.connect_tcp("10.0.2.21", 22)
            ports.append(ours.local[1])
            return ours, await listener.accept()

        async def clogged() -> tuple[TcpStream, TcpStream]:
            ours, theirs = await pair()
            with trio.move_on_after(1):
                while True:
                    await ours.send_all(bytes(1 << 20))
            with trio.move_on_after(1):
                while True:
                    await theirs.send_all(bytes(1 << 20))
            return ours, theirs

        await trio.testing.check_half_closeable_stream(pair, clogged)
        assert len(set(ports)) == len(ports)


async def test_two_guests_call_each_other(autojump_clock: MockClock) -> None:
    """A guest that listens is called by its neighbour, and refuses once it does not listen."""
    async with two_guests() as (one, two):
        with two.listen_tcp(22) as listener:
            ours = await one.connect_tcp("10.0.2.21", 22)
            theirs = await listener.accept()
            assert theirs.peer == ours.local
            await ours.send_all(b"ssh")
            assert await theirs.receive_some() == b"ssh"
            with pytest.raises(TimeoutError, match="nobody connected to TCP port 22"):
                await listener.accept(timeout=1)
        with pytest.raises(ConnectionRefusedError):
            await one.connect_tcp("10.0.2.21", 22)


# -- UDP


async def test_datagrams_go_and_come(autojump_clock: MockClock) -> None:
    """Of any size, with the address of who answers."""
    async with guest_in(internet_with_a_site(), mtu=1500) as guest:
        with guest.open_udp(5000) as port:
            for size in (0, 1, 1472, 9000, 60_000):
                payload = bytes(range(256)) * 256
                await port.send_to(payload[:size], SITE, 7)
                assert await port.receive_from() == (payload[:size][::-1], SITE, 7)
            with pytest.raises(TimeoutError, match="no datagram came to UDP port 5000, within 2 s"):
                await port.receive_from(timeout=2)
            with pytest.raises(OSError, match="5000 is in use"):
                guest.open_udp(5000)
        with pytest.raises(trio.ClosedResourceError):
            await port.send_to(b"", SITE, 7)


async def test_a_refused_datagram_is_told(autojump_clock: MockClock) -> None:
    """As the kernel does: at the next call."""
    async with guest_in(internet_with_a_site()) as guest:
        with guest.open_udp() as port:
            await port.send_to(b"hello", SITE, 9)
            with pytest.raises(ConnectionRefusedError, match="ICMP port unreachable"):
                await port.receive_from()
            await port.send_to(b"hello", SITE, 7)
            assert (await port.receive_from())[0] == b"olleh"


async def test_a_port_where_nobody_listens(autojump_clock: MockClock) -> None:
    """The guest refuses datagrams, as machines do."""
    async with two_guests() as (one, _):
        with one.open_udp() as port:
            await port.send_to(b"hello", "10.0.2.21", 9)
            with pytest.raises(ConnectionRefusedError):
                await port.receive_from()


# -- the wire


async def test_frames_as_they_are(autojump_clock: MockClock) -> None:
    """Any octets may be sent, and every frame that comes may be seen."""
    async with (
        world(Internet()) as server,
        FakeGuest.connect(wire_to(server), address="10.0.2.15") as guest,
    ):
        await guest.send_frame(ping_frame(b"raw"))
        frame = await guest.receive_frame()
        assert frame.icmp is not None
        assert (frame.icmp.type, frame.icmp.payload) == (0, b"raw")
        with pytest.raises(TimeoutError, match="no frame came, within 1 s"):
            await guest.receive_frame(timeout=1)


def to_the_guest(octets: bytes) -> bytes:
    """A sample frame as one from the server, padded."""
    return (GUEST_MAC + GATEWAY_MAC + octets[12:]).ljust(60, b"\0")


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (to_the_guest(tcp_frame()[:-1] + b"\1"), "tcp.bad_checksum"),
        (to_the_guest(udp_frame(bytes(40))[:-1] + b"\1"), "udp.bad_checksum"),
        (to_the_guest(ping_frame(bytes(40))[:-1] + b"\1"), "icmp.bad_checksum"),
        (to_the_guest(udp_frame())[:24] + b"\1" + to_the_guest(udp_frame())[25:], "ipv4.bad_check"),
        (to_the_guest(ping_frame())[:40], "ethernet.too_short"),
        (to_the_guest(ethernet(b"\x45" + bytes(50), GUEST_MAC)), "ipv4.bad_total_length"),
        (b"", "link.frame_empty"),
    ],
)
async def test_a_broken_frame_fails_the_test(
    octets: bytes, reason: str, autojump_clock: MockClock
) -> None:
    """A checksum or a length of the server's that is wrong is not overlooked."""
    ours, theirs = socket.socketpair()
    theirs.sendall(len(octets).to_bytes(4, "big") + octets)
    with theirs, pytest.raises(MalformedFrame, match=reason):
        async with FakeGuest.connect(ours):
            await trio.sleep_forever()


async def test_who_is_not_strict_keeps_them(autojump_clock: MockClock) -> None:
    """A test of broken frames can look at them."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with FakeGuest.connect(ours, strict=False) as guest:
            broken = to_the_guest(tcp_frame()[:-1] + b"\1")
            theirs.sendall(len(broken).to_bytes(4, "big") + broken)
            await guest.receive_frame()
            assert [error.reason for error in guest.malformed] == ["tcp.bad_checksum"]


async def test_a_server_that_goes_is_told_to_who_waits(autojump_clock: MockClock) -> None:
    """Nobody waits for what cannot come."""
    ours, theirs = socket.socketpair()
    async with FakeGuest.connect(ours, address="10.0.2.15") as guest:
        assert guest.connected

        async def go() -> None:
            await trio.sleep(1)
            theirs.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            with pytest.raises(trio.BrokenResourceError, match="the server has closed"):
                await guest.arp("10.0.2.2")
        assert not guest.connected
        assert "disconnected" in repr(guest)


async def test_connections_outlive_the_wire(autojump_clock: MockClock) -> None:
    """Unplugged and plugged in again, as a QEMU that reconnects: the conversation goes on."""
    async with world(internet_with_a_site()) as server, FakeGuest.connect(wire_to(server)) as guest:
        await guest.dhcp()
        stream = await guest.connect_tcp("example.com", 7)
        await guest.disconnect()
        await trio.sleep(1)
        with pytest.raises(trio.BrokenResourceError, match="the server has closed"):
            await stream.receive_some()
        await guest.reconnect(wire_to(server))
        await stream.send_all(b"where were we")
        assert await stream.receive_some() == b"where were we"


# -- mistakes


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda guest: guest.connect_tcp(SITE, 0), "port is from 1 to 65535, not 0"),
        (lambda guest: guest.arp("gateway"), "address is 'gateway'; allowed: an IPv4 address"),
        (lambda guest: guest.resolve("example.com", over="tls"), 'over is "udp" or "tcp"'),
        (lambda guest: guest.resolve("example.com"), "the guest has no name server"),
        (lambda guest: guest.open_udp().send_to(b"", "example.com", 7), "allowed: an IPv4"),
    ],
)
async def test_mistakes_are_told(
    call: Callable[[FakeGuest], Awaitable[Any]], words: str, autojump_clock: MockClock
) -> None:
    """By argument, and with what is allowed."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with FakeGuest.connect(ours, address="10.0.2.15/24") as guest:
            with pytest.raises(ValueError, match=words):
                await call(guest)
