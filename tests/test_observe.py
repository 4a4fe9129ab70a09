"""What a running server tells: each verdict as a line, repeats counted; and SIGHUP."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from qemu_usernat.admission import Decision, Guest
from qemu_usernat.observe import Audit
from qemu_usernat.policy.audit import AuditRecord
from qemu_usernat.policy.judge import FlowRequest, Verdict
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import parse_address, parse_mac
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.testing import FakeGuest

GUEST = Guest(parse_mac("52:54:00:12:34:56"), "guest", parse_address("10.0.2.15"))


def denied(port: int) -> Decision:
    request = FlowRequest("tcp", parse_address("198.51.100.7"), port)
    return Decision(GUEST, request, Verdict("deny", Why.DEFAULT))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_verdict_is_a_line_and_repeats_are_counted(tmp_path: Path) -> None:
    """At once the first time; a thousand more are one line a minute later, and at the end."""
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, clock=lambda: 1_800_000_000.0)
    audit.open()
    for now in range(1000):
        audit.on_decision(denied(443), now / 1000)
    audit.on_decision(denied(80), 1.0)
    assert [(line["port"], line["repeated"]) for line in lines(path)] == [(443, 1), (80, 1)]
    assert audit.deadline() == 60
    audit.on_deadline(60.0)
    audit.on_decision(denied(80), 60.5)
    audit.close()
    assert [(line["port"], line["repeated"]) for line in lines(path)][2:] == [(443, 999), (80, 1)]
    first = lines(path)[0]
    assert (first["guest"], first["source"], first["address"], first["why"], first["time"]) == (
        "52:54:00:12:34:56", "10.0.2.15", "198.51.100.7", "default", "2027-01-15T08:00:00.000Z",
    )  # fmt: skip


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """As logrotate does it."""
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.open()
    audit.on_decision(denied(1), 0.0)
    path.rename(tmp_path / "old")
    audit.open()
    audit.on_decision(denied(2), 0.0)
    audit.close()
    assert [line["port"] for line in lines(path)] == [2]
    assert [line["port"] for line in lines(tmp_path / "old")] == [1]


def test_a_file_that_cannot_be_written_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    """With its name and the reason."""
    with pytest.raises(UserError, match=r"--audit .*nowhere/audit: cannot be written: No such"):
        Audit(tmp_path / "nowhere" / "audit").open()


async def test_a_stream_has_each_record(autojump_clock: MockClock) -> None:
    """While somebody listens; one who does not keep up loses the newest, and holds up nobody."""
    audit = Audit()
    audit.on_decision(denied(1), 0.0)
    with audit.stream() as records:
        for port in range(2, 2000):
            audit.on_decision(denied(port), 0.0)
        first = await anext(records)
        assert isinstance(first, AuditRecord)
        assert first.port == 2
    audit.on_decision(denied(3000), 0.0)


# -- a real process

POLICY = """
[policy]
default = "deny"
[[policy.rule]]
name = "web"
allow = "host"
on = "tcp/{port}"
"""


@contextmanager
def serving(folder: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A server in the folder; its log goes to a file there."""
    command = [sys.executable, "-m", "qemu_usernat", "serve", f"--listen=unix:{folder}/net.sock"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("listening"), (folder / "log").read_text()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


@asynccontextmanager
async def guest_of(folder: Path) -> AsyncIterator[FakeGuest]:
    async with FakeGuest.connect(folder / "net.sock") as guest:
        await guest.dhcp()
        yield guest


async def until_logged(folder: Path, words: str) -> None:
    with trio.fail_after(20):
        while words not in (folder / "log").read_text():  # noqa: ASYNC110 - of another process
            await trio.sleep(0.02)


async def test_sighup_replaces_the_policy(tmp_path: Path) -> None:
    """The file as it is now, whole; a mistake in it changes nothing; what lives is judged again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        file, audit = tmp_path / "policy.toml", tmp_path / "audit.jsonl"
        file.write_text(POLICY.format(port=port))
        options = [f"--policy={file}", f"--audit={audit}", "--host-loopback"]
        with serving(tmp_path, *options) as process:
            async with guest_of(tmp_path) as guest:
                stream = await guest.connect_tcp("10.0.2.2", port)
                with pytest.raises(ConnectionRefusedError):
                    await guest.connect_tcp("10.0.2.2", 1)

                file.write_text("[policy]\ndefault = 'perhaps'\n")
                process.send_signal(signal.SIGHUP)
                await until_logged(tmp_path, "nothing was reloaded")
                await stream.send_all(b"still here")

                file.write_text(POLICY.format(port=1))
                process.send_signal(signal.SIGHUP)
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
                with pytest.raises(ConnectionRefusedError):
                    await guest.connect_tcp("10.0.2.2", port)
    verdicts = [(line["port"], line["verdict"], line["rule"]) for line in lines(audit)]
    assert verdicts == [(port, "allow", "web"), (1, "deny", None), (port, "deny", None)]


async def test_sighup_takes_no_policy_away(tmp_path: Path) -> None:
    """A file that has become empty, as while an editor writes it, is a mistake."""
    file = tmp_path / "net.toml"
    file.write_text("[policy]\ndefault = 'deny'\n")
    with serving(tmp_path, f"--config={file}") as process:
        async with guest_of(tmp_path) as guest:
            file.write_text("")
            process.send_signal(signal.SIGHUP)
            await until_logged(tmp_path, "there is no [policy] any more")
            with pytest.raises(ConnectionRefusedError):
                await guest.connect_tcp("203.0.113.10", 80)


OF_A_GUEST = "[policy]\ndefault = 'deny'\n[policy.guest.'{}']\ndefault = 'deny'\n"


async def test_a_guest_is_known_by_where_it_connects(tmp_path: Path) -> None:
    """Its policy is its link's, each time that it comes."""
    file, listens = tmp_path / "policy.toml", f"unix:{tmp_path}/net.sock"
    file.write_text(OF_A_GUEST.format(listens) + "rule = [{allow = 'host'}]\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with serving(tmp_path, f"--policy={file}", "--host-loopback"):
            for _ in range(2):
                async with guest_of(tmp_path) as guest:
                    await guest.connect_tcp("10.0.2.2", port)


def test_a_guest_on_a_link_that_will_never_be_is_a_mistake(tmp_path: Path) -> None:
    """Else its policy would hold for nobody, in silence."""
    file, listens = tmp_path / "policy.toml", f"unix:{tmp_path}/net.sock"
    file.write_text(OF_A_GUEST.format("the bad one"))
    command = [sys.executable, "-m", "qemu_usernat", "serve", f"--policy={file}"]
    done = subprocess.run([*command, f"--listen={listens}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "the bad one" in done.stderr
    assert f"a MAC address, or one of {listens}" in done.stderr
