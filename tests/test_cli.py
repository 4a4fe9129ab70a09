"""The command line, in front of a network that a test can see through."""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType

import attrs
import pytest
import structlog
import trio
import trio.testing

from qemu_usernat import cli
from qemu_usernat.cli import main
from qemu_usernat.config import Config, Endpoint, FdEndpoint, TcpEndpoint, UnixEndpoint
from qemu_usernat.primitives.errors import UserError


@attrs.define
class Network:
    """Stands in for `app.serve`: notes its configuration and does what the test says."""

    configs: list[Config] = attrs.Factory(list)
    endpoints: list[Endpoint] | None = None  # to be ready at; None: those that were asked for
    ready: bool = True  # False: it ends before it listens
    then: Callable[[], None] = lambda: None  # what happens once it is ready
    wait_until_idle: bool = False  # whether it ends only when all else has
    forever: bool = False

    async def serve(
        self,
        configs: Sequence[Config],
        on_ready: Callable[[Sequence[Config]], None],
        read: Callable[[], Sequence[Config]] | None = None,
    ) -> None:
        """As `app.serve`."""
        self.configs += configs
        if not self.ready:
            return
        if self.endpoints is not None:
            configs = [attrs.evolve(each, listen=tuple(self.endpoints)) for each in configs]
        on_ready(configs)
        self.then()
        if self.wait_until_idle:
            await trio.testing.wait_all_tasks_blocked()
        if self.forever:
            await trio.sleep_forever()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """The network behind `serve` and `run`."""
    stand_in = Network()
    module = ModuleType("qemu_usernat.app")
    module.serve = stand_in.serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qemu_usernat.app", module)
    yield stand_in
    structlog.reset_defaults()


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A QEMU 9.2 first in PATH that notes its arguments and ends with exit code 3."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "qemu-system-x86_64"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && echo "QEMU emulator version 9.2.1" && exit\n'
        f"printf '%s\\n' \"$@\" > '{tmp_path}/arguments'\n"
        "exit 3\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    return tmp_path / "arguments"


# ---- serve -------------------------------------------------------------------------


def test_every_option_arrives(network: Network) -> None:
    """What is typed is what the network is told."""
    arguments = "serve --listen unix:/a --listen tcp:[::1]:0 --connect unix:/b --mtu 1500"
    arguments += " --host-loopback --congestion cubic --dns 9.9.9.9 --dns 127.0.0.1:5353 -v"
    arguments += " --udp-filtering endpoint --isolate"
    assert main(arguments.split()) == 0
    (config,) = network.configs
    assert config.listen == (UnixEndpoint("/a"), TcpEndpoint("::1", 0))
    assert config.connect == (UnixEndpoint("/b"),)
    assert config.verbose
    assert config.network.mtu == 1500
    assert config.network.host_loopback
    assert config.network.isolate
    assert config.network.congestion == "cubic"
    assert config.network.udp_filtering == "endpoint"
    assert config.network.dns == (
        (IPv4Address("9.9.9.9"), 53),
        (IPv4Address("127.0.0.1"), 5353),
    )


def test_options_win_over_the_file(network: Network, tmp_path: Path) -> None:
    """A flag that is not given leaves the file's word standing."""
    file = tmp_path / "net.toml"
    file.write_text("listen = 'unix:/file'\nmtu = 9000\nhost_loopback = true\n")
    assert main(["serve", "--config", str(file), "--mtu", "1500"]) == 0
    (config,) = network.configs
    assert config.listen == (UnixEndpoint("/file"),)
    assert (config.network.mtu, config.network.host_loopback) == (1500, True)


