"""A kernel and an initramfs of one's own, tested with pytest.

    pytest

What is special about a system of your own: only you know when it is ready. So the fixture `machine`
boots it with `usernat.machine(kernel=…, initrd=…)` and waits for what it says then; from there on
the console is as for any guest. It needs a POSIX shell on the first serial port for that, with
base64, md5sum, wc, tr and rm, which busybox has.

The fixture `system` stands for your build (and needs cpio): its kernel and drivers are Debian's,
taken from the guest that the plugin builds, and `init` and `lease` are all that there is to this
operating system.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from qemu_usernat.testing import GuestImage

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def system(tmp_path_factory):
    """The files that QEMU boots."""
    debian = GuestImage.build()
    root = tmp_path_factory.mktemp("root")
    wanted = ["bin/busybox", "etc/modules", "lib/modules/*"]
    unpack = ["cpio", "--quiet", "--extract", "--make-directories", f"--file={debian.initrd}"]
    subprocess.run([*unpack, *wanted], cwd=root, check=True)
    shutil.copy(HERE / "init", root / "init")
    shutil.copy(HERE / "lease", root / "etc" / "lease")
    initrd = root.with_suffix(".cpio")
    pack = f"find . | cpio --quiet --create --format=newc --file={initrd}"
    subprocess.run(pack, shell=True, cwd=root, check=True)
    return {"kernel": debian.kernel, "initrd": initrd}


@pytest.fixture
def machine(usernat, system):
    """The system, booted and ready."""
    with usernat.machine(**system) as machine:
        machine.console.wait_for("own system: ready", timeout=90)
        yield machine


def test_it_fetches_a_page(machine, internet, usernat):
    """The lease, the name and the page, as the guest and as the world sees them."""
    site = internet.host("site.example")
    site.http("hello, whoever you are")
    page = machine.console.exec("wget -q -O - http://site.example/")
    assert page.text == "hello, whoever you are"
    (request,) = site.requests
    assert request.source[0] == "10.0.2.15"
    assert [(flow.host, flow.port) for flow in usernat.flows] == [("site.example", 80)]
    internet.assert_nothing_unexpected()


def test_a_server_that_is_gone_is_an_error(machine, internet):
    """Busybox's wget says so; with the server there, the same command says nothing."""
    site = internet.host("site.example")
    gone = machine.console.exec("wget -q -O - http://site.example/")
    assert gone.status == 1
    assert "Connection refused" in gone.text
    site.http("")
    assert machine.console.exec("wget -q -O - http://site.example/") == (0, b"")


def test_without_a_card_it_is_not_ready(usernat, system):
    """The twin of the fixture: `ready` is not what it says in any case."""
    with usernat.machine(**system, network=[]) as machine:
        machine.console.wait_for("own system: no network", timeout=90)
        assert "eth0" not in machine.console.exec("ip link").text
