"""What passed the wires: every frame with its time and its direction, to be asked and to be kept.

It owns the frames of the last while, within a bound, and what is asked about them. What it says
has to be true: a frame that is no longer there might have been the one that was not to be, so an
assertion that nothing passed fails when frames have left.

Where frames are asked for and there are none, the nearest ones are told: most tests fail because
of an address or a port, not because nothing was said.
"""

from collections import deque
from pathlib import Path
from struct import Struct

import trio
from attrs import define, field

from qemu_usernat.testing.filters import Filter, anything, require_filter
from qemu_usernat.testing.frames import Frame

OCTETS_MAXIMUM = 64 << 20
"""Octets that a capture keeps, if it is not told otherwise."""

FRAME_COST = 256  # bytes that a frame takes beside its octets
NEAREST = 8  # frames that are told of where none matches

# pcapng (draft-ietf-opsawg-pcapng): types of blocks, and of options
_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_END_OF_OPTIONS, _IF_NAME, _IF_TSRESOL, _EPB_FLAGS, _COMMENT = 0, 2, 9, 2, 1
_INBOUND, _OUTBOUND = 1, 2
_LINKTYPE_ETHERNET = 1
_block_head = Struct("<II").pack


@define(eq=False)
class _Waiter:
    """Who waits for a frame."""

    which: Filter
    found: trio.Event = field(factory=trio.Event)
    frame: Frame | None = None


