"""Published ports on a host of ours: how they are bound, told of, and given back."""

import errno
import re
import socket
import tomllib
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from qemu_usernat.arrivals import GUEST_WAIT
from qemu_usernat.config import Config, parse_publication
from qemu_usernat.config.publish import read_publications
from qemu_usernat.host.publish import ACCEPT_PAUSE, TcpEntrance, _reasons
from qemu_usernat.poller import Handler, Poller
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.server import Server

PAGE = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """One that runs, without a guest."""
    made = Server(Config())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.serve_sockets)
        nursery.start_soon(made.serve_deadlines)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


async def waiting(server: Server, count: int) -> None:
    """Until so many clients wait for a guest."""
    with trio.fail_after(5):
        while len(server.router.arrivals.waiting) != count:
            await trio.lowlevel.checkpoint()


async def test_the_port_that_the_system_chose_is_told(server: Server) -> None:
    """A client connects there; when nobody is taken in any more, it is refused."""
    published = server.publish("127.0.0.1:0:80")
    assert server.publications == (published,)
    client = await trio.open_tcp_stream(*published.address)
    await waiting(server, 1)
    server.unpublish(published)
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some(1)
    with pytest.raises(OSError, match="all attempts"):
        await trio.open_tcp_stream(*published.address)
    with pytest.raises(
        UserError, match="is not published; allowed is what publish has returned: noth"
    ):
        server.unpublish(published)
    await client.aclose()


async def test_a_port_in_use_says_by_whom(server: Server) -> None:
    """Of TCP and of UDP; of a range nothing is left behind."""
    host = "127.0.0.77"  # where nobody else takes the port before
    with socket.create_server((host, 0)) as other:
        port = other.getsockname()[1]
        for text in (f"{host}:{port}:80", f"{host}:{port - 1}-{port}:80"):
            with pytest.raises(UserError, match="in use by this very process; end that, or choose"):
                server.publish(text)
        server.publish(f"{host}:{port - 1}:80")
        udp = server.publish(f"udp:{host}:{port}:80")
        with pytest.raises(UserError, match=rf"udp:{host}:{port}: in use by this"):
            server.publish(f"udp:{host}:{port}:80")
        server.unpublish(udp)


def test_a_port_of_another_users_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose descriptors may not be read: to end it is not for this user to do."""

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(Path, "iterdir", refuse)
        port = other.getsockname()[1]
        said = "; ".join(
            _reasons(OSError(errno.EADDRINUSE, ""), "tcp", IPv4Address("127.0.0.1"), port)
        )
    assert said == "in use by a process of another user; choose another port"


async def test_other_mistakes_say_what_to_do(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that is not here, a guest that cannot be, a port for the privileged."""
    with pytest.raises(UserError, match="this host does not have that address"):
        server.publish("192.0.2.1:8080:80")
    with pytest.raises(UserError, match=r"allowed: a guest's address inside 10\.0\.2\.0/24"):
        server.publish("8080:10.9.9.9:80")

    with pytest.raises(UserError, match="the guest's port is missing"):
        server.publish("unix:/tmp/web.sock")
    with pytest.raises(UserError, match='"8080" publishes nothing'):
        server.publish(8080)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="8080:80 is not published; allowed is what publish has"):
        server.unpublish("8080:80")  # type: ignore[arg-type]

    mistakes = {
        errno.EACCES: r"privileged programs; choose one from .* on, or allow it",
        errno.EMFILE: "too many open files; each port is one: publish fewer, or allow more",
    }
    for number, words in mistakes.items():

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, "no")

        monkeypatch.setattr(socket.socket, "bind", refuse)
        with pytest.raises(UserError, match=words):
            server.publish("80:80")


@pytest.mark.parametrize("form", ["", "udp:"])
async def test_a_client_that_found_no_guest_is_in_the_log(server: Server, form: str) -> None:
    """With the publication as it is bound."""
    published = server.publish(f"{form}127.0.0.1:0:80")
    kind = socket.SOCK_DGRAM if form else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as client, capture_logs() as logs:
        client.connect(published.address)
        client.send(b"hello")
        router = server.router
        with trio.fail_after(5):
            while router.arrivals.deadline() == router.visits.deadline():
                await trio.lowlevel.checkpoint()
        server.router.on_deadline(trio.current_time() + GUEST_WAIT)
    (line,) = logs
    assert line["published"] == f"{published}"
    assert line["why"] == "no guest was there in time"


