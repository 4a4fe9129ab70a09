"""One readiness object for every socket on the frame path, links and host sockets alike.

Waiting costs one descriptor in trio's own loop, however many sockets there are: the
selector has a descriptor of its own (epoll, kqueue), and one look at it serves every
socket that is ready.
"""

import contextlib
import errno
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeAlias

from qemu_usernat.primitives.errors import BugCallback, surface
from qemu_usernat.primitives.time import MS

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

BUSY = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM})
"""The errno of a write that took nothing for now: to be tried again when the socket is writable."""

TURN_TIME = 0.5 * MS
"""How long the frames of one link, or the clients of one published port, are handed out before
others have their turn: a buffer of 1500-byte packets of open flows takes about as long, and what a
hostile guest may send a hundred times as long."""

ALONE_TIME = 2 * MS
"""The same of a link where there is no other: a whole buffer of such packets, or of beginnings of
connections. Each turn that it is spread over has its own acknowledgments and system calls."""

AGAIN_TIME = 1 * MS
"""How long, in one round, those are served who have had theirs before: the others wait for them."""

Ready: TypeAlias = list[tuple[selectors.SelectorKey, int]]
"""Sockets with their handlers, and which of READ and WRITE."""


class Handler(Protocol):
    """Who is told. Errors and hang-ups are reported as whatever was asked for."""

    def on_readable(self, now: float) -> None: ...

    def on_writable(self, now: float) -> None: ...

    def on_bug(self, now: float) -> None:
        """A bug of ours has shown in one of these: give up what it is about, and nothing else."""


class Poller:
    """Sockets and their handlers."""

    __slots__ = ("_again", "_alone", "_bell", "_on_bug", "_selector", "links", "rounds")

    def __init__(self, on_bug: BugCallback = surface, alone: bool = False) -> None:
        """`on_bug` is told what a handler has raised, before the handler gives up; `alone`
        says that nobody outside of it waits for a turn to end."""
        self._selector = selectors.DefaultSelector()
        self._again: deque[tuple[Handler, Callable[[float], None]]] = deque()
        self._on_bug = on_bug
        self.rounds = 0
        """How many there have been: each is a turn."""
        self.links = 0
        """How many share the turns; they say so themselves."""
        self._alone = alone
        # A socket of nobody, never readable and always writable: watched for the one it sleeps,
        # for the other it rings, and `fileno` with it.
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.watch(self._bell, self, read=True)

    def fileno(self) -> int:
        """A descriptor that is readable while any watched socket is ready."""
        return self._selector.fileno()

    def watch(
        self, sock: socket.socket, handler: Handler, *, read: bool = False, write: bool = False
    ) -> None:
        """Report readiness of `sock` to `handler`; at least one of `read` and `write`.

        OSError where the system cannot watch one more.
        """
        self._selector.register(sock, READ * read | WRITE * write, handler)

    def change(self, sock: socket.socket, *, read: bool = False, write: bool = False) -> None:
        """Report other readiness of a watched socket; at least one of `read` and `write`.

        OSError where the system cannot; the socket is forgotten then.
        """
        self._selector.modify(sock, READ * read | WRITE * write, self._selector.get_key(sock).data)

    def forget(self, sock: socket.socket) -> None:
        """Report nothing more; before the socket is closed. No harm if it is not watched."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(sock)

    def link_time(self) -> float:
        """How long the frames of one link are handed out before others have their turn."""
        return ALONE_TIME if self._alone and self.links < 2 else TURN_TIME

    def again(self, handler: Handler, call: Callable[[float], None]) -> None:
        """Call `call(now)` once, for `handler`, in the next round, which comes at once; or in a
        later one, where those who wait longer have used up the time."""
        if not self._again:
            self.change(self._bell, write=True)
        self._again.append((handler, call))

    def on_readable(self, now: float) -> None:
        """The bell never is."""

    def on_writable(self, now: float) -> None:
        """The bell rings: call everybody, and whoever asks again meanwhile a round later; of those
        for whom there is no time the first is the first then."""
        until = time.perf_counter() + AGAIN_TIME
        for _ in range(len(self._again)):
            self.protect(*self._again.popleft(), now)
            if time.perf_counter() >= until:
                break
        if not self._again:
            self.change(self._bell, read=True)

    def protect(self, handler: Handler, call: Callable[[float], None], now: float) -> None:
        """Call `call(now)` for `handler`, which gives up where a bug of ours shows in it."""
        try:
            call(now)
        except Exception as error:
            self._give_up(handler, error, now)

    def on_bug(self, now: float) -> None:
        """The bell serves nobody by itself."""

    def wait(self, patience: float = 0.0) -> Ready:
        """What is ready, waiting for the first of it up to `patience` seconds."""
        self.rounds += 1
        return self._selector.select(patience)

    def dispatch(self, ready: Ready, now: float) -> None:
        """Tell the handlers of everything that is ready.

        A handler may be told once more after it has been forgotten, if both happened in one
        round: handlers know whether they are closed.
        """
        for key, events in ready:
            try:
                if events & READ:
                    key.data.on_readable(now)
                if events & WRITE:
                    key.data.on_writable(now)
            except Exception as error:
                self._give_up(key.data, error, now)

    def _give_up(self, handler: Handler, error: Exception, now: float) -> None:
        self._on_bug(error)
        handler.on_bug(now)

    def close(self) -> None:
        """Give the descriptors back."""
        self._selector.close()
        self._bell.close()