class Capture:
    """The frames of one wire or of several, the oldest first.

    `octets_maximum` bounds what is kept; beyond it the oldest frames leave, and `left` counts
    them.
    """

    def __init__(self, octets_maximum: int = OCTETS_MAXIMUM) -> None:
        if octets_maximum <= 0:
            raise ValueError(f"octets_maximum is a number above 0, not {octets_maximum}")
        self.left = 0
        self.guests: dict[str, None] = {}
        """Whose wires these are; a filter that names another guest is an error."""
        self._maximum = octets_maximum
        self._began: float | None = None
        self._frames: deque[Frame] = deque()
        self._held = 0
        self._waiters: list[_Waiter] = []

    def __len__(self) -> int:
        return len(self._frames)

    def __repr__(self) -> str:
        gone = f", {self.left} have left" if self.left else ""
        return f"<Capture of {len(self)} frames{gone}>"

    # -- for the wires

    def see(self, octets: bytes, guest: str, *, from_guest: bool, now: float) -> Frame:
        """A frame enters a wire."""
        if self._began is None:
            self._began = now
        frame = Frame(octets, now - self._began, from_guest, guest)
        self._frames.append(frame)
        self._held += len(octets) + FRAME_COST
        while self._held > self._maximum and len(self._frames) > 1:
            self._held -= len(self._frames.popleft().octets) + FRAME_COST
            self.left += 1
        for waiter in self._waiters:
            if waiter.frame is None and waiter.which.matches(frame):
                waiter.frame = frame
                waiter.found.set()
        return frame

    # -- for tests

    def clear(self) -> None:
        """Forget all that has passed until now."""
        self._frames.clear()
        self._held = self.left = 0

    def frames(self, which: Filter = anything) -> list[Frame]:
        """Those that match, the oldest first."""
        require_filter(which, self.guests)
        return [frame for frame in tuple(self._frames) if which.matches(frame)]

    def assert_none(self, which: Filter) -> None:
        """No such frame has passed. AssertionError lists those that have.

        Also where frames have left the capture, as one of them may have been such a frame.
        """
        __tracebackhide__ = True
        found = self.frames(which)
        if found:
            raise AssertionError(
                f"{len(found)} frames match {which!r}, and none should:\n{_listed(found)}"
            )
        if self.left:
            raise AssertionError(
                f"none of the frames that are left matches {which!r}, but {self.left} older ones "
                "have left the capture; give it a larger octets_maximum"
            )

    def assert_some(self, which: Filter, count: int | None = None) -> list[Frame]:
        """Such frames have passed, `count` of them if that is given; returns them.

        AssertionError lists them, or those that are nearest to matching.
        """
        __tracebackhide__ = True
        found = self.frames(which)
        if count is None and not found:
            raise AssertionError(f"no frame matches {which!r}; {self._nearest(which)}")
        if count is not None and len(found) != count:
            gone = f" ({self.left} older ones have left the capture)" if self.left else ""
            told = _listed(found) if found else self._nearest(which)
            raise AssertionError(
                f"{len(found)} frames match {which!r}, and {count} should{gone}:\n{told}"
            )
        return found

    async def wait_for(
        self,
        which: Filter,
        timeout: float = 10.0,  # noqa: ASYNC109 - it says what it waited for
        *,
        after: Frame | None = None,
    ) -> Frame:
        """The first frame that matches, of those that have passed and those to come.

        With `after`, only of what came after that frame. TimeoutError after `timeout` seconds
        tells what was waited for, and the nearest that there was.
        """
        require_filter(which, self.guests)
        await trio.lowlevel.checkpoint()
        for frame in self._since(after):
            if which.matches(frame):
                return frame
        waiter = _Waiter(which)
        self._waiters.append(waiter)
        try:
            with trio.move_on_after(timeout):
                await waiter.found.wait()
        finally:
            self._waiters.remove(waiter)
        if waiter.frame is None:
            raise TimeoutError(
                f"no frame matched {which!r} within {timeout:g} s; {self._nearest(which)}"
            )
        return waiter.frame

    def _since(self, after: Frame | None) -> list[Frame]:
        frames = list(self._frames)
        for index, frame in enumerate(frames):
            if frame is after:
                return frames[index + 1 :]
        return frames  # all of those that are kept came after one that has left

    def _nearest(self, which: Filter) -> str:
        frames = tuple(self._frames)
        if not frames:
            return "nothing has passed the wire at all"
        ranked = sorted(frames, key=which.nearness, reverse=True)[:NEAREST]
        nearest = sorted(ranked, key=lambda frame: frame.time)
        return f"the nearest of {len(frames)} are:\n{_listed(nearest)}"

    def write(self, path: Path | str) -> None:
        """Keep the frames as a file for Wireshark (pcapng), an interface for each guest.

        Times count from 1970, as nobody's clock has been asked; what befell a frame is its comment.
        """
        frames = tuple(self._frames)
        guests = list(dict.fromkeys(frame.guest for frame in frames))
        blocks = [_block(_SECTION, Struct("<IHHq").pack(0x1A2B3C4D, 1, 0, -1))]
        for guest in guests:
            options = ((_IF_NAME, guest.encode()), (_IF_TSRESOL, b"\x09"))
            blocks.append(
                _block(_INTERFACE, Struct("<HHI").pack(_LINKTYPE_ETHERNET, 0, 0), options)
            )
        blocks.extend(_packet(frame, guests.index(frame.guest)) for frame in frames)
        Path(path).write_bytes(b"".join(blocks))


def _listed(frames: list[Frame]) -> str:
    shown = [f"  {frame}" for frame in frames[: 4 * NEAREST]]
    if len(frames) > len(shown):
        shown.append(f"  and {len(frames) - len(shown)} more")
    return "\n".join(shown)


def _packet(frame: Frame, interface: int) -> bytes:
    nanoseconds = int(frame.time * 1e9)
    size = len(frame.octets)
    head = Struct("<IIIII").pack(
        interface, nanoseconds >> 32, nanoseconds & 0xFFFF_FFFF, size, size
    )
    direction = _OUTBOUND if frame.from_guest else _INBOUND
    options = [(_EPB_FLAGS, direction.to_bytes(4, "little"))]
    if frame.fate:
        options.append((_COMMENT, frame.fate.encode()))
    return _block(_PACKET, head + _padded(frame.octets), options)


def _block(
    kind: int, body: bytes, options: "list[tuple[int, bytes]] | tuple[tuple[int, bytes], ...]" = ()
) -> bytes:
    for code, value in options:
        body += Struct("<HH").pack(code, len(value)) + _padded(value)
    if options:
        body += Struct("<HH").pack(_END_OF_OPTIONS, 0)
    length = len(body) + 12
    return _block_head(kind, length) + body + length.to_bytes(4, "little")


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)
