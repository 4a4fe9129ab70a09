"""How a flow begins, from the guest's SYN or with one of ours: sizes and initial numbers.

RFC 9293 (3.7.1, MSS), RFC 6528 (initial sequence numbers).
"""

from hashlib import blake2b

from attrs import frozen

from qemu_usernat.nat.tcp.congestion import CONTROLS
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.receiver import Receiver
from qemu_usernat.nat.tcp.sender import HEADERS, Sender
from qemu_usernat.nat.tcp.sinks import GuestWire, HostStream
from qemu_usernat.primitives.addresses import FlowKey
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import add, difference
from qemu_usernat.wire.packets import TcpSegment

_TICKS_PER_SECOND = 250_000  # RFC 6528, 3: M counts 4 µs

REUSE_GAP = 65_537
"""How far beyond an ended connection's numbers those of its successor begin: no segment of the
old one that is still on its way may fall among them."""


@frozen
class TcpSettings:
    """What holds for every flow of a network."""

    mtu: int
    """Bytes of IP packet."""
    secret: bytes
    """Key of the initial sequence numbers, at least 16 bytes."""
    congestion: str = "none"
    """One of `congestion.CONTROLS`."""


def initial_sequence(key: FlowKey, secret: bytes, now: float) -> int:
    """ISN = M + F(four-tuple, secret), so that it grows and tells nothing (RFC 6528)."""
    text = b"%b%d,%b%d" % (key[0], key[1], key[2], key[3])
    hashed = int.from_bytes(blake2b(text, key=secret, digest_size=4).digest(), "big")
    return add(hashed, int(now * _TICKS_PER_SECOND))


def open_flow(
    key: FlowKey,
    syn: TcpSegment,
    wire: GuestWire,
    settings: TcpSettings,
    counters: Counters,
    now: float,
    beyond: int | None = None,
) -> TcpFlow:
    """The flow that the guest's `syn` begins; its host half is still to be dialled.

    `beyond` is the last number that we used in a connection of the same four-tuple which has
    only just ended (RFC 9293, 3.10.7.4, MAY-2).
    """
    flow = new_flow(key, wire, settings, counters, now)
    flow.negotiate(syn)
    if beyond is not None and difference(flow.sender.initial_sequence, beyond) <= 0:
        flow.sender.initial_sequence = add(beyond, REUSE_GAP)
    return flow


def call_guest(
    key: FlowKey,
    wire: GuestWire,
    host: HostStream,
    settings: TcpSettings,
    counters: Counters,
    now: float,
) -> TcpFlow:
    """The flow in which we call the guest, for the client that `host` has accepted."""
    flow = new_flow(key, wire, settings, counters, now)
    flow.call(host, now)
    return flow


def new_flow(
    key: FlowKey, wire: GuestWire, settings: TcpSettings, counters: Counters, now: float
) -> TcpFlow:
    """A flow that nobody has begun."""
    ours = settings.mtu - HEADERS
    sender = Sender(
        initial_sequence=initial_sequence(key, settings.secret, now),
        maximum_segment_size=ours,
        control=CONTROLS[settings.congestion],
        counters=counters,
    )
    return TcpFlow(key, wire, Receiver(ours, counters), sender, counters, now)
