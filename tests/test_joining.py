"""Two servers that are one LAN: real processes, joined by a unix socket and over TCP."""

import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from qemu_usernat import read_config, running
from qemu_usernat.testing import FakeGuest
from qemu_usernat.testing.fake_guest.tcp import TcpListener

WAIT = 20.0
ALICE, BOB = "52:54:00:00:00:01", "52:54:00:00:00:02"
RANGES = {"one": ("10.0.2.15", "10.0.2.99"), "two": ("10.0.2.100", "10.0.2.199")}


def written(folder: Path, name: str) -> Path:
    """The configuration of the server of that name."""
    first, last = RANGES[name]
    file = folder / f"{name}.toml"
    file.write_text(f'[network]\nfirst_lease = "{first}"\nlast_lease = "{last}"\n')
    return file


@asynccontextmanager
async def server(folder: Path, name: str, *options: str) -> AsyncIterator[str]:
    """A server of that name, until the block ends; where it lets others join, if it does."""
    command = [sys.executable, "-m", "qemu_usernat", "serve", f"--config={written(folder, name)}"]
    command += [f"--listen=unix:{folder}/{name}", "--host-loopback", *options]
    with trio.fail_after(2 * WAIT), (folder / f"{name}.log").open("w") as log:
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, stdout=subprocess.PIPE, stderr=log)
            process = await nursery.start(run, command)
            said = b""
            last = b"joining " if name == "two" else b"letting servers join at "
            async with process.stdout:
                while last not in said or not said.endswith(b"\n"):
                    said += await process.stdout.receive_some()
                where = re.search(rb"letting servers join at (\S+)", said)
                yield where[1].decode() if where else ""
                process.terminate()
                assert await process.wait() == 0


@asynccontextmanager
async def server_in_here(folder: Path, *, where: str) -> AsyncIterator[None]:
    """The same as "one", but quicker to start."""
    options = {"listen": f"unix:{folder}/one", "join_listen": where}
    async with running(read_config(written(folder, "one"), options)):
        yield


async def until_logged(folder: Path, name: str, words: str) -> None:
    with trio.fail_after(WAIT):
        while words not in (folder / f"{name}.log").read_text():  # noqa: ASYNC110
            await trio.sleep(0.02)


async def until_found(guest: FakeGuest, name: str) -> list[str]:
    """The addresses of a name, once the servers have told each other of it."""
    with trio.fail_after(WAIT):
        while True:
            try:
                return [*await guest.resolve(name)]
            except LookupError:
                await trio.sleep(0.05)


async def say_hello_to_each_other(alice: FakeGuest, bob: FakeGuest) -> None:
    """They ping each other, by name and by address, and transfer a megabyte byte for byte."""
    assert (await alice.dhcp(host_name="alice")).address == "10.0.2.15"
    assert (await bob.dhcp(host_name="bob")).address == "10.0.2.100"
    assert await until_found(alice, "bob.internal") == ["10.0.2.100"]
    assert await until_found(bob, "alice.internal") == ["10.0.2.15"]
    await alice.ping("bob.internal")
    await bob.ping("10.0.2.15")

    octets = bytes(range(256)) * 4096
    heard = bytearray()

    async def take(listener: TcpListener) -> None:
        stream = await listener.accept()
        async for piece in stream:
            heard.extend(piece)
        await stream.aclose()

    with bob.listen_tcp(8080) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, listener)
            stream = await alice.connect_tcp("bob.internal", 8080)
            await stream.send_all(octets)
            await stream.aclose()
    assert bytes(heard) == octets


async def test_guests_of_two_servers_share_a_lan(tmp_path: Path) -> None:
    """Over TCP; and each finds its own gateway, under one and the same address. Another
    join, which is refused, disturbs nobody, and the log says once why it is."""
    itself = f"unix:{tmp_path}/itself"
    with socket.create_server(("127.0.0.1", 0)) as world:
        listens = ("--join-listen=tcp:127.0.0.1:0", f"--join-listen={itself}", f"--join={itself}")
        async with (
            server(tmp_path, "one", *listens) as where,
            server(tmp_path, "two", f"--join={where}"),
            FakeGuest.connect(tmp_path / "one", mac=ALICE) as alice,
            FakeGuest.connect(tmp_path / "two", mac=BOB) as bob,
        ):
            await say_hello_to_each_other(alice, bob)
            for guest in (alice, bob):
                await guest.ping("10.0.2.2")
                await (await guest.connect_tcp("10.0.2.2", world.getsockname()[1])).aclose()
            refused = "refused: it leads back to this server"
            await until_logged(tmp_path, "one", refused)
            assert (tmp_path / "one.log").read_text().count(refused) == 1


async def test_a_join_comes_again(tmp_path: Path) -> None:
    """The server that was joined is started anew: soon both are one LAN again. What the log says
    of it is a join's, and no guest's."""
    where = f"unix:{tmp_path}/join"
    async with (
        server(tmp_path, "two", f"--join={where}"),
        FakeGuest.connect(tmp_path / "two", mac=BOB) as bob,
    ):
        await bob.dhcp(host_name="bob")
        await until_logged(tmp_path, "two", "No such file or directory")
        for _ in range(2):
            async with (
                server_in_here(tmp_path, where=where),
                FakeGuest.connect(tmp_path / "one", mac=ALICE) as alice,
            ):
                await alice.dhcp(host_name="alice")
                await until_found(alice, "bob.internal")
                await alice.ping("10.0.2.100")
            await until_logged(tmp_path, "two", "a join has ended")
            with pytest.raises(LookupError):
                await bob.resolve("alice.internal")
    said = (tmp_path / "two.log").read_text()
    assert said.count("joined a server") == said.count("a join has ended") == 2
    assert said.count("the other server closed the connection") == 2
    assert said.count("No such file or directory") <= 3  # once, and once after each join
