"""What a segment says: whose numbers, which window, which options, and what is owed after it."""

import pytest
from attrs import define, field

from qemu_usernat.nat.tcp.congestion import CONTROLS
from qemu_usernat.nat.tcp.output import DELAYED_ACK, Output
from qemu_usernat.nat.tcp.receiver import Receiver
from qemu_usernat.nat.tcp.sender import Sender
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import MODULUS, add
from qemu_usernat.primitives.time import NEVER
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN, Buffer
from qemu_usernat.wire.tcp_options import selective_edges

OURS, THEIRS = MODULUS - 3, 7000
MSS = 1000
OPTIONS = b"\x02\x04\x03\xe8"


@define
class Wire:
    """Writes down each call: (sequence, acknowledgment, flags, window, payload, options, size)."""

    sent: list[tuple[int, int, int, int, bytes, bytes, int | None]] = field(factory=list)

    def send(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: Buffer = b"",
        options: bytes = b"",
    ) -> None:
        self.sent.append((sequence, acknowledgment, flags, window, bytes(payload), options, None))

    def send_each(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: memoryview,
        size: int,
    ) -> None:
        self.sent.append((sequence, acknowledgment, flags, window, bytes(payload), b"", size))

    def refuse(self, error: IcmpError, now: float) -> None:
        raise AssertionError("nothing is refused here")

    def stalled(self) -> bool:
        return False


def output(*, selective: bool = True) -> tuple[Output, Wire]:
    """After a handshake without window scale; the guest has sent "hello"."""
    wire = Wire()
    receiver = Receiver(MSS, Counters())
    receiver.begin(THEIRS, scaled=False)
    receiver.accept(THEIRS + 1, b"hello", 5)
    receiver.drain(lambda buffers: 5)
    sender = Sender(OURS, MSS, CONTROLS["none"], Counters())
    sender.begin(THEIRS, 60_000, MSS, None, selective)
    return Output(wire, receiver, sender, OPTIONS), wire


def test_octets_carry_the_acknowledgment_and_nothing_is_owed_any_more() -> None:
    """One frame instead of two; their numbers wrap."""
    out, wire = output()
    out.owed = True
    out.owe_soon(10.0)
    out.data(5, memoryview(b"answer"), PSH)
    assert wire.sent == [(3, THEIRS + 6, ACK | PSH, 0xFFFF, b"answer", b"", None)]
    assert not out.owed
    assert out.owed_at == NEVER


@pytest.mark.parametrize(("length", "size"), [(0, None), (MSS, None), (MSS + 1, MSS)])
def test_more_than_a_segment_is_cut_by_the_wire(length: int, size: int | None) -> None:
    """All of one headers' template, cut at the guest's maximum; a FIN has no octets."""
    out, wire = output()
    out.data(0, memoryview(bytes(length)), FIN if not length else 0)
    sequence, _, flags, _, payload, _, cut = wire.sent[0]
    assert (sequence, len(payload), cut) == (add(OURS, 1), length, size)
    assert flags == (ACK if length else FIN | ACK)


def test_an_acknowledgment_stands_where_the_next_octet_will() -> None:
    """SND.NXT, not what is acknowledged (RFC 9293, 3.10.7.4)."""
    out, wire = output()
    out.sender.take(bytes(300), 300)
    out.sender.pump(out.data, 1.0)
    wire.sent.clear()
    out.owed = True
    out.ack()
    assert wire.sent == [(add(OURS, 301), THEIRS + 6, ACK, 0xFFFF, b"", b"", None)]
    assert not out.owed


def test_an_acknowledgment_that_may_wait_waits_from_the_first_reason_on() -> None:
    """The second segment of a guest does not make the first one's ACK later still."""
    out, _ = output()
    out.owe_soon(10.0)
    out.owe_soon(10.004)
    assert out.owed_at == 10.0 + DELAYED_ACK
    assert DELAYED_ACK <= 0.5, "RFC 9293, 3.8.6.3"


@pytest.mark.parametrize("selective", [True, False])
def test_only_an_acknowledgment_alone_tells_of_a_gap(selective: bool) -> None:
    """A full segment has no room for options; and who did not ask is not told (RFC 2018, 2)."""
    out, wire = output(selective=selective)
    out.receiver.accept(THEIRS + 1 + 10, b"beyond", 6)
    out.data(0, memoryview(bytes(MSS)), 0)
    out.ack()
    out.probe()
    blocks = [selective_edges(sent[5]) for sent in wire.sent]
    assert blocks == [(), (THEIRS + 11, THEIRS + 17) if selective else (), ()]


def test_a_probe_is_below_the_window_and_empty() -> None:
    """Whoever gets it answers with an ACK; what it says of the guest's octets is true."""
    out, wire = output()
    out.sender.take(bytes(300), 300)
    out.sender.pump(out.data, 1.0)
    wire.sent.clear()
    out.probe()
    assert wire.sent == [(OURS, THEIRS + 6, ACK, 0xFFFF, b"", b"", None)]


def test_syns_offer_options_and_a_window_that_is_not_scaled() -> None:
    """RFC 7323, 2.2: 65535 at most, whatever the capacity."""
    out, wire = output()
    out.syn()
    out.syn_ack()
    out.receiver.capacity = 5000
    out.syn()
    assert wire.sent == [
        (OURS, 0, SYN, 0xFFFF, b"", OPTIONS, None),
        (OURS, THEIRS + 6, SYN | ACK, 0xFFFF, b"", OPTIONS, None),
        (OURS, 0, SYN, 5000, b"", OPTIONS, None),
    ]


def test_a_reset_stands_at_the_very_number_that_is_expected() -> None:
    """RFC 5961, 3.2: at any other it would only be challenged. Before the guest has said
    anything there is nothing to acknowledge."""
    out, wire = output()
    out.sender.take(bytes(300), 300)
    out.sender.pump(out.data, 1.0)
    wire.sent.clear()
    out.reset(acknowledging=True)
    out.reset(acknowledging=False)
    assert wire.sent == [
        (add(OURS, 301), THEIRS + 6, RST | ACK, 0, b"", b"", None),
        (add(OURS, 301), 0, RST, 0, b"", b"", None),
    ]


def test_a_stray_segment_is_reset_where_it_stands() -> None:
    """RFC 9293, 3.10.7.1: with its own acknowledgment, or one past all that it occupies."""
    out, wire = output()
    out.reset_stray(50, 99, ACK, 3)
    out.reset_stray(MODULUS - 1, 99, FIN, 3)
    assert wire.sent == [
        (99, 0, RST, 0, b"", b"", None),
        (0, 2, RST | ACK, 0, b"", b"", None),
    ]
