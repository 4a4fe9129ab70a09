"""The guest half: one end of a TCP connection, whose other end is the guest's kernel.

It owns the guest half's state and the order in which a segment is judged (RFC 9293, 3.10.7;
RFC 5961). Octets, windows and loss are the business of its `Receiver` and `Sender`, segments
that of its `Output`. It refuses to know that there is a host half: what that makes of it, and
what it owes to that, stands in the `flow`.
"""

from attrs import define, field

from qemu_usernat.nat.tcp.keepalive import Keepalive
from qemu_usernat.nat.tcp.output import Output
from qemu_usernat.nat.tcp.receiver import SELECTIVE_BLOCKS, WINDOW_SCALE, Receiver
from qemu_usernat.nat.tcp.rtt import RTO_AFTER_LOST_SYN, RTO_INITIAL
from qemu_usernat.nat.tcp.sender import Sender
from qemu_usernat.nat.tcp.sinks import GuestWire
from qemu_usernat.nat.tcp.states import GUEST_GONE, GUEST_TABLE, GuestEvent, GuestState
from qemu_usernat.primitives.addresses import FlowKey
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import InternalError
from qemu_usernat.primitives.sequence import MODULUS, add
from qemu_usernat.primitives.time import MS, NEVER, SECOND
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, Buffer, TcpSegment
from qemu_usernat.wire.tcp_options import syn_options

TIME_WAIT = 10 * SECOND
"""2 MSL. RFC 9293, 3.4.2, supposes 2 minutes in a network; nothing lives 5 s on this wire."""

CHALLENGE_INTERVAL = 100 * MS  # RFC 5961, 7: challenge ACKs are limited, here for each flow

SINGLE_ACKS = 64
"""Segments acknowledged one by one after a gap: a wire that loses segments loses ACKs, too, and a
guest that has slowed down to a few segments hears of each before its timer rings (measured)."""

TURN_ACKS = 4
"""Of these, in one turn, to a guest that hears of blocks: the others would cost it and us as much
as the segments do, and tell nothing more; unless there are more blocks than one ACK tells of."""


