"""Pings in the hermetic internet: each goes and comes over the line of the host that it is for."""

from collections.abc import Callable

from attrs import define

from qemu_usernat.nat.echo import EchoFlow
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.testing.internet.stage import Stage
from qemu_usernat.wire.icmp import ADMINISTRATIVELY_PROHIBITED, TTL, unreachable
from qemu_usernat.wire.packets import Buffer


@define(eq=False)
class EchoHost:
    """A flow's `HostEcho`."""

    flow: EchoFlow
    stage: Stage
    end_turn: Callable[[], None]
    _closed: bool = False

    def send(
        self,
        payload: Buffer,
        address: Address,
        sequence: int,
        ttl: int,
        dont_fragment: bool,
        now: float,
    ) -> None:
        """A request of the guest."""
        stage, host, asked = self.stage, self.stage.hosts.get(address), bytes(payload)
        if host is None:
            source = format_address(self.flow.key[0]), 0
            stage.on_unexpected("ping", address, None, source)
            error = unreachable(ADMINISTRATIVELY_PROHIBITED)
            self.flow.on_host_error(error, address, sequence, asked, now)
            return
        if host.is_silent():
            return
        octets, chance, line = len(asked), host.ping_chance, host.to_guest

        def answer() -> None:
            if not self._closed:
                self.flow.on_host_reply(asked, address, sequence, TTL)
                self.end_turn()

        def arrive() -> None:
            line.carry(stage.timeline, chance, octets, answer)

        host.from_guest.carry(stage.timeline, chance, octets, arrive)

    def close(self) -> None:
        """The flow has been idle for too long, or the network ends."""
        self._closed = True
