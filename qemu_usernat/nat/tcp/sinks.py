"""What a TCP flow calls: the way to its guest, and its socket on the host.

Whoever carries segments or octets for a flow has one of these shapes; a test's double, too.
"""

from typing import Protocol

from qemu_usernat.wire.icmp import IcmpError
from qemu_usernat.wire.packets import Buffer


class GuestWire(Protocol):
    """The way to the guest: puts ports, addresses and checksums around a segment."""

    def send(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: Buffer = b"",
        options: bytes = b"",
    ) -> None: ...

    def send_each(
        self,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: memoryview,
        size: int,
    ) -> None:
        """`payload` in segments of `size` octets; `flags` are the last one's."""

    def refuse(self, error: IcmpError, now: float) -> None:
        """An ICMP error that quotes the guest's SYN."""

    def stalled(self) -> bool:
        """Whether the guest's link takes no more for now; it will tell the owner when it does."""


class HostStream(Protocol):
    """The host half's socket, or a service of the gateway that behaves like one."""

    def send(self, buffers: list[Buffer], now: float) -> int:
        """Write; how many octets were taken. Failure is reported through `on_host_failed`."""

    def shutdown(self) -> None:
        """End the guest's direction (FIN)."""

    def reset(self) -> None:
        """End both directions at once (RST) and close."""

    def hang_up(self) -> None:
        """Nobody listens any more: after `shutdown`, deliver what was taken, then reset; close."""

    def close(self) -> None:
        """Give the descriptor back."""

    def watch(self, read: bool, write: bool, now: float) -> None:
        """Which readiness to report from now on."""
