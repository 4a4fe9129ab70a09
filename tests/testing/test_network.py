"""A network of a test: what its guests do is carried, recorded, and can be taken away from them."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat import NetworkPolicy
from qemu_usernat.config.network import Network
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing.fake_guest import FakeGuest
from qemu_usernat.testing.filters import dns, guest, tcp
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.network import VirtualNetwork
from qemu_usernat.testing.records import Outcome

SITE = "203.0.113.10"
HELLO = b"GET / HTTP/1.0\r\nHost: site.example\r\n\r\n"


@pytest.fixture
def internet() -> Internet:
    """One host, which says hello."""
    internet = Internet()
    internet.host("site.example", SITE).http("hello")
    return internet


@asynccontextmanager
async def guest_on(network: VirtualNetwork, name: str = "") -> AsyncIterator[FakeGuest]:
    """A guest that has its lease."""
    with trio.fail_after(60):
        async with network.fake_guest(name) as guest:
            await guest.dhcp()
            yield guest


async def page(guest: FakeGuest, where: str = "site.example") -> bytes:
    """What a browser in the guest would show."""
    async with await guest.connect_tcp(where, 80) as stream:
        await stream.send_all(HELLO)
        heard = b""
        async for octets in stream:
            heard += octets
    return heard.partition(b"\r\n\r\n")[2]


async def test_a_guest_s_page_leaves_its_traces(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """The name that was asked for, the verdict, the connection with its octets, the frames."""
    async with VirtualNetwork(internet) as network, guest_on(network) as guest:
        assert await page(guest) == b"hello"
        (query,) = network.dns_queries
        assert (query.name, query.type, query.answers) == ("site.example", "A", (SITE,))
        (verdict,) = network.verdicts
        assert verdict.allowed
        assert verdict.host == "site.example"
        assert (verdict.name, verdict.address, verdict.port) == ("site.example", SITE, 80)
        await trio.testing.wait_all_tasks_blocked()
        (flow,) = network.flows
        assert (flow.protocol, flow.name, flow.outcome) == ("tcp", "site.example", Outcome.ENDED)
        assert flow.sent == len(HELLO)
        assert flow.received > len(b"hello")
        assert flow.guest == "guest"
        assert flow.source[0] == guest.address == "10.0.2.15"
        network.capture.assert_some(tcp.port == 80)
        network.capture.assert_some(dns)
        told = network.event_log()
        for said in ("guest: connected", "site.example A: NOERROR", "10.0.2.15", "counters:"):
            assert said in told
    internet.assert_nothing_unexpected()


async def test_what_nobody_defined_is_refused_and_recorded(autojump_clock: MockClock) -> None:
    """An empty world, where the guest finds nothing and hears so at once."""
    async with VirtualNetwork() as network, guest_on(network) as guest:
        with pytest.raises(ConnectionRefusedError):
            await guest.connect_tcp("198.51.100.7", 443)
        assert [flow.outcome for flow in network.flows.where(port=443)] == [Outcome.REFUSED]
        assert [note.host for note in network.internet.unexpected] == ["198.51.100.7"]


async def test_what_the_gateway_refuses_is_a_verdict(autojump_clock: MockClock) -> None:
    """The host's loopback by its own address: nobody outside hears of it."""
    async with VirtualNetwork() as network, guest_on(network) as guest:
        with pytest.raises(OSError, match="prohibited"):
            await guest.connect_tcp("127.0.0.1", 22)
        (verdict,) = network.verdicts.where(allowed=False)
        assert (verdict.protocol, verdict.address, verdict.port) == ("tcp", "127.0.0.1", 22)
        assert verdict.why == "martian"
        assert not network.flows
        (note,) = network.internet.unexpected
        assert (note.protocol, note.host, note.port) == ("tcp", "127.0.0.1", 22)


async def test_pings_are_flows_too(autojump_clock: MockClock) -> None:
    """One that is answered, and one of a host that is not there."""
    internet = Internet()
    internet.host("site.example", SITE)
    async with VirtualNetwork(internet) as network, guest_on(network) as guest:
        await guest.ping(SITE)
        with pytest.raises(OSError, match="prohibited"):
            await guest.ping("198.51.100.7")
        outcomes = {flow.host: flow.outcome for flow in network.flows.where(protocol="icmp")}
        assert outcomes == {SITE: Outcome.OPEN, "198.51.100.7": Outcome.REFUSED}


