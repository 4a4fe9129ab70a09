"""A machine under QEMU: it boots, obeys, keeps its logs, and always ends."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import trio

from qemu_usernat.config import UnixEndpoint
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.qemu.command_lines import netdev_arguments
from qemu_usernat.testing import hot_plug
from qemu_usernat.testing.console import ConsoleLost, VmConsole
from qemu_usernat.testing.guest_image import GuestImage
from qemu_usernat.testing.qmp import QmpError, QmpLost
from qemu_usernat.testing.virtual_machine import QEMU, VirtualMachine

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]  # the first builds the image

NO_GUEST = [QEMU, "-nodefaults", "-display", "none", "-S"]
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
PRESENT = "cat /sys/class/net/eth0/address"


async def test_a_machine_does_as_it_is_told(tmp_path: Path) -> None:
    """One guest's life: boot, pause, snapshot and back, unplug and plug in, reset, end of QEMU."""
    image = GuestImage.build(files={"/bin/own": b"#!/bin/sh\necho own\n"}, ca=CERTIFICATE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "net"))
        listener.listen()
        network = netdev_arguments((7, 2), UnixEndpoint(str(tmp_path / "net")))
        network[-1] += ",romfile="
        async with VirtualMachine(image, cpus=2, folder=tmp_path / "vm") as vm:
            console = vm.console
            assert vm.boot_time is not None
            assert vm.boot_time > 0
            assert (await console.exec("nproc; own")) == (0, b"2\nown\n")
            tail = await console.exec("tail -n 3 /etc/ssl/certs/ca-certificates.crt")
            assert tail.output == CERTIFICATE

            await pausing(vm)
            await snapshots(vm)
            await plugging(vm, network)

            await console.exec("echo '<1>a word for the log' >/dev/kmsg; touch /root/a")
            assert "a word for the log" in (vm.folder / "kernel.log").read_text()
            await vm.reset()
            assert (await console.exec("ls /root")) == (0, b"")
            await ending(vm)
    said = (vm.folder / "console.log").read_text()
    assert "$ nproc; own\n2\nown\n" in said


async def pausing(vm: VirtualMachine) -> None:
    """A paused guest answers nothing, and then what it was asked."""
    await vm.pause()
    await vm.wait_for_event("STOP")
    with pytest.raises(TimeoutError, match=r"the guest still runs after 0\.1 s"):
        await vm.wait(timeout=0.1)
    assert (await vm.qmp("query-status"))["status"] == "paused"
    await vm.console.send_line("echo aw''ake")
    with trio.move_on_after(0.5) as scope:
        await vm.console.wait_for("awake")
    assert scope.cancelled_caught
    assert vm.is_paused
    await vm.resume()
    await vm.console.wait_for("awake")
    assert not vm.is_paused
    assert "RESUME" in [event.name for event in vm.events]
    with pytest.raises(QmpError, match="query-nonsense: The command"):
        await vm.qmp("query-nonsense")
    with pytest.raises(TimeoutError, match=r"no event NEVER within 0\.1 s; events so far: .*STOP"):
        await vm.wait_for_event("NEVER", timeout=0.1)


async def snapshots(vm: VirtualMachine) -> None:
    """What happened after a snapshot has not happened, once it is restored."""
    await vm.console.exec("echo long before >/root/state")
    await vm.snapshot("one")
    await vm.console.exec("echo before >/root/state")
    await vm.snapshot("one")
    await vm.console.exec("echo after >/root/state")
    await vm.restore("one")
    assert await vm.console.exec("cat /root/state") == (0, b"before\n")
    with pytest.raises(UserError, match=r"snapshot-load: .*two"):
        await vm.restore("two")


async def plugging(vm: VirtualMachine, network: list[str]) -> None:
    """The guest sees its card come, go, and come again."""
    wait = f"until {PRESENT} 2>/dev/null; do sleep 0.1; done"
    await vm.attach_network(network)
    assert await vm.console.exec(wait, timeout=20) == (0, b"52:54:00:12:34:56\n")
    await vm.detach_network()
    assert (await vm.console.exec(PRESENT)).status == 1
    await vm.attach_network()
    assert await vm.console.exec(wait, timeout=20) == (0, b"52:54:00:12:34:56\n")
    await vm.detach_network()
    with pytest.raises(UserError, match=r"attach_network: .*no-such-card"):
        await vm.attach_network([*network[:3], "no-such-card,netdev=net0"])


