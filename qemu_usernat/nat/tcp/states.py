"""The states of a TCP flow, as data: what the flow obeys and the documentation prints.

A flow is two halves. The *guest half* is one end of a TCP connection with the guest's
kernel, in the states of RFC 9293, 3.3.2: mostly the guest has called, and we play its server;
SYN-SENT is where a flow begins in which we call the guest. The
*host half* is a stream socket to the server that the guest meant, which the host's own
kernel keeps correct; for us it only opens, ends one way or both, or fails. What one half
owes the other stands in the *joint rules*.

The flow changes a state only by looking up (state, event) here, so a transition that is
not in these tables cannot be taken. `docs/tcp-states.md` is made from them.
"""

from enum import Enum
from typing import Generic, TypeVar

from attrs import frozen


class GuestState(Enum):
    """The guest half: RFC 9293, 3.3.2, with two states said more exactly.

    SYN-HELD is LISTEN with a SYN that waits for the host half. RESET is CLOSED by a reset,
    which crosses to the other half as one; CLOSED is only the orderly end.
    """

    __hash__ = object.__hash__  # by identity: looked up every turn, and Enum's own is in Python

    SYN_HELD = "SYN-HELD"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSING = "CLOSING"
    TIME_WAIT = "TIME-WAIT"
    CLOSE_WAIT = "CLOSE-WAIT"
    LAST_ACK = "LAST-ACK"
    CLOSED = "CLOSED"
    RESET = "RESET"


class GuestEvent(Enum):
    """What may change the guest half's state."""

    SYN_ANSWERED = "we answer the SYN"
    SYN_ACKED = "the guest acknowledges our SYN"
    SYN_ACCEPTED = "the guest answers our SYN by SYN,ACK"
    SYN_CROSSED = "the guest's SYN crosses ours"
    FIN_RECEIVED = "the guest's FIN is in order"
    FIN_SENT = "we send our FIN"
    FIN_ACKED = "the guest acknowledges our FIN"
    RST_RECEIVED = "the guest resets"
    ABORTED = "we reset, refuse or give up"
    TIME_WAIT_OVER = "2 MSL have passed, or the room is needed"


class HostState(Enum):
    """The host half: a stream socket as its owner sees it."""

    __hash__ = object.__hash__

    IDLE = "IDLE"
    DIALING = "DIALING"
    OPEN = "OPEN"
    READ_EOF = "READ-EOF"
    WRITE_SHUT = "WRITE-SHUT"
    CLOSED = "CLOSED"
    FAILED = "FAILED"


class HostEvent(Enum):
    """What may change the host half's state."""

    DIAL = "we call connect"
    ACCEPTED = "accept gives us the socket"
    CONNECTED = "connect succeeds"
    FAILED = "connect fails, or the socket reports an error"
    EOF = "the server ends its direction"
    SHUT = "we end the guest's direction"
    DROPPED = "we abandon the socket"


class Duty(Enum):
    """What a pair of states owes; the flow pays at the end of the turn."""

    ANSWER_SYN = "send SYN,ACK"
    REFUSE_SYN = "RST,ACK or an ICMP error to the guest"
    SEND_FIN = "FIN to the guest, once all data is sent"
    SHUT_HOST = "shutdown(SHUT_WR) on the host, once all data is written"
    RESET_GUEST = "RST to the guest"
    RESET_HOST = "reset the host's connection (SO_LINGER 0)"
    HANG_UP = "close the host's socket, when it has delivered what it has"


StateT = TypeVar("StateT", GuestState, HostState)
EventT = TypeVar("EventT", GuestEvent, HostEvent)


@frozen
class Transition(Generic[StateT, EventT]):
    """One row: in `state`, `event` leads to `target`, because of `reason`."""

    state: StateT
    event: EventT
    target: StateT
    reason: str


@frozen
class JointRule:
    """While the halves are in one of `guest` and one of `host`, `duty` is owed."""

    guest: frozenset[GuestState]
    host: frozenset[HostState]
    duty: Duty
    reason: str


G, H = GuestState, HostState
GE, HE = GuestEvent, HostEvent

SYNCHRONISED = frozenset(
    {
        G.SYN_RECEIVED,
        G.ESTABLISHED,
        G.FIN_WAIT_1,
        G.FIN_WAIT_2,
        G.CLOSING,
        G.CLOSE_WAIT,
        G.LAST_ACK,
    }
)
"""States in which the guest has, or is about to have, an open connection."""

GUEST_FINISHED = frozenset({G.CLOSE_WAIT, G.LAST_ACK, G.CLOSING, G.TIME_WAIT, G.CLOSED})
"""States in which the guest's FIN has been received; what came before it is still delivered."""

