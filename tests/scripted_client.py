"""Clients of published TCP ports by a script, and guests that answer their calls."""

from typing import Any

from qemu_usernat.arrivals import Door
from qemu_usernat.config.publish import parse_publication
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.wire.packets import ACK, FIN, SYN
from tests.scripted_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    ScriptedGuest,
    ScriptedNetwork,
    ScriptedServer,
    packed,
)

CLIENT = "198.51.100.9"
PORT = 51000
MSS = b"\2\4\5\xb4"


class ScriptedCaller(ScriptedServer):
    """A client of a published port: what it got to know, and what it does."""

    client: tuple[bytes, int] | None

    def __init__(self, network: ScriptedNetwork, client: tuple[bytes, int] | None) -> None:
        super().__init__(None, b"", 0, network, 0)  # type: ignore[arg-type] # until it begins
        self.client = client

    def begin(self, flow: TcpFlow) -> None:
        self.flow = flow


class Published:
    """A network with one published port, and whoever comes there."""

    def __init__(self, text: str = "8080:80", **settings: Any) -> None:
        self.network = ScriptedNetwork(**settings)
        self.door = self.at(text)

    def at(self, text: str) -> Door:
        publication = parse_publication(text)
        return Door(publication, publication.guest_port)

    def client(
        self, address: str = CLIENT, port: int = PORT, door: Door | None = None
    ) -> ScriptedCaller:
        """Connects."""
        caller = ScriptedCaller(self.network, (packed(address), port))
        return self.comes(caller, door)

    def comes(self, caller: ScriptedCaller, door: Door | None = None) -> ScriptedCaller:
        arrivals = self.network.router.arrivals
        arrivals.on_caller(caller, door or self.door, self.network.now)
        self.network.end_turn()
        return caller

    def guest(
        self, mac: bytes = GUEST_MAC, address: str = GUEST, link: str = "guest"
    ) -> "Answering":
        """One that has been heard."""
        guest = Answering(self.network.guest(mac, address, link))
        guest.guest.sends(guest.guest.asks_who_has(GATEWAY))
        guest.guest.hears_one()
        return guest

    def leaves(self, guest: "Answering") -> None:
        """Its link is gone."""
        router = self.network.router
        router.switch.detach(guest.guest.port)
        router.on_link_down(guest.guest.port, self.network.now)


class Answering:
    """A guest with a server, which keeps one connection by hand; its first number is 7000."""

    def __init__(self, guest: ScriptedGuest) -> None:
        self.guest = guest
        self.client = ""
        self.at = self.port = 0
        self.sent, self.received = 7001, 0

    def is_called(self) -> None:
        """Hears a SYN, and nothing else."""
        (syn,) = (heard for heard in self.guest.hears() if heard.packet is not None)
        assert syn.tcp.flags == SYN
        assert syn.destination == self.guest.address
        self.client, self.at, self.port = syn.source, syn.tcp.source_port, syn.tcp.destination_port
        self.received = syn.tcp.sequence + 1

    def says(self, flags: int, payload: bytes = b"") -> None:
        self.guest.sends(
            self.guest.segment(
                self.port, self.client, self.at, flags, self.sent, self.received, 64000, payload
            )
        )
        self.sent += len(payload) + (flags & FIN)

    def accepts(self) -> None:
        self.guest.sends(
            self.guest.segment(
                self.port, self.client, self.at, SYN | ACK, 7000, self.received, options=MSS
            )
        )
        assert self.guest.hears_one().tcp.flags == ACK

    def reads(self) -> bytes:
        """What came, acknowledged; FIN as a full stop."""
        octets = b""
        for heard in self.guest.hears():
            segment = heard.tcp
            assert segment.sequence in (self.received, self.received - 1)
            octets += segment.payload + b"." * (segment.flags & FIN)
            self.received += len(segment.payload) + (segment.flags & FIN)
        self.says(ACK)
        return octets
