"""Several networks in one server: each its own segment, gateway, policy and names."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from qemu_usernat.app import serve
from qemu_usernat.cli import main
from qemu_usernat.config import Config, UnixEndpoint, read_networks
from qemu_usernat.config.network import Network
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.server import Server
from qemu_usernat.testing import FakeGuest
from tests.scripted_guest import GATEWAY, ScriptedNetwork

WAIT = 10.0
MAC = "52:54:00:00:00:01"


@asynccontextmanager
async def serving(configs: Sequence[Config]) -> AsyncIterator[None]:
    """The server of `configs`, until the block ends."""
    ready = trio.Event()

    def on_ready(really: Sequence[Config]) -> None:
        assert list(really) == list(configs)
        ready.set()

    with trio.fail_after(WAIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, configs, on_ready)
            await ready.wait()
            yield
            nursery.cancel_scope.cancel()


def network(folder: Path, name: str, policy: PolicySettings | None = None) -> Config:
    """One that listens at its name; all are alike but for that."""
    where = UnixEndpoint(f"{folder}/{name}")
    loopback = Network(host_loopback=True)
    return Config(name=name, listen=(where,), network=loopback, policy=policy)


async def test_networks_never_meet(tmp_path: Path) -> None:
    """Two machines with one MAC address and one IP address, in two networks, are two machines:
    each has its own gateway, its own neighbours, and names that the other does not find."""
    configs = [network(tmp_path, "lab"), network(tmp_path, "guests")]
    async with serving(configs), AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(FakeGuest.connect(tmp_path / each.name, mac=MAC))
            for each in configs
        ]
        neighbour = await stack.enter_async_context(FakeGuest.connect(tmp_path / "lab"))
        for guest in (one, two):
            assert (await guest.dhcp(host_name="twin")).address == "10.0.2.15"
        await neighbour.dhcp(host_name="neighbour")
        for guest in (one, two):
            await guest.ping(GATEWAY)
            assert "10.0.2.15" in await guest.resolve("twin.internal")
        assert neighbour.address is not None
        await one.ping("neighbour.internal")
        with pytest.raises(LookupError):
            await two.resolve("neighbour.internal")
        with pytest.raises(TimeoutError):
            await two.arp(neighbour.address, timeout=0.3)


async def test_each_network_has_its_own_policy(tmp_path: Path) -> None:
    """What one may not, the other may."""
    locked = PolicySettings(policy=NetworkPolicy.deny_all())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        configs = [network(tmp_path, "free"), network(tmp_path, "locked", locked)]
        async with (
            serving(configs),
            FakeGuest.connect(tmp_path / "free") as free,
            FakeGuest.connect(tmp_path / "locked") as locked_in,
        ):
            await free.dhcp()
            await locked_in.dhcp()
            await (await free.connect_tcp(GATEWAY, port)).aclose()
            with pytest.raises(ConnectionRefusedError):
                await locked_in.connect_tcp(GATEWAY, port)


async def test_networks_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that floods its network does not keep those of another waiting: these have a turn
    after each of its own."""
    turns: list[str] = []
    turn = Server.turn

    def noted(self: Server) -> bool:
        turns.append(self.config.name)
        return turn(self)

    monkeypatch.setattr(Server, "turn", noted)
    async with serving([network(tmp_path, "flooded"), network(tmp_path, "calm")]):
        with socket.socket(socket.AF_UNIX) as flood, socket.socket(socket.AF_UNIX) as calm:
            for sock, name in ((flood, "flooded"), (calm, "calm")):
                sock.connect(f"{tmp_path}/{name}")
                sock.setblocking(False)
            guest = ScriptedNetwork().guest()
            frame = guest.ping(GATEWAY)
            ping = len(frame).to_bytes(4, "big") + frame
            await trio.testing.wait_all_tasks_blocked()  # both links are there
            noise = (60).to_bytes(4, "big") + frame[:12] + b"\x88\x8e" + bytes(46)
            calm.send(ping)
            assert flood.send(noise * 2000) == len(noise) * 2000  # four turns at least
            turns.clear()
            await trio.lowlevel.wait_readable(calm)
    assert turns.count("flooded") <= 2
    assert "calm" in turns


async def test_one_that_cannot_start_ends_all(tmp_path: Path) -> None:
    """Half of what was asked for is nothing to go on with; the message says which half is not."""
    (tmp_path / "guests").write_text("a file")
    configs = [network(tmp_path, "lab"), network(tmp_path, "guests")]
    with pytest.raises(UserError, match=r'^network "guests": cannot listen on unix:.*not a socket'):
        await serve(configs, lambda _: None)
    assert not (tmp_path / "lab").exists()


# -- a process of its own

