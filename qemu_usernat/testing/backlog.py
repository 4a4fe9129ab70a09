"""What a socket has not taken yet, in order."""

import socket
from collections import deque
from collections.abc import Iterable

from qemu_usernat.wire.packets import Buffer

IOV_MAXIMUM = 1024  # buffers for one sendmsg (IOV_MAX on Linux)


class Backlog:
    """Buffers on their way into a non-blocking stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.size = 0
        """Octets that wait."""
        self._sock = sock
        self._pieces: deque[Buffer] = deque()

    def write(self, arrived: Iterable[Buffer] = ()) -> None:
        """As much as the socket takes now of what waits, and of what has `arrived`.

        OSError where the socket has failed.
        """
        backlog = self._pieces
        for piece in arrived:
            backlog.append(piece)
            self.size += len(piece)
        while backlog:
            pieces = [backlog.popleft() for _ in range(min(len(backlog), IOV_MAXIMUM))]
            try:
                sent = self._sock.sendmsg(pieces)
            except BlockingIOError:
                sent = 0
            self.size -= sent
            whole = 0
            while whole < len(pieces) and sent >= len(pieces[whole]):
                sent -= len(pieces[whole])
                whole += 1
            if whole < len(pieces):
                pieces[whole] = memoryview(pieces[whole])[sent:]
                backlog.extendleft(reversed(pieces[whole:]))
                return
