"""Connecting to another server, and those that connect here."""

import re
import socket

import pytest
import trio
import trio.testing

from qemu_usernat.config import Config, TcpEndpoint
from qemu_usernat.lan.port import JoinPort
from qemu_usernat.qemu.joining import CALLERS_MAXIMUM, LINES_AT_ONCE, TOLD_MAXIMUM, _connect
from qemu_usernat.qemu.link import Link
from qemu_usernat.server import Server


@pytest.mark.parametrize("name", ["\u2603", "a..b", "a" * 70])
async def test_what_is_no_hosts_name_is_told_as_any_other_reason(name: str) -> None:
    """And is tried again as all that fails: a bad name ends no server."""
    with pytest.raises(OSError, match=f"{re.escape(name)} is not a host's name"):
        await _connect(TcpEndpoint(name, 7000))


def words(capsys: pytest.CaptureFixture[str], what: str) -> int:
    """How many lines of the log have it, since this was asked last."""
    out = capsys.readouterr()
    return (out.out + out.err).count(what)


async def test_the_log_tells_of_joins_with_a_bound(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever may connect can invent reasons, and join and leave again, for ever."""
    made = Server(Config())
    joining = made.joining
    try:
        for number in range(100):
            joining._tell("listens", f"its mtu is {number}, and not 65520")
        assert words(capsys, "not joined") == TOLD_MAXIMUM
        for _ in range(100):
            joining._on_joined("listens")
        assert words(capsys, "joined a server") == LINES_AT_ONCE - TOLD_MAXIMUM
        assert made.counters["join.not_told"] > 0
        await trio.sleep(60)
        joining._on_joined("listens")
        assert words(capsys, "joined a server") == 1
    finally:
        made.close()


async def test_connections_that_say_nothing_are_few() -> None:
    """The newest stay, and who has said who it is: no flood of them keeps a server out, or takes
    what is for guests."""
    made = Server(Config())
    joining, theirs = made.joining, []

    def connect() -> Link:
        ours, other = socket.socketpair()
        ours.setblocking(False)
        theirs.append(other)
        joining.on_caller(ours, "join")
        return [*joining.links][-1]

    try:
        known = connect()
        assert isinstance(known.port, JoinPort)
        known.port.accepted = True
        made.router.switch.attach(known.port)
        callers = [connect() for _ in range(3 * CALLERS_MAXIMUM)]
        assert [*joining.links] == [known, *callers[-CALLERS_MAXIMUM:]]
        assert all(each.closed for each in callers[:-CALLERS_MAXIMUM])
        assert made.counters["join.crowded"] == 2 * CALLERS_MAXIMUM
        assert made.router.switch.ports == [known.port]
    finally:
        made.close()
        for each in theirs:
            each.close()
