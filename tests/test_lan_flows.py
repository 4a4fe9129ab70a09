"""The table of conversations between guests: who makes room, and what is left of whom."""

import pytest

from qemu_usernat import lan_flows
from qemu_usernat.admission import Decision, Guest
from qemu_usernat.lan.port import Port
from qemu_usernat.lan_flows import LanFlow, LanFlows, Side
from qemu_usernat.policy.judge import FlowRequest, Verdict
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.packets import UDP
from tests.scripted_guest import GUEST, GUEST_MAC, OTHER, OTHER_MAC, packed

HERE, THERE = packed(GUEST), packed(OTHER)


class Table:
    """Conversations over UDP from one guest's ports to the other's port 7."""

    def __init__(self) -> None:
        self.flows = LanFlows()
        self.one, self.two = (Port(name, Counters()) for name in ("one", "two"))

    def begins(self, port: int, owner: Port | None = None) -> LanFlow:
        guest = Guest(GUEST_MAC, "one", HERE)
        request = FlowRequest("udp", THERE, 7)
        flow = LanFlow(Decision(guest, request, Verdict(ALLOW, Why.RULE)), 0.0)
        flow.opener = Side(flow, (UDP, HERE, port, THERE, 7), guest, self.one)
        other = Guest(OTHER_MAC, "two", THERE)
        flow.target = Side(flow, (UDP, THERE, 7, HERE, port), other, self.two)
        self.flows.add(flow, owner or self.one)
        return flow

    def speaks(self, port: int, now: float) -> bool:
        return self.flows.find((UDP, HERE, port, THERE, 7), self.one, GUEST_MAC, now) is not None


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    """With room for three of each, and four in all."""
    monkeypatch.setattr(lan_flows, "FLOWS_OF_GUEST_MAXIMUM", 3)
    monkeypatch.setattr(lan_flows, "FLOWS_MAXIMUM", 4)
    return Table()


def test_the_one_that_was_silent_for_longest_makes_room(table: Table) -> None:
    """And not the oldest, if that has spoken since."""
    oldest, silent, _ = (table.begins(port) for port in (1, 2, 3))
    assert table.speaks(1, 1.0)
    assert table.flows.make_room(table.one)
    left = table.flows.all()
    assert oldest in left
    assert silent not in left


def test_what_is_nobodys_share_makes_room_first(table: Table) -> None:
    """The guest that began it is gone, and perhaps comes again; those who are here come first."""
    table.begins(1)
    table.flows.leave(table.one)
    here = [table.begins(port, table.two) for port in (2, 3, 4)]
    assert table.flows.make_room(table.one)
    left = table.flows.all()
    assert len(left) == 3
    assert all(each in left for each in here)


def test_one_that_begins_anew_takes_the_place_of_the_one_before(table: Table) -> None:
    """There is one of each key, and each can end."""
    before = table.begins(1)
    again = table.begins(1)
    assert table.flows.all() == [again]
    assert len(table.flows) == 1
    assert before not in table.flows.all()
    table.flows.remove(again)
    assert not table.speaks(1, 1.0)
    assert len(table.flows) == 0
