"""Two servers that are one LAN, with real guests.

What every run asks for needs one machine, at one of the servers; the other has a guest without
QEMU. With the second machine, which boots where it is asked for, both are real.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import md5
from ipaddress import IPv4Address

import pytest
import trio

from qemu_usernat.config.network import Network as Settings
from qemu_usernat.testing import Internet
from qemu_usernat.testing.background import BackgroundLoop
from qemu_usernat.testing.blocking import Network
from tests.e2e.test_cluster import SIZE, Cluster, echoed, pings, says, transfers

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]  # the first builds the image

GUESTS = ("one", "two", "bob")
"""All have names at both servers, so that all MAC addresses differ."""
PAGE = "curl -sS -m 20 http://host.example/"


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Cluster, Cluster]]:
    """Two networks, each with a world of its own, joined by a stream; a machine at the first."""
    with ExitStack() as ends:
        loop = ends.enter_context(BackgroundLoop())
        clusters = []
        for name, first, last in (("one", 15, 99), ("two", 100, 199)):
            internet = Internet()
            internet.host("host.example").http(f"from {name}")
            settings = Settings(
                first_lease=IPv4Address(f"10.0.2.{first}"), last_lease=IPv4Address(f"10.0.2.{last}")
            )
            network = Network(internet, settings, guests=GUESTS, loop=loop)
            clusters.append(Cluster(ends.enter_context(network), ends))
        one, two = clusters
        for cluster, end in zip(clusters, socket.socketpair(), strict=True):
            end.setblocking(False)
            joining = cluster.network.behind._running_server().joining
            loop.call_sync(joining.on_connection, end, "join")
        one.boot("one")
        yield one, two


@pytest.mark.feature("joins")
def test_a_machine_meets_a_guest_of_another_server(sides: tuple[Cluster, Cluster]) -> None:
    """They ping each other by name, the machine sends a file, by name, and echoes what it is sent;
    and each sees the world of its own server, at the same gateway."""
    one, two = sides
    network, console = two.network.behind, one.consoles["one"]
    says(console, "socat TCP4-LISTEN:7001,reuseaddr,fork EXEC:cat >/dev/null 2>&1 &")
    says(console, "until grep -q ':1B59 .* 0A ' /proc/net/tcp; do sleep 0.05; done")
    says(console, f"head -c {SIZE} /dev/urandom >/tmp/sent")

    async def speak() -> None:
        async with network.fake_guest("bob") as guest:
            assert (await guest.dhcp(host_name="bob")).address == "10.0.2.100"
            await guest.ping("one.internal")
            said = await console.behind.exec("ping -c 1 -W 5 bob.internal")
            assert " 0% packet loss" in said.text, said.text
            await echoed(guest, "one")
            heard = md5()
            with guest.listen_tcp(7000) as listener:
                async with trio.open_nursery() as nursery:
                    send = "socat -u OPEN:/tmp/sent TCP:bob.internal:7000,connect-timeout=5"
                    nursery.start_soon(console.behind.exec, send)
                    async with await listener.accept() as stream:
                        async for piece in stream:
                            heard.update(piece)
            assert (await console.behind.exec("md5sum /tmp/sent")).text.split()[0] == (
                heard.hexdigest()
            )
            await guest.connect_tcp("host.example", 80)

    two.network.loop.call(speak)
    assert says(console, PAGE) == "from one"
    for side in sides:
        assert len(side.network.flows.where(host="host.example")) == 1


@pytest.mark.feature("joins")
def test_two_machines_of_two_servers_meet(sides: tuple[Cluster, Cluster]) -> None:
    """They ping each other, by name and by address, and transfer files both ways; and each fetches
    a page of the world of its own server."""
    one, two = sides
    two.boot("two")
    both = Cluster(
        one.network, one.ends, one.consoles | two.consoles, one.addresses | two.addresses
    )
    for here, there in (("one", "two"), ("two", "one")):
        assert pings(both, here, f"{there}.internal")
        assert pings(both, here, both.addresses[there])
        assert transfers(both, here, there, f"{there}.internal")
        assert says(both.consoles[here], PAGE) == f"from {here}"
