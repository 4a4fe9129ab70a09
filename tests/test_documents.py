"""What the documents say is what the programs do."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from qemu_usernat import arrivals, lan_flows, pings, visits
from qemu_usernat.config import read_config
from qemu_usernat.config.boot import KINDS
from qemu_usernat.gateway import dns, icmp, tftp
from qemu_usernat.lan import places, port, switch
from qemu_usernat.nat import fragments, holdings, udp_table
from qemu_usernat.policy.redirects import Redirects
from qemu_usernat.primitives.addresses import parse_address
from qemu_usernat.primitives.counters import MEANINGS
from tests.kernel.conditions import CONDITIONS
from tools import counters, goodput, tcp_states

ROOT = Path(__file__).parent.parent
ALLOW_PINGS = 'sysctl -w net.ipv4.ping_group_range="0 2147483647"'
README = (ROOT / "README.md").read_text()
MEASUREMENTS = (ROOT / "docs" / "measurements.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for said, text in fenced if said == language]


def test_the_page_of_tcp_states_is_the_tables() -> None:
    """Whoever reads docs/tcp-states.md reads what the code runs on."""
    assert tcp_states.PAGE.read_text() == tcp_states.render(), "run `make docs`"


def test_the_page_of_counters_is_the_register() -> None:
    """Whoever looks a counter up in docs/counters.md finds what the code means by it."""
    assert counters.PAGE.read_text() == counters.render(), "run `make docs`"


def test_the_table_of_goodput_is_one_that_the_tool_makes() -> None:
    """Who runs it again gets the same columns, and a row for each condition and way."""
    _, _, below = MEASUREMENTS.partition(f"{goodput.head(list(goodput.SIDES))}\n")
    table, _, _ = below.partition("\n\n")
    rows = [line.split(" | ")[:2] for line in table.splitlines()]
    assert rows == [[f"| {wire.name}", way] for wire in CONDITIONS for way in wire.ways]


def test_a_row_of_goodput_is_medians_bounds_and_ratios() -> None:
    """As they stand in the table; nothing where nothing was measured."""
    speeds = {"ours": [9.0, 1234.0, 20.0], "ours, cubic": [], "bare": [40.0]}
    rendered = goodput.Row(CONDITIONS[0], "up", speeds).render()
    assert rendered == "| whole | up | 20 (9–1,234) |  | 40 (40–40) | 0.50 |  |"


def test_every_command_of_the_readme_is_known_here() -> None:
    """A command that somebody adds to the README without a test is noticed."""
    commands = {line for block in blocks("sh") for line in block.splitlines()}
    tested = {
        "make demo",  # tests/qemu/test_demo.py
        "python3 -m venv .venv",  # this and what follows: tests/e2e/test_tutorial.py
        ". .venv/bin/activate",
        "pip install qemu-usernat pytest",
        "pytest test_hello.py",
        ALLOW_PINGS,  # tests/kernel/test_routers.py
        SANDBOX,  # below, and tests/e2e/test_policy.py with a guest
        "qemu-usernat run -- qemu-system-x86_64 -m 1G disk.img",  # tests/qemu, with a guest
        "qemu-usernat serve --listen unix:/tmp/guest.sock",  # tests/test_app.py, tests/qemu
        "qemu-usernat cmdline --listen unix:/tmp/guest.sock --qemu-version 9.2",  # below
    }
    assert commands == tested


SANDBOX = (
    'qemu-usernat run --allow "pypi.org, files.pythonhosted.org on tcp/443" '
    "-- qemu-system-x86_64 -m 1G disk.img"
)

STUB = """#!/bin/sh
[ "$1" = --version ] && echo "QEMU emulator version 9.2.1" && exit
echo "$@"
"""


def test_the_sandbox_of_the_readme_starts(tmp_path: Path) -> None:
    """The command as it stands runs a QEMU, with our network before what it was given."""
    stub = tmp_path / "qemu-system-x86_64"
    stub.write_text(STUB)
    stub.chmod(0o755)
    program, *words = shlex.split(SANDBOX)
    assert program == "qemu-usernat"
    done = subprocess.run(
        [sys.executable, "-m", "qemu_usernat", *words],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("-m 1G disk.img -netdev stream,"), done.stdout


def test_the_printed_arguments_are_those_of_the_readme() -> None:
    """Pasting from the README or from the program makes no difference."""
    command = ["cmdline", "--listen", "unix:/tmp/guest.sock", "--qemu-version", "9.2"]
    printed = subprocess.run(
        [sys.executable, "-m", "qemu_usernat", *command], capture_output=True, text=True, check=True
    ).stdout
    assert printed in blocks("")


def test_the_configuration_of_the_readme_loads(tmp_path: Path) -> None:
    """The TOML that the README shows is taken as it stands, and means what it says."""
    (block,) = blocks("toml")
    file = tmp_path / "net.toml"
    file.write_text(block)
    config = read_config(file, {})
    assert str(config.network.gateway) == "192.168.76.2"
    assert (config.network.mtu, config.network.lease_time) == (9000, 3600)
    assert config.network.host_loopback
    assert [port for _, port in config.network.dns] == [53, 5353]
    assert [str(endpoint) for endpoint in config.listen] == [
        "unix:/tmp/guest.sock",
        "tcp:127.0.0.1:4444",
    ]


def test_the_defaults_of_the_readme_are_the_defaults() -> None:
    """The table of what the guest finds is true."""
    network = read_config(None, {"listen": ["unix:/tmp/x"]}).network
    for value in (network.subnet, network.gateway, network.nameserver, network.mtu):
        assert f"| {value}" in README
    assert f"| {network.congestion}: [the wire does not lose]" in README
    assert f"{network.first_lease} to {network.last_lease}" in README


NETWORK_BOOT = (ROOT / "docs" / "network-boot.md").read_text()


def test_the_page_of_network_boot_is_true(tmp_path: Path) -> None:
    """Its configuration loads, its table has every kind of machine, and its command starts.

    Its script boots Linux in tests/qemu/test_network_boot.py.
    """
    fenced = dict(re.findall(r"^```(\w+)\n(.*?)^```$", NETWORK_BOOT, re.MULTILINE | re.DOTALL))
    file = tmp_path / "net.toml"
    file.write_text(fenced["toml"])
    boot = read_config(file, {"listen": ["unix:/tmp/x"]}).network.boot
    assert (str(boot.folder), set(boot.files)) == ("/srv/tftp", {"bios", "uefi", "ipxe"})
    rows = re.findall(r"^\| (`.*?`) \|", NETWORK_BOOT, re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(KINDS)
    _, *words = shlex.split(fenced["sh"])
    words = [{"/srv/tftp": str(tmp_path), "/tmp/guest.sock": ""}.get(word, word) for word in words]
    words[words.index("--listen") + 1] = f"unix:{tmp_path}/guest.sock"
    command = [sys.executable, "-m", "qemu_usernat", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert '"boot.ipxe" is not to be had from' in done.stderr
    (tmp_path / "boot.ipxe").touch()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("listening on unix:")
        server.terminate()
    assert server.returncode == 0


def test_the_page_of_redirects_is_true(tmp_path: Path) -> None:
    """Its example loads, and leads where its words say."""
    page = (ROOT / "docs" / "redirects.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    file = tmp_path / "net.toml"
    file.write_text(example)
    redirects = Redirects(read_config(file, {"listen": ["unix:/tmp/x"]}).network.redirects)
    led = [
        redirects.target_of(protocol, parse_address(address), port, name)
        for protocol, address, port, name in (
            ("tcp", "8.8.8.8", 443, "pypi.org"),
            ("tcp", "169.254.169.254", 80, None),
            ("tcp", "10.0.2.100", 27000, None),
            ("udp", "8.8.8.8", 123, None),
            ("tcp", "8.8.8.8", 443, "example.org"),
        )
    ]
    assert list(map(str, led)) == [
        "127.0.0.1:3141",
        "unix:/run/metadata.sock",
        "unix:/run/license-server.sock",
        "192.168.1.1:123",
        "None",
    ]


def test_the_page_of_limits_is_true() -> None:
    """Its counters are those of the register, and its numbers those that the code holds to."""
    page = (ROOT / "docs" / "limits.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {name for row in rows for name in re.findall(r"`([\w.]+)`", row[4])} <= set(MEANINGS)
    numbers = [re.findall(r"\d[\d,]*\b(?: [MG]iB)?", " / ".join(row[1:3])) for row in rows]
    mib = 1 << 20
    assert numbers == [
        [f"{holdings.FLOWS_PER_GUEST:,}", f"{holdings.FLOWS_MAXIMUM:,}"],
        [f"{holdings.HALF_OPEN_PER_GUEST:,}", f"{holdings.HALF_OPEN_MAXIMUM:,}"],
        [
            f"{holdings.OCTETS_PER_GUEST // mib} MiB",
            f"{holdings.OCTETS_MAXIMUM // mib // 1024} GiB",
        ],
        [f"{udp_table.MAPPINGS_PER_GUEST:,}", f"{udp_table.MAPPINGS_MAXIMUM:,}"],
        [f"{pings.FLOWS_OF_GUEST_MAXIMUM}", f"{pings.FLOWS_MAXIMUM:,}"],
        [f"{icmp.ERRORS_AT_ONCE:.0f}", f"{icmp.ERRORS_PER_SECOND:,.0f}"],
        [
            f"{fragments.DATAGRAMS_PER_GUEST}",
            f"{fragments.BYTES_PER_GUEST // mib} MiB",
            f"{fragments.BYTES_MAXIMUM // mib} MiB",
        ],
        [f"{dns.GUEST_PENDING_MAXIMUM:,}", f"{dns.PENDING_MAXIMUM:,}"],
        [f"{tftp.GUEST_TRANSFERS_MAXIMUM}", f"{tftp.TRANSFERS_MAXIMUM}"],
        [f"{places.PLACES_PER_PORT}", f"{places.PLACES_MAXIMUM:,}"],
        [f"{places.PLACES_PER_PORT}", f"{places.PLACES_MAXIMUM:,}"],
        [f"{switch.FLOODS_AT_ONCE:,.0f}", f"{switch.FLOODS_PER_SECOND:,.0f}"],
        [f"{port.QUEUE_LIMIT // mib} MiB", f"{port.QUEUES_LIMIT // mib} MiB"],
        [f"{lan_flows.FLOWS_OF_GUEST_MAXIMUM:,}", f"{lan_flows.FLOWS_MAXIMUM:,}"],
        [f"{visits.VISITS_PER_PORT:,}", f"{visits.VISITS_MAXIMUM:,}"],
        [f"{arrivals.WAITING_PER_PORT}", f"{arrivals.WAITING_MAXIMUM:,}"],
        [
            f"{arrivals.CALLS_PER_PORT:,}",
            f"{holdings.HALF_OPEN_PER_GUEST:,}",
            f"{holdings.HALF_OPEN_MAXIMUM:,}",
        ],
        [f"{visits.HELD_MAXIMUM}"],
    ]
