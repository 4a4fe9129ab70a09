"""Booting through a whole server: what a boot ROM does before there is a system, frame by frame."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.config import Boot, Network
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.primitives.addresses import parse_mac
from qemu_usernat.testing import FakeGuest, VirtualNetwork, from_guest, udp
from qemu_usernat.wire.ipv6 import no_router_here
from tests.tshark import complaints, fields, needs_tshark

GATEWAY = "10.0.2.2"
KERNEL = bytes(range(256)) * 200


@pytest.fixture
def boot(tmp_path: Path) -> Network:
    """A folder with a kernel, and a network that leads machines there."""
    (tmp_path / "kernel").write_bytes(KERNEL)
    return Network(boot=Boot(tmp_path, {"other": "kernel"}))


async def load(guest: FakeGuest, name: bytes = b"kernel", options: bytes = b"") -> bytes:
    """A file by TFTP, as a patient client has it; OSError with what the server says."""
    octets, done = b"", 0
    with guest.open_udp() as socket:
        question, port = b"\0\x01" + name + b"\0octet\0" + options, 69
        while True:
            await socket.send_to(question, GATEWAY, port)
            try:
                packet, _, port = await socket.receive_from(timeout=5)
            except TimeoutError:
                continue
            if packet[1] == 5:
                raise OSError(packet[4:-1].decode())
            if packet[1] == 3 and int.from_bytes(packet[2:4], "big") == done + 1:
                octets, done = octets + packet[4:], done + 1
            question = b"\0\x04" + done.to_bytes(2, "big")
            if packet[1] == 3 and len(packet) < 516:
                await socket.send_to(question, GATEWAY, port)
                return octets


async def test_a_guest_loads_its_kernel(boot: Network, autojump_clock: MockClock) -> None:
    """With a policy that denies everything, too: it is the gateway's own service, as DHCP is."""
    with trio.fail_after(600):
        async with (
            VirtualNetwork(settings=boot, policy=NetworkPolicy.deny_all()) as network,
            network.fake_guest() as guest,
        ):
            await guest.dhcp()
            assert await load(guest) == KERNEL
            with pytest.raises(OSError, match="no such file"):
                await load(guest, b"initrd")
            with pytest.raises(OSError, match="not outside of the folder"):
                await load(guest, b"../kernel")
            assert await load(guest, options=b"windowsize\x004\0") == KERNEL
            await trio.sleep(1)
            assert network.counters["tftp.sent"] == 2
            assert not network.flows


async def test_a_wire_that_loses_costs_time_and_no_octet(
    boot: Network, autojump_clock: MockClock
) -> None:
    """Blocks and acknowledgments: what is silent is said again, by the server."""
    with trio.fail_after(6000):
        async with VirtualNetwork(settings=boot) as network, network.fake_guest() as guest:
            await guest.dhcp()
            with network.faults.drop(udp & from_guest, probability=0.2):
                assert await load(guest) == KERNEL
            assert network.counters["tftp.repeated"] > 5


async def test_nothing_can_be_had_where_there_is_no_folder(autojump_clock: MockClock) -> None:
    """The port is closed, and says so at once."""
    async with VirtualNetwork() as network, network.fake_guest() as guest:
        await guest.dhcp()
        with pytest.raises(ConnectionRefusedError):
            await load(guest)


SOLICITATION = bytes.fromhex(
    "333300000002 525400123456 86dd 6000000000083aff fe80000000000000505400fffe123456"
    "ff020000000000000000000000000002 8500 7bb8 00000000"
)


async def test_who_looks_for_ipv6_hears_that_there_is_none(
    boot: Network, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """iPXE would wait for sixteen seconds; where nothing is to be booted nothing is said."""
    with trio.fail_after(60):
        async with VirtualNetwork(settings=boot) as network, network.fake_guest() as guest:
            await guest.send_frame(SOLICITATION)
            frame = await guest.receive_frame()
        assert frame.octets == no_router_here(network.settings.gateway_mac)[4:]
        async with VirtualNetwork() as network, network.fake_guest() as guest:
            await guest.send_frame(SOLICITATION)
            with pytest.raises(TimeoutError):
                await guest.receive_frame()


@needs_tshark
def test_tshark_reads_our_word_on_ipv6(tmp_path: Path) -> None:
    """A router advertisement that makes nobody a router: lifetime 0, no prefix, no DHCPv6."""
    frame = no_router_here(parse_mac("52:55:0a:00:02:02"))[4:]
    assert complaints([frame], tmp_path) == []
    names = ("icmpv6.type", "icmpv6.nd.ra.router_lifetime", "icmpv6.checksum.status", "ipv6.hlim")
    assert fields([frame], tmp_path, *names, "icmpv6.nd.ra.flag") == [
        ["134", "0", "1", "255", "0x00"]
    ]
