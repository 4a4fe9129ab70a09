"""A machine with an empty disk boots from the network: QEMU's own firmware, iPXE, does it."""

import gzip
from pathlib import Path

import pytest

from qemu_usernat.config import UnixEndpoint
from qemu_usernat.qemu.command_lines import netdev_arguments, version_of
from qemu_usernat.testing import GuestImage, VirtualMachine
from qemu_usernat.testing.virtual_machine import QEMU
from tests.qemu.room import serving

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[2] / "docs" / "network-boot.md").read_text()
SCRIPT = PAGE.split("```\n#!ipxe", 1)[1].split("```", 1)[0]


@pytest.fixture(scope="module")
def tftp(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a boot server: a script, Linux, and its initramfs."""
    folder = tmp_path_factory.mktemp("tftp")
    words = "console=ttyS0 booted=over-the-network on=${platform} from=${next-server}"
    (folder / "boot.ipxe").write_text("#!ipxe" + SCRIPT.replace("console=ttyS0", words))
    (folder / "vmlinuz").symlink_to(folder / "linux" / "vmlinuz")
    (folder / "linux").mkdir()
    (folder / "linux" / "vmlinuz").write_bytes(image.vmlinuz.read_bytes())
    (folder / "initrd.gz").write_bytes(gzip.compress(image.initrd.read_bytes(), 1))
    return folder


@pytest.mark.deep  # tests/test_network_boot.py has the same conversation without a machine
async def test_ipxe_boots_linux_from_a_folder(tftp: Path, tmp_path: Path) -> None:
    """A script from our TFTP server, a kernel and an initramfs of 40 MB, and the system is up."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    listen = tmp_path / "net.sock"
    network = netdev_arguments(version_of(QEMU), UnixEndpoint(str(listen)))
    with serving(listen, f"--tftp={tftp}", "--bootfile=boot.ipxe"):
        async with VirtualMachine(
            disk=tmp_path / "disk",
            machine="pc,graphics=off",
            network=network,
            folder=tmp_path,
        ) as machine:
            console = machine.console
            await console.wait_for("guest: up", 120)
            await console.synchronise()
            words = (await console.exec("cat /proc/cmdline")).text.split()
            assert {"booted=over-the-network", "on=pcbios", "from=10.0.2.2"} <= set(words)


@pytest.mark.deep
async def test_uefi_loads_its_file_from_the_folder(tftp: Path, tmp_path: Path) -> None:
    """Debian's UEFI firmware, without iPXE: it asks for the size, then for windows of blocks."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    listen = tmp_path / "net.sock"
    network = netdev_arguments(version_of(QEMU), UnixEndpoint(str(listen)))
    network[-1] += ",romfile="
    with serving(listen, f"--tftp={tftp}", "--bootfile=vmlinuz"):
        async with VirtualMachine(
            disk=tmp_path / "disk",
            arguments=["-bios", "/usr/share/ovmf/OVMF.fd"],
            network=network,
            folder=tmp_path,
        ) as machine:
            await machine.console.wait_for("NBP filename is vmlinuz", 120)
            await machine.console.wait_for("NBP file downloaded successfully", 60)