FILE = """
audit = "{folder}/audit"

[[network]]
name = "lab"
listen = "unix:{folder}/lab"
mtu = 1500
[network.policy]
default = "deny"

[[network]]
name = "guests"
listen = "unix:{folder}/guests"
mtu = 9000
[network.policy]
default = "{guests}"
"""


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[trio.Process, list[str]]]:
    """A server of the file there, until the block ends; what it says on stdout until it listens.
    Its log is the file `log`."""
    command = [sys.executable, "-m", "qemu_usernat", "serve", "--config", f"{folder}/net.toml"]
    with trio.fail_after(2 * WAIT), (folder / "log").open("w") as log:
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, stdout=subprocess.PIPE, stderr=log)
            server = await nursery.start(run, command)
            said = b""
            async with server.stdout:
                while said.count(b"\n") < 5:
                    said += await server.stdout.receive_some()
                yield server, said.decode().splitlines()
                server.terminate()
                assert await server.wait() == 0


async def until_logged(folder: Path, pattern: str) -> None:
    with trio.fail_after(WAIT):
        while not re.search(pattern, (folder / "log").read_text()):  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_a_server_of_two_networks(tmp_path: Path) -> None:
    """It says where each listens and what to paste for it, reports each, tells of verdicts which
    network they are of, and takes new policies all together or not at all."""
    file = tmp_path / "net.toml"
    file.write_text(FILE.format(folder=tmp_path, guests="deny"))
    async with (
        process(tmp_path) as (server, said),
        FakeGuest.connect(tmp_path / "lab") as lab,
        FakeGuest.connect(tmp_path / "guests") as guests,
    ):
        assert said[0] == f"network lab: listening on unix:{tmp_path}/lab"
        assert said[1] == f"network guests: listening on unix:{tmp_path}/guests"
        assert said[2].startswith("arguments for QEMU")
        assert (f"{tmp_path}/lab" in said[3], "host_mtu=1500" in said[3]) == (True, True)
        assert (f"{tmp_path}/guests" in said[4], "host_mtu=9000" in said[4]) == (True, True)
        for guest in (lab, guests):
            await guest.dhcp()
            with pytest.raises(ConnectionRefusedError):
                await guest.connect_tcp("192.0.2.1", 80)

        server.send_signal(signal.SIGUSR1)
        await until_logged(tmp_path, r"report .*links=1 .*network=lab")
        await until_logged(tmp_path, r"report .*links=1 .*network=guests")

        spoilt = FILE.format(folder=tmp_path, guests="perhaps").replace('"deny"', '"allow"', 1)
        file.write_text(spoilt)
        server.send_signal(signal.SIGHUP)
        await until_logged(tmp_path, r'nothing was reloaded.*network "guests": key "policy.default')
        with pytest.raises(ConnectionRefusedError):
            await lab.connect_tcp("192.0.2.2", 80)

        file.write_text(FILE.format(folder=tmp_path, guests="deny").rpartition("[[network]]")[0])
        server.send_signal(signal.SIGHUP)
        await until_logged(tmp_path, r"nothing was reloaded.*the networks are not those of before")

        file.write_text(FILE.format(folder=tmp_path, guests="allow"))
        server.send_signal(signal.SIGHUP)
        await until_logged(tmp_path, r"reloaded +network=guests policy=.*allow")
        await until_logged(tmp_path, r"reloaded +network=lab policy=.*deny")
    records = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    told = [(each["network"], each["address"], each["verdict"]) for each in records]
    assert told == [
        ("lab", "192.0.2.1", "deny"),
        ("guests", "192.0.2.1", "deny"),
        ("lab", "192.0.2.2", "deny"),
    ]


# -- commands


def test_commands_that_look_at_a_policy_say_of_which_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` and `lint` go through all of them; `explain` is told which one is meant."""
    file = tmp_path / "net.toml"
    file.write_text(FILE.format(folder=tmp_path, guests="allow"))
    assert main(["policy", "check", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'{file}: network "lab": good: rules: 0, default: deny, expected: 0',
        f'{file}: network "guests": good: rules: 0, default: allow, expected: 0',
    ]
    assert main(["policy", "explain", str(file), "tcp", "192.0.2.1:80"]) == 2
    assert "which network? allowed for --network: lab, guests" in capsys.readouterr().err
    assert main(["policy", "explain", "--network=guests", str(file), "tcp", "192.0.2.1:80"]) == 0
    guests = capsys.readouterr().out
    assert main(["policy", "explain", "--network=lab", str(file), "tcp", "192.0.2.1:80"]) == 0
    assert ("allow" in guests, "deny" in capsys.readouterr().out) == (True, True)


def test_run_refuses_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has one QEMU, and does not guess which network is meant."""
    file = tmp_path / "net.toml"
    file.write_text(FILE.format(folder=tmp_path, guests="allow"))
    assert main(["run", "--config", str(file), "--", "qemu-system-x86_64"]) == 2
    assert "has several networks (lab, guests); allowed here: one" in capsys.readouterr().err
    assert len(read_networks(file, {})) == 2
