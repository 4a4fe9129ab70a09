"""One TCP flow: a connection with the guest's kernel joined to a stream socket of the host.

It owns the two states and their duties (`states`), and the order in which a segment is
judged (RFC 9293, 3.10.7; RFC 5961). Octets, windows and loss are the business of its
`Receiver` and `Sender`, segments that of its `Output`; headers, sockets and flow tables of
its sinks and its owner.

Three verbs: ``on_<event>(…, now)`` takes in what happened; calls on `GuestWire` and
`HostStream` say what to do; ``deadline()`` says when to call ``on_deadline``. After the
events of a turn the owner calls ``flush(now)`` once.
"""

from functools import partial

from attrs import define, field

from qemu_usernat.nat.tcp.keepalive import KEEPALIVE_IDLE, Doubt, Keepalive
from qemu_usernat.nat.tcp.output import Output
from qemu_usernat.nat.tcp.receiver import WINDOW_SCALE, Receiver
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
from qemu_usernat.primitives.time import MS, NEVER, SECOND
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, Buffer, TcpSegment
from qemu_usernat.wire.tcp_options import syn_options

CONNECT_TIMEOUT = 60 * SECOND
"""The host's own SYN retries last about two minutes; a person has given up by then."""

TIME_WAIT = 10 * SECOND
"""2 MSL. RFC 9293, 3.4.2, supposes 2 minutes in a network; nothing lives 5 s on this wire."""

SYN_RETRANSMISSIONS = 7
"""1 + 2 + … + 60 + 60 s: the three minutes that RFC 9293, 3.8.3 (MUST-23) asks for a SYN."""

CHALLENGE_INTERVAL = 100 * MS  # RFC 5961, 7: challenge ACKs are limited, here for each flow

HOST_UNREACHABLE = 1  # ICMP code of destination unreachable (RFC 792)

_RECEIVING = frozenset({GuestState.ESTABLISHED, GuestState.CLOSE_WAIT})
"""States in which the guest takes octets from us."""

_SYN_UNACKNOWLEDGED = frozenset({GuestState.SYN_SENT, GuestState.SYN_RECEIVED})

_TAKING = frozenset({HostState.OPEN, HostState.READ_EOF})
_TAKING_OR_DIALING = _TAKING | {HostState.IDLE, HostState.DIALING}
"""States in which what the guest has sent is, or will be, taken."""


