"""One TCP flow: a connection with the guest's kernel joined to a stream socket of the host.

It is its `GuestHalf`, and owns beside that the host half's state, what the two owe each other
(`states`), and their deadlines; headers, sockets and flow tables are its sinks' and its owner's.

Three verbs: ``on_<event>(…, now)`` takes in what happened; calls on `GuestWire` and
`HostStream` say what to do; ``deadline()`` says when to call ``on_deadline``. After the
events of a turn the owner calls ``flush(now)`` once.
"""

from functools import partial

from attrs import define, field

from qemu_usernat.admission import Decision, Guest
from qemu_usernat.nat.holdings import NOBODYS, OCTETS_AT_LEAST, Holdings
from qemu_usernat.nat.tcp.guest_half import TIME_WAIT, GuestHalf
from qemu_usernat.nat.tcp.keepalive import KEEPALIVE_IDLE, Doubt
from qemu_usernat.nat.tcp.sinks import HostStream
from qemu_usernat.nat.tcp.states import (
    DUTIES,
    GUEST_GONE,
    HOST_HOLDS_SOCKET,
    HOST_TABLE,
    Duty,
    GuestEvent,
    GuestState,
    HostEvent,
    HostState,
)
from qemu_usernat.primitives.errors import InternalError
from qemu_usernat.primitives.time import NEVER, SECOND
from qemu_usernat.wire.icmp import HOST_UNREACHABLE, IcmpError, unreachable
from qemu_usernat.wire.packets import ACK, RST, Buffer

CONNECT_TIMEOUT = 60 * SECOND
"""The host's own SYN retries last about two minutes; a person has given up by then."""

SYN_RETRANSMISSIONS = 7
"""1 + 2 + … + 60 + 60 s: the three minutes that RFC 9293, 3.8.3 (MUST-23) asks for a SYN."""


_RECEIVING = frozenset({GuestState.ESTABLISHED, GuestState.CLOSE_WAIT})
"""States in which the guest takes octets from us."""

_HALF_OPEN = frozenset({GuestState.SYN_HELD, GuestState.SYN_RECEIVED, GuestState.SYN_SENT})
"""States in which a connection was asked for and is not made."""

_MAY_SEND = frozenset(
    {
        GuestState.SYN_HELD,
        GuestState.SYN_RECEIVED,
        GuestState.ESTABLISHED,
        GuestState.FIN_WAIT_1,
        GuestState.FIN_WAIT_2,
    }
)
"""States in which the guest has a window."""

_SYN_UNACKNOWLEDGED = frozenset({GuestState.SYN_SENT, GuestState.SYN_RECEIVED})

_TAKING = frozenset({HostState.OPEN, HostState.READ_EOF})
"""States in which what the guest has sent is taken."""


