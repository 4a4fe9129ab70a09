"""The segment beyond this server: others that have joined it, by streams of frames.

A joined server is a port of another kind: many machines are behind it, and none of them is a guest
of ours. What is a gateway's affair never crosses, in either direction, so that each guest leaves by
its own host; and nothing crosses at all before the other side has said who it is. From these hellos
follows that joins form a tree: one that would close a loop is refused. Servers whose leases overlap
are, too, so that no two guests get one address.

Time comes from outside; that a join is to end is said to its port.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from ipaddress import IPv4Address
from math import inf
from typing import TypeAlias

from attrs import define, field

from qemu_usernat.config.network import Network
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.lan.affairs import GatewayAffairs
from qemu_usernat.lan.allowance import Allowance
from qemu_usernat.lan.port import JoinPort, Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import Malformed
from qemu_usernat.primitives.time import SECOND
from qemu_usernat.wire.hello import HELLO, SERVERS_MAXIMUM, Hello, Member, parse_hello

HELLO_INTERVAL = 2 * SECOND
SILENCE = 3 * HELLO_INTERVAL
"""Without a word for so long the other side is gone; one that is nobody yet has to say hello."""

SAID_PER_SECOND, SAID_AT_ONCE = 10.0, 10.0
"""News do not wait for the next hello: each is one, but not more often than that."""

HELLOS_PER_SECOND, HELLOS_AT_ONCE = SAID_PER_SECOND, 2 * SAID_AT_ONCE
"""Each is work to read: what comes on top is not looked at. All that have joined a moment ago share
one such allowance, for whoever comes again and again would have as many."""

NEW_TIME = 5 * SECOND
"""How long a moment is."""

Guests: TypeAlias = Sequence[tuple[Address, str]]


def server_identifier(secret: bytes) -> str:
    """What other servers know by who has that secret: nobody else has it, and it tells nothing."""
    return sha256(b"server" + secret).hexdigest()[:16]


def _words_for(one: Member, two: Member) -> str:
    """Two that lease the same addresses: what to do about it. Both say the same of it."""
    low, first = sorted(int.from_bytes(each.first, "big") for each in (one, two))
    last, high = sorted(int.from_bytes(each.last, "big") for each in (one, two))
    middle = (low + high) // 2
    shared = f"{IPv4Address(first)} to {IPv4Address(last)}"
    return (
        f"two servers lease {shared}; allowed: other addresses for each, in the table [network] of "
        f"the file of its --config, like {_lines(low, middle)} in one and "
        f"{_lines(min(middle + 1, high), high)} in the other"
    )


def _lines(first: int, last: int) -> str:
    return f'first_lease = "{IPv4Address(first)}", last_lease = "{IPv4Address(last)}"'


def _nobody(now: float) -> Guests:
    """There are no guests yet."""
    return ()


@define(eq=False)
class _Peer:
    """What is known of the other side of one join."""

    heard: float
    joined_at: float = inf
    """When it has said who it is."""
    hello: Hello | None = None
    hellos: Allowance = field(factory=lambda: Allowance(HELLOS_PER_SECOND, HELLOS_AT_ONCE))

    def members(self) -> tuple[Member, ...]:
        """All servers that are reached by it."""
        return () if self.hello is None else (self.hello.speaker, *self.hello.reaches)


@define(eq=False)
class Joins:
    """Of one segment. To a link it is what a `Switch` is to the link of a guest."""

    network: Network
    server: str
    """Our identifier: 16 hexadecimal digits."""
    switch: Switch
    counters: Counters
    told: Callable[[float], Guests] = _nobody
    """Our own guests' addresses, and their names or ""."""
    version: int = 0
    """Changes with what is known of others' guests."""
    _peers: dict[JoinPort, _Peer] = field(factory=dict)
    _next: float = inf
    _newcomers: Allowance = field(factory=lambda: Allowance(HELLOS_PER_SECOND, HELLOS_AT_ONCE))
    _said: Allowance = field(factory=lambda: Allowance(SAID_PER_SECOND, SAID_AT_ONCE))
    _leases: int = 0
    """The version of our own that was looked at last."""
    _own: frozenset[Address] = field(init=False)
    _affairs: GatewayAffairs = field(init=False)

    def __attrs_post_init__(self) -> None:
        addressing = Addressing(self.network)
        self._own = addressing.own
        self._affairs = GatewayAffairs(self.switch.gateway_mac, addressing.ours)

    # -- links

    def port(self, name: str, counters: Counters, transmit: Callable[[], None]) -> JoinPort:
        """For a link to another server."""
        return JoinPort(name, counters, transmit=transmit, crosses=self.crosses)

    def attach(self, port: Port) -> None:
        """A stream to another server is there, who has not said anything yet: until it has, it is
        not on the segment, and takes nothing from those who are."""
        assert isinstance(port, JoinPort)
        self._peers[port] = _Peer(inf)
        self._next = -inf

    def detach(self, port: Port) -> None:
        """It is gone, and whoever was behind it."""
        assert isinstance(port, JoinPort)
        del self._peers[port]
        if port.accepted:
            self.version += 1
            self._next = -inf  # the others are to know soon whom they do not reach any more
            self.switch.detach(port)

    def on_frame(self, port: Port, frame: memoryview, now: float) -> None:
        """A frame of at least 14 bytes from another server."""
        assert isinstance(port, JoinPort)
        peer = self._peers.get(port)
        if peer is None:
            return  # what it had said before it was ended
        if peer.hello is not None:
            peer.heard = now  # where there is much to say, hellos wait behind it
        if frame[12:14] == HELLO:
            self._on_hello(port, frame, now)
        elif not port.accepted:
            self.counters.count("join.not_accepted")
        elif not self.crosses(frame):
            self.counters.count("join.gateway_affair")
        else:
            self.switch.on_joined_frame(port, frame, now)

    def crosses(self, frame: memoryview) -> bool:
        """Whether a frame is an affair of guests, and of no gateway."""
        return frame[12:14] != HELLO and not self._affairs.is_one(frame)

    # -- hellos

    def deadline(self) -> float:
        """When `on_deadline` is next to be called."""
        return self._next if self._peers else inf

    def look(self, leases: int) -> None:
        """Our own guests are those of this version of the leases: if they are others than before,
        the other servers are to know soon."""
        if leases != self._leases:
            self._leases, self._next = leases, -inf

    def on_deadline(self, now: float) -> None:
        """Say who we are; give up whoever says nothing."""
        if not self._said.take(now):
            self._next = now + 1 / SAID_PER_SECOND
            return
        self._next = now + HELLO_INTERVAL
        for port, peer in tuple(self._peers.items()):
            if peer.heard == inf:
                peer.heard = now  # it has its time from now on
            if now - peer.heard >= SILENCE:
                self.counters.count("join.silent")
                port.end("the other server says nothing")
        for port in tuple(self._peers):
            if port in self._peers:  # else it has shown that it is gone, as another was told
                self._say(port, now)

    def _say(self, port: JoinPort, now: float) -> None:
        others = [peer for each, peer in self._peers.items() if each is not port]
        guests = [*self.told(now)] if port.accepted else []  # strangers are told no names
        for peer in others:
            guests += peer.hello.guests if peer.hello is not None and port.accepted else ()
        network = self.network
        hello = Hello(
            speaker=self._ourselves(),
            reaches=tuple(member for peer in others for member in peer.members()),
            subnet=network.subnet,
            gateways=(network.gateway.packed, network.nameserver.packed),
            mtu=network.mtu,
            guests=tuple(guests),
        )
        frame = hello.frame(self.switch.gateway_mac)
        port.say(len(frame).to_bytes(4, "big") + frame)

    def _ourselves(self) -> Member:
        network = self.network
        return Member(self.server, network.first_lease.packed, network.last_lease.packed)

    def _on_hello(self, port: JoinPort, frame: memoryview, now: float) -> None:
        peer = self._peers[port]
        is_new = now - peer.joined_at < NEW_TIME
        if not (self._newcomers if is_new else peer.hellos).take(now):
            self.counters.count("join.hello_limited")
            return
        try:
            hello = parse_hello(frame)
        except Malformed as error:
            self.counters.count(error.reason)
            port.end(f"{error.reason}: not a server that this one understands")
            return
        wrong = self._objection(port, hello)
        if wrong is not None:
            self.counters.count("join.refused")
            port.end(f"refused: {wrong}")
            return
        before, peer.hello, peer.heard = peer.hello, hello, now
        if not port.accepted:
            port.accepted = True
            peer.joined_at = now
            self.switch.attach(port)
        if before is not None and not port.confirmed:
            port.confirmed = True
            port.welcome()
        if before != hello:
            self.version += 1
            self._next = -inf  # the others are to know soon whom they reach by us

    def _objection(self, port: JoinPort, hello: Hello) -> str | None:
        """Why this join may not be."""
        members = (hello.speaker, *hello.reaches)
        servers = {member.server for member in members}
        if self.server in servers:
            return "it leads back to this server"
        for other, peer in self._peers.items():
            if other is not port and any(each.server in servers for each in peer.members()):
                return f"{other.name} leads there, too"
        here = [self._ourselves()]
        for each, peer in self._peers.items():
            here += peer.members() if each is not port else ()
        if len(members) + len(here) > SERVERS_MAXIMUM:
            return f"it would make more than {SERVERS_MAXIMUM} servers"
        network = self.network
        if hello.subnet != network.subnet:
            return f"its subnet is {hello.subnet}, and not {network.subnet}"
        if hello.mtu != network.mtu:
            return f"its mtu is {hello.mtu}, and not {network.mtu}"
        for member in members:
            clash = next((each for each in here if member.overlaps(each)), None)
            if clash is not None:
                return _words_for(member, clash)
        leased = range(int(network.first_lease), int(network.last_lease) + 1)
        kept = {each.address.packed for each in network.reservations} | self._own
        for address in (*hello.gateways, *(address for address, _ in hello.guests)):
            if int.from_bytes(address, "big") in leased and address not in kept:
                return f"{IPv4Address(address)} is in use there, and leased here"
        return None

    # -- who is there

    def guests(self) -> Iterator[tuple[Address, str]]:
        """Of the others: addresses, and names or ""."""
        for peer in self._peers.values():
            if peer.hello is not None:
                yield from peer.hello.guests
