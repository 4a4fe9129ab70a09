"""Several guests on one LAN: real ones under QEMU, and ones without beside them.

The machines are shared by all tests, as booting takes longest. Each test names in its marker
`feature` what `test_sabotage` switches off, and fails then.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import trio
from attrs import field, frozen

from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.testing import FakeGuest, Internet
from qemu_usernat.testing.blocking import Console, Machine, Network
from qemu_usernat.testing.guest_image import GuestImage

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]  # the first builds the image

MACHINES = ("one", "two", "three")
OTHERS = tuple(f"other-{number}" for number in range(8))
SIZE = 4 << 20  # octets


@frozen
class Cluster:
    """Machines on one network, with names."""

    network: Network
    ends: ExitStack
    consoles: dict[str, Console] = field(factory=dict)
    addresses: dict[str, str] = field(factory=dict)

    def boot(self, *names: str) -> None:
        """These too, side by side."""
        image = GuestImage.build()

        def begin(name: str) -> Machine:
            return self.ends.enter_context(self.network.machine(image, guest=name))

        with ThreadPoolExecutor(len(names)) as pool:
            machines = dict(zip(names, pool.map(begin, names), strict=True))
        for name, machine in machines.items():
            self.consoles[name] = machine.console
            lease = f"udhcpc -i eth0 -s /etc/dhcp.sh -x hostname:{name} -n -q -t 3 -T 2"
            says(machine.console, lease)
            told = says(machine.console, "hostname -i 2>/dev/null; ip -4 -o addr show eth0")
            self.addresses[name] = told.partition("inet ")[2].partition("/")[0]
        assert len(set(self.addresses.values())) == len(self.addresses)


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """Two machines: the third, which boots where it is asked for, is a third of all the time."""
    with ExitStack() as ends:
        network = ends.enter_context(Network(Internet(), guests=MACHINES + OTHERS))
        cluster = Cluster(network, ends)
        cluster.boot("one", "two")
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """Without a policy, and with nothing noted."""
    running.network.loop.call_sync(running.network.behind.set_policy, None)
    return running


@pytest.fixture
def cluster_of_three(cluster: Cluster) -> Cluster:
    """And the third machine."""
    if "three" not in cluster.consoles:
        cluster.boot("three")
    return cluster


def says(console: Console, command: str) -> str:
    """The output of a command that must succeed."""
    result = console.exec(command)
    assert result.status == 0, f"{command}: status {result.status}: {result.text}"
    return result.text


def pings(cluster: Cluster, guest: str, whom: str) -> bool:
    """Whether it is answered."""
    said = cluster.consoles[guest].exec(f"ping -c 1 -W 5 {whom}").text
    return " 0% packet loss" in said


def hears_broadcast(cluster: Cluster, guest: str, other: str) -> bool:
    """Whether a question to everybody is answered by `other`."""
    look = f"arping -c 1 -w 3 -I eth0 {cluster.addresses[other]}"
    return "Received 1 " in cluster.consoles[guest].exec(f"ip neigh flush all; {look}").text


def transfers(cluster: Cluster, sender: str, receiver: str, name: str) -> bool:
    """Whether a file arrives as it was sent."""
    there, here = cluster.consoles[receiver], cluster.consoles[sender]
    receive = "socat -u TCP4-LISTEN:7000,reuseaddr OPEN:/tmp/got,creat,trunc; touch /tmp/done"
    says(there, f"rm -f /tmp/got /tmp/done; ({receive}) >/dev/null 2>&1 &")
    says(there, "until grep -q ':1B58 .* 0A ' /proc/net/tcp; do sleep 0.05; done")
    says(here, f"head -c {SIZE} /dev/urandom >/tmp/sent")
    sent = here.exec(f"socat -u -T 10 OPEN:/tmp/sent TCP:{name}:7000,connect-timeout=5")
    if sent.status:
        there.exec("killall socat")
        return False
    says(there, "until [ -e /tmp/done ]; do sleep 0.05; done")
    return _sum(here, "/tmp/sent") == _sum(there, "/tmp/got")


def _sum(console: Console, path: str) -> str:
    return says(console, f"md5sum {path}").split()[0]


@pytest.mark.feature("lan")
def test_cluster_two_vms_ping(cluster: Cluster) -> None:
    """By address, both ways; and what is broadcast reaches the other."""
    assert pings(cluster, "one", cluster.addresses["two"])
    assert pings(cluster, "two", cluster.addresses["one"])
    assert hears_broadcast(cluster, "one", "two")


@pytest.mark.feature("names of guests")
def test_cluster_two_vms_ping_by_name(cluster: Cluster) -> None:
    """By what each has told with DHCP, with the domain and without."""
    assert pings(cluster, "one", "two.internal")
    assert pings(cluster, "two", "one")


@pytest.mark.feature("lan")
def test_cluster_tcp_between_vms(cluster: Cluster) -> None:
    """Four MiB, as they were sent, by name."""
    assert transfers(cluster, "two", "one", "one.internal")


@pytest.mark.feature("lan")
def test_cluster_three_vms(cluster_of_three: Cluster) -> None:
    """Each reaches both others by name, and a broadcast reaches both."""
    for guest in MACHINES:
        for other in MACHINES:
            assert guest == other or pings(cluster_of_three, guest, f"{other}.internal")
    for other in ("two", "three"):
        assert hears_broadcast(cluster_of_three, "one", other)


@pytest.mark.feature("lan policy")
def test_cluster_under_a_policy(cluster: Cluster) -> None:
    """What the rules do not allow is refused at once, in the guest's own words; what they allow
    arrives, and the other one may not call back."""
    two = cluster.addresses["two"]
    policy = NetworkPolicy.deny_all().rule(f"allow {two} on tcp/7000, icmp")
    cluster.network.loop.call_sync(cluster.network.behind.set_policy, policy)
    assert transfers(cluster, "one", "two", two)
    assert pings(cluster, "one", two)
    assert not pings(cluster, "two", cluster.addresses["one"])
    refused = cluster.consoles["one"].exec(f"curl -sS -m 5 -w '%{{time_total}}' http://{two}:7001/")
    assert refused.status == 7, refused.text
    assert float(refused.text.split()[-1]) < 1
    filtered = cluster.consoles["two"].exec(f"ping -c 1 -W 5 {cluster.addresses['one']}").text
    assert "Packet filtered" in filtered
    assert cluster.network.behind.counters["policy.denied"] > 0


@pytest.mark.feature("lan")
def test_two_machines_and_eight_without_qemu(cluster: Cluster) -> None:
    """Each of the eight pings both machines by name, and has its octets echoed by one of them, all
    at the same time; the machines ping all of the eight."""
    echo = "socat TCP4-LISTEN:7001,reuseaddr,fork EXEC:cat >/dev/null 2>&1 &"
    for name in ("one", "two"):
        says(cluster.consoles[name], echo)
        says(
            cluster.consoles[name],
            "until grep -q ':1B59 .* 0A ' /proc/net/tcp; do sleep 0.05; done",
        )
    network = cluster.network.behind
    addresses: list[str] = []

    async def speak(name: str, index: int, ready: trio.Event) -> None:
        async with network.fake_guest(name) as guest:
            lease = await guest.dhcp()
            addresses.append(lease.address)
            for machine in ("one", "two"):
                await guest.ping((await guest.resolve(f"{machine}.internal"))[0])
            await echoed(guest, ("one", "two")[index % 2])
            if len(addresses) == len(OTHERS):
                ready.set()
            with trio.fail_after(60):
                await done.wait()

    async def all_speak() -> None:
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            for index, name in enumerate(OTHERS):
                nursery.start_soon(speak, name, index, ready)
            await ready.wait()
            command = "; ".join(f"ping -c 1 -W 5 {address}" for address in addresses)
            for name in ("one", "two"):
                said = await network_consoles[name].exec(command)
                assert said.text.count(" 0% packet loss") == len(OTHERS), said.text
            done.set()

    done = trio.Event()
    network_consoles = {name: console.behind for name, console in cluster.consoles.items()}
    cluster.network.loop.call(all_speak)


async def echoed(guest: FakeGuest, machine: str) -> None:
    """A hundred KiB there and back."""
    (address,) = await guest.resolve(f"{machine}.internal")
    sent, heard = bytes(range(256)) * 400, b""
    async with await guest.connect_tcp(address, 7001) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, sent)
        while len(heard) < len(sent):
            heard += await stream.receive_some()
    assert heard == sent
