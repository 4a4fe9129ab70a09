"""One TCP flow: a connection with the guest's kernel joined to a stream socket of the host.

It owns the two states and their duties (`states`), and the order in which a segment is
judged (RFC 9293, 3.10.7.4; RFC 5961). Octets, windows and loss are the business of its
`Receiver` and `Sender`; headers, sockets and flow tables of its sinks and its owner.

Three verbs: ``on_<event>(…, now)`` takes in what happened; calls on `GuestWire` and
`HostStream` say what to do; ``deadline()`` says when to call ``on_deadline``. After the
events of a turn the owner calls ``flush(now)`` once.
"""

from functools import partial

from attrs import define, field

from qemu_usernat.nat.tcp.receiver import Receiver
from qemu_usernat.nat.tcp.rtt import RTO_AFTER_LOST_SYN, RTO_INITIAL
from qemu_usernat.nat.tcp.sender import Sender
from qemu_usernat.nat.tcp.sinks import GuestWire, HostStream
from qemu_usernat.nat.tcp.states import (
    DUTIES,
    GUEST_GONE,
    GUEST_TABLE,
    HOST_HOLDS_SOCKET,
    HOST_TABLE,
    Duty,
    GuestEvent,
    GuestState,
    HostEvent,
    HostState,
)
from qemu_usernat.primitives.addresses import FlowKey
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import InternalError
from qemu_usernat.primitives.sequence import add
from qemu_usernat.primitives.time import HOUR, MS, NEVER, SECOND
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, Buffer

CONNECT_TIMEOUT = 60 * SECOND
"""The host's own SYN retries last about two minutes; a person has given up by then."""

DELAYED_ACK = 5 * MS
"""RFC 9293, 3.8.6.3, allows 500 ms. An answer from near comes sooner than 5 ms and carries the
ACK; a guest whose Nagle algorithm waits for the ACK should not wait longer."""

TIME_WAIT = 10 * SECOND
"""2 MSL. RFC 9293, 3.4.2, supposes 2 minutes in a network; nothing lives 5 s on this wire."""

KEEPALIVE_IDLE = 2 * HOUR  # RFC 9293, 3.8.4 (MUST-28); RFC 5382, REQ-5, wants 2 h 4 min
KEEPALIVE_INTERVAL = 75 * SECOND
KEEPALIVE_PROBES = 9  # 2 h + 9 * 75 s = 2 h 11 min

SYN_ACK_RETRANSMISSIONS = 6  # 1 + 2 + … + 64 s: about the two minutes a client tries

CHALLENGE_INTERVAL = 100 * MS  # RFC 5961, 7: challenge ACKs are limited, here for each flow

HOST_UNREACHABLE = 1  # ICMP code of destination unreachable (RFC 792)

_RECEIVING = frozenset({GuestState.ESTABLISHED, GuestState.CLOSE_WAIT})
"""States in which the guest takes octets from us."""

_TAKING = frozenset({HostState.OPEN, HostState.READ_EOF})
_TAKING_OR_DIALING = _TAKING | {HostState.IDLE, HostState.DIALING}
"""States in which what the guest has sent is, or will be, taken."""