@define(eq=False)
class TcpFlow(GuestHalf):
    """A TCP connection of the guest, and of the host on its behalf."""

    host: HostStream = field(init=False)
    host_state: HostState = HostState.IDLE
    decision: Decision | None = None
    """What the policy said of it; None of a flow that nobody asked about."""
    owner: Guest | None = None
    """Who the guest is; None where nobody asks."""
    holdings: Holdings = NOBODYS
    """What all flows of its guest hold."""
    _half_open: bool = False
    _octets: int = 0
    """Of that, this one's: as it was told last."""
    touched: bool = False
    """For the owner: already on the list of flows to flush at the end of the turn."""
    _refusal: IcmpError | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is owed to anybody: the owner forgets the flow."""
        return self.guest_state in GUEST_GONE and self.host_state not in HOST_HOLDS_SOCKET

    # -- what it holds

    def begin(self, owner: Guest, holdings: Holdings) -> None:
        """A flow of `owner`, whose flows hold `holdings`; before its first segment to the guest."""
        self.owner, self.holdings = owner, holdings
        if holdings.is_full():
            self.receiver.capacity = OCTETS_AT_LEAST
        self.receiver.may_not_grow = holdings.is_full
        holdings.add(1, 0, 0)
        self.account()

    def account(self) -> None:
        """Say what the flow holds now."""
        # What the guest may send, or has sent and nobody has taken; and what it has not taken.
        state, receiver = self.guest_state, self.receiver
        octets = receiver.capacity if state in _MAY_SEND else receiver.queued
        octets += self.sender.outstanding
        half_open = state in _HALF_OPEN
        if octets != self._octets or half_open != self._half_open:
            self.holdings.add(0, half_open - self._half_open, octets - self._octets)
            self._octets, self._half_open = octets, half_open

    def release(self) -> None:
        """It has ended."""
        self.holdings.add(-1, -self._half_open, -self._octets)
        self.holdings = NOBODYS

    def _move_host(self, event: HostEvent) -> None:
        target = HOST_TABLE.get((self.host_state, event))
        if target is None:
            raise InternalError(f"TCP host half: {event} in {self.host_state}")
        held = self.host_state in HOST_HOLDS_SOCKET
        self.host_state = target
        if held and target not in HOST_HOLDS_SOCKET:
            self.host.close()

    # -- events of the host

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

    def on_host_connected(self, now: float) -> None:
        """The connection to the server is open."""
        self._move_host(HostEvent.CONNECTED)

    def on_host_failed(self, refusal: IcmpError | None, now: float) -> None:
        """The connection failed, before or after it was open.

        `refusal` says it to a guest that is still waiting for its SYN,ACK; None where a reset
        does.
        """
        if self.host_state in HOST_HOLDS_SOCKET or self.host_state is HostState.IDLE:
            self._refusal = refusal
            self._move_host(HostEvent.FAILED)

    def room(self) -> int:
        """How many octets the host half may read now."""
        if self.guest_state not in _RECEIVING:
            return 0
        if self.host_state not in (HostState.OPEN, HostState.WRITE_SHUT) or self.wire.stalled():
            return 0
        room = self.sender.room()
        if room and self.holdings.is_full():
            # The guest's next ACK makes room, for this flow if for no other.
            return 0 if self.sender.outstanding else min(room, OCTETS_AT_LEAST)
        return room

    def on_host_data(self, payload: Buffer, length: int, now: float) -> None:
        """At most `room` octets from the server."""
        if self.holdings.is_full():
            self.counters.count("tcp.octets_full")
        self.sender.take(payload, length)
        self.holdings.add(0, 0, length)
        self._octets += length
        self.sender.pump(self.output.data, now)

    def on_path_mtu(self, sequence: int, mtu: int) -> bool:
        """The guest says that a packet of `mtu` bytes and no more would have passed where ours with
        `sequence` did not; False if that is nothing we have under way (RFC 5927, 4.1)."""
        sender = self.sender
        if not sender.acknowledged <= sender.position_of(sequence) < sender.next:
            return False
        sender.on_path_mtu(mtu)
        return True

    def on_host_waiting(self) -> None:
        """The server has sent something, but `room` is zero."""
        if self.holdings.is_full():
            self.counters.count("tcp.octets_full")
        self.sender.data_waiting = True

    def on_host_eof(self, now: float) -> None:
        """The server has ended its direction; saying so twice is no news."""
        if self.host_state in (HostState.OPEN, HostState.WRITE_SHUT):
            self._move_host(HostEvent.EOF)

    def abandon(self) -> None:
        """Close the host half without another word: the network itself ends."""
        if self.host_state in HOST_HOLDS_SOCKET:
            self._move_host(HostEvent.DROPPED)

    def break_off(self) -> None:
        """A bug of ours has shown here: end it for both sides."""
        if self.host_state in HOST_HOLDS_SOCKET:
            self.host.reset()
            self._move_host(HostEvent.DROPPED)
        self.end_time_wait()
        if self.guest_state not in GUEST_GONE:
            self._abort()

    # -- the end of a turn

    def flush(self, now: float) -> None:
        """Pay what this turn's events owe: to the host first, so that the guest hears of it."""
        # What the guest was told of the window, in this turn or before, did not count on this.
        drained = bool(self.receiver.backlog or (self._turn_acks and self.receiver.arrived))
        self._turn_acks = 0
        if self.receiver.queued:
            self._drain(now)
        self._pay_duties(now)
        if self.guest_state not in GUEST_GONE:
            self._pump(now)
            if self.output.owed or (drained and self.receiver.window_update_due()):
                self.output.ack()
            while self.receiver.duplicates and self.sender.selective:
                self.output.ack()  # or a guest does not learn that it has repeated needlessly
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
        if self.host_state not in _TAKING:
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
        if self._refusal is None:
            # RST,ACK, for a guest in SYN-SENT ignores a bare RST (RFC 9293, 3.10.7.3).
            self.counters.count("tcp.refused")
            self.wire.send(0, self.receiver.next_sequence, RST | ACK, 0)
        else:
            self.counters.count("tcp.unreachable")
            self.wire.refuse(self._refusal, now)
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
                self.on_host_failed(unreachable(HOST_UNREACHABLE), now)
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
        elif now >= sender.window.probe_at:
            self.counters.count("tcp.window_probe")
            self.output.probe()
            if not sender.on_probe_sent(now):
                self._give_up()
        elif now >= sender.tail_probe.at:
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