@define(eq=False)
class GuestHalf:
    """One end of a TCP connection with the guest; `flow.TcpFlow` is the whole."""

    key: FlowKey
    wire: GuestWire
    receiver: Receiver
    sender: Sender
    counters: Counters
    opened_at: float
    output: Output = field(init=False)
    keepalive: Keepalive = field(init=False)
    guest_state: GuestState = GuestState.SYN_HELD

    _syn_sent_at: float | None = None
    """When our SYN left, if it left once: the first round trip that is measured."""
    _time_wait_until: float = NEVER
    _challenged_at: float = -NEVER
    _single_acks: int = 0
    """How many segments more are acknowledged one by one."""
    _turn_acks: int = 0
    """How many were in this turn."""

    def __attrs_post_init__(self) -> None:
        options = syn_options(self.receiver.maximum_segment_size, WINDOW_SCALE, True)
        self.output = Output(self.wire, self.receiver, self.sender, options)
        self.keepalive = Keepalive(self.opened_at)

    def _move_guest(self, event: GuestEvent) -> None:
        target = GUEST_TABLE.get((self.guest_state, event))
        if target is None:
            raise InternalError(f"TCP guest half: {event} in {self.guest_state}")
        self.guest_state = target

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

    def _await_syn_ack(self, now: float) -> None:
        self._syn_sent_at = now
        self.sender.retransmit_at = now + RTO_INITIAL

    def on_answer(self, segment: TcpSegment, now: float) -> None:
        """A segment with SYN in SYN-SENT (RFC 9293, 3.10.7.3); `on_segment` takes all others."""
        self.keepalive.heard_at = now
        flags = segment.flags
        if self._answers_our_syn(segment.acknowledgment, flags):
            self.negotiate(segment)
            if flags & ACK:
                self._on_syn_acknowledged(now)
                self._move_guest(GuestEvent.SYN_ACCEPTED)
                self.output.owed = True
            else:
                self._move_guest(GuestEvent.SYN_CROSSED)
                self._syn_sent_at = None  # Karn: the SYN goes again, with its ACK
                self.output.syn_ack()

    def _answers_our_syn(self, acknowledgment: int, flags: int) -> bool:
        """First, second and fourth: whether the segment's SYN is to be taken."""
        if flags & ACK and self.sender.position_of(acknowledgment) != 0:
            if flags & RST:
                self.counters.count("tcp.reset_out_of_window")
            else:
                self._refuse_handshake(acknowledgment)
            return False
        if flags & RST and flags & ACK:
            self._move_guest(GuestEvent.RST_RECEIVED)
        elif flags & RST or not flags & SYN:
            self.counters.count("tcp.no_syn")
        else:
            return True
        return False

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
            self.counters.count("tcp.time_wait_reused")
            self._move_guest(GuestEvent.TIME_WAIT_OVER)
        elif self.guest_state is GuestState.SYN_HELD and sequence != self.receiver.initial_sequence:
            self.counters.count("tcp.syn_replaced")
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
        # Where nothing is unusual, in order or ahead of it, nothing has to be judged.
        ahead = (sequence - receiver.next_sequence) % MODULUS
        if (
            ahead + length > receiver.room - bool(ahead)
            or flags & (RST | SYN)
            or self.guest_state is not GuestState.ESTABLISHED
        ):
            if not self._acceptable(sequence, acknowledgment, flags, window, length, now):
                return
            if length and not receiver.room:
                # A closed window admits neither octets nor the FIN behind them, but what the
                # ACK says is heard (RFC 9293, 3.10.7.4); the answer tells the window.
                self.counters.count("tcp.closed_window")
                self.output.owed = True
                if flags & ACK:
                    self._on_acknowledgment(
                        sequence, acknowledgment, flags, window, length, selective, now
                    )
                return
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
        if state is GuestState.SYN_SENT:
            self._answers_our_syn(acknowledgment, flags & ~SYN)
            return False
        if state is GuestState.TIME_WAIT:
            self._on_time_wait_segment(offset, spans, flags, now)
            return False
        if flags & RST:
            self._on_reset(offset, now)
            return False
        if state is GuestState.SYN_RECEIVED and flags & SYN and offset == -1:
            return self._on_syn_again(acknowledgment, flags, spans)
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
                self.sender.on_keepalive(self.sender.position_of(acknowledgment), window)
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
            else:
                self.counters.count("tcp.reset_out_of_window")
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
        if flags & FIN and not flags & RST and offset + spans == 0:
            self._time_wait_until = now + TIME_WAIT
            self.output.owed = True
        elif flags & SYN and not flags & RST:
            self._challenge(now)
        else:
            self.counters.count("tcp.time_wait")  # a reset ends nothing here (RFC 1337, 2)
            if not flags & RST and (spans or not self._in_window(offset, spans)):
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
        elif position < sender.acknowledged - max(sender.window.largest, 0xFFFF):
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
        if receiver.accept(sequence, payload, length):
            if self._single_acks and not flags & FIN:
                self._single_acks -= 1
                self._ack_alone()
            elif gap or not flags & PSH or length >= receiver.maximum_segment_size:
                output.owed = True  # a gap is filled (RFC 5681, 4.2), or a full segment has come
            elif output.owed_at == NEVER:
                output.owe_soon(now)
            else:
                output.owed = True  # more than one segment of a turn
        elif receiver.offset_of(add(sequence, length)) > 0:
            # Each is answered by an ACK of its own: the guest counts three of them before it
            # repeats what was lost, and waits for its timer otherwise (RFC 5681, 3.2 and 4.2).
            # What had come before is here because of a FIN behind it, which is acknowledged.
            self.counters.count("tcp.out_of_order")
            self._single_acks = SINGLE_ACKS
            self._ack_alone()

    def _ack_alone(self) -> None:
        """An ACK for this segment; from some on the turn's last one tells as much, in blocks."""
        untold = self.receiver.untold_blocks
        if self.sender.selective and self._turn_acks >= TURN_ACKS and untold < SELECTIVE_BLOCKS - 1:
            self.output.owed = True
        else:
            self._turn_acks += 1
            self.output.ack()

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