def test_by_default_it_listens_in_the_runtime_directory(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No option is needed."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["serve"]) == 0
    assert network.configs[0].listen == (UnixEndpoint(f"{tmp_path}/qemu-usernat.sock"),)


def run_until_printed(
    network: Network, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line_count: int
) -> list[str]:
    """Serve until that many lines were printed; the lines."""
    lines: list[str] = []
    network.forever = True

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == line_count:
            raise UserError("the test has seen enough")

    monkeypatch.setattr(cli, "say", say)
    assert main(arguments) == 1
    return lines


def test_once_it_listens_it_prints_what_to_paste(
    network: Network, qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port that the kernel chose, this machine's QEMU, one line a place."""
    network.endpoints = [UnixEndpoint("/run/my guest"), TcpEndpoint("127.0.0.1", 4321)]
    lines = run_until_printed(
        network, monkeypatch, ["serve", "--listen", "unix:a", "--connect", "unix:/c"], 7
    )
    assert lines[:3] == [
        "listening on unix:/run/my guest",
        "listening on tcp:127.0.0.1:4321",
        "connecting to unix:/c",
    ]
    assert lines[3].startswith("arguments for QEMU 9.2.1 (")
    netdevs = [shlex.split(line)[1] for line in lines[4:]]
    assert netdevs == [
        "stream,id=net0,server=off,addr.type=unix,addr.path=/run/my guest,reconnect-ms=1000",
        "stream,id=net0,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port=4321,"
        "reconnect-ms=1000",
        "stream,id=net0,server=on,addr.type=unix,addr.path=/c",
    ]


def test_guests_of_joined_servers_are_told_apart(
    network: Network, qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is pasted at either: on one LAN each machine has a MAC address of its own."""
    macs = []
    for option in ("--join-listen=unix:/j", "--join=unix:/j"):
        network.endpoints = [UnixEndpoint("/a"), UnixEndpoint("/b")]
        lines = run_until_printed(network, monkeypatch, ["serve", "--listen", "unix:/a", option], 6)
        macs += [line.partition("mac=")[2].partition(",")[0] for line in lines[-2:]]
    assert all(macs)
    assert len(set(macs)) == 4


def test_run_gives_a_guest_of_a_joined_server_a_mac_address(network: Network, qemu: Path) -> None:
    """Another one at each server, and none beside no join."""
    macs = []
    for options in ([], ["--join-listen=unix:/j"], ["--join=unix:/j"]):
        network.forever = True
        assert main(["run", *options, "--", "qemu-system-x86_64"]) == 3
        macs.append(qemu.read_text().partition("mac=")[2].partition(",")[0])
    assert macs[0] == ""
    assert len(set(macs)) == 3


def test_systemd_is_told_when_it_listens_and_not_before(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that waits for ours starts its QEMU at the right moment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.setblocking(False)
        systemd.bind(f"{tmp_path}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        network.ready = False
        assert main(["serve", "--listen", "unix:/a"]) == 0
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
        network.ready = True
        assert main(["serve", "--listen", "unix:/a"]) == 0
        assert systemd.recv(100) == b"READY=1"


def test_without_a_qemu_it_prints_for_the_newest_and_says_so(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may stand on a machine without QEMU, or start before it is installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = run_until_printed(network, monkeypatch, ["serve", "--listen", "unix:/a"], 3)
    assert lines[1] == "arguments for QEMU 10.2 (none is installed here):"
    assert "reconnect-ms=1000" in lines[2]


def test_an_inherited_connection_needs_no_arguments(
    network: Network, qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other end is in QEMU's hands already; the second place is printed."""
    network.endpoints = [FdEndpoint(7), UnixEndpoint("/a")]
    lines = run_until_printed(network, monkeypatch, ["serve", "--listen", "fd:7"], 4)
    assert lines[0] == "listening on fd:7"
    assert "addr.path=/a" in lines[3]


def test_with_nothing_to_paste_no_qemu_is_asked(
    network: Network, qemu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only an inherited connection: one line says that it is served, and that is all."""
    network.endpoints = [FdEndpoint(7)]
    network.wait_until_idle = True
    assert main(["serve", "--listen", "fd:7"]) == 0
    assert capsys.readouterr().out == "listening on fd:7\n"


def test_a_failure_is_one_line_and_exit_code_1(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what a person can mend, not even out of a nursery."""

    def fail() -> None:
        raise UserError("cannot listen on unix:/a: another process listens there")

    network.then = fail
    assert main(["serve", "--listen", "unix:/a"]) == 1
    message = "qemu-usernat: cannot listen on unix:/a: another process listens there\n"
    assert capsys.readouterr().err == message


def test_a_bug_is_not_hidden(network: Network) -> None:
    """What is not the user's mistake keeps its traceback."""

    def fail() -> None:
        raise ZeroDivisionError

    network.then = fail
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        main(["serve", "--listen", "unix:/a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing command."),
        ("sevre", "No such command 'sevre'."),
        ("serve --mtuu 1500", "No such option '--mtuu'. Did you mean '--mtu'?"),
        ("serve --mtu big", "Invalid value for '--mtu': 'big' is not a valid integer."),
        ("serve --mtu 0 --listen unix:a", "--mtu is 0; allowed: bytes from 576 to 65520"),
        ("serve --listen udp:1", '--listen: "udp:1" is not an endpoint: '),
        ("serve --connect tcp:a:1", "--connect is "),
        ("serve --dns router", "--dns is "),
        ("serve --config /nowhere.toml", "/nowhere.toml: cannot be read: No such file"),
        ("run --listen unix:a", "Missing argument 'QEMU...'."),
        ("run --mtu 1 -- qemu", "--mtu is 1; allowed: "),
        ("cmdline --qemu q --qemu-version 9.2", "--qemu and --qemu-version exclude each other"),
        ("cmdline --qemu-version 9 --listen unix:a", '"9" is not a version of QEMU; allowed: X.Y'),
        ("cmdline --qemu-version 7.1 --listen unix:a", "QEMU 7.1 has no -netdev stream; allowed"),
        ("cmdline --qemu-version 9.2 --listen tcp:a:0", "tcp:a:0 has no port yet"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    network: Network, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    """The line says what is wrong and what is allowed; nothing was started."""
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"qemu-usernat: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert network.configs == []


# ---- cmdline -----------------------------------------------------------------------


def test_cmdline_for_a_given_version(capsys: pytest.CaptureFixture[str]) -> None:
    """One line to paste; a comma in a path is doubled for QEMU, a blank quoted for the shell."""
    arguments = ["cmdline", "--qemu-version", "8.0", "--listen", "unix:/a, b", "--mtu", "1500"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == (
        "-netdev 'stream,id=net0,server=off,addr.type=unix,addr.path=/a,, b,reconnect=1' "
        "-device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,host_mtu=1500\n"
    )


def test_cmdline_asks_the_binary(qemu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The QEMU in PATH, unless another one is named."""
    assert main(["cmdline", "--listen", "unix:/a"]) == 0
    assert "reconnect-ms=1000" in capsys.readouterr().out
    assert main(["cmdline", "--listen", "unix:/a", "--qemu", "/nowhere/qemu"]) == 1
    assert "/nowhere/qemu was not found; install QEMU" in capsys.readouterr().err


# ---- run ---------------------------------------------------------------------------


def test_run_gives_qemu_its_network_and_ends_with_its_exit_code(
    network: Network, qemu: Path
) -> None:
    """The user's own words come first, untouched; the socket is private and gone after."""
    network.forever = True
    assert main(["run", "--mtu", "1500", "--", "qemu-system-x86_64", "-m", "1G", "a b"]) == 3
    (config,) = network.configs
    (private,) = config.listen
    assert isinstance(private, UnixEndpoint)
    assert qemu.read_text().splitlines() == [
        "-m",
        "1G",
        "a b",
        "-netdev",
        f"stream,id=usernat,server=off,addr.type=unix,addr.path={private.path},reconnect-ms=1000",
        "-device",
        "virtio-net-pci,netdev=usernat,host_mtu=1500",
    ]
    assert not Path(private.path).parent.exists()


def test_the_private_socket_is_in_a_directory_for_us_alone(network: Network, qemu: Path) -> None:
    """Nobody else on the host reaches this guest's network."""
    modes: list[int] = []

    def look() -> None:
        (private,) = network.configs[0].listen
        assert isinstance(private, UnixEndpoint)
        modes.append(Path(private.path).parent.stat().st_mode & 0o777)

    network.then, network.forever = look, True
    assert main(["run", "qemu-system-x86_64", "-M", "microvm"]) == 3
    assert modes == [0o700]
    assert "virtio-net-device,netdev=usernat,host_mtu=65520" in qemu.read_text()


@pytest.mark.parametrize("own", ["-nic user", "-netdev user,id=a", "--net nic", "-nic"])
def test_run_with_a_policy_is_the_only_network(
    network: Network, qemu: Path, capsys: pytest.CaptureFixture[str], own: str
) -> None:
    """Else a sandbox has a hole that nobody sees; without a policy there is a warning."""
    network.forever = True
    run = ["run", "--deny", "any", "--", "qemu-system-x86_64"]
    assert main([*run, *own.split()]) == 2
    said = capsys.readouterr().err
    assert f'"{own}"' in said
    assert "allowed: no -nic, -net or -netdev but none" in said
    assert network.configs == []
    assert main([*run, "-nic", "none"]) == 3
    assert main(["run", "--", "qemu-system-x86_64", *own.split()]) == 3


def test_run_listens_where_it_is_told(network: Network, qemu: Path) -> None:
    """With --listen, QEMU and others may meet us there, at the port the kernel chose."""
    network.endpoints, network.forever = [TcpEndpoint("127.0.0.1", 4321)], True
    assert main(["run", "--listen", "tcp:127.0.0.1:0", "--", "qemu-system-x86_64"]) == 3
    assert "addr.host=127.0.0.1,addr.port=4321" in qemu.read_text()


def test_run_without_that_qemu_fails_before_anything_starts(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what is missing."""
    assert main(["run", "--", "/nowhere/qemu"]) == 1
    assert "/nowhere/qemu was not found" in capsys.readouterr().err
    assert network.configs == []


def test_run_cannot_lead_qemu_to_an_inherited_connection(
    network: Network, qemu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other end of a socketpair is not ours to give."""
    network.endpoints, network.forever = [FdEndpoint(7)], True
    assert main(["run", "--listen", "fd:7", "--", "qemu-system-x86_64"]) == 1
    assert "cannot be led to an inherited connection" in capsys.readouterr().err


def test_a_signal_before_qemu_starts_ends_run(network: Network, qemu: Path) -> None:
    """The network has answered the signal by ending: QEMU is not started into nothing."""
    network.endpoints = [UnixEndpoint("/a")]
    assert main(["run", "--", "qemu-system-x86_64"]) == 0
    assert not qemu.exists()
    network.ready = False
    assert main(["run", "--", "qemu-system-x86_64"]) == 0
    assert not qemu.exists()


def test_when_the_network_fails_qemu_is_not_left_alone(
    network: Network, qemu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 1."""

    def fail() -> None:
        raise UserError("the host is out of everything")

    network.then = fail
    assert main(["run", "--", "qemu-system-x86_64"]) == 1
    assert capsys.readouterr().err == "qemu-usernat: the host is out of everything\n"


# ---- policies ----------------------------------------------------------------------


@pytest.mark.parametrize("command", [["serve"], ["run", "--", "qemu-system-x86_64"]])
def test_rules_keep_the_order_in_which_they_are_typed(
    network: Network, qemu: Path, command: list[str]
) -> None:
    """Whichever option they come by; and without a rule there is no policy."""
    network.endpoints = [UnixEndpoint("/a")]
    rules = ["--deny", "lan", "--allow=any", "--mtu", "1500", "--listen", "unix:/a"]
    rules += ["--deny", "*.ads.example on tcp/443", "--allow", "dns"]
    main([command[0], *rules, *command[1:]])
    main([command[0], "--listen", "unix:/a", *command[1:]])
    with_rules, without = network.configs
    assert with_rules.policy is not None
    assert str(with_rules.policy.policy).splitlines() == [
        "deny lan",
        "allow any",
        "deny *.ads.example on tcp/443",
        "allow dns",
        "default deny",
    ]
    assert without.policy is None


def test_a_policy_may_be_a_file_of_its_own(network: Network, policy: Path) -> None:
    """Named by --policy."""
    assert main(["serve", "--listen", "unix:/a", "--policy", str(policy)]) == 0
    (config,) = network.configs
    assert config.policy is not None
    assert (
        str(config.policy.policy) == "code: allow *.github.com, pypi.org on tcp/443\ndefault deny"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["serve", "--listen", "unix:/a", "--allow", "*.com"],
            '--allow: "*.com" would match a whole',
        ),
        (["serve", "--deny"], "Option '--deny' requires an argument"),
        (["serve", "--listen", "unix:/a", "--policy", "/nowhere"], "/nowhere: cannot be read"),
        (["policy", "check", "/nowhere"], "/nowhere: cannot be read"),
        (["policy", "explain", "/nowhere"], "Missing argument 'FLOW...'"),
        (["policy", "learn", "/nowhere"], "/nowhere: cannot be read"),
        (["policy", "lint"], "Missing argument 'FILE'"),
        (["policy", "mend"], "No such command 'mend'"),
    ],
)
def test_a_wrong_request_about_policies_is_exit_code_2(
    network: Network, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """As all others, in one line."""
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not network.configs


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy that allows two names."""
    file = tmp_path / "policy.toml"
    file.write_text(
        """
        [policy]
        default = "deny"
        [[policy.rule]]
        name = "code"
        allow = ["*.github.com", "pypi.org"]
        on = "tcp/443"
        [[policy.expect]]
        flow = "tcp pypi.org:443"
        verdict = "allow"
        [policy.guest."52:54:00:12:34:57"]
        default = "allow"
        """
    )
    return file


def test_policy_check_says_what_there_is(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 where all is well; 2, and what is wrong, where it is not."""
    assert main(["policy", "check", str(policy)]) == 0
    assert capsys.readouterr().out == f"{policy}: good: rules: 1, default: deny, expected: 1\n"
    policy.write_text(policy.read_text().replace("pypi.org:443", "pypi.org:80"))
    assert main(["policy", "check", str(policy)]) == 2
    assert f'{policy}: key "policy.expect[1]": tcp pypi.org:80 is' in capsys.readouterr().err
    policy.write_text("mtu = 1500")
    assert main(["policy", "check", str(policy)]) == 2
    assert "has no table [policy]" in capsys.readouterr().err


def test_policy_explain_goes_rule_by_rule(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For all guests, or for one that has a policy of its own."""
    assert main(["policy", "explain", str(policy), "tcp", "pypi.org:443"]) == 0
    told = capsys.readouterr().out
    assert "perhaps: the guest's TLS must name pypi.org" in told
    guest = ["--guest", "52-54-00-12-34-57"]
    assert main(["policy", "explain", str(policy), "tcp", "8.8.8.8:22", *guest]) == 0
    assert capsys.readouterr().out.endswith("verdict: allow (default)\n")
    place = ["tcp pypi.org:443", "--address", "10.0.0.1"]
    assert main(["policy", "explain", str(policy), *place]) == 0
    assert capsys.readouterr().out.endswith("verdict: deny (inward, rule code)\n")
    assert main(["policy", "explain", str(policy), "tcp", "pypi.org"]) == 2
    assert main(["policy", "explain", str(policy), "icmp", "::1", "--guest", "x"]) == 2


def test_policy_lint_is_exit_code_1_if_anything_is_found(
    policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in the policy of one guest, which is named."""
    assert main(["policy", "lint", str(policy)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" default: ")[0] for line in lines] == [
        f"{policy}: guest 52:54:00:12:34:57:",
        f"{policy}: guest 52:54:00:12:34:57:",
    ]
    policy.write_text(
        policy.read_text()
        .replace('"allow"\n        \n', '"deny"')
        .replace('default = "allow"', 'default = "deny"')
    )
    assert main(["policy", "lint", str(policy)]) == 0
    assert capsys.readouterr().out == ""


def test_policy_learn_prints_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From an audit to a file that can be used."""
    record = {"time": "2026-01-01T00:00:00Z", "guest": "52:54:00:12:34:56", "link": "a"}
    record |= {"protocol": "tcp", "address": "192.0.2.7", "verdict": "deny", "why": "default"}
    audit = tmp_path / "audit"
    audit.write_text(json.dumps(record | {"port": 22}))
    assert main(["policy", "learn", str(audit)]) == 0
    learned = capsys.readouterr().out
    assert learned == (
        '[policy]\ndefault = "deny"\n\n[[policy.rule]]\nallow = "192.0.2.7"\non = "tcp/22"\n'
    )
    audit.write_text(learned)
    assert main(["policy", "check", str(audit)]) == 0


# ---- the process -------------------------------------------------------------------


def test_python_dash_m_is_the_same_program() -> None:
    """Installed or not, there is one way in."""
    answer = subprocess.run(
        [sys.executable, "-m", "qemu_usernat", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert answer.stdout == "qemu-usernat 0.1.0\n"


def test_a_bug_is_told_and_not_what_was_at_hand() -> None:
    """A renderer that shows every local variable would show guests' data, and might never end."""
    script = """
import logging
import structlog
from qemu_usernat import terminal

class World:
    def __repr__(self):
        raise SystemExit("shown")

def serve():
    world = World()
    raise ValueError("a bug of ours")

terminal.configure_log(logging.INFO)
try:
    serve()
except ValueError as error:
    structlog.get_logger().error("told", exc_info=error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "ValueError: a bug of ours" in done.stderr
    assert "in serve" in done.stderr
    assert "shown" not in done.stderr


def test_a_reader_that_leaves_ends_nothing() -> None:
    """`qemu-usernat serve | head -1` keeps serving, and ends without a complaint."""
    reader, writer = os.pipe()
    os.close(reader)
    script = "from qemu_usernat.terminal import say; say('a'); say('b')"
    answer = subprocess.run(
        [sys.executable, "-c", script],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (0, b"")


LOGGING = """
import logging, structlog
from qemu_usernat import terminal
terminal.configure_log(logging.INFO)
for message in ("guest connected", "guest disconnected"):
    structlog.get_logger().info(message)
print("still serving")
"""


def test_a_log_that_nobody_reads_ends_nothing() -> None:
    """The terminal is closed or the log's reader dies: guests come and go as before."""
    reader, writer = os.pipe()
    os.close(reader)
    answer = subprocess.run(
        [sys.executable, "-c", LOGGING],
        stdout=subprocess.PIPE,
        stderr=writer,
        timeout=30,
        check=False,
    )
    os.close(writer)
    assert (answer.returncode, answer.stdout) == (0, b"still serving\n")


def test_a_full_disk_under_the_log_ends_nothing() -> None:
    """What cannot be logged is lost, and only that."""
    with Path("/dev/full").open("w") as full:
        answer = subprocess.run(
            [sys.executable, "-c", LOGGING],
            stdout=subprocess.PIPE,
            stderr=full,
            timeout=30,
            check=False,
        )
    assert answer.stdout == b"still serving\n"
