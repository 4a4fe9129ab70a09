"""What each state answers to each kind of segment, where windows end, and what happens when.

`ANSWERS` is the guest half seen from outside: for every state and every kind of segment what
the guest hears at once, and where that leads. `test_index.py` tells what else is promised.
"""

import re
from collections.abc import Callable

import pytest

from qemu_usernat.nat.tcp.flow import SYN_RETRANSMISSIONS
from qemu_usernat.nat.tcp.guest_half import CHALLENGE_INTERVAL
from qemu_usernat.nat.tcp.keepalive import KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES
from qemu_usernat.nat.tcp.receiver import CAPACITY_INITIAL
from qemu_usernat.nat.tcp.rtt import RTO_MAXIMUM
from qemu_usernat.nat.tcp.sender import RETRANSMISSIONS_MAXIMUM
from qemu_usernat.nat.tcp.states import GUEST_GONE, GuestState
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, URG
from tests.nat.tcp.conversation import MSS, Conversation, Guest, Segment, in_state

G = GuestState

# -- every state and every kind of segment

SEGMENTS: dict[str, Callable[[Guest], None]] = {
    "FIN": lambda guest: guest.sends(FIN | ACK, at=0),
    "hello": lambda guest: guest.sends(ACK, b"hello"),
    "hello, urgent": lambda guest: guest.sends(URG | ACK, b"hello"),
    "hello, FIN": lambda guest: guest.sends(FIN | ACK, b"hello", at=0),
    "old octets": lambda guest: guest.sends(ACK, b"old", at=guest.position - 3),
    "far octets": lambda guest: guest.sends(ACK, b"far", at=guest.position + (1 << 20)),
    "old ACK": lambda guest: guest.sends(ACK, at=guest.position - 1),
    "ACK of unsent": lambda guest: guest.sends(ACK, ack=guest.expects + 7),
    "no ACK": lambda guest: guest.sends(PSH, at=guest.position),
    "SYN again": lambda guest: guest.sends(SYN),
    "SYN near": lambda guest: guest.sends(SYN, at=guest.position),
    "SYN far": lambda guest: guest.sends(SYN | ACK, at=1 << 20, ack=guest.expects + 7),
    "SYN,ACK": lambda guest: guest.sends(SYN | ACK, at=guest.position),
    "SYN,RST": lambda guest: guest.sends(SYN | RST),
    "RST": lambda guest: guest.sends(RST, at=guest.position),
    "RST,ACK": lambda guest: guest.sends(RST | ACK, at=guest.position),
    "RST near": lambda guest: guest.sends(RST, at=guest.position + 1),
    "RST far": lambda guest: guest.sends(RST, at=guest.position + (1 << 20)),
    "RST of unsent": lambda guest: guest.sends(RST | ACK, at=guest.position, ack=guest.expects + 7),
}
"""From a guest that has got everything. Its FIN stands at 0 wherever it has sent one before, so
that there "FIN" is the same again, and "hello, FIN" the same with octets that it did not have."""