GUEST_GONE = frozenset({G.CLOSED, G.RESET})
"""States in which the guest half expects nothing and answers nothing."""

HOST_HOLDS_SOCKET = frozenset({H.DIALING, H.OPEN, H.READ_EOF, H.WRITE_SHUT})
"""States in which the host half keeps a socket."""

_NEVER_AGAIN = "RFC 9293, 3.10.7.4: a reset ends the connection in every state"
_ALL_WAS_SAID = (
    "RFC 9293, 3.10.7.4; what was acknowledged before the guest's FIN is still delivered, as to "
    "a server that had it all before the reset came"
)
_WE_ABORT = "RFC 9293, 3.10.5: an abort answers with a reset and forgets"

GUEST_TRANSITIONS: tuple[Transition[GuestState, GuestEvent], ...] = (
    Transition(
        G.SYN_HELD,
        GE.SYN_ANSWERED,
        G.SYN_RECEIVED,
        "RFC 9293, 3.10.7.2; held until the host is connected, so that refusal is refusal",
    ),
    Transition(G.SYN_RECEIVED, GE.SYN_ACKED, G.ESTABLISHED, "RFC 9293, 3.10.7.4, fifth"),
    Transition(G.SYN_SENT, GE.SYN_ACCEPTED, G.ESTABLISHED, "RFC 9293, 3.10.7.3, fourth"),
    Transition(
        G.SYN_SENT,
        GE.SYN_CROSSED,
        G.SYN_RECEIVED,
        "RFC 9293, 3.10.7.3, fourth: simultaneous open (figure 8)",
    ),
    Transition(G.ESTABLISHED, GE.FIN_RECEIVED, G.CLOSE_WAIT, "RFC 9293, 3.10.7.4, eighth"),
    Transition(G.ESTABLISHED, GE.FIN_SENT, G.FIN_WAIT_1, "RFC 9293, 3.10.4"),
    Transition(G.CLOSE_WAIT, GE.FIN_SENT, G.LAST_ACK, "RFC 9293, 3.10.4"),
    Transition(G.FIN_WAIT_1, GE.FIN_ACKED, G.FIN_WAIT_2, "RFC 9293, 3.10.7.4, fifth"),
    Transition(G.FIN_WAIT_1, GE.FIN_RECEIVED, G.CLOSING, "RFC 9293, 3.6, figure 13"),
    Transition(G.FIN_WAIT_2, GE.FIN_RECEIVED, G.TIME_WAIT, "RFC 9293, 3.10.7.4, eighth"),
    Transition(G.CLOSING, GE.FIN_ACKED, G.TIME_WAIT, "RFC 9293, 3.10.7.4, fifth"),
    Transition(G.LAST_ACK, GE.FIN_ACKED, G.CLOSED, "RFC 9293, 3.10.7.4, fifth"),
    Transition(G.TIME_WAIT, GE.TIME_WAIT_OVER, G.CLOSED, "RFC 9293, 3.10.8"),
    Transition(G.SYN_HELD, GE.RST_RECEIVED, G.RESET, "the guest no longer wants the connection"),
    Transition(G.SYN_SENT, GE.RST_RECEIVED, G.RESET, "RFC 9293, 3.10.7.3: the guest refuses"),
    Transition(G.SYN_RECEIVED, GE.RST_RECEIVED, G.RESET, _NEVER_AGAIN),
    Transition(G.ESTABLISHED, GE.RST_RECEIVED, G.RESET, _NEVER_AGAIN),
    Transition(G.FIN_WAIT_1, GE.RST_RECEIVED, G.RESET, _NEVER_AGAIN),
    Transition(G.FIN_WAIT_2, GE.RST_RECEIVED, G.RESET, _NEVER_AGAIN),
    Transition(G.CLOSING, GE.RST_RECEIVED, G.CLOSED, _ALL_WAS_SAID),
    Transition(G.CLOSE_WAIT, GE.RST_RECEIVED, G.CLOSED, _ALL_WAS_SAID),
    Transition(G.LAST_ACK, GE.RST_RECEIVED, G.CLOSED, _ALL_WAS_SAID),
    Transition(G.SYN_HELD, GE.ABORTED, G.RESET, "the host half failed: RST,ACK or ICMP"),
    Transition(G.SYN_SENT, GE.ABORTED, G.RESET, "the client is gone, or the guest is silent"),
    Transition(G.SYN_RECEIVED, GE.ABORTED, G.RESET, _WE_ABORT),
    Transition(G.ESTABLISHED, GE.ABORTED, G.RESET, _WE_ABORT),
    Transition(G.FIN_WAIT_1, GE.ABORTED, G.RESET, _WE_ABORT),
    Transition(G.FIN_WAIT_2, GE.ABORTED, G.RESET, _WE_ABORT),
    Transition(G.CLOSING, GE.ABORTED, G.RESET, _WE_ABORT),
    Transition(G.CLOSE_WAIT, GE.ABORTED, G.RESET, _WE_ABORT),
    Transition(G.LAST_ACK, GE.ABORTED, G.RESET, _WE_ABORT),
)

