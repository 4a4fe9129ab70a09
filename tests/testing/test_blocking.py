"""The harness from plain functions, and from a trio loop other than its own."""

import unittest
from collections.abc import Iterator
from typing import cast

import pytest
import trio

from qemu_usernat.testing.background import BackgroundLoop
from qemu_usernat.testing.blocking import Network
from qemu_usernat.testing.bridge import bridged
from qemu_usernat.testing.filters import arp, tcp, to_guest
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


def test_a_plain_function_drives_a_guest(internet: Internet) -> None:
    """Lease, name, ping, page: each call returns when it is done."""
    with Network(internet) as network, network.fake_guest() as guest:
        assert guest.dhcp().address == guest.address == "10.0.2.15"
        assert guest.resolve("site.example") == [SITE]
        assert guest.ping(SITE) < 5
        assert guest.arp("10.0.2.2") == "52:55:0a:00:02:02"
        with guest.connect_tcp("site.example", 80) as stream:
            stream.send_all(HELLO)
            assert stream.receive_some(4) == b"HTTP"
            assert b"".join(stream).endswith(b"hello")
        assert network.flows.where(protocol="tcp")[0].name == "site.example"
        network.capture.assert_some(tcp.port == 80)
        assert network.capture.wait_for(arp).arp is not None
        network.clear()
        assert not network.flows
        assert not network.capture.frames()


def test_a_server_stops_and_starts_by_plain_calls(internet: Internet) -> None:
    """The wire comes back to it."""
    with Network(internet) as network, network.fake_guest() as guest:
        guest.dhcp()
        guest.ping("10.0.2.2")
        network.stop()
        with pytest.raises(TimeoutError):
            guest.ping("10.0.2.2", timeout=0.05)
        network.start()
        network.wait_connected()
        guest.ping("10.0.2.2")
        network.faults.pause()
        with pytest.raises(TimeoutError):
            guest.ping("10.0.2.2", timeout=0.05)
        network.faults.resume()
        guest.ping("10.0.2.2")


def test_an_error_of_the_block_is_raised_as_it_is() -> None:
    """And everything has ended behind it."""
    with pytest.raises(KeyError, match="mine"), Network() as network, network.fake_guest():
        raise KeyError("mine")
    assert not network.loop._thread.is_alive()


def test_it_needs_no_pytest() -> None:
    """A `unittest.TestCase` with `enterContext`, run by unittest's own runner."""

    class TestGuest(unittest.TestCase):
        def setUp(self) -> None:
            self.internet = Internet()
            self.internet.host("site.example", SITE)
            self.network = self.enterContext(Network(self.internet))
            self.guest = self.enterContext(self.network.fake_guest())
            self.guest.dhcp()

        def test_reaches(self) -> None:
            self.guest.ping(SITE)

        def test_fails(self) -> None:
            with self.assertRaises(OSError):  # noqa: PT027 - no pytest here
                self.guest.ping("198.51.100.1")
            self.internet.assert_nothing_unexpected()

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(TestGuest).run(result)
    assert result.testsRun == 2
    assert [str(test).split()[0] for test, _ in result.failures] == ["test_fails"]
    assert not result.errors


@pytest.fixture
def elsewhere(internet: Internet) -> Iterator[VirtualNetwork]:
    """A network that lives in another loop than the test's."""
    with BackgroundLoop() as loop, Network(internet, loop=loop) as network:
        yield bridged(network.behind, loop)


async def test_a_trio_test_drives_what_lives_in_another_loop(elsewhere: VirtualNetwork) -> None:
    """With the same words as if it lived in its own."""
    async with elsewhere.fake_guest() as guest:
        await guest.dhcp()
        async with await guest.connect_tcp("site.example", 80) as stream:
            await stream.send_all(HELLO)
            heard = b"".join([octets async for octets in stream])
        assert heard.endswith(b"hello")
        frame = await elsewhere.capture.wait_for((tcp.port == 80) & to_guest)
        assert frame.tcp is not None
        assert len(elsewhere.capture) > 5
        with elsewhere.faults.drop(arp) as rule, pytest.raises(TimeoutError):
            await guest.arp("10.0.2.2", timeout=0.05)
        assert rule.hits == 1
    await elsewhere.restart()
    assert elsewhere.flows[0].outcome in (Outcome.ENDED, Outcome.RESET_BY_GUEST)


async def test_time_limits_of_the_test_reach_into_the_other_loop(elsewhere: VirtualNetwork) -> None:
    """A wait there ends with the test's patience."""
    with trio.move_on_after(0.05) as limit:
        await elsewhere.capture.wait_for(tcp.port == 1, timeout=cast(float, 1000))
    assert limit.cancelled_caught