ANSWERS = """
              FIN               hello              hello, urgent      hello, FIN
SYN-HELD      RST 0             RST 0              RST 0              RST 0
SYN-SENT      -                 -                  -                  -
SYN-RECEIVED  ACK 1 CLOSE-WAIT  ACK 5 ESTABLISHED  ACK 5 ESTABLISHED  ACK 6 CLOSE-WAIT
ESTABLISHED   ACK 1 CLOSE-WAIT  ACK 5              ACK 5              ACK 6 CLOSE-WAIT
FIN-WAIT-1    ACK 1 TIME-WAIT   ACK 5 FIN-WAIT-2   ACK 5 FIN-WAIT-2   ACK 6 TIME-WAIT
FIN-WAIT-2    ACK 1 TIME-WAIT   ACK 5              ACK 5              ACK 6 TIME-WAIT
CLOSING       ACK 1             ACK 1 TIME-WAIT    ACK 1 TIME-WAIT    ACK 1
TIME-WAIT     ACK 1             ACK 1              ACK 1              ACK 1
CLOSE-WAIT    ACK 1             ACK 1              ACK 1              ACK 1
LAST-ACK      ACK 1             - CLOSED           - CLOSED           ACK 1

              old octets        far octets         old ACK            ACK of unsent      no ACK
SYN-HELD      RST 0             RST 0              RST 0              RST 7              -
SYN-SENT      -                 -                  -                  RST 7              -
SYN-RECEIVED  ACK 0             ACK 0              ACK 0              RST 7              -
ESTABLISHED   ACK 0             ACK 0              ACK 0              ACK 0              -
FIN-WAIT-1    ACK 0             ACK 0              ACK 0              ACK 0              -
FIN-WAIT-2    ACK 0             ACK 0              ACK 0              ACK 0              -
CLOSING       ACK 1             ACK 1              ACK 1              ACK 1              -
TIME-WAIT     ACK 1             ACK 1              ACK 1              -                  -
CLOSE-WAIT    ACK 1             ACK 1              ACK 1              ACK 1              -
LAST-ACK      ACK 1             ACK 1              ACK 1              ACK 1              -

              SYN again               SYN near                SYN,ACK            SYN far  SYN,RST
SYN-HELD      -                       -                       -                  -        - RESET
SYN-SENT      SYN,ACK 0 SYN-RECEIVED  SYN,ACK 1 SYN-RECEIVED  ACK 1 ESTABLISHED  RST 7    -
SYN-RECEIVED  SYN,ACK 0               ACK 0                   ACK 0              ACK 0    -
ESTABLISHED   ACK 0                   ACK 0                   ACK 0              ACK 0    -
FIN-WAIT-1    ACK 0                   ACK 0                   ACK 0              ACK 0    -
FIN-WAIT-2    ACK 0                   ACK 0                   ACK 0              ACK 0    -
CLOSING       ACK 1                   ACK 1                   ACK 1              ACK 1    -
TIME-WAIT     ACK 1                   ACK 1                   ACK 1              ACK 1    -
CLOSE-WAIT    ACK 1                   ACK 1                   ACK 1              ACK 1    -
LAST-ACK      ACK 1                   ACK 1                   ACK 1              ACK 1    -

              RST       RST,ACK   RST near  RST far  RST of unsent
SYN-HELD      - RESET   - RESET   -         -        - RESET
SYN-SENT      -         - RESET   -         -        -
SYN-RECEIVED  - RESET   - RESET   ACK 0     -        - RESET
ESTABLISHED   - RESET   - RESET   ACK 0     -        - RESET
FIN-WAIT-1    - RESET   - RESET   ACK 0     -        - RESET
FIN-WAIT-2    - RESET   - RESET   ACK 0     -        - RESET
CLOSING       - CLOSED  - CLOSED  -         -        - CLOSED
TIME-WAIT     -         -         -         -        -
CLOSE-WAIT    - CLOSED  - CLOSED  -         -        - CLOSED
LAST-ACK      - CLOSED  - CLOSED  -         -        - CLOSED
"""
"""State, kind of segment, and: what the guest hears (a dash: nothing), with the number that is
acknowledged, or that a bare RST stands at; then the state that this leads to, if another.

RFC 9293, 3.10.7.4, for all but the first two. In SYN-HELD nothing was answered yet: only the SYN
and its reset mean anything, and any ACK is refused (3.10.7.2); in SYN-SENT only a SYN does, and a
reset that acknowledges ours (3.10.7.3). RFC 5961, 3 and 4: a SYN, or a RST that is not exact, is
challenged. RFC 1337: a RST does not end TIME-WAIT. After the guest's FIN its window is closed:
nothing is near.
"""


def rows() -> list[tuple[GuestState, str, str]]:
    """(state, kind of segment, answer) of every cell."""
    cells = []
    for table in ANSWERS.strip("\n").split("\n\n"):
        head, *lines = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
        for state, *answers in lines:
            cells += [(G(state), kind, cell) for kind, cell in zip(head, answers, strict=True)]
    return cells


