"""The hermetic internet as a real Linux kernel, curl and ping see it."""

import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from qemu_usernat.config.configuration import Config
from qemu_usernat.config.network import Network
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.server import Server
from qemu_usernat.testing.internet import Internet, Response
from qemu_usernat.testing.namespace import NamespaceGuest
from tests.kernel.laboratory import some_octets

pytestmark = pytest.mark.kernel

ADDRESS = "203.0.113.10"
TIME_LIMIT = 60.0  # seconds


@asynccontextmanager
async def guest_with(internet: Internet) -> AsyncIterator[NamespaceGuest]:
    """A namespace whose world is `internet`; everything else is this process and its clock."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with trio.fail_after(TIME_LIMIT):
        async with internet.running():
            server = Server(Config(network=Network()), make_world=internet.make_world)
            server.on_connection(ours, "guest")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve_sockets)
                nursery.start_soon(server.serve_deadlines)
                with NamespaceGuest(theirs) as guest:
                    yield guest
                nursery.cancel_scope.cancel()
            server.close()
    assert server.counters["server.bug"] == 0


async def run(guest: NamespaceGuest, *words: str) -> str:
    return await trio.to_thread.run_sync(guest.run, words)


async def test_curl_over_https(tmp_path: Path) -> None:
    """With the internet's authority it trusts the host, sends 3 MB and gets as much back, over a
    line that loses pieces; without it, it does not."""
    internet = Internet(seed=1)
    host = internet.host("example.com", ADDRESS)
    host.latency, host.loss = 0.002, 0.002
    host.https(lambda request: Response(request.body[::-1], 201))
    (tmp_path / "ca.pem").write_bytes(internet.ca_pem)
    octets = some_octets(3_000_000)
    (tmp_path / "up").write_bytes(octets)
    curl = ("curl", "--silent", "--show-error", "--max-time", "30", "--resolve")
    where = f"example.com:443:{ADDRESS}"
    async with guest_with(internet) as guest:
        status = await run(
            guest, *curl, where, "--cacert", f"{tmp_path}/ca.pem", "--write-out", "%{http_code}",
            "--data-binary", f"@{tmp_path}/up", "--output", f"{tmp_path}/down",
            "https://example.com/",
        )  # fmt: skip
        assert status == "201"
        with pytest.raises(UserError, match="SSL certificate problem"):
            await run(guest, *curl, where, "https://example.com/")
    down = (tmp_path / "down").read_bytes()
    assert hashlib.sha256(down).digest() == hashlib.sha256(octets[::-1]).digest()
    one, other = (record.ended for record in host.connections)
    assert one == "closed"
    # curl says why, and resets: where both come at once, the reset is what counts.
    assert other in ("TLS failed: TLSV1_ALERT_UNKNOWN_CA", "reset by the guest")
    assert len(host.requests) == 1
    internet.assert_nothing_unexpected()


async def test_what_is_not_defined_is_refused_at_once() -> None:
    """curl says so in its own words, in no time, and the internet has noted it."""
    internet = Internet()
    internet.host(None, ADDRESS).http("hello\n")
    async with guest_with(internet) as guest:
        assert await run(guest, "curl", "--silent", f"http://{ADDRESS}/") == "hello\n"
        for url in (f"http://{ADDRESS}:8080/", "http://198.51.100.7/"):
            with pytest.raises(UserError, match="curl ended with 7 "):
                await run(guest, "curl", "--silent", "--show-error", "--max-time", "30", url)
    assert [(note.destination, note.port) for note in internet.unexpected] == [
        (ADDRESS, 8080),
        ("198.51.100.7", 80),
    ]


async def test_a_socket_of_the_guest_is_cut_in_the_middle() -> None:
    """A download that is reset after 100,000 octets: the guest reads these, and then the error."""
    internet = Internet()
    host = internet.host(None, ADDRESS)

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(bytes(1_000_000))

    host.tcp(80, serve)
    host.resets_after(100_000)

    def download(guest: NamespaceGuest) -> int:
        received = 0
        with guest.connect((ADDRESS, 80)) as sock, suppress(ConnectionResetError):
            while octets := sock.recv(65536):
                received += len(octets)
            pytest.fail("the stream has ended in order")
        return received

    async with guest_with(internet) as guest:
        assert await trio.to_thread.run_sync(download, guest) == 100_000
