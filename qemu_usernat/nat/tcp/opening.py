"""From the guest's SYN to a flow: options, sizes and the initial sequence number.

RFC 9293 (3.7.1, MSS), RFC 7323 (2, window scale), RFC 6528 (initial sequence numbers).
"""

from hashlib import blake2b

from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.tcp.receiver import WINDOW_SCALE, Receiver
from qemu_usernat.nat.tcp.sender import Sender
from qemu_usernat.nat.tcp.sinks import GuestWire
from qemu_usernat.primitives.addresses import FlowKey
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.sequence import add
from qemu_usernat.wire.packets import TcpSegment

MSS_DEFAULT = 536  # bytes; RFC 9293, 3.7.1 (MUST-15), where the guest's SYN names none
MSS_MINIMUM = 88  # bytes; Linux's floor: smaller ones serve only to cost a segment for each byte
HEADERS = 40  # bytes of IPv4 and TCP headers without options (RFC 6691, 2)
SCALE_MAXIMUM = 14  # RFC 7323, 2.3

_TICKS_PER_SECOND = 250_000  # RFC 6528, 3: M counts 4 µs


def initial_sequence(key: FlowKey, secret: bytes, now: float) -> int:
    """ISN = M + F(four-tuple, secret), so that it grows and tells nothing (RFC 6528)."""
    text = b"%b%d,%b%d" % (key[0], key[1], key[2], key[3])
    hashed = int.from_bytes(blake2b(text, key=secret, digest_size=4).digest(), "big")
    return add(hashed, int(now * _TICKS_PER_SECOND))


def open_flow(
    key: FlowKey,
    syn: TcpSegment,
    wire: GuestWire,
    mtu: int,
    secret: bytes,
    counters: Counters,
    now: float,
) -> TcpFlow:
    """The flow that the guest's `syn` begins; its host half is still to be dialled."""
    offered = max(syn.maximum_segment_size or MSS_DEFAULT, MSS_MINIMUM)
    ours = mtu - HEADERS
    scaled = syn.window_scale is not None
    sender = Sender(
        initial_sequence=initial_sequence(key, secret, now),
        maximum_segment_size=min(offered, ours),
        scale=min(syn.window_scale or 0, SCALE_MAXIMUM),
    )
    sender.on_window(syn.sequence, 0, syn.window, first=True)
    receiver = Receiver(
        initial_sequence=syn.sequence,
        scale=WINDOW_SCALE if scaled else 0,
        maximum_segment_size=ours,
    )
    return TcpFlow(
        key=key,
        wire=wire,
        receiver=receiver,
        sender=sender,
        counters=counters,
        syn_options=_syn_options(ours, WINDOW_SCALE if scaled else None),
        opened_at=now,
    )


def _syn_options(maximum_segment_size: int, scale: int | None) -> bytes:
    """Options of our SYN,ACK, padded to four bytes (RFC 9293, 3.2; RFC 7323, 2.2)."""
    options = b"\x02\x04" + maximum_segment_size.to_bytes(2, "big")
    if scale is not None:
        options += b"\x01\x03\x03" + bytes([scale])
    return options
