"""Echo flows: the pings of one guest under one identifier (RFC 792; RFC 5508, 3).

A flow owns what was asked, of whom, and for how long an answer may come; it lets in answers to
what was asked and nothing else. It does not know sockets: the identifier of the host's side is the
host's affair, as the kernel may choose it.
"""

from collections.abc import Hashable
from typing import Protocol

from attrs import define, field

from qemu_usernat.admission import Decision
from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import SECOND
from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import Buffer

IDLE_TIME = 60 * SECOND  # RFC 5508, REQ-2: 60 seconds at least

ASKED_MAXIMUM = 256
"""Requests of one flow that may still be answered; the oldest is given up first."""

PEERS_MAXIMUM = 256
"""Addresses that one flow was allowed to ask; the one asked first is forgotten first."""

QUOTED = 128
"""Bytes kept of a request behind its IP header: what ping(8) sends by default, and more."""


class HostEcho(Protocol):
    """The flow's end on the host."""

    def send(
        self,
        payload: Buffer,
        address: Address,
        sequence: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        """An echo request. Failure is reported through `EchoFlow.on_host_error`."""

    def close(self) -> None: ...


class GuestEcho(Protocol):
    """The way back to the flow's guest."""

    def deliver(self, payload: Buffer, source: Address, sequence: int, ttl: int) -> None:
        """An echo reply from `source`, with `ttl` hops left."""

    def refuse(
        self, error: IcmpError, peer: Address, sequence: int, quoted: bytes, now: float
    ) -> None:
        """An error about the request `quoted`, from its IP header on, which was for `peer`."""


@define(eq=False)
class EchoFlow:
    """One guest address and identifier, and whom it pings."""

    key: tuple[Address, int]
    guest: GuestEcho
    counters: Counters
    sent_at: float
    owner: Hashable = None
    """Whose it is, to whoever counts."""
    host: HostEcho = field(init=False)
    _asked: dict[tuple[Address, int], bytes] = field(factory=dict)
    """Address and sequence number, and how the request began; what was asked last is the last."""
    _admitted: dict[Address, Decision] = field(factory=dict)

    def is_admitted(self, address: Address) -> bool:
        """Whether the guest may ping it: judged once, and kept."""
        return address in self._admitted

    def admit(self, address: Address, decision: Decision) -> None:
        """The guest may ping it."""
        if len(self._admitted) >= PEERS_MAXIMUM:
            del self._admitted[next(iter(self._admitted))]
        self._admitted[address] = decision

    def admitted(self) -> list[tuple[Address, Decision]]:
        """Whom the guest may ping, and why."""
        return list(self._admitted.items())

    def revoke(self, address: Address) -> None:
        """It may no more, nor hear from there."""
        del self._admitted[address]

    def on_guest_request(
        self, address: Address, sequence: int, payload: Buffer, head: bytes, now: float
    ) -> None:
        """The guest asks `address`, which it may; `head` is the beginning of its packet, as much as
        `QUOTED` says."""
        self.sent_at = now
        asked = address, sequence
        self._asked.pop(asked, None)
        if len(self._asked) >= ASKED_MAXIMUM:
            del self._asked[next(iter(self._asked))]
        self._asked[asked] = head
        # One hop is ours (RFC 1812, 5.3.1); the DF bit is the guest's to set (RFC 1191, 3).
        self.host.send(payload, address, sequence, head[8] - 1, bool(head[6] & 0x40), now)

    def on_host_reply(self, payload: Buffer, source: Address, sequence: int, ttl: int) -> None:
        """An echo reply has come to the flow's end on the host, with `ttl` hops left.

        The hop that is ours is not taken off its last: it has arrived.
        """
        if (source, sequence) in self._asked and source in self._admitted:
            self.guest.deliver(payload, source, sequence, max(1, ttl - 1))
        else:
            self.counters.count("icmp.unsolicited")

    def on_host_error(
        self, error: IcmpError, peer: Address, sequence: int, payload: bytes, now: float
    ) -> None:
        """The host's network reports an error about a request, which began with `payload`, as far
        as the error quotes it."""
        request = self._asked.get((peer, sequence))
        if request is None or peer not in self._admitted:
            self.counters.count("icmp.unsolicited")
            return
        headers = 4 * (request[0] & 0xF) + 8
        quoted = request[:headers] + max(payload, request[headers:], key=len)
        self.guest.refuse(error, peer, sequence, quoted, now)

    def deadline(self) -> float:
        """When the flow has been idle for too long."""
        return self.sent_at + IDLE_TIME

    def expired(self, now: float) -> bool:
        """Whether it has."""
        return now >= self.deadline()
