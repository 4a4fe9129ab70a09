"""What a flow says to its guest: segments, and the acknowledgment that each of them carries.

It owns how a segment is filled in (RFC 9293, 3.10.7.4: sequence, acknowledgment, window; RFC
2018 and RFC 2883: selective blocks), and whether an acknowledgment is still owed, now or soon.
It decides nothing about states.
"""

from attrs import define

from qemu_usernat.nat.tcp.receiver import Receiver
from qemu_usernat.nat.tcp.sender import Sender
from qemu_usernat.nat.tcp.sinks import GuestWire
from qemu_usernat.primitives.sequence import add
from qemu_usernat.primitives.time import MS, NEVER
from qemu_usernat.wire.packets import ACK, RST, SYN
from qemu_usernat.wire.tcp_options import selective_option

DELAYED_ACK = 5 * MS
"""RFC 9293, 3.8.6.3, allows 500 ms. An answer from near comes sooner than 5 ms and carries the
ACK; a guest whose Nagle algorithm waits for the ACK should not wait longer."""


@define(eq=False)
class Output:
    """The segments of one flow, towards the guest."""

    wire: GuestWire
    receiver: Receiver
    sender: Sender
    syn_options: bytes
    """Options of our SYN, or SYN,ACK."""
    owed: bool = False
    """An acknowledgment, at the end of this turn."""
    owed_at: float = NEVER
    """An acknowledgment, by then."""

    def owe_soon(self, now: float) -> None:
        """An acknowledgment within `DELAYED_ACK`, so that an answer may carry it."""
        if self.owed_at == NEVER:
            self.owed_at = now + DELAYED_ACK

    def data(self, position: int, payload: memoryview, flags: int) -> None:
        """Octets, as one segment or as many as they need, or our FIN; the sender's `Transmit`."""
        self.owed = False
        self.owed_at = NEVER
        sender, receiver = self.sender, self.receiver
        sequence = sender.sequence_of(position)
        window = receiver.window()
        if len(payload) <= sender.maximum_segment_size:
            self.wire.send(sequence, receiver.next_sequence, flags | ACK, window, payload)
        else:
            size = sender.maximum_segment_size
            self.wire.send_each(
                sequence, receiver.next_sequence, flags | ACK, window, payload, size
            )

    def ack(self) -> None:
        """An acknowledgment alone; it also tells what came beyond a gap, or came twice."""
        self.owed = False
        self.owed_at = NEVER
        sender, receiver = self.sender, self.receiver
        options = b""
        if receiver.untold and sender.selective:
            options = selective_option(receiver.selective_edges())
        self.wire.send(
            sender.sequence_of(sender.next),
            receiver.next_sequence,
            ACK,
            receiver.window(),
            b"",
            options,
        )

    def probe(self) -> None:
        """An octet-less segment just below the window: every TCP answers it with its window."""
        sender, receiver = self.sender, self.receiver
        self.wire.send(
            add(sender.sequence_of(sender.acknowledged), -1),
            receiver.next_sequence,
            ACK,
            receiver.window(),
        )

    def syn(self) -> None:
        """We call the guest; the window of a SYN is never scaled (RFC 7323, 2.2)."""
        self.wire.send(
            self.sender.initial_sequence,
            0,
            SYN,
            min(self.receiver.capacity, 0xFFFF),
            b"",
            self.syn_options,
        )

    def syn_ack(self) -> None:
        """The guest has called, and is answered."""
        self.wire.send(
            self.sender.initial_sequence,
            self.receiver.next_sequence,
            SYN | ACK,
            min(self.receiver.capacity, 0xFFFF),
            b"",
            self.syn_options,
        )

    def reset(self, *, acknowledging: bool) -> None:
        """The connection is over at once."""
        sender = self.sender
        sequence = sender.sequence_of(sender.next)
        if acknowledging:
            self.wire.send(sequence, self.receiver.next_sequence, RST | ACK, 0)
        else:
            self.wire.send(sequence, 0, RST, 0)

    def reset_stray(self, sequence: int, acknowledgment: int, flags: int, length: int) -> None:
        """A segment that belongs to no connection (RFC 9293, 3.10.7.1); `length` counts its FIN."""
        if flags & ACK:
            self.wire.send(acknowledgment, 0, RST, 0)
        else:
            self.wire.send(0, add(sequence, length), RST | ACK, 0)
