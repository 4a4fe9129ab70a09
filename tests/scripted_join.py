"""Scripted networks that have joined each other: servers without a socket, and time as argument."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from attrs import define, field

from qemu_usernat.lan.port import JoinPort
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.addresses import parse_mac
from qemu_usernat.wire.hello import (
    Hello,
    Member,
)
from tests.scripted_guest import (
    GATEWAY,
    OTHER_MAC,
    ScriptedNetwork,
    packed,
)

FAR = "10.0.2.115"
THIRD = "10.0.2.215"
THIRD_MAC = parse_mac("52:54:00:12:34:58")

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


def network(number: int = 0, **settings: Any) -> ScriptedNetwork:
    """One of several that lease different addresses of one subnet."""
    first = IPv4Address("10.0.2.15") + 50 * number
    defaults: dict[str, Any] = {"mtu": 1500, "first_lease": first, "last_lease": first + 49}
    return ScriptedNetwork(**defaults | settings)


def pair(**settings: Any) -> tuple[Servers, ScriptedNetwork, ScriptedNetwork]:
    """Two that have joined."""
    one, two = network(0, **settings), network(1, **settings)
    servers = Servers(one, two)
    servers.join(one, two)
    servers.settle()
    return servers, one, two


def hello(**changes: Any) -> Hello:
    """Of a server that fits to `network()`."""
    told: dict[str, Any] = {
        "speaker": Member("f" * 16, packed("10.0.2.200"), packed("10.0.2.210")),
        "subnet": IPv4Network("10.0.2.0/24"),
        "gateways": (packed(GATEWAY),),
        "mtu": 1500,
    }
    return Hello(**told | changes)


def joined(**changes: Any) -> tuple[ScriptedNetwork, End]:
    one = network()
    end = End(one, "join")
    end.hears(hello(**changes).frame(OTHER_MAC))
    assert end.port.accepted
    return one, end


def under(policy: NetworkPolicy, *networks: ScriptedNetwork) -> None:
    """Let a policy hold there."""
    for each in networks:
        each.admission.replace(PolicySettings(policy=policy))
        each.router.on_policy(True, each.now)


def leases_any(network: ScriptedNetwork, mac: bytes) -> None:
    """A machine asks for any address, and takes it (RFC 4039)."""
    message = bytes([1, 1, 6, 0]) + mac[2:] + bytes(20) + mac.ljust(208, b"\0")
    message += b"\x63\x82\x53\x63\x35\x01\x01\x50\x00\xff"
    guest = network.guest(mac, "0.0.0.0")
    guest.sends(guest.datagram(68, "255.255.255.255", 67, message))
