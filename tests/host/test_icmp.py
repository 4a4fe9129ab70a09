"""Echo flows over the host's real ICMP sockets, as far as its loopback goes."""

import errno
import os
from collections.abc import Iterator

import pytest
from attrs import define, field

from qemu_usernat.host.addresses import HostAddresses
from qemu_usernat.host.error_queue import ErrorReader
from qemu_usernat.host.icmp import HostPings, complaint
from qemu_usernat.nat.echo import EchoFlow
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import LOOPBACK_IPV4, Address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import Buffer
from tests.host.loopback import open_descriptors
from tests.scripted_guest import GUEST, icmp, ipv4, packed

WAIT = 5.0  # seconds until a test gives up; nothing waits that long when all is well

pytestmark = pytest.mark.skipif(complaint() is not None, reason="no ICMP socket is allowed here")


@define
class Listener:
    """A guest's side of a flow: what it was told."""

    heard: list[tuple[bytes, Address, int]] = field(factory=list)

    def deliver(self, payload: Buffer, source: Address, sequence: int, ttl: int) -> None:
        self.heard.append((bytes(payload), source, sequence))

    def refuse(
        self, error: IcmpError, peer: Address, sequence: int, quoted: bytes, now: float
    ) -> None:
        raise AssertionError(error)


@pytest.fixture
def pings() -> Iterator[HostPings]:
    poller = Poller()
    errors = ErrorReader(HostAddresses(clock=lambda: 0.0))
    yield HostPings(poller, Counters(), errors)
    poller.close()


def asks(pings: HostPings, flow: EchoFlow, sequence: int) -> None:
    """The loopback is asked, and its answer read."""
    head = ipv4(GUEST, "127.0.0.1", 1, icmp(8, 0, bytes(4), b"anybody?"))
    flow.on_guest_request(LOOPBACK_IPV4, sequence, b"anybody?", head, 0.0)
    ready = pings.poller.wait(WAIT)
    assert ready, "no answer"
    pings.poller.dispatch(ready, 0.0)


def new_flow(pings: HostPings, identifier: int) -> tuple[EchoFlow, Listener]:
    listener = Listener()
    flow = EchoFlow((packed(GUEST), identifier), listener, pings.counters, 0.0)
    flow.admit(LOOPBACK_IPV4, None)  # type: ignore[arg-type]
    pings.open(flow)
    return flow, listener


def test_what_is_over_gives_its_descriptor_back(pings: HostPings) -> None:
    """With the last flow there is nobody left to read what this host hears: nothing is watched."""
    before = open_descriptors()
    flows = [new_flow(pings, 7) for _ in range(3)]
    for sequence, (flow, listener) in enumerate(flows):
        asks(pings, flow, sequence)
        assert listener.heard == [(b"anybody?", LOOPBACK_IPV4, sequence)]
    late, _ = new_flow(pings, 8)
    head = ipv4(GUEST, "127.0.0.1", 1, icmp(8, 0, bytes(4), b"anybody?"))
    late.on_guest_request(LOOPBACK_IPV4, 1, b"anybody?", head, 0.0)
    for flow in (*(flow for flow, _ in flows), late):
        flow.host.close()
    assert open_descriptors() == before
    assert not pings.poller.wait()


def test_after_the_end_there_is_another_beginning(pings: HostPings) -> None:
    """A guest that pings again gets a new socket."""
    for _ in range(2):
        flow, listener = new_flow(pings, 7)
        asks(pings, flow, 1)
        assert len(listener.heard) == 1
        flow.host.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a raw socket needs a privilege")
def test_a_system_without_datagram_icmp_sockets(
    pings: HostPings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not allowed and one that is not known are the same: the raw one serves."""

    def unknown() -> None:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr("qemu_usernat.host.icmp._datagram_socket", unknown)
    flow, listener = new_flow(pings, 7)
    asks(pings, flow, 1)
    assert len(listener.heard) == 1
    flow.host.close()