@pytest.mark.parametrize(("state", "kind", "answer"), rows())
def test_each_state_answers_each_segment_at_once(state: GuestState, kind: str, answer: str) -> None:
    """FIN, octets, SYN, RST and ACKs of what was never sent, in every state (`ANSWERS`)."""
    talk = in_state(state)
    SEGMENTS[kind](talk.guest)
    said, _, rest = answer.partition(" ")
    number, _, target = rest.partition(" ")
    if not number.isdecimal():
        number, target = "", rest
    if said == "RST":
        talk.guest.gets(RST, b"", at=int(number))
    elif said == "SYN,ACK":
        talk.guest.gets(SYN | ACK, b"", at=-1, ack=int(number))
    elif said == "ACK":
        talk.guest.gets(ACK, b"", at=talk.guest.expects, ack=int(number))
    elif not target:
        assert talk.counters, "dropped without a name"
    talk.guest.gets_nothing()
    assert talk.flow.guest_state is (G(target) if target else state)
    assert talk.host.received == (b"hello" if number in ("5", "6") else b"")
    resets = "RST" in kind and bool(target)
    assert talk.host.socket.was_reset is (resets and not was_over(state))


def was_over(state: GuestState) -> bool:
    """Whether both directions of the host's socket have ended when the guest half is there."""
    return in_state(state).host.socket.closed


def test_the_table_is_whole() -> None:
    """Each kind of segment stands in it once for each state in which the guest half exists."""
    cells = [(state, kind) for state, kind, _ in rows()]
    states = set(GuestState) - GUEST_GONE
    assert sorted(cells, key=str) == sorted(((s, k) for s in states for k in SEGMENTS), key=str)


# -- acceptability (RFC 9293, 3.10.7.4, first, table 6)


@pytest.mark.parametrize(
    ("at", "length", "taken"),
    [
        (-4, 5, 1),  # its last octet is new
        (-5, 5, None),
        (0, 1, 1),
        (65_534, 1, 0),  # the last octet of the window, behind a gap: kept
        (65_535, 1, None),
        (65_530, 100, 0),
        (-1, 0, None),
        (65_534, 0, 0),
        (65_535, 0, None),
    ],
)
@pytest.mark.parametrize("ended", [False, True], ids=["both talk", "the server has ended"])
def test_the_borders_of_the_window(at: int, length: int, taken: int | None, ended: bool) -> None:
    """To the octet: what has one of them inside counts, all else is out of the window (None)."""
    talk = Conversation.open(scale=None)
    if ended:
        talk.host.ends()
        talk.guest.gets(FIN | ACK)
        talk.guest.sends(ACK)
    talk.guest.sends(ACK, b"x" * length, at=at)
    assert len(talk.host.received) == (taken or 0)
    assert talk.counters["tcp.out_of_window"] == (taken is None)
    out_of_order = talk.flow.receiver.out_of_order
    assert bool(out_of_order) is (taken == 0 and at > 0 and length > 0)


def test_a_closed_window_admits_nothing_and_hears_everything() -> None:
    """RFC 9293, 3.10.7.4, first: valid ACKs and resets count all the same."""
    talk = Conversation.open()
    talk.host.takes(0)
    while room := talk.line.edge - talk.guest.position:
        talk.guest.sends(ACK, bytes(min(MSS, room)))
    talk.guest.loses_everything()
    talk.host.says(b"hello")
    talk.guest.gets(PSH | ACK, b"hello")
    talk.guest.sends(ACK)
    assert not talk.flow.sender.in_flight
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, at=talk.guest.position + 1)
    assert talk.guest.gets(ACK, ack=talk.guest.position).window == 0
    talk.guest.sends(RST)
    assert talk.flow.guest_state is G.RESET


# -- options and windows


def test_only_a_syn_names_a_segment_size() -> None:
    """RFC 9293, 3.7.1 (MUST-65): the option stands in our SYN,ACK and in nothing else."""
    talk = Conversation()
    talk.host.connects()
    assert talk.guest.gets(SYN | ACK).options.startswith(b"\x02\x04")
    talk.guest.sends(ACK, b"question")
    talk.host.says(bytes(3 * MSS))
    talk.guest.sends(FIN | ACK)
    talk.host.ends()
    talk.advance(10)
    assert all(b"\x02\x04" not in segment.options for segment in talk.guest.loses_everything())


@pytest.mark.parametrize(("mss", "length"), [(0, 536), (None, 536), (1, 88), (87, 88), (88, 88)])
def test_a_segment_size_without_sense(mss: int | None, length: int) -> None:
    """None, as RFC 9293, 3.7.1 (MUST-15), has it; and never one that costs more than it carries."""
    talk = Conversation.open(mss=mss)
    talk.host.says(bytes(2000))
    assert len(talk.guest.gets(ACK).payload) == length


