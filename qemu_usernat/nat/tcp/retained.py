"""The host's octets that the guest has not acknowledged, so that they can be sent again.

It owns the octets and where they stand; it does not know what was sent, or what is lost. Positions
are those of the `sender`.
"""

from bisect import bisect_right
from operator import itemgetter

from attrs import define, field

from qemu_usernat.wire.packets import Buffer

JOINED_BELOW = 4096
"""Octets below which neighbours are retained as one: a server that writes octet by octet costs
neither an object for each, nor a segment for each when they are repeated."""

_start = itemgetter(0)


@define
class Retained:
    """Chunks as they were read, in order and without gaps: (position, octets)."""

    chunks: list[tuple[int, memoryview]] = field(factory=list)

    def append(self, position: int, payload: Buffer, length: int) -> None:
        """The octets that follow the last ones, from `position` on."""
        chunks = self.chunks
        if length < JOINED_BELOW and chunks and len(chunks[-1][1]) < JOINED_BELOW:
            start, last = chunks.pop()
            chunks.append((start, memoryview(b"".join((last, payload)))))
        else:
            chunks.append((position, memoryview(payload)))

    def chunk_at(self, position: int) -> tuple[int, memoryview]:
        """The chunk that holds `position`; nearly always the last."""
        chunks = self.chunks
        if chunks[-1][0] <= position:
            return chunks[-1]
        return chunks[bisect_right(chunks, position, key=_start) - 1]

    def drop_before(self, position: int) -> None:
        """The guest has everything before `position`."""
        chunks = self.chunks
        ended = 0
        while ended < len(chunks) and chunks[ended][0] + len(chunks[ended][1]) <= position:
            ended += 1
        del chunks[:ended]
