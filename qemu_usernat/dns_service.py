"""DNS over TCP on the gateway: the name server as the host half of a guest's connection.

It joins a `TcpFlow` to a `DnsStream`: what the guest writes is fed to the one, what that
answers waits here until the guest's window has room.
"""

from collections.abc import Callable

from qemu_usernat.gateway.dns import ReplyCallback
from qemu_usernat.gateway.dns_stream import DnsStream
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.wire.packets import Buffer

ANSWERS_MAXIMUM = 64 * 1024
"""Bytes of answers kept before more queries are taken; what one turn takes comes on top."""


class DnsService:
    """One connection to the name server; a `HostStream` that is no socket."""

    __slots__ = ("_answers", "_ended", "_flow", "_stream", "_touch")

    def __init__(
        self,
        flow: TcpFlow,
        on_query: Callable[[bytes, str, ReplyCallback, float], bool],
        touch: Callable[[TcpFlow], None],
        now: float,
    ) -> None:
        """Connect `flow`, at once: there is nobody to wait for."""
        self._flow = flow
        self._touch = touch
        self._answers = bytearray()
        self._ended = False
        self._stream = DnsStream(on_query, self._on_answer, self._on_end)
        flow.dial(self)
        flow.on_host_connected(now)

    def _on_answer(self, octets: bytes) -> None:
        self._answers += octets
        self._touch(self._flow)

    def _on_end(self) -> None:
        self._ended = True
        self._touch(self._flow)

    # -- HostStream

    def send(self, buffers: list[Buffer], now: float) -> int:
        """Queries, in pieces; none while too many answers wait for a guest that does not read."""
        taken = 0
        if len(self._answers) >= ANSWERS_MAXIMUM:
            return taken
        for piece in buffers:
            taken += len(piece)
            self._stream.feed(memoryview(piece), now)
        return taken

    def shutdown(self) -> None:
        """The guest sends no more."""
        self._stream.finish()

    def reset(self) -> None:
        """The guest is gone."""
        self._stream.abandon()

    def hang_up(self) -> None:
        """The guest is gone, after its last query."""
        self._stream.abandon()

    def close(self) -> None:
        """Both directions have ended."""
        self._stream.abandon()

    def watch(self, read: bool, write: bool, now: float) -> None:
        """Hand over what the guest's window admits; the end comes after the last answer."""
        room = self._flow.room()
        if self._answers and room > 0:
            octets = bytes(self._answers[:room])
            del self._answers[:room]
            self._flow.on_host_data(octets, len(octets), now)
            self._touch(self._flow)
        elif self._answers:
            self._flow.on_host_waiting()
        elif self._ended:
            self._ended = False
            self._flow.on_host_eof(now)
            self._touch(self._flow)