def test_windows_are_unsigned() -> None:
    """RFC 9293, 3.1 (MUST-1): 65535 is no negative number."""
    talk = Conversation.open(window=65535, scale=0)
    talk.host.says(bytes(100_000))
    assert len(talk.guest.gets_stream()) == 65535


@pytest.mark.parametrize(("scale", "shift"), [(14, 14), (15, 14), (255, 14)])
def test_a_shift_beyond_fourteen_is_fourteen(scale: int, shift: int) -> None:
    """RFC 7323, 2.3; and the window of the SYN itself is not shifted (2.2)."""
    talk = Conversation(scale=scale, window=1000)
    assert talk.flow.sender.window.edge == 1000
    assert talk.flow.sender.window.scale == shift


def test_the_octet_of_a_probe_is_taken_where_there_is_room_again() -> None:
    """RFC 9293, 3.8.6.1: our update was lost; the guest's probe is data, and answered as data."""
    talk = Conversation.open()
    talk.host.takes(0)
    while room := talk.line.edge - talk.guest.position:
        talk.guest.sends(ACK, bytes(min(MSS, room)))
    talk.host.takes(1 << 30)
    talk.guest.loses_everything()
    talk.guest.sends(ACK, b"!")
    assert talk.guest.gets(ACK, ack=talk.guest.position).window >= CAPACITY_INITIAL
    assert talk.host.received.endswith(b"\0!")


def test_a_window_that_closes_over_what_is_in_flight_and_opens_again() -> None:
    """Before any timer: what the guest took is not sent twice, and the rest goes on."""
    talk = Conversation.open(window=4 * MSS, scale=0)
    octets = bytes(range(250)) * 40
    talk.host.says(octets)
    stream = talk.guest.gets_stream()
    assert len(stream) == 4 * MSS
    talk.guest.sends(ACK, ack=MSS, window=0)
    talk.guest.sends(ACK, ack=4 * MSS, window=0)
    talk.guest.gets_nothing()
    talk.guest.sends(ACK, window=4 * MSS)
    stream += talk.guest.gets_stream()
    assert stream == octets
    assert talk.counters["tcp.retransmission_timeout"] == 0


# -- resets and challenges


@pytest.mark.parametrize(
    ("flags", "at", "ack"),
    [
        (SYN, -1, 0),
        (SYN, 1, 0),
        (SYN, 1 << 20, 0),
        (SYN | ACK, 1, 0),
        (RST, 1, 0),
        (ACK, 0, 7),  # of what was never sent
        (ACK, 0, -(1 << 24)),  # of long ago
        (ACK, -1, 0),  # two ends that disagree must not answer each other for ever
        (ACK, 1 << 20, 0),
    ],
)
def test_challenges_have_a_limit(flags: int, at: int, ack: int) -> None:
    """RFC 5961, 7: one at once, the next when 100 ms have passed, however many are asked for."""
    talk = Conversation.open()
    for _ in range(2):
        for _ in range(50):
            talk.guest.sends(flags, at=at, ack=ack)
        talk.guest.gets(ACK, at=0, ack=0)
        talk.guest.gets_nothing()
        talk.advance(CHALLENGE_INTERVAL)
    assert talk.counters["tcp.challenge_ack"] == 2
    assert talk.counters["tcp.challenge_ack_limited"] == 98


def test_a_reset_may_carry_octets() -> None:
    """RFC 9293, 3.10.7.4 (SHLD-2): they are the reason in words, and not of the stream."""
    talk = Conversation.open()
    talk.guest.sends(RST | ACK, b"go away")
    talk.guest.gets_nothing()
    assert talk.host.received == b""
    assert talk.host.socket.was_reset
    talk.assert_over()


# -- what happens when


def heard_when(talk: Conversation, seconds: float) -> list[tuple[float, Segment]]:
    """What a silent guest hears, and how many seconds after now, to a thousandth."""
    start, heard = talk.now, []
    while (deadline := talk.flow.deadline()) <= start + seconds:
        talk.advance(max(0.0, deadline - talk.now))
        heard += [(round(talk.now - start, 3), each) for each in talk.guest.loses_everything()]
    return heard