_SOCKET_ERROR = "a socket error ends both directions at once"
_ABANDON = "the guest half is gone, or the server gave up"

HOST_TRANSITIONS: tuple[Transition[HostState, HostEvent], ...] = (
    Transition(H.IDLE, HE.DIAL, H.DIALING, "the guest's SYN is the wish to connect"),
    Transition(H.IDLE, HE.ACCEPTED, H.OPEN, "a client of the host has called the guest"),
    Transition(H.IDLE, HE.FAILED, H.FAILED, "no descriptor, or no such destination"),
    Transition(H.DIALING, HE.CONNECTED, H.OPEN, "connect(2) became writable without error"),
    Transition(H.DIALING, HE.FAILED, H.FAILED, "refused, unreachable or timed out"),
    Transition(H.DIALING, HE.DROPPED, H.CLOSED, _ABANDON),
    Transition(H.OPEN, HE.EOF, H.READ_EOF, "recv(2) returned nothing: the server's FIN"),
    Transition(H.OPEN, HE.SHUT, H.WRITE_SHUT, "the guest's FIN, after its last byte"),
    Transition(H.OPEN, HE.FAILED, H.FAILED, _SOCKET_ERROR),
    Transition(H.OPEN, HE.DROPPED, H.CLOSED, _ABANDON),
    Transition(H.READ_EOF, HE.SHUT, H.CLOSED, "both directions have ended in order"),
    Transition(H.READ_EOF, HE.FAILED, H.FAILED, _SOCKET_ERROR),
    Transition(H.READ_EOF, HE.DROPPED, H.CLOSED, _ABANDON),
    Transition(H.WRITE_SHUT, HE.EOF, H.CLOSED, "both directions have ended in order"),
    Transition(H.WRITE_SHUT, HE.FAILED, H.FAILED, _SOCKET_ERROR),
    Transition(H.WRITE_SHUT, HE.DROPPED, H.CLOSED, _ABANDON),
)

JOINT_RULES: tuple[JointRule, ...] = (
    JointRule(
        frozenset({G.SYN_HELD}),
        frozenset({H.OPEN}),
        Duty.ANSWER_SYN,
        "RFC 9293, 3.10.7.2: the handshake goes on when there is a server to talk to",
    ),
    JointRule(
        frozenset({G.SYN_HELD}),
        frozenset({H.FAILED}),
        Duty.REFUSE_SYN,
        "what the server or the path said is said to the guest, at once",
    ),
    JointRule(
        SYNCHRONISED | {G.SYN_SENT},
        frozenset({H.FAILED}),
        Duty.RESET_GUEST,
        "a reset crosses as a reset (RFC 9293, 3.10.7.4)",
    ),
    JointRule(
        frozenset({G.ESTABLISHED, G.CLOSE_WAIT}),
        frozenset({H.READ_EOF, H.CLOSED}),
        Duty.SEND_FIN,
        "the server's FIN crosses as a FIN; the other direction goes on (RFC 9293, 3.6)",
    ),
    JointRule(
        GUEST_FINISHED,
        frozenset({H.OPEN, H.READ_EOF}),
        Duty.SHUT_HOST,
        "the guest's FIN crosses as a FIN; the other direction goes on (RFC 9293, 3.6)",
    ),
    JointRule(
        frozenset({G.RESET}),
        HOST_HOLDS_SOCKET,
        Duty.RESET_HOST,
        "the guest's RST reaches the server as RST, never as FIN",
    ),
    JointRule(
        frozenset({G.CLOSED}),
        frozenset({H.WRITE_SHUT}),
        Duty.HANG_UP,
        "the guest reset after its FIN: what it said is delivered, what it is told is answered "
        "by the host's kernel with a reset",
    ),
)

GUEST_TABLE: dict[tuple[GuestState, GuestEvent], GuestState] = {
    (row.state, row.event): row.target for row in GUEST_TRANSITIONS
}
HOST_TABLE: dict[tuple[HostState, HostEvent], HostState] = {
    (row.state, row.event): row.target for row in HOST_TRANSITIONS
}
DUTIES: dict[tuple[GuestState, HostState], tuple[Duty, ...]] = {
    (guest, host): tuple(
        rule.duty for rule in JOINT_RULES if guest in rule.guest and host in rule.host
    )
    for guest in GuestState
    for host in HostState
}
"""Every pair of states to what it owes, in the order of the rules; mostly nothing."""
