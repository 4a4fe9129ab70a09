"""The conditions under which real kernels are joined: the wire, and what their sockets are told.

They are data, and the same for the tests that want every octet and for the table of goodput
(`tools.goodput`).
"""

import socket

from attrs import Factory, evolve, frozen

from qemu_usernat.testing.relay import Harm

TINY = 1  # byte: the kernel makes it the least that it can work with (socket(7))
HUGE = 8 << 20  # bytes

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h; beyond the system's limits

UP, DOWN = "up", "down"
WAYS = (UP, DOWN)
"""From the guest to the host, and from the host to the guest."""


@frozen(kw_only=True)
class Condition:
    """A wire that does the same harm both ways, and the sockets at its ends."""

    name: str
    harm: Harm = Factory(Harm)
    mtu: int = 1500
    congestion: str = "cubic"
    """The guest's congestion control; the other kernel's is always cubic, as Linux has it."""
    buffers: int | None = None
    """Bytes of each socket's buffers, both ways; None: the kernel's choice."""
    ways: tuple[str, ...] = WAYS

    def prepare_guest(self, sock: socket.socket) -> None:
        """A socket of the guest before it connects."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self.congestion.encode())
        self._set_buffers(sock)

    def prepare_host(self, sock: socket.socket) -> None:
        """A socket of the host before it listens."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        self._set_buffers(sock)

    def _set_buffers(self, sock: socket.socket) -> None:
        if self.buffers is not None:
            for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
                sock.setsockopt(socket.SOL_SOCKET, option, self.buffers)


WHOLE = Condition(name="whole")
LOSSES = tuple(
    Condition(name=f"{percent} % lost", harm=Harm(loss=percent / 100))
    for percent in (0.1, 1, 5, 10)
)
LOSS = LOSSES[1]
REORDERED = Condition(name="5 % reordered by up to 5 ms", harm=Harm(reorder=0.05))
REPEATED = Condition(name="10 % repeated", harm=Harm(repeat=0.1))
CORRUPTED = Condition(name="2 % with a wrong bit", harm=Harm(corrupt=0.02))
DELAYED = Condition(name="50 ms, and up to 10 more", harm=Harm(delay=0.05, jitter=0.01))
EVERYTHING = Condition(
    name="some of everything",
    harm=Harm(loss=0.01, repeat=0.02, reorder=0.02, corrupt=0.02, delay=0.002, jitter=0.005),
)
LARGE_FRAMES = evolve(WHOLE, name="MTU 65520", mtu=65520)

CONDITIONS = (
    WHOLE,
    *LOSSES,
    REORDERED,
    REPEATED,
    CORRUPTED,
    DELAYED,
    EVERYTHING,
    evolve(WHOLE, name="MTU 576", mtu=576),
    evolve(WHOLE, name="MTU 9000", mtu=9000),
    LARGE_FRAMES,
    evolve(LOSS, name="MTU 65520, 1 % lost", mtu=65520),
    # Congestion control is the sender's, so the guest's matters on the way up alone.
    *(
        evolve(wire, name=f"{wire.name}, {name} in the guest", congestion=name, ways=(UP,))
        for name in ("reno", "bbr")
        for wire in (LOSS, DELAYED)
    ),
    evolve(WHOLE, name="tiny socket buffers", buffers=TINY),
    evolve(WHOLE, name="huge socket buffers", buffers=HUGE),
    evolve(DELAYED, name=f"{DELAYED.name}, huge socket buffers", buffers=HUGE),
)
