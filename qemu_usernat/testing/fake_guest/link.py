"""The fake guest's network card: frames in order over one byte stream, as QEMU carries them.

It owns the stream and what waits to be written to it. What a frame says is for the `stack` to know.
"""

from collections.abc import Callable

import trio

from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.qemu.framing import FrameBuffer
from qemu_usernat.wire.packets import Buffer

STALLED_AT = 512 * 1024
"""Octets queued from which TCP waits, as it does for a card whose queue is full."""

_LENGTH = 4  # bytes before each frame


class MalformedFrame(Exception):  # noqa: N818 - the field's word for it
    """The server sent what no reader of the RFC would accept: a mistake of the server's.

    `reason` says what is wrong (``tcp.bad_checksum``), `octets` is the frame.
    """

    def __init__(self, reason: str, octets: bytes) -> None:
        super().__init__(f"{reason} in a frame from the server: {octets.hex()}")
        self.reason = reason
        self.octets = octets


class Link:
    """One connection to the server."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.outbox: list[Buffer] = []
        """Frames with their lengths in front, in pieces."""
        self.queued = 0
        """Octets in `outbox`, and on their way from there."""
        self.up = True
        self._stream = stream
        self._news = trio.Event()

    def send(self, frame: Buffer) -> None:
        """Queue one frame that has its length in front."""
        self.outbox.append(frame)
        self.queued += len(frame)

    def send_octets(self, octets: Buffer) -> None:
        """Queue one frame, whatever it is."""
        self.send(len(octets).to_bytes(_LENGTH, "big") + octets)

    def kick(self) -> None:
        """What has been queued may leave; where the link is down it is thrown away."""
        if not self.up:
            self.outbox.clear()
            self.queued = 0
        elif self.outbox:
            self._news.set()

    async def write(self, on_room: Callable[[], None]) -> None:
        """Send what is queued, until the link goes down."""
        try:
            while self.up:
                await self._news.wait()
                self._news = trio.Event()
                pieces, self.outbox = self.outbox, []
                octets = b"".join(pieces)
                await self._stream.send_all(octets)
                self.queued -= len(octets)
                on_room()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader sees it too

    async def read(self, on_frames: Callable[[list[bytes]], None]) -> None:
        """Hand out frames as they come, until the link goes down."""
        frames = FrameBuffer()
        arrived: list[bytes] = []
        while True:
            free = frames.free()
            try:
                octets = await self._stream.receive_some(len(free))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                octets = b""
            if not octets:
                self.up = False
                return
            free[: len(octets)] = octets
            received = len(octets)
            try:
                while frames.take(received, lambda frame: arrived.append(bytes(frame))):
                    received = 0
            except Malformed as error:
                raise MalformedFrame(error.reason, bytes(octets[:64])) from error
            on_frames(arrived)
            arrived.clear()

    async def aclose(self) -> None:
        """Pull the plug."""
        self.up = False
        await trio.aclose_forcefully(self._stream)
