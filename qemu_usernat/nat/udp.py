"""UDP mappings: one host socket for each guest address and port (RFC 768, RFC 4787).

A mapping is endpoint-independent (RFC 4787, REQ-1) and filters by address (REQ-8): it lets
in whoever the guest has written to, and nobody else. It owns its peers and its timer; it
does not know sockets or headers.
"""

from typing import Protocol

from attrs import define, field

from qemu_usernat.admission import Decision
from qemu_usernat.primitives.addresses import DNS_PORT, Address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import MINUTE, SECOND
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import Buffer

IDLE_TIME = 5 * MINUTE  # RFC 4787, REQ-5: 2 minutes at least, 5 recommended
DNS_IDLE_TIME = 20 * SECOND  # RFC 4787, REQ-5 b: shorter for a port in 0-1023, as DNS is
HEADS_MAXIMUM = 64
"""Datagrams of one mapping that can be quoted."""
QUOTED_PAYLOAD = 32
"""Bytes kept of a payload, where an error quotes less of it: RFC 792 asks for none beyond the UDP
header, but tracepath(8) finds its own words again."""
PEERS_MAXIMUM = 1024
"""Addresses that one mapping lets in; the one written to longest ago is forgotten first."""


class HostDatagrams(Protocol):
    """The mapping's socket on the host."""

    def send(
        self,
        payload: Buffer,
        address: Address,
        port: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None: ...

    def close(self) -> None: ...


class GuestDatagrams(Protocol):
    """The way back to the mapping's guest."""

    def deliver(self, payload: Buffer, source: Address, source_port: int) -> None:
        """A datagram from `source`, in addresses of the host's world."""

    def refuse(self, error: IcmpError, peer: Address, port: int, quoted: bytes, now: float) -> None:
        """An error about the datagram `quoted`, from its IP header on, which was for `peer`, of
        the host's world."""


@define(eq=False)
class UdpMapping:
    """One guest address and port, and the world it talks to."""

    key: tuple[Address, int]
    guest: GuestDatagrams
    counters: Counters
    sent_at: float
    host: HostDatagrams = field(init=False)
    idle_time: float = DNS_IDLE_TIME
    filters_ports: bool = False
    """Whether only the very port that was written to may answer."""
    _peers: dict[Address, None] = field(factory=dict)
    """Addresses written to; the one written to last is the last."""
    _heads: dict[tuple[Address, int], bytes] = field(factory=dict)
    """How the last datagram to each address and port began, for errors that quote it."""
    _admitted: dict[tuple[Address, int], Decision] = field(factory=dict)
    """Address and port, of the host's world, and what the policy said of it."""

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
        if address in self._peers:
            del self._peers[address]
        elif len(self._peers) >= PEERS_MAXIMUM:
            del self._peers[next(iter(self._peers))]
        self._peers[address] = None
        heads, where = self._heads, (address, port)
        if len(heads) >= HEADS_MAXIMUM and where not in heads:
            del heads[next(iter(heads))]
        heads[where] = head
        # One hop is ours (RFC 1812, 5.3.1); the DF bit is the guest's to set (RFC 1191, 3).
        self.host.send(payload, address, port, head[8] - 1, bool(head[6] & 0x40), now)

    def has_written_to(self, address: Address) -> bool:
        """Whether the guest has written to `address`, one of the host's world, from here."""
        return address in self._peers

    def is_admitted(self, address: Address, port: int) -> bool:
        """Whether the guest may write there, of the host's world: asked once, and kept."""
        return (address, port) in self._admitted

    def admit(self, address: Address, port: int, decision: Decision) -> None:
        """The guest may write there."""
        if len(self._admitted) >= PEERS_MAXIMUM:
            del self._admitted[next(iter(self._admitted))]
        self._admitted[address, port] = decision

    def admitted(self) -> list[tuple[tuple[Address, int], Decision]]:
        """Where the guest may write, and why."""
        return list(self._admitted.items())

    def revoke(self, address: Address, port: int) -> None:
        """It may no more, nor hear from there."""
        del self._admitted[address, port]
        if not any(other == address for other, _ in self._admitted):
            self._peers.pop(address, None)

    def on_host_datagram(self, payload: Buffer, address: Address, port: int) -> None:
        """Somebody sends to the mapping's socket."""
        if address in self._peers and (not self.filters_ports or (address, port) in self._admitted):
            self.guest.deliver(payload, address, port)
        else:
            self.counters.count("udp.filtered")

    def on_host_error(
        self, error: IcmpError, peer: Address, port: int, payload: bytes, now: float
    ) -> None:
        """The host's network reports an error about a datagram to `peer`, which began with
        `payload`, as far as the error quotes it."""
        head = self._heads.get((peer, port))
        if peer in self._peers and head is not None:
            headers = 4 * (head[0] & 0xF) + 8
            quoted = head[:headers] + max(payload, head[headers:], key=len)
            self.guest.refuse(error, peer, port, quoted, now)

    def deadline(self) -> float:
        """When the mapping has been idle for too long."""
        return self.sent_at + self.idle_time

    def expired(self, now: float) -> bool:
        """Whether it has."""
        return now >= self.deadline()
