"""A machine boots from the network, is installed without anybody's help, and boots from its disk.

    pytest

The machine has an empty disk, and a card with the firmware that QEMU brings: iPXE. Boot server,
mirror and the one who waits for the report are hosts of the test's internet. What is installed is
an image of a disk; ours is a boot sector that says hello, so that one sees it boot.

How it boots: our DHCP server leads whoever boots from the network to a URL (`Boot`), and iPXE loads
the script that is there; all else comes over HTTP and HTTPS. A folder that is served by TFTP is
there, too (`Boot(Path("folder"), {"other": "pxelinux.0"})`), for ROMs that know nothing else. BIOS
and iPXE talk on the serial console (`pc,graphics=off`).

Why not Debian's own installer: it does boot in this way (`vmlinuz` and `initrd` are then those of
debian-installer-12-netboot-amd64, with `auto=true priority=critical url=…` for the answers), but
without KVM it takes three minutes until it asks for these, and the rest takes far longer.
"""

import hashlib
from pathlib import Path

import pytest

from qemu_usernat.config import Boot, Network
from qemu_usernat.testing import GuestImage

FROM_THE_NETWORK = Network(boot=Boot(files={"other": "http://boot.example/install.ipxe"}))
INSTALLER = Path(__file__).with_name("installer")

# The installed system: a boot sector that prints its greeting, and some data behind it.
BOOT_CODE = bytes.fromhex(
    "31c0 8ed8"  #       xor ax, ax; mov ds, ax
    "be157c"  #          mov si, 0x7c15: what follows the code
    "ac 84c0 7406"  #    next: lodsb; test al, al; jz end
    "b40e cd10 ebf5"  #  mov ah, 0x0e; int 0x10: the BIOS prints it; jmp next
    "f4 ebfd"  #         end: hlt; jmp end
)
BOOT_SECTOR = (BOOT_CODE + b"hello from the disk\r\n\0").ljust(510, b"\0") + b"\x55\xaa"
DISK_IMAGE = BOOT_SECTOR + bytes(range(256)) * 4096
ANSWERS = f"""
disk=/dev/vda
image=https://mirror.example/disk.img
sha256={hashlib.sha256(DISK_IMAGE).hexdigest()}
report=https://reports.example/
"""
BOOT_SCRIPT = """#!ipxe
kernel vmlinuz console=ttyS0 rdinit=/installer answers=http://boot.example/answers
initrd initrd
boot
"""


@pytest.fixture
def disk(tmp_path):
    """The machine's disk: nothing on it."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 << 20))
    return path


@pytest.fixture
def system(internet):
    """Kernel and initramfs of the installer: the plugin's guest with another first process."""
    return GuestImage.build(
        ca=internet.ca_pem, modules=["virtio_blk"], files={"/installer": INSTALLER}
    )


@pytest.fixture(autouse=True)
def hosts(internet, system):
    """Everything that an installation needs."""
    boot = {
        "/install.ipxe": BOOT_SCRIPT,
        "/vmlinuz": system.vmlinuz.read_bytes(),
        "/initrd": system.initrd.read_bytes(),
        "/answers": ANSWERS,
    }
    internet.host("boot.example").http(boot)
    internet.host("mirror.example").https({"/disk.img": DISK_IMAGE})
    internet.host("reports.example").https("thank you")


@pytest.mark.usernat(settings=FROM_THE_NETWORK)
def test_a_machine_is_installed_over_the_network(usernat, internet, disk):
    """From the firmware of its network card to the greeting of what is on its disk then."""
    with usernat.machine(
        disk=disk,
        keep_changes=True,
        machine="pc,graphics=off",
        network=usernat.netdev_arguments(boot=True),
    ) as machine:
        machine.console.wait_for(
            "installer: https://mirror.example/disk.img to /dev/vda", timeout=120
        )
        assert machine.wait(timeout=300) == 0

    asked = [request.path for host in internet.hosts for request in host.requests]
    assert asked == ["/install.ipxe", "/vmlinuz", "/initrd", "/answers", "/disk.img", "/"]
    assert internet["reports.example"].requests[0].body == b"done"
    assert disk.read_bytes()[: len(DISK_IMAGE)] == DISK_IMAGE
    assert {(flow.host, flow.port) for flow in usernat.flows} == {
        ("boot.example", 80),
        ("mirror.example", 443),
        ("reports.example", 443),
    }
    internet.assert_nothing_unexpected()

    with usernat.machine(disk=disk, machine="pc,graphics=off") as machine:
        machine.console.wait_for("hello from the disk", timeout=60)


def test_a_wrong_image_is_not_installed(usernat, internet, system, disk):
    """The twin: it is reported, and the disk stays empty.

    Where only the installer is of interest, QEMU boots it at once, without the card's firmware.
    """
    internet["mirror.example"].https({"/disk.img": DISK_IMAGE[::-1]})
    with usernat.machine(
        kernel=system.kernel,
        initrd=system.initrd,
        append="rdinit=/installer answers=http://boot.example/answers",
        disk=disk,
        keep_changes=True,
    ) as machine:
        assert machine.wait(timeout=300) == 0
    (report,) = internet["reports.example"].requests
    assert report.body == b"the image is not what was announced"
    assert disk.read_bytes() == bytes(4 << 20)
