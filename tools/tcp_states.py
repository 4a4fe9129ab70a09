"""Write docs/tcp-states.md from the tables in `qemu_usernat.nat.tcp.states`: `make docs`."""

from collections.abc import Iterable
from pathlib import Path

from qemu_usernat.nat.tcp.states import (
    GUEST_TRANSITIONS,
    HOST_TRANSITIONS,
    JOINT_RULES,
    GuestEvent,
    GuestState,
    HostEvent,
    HostState,
    JointRule,
    Transition,
)

PAGE = Path(__file__).parent.parent / "docs" / "tcp-states.md"

HEAD = """\
# The states of a TCP flow

*This page is made from `qemu_usernat/nat/tcp/states.py` by `make docs`; a test fails when they
differ.*

A flow is two halves. The **guest half** is one end of a TCP connection with the guest's kernel,
in the states of RFC 9293, 3.3.2: mostly we play the server that the guest called, and begin in
SYN-HELD; where we call the guest, in SYN-SENT. Two states are said more exactly than there: SYN-
HELD is LISTEN with a SYN that waits for the host half, and RESET is CLOSED by a reset. The **host
half** is a stream socket to the server that the guest meant. What one half owes the other stands
in the **joint rules**.

A flow changes a state only by looking up (state, event) in these tables; a pair that is not here is
refused by name, as a bug of ours.
"""

RESETS = (GuestEvent.RST_RECEIVED, GuestEvent.ABORTED)

Row = Transition[GuestState, GuestEvent] | Transition[HostState, HostEvent]


def render() -> str:
    """The whole page."""
    return "\n".join(
        [
            HEAD,
            "## The guest half\n",
            *_diagram(GUEST_TRANSITIONS, GuestState.SYN_HELD, GuestState.SYN_SENT),
            "Resets are left out of the picture: from every state but TIME-WAIT and the two ends "
            "one leads to RESET, or where the guest has sent its FIN, to CLOSED.\n",
            *_table(GUEST_TRANSITIONS),
            "## The host half\n",
            *_diagram(HOST_TRANSITIONS, HostState.IDLE),
            *_table(HOST_TRANSITIONS),
            "## Joint rules\n",
            "At the end of each turn a flow pays what its pair of states owes, in this order.\n",
            *_rules(JOINT_RULES),
        ]
    )


def _diagram(rows: Iterable[Row], *starts: GuestState | HostState) -> list[str]:
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {_identifier(start)}" for start in starts]
    lines += [
        f"    {_identifier(row.state)} --> {_identifier(row.target)}: {row.event.value}"
        for row in rows
        if row.event not in RESETS
    ]
    return [*lines, "```", ""]


def _identifier(state: GuestState | HostState) -> str:
    name: str = state.value
    return name.replace("-", "_")


def _table(rows: Iterable[Row]) -> list[str]:
    lines = ["| in | when | to | because |", "|---|---|---|---|"]
    lines += [
        f"| {row.state.value} | {row.event.value} | {row.target.value} | {row.reason} |"
        for row in rows
    ]
    return [*lines, ""]


def _rules(rules: Iterable[JointRule]) -> list[str]:
    lines = ["| guest half in | host half in | owed | because |", "|---|---|---|---|"]
    lines += [
        f"| {_names(rule.guest, GuestState)} | {_names(rule.host, HostState)} "
        f"| {rule.duty.value} | {rule.reason} |"
        for rule in rules
    ]
    return [*lines, ""]


def _names(
    states: frozenset[GuestState] | frozenset[HostState],
    order: type[GuestState] | type[HostState],
) -> str:
    return ", ".join(state.value for state in order if state in states)


if __name__ == "__main__":
    PAGE.write_text(render())
