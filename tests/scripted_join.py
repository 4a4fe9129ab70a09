"""Scripted networks that have joined each other: servers without a socket, and time as argument."""

from attrs import define, field

from qemu_usernat.lan.port import JoinPort
from tests.scripted_guest import ScriptedNetwork

HEADER = 4  # bytes of the stream's length field


def frames_of(stream: bytearray) -> list[bytes]:
    """The whole frames at the front of a stream, which are taken from it."""
    frames = []
    while len(stream) >= HEADER:
        end = HEADER + int.from_bytes(stream[:HEADER], "big")
        if len(stream) < end:
            break
        frames.append(bytes(stream[HEADER:end]))
        del stream[:end]
    return frames


@define(eq=False)
class End:
    """One server's side of a join."""

    network: ScriptedNetwork
    name: str
    port: JoinPort = field(init=False)
    out: bytearray = field(factory=bytearray)
    reason: str | None = None
    """Why it has ended."""
    reads: bool = True
    """Whether the other side takes what this one says."""

    def __attrs_post_init__(self) -> None:
        joins = self.network.router.joins
        self.port = joins.port(self.name, self.network.counters, self.transmit)
        self.port.end = self.end
        joins.attach(self.port)

    def transmit(self) -> None:
        """The link: takes everything, unless nobody reads."""
        if self.reads:
            for piece in self.port.outbox:
                self.out += piece
            self.port.outbox.clear()
            self.port.queued = 0

    def hears(self, *frames: bytes) -> None:
        """What comes over the stream, and then the turn ends."""
        for frame in frames:
            self.network.router.joins.on_frame(self.port, memoryview(frame), self.network.now)
        self.network.end_turn()

    def end(self, reason: str) -> None:
        """As a link is closed."""
        if self.reason is None:
            self.reason = reason
            self.network.router.joins.detach(self.port)
            self.network.router.on_join_down(self.port, self.network.now)


class Servers:
    """Several servers; each join is a pair of ends."""

    def __init__(self, *networks: ScriptedNetwork) -> None:
        self.networks = networks
        self.joins: list[tuple[End, End]] = []
        for number, network in enumerate(networks):
            network.router.joins.server = f"{number:016x}"

    def join(
        self, one: ScriptedNetwork, two: ScriptedNetwork, name: str = "join"
    ) -> tuple[End, End]:
        """A stream between two servers, of which neither has said anything yet."""
        pair = End(one, name), End(two, name)
        self.joins.append(pair)
        return pair

    def settle(self) -> None:
        """Let all turns be taken, and all frames arrive, until nobody has anything to say."""
        for _ in range(1000):
            for network in self.networks:
                network.advance(0)
                network.end_turn()
            moved = False
            for one, two in self.joins:
                for sender, receiver in ((one, two), (two, one)):
                    if one.reason is not None or two.reason is not None:
                        moved |= one.reason is None or two.reason is None
                        one.end("the other end is gone")
                        two.end("the other end is gone")
                        continue
                    frames = frames_of(sender.out)
                    moved |= bool(frames)
                    receiver.hears(*frames)
            if not moved:
                return
        raise AssertionError("frames go round for ever")

    def advance(self, seconds: float) -> None:
        """Time passes, second by second, and frames with it."""
        for _ in range(int(seconds)):
            for network in self.networks:
                network.advance(1.0)
            self.settle()