async def ending(vm: VirtualMachine) -> None:
    """Whoever waits is told at once when QEMU is gone, and how it went."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                await vm.console.wait_for("now")
                vm.process.kill()

            nursery.start_soon(kill)
            await vm.console.send_line("echo no''w; sleep 1000")
        with pytest.raises(ConsoleLost, match="QEMU ended with -9"):
            await vm.console.wait_for("never", timeout=60)
        with pytest.raises(QmpLost, match="QEMU ended with -9"):
            await vm.wait_for_event("NEVER", timeout=60)
        with pytest.raises(QmpLost, match="QEMU is gone"):
            await vm.qmp("query-status")
        assert await vm.wait() == -signal.SIGKILL == await vm.wait(timeout=0)


async def test_a_command_line_of_ones_own(tmp_path: Path) -> None:
    """The line as it is, with a console and QMP for us; the plug ends it."""
    async with VirtualMachine(command=NO_GUEST, folder=tmp_path) as vm:
        assert (await vm.qmp("query-status"))["status"] == "prelaunch"
        assert isinstance(vm.console, VmConsole)
        assert await vm.power_off() == 0


async def test_without_a_folder_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The logs are gone with the machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with VirtualMachine(command=NO_GUEST) as vm:
        assert (vm.folder / "console.log").exists()
    assert not list(await trio.Path(tmp_path).iterdir())
    with pytest.raises(QmpLost, match="QEMU is gone"):
        await vm.qmp("query-status")


async def test_a_kernel_and_a_disk_of_ones_own(tmp_path: Path) -> None:
    """Both are where a guest finds them, and the disk is not changed."""
    image = GuestImage.build()
    disk = tmp_path / "disk"
    disk.write_bytes(b"marked" + bytes(1 << 20))
    async with VirtualMachine(kernel=image.kernel, disk=disk, folder=tmp_path, memory=256) as vm:
        await vm.monitor('qemu-io virtio0 "write -P 65 0 512"')
        blocks = await vm.qmp("query-block")
        assert [block["inserted"]["image"]["virtual-size"] for block in blocks] == [(1 << 20) + 512]
        # Without an initramfs the kernel gets as far as looking for its root.
        found = await vm.console.wait_for("Unable to mount root fs|end Kernel panic", 60)
        assert b"console=ttyS0 panic=-1" in found.string
    assert disk.read_bytes()[:6] == b"marked"


async def test_an_error_of_the_block_is_raised_as_it_is(tmp_path: Path) -> None:
    """A failed assertion is no group, and QEMU has ended."""
    with pytest.raises(AssertionError, match="as it is"):
        async with VirtualMachine(command=NO_GUEST, folder=tmp_path) as vm:
            raise AssertionError("as it is")
    assert vm.process.returncode == -signal.SIGKILL


async def test_a_cancelled_block_ends_qemu(tmp_path: Path) -> None:
    """Also before the guest is up."""
    machine = VirtualMachine(GuestImage.build(), folder=tmp_path)
    with trio.move_on_after(0.5) as scope:
        async with machine:
            pytest.fail("up within half a second")
    assert scope.cancelled_caught
    assert machine.process.returncode == -signal.SIGKILL


def test_qemu_ends_with_a_test_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves no time to tidy up; QEMU ends all the same."""
    script = f"""
import trio
from pathlib import Path
from qemu_usernat.testing.virtual_machine import VirtualMachine
async def main():
    async with VirtualMachine(command={NO_GUEST!r}, folder=Path({str(tmp_path)!r})) as vm:
        print(vm.process.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    ) as test:
        assert test.stdout is not None
        qemu = int(test.stdout.readline())
        assert b"qemu" in Path(f"/proc/{qemu}/cmdline").read_bytes()
        test.kill()
    until = time.monotonic() + 5
    while runs(qemu) and time.monotonic() < until:
        time.sleep(0.01)
    assert not runs(qemu)


def runs(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_what_qemu_complains_about_is_told_at_once(tmp_path: Path) -> None:
    """Its own words are in the error."""
    with trio.fail_after(10), pytest.raises(UserError, match=r"QEMU ended with 1: .*-no-such"):
        async with VirtualMachine(GuestImage.build(), arguments=["-no-such-option"]):
            pytest.fail("it started")


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    """Each mistake names the argument, and what is allowed."""
    with pytest.raises(UserError, match=r"given nothing to boot; allowed: one of image, kernel"):
        VirtualMachine()
    with pytest.raises(UserError, match="given disk and command; allowed"):
        VirtualMachine(disk=tmp_path, command=NO_GUEST)
    with pytest.raises(UserError, match="command: '-nographic'; allowed: all but"):
        VirtualMachine(command=[QEMU, "-nographic"])
    with pytest.raises(UserError, match="architecture: 'vax'; allowed: x86_64, i386, aarch64"):
        VirtualMachine(kernel=tmp_path, architecture="vax")


async def test_a_guest_has_all_its_files_or_is_not_started(tmp_path: Path) -> None:
    """With too little memory the kernel would leave files out and say nothing."""
    image = GuestImage.build(files={"/zz/the-last": b"here"})
    least = image.memory_minimum
    with pytest.raises(UserError, match=f"memory: {least - 1} MiB; allowed .*: {least} or more"):
        VirtualMachine(image, memory=least - 1)
    async with VirtualMachine(image, memory=least, folder=tmp_path) as machine:
        assert await machine.console.read_file("/zz/the-last") == b"here"


def test_a_large_image_has_the_memory_that_it_needs(tmp_path: Path) -> None:
    """Without being asked: packages make images large."""
    large = GuestImage(tmp_path / "kernel", tmp_path / "initrd", tmp_path / "certificates")
    with large.initrd.open("wb") as initrd:
        initrd.truncate(200 << 20)  # of holes
    machine = VirtualMachine(large)
    assert large.memory_minimum == 680
    assert "-m 680 " in " ".join(machine._line("tcg"))


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        ("x86_64", "-machine pc .*-cpu Westmere,.rdrand .*console=ttyS0 .*quiet"),
        ("aarch64", "-machine virt .*-cpu cortex-a57 .*console=ttyAMA0 "),
        ("riscv64", "-machine virt .*-accel tcg,thread=multi -m .*console=ttyS0 "),
    ],
)
async def test_each_architecture_has_its_machine(
    architecture: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine, processor and the kernel's console are those that boot there."""
    program = tmp_path / f"qemu-system-{architecture}"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    machine = VirtualMachine(
        kernel=tmp_path, append="quiet", architecture=architecture, accelerator="tcg"
    )
    with pytest.raises(UserError, match=wanted):
        async with machine:
            pytest.fail("it started")


async def test_a_program_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is left behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="qemu-system-s390x was not found: install QEMU"):
        async with VirtualMachine(kernel=tmp_path, architecture="s390x"):
            pytest.fail("it started")


def test_the_cards_of_a_command_line() -> None:
    """Arguments are read as QEMU reads them, and written back in both of its spellings."""
    line = ["-m", "1", "-netdev", "stream,id=n,server=off,addr.type=unix,addr.path=/a,,b"]
    line += ["-netdev", "user,id=other", "-device", "e1000,netdev=n,mac=1", "-device", "virtio-rng"]
    named = hot_plug.with_ids(line)
    assert named == [*line[:7], "e1000,netdev=n,mac=1,id=card-n", *line[8:]]
    ((netdev, card),) = hot_plug.pairs(named)
    address = {"type": "unix", "path": "/a,b"}
    assert hot_plug.typed(netdev) == {
        "type": "stream", "id": "n", "server": False, "addr": address,
    }  # fmt: skip
    assert hot_plug.options(card) == named[7]
    assert hot_plug.options(netdev) == line[3]
    assert hot_plug.typed({"type": "stream", "reconnect": "1"})["reconnect"] == 1
