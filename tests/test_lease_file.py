"""Leases that outlive the server, and a file that a person has edited, spoilt or mistaken."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from qemu_usernat.gateway.dhcp import DhcpServer
from qemu_usernat.gateway.leases import HeldLease
from qemu_usernat.lease_file import HEAD, LeaseFile, read_leases, write_leases
from qemu_usernat.primitives.errors import UserError
from tests.gateway.test_dhcp import ALICE, BOB, DAY, FIRST, SECOND_ADDRESS, lease, make_server

NOON = 1769860800.0  # 2026-01-31T12:00:00Z
ALICE_S = "2026-02-01T12:00:00Z 52:54:00:00:00:0a 10.0.2.15 015254000000 0a -".replace(
    " 0a -", "0a -"
)


def file_of(path: Path, server: DhcpServer, moment: float = NOON) -> LeaseFile:
    return LeaseFile(path, server, lambda: moment)


def restarted(path: Path, later: float = 0.0) -> DhcpServer:
    """A server whose clock begins anew, some time after noon."""
    server = make_server()
    file_of(path, server, NOON + later).open(0.0)
    return server


def test_a_restarted_server_gives_the_same_addresses(tmp_path: Path) -> None:
    """Also where guests ask in another order, and the server's own clock is another."""
    path, old = tmp_path / "leases", make_server()
    file = file_of(path, old)
    file.open(1000.0)
    alice, bob = lease(old, ALICE, now=1000.0), lease(old, BOB, now=1000.0)
    file.close(1000.0)
    server = restarted(path, later=60.0)
    assert (lease(server, BOB, now=5.0), lease(server, ALICE, now=5.0)) == (bob, alice)
    assert [each.expires for each in restarted(path, 60.0).leases(0.0)] == [DAY - 60.0] * 2


def test_a_file_is_lines_for_a_person(tmp_path: Path) -> None:
    """What each word is stands on top."""
    path, server = tmp_path / "leases", make_server()
    file = file_of(path, server)
    file.open(0.0)
    assert path.read_text() == HEAD + "\n"
    lease(server, ALICE)
    file.close(0.0)
    assert path.read_text() == f"{HEAD}\n{ALICE_S}\n"


