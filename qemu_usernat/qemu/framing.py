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

FRAMES_AT_ONCE = 8
"""Frames handed out in one go, after which there may be something more urgent: each may cost as
much as a new connection does."""


class FrameBuffer:
    """Bytes of one link that are not yet whole frames.

    The caller reads into `free`, then calls `take` until that has no more: it hands out each
    whole frame as a view that is good until `free` is called again.
    """

    __slots__ = ("_end", "_start", "_view")

    def __init__(self) -> None:
        self._view = memoryview(bytearray(BUFFER_SIZE))
        self._start = self._end = 0

    def free(self) -> memoryview:
        """Where the next bytes go; what is left over moves to the front, over older frames."""
        view, start, end = self._view, self._start, self._end
        if start:
            view[: end - start] = view[start:end]
            self._start, self._end = 0, end - start
        return view[self._end :]

    def take(self, received: int, on_frame: Callable[[memoryview], None]) -> bool:
        """Hand out the frames that `received` more bytes complete, at most `FRAMES_AT_ONCE`.

        True if there may be more of them: then the next call, with nothing received, goes on.
        Raises Malformed if a length is below 14 or above 69632: the stream is lost then, for
        nothing tells where the next frame begins.
        """
        view, unpack = self._view, _LENGTH.unpack_from
        at, end = self._start, self._end + received
        self._end = end
        more = False
        for _ in range(FRAMES_AT_ONCE):
            start = at + _HEADER
            if start > end:
                break
            (length,) = unpack(view, at)
            if not FRAME_MINIMUM <= length <= FRAME_MAXIMUM:
                raise Malformed(_reason(length))
            if end - start < length:
                break
            at = start + length
            on_frame(view[start:at])
        else:
            more = True
        self._start = at
        return more


def _reason(length: int) -> str:
    if length == 0:
        return "link.frame_empty"
    return "link.frame_too_short" if length < FRAME_MINIMUM else "link.frame_too_long"
