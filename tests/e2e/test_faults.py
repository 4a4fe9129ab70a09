"""A real guest whose wire, server or clock is taken away, and given back."""

import pytest

from qemu_usernat.testing import Internet, VirtualMachine, VirtualNetwork, VmConsole, from_guest, ip
from qemu_usernat.testing.blocking import Console, Machine, Network

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

GATEWAY = "10.0.2.2"
SITE = "203.0.113.10"
PING = f"ping -c 1 -W 2 {GATEWAY}"


def test_the_server_is_stopped_and_started(
    console: Console, usernat: Network, internet: Internet
) -> None:
    """The guest is offline meanwhile, and then reaches what it reached."""
    internet.host("site.example", SITE).http("hello")
    assert console.exec(PING).status == 0
    usernat.stop()
    assert console.exec(PING).status == 1
    usernat.start()
    usernat.wait_connected()
    assert console.exec("curl -sS -m 20 http://site.example/").output == b"hello"


def test_a_machine_that_is_paused_goes_on(vm: Machine, console: Console, usernat: Network) -> None:
    """It says nothing for as long, and has lost nothing."""
    vm.pause()
    last = usernat.capture.frames(from_guest)[-1:]
    with pytest.raises(TimeoutError):
        usernat.capture.wait_for(from_guest, 0.3, after=last[0] if last else None)
    vm.resume()
    assert console.exec(PING).status == 0


def test_qemu_is_disconnected_and_comes_back(
    vm: Machine, console: Console, usernat: Network
) -> None:
    """QEMU says so; the card is unplugged and plugged in again, and the guest is online."""
    usernat.disconnect()
    vm.wait_for_event("NETDEV_STREAM_DISCONNECTED")
    assert console.exec(PING).status != 0
    vm.detach_network()
    vm.attach_network()
    usernat.wait_connected()
    vm.wait_for_event("NETDEV_STREAM_CONNECTED")
    appears = "until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done; ip link set eth0 up"
    lease = console.exec(f"{appears}; udhcpc -i eth0 -s /etc/dhcp.sh -n -q -t 5 -T 2")
    assert lease.status == 0, lease.text
    assert console.exec(PING).status == 0


def test_frames_are_lost_by_a_rule(console: Console, usernat: Network) -> None:
    """Exactly those, and the guest notices."""
    with usernat.faults.drop(from_guest & (ip.destination == GATEWAY), count=1) as rule:
        assert "1 received" in console.exec(f"ping -c 2 -i 0.2 -W 2 {GATEWAY}").text
    assert rule.hits == 1


def test_a_snapshot_brings_back_what_was(vm: Machine, console: Console) -> None:
    """Memory and files of that moment."""
    console.exec("echo before >/tmp/state")
    vm.snapshot("before")
    console.exec("echo after >/tmp/state")
    vm.restore("before")
    assert console.exec("cat /tmp/state").output == b"before\n"


async def test_a_coroutine_drives_the_same_guest(
    vm: VirtualMachine, console: VmConsole, usernat: VirtualNetwork, internet: Internet
) -> None:
    """Each call is awaited, and nothing else differs."""
    internet.host("site.example", SITE).https("hello")
    fetched = await console.exec("curl -sS -m 20 https://site.example/")
    assert fetched.output == b"hello"
    assert (await vm.qmp("query-status"))["running"]
    assert len(usernat.flows.where(name="site.example", port=443)) == 1


def test_what_a_test_powered_off_another_finds_running(vm: Machine) -> None:
    """The next test has a guest all the same."""
    assert vm.power_off() == 0


def test_another(console: Console) -> None:
    """The one after it."""
    assert console.exec("echo here").output == b"here\n"
