"""Connecting to another server, and those that connect here."""

import re
import socket

import pytest

from qemu_usernat.config import Config, TcpEndpoint
from qemu_usernat.lan.port import JoinPort
from qemu_usernat.qemu.joining import CALLERS_MAXIMUM, _connect
from qemu_usernat.qemu.link import Link
from qemu_usernat.server import Server


@pytest.mark.parametrize("name", ["\u2603", "a..b", "a" * 70])
async def test_what_is_no_hosts_name_is_told_as_any_other_reason(name: str) -> None:
    """And is tried again as all that fails: a bad name ends no server."""
    with pytest.raises(OSError, match=f"{re.escape(name)} is not a host's name"):
        await _connect(TcpEndpoint(name, 7000))


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
