"""QEMU's stream framing: a 4-byte big-endian length before each Ethernet frame.

It splits whatever the socket gave into frames, however it was cut; it refuses lengths
that no QEMU sends. It knows nothing of sockets or of what is in a frame.
"""

from collections.abc import Callable
from struct import Struct

from qemu_usernat.primitives.errors import Malformed

FRAME_MINIMUM = 14  # bytes: an Ethernet header
FRAME_MAXIMUM = 69632  # bytes: QEMU's own limit (NET_BUFSIZE, 68 KiB)
_LENGTH = Struct(">I")
_HEADER = 4  # bytes

BUFFER_SIZE = 512 * 1024
"""Bytes read from a link in one go; at least one whole frame more than what may be left over."""


class FrameBuffer:
    """Bytes of one link that are not yet whole frames.

    The caller reads into `free`, then calls `take`, which hands out each whole frame as a
    view that is good until the next read.
    """

    __slots__ = ("_buffer", "_have", "_view")

    def __init__(self) -> None:
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._have = 0

    def free(self) -> memoryview:
        """Where the next bytes go."""
        return self._view[self._have :]

    def take(self, received: int, on_frame: Callable[[memoryview], None]) -> None:
        """Hand out the frames that `received` more bytes complete.

        Raises Malformed if a length is below 14 or above 69632: the stream is lost then, for
        nothing tells where the next frame begins.
        """
        view, unpack = self._view, _LENGTH.unpack_from
        have = self._have + received
        at = 0
        try:
            while have - at >= _HEADER:
                (length,) = unpack(view, at)
                if not FRAME_MINIMUM <= length <= FRAME_MAXIMUM:
                    raise Malformed(_reason(length))
                start = at + _HEADER
                if have - start < length:
                    break
                at = start + length
                on_frame(view[start:at])
        finally:
            self._have = have - at
            if at and self._have:
                view[: self._have] = view[at:have]


def _reason(length: int) -> str:
    if length == 0:
        return "link.frame_empty"
    return "link.frame_too_short" if length < FRAME_MINIMUM else "link.frame_too_long"