async def test_it_is_written_once_a_second_and_not_for_each_lease(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred renewals within a moment are one writing, and none is no writing."""
    server = make_server()
    file = file_of(tmp_path / "leases", server)
    file.open(0.0)
    written: list[str] = []
    monkeypatch.setattr(LeaseFile, "_write", lambda self, text: written.append(text))

    async def at_once(write: Callable[..., None], *arguments: object) -> None:
        write(*arguments)  # a clock that jumps does not wait for threads

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.keep)
        for _ in range(100):
            lease(server, ALICE)
        await trio.sleep(1.5)
        assert len(written) == 1
        await trio.sleep(10)
        assert len(written) == 1
        lease(server, BOB)
        await trio.sleep(1.5)
        assert len(written) == 2
        file.close(0.0)
        assert len(written) == 2
        lease(server, BOB)
        file.close(0.0)
        assert len(written) == 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "2: 1 words; allowed: a line like 2026-01-31T12:00:00Z 52:54:00:12:34:56"),
        ("tomorrow 52:54:00:00:00:0b 10.0.2.16 0152 -", '2: "tomorrow" is not a time; allowed'),
        ("2026-02-01T12:00:00Z bob 10.0.2.16 0152 -", "2: 'bob' is not a MAC address"),
        ("2026-02-01T12:00:00Z 52:54:00:00:00:0b host 0152 -", "2: 'host' does not appear"),
        ("2026-02-01T12:00:00Z 52:54:00:00:00:0b ::1 0152 -", '2: "::1" is not an IPv4'),
        ("2026-02-01T12:00:00Z 52:54:00:00:00:0b 10.0.2.16 xyz -", '2: "xyz" is not a client id'),
        ("2026-02-01T12:00:00Z 52:54:00:00:00:0b 10.0.2.16 01 -", '2: "01" is not a client id'),
        ("2026-02-01T12:00:00Z 52:54:00:00:00:0b 10.0.2.16 0152 A.b", '2: "A.b" is not a name'),
        ("\0\ufffd\0", "2: 1 words"),
    ],
)
def test_a_spoilt_line_costs_one_lease(tmp_path: Path, line: str, why: str) -> None:
    """It is told with its number and what is allowed; the others are kept, and so is the file."""
    path = tmp_path / "leases"
    spoilt = f"{HEAD}\n{line}\n\n# a remark\n{ALICE_S}\n"
    path.write_text(spoilt)
    with structlog.testing.capture_logs() as logs:
        server = restarted(path)
    assert [each.mac for each in server.leases(0.0)] == [ALICE]
    assert f"{path}:{why}" in logs[0]["event"]
    assert "; allowed: a line like" in logs[0]["event"]
    assert logs[1]["lines"] == 1
    assert (tmp_path / "leases.damaged").read_text() == spoilt
    assert path.read_text() == f"{HEAD}\n{ALICE_S}\n"


def test_a_file_of_nothing_but_damage_is_told_of_in_a_few_lines(tmp_path: Path) -> None:
    """Bytes of a disk that was full: the server starts, and the log stays readable."""
    path = tmp_path / "leases"
    damage = HEAD.encode() + b"\n" + b"\xff\xfe\r\n" * 1000
    path.write_bytes(damage)
    with structlog.testing.capture_logs() as logs:
        assert restarted(path).leases(0.0) == []
    assert len(logs) == 11
    assert (tmp_path / "leases.damaged").read_bytes() == damage


def test_leases_of_another_network_are_not_lost(tmp_path: Path) -> None:
    """A server started with the wrong configuration says so, and keeps what was there."""
    path = tmp_path / "leases"
    old = f"{HEAD}\n{ALICE_S}\n{ALICE_S.replace('10.0.2.15', '192.168.7.15').replace('0a', '0b')}\n"
    path.write_text(old)
    with structlog.testing.capture_logs() as logs:
        server = restarted(path)
    assert [each.mac for each in server.leases(0.0)] == [ALICE]
    assert "192.168.7.15 of 52:54:00:00:00:0b is not to be leased here" in logs[0]["event"]
    assert (tmp_path / "leases.foreign").read_text() == old
    with structlog.testing.capture_logs() as logs:
        restarted(path, later=2 * DAY)  # what has ended is nobody's loss
    assert logs == []


_START = """
import sys
from pathlib import Path
from qemu_usernat.lease_file import LeaseFile
from tests.gateway.test_dhcp import make_server

LeaseFile(Path(sys.argv[1]), make_server()).open(0.0)
"""


def test_the_language_of_the_system_is_not_that_of_the_file(tmp_path: Path) -> None:
    """A server starts where nothing but ASCII is known, whatever a person has written there."""
    path = tmp_path / "leases"
    damage = f"{HEAD}\nBüro\n".encode()
    path.write_bytes(damage)
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    run = subprocess.run(
        [sys.executable, "-c", _START, str(path)],
        env=os.environ | ascii_only,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "leases.damaged").read_bytes() == damage
    assert path.read_bytes() == HEAD.encode() + b"\n"


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_one_without_leases(tmp_path: Path, content: str) -> None:
    """As `touch` makes it."""
    (tmp_path / "leases").write_text(content)
    assert restarted(tmp_path / "leases").leases(0.0) == []


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path) -> None:
    """A wrong path is an error, and costs nobody a file; nor does the end of the server."""
    path = tmp_path / "net.toml"
    path.write_text("mtu = 1500\n")
    file = file_of(path, make_server())
    with pytest.raises(UserError, match=r"net.toml:1: is no lease file; allowed: one whose first"):
        file.open(0.0)
    file.close(0.0)
    assert path.read_text() == "mtu = 1500\n"


def test_what_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    """Not the day on which somebody needs it."""
    (tmp_path / "file").touch()
    (tmp_path / "null").symlink_to("/dev/null")
    for name, why in {
        "no/leases": "No such file or directory; allowed: a file that can be written",
        "file/leases": "Not a directory; allowed",
        ".": "no regular file; allowed: a file",
        "null": "no regular file; allowed: a file",
    }.items():
        with pytest.raises(UserError) as refusal:
            restarted(tmp_path / name)
        assert f"lease_file (--lease-file) is {tmp_path / name}: {why}" in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "null"]


def test_there_is_a_whole_file_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writing that fails half-way leaves the old one, is told of once, and is tried again."""
    path, server = tmp_path / "leases", make_server()
    file = file_of(path, server)
    file.open(0.0)
    lease(server, ALICE)
    file.close(0.0)
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(os, "fsync", full)
        for _ in range(3):
            lease(server, BOB)
            file.close(0.0)
    assert [each["reason"] for each in logs] == ["No space left on device"]
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["leases"]
    file.close(0.0)
    assert [each.mac for each in restarted(path).leases(0.0)] == [ALICE, BOB], (
        "nothing new is needed"
    )


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it leads to is written."""
    (tmp_path / "state").mkdir()
    (tmp_path / "leases").symlink_to("state/leases")
    restarted(tmp_path / "leases")
    assert (tmp_path / "leases").is_symlink()
    assert (tmp_path / "state" / "leases").read_text() == HEAD + "\n"


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True) | st.just("")
held = st.builds(
    HeldLease,
    st.sampled_from([FIRST, SECOND_ADDRESS]),
    st.binary(min_size=6, max_size=6),
    names,
    st.binary(min_size=2, max_size=255),
    st.integers(-(10**12), 10**12).map(float),
)


@given(st.lists(held, max_size=4), st.integers(0, 10**6))
def test_what_is_written_is_what_is_read(leases: list[HeldLease], now: int) -> None:
    """To the second; what ended before there were years, or ends when there are none, as such."""
    text = write_leases(leases, NOON, float(now))
    read, flaws = read_leases(text, NOON, float(now))
    assert flaws == []
    for before, after in zip(leases, read, strict=True):
        moment = NOON + before.expires - now
        assert after.expires == before.expires or not 0 <= moment < 2.5 * 10**11
        assert (after.expires > now) is (before.expires > now)
        assert (after.address, after.mac, after.name, after.client) == (
            before.address, before.mac, before.name, before.client,
        )  # fmt: skip


@given(st.text(max_size=60) | st.from_regex(r"\S+ \S+ \S+ \S+ \S+"))
def test_whatever_stands_there_is_a_lease_or_a_flaw(line: str) -> None:
    """Nothing that a person or a disk writes keeps the server from starting."""
    leases, flaws = read_leases(f"{HEAD}\n{line}", NOON, 0.0)
    lines = [each for each in line.splitlines() if each.strip() and each[0] != "#"]
    assert len(leases) + len(flaws) == len(lines)