@define(eq=False)
class TcpFlow:
    """A TCP connection of the guest, and of the host on its behalf."""

    key: FlowKey
    wire: GuestWire
    receiver: Receiver
    sender: Sender
    counters: Counters
    opened_at: float
    host: HostStream = field(init=False)
    output: Output = field(init=False)
    keepalive: Keepalive = field(init=False)
    guest_state: GuestState = GuestState.SYN_HELD
    host_state: HostState = HostState.IDLE
    touched: bool = False
    """For the owner: already on the list of flows to flush at the end of the turn."""

    _syn_sent_at: float | None = None
    """When our SYN left, if it left once: the first round trip that is measured."""
    _time_wait_until: float = NEVER
    _challenged_at: float = -NEVER
    _refusal_code: int | None = None

    def __attrs_post_init__(self) -> None:
        options = syn_options(self.receiver.maximum_segment_size, WINDOW_SCALE, True)
        self.output = Output(self.wire, self.receiver, self.sender, options)
        self.keepalive = Keepalive(self.opened_at)

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

    # -- the opening

    def negotiate(self, syn: TcpSegment) -> None:
        """The guest's SYN, with or without ACK: what both ends can do (RFC 9293, 3.7.1)."""
        scaled = syn.window_scale is not None
        self.receiver.begin(syn.sequence, scaled=scaled)
        self.sender.begin(
            syn.sequence,
            syn.window,
            syn.maximum_segment_size,
            syn.window_scale,
            syn.sack_permitted,
        )
        self.output.syn_options = syn_options(
            self.receiver.maximum_segment_size,
            WINDOW_SCALE if scaled else None,
            syn.sack_permitted,
        )

    def dial(self, host: HostStream) -> None:
        """The owner has begun to connect `host`, as the guest asks."""
        self.host = host
        self._move_host(HostEvent.DIAL)

    def call(self, host: HostStream, now: float) -> None:
        """A client has connected to `host`: call the guest (RFC 9293, 3.10.1, active OPEN)."""
        self.host = host
        self._move_host(HostEvent.ACCEPTED)
        self.guest_state = GuestState.SYN_SENT  # where such a flow begins
        self._await_syn_ack(now)
        self.output.syn()

    def _await_syn_ack(self, now: float) -> None:
        self._syn_sent_at = now
        self.sender.retransmit_at = now + RTO_INITIAL

    def on_answer(self, segment: TcpSegment, now: float) -> None:
        """A segment of the guest in SYN-SENT (RFC 9293, 3.10.7.3); `on_segment` for all others."""
        self.keepalive.heard_at = now
        flags = segment.flags
        if flags & ACK and self.sender.position_of(segment.acknowledgment) != 0:
            if not flags & RST:
                self._refuse_handshake(segment.acknowledgment)
        elif flags & RST and flags & ACK:
            self._move_guest(GuestEvent.RST_RECEIVED)
        elif flags & RST or not flags & SYN:
            self.counters.count("tcp.not_expected")
        else:
            self.negotiate(segment)
            if flags & ACK:
                self._on_syn_acknowledged(now)
                self._move_guest(GuestEvent.SYN_ACCEPTED)
                self.output.owed = True
            else:
                self._move_guest(GuestEvent.SYN_CROSSED)
                self.output.syn_ack()

    def _on_syn_acknowledged(self, now: float) -> None:
        sender = self.sender
        sender.retransmit_at = NEVER
        if sender.retransmissions:
            sender.round_trip.timeout = RTO_AFTER_LOST_SYN
            sender.retransmissions = 0
        elif self._syn_sent_at is not None:
            sender.round_trip.sample(now - self._syn_sent_at)

    def _refuse_handshake(self, acknowledgment: int) -> None:
        """An ACK of something else than our SYN (RFC 9293, 3.10.7.3 and 3.10.7.4, fifth)."""
        self.counters.count("tcp.bad_handshake_ack")
        self.output.reset_stray(0, acknowledgment, ACK, 0)

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

    # -- segments of the guest

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
        is good until the turn ends, `selective` the edges of its selective acknowledgment."""
        self.keepalive.heard_at = now
        receiver = self.receiver
        if (
            sequence != receiver.next_sequence
            or length > receiver.room
            or flags & (RST | SYN)
            or self.guest_state is not GuestState.ESTABLISHED
        ):
            if not self._acceptable(sequence, acknowledgment, flags, window, length, now):
                return
            if length and not receiver.room:
                # A closed window admits neither octets nor the FIN behind them, but what the
                # ACK says is heard (RFC 9293, 3.10.7.4); the answer tells the window.
                self.counters.count("tcp.closed_window")
                length = 0
                flags &= ~FIN
                self.output.owed = True
        if not flags & ACK:
            self.counters.count("tcp.no_ack")  # RFC 9293, 3.10.7.4, fifth: drop
            return
        if not self._on_acknowledgment(
            sequence, acknowledgment, flags, window, length, selective, now
        ):
            return
        if length:
            self._on_octets(sequence, payload, length, flags, now)
        if flags & FIN:
            self._on_fin(receiver.finish(add(sequence, length)))
        elif length and receiver.fin_position is not None:
            self._on_fin(receiver.consume_fin())

    def _acceptable(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        length: int,
        now: float,
    ) -> bool:
        """Steps first to fourth of RFC 9293, 3.10.7.4, as RFC 5961 sharpens them."""
        state = self.guest_state
        offset = self.receiver.offset_of(sequence)
        spans = length + (flags & FIN)
        if state is GuestState.SYN_HELD or state in GUEST_GONE:
            self._on_unexpected(sequence, acknowledgment, flags, spans, offset)
            return False
        if state is GuestState.SYN_RECEIVED and flags & SYN and offset == -1:
            return self._on_syn_again(acknowledgment, flags, spans)
        if state is GuestState.TIME_WAIT:
            self._on_time_wait_segment(offset, spans, flags, now)
            return False
        if flags & RST:
            self._on_reset(offset, now)
            return False
        if flags & SYN:
            self._challenge(now)  # RFC 5961, 4.2: wherever it stands
            return False
        if self._in_window(offset, spans):
            return True
        self.counters.count("tcp.out_of_window")
        self.receiver.on_duplicate(sequence, length)
        if spans:
            self.output.owed = True
        else:
            if offset == -1 and flags & ACK:
                self.sender.on_keepalive_window(self.sender.position_of(acknowledgment), window)
            # Answered without limit, two ends that disagree would answer each other for ever.
            self._challenge(now)
        return False

    def _on_unexpected(
        self, sequence: int, acknowledgment: int, flags: int, spans: int, offset: int
    ) -> None:
        """No octet is expected yet, or ever again (RFC 9293, 3.10.7.1 and 3.10.7.2)."""
        held = self.guest_state is GuestState.SYN_HELD
        if flags & RST:
            if held and offset in (0, -1):
                self._move_guest(GuestEvent.RST_RECEIVED)
        elif not held or (flags & ACK and not flags & SYN):
            self.counters.count("tcp.not_expected")
            self.output.reset_stray(sequence, acknowledgment, flags, spans)
        else:
            self.counters.count("tcp.syn_repeated" if flags & SYN else "tcp.no_ack")

    def _on_syn_again(self, acknowledgment: int, flags: int, spans: int) -> bool:
        """Our SYN,ACK was lost, or is still on its way; or the guest's crosses ours."""
        if flags & ACK and not spans and self.sender.position_of(acknowledgment) == 0:
            # Simultaneous open: it acknowledges our SYN; nobody sends another ACK of it.
            self.output.owed = True
            return True
        self._syn_sent_at = None  # Karn: which of the two is acknowledged is not known
        self.output.syn_ack()
        return False

    def _on_reset(self, offset: int, now: float) -> None:
        """RFC 5961, 3.2: believed at the very number that is expected, and nowhere else."""
        if offset == 0:
            self._move_guest(GuestEvent.RST_RECEIVED)
            if self.guest_state is GuestState.RESET:
                self.receiver.discard()
        elif 0 < offset < self.receiver.room:
            self._challenge(now)
        else:
            self.counters.count("tcp.reset_out_of_window")

    def _on_time_wait_segment(self, offset: int, spans: int, flags: int, now: float) -> None:
        """RFC 9293, 3.10.7.4: a FIN again, as our last ACK was lost; or what is out of place."""
        if flags & FIN and not flags & RST:
            self._time_wait_until = now + TIME_WAIT
            self.output.owed = True
        elif flags & SYN and not flags & RST:
            self._challenge(now)
        else:
            self.counters.count("tcp.time_wait")  # a reset ends nothing here (RFC 1337, 2)
            if not flags & RST and not self._in_window(offset, spans):
                self._challenge(now)

    def _in_window(self, offset: int, spans: int) -> bool:
        """The four cases of RFC 9293, table 6, with its allowance for a closed window."""
        room = self.receiver.room
        if not room:
            return offset == 0
        if not spans:
            return 0 <= offset < room
        return 0 <= offset < room or 0 <= offset + spans - 1 < room

    def _challenge(self, now: float) -> None:
        """An ACK that says where we are, but not too often."""
        if now - self._challenged_at >= CHALLENGE_INTERVAL:
            self._challenged_at = now
            self.counters.count("tcp.challenge_ack")
            self.output.owed = True
        else:
            self.counters.count("tcp.challenge_ack_limited")

    def _on_acknowledgment(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        length: int,
        selective: tuple[int, ...],
        now: float,
    ) -> bool:
        """Step fifth; False if the segment is to be dropped."""
        sender = self.sender
        position = sender.position_of(acknowledgment)
        if self.guest_state is GuestState.SYN_RECEIVED:
            if position != 0:
                self._refuse_handshake(acknowledgment)
                return False
            self._on_syn_acknowledged(now)
            if not flags & SYN:  # whose window has been taken in already
                sender.on_window(sequence, 0, window)
            self._move_guest(GuestEvent.SYN_ACKED)
            return True
        if position > sender.next:
            self.counters.count("tcp.ack_of_unsent")
            self._challenge(now)  # RFC 5961, 5.2 and 7
            return False
        if position > sender.acknowledged:
            sender.on_window(sequence, position, window)
            sender.on_acknowledgment(position, now)
            if sender.fin_queued and position > sender.end:
                self._on_fin_acknowledged()
        elif position == sender.acknowledged:
            changed = sender.on_window(sequence, position, window)
            if not changed and not length and not flags & FIN:
                sender.on_duplicate_acknowledgment(now)
            sender.on_alive()
        elif position < sender.acknowledged - max(sender.largest_window, 0xFFFF):
            self._challenge(now)  # RFC 5961, 5.2
            return False
        if selective and sender.selective:
            sender.on_selective(position, selective, now)
        return True

    def _on_octets(
        self, sequence: int, payload: Buffer, length: int, flags: int, now: float
    ) -> None:
        """Step seventh: the octets of the segment, and when to acknowledge them."""
        receiver, output = self.receiver, self.output
        gap = bool(receiver.out_of_order)
        if not receiver.accept(sequence, payload, length):
            # Each is answered by an ACK of its own: the guest counts three of them before it
            # repeats what was lost, and waits for its timer otherwise (RFC 5681, 3.2 and 4.2).
            self.counters.count("tcp.out_of_order")
            output.ack()
        elif gap or not flags & PSH or length >= receiver.maximum_segment_size:
            output.owed = True  # a gap is filled (RFC 5681, 4.2), or a full segment has come
        elif output.owed_at == NEVER:
            output.owe_soon(now)
        else:
            output.owed = True  # more than one segment of a turn

    def _on_fin(self, in_order: bool) -> None:
        self.output.owed = True
        if in_order:
            self._move_guest(GuestEvent.FIN_RECEIVED)

    def _on_fin_acknowledged(self) -> None:
        if self.guest_state in (GuestState.FIN_WAIT_1, GuestState.CLOSING, GuestState.LAST_ACK):
            self._move_guest(GuestEvent.FIN_ACKED)

    def end_time_wait(self) -> None:
        """Leave TIME-WAIT early: the owner needs the room (RFC 9293, 3.10.8)."""
        if self.guest_state is GuestState.TIME_WAIT:
            self._move_guest(GuestEvent.TIME_WAIT_OVER)

    # -- events of the host

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
        self.sender.pump(self.output.data, now)

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
            self._pump(now)
            if self.output.owed or (drained and self.receiver.window_update_due()):
                self.output.ack()
        if self.guest_state is GuestState.TIME_WAIT and self._time_wait_until == NEVER:
            self._time_wait_until = now + TIME_WAIT
        self._watch(now)

    def _pump(self, now: float) -> None:
        sender = self.sender
        sender.pump(self.output.data, now)
        if sender.next > sender.end and self.guest_state in _RECEIVING:
            self._move_guest(GuestEvent.FIN_SENT)

    def _drain(self, now: float) -> None:
        if self.host_state in _TAKING:
            queued = self.receiver.queued
            self.receiver.drain(partial(self.host.send, now=now))
            if self.guest_state in GUEST_GONE and self.receiver.queued < queued:
                self.keepalive.heard_at = now
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
                self._await_syn_ack(now)
                self.output.syn_ack()
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
            case Duty.HANG_UP:
                self.host.hang_up()
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
        self.output.reset(acknowledging=self.guest_state is not GuestState.SYN_SENT)
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

    # -- time

    def deadline(self) -> float:
        """When `on_deadline` is next to be called, in the order of its reasons."""
        if self.guest_state is GuestState.SYN_HELD:
            return self.opened_at + CONNECT_TIMEOUT
        if self.guest_state is GuestState.TIME_WAIT:
            return self._time_wait_until
        if self.guest_state in GUEST_GONE:
            return NEVER if self.finished else self.keepalive.heard_at + KEEPALIVE_IDLE
        return min(self.sender.deadline(), self.output.owed_at, self.keepalive.at)

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
        elif not self.finished and now >= self.keepalive.heard_at + KEEPALIVE_IDLE:
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
            self.output.probe()
            if not sender.on_probe_sent(now):
                self._give_up()
        elif now >= sender.tail_probe_at:
            sender.on_tail_probe(self.output.data, now)
        elif now >= self.keepalive.at:
            self._on_keepalive(now)
        if now >= self.output.owed_at:
            self.output.owed = True
        # What is overdue on the scoreboard the flush judges.

    def _on_retransmission_timeout(self, now: float) -> None:
        sender = self.sender
        self.counters.count("tcp.retransmission_timeout")
        if self.guest_state in _SYN_UNACKNOWLEDGED:
            sender.retransmissions += 1
            if sender.retransmissions > SYN_RETRANSMISSIONS:
                self._give_up()
                return
            sender.round_trip.back_off()
            sender.retransmit_at = now + sender.round_trip.timeout
            if self.guest_state is GuestState.SYN_SENT:
                self.output.syn()
            else:
                self.output.syn_ack()
        elif not sender.on_retransmission_timeout(self.output.data, now):
            self._give_up()

    def _on_keepalive(self, now: float) -> None:
        match self.keepalive.on_deadline(now):
            case Doubt.ASK:
                self.counters.count("tcp.keepalive")
                self.output.probe()
            case Doubt.GONE:
                self._give_up()

    def _give_up(self) -> None:
        """R2 has passed without an answer: tell both sides (RFC 9293, 3.8.3)."""
        self.counters.count("tcp.gave_up")
        self._abort()
