"""The fake guest's UDP: sockets by port, and ICMP errors told as the kernel tells them."""

from collections import deque
from collections.abc import Callable

import trio

from qemu_usernat.gateway.dhcp import CLIENT_PORT
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.testing.fake_guest.ports import Ports
from qemu_usernat.testing.fake_guest.stack import Stack, as_address
from qemu_usernat.wire.packets import UDP, IpPacket, UdpDatagram
from qemu_usernat.wire.udp import udp_datagram

DATAGRAMS_MAXIMUM = 4096
"""Datagrams that wait to be read; further ones are lost, as they are in a kernel."""


class UdpSocket:
    """A port of the guest's; as a context manager it is given back at the end."""

    def __init__(self, stack: Stack, port: int, on_close: Callable[[int], None]) -> None:
        self.port = port
        self._stack = stack
        self._on_close = on_close
        self._received: deque[tuple[bytes, str, int]] = deque(maxlen=DATAGRAMS_MAXIMUM)
        self._error: OSError | None = None
        self._closed = False

    def __enter__(self) -> "UdpSocket":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<UdpSocket port {self.port}, {len(self._received)} datagrams to be read>"

    async def send_to(self, payload: bytes, address: str, port: int) -> None:
        """One datagram. OSError where an earlier one was refused, or where there is no way."""
        self._check()
        destination = as_address(address)
        if destination is None:
            raise ValueError(f'address is {address!r}; allowed: an IPv4 address, like "10.0.2.2"')
        if not 0 < port < 65536:
            raise ValueError(f"port is from 1 to 65535, not {port}")
        mac = await self._stack.next_hop(destination)
        await trio.lowlevel.checkpoint()
        datagram = udp_datagram(self._stack.address, self.port, destination, port, payload)
        self._stack.send_packet(mac, destination, UDP, datagram)
        self._stack.end_turn()

    async def receive_from(self, timeout: float = 5.0) -> tuple[bytes, str, int]:  # noqa: ASYNC109
        """The next datagram: (payload, address, port). OSError where one of ours was refused."""

        def look() -> tuple[bytes, str, int] | None:
            if self._received:
                return self._received.popleft()
            self._check()
            return None

        await trio.lowlevel.checkpoint()
        return await self._stack.until(look, timeout, f"no datagram came to UDP port {self.port}")

    def close(self) -> None:
        """Give the port back; what comes there is refused from now on."""
        if not self._closed:
            self._closed = True
            self._on_close(self.port)
            self._stack.end_turn()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"UDP port {self.port} has been closed")
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    # -- for the table

    def on_datagram(self, payload: bytes, source: str, port: int) -> None:
        """One has come."""
        self._received.append((payload, source, port))

    def on_error(self, error: OSError) -> None:
        """One of ours was refused."""
        self._error = error


class UdpTable:
    """The guest's open ports."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._sockets: dict[int, UdpSocket] = {}
        self._ports = Ports("UDP", self._sockets)
        self.on_dhcp: Callable[[bytes], None]
        """Set by the guest: the DHCP client's ear."""
        stack.on_udp = self.on_datagram
        stack.transports[UDP] = self

    def open(self, port: int = 0) -> UdpSocket:
        """Port 0 is any that is free."""
        port = self._ports.take(port)
        opened = self._sockets[port] = UdpSocket(self._stack, port, self._forget)
        return opened

    def _forget(self, port: int) -> None:
        del self._sockets[port]

    def on_datagram(self, datagram: UdpDatagram, packet: IpPacket) -> bool:
        """One has come; False where nobody has the port."""
        if datagram.destination_port == CLIENT_PORT:
            self.on_dhcp(datagram.payload)
            return True
        opened = self._sockets.get(datagram.destination_port)
        if opened is None:
            return False
        opened.on_datagram(datagram.payload, format_address(packet.source), datagram.source_port)
        return True

    def on_error(self, ports: tuple[int, int], remote: Address, error: OSError) -> None:
        """An ICMP error about a datagram of ours."""
        opened = self._sockets.get(ports[0])
        if opened is not None:
            opened.on_error(error)