async def test_without_descriptors_a_client_waits_and_nothing_spins(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken in when there is one again."""
    published = server.publish("127.0.0.1:0:80")
    accept = socket.socket.accept
    refused = 0

    def starved(sock: socket.socket) -> object:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", starved)
    begun = trio.current_time()
    client = await trio.open_tcp_stream(*published.address)
    await waiting(server, 1)
    assert trio.current_time() - begun >= 2 * ACCEPT_PAUSE
    assert server.counters["publish.accept_failed"] == 2
    await client.aclose()


async def test_an_entrance_that_cannot_be_watched_again_tries_later(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system has no memory for it, after a pause: those beside it go on, and so does the
    server."""
    published = [server.publish("127.0.0.1:0:80") for _ in range(3)]
    accept, watch = socket.socket.accept, server.poller.watch
    starved, refused = set(), 0

    def without_descriptors(sock: socket.socket) -> object:
        if sock not in starved:
            starved.add(sock)
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(sock)

    def without_memory(poller: Poller, sock: socket.socket, handler: Handler, **what: bool) -> None:
        nonlocal refused
        if isinstance(handler, TcpEntrance) and refused < 2:
            refused += 1
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        watch(sock, handler, **what)

    monkeypatch.setattr(socket.socket, "accept", without_descriptors)
    monkeypatch.setattr(Poller, "watch", without_memory)
    clients = [await trio.open_tcp_stream(*each.address) for each in published]
    await waiting(server, 3)
    assert refused == 2
    assert server.counters["publish.accept_failed"] == 5
    for client in clients:
        await client.aclose()


async def test_a_path_that_cannot_be_watched_is_not_published(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system has no memory for it: that is said, and no file is left there."""

    def without_memory(*_: object, **__: bool) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    path = tmp_path / "web.sock"
    with monkeypatch.context() as starved:
        starved.setattr(Poller, "watch", without_memory)
        with pytest.raises(UserError, match=r"cannot publish unix:.*: Cannot allocate memory"):
            server.publish(f"unix:{path}:80")
    assert not path.exists()
    server.publish(f"unix:{path}:80")


def test_the_page_says_what_can_be_written() -> None:
    """Its examples are read; `[[publish]]` too."""
    examples = re.findall(r"^\| `([^`]+:\d+)` \|", PAGE, re.M)
    assert len(examples) >= 8
    for text in examples:
        parse_publication(text)
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    assert len(read_publications(tomllib.loads(table)["publish"])) == 2


async def test_a_program_publishes_as_the_page_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The example of the page runs: it listens, says where the guest's server is, and whoever
    connects there is taken in, until it ends."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    program = example.replace("/tmp/guest.sock", f"{tmp_path}/guest.sock").replace(
        "trio.run(main)\n", ""
    )
    exec(program, names)
    said = ""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names["main"])
            while "at (" not in said:
                await trio.sleep(0.01)
                said += capfd.readouterr().out
            assert (tmp_path / "guest.sock").exists()
            port = int(said.split()[-1].rstrip(")"))
            async with await trio.open_tcp_stream("127.0.0.1", port):
                nursery.cancel_scope.cancel()
    assert not (tmp_path / "guest.sock").exists()
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


@pytest.mark.parametrize("is_withdrawn", [False, True])
async def test_a_port_rests_while_there_are_no_descriptors(
    server: Server, monkeypatch: pytest.MonkeyPatch, is_withdrawn: bool
) -> None:
    """Who has come is taken in when there are some again; a port that is withdrawn meanwhile stays
    closed."""
    published = server.publish("127.0.0.1:0:80")

    def refuse(_: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", refuse)
        client = await trio.open_tcp_stream(*published.address)
        with trio.fail_after(5):
            while not server.counters["publish.accept_failed"]:
                await trio.lowlevel.checkpoint()
    if is_withdrawn:
        server.unpublish(published)
    server._publisher.on_deadline(trio.current_time() + 1)
    if is_withdrawn:
        assert server._publisher.deadline() == NEVER
    else:
        await waiting(server, 1)
    assert server.counters["publish.accept_failed"] == 1
    await client.aclose()