@define(eq=False)
class TcpFlow:
    """A TCP connection of the guest, and of the host on its behalf."""

    key: FlowKey
    wire: GuestWire
    host: HostStream = field(init=False)
    receiver: Receiver
    sender: Sender
    counters: Counters
    syn_options: bytes
    """Options of our SYN,ACK."""
    opened_at: float
    guest_state: GuestState = GuestState.SYN_HELD
    host_state: HostState = HostState.IDLE
    touched: bool = False
    """For the owner: already on the list of flows to flush at the end of the turn."""

    _answered_at: float | None = None
    """When our SYN,ACK left, if it left once: the first round trip that is measured."""
    _ack_now: bool = False
    _ack_at: float = NEVER
    _heard_at: float = field(init=False)
    """The last sign of life: of the guest, and after its end of the server."""
    _time_wait_until: float = NEVER
    _keepalive_at: float = field(init=False)
    _keepalives: int = 0
    _challenged_at: float = -NEVER
    _refusal_code: int | None = None

    def __attrs_post_init__(self) -> None:
        self._heard_at = self.opened_at
        self._keepalive_at = self.opened_at + KEEPALIVE_IDLE

    @property
    def finished(self) -> bool:
        """Whether nothing is owed to anybody: the owner forgets the flow."""
        return self.guest_state in GUEST_GONE and self.host_state not in HOST_HOLDS_SOCKET

    # -- the one writer of each state

    def _move_guest(self, event: GuestEvent) -> None:
        target = GUEST_TABLE.get((self.guest_state, event))
        if target is None:
            raise InternalError(f"TCP guest half: {event} in {self.guest_state}")
        self.guest_state = target

    def _move_host(self, event: HostEvent) -> None:
        target = HOST_TABLE.get((self.host_state, event))
        if target is None:
            raise InternalError(f"TCP host half: {event} in {self.host_state}")
        held = self.host_state in HOST_HOLDS_SOCKET
        self.host_state = target
        if held and target not in HOST_HOLDS_SOCKET:
            self.host.close()

    # -- events of the guest

    def on_segment(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: Buffer,
        length: int,
        now: float,
        selective: tuple[int, ...] = (),
    ) -> None:
        """A segment of this flow, lengths and checksum verified; `payload` may be a view that
        is good until the turn ends."""
        self._heard_at = now
        self._keepalives = 0
        receiver = self.receiver
        if (
            sequence != receiver.next_sequence
            or length > receiver.room
            or flags & (RST | SYN)
            or self.guest_state is not GuestState.ESTABLISHED
        ):
            if not self._acceptable(sequence, length, flags, now):
                return
            if length and not receiver.room:
                # A closed window admits neither octets nor the FIN behind them, but what the
                # ACK says is heard (RFC 9293, 3.10.7.4); the answer tells the window.
                length = 0
                flags &= ~FIN
                self._ack_now = True
        if not flags & ACK:
            self.counters.count("tcp.no_ack")  # RFC 9293, 3.10.7.4, fifth: drop
            return
        if not self._on_acknowledgment(sequence, acknowledgment, flags, window, length, now):
            return
        if length:
            self._on_octets(sequence, payload, length, flags, now)
        if flags & FIN:
            self._on_fin(receiver.finish(add(sequence, length)))
        elif length and receiver.fin_position is not None:
            self._on_fin(receiver.consume_fin())

    def _acceptable(self, sequence: int, length: int, flags: int, now: float) -> bool:
        """Steps first to fourth of RFC 9293, 3.10.7.4, as RFC 5961 sharpens them."""
        state = self.guest_state
        offset = self.receiver.offset_of(sequence)
        if state is GuestState.SYN_HELD or state in GUEST_GONE:
            return self._before_answer(offset, flags)
        if state is GuestState.SYN_RECEIVED and flags & SYN and offset == -1:
            self._answered_at = None  # Karn: which of the two is acknowledged is not known
            self._send_syn_ack()  # our SYN,ACK was lost, or is still on its way
            return False
        if state is GuestState.TIME_WAIT:
            if not flags & RST:  # which ends nothing here (RFC 1337, 2)
                self._on_time_wait_segment(offset, length, flags, now)
            return False
        if not self._in_window(offset, length + (flags & FIN)):
            if not flags & RST:
                self.counters.count("tcp.out_of_window")
                self._ack_now = True
            return False
        if flags & RST:
            if offset == 0:
                self._move_guest(GuestEvent.RST_RECEIVED)
                self.receiver.discard()
            else:
                self._challenge(now)  # RFC 5961, 3.2
            return False
        if flags & SYN:
            self._challenge(now)  # RFC 5961, 4.2
            return False
        return True

    def _on_time_wait_segment(self, offset: int, length: int, flags: int, now: float) -> None:
        """RFC 9293, 3.10.7.4: a FIN again, as our last ACK was lost; or what is out of place."""
        if flags & FIN:
            self._time_wait_until = now + TIME_WAIT
            self._ack_now = True
        elif flags & SYN:
            self._challenge(now)
        elif not self._in_window(offset, length):
            self._ack_now = True

    def _before_answer(self, offset: int, flags: int) -> bool:
        """No octet is expected yet, or ever again."""
        if self.guest_state is GuestState.SYN_HELD and flags & RST and offset in (0, -1):
            self._move_guest(GuestEvent.RST_RECEIVED)
        elif not flags & (SYN | RST):
            self.counters.count("tcp.not_expected")
        return False

    def _in_window(self, offset: int, length: int) -> bool:
        """The four cases of RFC 9293, table 6, with its allowance for a closed window."""
        room = self.receiver.room
        if not room:
            return offset == 0
        if not length:
            return 0 <= offset < room
        return 0 <= offset < room or 0 <= offset + length - 1 < room

    def _challenge(self, now: float) -> None:
        if now - self._challenged_at >= CHALLENGE_INTERVAL:
            self._challenged_at = now
            self.counters.count("tcp.challenge_ack")
            self._ack_now = True
        else:
            self.counters.count("tcp.challenge_ack_limited")

    def _on_acknowledgment(
        self, sequence: int, acknowledgment: int, flags: int, window: int, length: int, now: float
    ) -> bool:
        """Step fifth; False if the segment is to be dropped."""
        sender = self.sender
        position = sender.position_of(acknowledgment)
        if self.guest_state is GuestState.SYN_RECEIVED:
            if position != 0:
                self.counters.count("tcp.bad_handshake_ack")
                self.wire.send(acknowledgment, 0, RST, 0)
                return False
            sender.retransmit_at = NEVER
            if sender.retransmissions:
                sender.round_trip.timeout = RTO_AFTER_LOST_SYN
                sender.retransmissions = 0
            elif self._answered_at is not None:
                sender.round_trip.sample(now - self._answered_at)
            sender.on_window(sequence, 0, window)
            self._move_guest(GuestEvent.SYN_ACKED)
            return True
        if position > sender.highest:
            self.counters.count("tcp.ack_of_unsent")
            self._ack_now = True
            return False
        if position > sender.acknowledged:
            sender.on_window(sequence, position, window)
            sender.on_acknowledgment(position, self._transmit, now)
            if sender.fin_queued and position > sender.end:
                self._on_fin_acknowledged(now)
        elif position == sender.acknowledged:
            changed = sender.on_window(sequence, position, window)
            duplicate = not changed and not length and not flags & FIN and sender.in_flight
            if duplicate and sender.on_duplicate_acknowledgment(self._transmit):
                self.counters.count("tcp.fast_retransmit")
            sender.on_alive()
        elif position < sender.acknowledged - max(sender.largest_window, 0xFFFF):
            self._challenge(now)  # RFC 5961, 5.2
            return False
        return True

    def _on_octets(
        self, sequence: int, payload: Buffer, length: int, flags: int, now: float
    ) -> None:
        """Step seventh: the octets of the segment, and when to acknowledge them."""
        receiver = self.receiver
        gap = bool(receiver.out_of_order)
        if not receiver.accept(sequence, payload, length):
            # Each is answered by an ACK of its own: the guest counts three of them before it
            # repeats what was lost, and waits for its timer otherwise (RFC 5681, 3.2 and 4.2).
            self.counters.count("tcp.out_of_order")
            self._send_ack()
        elif gap:
            self._ack_now = True  # the filling of a gap, at once: RFC 5681, 4.2
        elif flags & PSH and length < receiver.maximum_segment_size and self._ack_at == NEVER:
            self._ack_at = now + DELAYED_ACK
        else:
            self._ack_now = True  # more than one segment of a turn, or a full one

    def _on_fin(self, in_order: bool) -> None:
        self._ack_now = True
        if in_order:
            self._move_guest(GuestEvent.FIN_RECEIVED)

    def _on_fin_acknowledged(self, now: float) -> None:
        if self.guest_state in (GuestState.FIN_WAIT_1, GuestState.CLOSING, GuestState.LAST_ACK):
            self._move_guest(GuestEvent.FIN_ACKED)

    def yields_to_syn(self, sequence: int, now: float) -> bool:
        """Whether a new SYN of the same four-tuple may take this flow's place in the table.

        From TIME-WAIT if it is beyond what was received (RFC 9293, 3.10.7.4, MAY-2); a held
        SYN gives way to another attempt, as that one was given up by the guest.
        """
        if self.guest_state is GuestState.TIME_WAIT and self.receiver.offset_of(sequence) > 0:
            self._move_guest(GuestEvent.TIME_WAIT_OVER)
        elif self.guest_state is GuestState.SYN_HELD and sequence != self.receiver.initial_sequence:
            self._move_guest(GuestEvent.ABORTED)
        return self.guest_state in GUEST_GONE

    def end_time_wait(self) -> None:
        """Leave TIME-WAIT early: the owner needs the room (RFC 9293, 3.10.8)."""
        if self.guest_state is GuestState.TIME_WAIT:
            self._move_guest(GuestEvent.TIME_WAIT_OVER)

    # -- events of the host

    def dial(self, host: HostStream) -> None:
        """The owner has begun to connect `host`."""
        self.host = host
        self._move_host(HostEvent.DIAL)

    def on_host_connected(self, now: float) -> None:
        """The connection to the server is open."""
        self._move_host(HostEvent.CONNECTED)

    def on_host_failed(self, code: int | None, now: float) -> None:
        """The connection failed, before or after it was open.

        `code` is the ICMP code of destination unreachable that says it to a guest that is
        still waiting for its SYN,ACK; None where a reset does.
        """
        if self.host_state in HOST_HOLDS_SOCKET or self.host_state is HostState.IDLE:
            self._refusal_code = code
            self._move_host(HostEvent.FAILED)

    def room(self) -> int:
        """How many octets the host half may read now."""
        if self.guest_state not in _RECEIVING:
            return 0
        if self.host_state not in (HostState.OPEN, HostState.WRITE_SHUT) or self.wire.stalled():
            return 0
        return self.sender.room()

    def on_host_data(self, payload: Buffer, length: int, now: float) -> None:
        """At most `room` octets from the server."""
        self.sender.take(payload, length)
        self.sender.pump(self._transmit, now)

    def on_host_waiting(self) -> None:
        """The server has sent something, but `room` is zero."""
        self.sender.data_waiting = True

    def on_host_eof(self, now: float) -> None:
        """The server has ended its direction; saying so twice is no news."""
        if self.host_state in (HostState.OPEN, HostState.WRITE_SHUT):
            self._move_host(HostEvent.EOF)

    def abandon(self) -> None:
        """Close the host half without another word: the network itself ends."""
        if self.host_state in HOST_HOLDS_SOCKET:
            self._move_host(HostEvent.DROPPED)

    # -- the end of a turn

    def flush(self, now: float) -> None:
        """Pay what this turn's events owe: to the host first, so that the guest hears of it."""
        drained = False
        if self.receiver.queued:
            drained = bool(self.receiver.backlog)
            self._drain(now)
        self._pay_duties(now)
        if self.guest_state not in GUEST_GONE:
            self.sender.pump(self._transmit, now)
            if self._ack_now or (drained and self.receiver.window_update_due()):
                self._send_ack()
        if self.guest_state is GuestState.TIME_WAIT and self._time_wait_until == NEVER:
            self._time_wait_until = now + TIME_WAIT
        self._watch(now)

    def _drain(self, now: float) -> None:
        if self.host_state in _TAKING:
            queued = self.receiver.queued
            self.receiver.drain(partial(self.host.send, now=now))
            if self.guest_state in GUEST_GONE and self.receiver.queued < queued:
                self._heard_at = now
        if self.host_state not in _TAKING_OR_DIALING:
            self.receiver.discard()

    def _pay_duties(self, now: float) -> None:
        """All that the states owe, and what is owed because a payment failed."""
        states = None
        while states != (self.guest_state, self.host_state):
            states = self.guest_state, self.host_state
            for duty in DUTIES[states]:
                self._pay(duty, now)

    def _pay(self, duty: Duty, now: float) -> None:
        match duty:
            case Duty.ANSWER_SYN:
                self._move_guest(GuestEvent.SYN_ANSWERED)
                self._answered_at = now
                self.sender.retransmit_at = now + RTO_INITIAL
                self._send_syn_ack()
            case Duty.REFUSE_SYN:
                self._refuse_syn(now)
            case Duty.RESET_GUEST:
                self.counters.count("tcp.host_reset")
                self._abort()
            case Duty.SEND_FIN:
                self.sender.fin_queued = True
                # The pump below sends it, now or when the window lets it.
            case Duty.SHUT_HOST:
                if not self.receiver.queued:
                    self._shut_host()
            case Duty.RESET_HOST:
                self.host.reset()
                self._move_host(HostEvent.DROPPED)

    def _shut_host(self) -> None:
        self.host.shutdown()
        if self.host_state in _TAKING:
            self._move_host(HostEvent.SHUT)

    def _refuse_syn(self, now: float) -> None:
        if self._refusal_code is None:
            # RST,ACK, for a guest in SYN-SENT ignores a bare RST (RFC 9293, 3.10.7.3).
            self.counters.count("tcp.refused")
            self.wire.send(0, self.receiver.next_sequence, RST | ACK, 0)
        else:
            self.counters.count("tcp.unreachable")
            self.wire.refuse(self._refusal_code, now)
        self._move_guest(GuestEvent.ABORTED)

    def _abort(self) -> None:
        sender = self.sender
        self.wire.send(
            sender.sequence_of(sender.highest), self.receiver.next_sequence, RST | ACK, 0
        )
        self._move_guest(GuestEvent.ABORTED)

    def _watch(self, now: float) -> None:
        if self.host_state not in HOST_HOLDS_SOCKET or self.host_state is HostState.DIALING:
            return
        sender = self.sender
        room = self.room()
        # One look at a closed window tells whether there is anything to probe for.
        look = not sender.data_waiting and self.host_state in (HostState.OPEN, HostState.WRITE_SHUT)
        read = room > 0 or (look and not self.wire.stalled())
        self.host.watch(read, bool(self.receiver.backlog), now)
        if self.guest_state in _RECEIVING:
            sender.arm_probe(now)

    # -- segments to the guest

    def _transmit(self, position: int, payload: Buffer, flags: int) -> None:
        if flags & FIN and self.guest_state in _RECEIVING:
            self._move_guest(GuestEvent.FIN_SENT)
        self._ack_now = False
        self._ack_at = NEVER
        self.wire.send(
            self.sender.sequence_of(position),
            self.receiver.next_sequence,
            flags | ACK,
            self.receiver.window(),
            payload,
        )

    def _send_ack(self) -> None:
        self._ack_now = False
        self._ack_at = NEVER
        sender = self.sender
        self.wire.send(
            sender.sequence_of(sender.highest),
            self.receiver.next_sequence,
            ACK,
            self.receiver.window(),
        )

    def _send_syn_ack(self) -> None:
        self.wire.send(
            self.sender.initial_sequence,
            self.receiver.next_sequence,
            SYN | ACK,
            min(self.receiver.capacity, 0xFFFF),
            b"",
            self.syn_options,
        )

    def _send_probe(self) -> None:
        """An octet-less segment just below the window: every TCP answers it with its window."""
        sender = self.sender
        self.wire.send(
            add(sender.sequence_of(sender.acknowledged), -1),
            self.receiver.next_sequence,
            ACK,
            self.receiver.window(),
        )

    # -- time

    def deadline(self) -> float:
        """When `on_deadline` is next to be called, in the order of its reasons."""
        if self.guest_state is GuestState.SYN_HELD:
            return self.opened_at + CONNECT_TIMEOUT
        if self.guest_state is GuestState.TIME_WAIT:
            return self._time_wait_until
        if self.guest_state in GUEST_GONE:
            return NEVER if self.finished else self._heard_at + KEEPALIVE_IDLE
        return min(
            self.sender.retransmit_at,
            self.sender.probe_at,
            self._ack_at,
            self._keepalive_at,
        )

    def on_deadline(self, now: float) -> None:
        """Do what is due at `now`, and nothing if it came early."""
        state = self.guest_state
        if state is GuestState.SYN_HELD:
            if now >= self.opened_at + CONNECT_TIMEOUT:
                self.counters.count("tcp.connect_timeout")
                self.on_host_failed(HOST_UNREACHABLE, now)
        elif state is GuestState.TIME_WAIT:
            if now >= self._time_wait_until:
                self._move_guest(GuestEvent.TIME_WAIT_OVER)
        elif state not in GUEST_GONE:
            self._on_connection_deadline(now)
        elif not self.finished and now >= self._heard_at + KEEPALIVE_IDLE:
            # The server has taken nothing of the guest's last words for two hours.
            self.counters.count("tcp.gave_up")
            self.host.reset()
            self._move_host(HostEvent.DROPPED)

    def _on_connection_deadline(self, now: float) -> None:
        sender = self.sender
        if now >= sender.retransmit_at:
            self._on_retransmission_timeout(now)
        elif now >= sender.probe_at:
            self.counters.count("tcp.window_probe")
            self._send_probe()
            if not sender.on_probe_sent(now):
                self._give_up()
        elif now >= self._keepalive_at:
            self._on_keepalive(now)
        if now >= self._ack_at:
            self._ack_now = True

    def _on_retransmission_timeout(self, now: float) -> None:
        sender = self.sender
        self.counters.count("tcp.retransmission_timeout")
        if self.guest_state is GuestState.SYN_RECEIVED:
            sender.retransmissions += 1
            if sender.retransmissions > SYN_ACK_RETRANSMISSIONS:
                self._give_up()
                return
            sender.round_trip.back_off()
            sender.retransmit_at = now + sender.round_trip.timeout
            self._send_syn_ack()
        elif not sender.on_retransmission_timeout(self._transmit, now):
            self._give_up()

    def _on_keepalive(self, now: float) -> None:
        idle = now - self._heard_at
        if idle < KEEPALIVE_IDLE:
            self._keepalive_at = self._heard_at + KEEPALIVE_IDLE
        elif self._keepalives == KEEPALIVE_PROBES:
            self._give_up()
        else:
            self._keepalives += 1
            self._keepalive_at = now + KEEPALIVE_INTERVAL
            self._send_probe()

    def _give_up(self) -> None:
        """R2 has passed without an answer: tell both sides (RFC 9293, 3.8.3)."""
        self.counters.count("tcp.gave_up")
        self._abort()