async def test_a_server_that_is_stopped_and_started_again(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Its guest is offline for that time; its wire stays, its connections do not."""
    async with VirtualNetwork(internet) as network, guest_on(network) as guest:
        old = await guest.connect_tcp("site.example", 80)
        await network.stop()
        with pytest.raises(TimeoutError):
            await guest.ping("10.0.2.2")
        await network.start()
        await network.wire().wait_connected()
        await guest.ping("10.0.2.2")
        await old.send_all(HELLO)
        with pytest.raises(trio.BrokenResourceError):
            await old.receive_some()
        assert await page(guest) == b"hello"
        assert network.counters["tcp.unknown_flow"] == 1


async def test_another_internet_replaces_the_first(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Nothing of the old one can be reached any more."""
    other = Internet()
    other.host("site.example", "203.0.113.11").http("another")
    async with VirtualNetwork(internet) as network, guest_on(network) as guest:
        assert await page(guest) == b"hello"
        await network.change_internet(other)
        await network.wire().wait_connected()
        assert await page(guest) == b"another"
        with pytest.raises(ConnectionRefusedError):
            await guest.connect_tcp(SITE, 80)
        network.clear()
        assert not network.flows
        assert not network.verdicts
        assert not network.capture.frames()
        assert not network.dns_queries
        assert not network.counters


async def test_guests_have_wires_of_their_own(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """Two of them, by name; what one does is told apart from what the other does."""
    async with (
        VirtualNetwork(internet, Network(mtu=1500), guests=("one", "two")) as network,
        guest_on(network, "one") as one,
        guest_on(network, "two") as two,
    ):
        assert one.mac != two.mac
        assert await page(one) == await page(two) == b"hello"
        assert {(flow.guest, flow.source[0]) for flow in network.flows} == {
            ("one", one.address),
            ("two", two.address),
        }
        network.disconnect("one")
        await two.ping("10.0.2.2")
        await trio.testing.wait_all_tasks_blocked()
        assert (one.connected, two.connected) == (False, True)
        with pytest.raises(UserError, match="'three'; allowed: one, two"):
            network.wire("three")


async def test_what_one_guest_did_is_asked_by_its_name(
    internet: Internet, autojump_clock: MockClock
) -> None:
    """In all records; whoever is no guest here cannot be asked for, in filters neither."""
    internet["site.example"].udp(7, lambda payload, source: payload)
    internet["site.example"].name_server()
    async with (
        VirtualNetwork(internet, guests=("one", "two")) as network,
        guest_on(network, "one") as one,
        guest_on(network, "two") as two,
    ):
        assert await page(two) == b"hello"
        await two.ping(SITE)
        with two.open_udp() as socket:
            await socket.send_to(b"x", SITE, 7)
            await socket.receive_from()
        with pytest.raises(ConnectionRefusedError):
            await two.connect_tcp("198.51.100.7", 443)
        await one.ping("10.0.2.2")
        for records in (network.flows, network.verdicts, network.dns_queries):
            assert records.where(guest="two")
            assert not records.where(guest="one")
            with pytest.raises(ValueError, match="guest is 'three'; allowed: 'one', 'two'"):
                records.where(guest="three")
        assert len(network.flows.where(guest="two")) == 4
        host = internet["site.example"]
        assert {record.guest for record in host.connections} == {"two"}
        assert {(request.guest, request.source[0]) for request in host.requests} == {
            ("two", two.address)
        }
        assert [note.guest for note in internet.unexpected] == ["two"]
        network.capture.assert_none((guest == "one") & tcp)
        for ask in (
            lambda: network.capture.assert_none(tcp & ~(guest == "One")),
            lambda: network.capture.frames(guest.one_of("one", "One")),
            lambda: network.faults.drop((guest != "One") | tcp),
        ):
            with pytest.raises(ValueError, match="guest is 'One'; allowed: 'one', 'two'"):
                ask()


async def test_what_is_no_policy_is_told_what_is_one(autojump_clock: MockClock) -> None:
    """Where the network is made, and where another one is set."""
    nonsense: Any = {"guest": {"two": NetworkPolicy.deny_all()}}
    words = r"policy is {.*allowed: None, a NetworkPolicy .*PolicySettings\(policy=…, guests="
    with pytest.raises(TypeError, match=words):
        VirtualNetwork(policy=nonsense)
    async with VirtualNetwork() as network:
        with pytest.raises(TypeError, match=words):
            network.set_policy(nonsense)


async def test_faults_befall_the_frames(internet: Internet, autojump_clock: MockClock) -> None:
    """A lost SYN is sent again, and the page comes all the same."""
    async with VirtualNetwork(internet, seed=3) as network, guest_on(network) as guest:
        with network.faults.drop(tcp.port == 80, count=1) as rule:
            assert await page(guest) == b"hello"
        assert rule.hits == 1


def broken_site() -> Internet:
    """A host whose handler is wrong."""

    async def broken(stream: trio.abc.Stream) -> None:
        raise RuntimeError("a mistake of the test's")

    internet = Internet()
    internet.host("site.example", SITE).tcp(80, broken)
    return internet


async def connect_and(error: Exception | None, internet: Internet | None = None) -> None:
    """A test that connects, and then fails, or does not."""
    async with VirtualNetwork(internet) as network, guest_on(network) as guest:
        with trio.move_on_after(1):
            await guest.connect_tcp(SITE, 80)
            await trio.sleep_forever()
        if error is not None:
            raise error


async def test_a_handler_that_raises_fails_the_network(autojump_clock: MockClock) -> None:
    """The test hears of it, and not of a page that did not come alone."""
    with pytest.raises(AssertionError, match="a mistake of the test's"):
        await connect_and(None, broken_site())


async def test_an_error_of_the_test_is_raised_as_it_is(autojump_clock: MockClock) -> None:
    """With a note of what else has failed."""
    with pytest.raises(KeyError, match="mine") as raised:
        await connect_and(KeyError("mine"), broken_site())
    assert any("a mistake of the test's" in note for note in raised.value.__notes__)


async def test_a_bug_in_the_server_fails_the_network(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """It ends only the flow that it shows in, so a test might pass over it."""

    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("qemu_usernat.nat.tcp.flow.TcpFlow.on_host_failed", bug)
    with pytest.raises(AssertionError, match="a bug of ours"):
        await connect_and(None)


def test_qemu_s_arguments_put_it_on_the_wire(tmp_path: Path) -> None:
    """The path of the socket, and a MAC address of its own."""

    async def main() -> None:
        async with VirtualNetwork(guests=("one", "two"), folder=tmp_path) as network:
            netdev, stream, device, card = network.netdev_arguments("two")
            assert (netdev, device) == ("-netdev", "-device")
            assert f"addr.path={network.socket_path('two')}" in stream
            assert card == "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:57,romfile="
            assert "romfile" not in network.netdev_arguments("two", boot=True)[-1]

    trio.run(main)


async def test_the_accelerator_of_its_machines_is_the_network_s(tmp_path: Path) -> None:
    """Unless one of them has another: what is wrong with it is told when that machine starts."""
    async with VirtualNetwork(folder=tmp_path, accelerator="warp") as network:
        for machine, said in (
            (network.machine(kernel=tmp_path), "warp"),
            (network.machine(kernel=tmp_path, accelerator="sail"), "sail"),
        ):
            with pytest.raises(UserError, match=f"accelerator: '{said}'; allowed: kvm, tcg"):
                async with machine:
                    pass


@pytest.mark.parametrize("guests", [(), ("one", "one"), ("../one",)])
def test_names_of_guests_are_checked(guests: tuple[str, ...]) -> None:
    """They become the names of files."""
    with pytest.raises(ValueError, match="allowed: one or more names that differ"):
        VirtualNetwork(guests=guests)


async def test_without_a_folder_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Neither by one that ran, nor by one that never did; logs have a place meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    VirtualNetwork()
    async with VirtualNetwork() as network, guest_on(network):
        (network.folder / "a log").write_text("words")
        assert network.folder.parent == tmp_path
    assert not list(await trio.Path(tmp_path).iterdir())


async def test_a_folder_that_was_asked_for_is_kept(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """With the logs of its machines."""
    async with VirtualNetwork(folder=tmp_path / "logs") as network:
        (network.folder / "a log").write_text("words")
    assert (tmp_path / "logs" / "a log").read_text() == "words"


async def test_publishing_says_what_it_takes() -> None:
    """In the words of the call, not in those of `--publish`."""
    async with VirtualNetwork() as network:
        with pytest.raises(UserError, match=r'^protocol is "sctp"; allowed: "tcp" or "udp"$'):
            network.publish(7000, protocol="sctp")
        with pytest.raises(TypeError, match=r"^host is '127\.0\.0\.1'; allowed: an address and a"):
            network.publish(7000, host="127.0.0.1")  # type: ignore[arg-type]
