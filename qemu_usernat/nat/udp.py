"""UDP mappings: one host socket for each guest address and port (RFC 768, RFC 4787).

A mapping is endpoint-independent (RFC 4787, REQ-1): whoever the guest writes to from there, it is
one socket. Whom it lets in is its filtering (REQ-8). It owns its peers, what is kept of each, and
its timer; it does not know sockets or headers.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeAlias

from attrs import define, evolve, field

from qemu_usernat.admission import Decision
from qemu_usernat.config.network import UDP_FILTERINGS
from qemu_usernat.primitives.addresses import DNS_PORT, Address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import MINUTE, SECOND
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import Buffer

IDLE_TIME = 5 * MINUTE  # RFC 4787, REQ-5: 2 minutes at least, 5 recommended
DNS_IDLE_TIME = 20 * SECOND  # RFC 4787, REQ-5 b: shorter for a port in 0-1023, as DNS is
QUOTED_PAYLOAD = 32
"""Bytes kept of a payload, where an error quotes less of it: RFC 792 asks for none beyond the UDP
header, but tracepath(8) finds its own words again."""
PEERS_MAXIMUM = 1024
"""Addresses and ports that one mapping knows, and that were asked for where it was led elsewhere;
the one written to longest ago is forgotten first."""
PEERS_PER_GUEST = 16384
"""Those of all mappings of a guest; beyond it, who meets a new one forgets one of its own."""

ENDPOINT, ADDRESS, ADDRESS_PORT = UDP_FILTERINGS


Where: TypeAlias = tuple[Address, int]
"""An address and a port."""


class HostDatagrams(Protocol):
    """The mapping's socket on the host."""

    @property
    def port(self) -> int:
        """At which the host's world sees the mapping."""

    def send(
        self,
        payload: Buffer,
        address: Address,
        port: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        """Send, by the end of the turn at the latest: `payload` is good until then."""

    def close(self) -> None: ...


class GuestDatagrams(Protocol):
    """The way back to the mapping's guest."""

    def deliver(self, payload: Buffer, source: Address, source_port: int) -> None:
        """A datagram from `source`, in addresses of the host's world."""

    def refuse(self, error: IcmpError, peer: Address, port: int, quoted: bytes, now: float) -> None:
        """An error about the datagram `quoted`, from its IP header on, which was for `peer`, of
        the host's world."""


@define
class Tally:
    """How many peers all mappings of one guest know."""

    peers: int = 0


@define(eq=False)
class _Peer:
    """An address and port of the host's world that the guest has written to."""

    decision: Decision | None
    """What the policy said of it, asked once and kept; None where it is to be asked each time."""
    head: bytes = b""
    """How the last datagram to it began, for errors that quote it."""


def _nobody(address: Address, port: int, now: float) -> bool:
    return False


@define(eq=False)
class UdpMapping:
    """One guest address and port, and the world it talks to."""

    key: tuple[Address, int]
    guest: GuestDatagrams
    counters: Counters
    sent_at: float
    filtering: str = ADDRESS
    is_guarded: bool = False
    """Whether there is a policy: then only the very port that was written to may answer."""
    admits_stranger: Callable[[Address, int, float], bool] = _nobody
    """Whether somebody may come in that the guest has not written to, if nothing else is against
    it."""
    shuns: Callable[[Address, int], bool] | None = None
    """Who never comes in, whoever has been written to; None where there is nobody."""
    tally: Tally = field(factory=Tally)
    order: "OrderedDict[UdpMapping, None]" = field(factory=OrderedDict)
    """Among which of its guest's mappings it stands, the one used last at the end."""
    host: HostDatagrams = field(init=False)
    idle_time: float = DNS_IDLE_TIME
    is_answered: bool = False
    """Whether anybody has been let in."""
    _peers: "OrderedDict[tuple[Address, int], _Peer]" = field(factory=OrderedDict)
    """The one written to last is the last."""
    _ports: dict[Address, int] = field(factory=dict)
    """How many peers have this address."""
    _redirected: "OrderedDict[Where, tuple[Where, Decision]]" = field(factory=OrderedDict)
    """What the guest has asked for, to which peer that goes instead, and what the policy said."""
    _asked_of: dict[Where, Where] = field(factory=dict)
    """Of such a peer, for what it stands: what the guest has asked for last."""

    def on_guest_datagram(
        self, payload: Buffer, address: Address, port: int, head: bytes, now: float
    ) -> None:
        """The guest sends to `address`, already one of the host's world.

        `head` is the beginning of its packet: the headers, and of the payload what there is of
        `QUOTED_PAYLOAD`. Only what goes out keeps the mapping alive (RFC 4787, REQ-6).
        """
        self.sent_at = now
        if port != DNS_PORT:
            self.idle_time = IDLE_TIME
        where = address, port
        peer = self._peers.get(where)
        if peer is None:
            peer = self._meet(where, None)
        else:
            self._peers.move_to_end(where)
        peer.head = head
        # One hop is ours (RFC 1812, 5.3.1); the DF bit is the guest's to set (RFC 1191, 3).
        self.host.send(payload, address, port, head[8] - 1, bool(head[6] & 0x40), now)

    # -- peers

    def redirected(self, address: Address, port: int) -> Where | None:
        """The peer that the guest writes to when it writes there, without being asked again; None
        where it was led nowhere else."""
        known = self._redirected.get((address, port))
        if known is None:
            return None
        self._asked_of[known[0]] = address, port
        return known[0]

    def redirect(self, asked: Where, peer: Where, decision: Decision) -> None:
        """What the guest sends to `asked` goes to `peer`, which answers as `asked`."""
        if asked not in self._redirected:
            self._make_room()
            self.tally.peers += 1
        self._redirected[asked] = peer, decision
        self._asked_of[peer] = asked

    def _end_redirect(self, asked: Where) -> None:
        peer, _ = self._redirected.pop(asked)
        self.tally.peers -= 1
        if self._asked_of.get(peer) == asked:
            del self._asked_of[peer]

    def is_admitted(self, address: Address, port: int) -> bool:
        """Whether the guest may write there, of the host's world, without being asked again."""
        peer = self._peers.get((address, port))
        return peer is not None and peer.decision is not None

    def admit(self, address: Address, port: int, decision: Decision) -> None:
        """The guest may write there."""
        peer = self._peers.get((address, port))
        if peer is None:
            self._meet((address, port), decision)
        else:
            peer.decision = decision

    def admitted(self) -> list[tuple[Where, Decision]]:
        """Where the guest may write, and why."""
        plain = [
            (where, peer.decision)
            for where, peer in self._peers.items()
            if peer.decision is not None
        ]
        return plain + [(asked, decision) for asked, (_, decision) in self._redirected.items()]

    def revoke(self, address: Address, port: int) -> None:
        """It may no more, nor hear from there."""
        where = address, port
        if where in self._redirected:
            peer, _ = self._redirected[where]
            self._end_redirect(where)
            if peer in self._peers and peer not in self._asked_of:
                self._forget(peer)
        else:
            self._forget(where)

    def forget_unjudged(self) -> None:
        """A policy has come: whoever was written to without one may not answer."""
        for where, peer in tuple(self._peers.items()):
            if peer.decision is None and where not in self._asked_of:
                self._forget(where)

    def forget_peers(self) -> None:
        """The mapping ends."""
        for where in tuple(self._peers):
            self._forget(where)
        for asked in tuple(self._redirected):
            self._end_redirect(asked)

    def _meet(self, where: tuple[Address, int], decision: Decision | None) -> _Peer:
        self._make_room()
        peer = self._peers[where] = _Peer(decision)
        self._ports[where[0]] = self._ports.get(where[0], 0) + 1
        self.tally.peers += 1
        return peer

    def _make_room(self) -> None:
        """For one more that is known, of what was written to longest ago."""
        known = len(self._peers) + len(self._redirected)
        if known < PEERS_MAXIMUM and self.tally.peers < PEERS_PER_GUEST:
            return
        if len(self._redirected) > max(1, len(self._peers)):
            self._end_redirect(next(iter(self._redirected)))
        elif self._peers:
            self._forget(next(iter(self._peers)))

    def _forget(self, where: tuple[Address, int]) -> None:
        del self._peers[where]
        self.tally.peers -= 1
        address = where[0]
        self._ports[address] -= 1
        if not self._ports[address]:
            del self._ports[address]

    # -- the way in

    def on_host_datagram(self, payload: Buffer, address: Address, port: int, now: float) -> None:
        """Somebody sends to the mapping's socket."""
        is_shunned = self.shuns is not None and self.shuns(address, port)
        if not is_shunned and self.lets_in(address, port, now):
            self.is_answered = True
            asked = self._asked_of.get((address, port)) if self._asked_of else None
            if asked is not None:
                address, port = asked
            self.guest.deliver(payload, address, port)
        else:
            self.counters.count("udp.filtered")

    def lets_in(self, address: Address, port: int, now: float) -> bool:
        """Whether a datagram from there reaches the guest (RFC 4787, 5)."""
        if self.filtering == ADDRESS and not self.is_guarded:
            return address in self._ports
        if (address, port) in self._peers:
            return True
        return self.filtering == ENDPOINT and self.admits_stranger(address, port, now)

    def on_host_error(
        self, error: IcmpError, peer: Address, port: int, payload: bytes, now: float
    ) -> None:
        """The host's network reports an error about a datagram to `peer`, which began with
        `payload`, as far as the error quotes it."""
        known = self._peers.get((peer, port))
        if known is not None and known.head:
            head = known.head
            headers = 4 * (head[0] & 0xF) + 8
            quoted = head[:headers] + max(payload, head[headers:], key=len)
            asked = self._asked_of.get((peer, port))
            if asked is not None and error.offender == peer:
                error = evolve(error, offender=asked[0])
            self.guest.refuse(error, peer, port, quoted, now)

    # -- time

    @property
    def is_conversation(self) -> bool:
        """Whether it is more than a question: somebody has answered, and not only by DNS."""
        return self.is_answered and self.idle_time == IDLE_TIME

    def deadline(self) -> float:
        """When the mapping has been idle for too long."""
        return self.sent_at + self.idle_time

    def expired(self, now: float) -> bool:
        """Whether it has."""
        return now >= self.deadline()
