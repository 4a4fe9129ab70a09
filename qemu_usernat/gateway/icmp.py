"""ICMP (RFC 792) of the gateway itself: echo, and when an error may be told at all.

`EchoResponder` answers those who ping the gateway. `ErrorLimiter` holds the rules of RFC 1122
(3.2.2) and RFC 1812 (4.3.2.7 and 4.3.2.8) on when silence is the right answer; what an error
says is the affair of whoever found it.
"""

from collections.abc import Hashable

from attrs import define, field, frozen

from qemu_usernat.lan.allowance import Allowance
from qemu_usernat.primitives.addresses import (
    Address,
    is_loopback,
    is_multicast_or_broadcast,
    is_unspecified_network,
)
from qemu_usernat.wire.icmp import (
    DESTINATION_UNREACHABLE,
    ECHO_REPLY,
    ECHO_REQUEST,
    PARAMETER_PROBLEM,
    REDIRECT,
    TIME_EXCEEDED,
)
from qemu_usernat.wire.packets import ICMP, IcmpMessage, IpPacket

_SOURCE_QUENCH = 4
"""Never sent by anybody any more (RFC 6633), but an error all the same."""

ERROR_TYPES = frozenset(
    {DESTINATION_UNREACHABLE, _SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM}
)
"""RFC 1122, 3.2.2."""

ERRORS_PER_SECOND = 1000.0
"""Errors a second, sustained: Linux's default `net.ipv4.icmp_msgs_per_sec`."""

ERRORS_AT_ONCE = 50.0
"""Errors back to back: Linux's default `net.ipv4.icmp_msgs_burst`."""


@frozen
class EchoResponder:
    """Answers an echo request with its own identifier, sequence number and data."""

    def answer(self, message: IcmpMessage, now: float) -> IcmpMessage | None:
        """The echo reply (RFC 792; RFC 1122, 3.2.2.6: data unchanged, of any size), or None."""
        if message.type != ECHO_REQUEST or message.code != 0:
            return None
        return IcmpMessage(type=ECHO_REPLY, code=0, rest=message.rest, payload=message.payload)


@define
class ErrorLimiter:
    """Decides whether an ICMP error may be sent: by what it is about, and by how many there were.

    Each link has a bucket of its own, as each interface of a router has (RFC 1812, 4.3.2.8): what
    one guest provokes takes nothing from another. `subnet_broadcast` is the guest network's
    directed broadcast address.
    """

    subnet_broadcast: Address
    _allowances: dict[Hashable, Allowance] = field(factory=dict)

    def may_report(self, packet: IpPacket) -> bool:
        """Whether an error about `packet` is allowed at all (RFC 1122, 3.2.2).

        Never about an ICMP error, nor about ICMP too short to tell; never about a later
        fragment; never about what went to many; never to a source that is not one host.
        """
        if packet.fragment_offset != 0:
            return False
        if packet.protocol == ICMP and (not packet.payload or packet.payload[0] in ERROR_TYPES):
            return False
        if self._is_group(packet.destination) or self._is_group(packet.source):
            return False
        return not (
            is_unspecified_network(packet.source)
            or is_loopback(packet.source)
            or _is_class_e(packet.source)
        )

    def may_send(self, link: Hashable, now: float) -> bool:
        """One more on `link`; False if there were too many just before."""
        allowance = self._allowances.get(link)
        if allowance is None:
            allowance = self._allowances[link] = Allowance(ERRORS_PER_SECOND, ERRORS_AT_ONCE)
        return allowance.take(now)

    def forget(self, link: Hashable) -> None:
        """It is gone."""
        self._allowances.pop(link, None)

    def _is_group(self, address: Address) -> bool:
        return is_multicast_or_broadcast(address) or address == self.subnet_broadcast


def _is_class_e(address: Address) -> bool:
    """240/4, reserved (RFC 1122, 3.2.1.3)."""
    return len(address) == 4 and address[0] >= 240