def doubling(first: float, times: int) -> list[float]:
    """When the repetitions come: each wait is twice the last, up to the maximum."""
    moments, wait, now = [], first, 0.0
    for _ in range(times):
        now += wait
        moments.append(round(now, 3))
        wait = min(2 * wait, RTO_MAXIMUM)
    return moments


def test_the_hours_of_an_octet_that_nobody_acknowledges() -> None:
    """RFC 6298, 5.5, and RFC 9293, 3.8.3: after 0.2 s, 0.6 s, 1.4 s… and a reset at the end."""
    talk = Conversation.open()
    talk.host.says(b"hello")
    talk.guest.gets(PSH | ACK, b"hello")
    heard = heard_when(talk, 3600)
    assert [when for when, _ in heard] == doubling(0.2, RETRANSMISSIONS_MAXIMUM + 1)
    assert all(each.payload == b"hello" and each.at == 0 for _, each in heard[:-1])
    assert (heard[-1][1].flags, heard[-1][1].at) == (RST | ACK, 5)
    talk.assert_over()


def test_the_hours_of_an_answer_that_nobody_acknowledges() -> None:
    """RFC 6298, 2.1: SYN,ACK again after 1 s, 3 s, 7 s… and a reset at the end."""
    talk = in_state(G.SYN_RECEIVED)
    heard = heard_when(talk, 3600)
    assert [when for when, _ in heard] == doubling(1.0, SYN_RETRANSMISSIONS + 1)
    assert all(each.flags == SYN | ACK and each.at == -1 for _, each in heard[:-1])
    assert heard[-1][1].flags == RST | ACK
    talk.assert_over()


def test_the_hours_of_an_octet_after_a_hard_handshake() -> None:
    """RFC 6298, 5.7: 3 s at first; and what the handshake took is not counted against R2."""
    talk = in_state(G.SYN_RECEIVED)
    talk.advance(100)
    talk.guest.loses_everything()
    talk.guest.sends(ACK)
    talk.host.says(b"hello")
    talk.guest.gets(PSH | ACK, b"hello")
    heard = heard_when(talk, 3600)
    assert [when for when, _ in heard] == doubling(3.0, RETRANSMISSIONS_MAXIMUM + 1)


def test_the_hours_of_a_probe_that_nobody_answers() -> None:
    """RFC 9293, 3.8.6.1: the first after an RTO, each next one twice as late; R2 ends them."""
    talk = Conversation.open(window=0)
    talk.host.says(b"hello")
    heard = heard_when(talk, 3600)
    assert [when for when, _ in heard[:-1]] == doubling(0.2, RETRANSMISSIONS_MAXIMUM + 1)
    assert all(each.flags == ACK and each.at == -1 for _, each in heard[:-1])
    assert heard[-1][1].flags == RST | ACK
    talk.assert_over()


def test_the_hours_of_a_window_that_stays_closed() -> None:
    """RFC 9293, 3.8.6.1 (SHLD-30): though each is answered, the next probe comes twice as late."""
    talk = Conversation.open(window=0)
    talk.host.says(b"hello")
    start, heard = talk.now, []
    for _ in range(20):
        talk.advance(talk.flow.deadline() - talk.now)
        talk.guest.gets(ACK, b"", at=-1)
        heard.append(round(talk.now - start, 3))
        talk.guest.sends(ACK)
    assert heard == doubling(0.2, 20)
    talk.guest.sends(ACK, window=1 << 10)
    talk.guest.gets(PSH | ACK, b"hello")
    talk.guest.sends(ACK, window=0)
    talk.host.says(b"and now again from the start")
    assert heard_when(talk, 0.5)[0][0] == 0.2


def test_the_hours_of_a_guest_that_was_switched_off() -> None:
    """Two hours after its last word a probe, eight more, and a reset: known after 2 h 11 min."""
    talk = Conversation.open()
    talk.advance(1800)
    talk.guest.sends(ACK)
    heard = heard_when(talk, 4 * 3600)
    first = KEEPALIVE_IDLE
    assert [when for when, _ in heard] == [
        first + KEEPALIVE_INTERVAL * n for n in range(KEEPALIVE_PROBES + 1)
    ]
    assert all((each.flags, each.at, each.payload) == (ACK, -1, b"") for _, each in heard[:-1])
    assert heard[-1][1].flags == RST | ACK
    talk.assert_over()
