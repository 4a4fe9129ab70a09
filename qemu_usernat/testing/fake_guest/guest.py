"""A guest without QEMU, for tests that take milliseconds."""

import errno
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import blake2b
from ipaddress import IPv4Interface
from itertools import count
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import trio

from qemu_usernat.gateway.dhcp_options import HOST_NAME
from qemu_usernat.nurseries import helpers
from qemu_usernat.primitives.addresses import (
    DNS_PORT,
    Address,
    format_address,
    format_mac,
    parse_mac,
)
from qemu_usernat.testing.fake_guest.dhcp import DhcpClient, Lease
from qemu_usernat.testing.fake_guest.link import Link, MalformedFrame
from qemu_usernat.testing.fake_guest.stack import Stack, as_address
from qemu_usernat.testing.fake_guest.stream import TcpStream
from qemu_usernat.testing.fake_guest.tcp import TcpListener, TcpTable
from qemu_usernat.testing.fake_guest.udp import UdpSocket, UdpTable
from qemu_usernat.testing.frames import Frame
from qemu_usernat.wire.icmp import ECHO_REQUEST, icmp_message
from qemu_usernat.wire.packets import ICMP, IcmpMessage

MAC = "52:54:00:12:34:56"
DNS_PATIENCE = 2.0  # seconds until a question is asked again
_NO_OPTIONS: Mapping[int, bytes] = {}


class DnsError(LookupError):
    """A name that was not resolved; `rcode` says how (``NXDOMAIN``, ``SERVFAIL``, ``REFUSED``)."""

    def __init__(self, name: str, rcode: str) -> None:
        super().__init__(f"{name}: {rcode}")
        self.rcode = rcode


class FakeGuest:
    """A machine on the stream protocol, as far as its network goes: ARP, DHCP, ping, DNS, UDP, TCP.

        async with FakeGuest.connect(path) as guest:
            await guest.dhcp()
            stream = await guest.connect_tcp("example.com", 80)

    It answers ARP and ping for its address. What it receives is checked: a broken frame ends the
    block with `MalformedFrame`. Time is trio's, ports and identifiers come in order, so that under
    `trio.testing.MockClock` a test is the same each time.
    """

    def __init__(self, stack: Stack, tcp: TcpTable, udp: UdpTable, nursery: trio.Nursery) -> None:
        """`connect` makes one."""
        self._stack = stack
        self._tcp = tcp
        self._udp = udp
        self._nursery = nursery
        self._dhcp = DhcpClient(stack)
        udp.on_dhcp = self._dhcp.on_message
        self._lease: Lease | None = None
        self._identifiers = count(1)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        where: "str | Path | socket.socket | trio.abc.Stream",
        *,
        mac: str = MAC,
        address: str | None = None,
        gateway: str | None = None,
        nameserver: str | None = None,
        mtu: int = 1500,
        strict: bool = True,
    ) -> AsyncIterator["FakeGuest"]:
        """A guest, until the block ends.

        `where` is the path of the server's socket, or one end of a socket pair, or a trio stream.
        `address` (``10.0.2.15/24``), `gateway` and `nameserver` are for a guest that does without
        `dhcp`. With `strict=False` broken frames are kept in `malformed`.
        """
        packed = parse_mac(mac)
        stack = Stack(packed, Link(await _open(where)), strict)
        if address is not None:
            stack.interface = IPv4Interface(address if "/" in address else f"{address}/24")
        stack.gateway = _parsed("gateway", gateway)
        stack.nameserver = _parsed("nameserver", nameserver)
        if not 68 <= mtu <= 65535:
            raise ValueError(f"mtu is from 68 to 65535 bytes of IP packet, not {mtu}")
        stack.mtu = mtu
        secret = blake2b(packed, digest_size=16).digest()
        tcp, udp = TcpTable(stack, secret), UdpTable(stack)
        try:
            async with helpers() as nursery:
                nursery.start_soon(tcp.serve_deadlines)
                guest = cls(stack, tcp, udp, nursery)
                guest._plug_in()
                yield guest
        finally:
            await stack.link.aclose()

    # -- the wire

    async def disconnect(self) -> None:
        """Close the connection to the server, as a QEMU that ends does."""
        await self._stack.link.aclose()
        self._stack.end_turn()

    async def reconnect(self, where: "str | Path | socket.socket | trio.abc.Stream") -> None:
        """Come again, with the addresses and the TCP connections that there were."""
        await self.disconnect()
        self._stack.link = Link(await _open(where))
        self._plug_in()
        self._tcp.on_room()

    def _plug_in(self) -> None:
        self._nursery.start_soon(self._stack.link.write, self._tcp.on_room)
        self._nursery.start_soon(self._read, self._stack.link)

    async def _read(self, link: Link) -> None:
        await link.read(self._stack.on_frames)
        if link is self._stack.link:
            self._stack.end_turn()  # who waits learns that nothing will come

    @property
    def connected(self) -> bool:
        """Whether the server has not closed the connection."""
        return self._stack.link.up

    async def send_frame(self, octets: bytes) -> None:
        """An Ethernet frame, whatever is in it."""
        self._stack.link.send_octets(octets)
        self._stack.end_turn()
        await trio.lowlevel.checkpoint()

    async def receive_frame(self, timeout: float = 5.0) -> Frame:  # noqa: ASYNC109
        """The next frame from the server that was not taken yet, whoever else has read it.

        Only the latest 4096 wait for it.
        """
        arrived = self._stack.arrived
        await trio.lowlevel.checkpoint()
        return await self._stack.until(
            lambda: arrived.popleft() if arrived else None, timeout, "no frame came"
        )

    # -- who it is

    @property
    def mac(self) -> str:
        """Its MAC address."""
        return format_mac(self._stack.mac)

    @property
    def address(self) -> str | None:
        """Its IPv4 address, once there is one."""
        return None if self._stack.interface is None else str(self._stack.interface.ip)

    @property
    def lease(self) -> Lease | None:
        """What DHCP has given."""
        return self._lease

    @property
    def malformed(self) -> list[MalformedFrame]:
        """The broken frames that came, where the guest is not strict."""
        return self._stack.malformed

    def __repr__(self) -> str:
        state = "" if self.connected else ", disconnected"
        return f"<FakeGuest {self.mac} {self.address or 'without an address'}{state}>"

    async def dhcp(
        self,
        *,
        host_name: str | None = None,
        options: Mapping[int, bytes] = _NO_OPTIONS,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> Lease:
        """Get an address, and use it, with the gateway, name server and MTU that come with it.

        `options` are added to what is sent, by code. DhcpRefused, or TimeoutError.
        """
        self._stack.interface = None
        if host_name is not None:
            options = {HOST_NAME: host_name.encode(), **options}
        return self._use(await self._dhcp.lease(options, timeout))

    async def renew(self, timeout: float = 10.0) -> Lease:  # noqa: ASYNC109
        """Ask for more time."""
        return self._use(await self._dhcp.renew(self._leased(), timeout))

    async def release(self) -> None:
        """Give the address back; there is none then."""
        await self._dhcp.release(self._leased())
        await trio.lowlevel.checkpoint()
        self._lease = self._stack.interface = None

    def _leased(self) -> Lease:
        if self._lease is None:
            raise ValueError("the guest has no lease: await guest.dhcp() first")
        return self._lease

    def _use(self, lease: Lease) -> Lease:
        stack = self._stack
        stack.interface = IPv4Interface(f"{lease.address}/{lease.prefix_length}")
        stack.gateway = _parsed("gateway", lease.gateway)
        stack.nameserver = _parsed("nameserver", next(iter(lease.nameservers), None))
        stack.mtu = lease.mtu or stack.mtu
        self._lease = lease
        return lease

    # -- neighbours and ping

    async def arp(self, address: str, timeout: float = 5.0) -> str:  # noqa: ASYNC109
        """The MAC address of `address`, asked anew; TimeoutError where nobody says."""
        packed = _required("address", address)
        self._stack.neighbours.pop(packed, None)
        return format_mac(await self._stack.resolve_mac(packed, timeout))

    async def ping(
        self,
        host_or_address: str,
        payload: bytes = b"qemu_usernat",
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> float:
        """Seconds until the answer with the same `payload` was here.

        OSError with the ICMP error's name where it was refused; TimeoutError.
        """
        stack, key = self._stack, (next(self._identifiers) & 0xFFFF, 1)
        address = await self._address_of(host_or_address)
        mac = await stack.next_hop(address)
        rest = key[0].to_bytes(2, "big") + key[1].to_bytes(2, "big")
        begun = trio.current_time()
        stack.echoes[key] = None
        stack.send_packet(mac, address, ICMP, icmp_message(ECHO_REQUEST, 0, rest, payload))
        stack.end_turn()

        def look() -> IcmpMessage | OSError | None:
            return stack.echoes[key]

        try:
            answer: IcmpMessage | OSError = await stack.until(
                look, timeout, f"{host_or_address} did not answer the ping"
            )
        finally:
            del stack.echoes[key]
        if isinstance(answer, OSError):
            raise answer
        if answer.payload != payload:
            raise MalformedFrame("icmp.other_payload", answer.payload)
        return trio.current_time() - begun

    # -- names

    async def resolve(
        self,
        name: str,
        type: str = "A",  # noqa: A002 - the RFC's word
        *,
        over: str = "udp",
        server: str | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> list[str]:
        """The records of `name` as text, none if there are none of this type.

        `over` is "udp", where a truncated answer is asked for again over TCP, or "tcp". `server` is
        another name server than the guest's own. DnsError where the answer is an error.
        """
        kind = dns.rdatatype.from_text(type)
        answer = await self.query(name, type, over=over, server=server, timeout=timeout)
        if answer.rcode() != dns.rcode.NOERROR:
            raise DnsError(name, dns.rcode.to_text(answer.rcode()))
        return [str(record) for entry in answer.answer if entry.rdtype == kind for record in entry]

    async def query(
        self,
        name: str,
        type: str = "A",  # noqa: A002
        *,
        over: str = "udp",
        server: str | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> dns.message.Message:
        """As `resolve`, but the whole answer, whatever it says."""
        if over not in ("udp", "tcp"):
            raise ValueError(f'over is "udp" or "tcp", not {over!r}')
        if server is None and self._stack.nameserver is None:
            raise ValueError("the guest has no name server: await guest.dhcp(), or give one")
        address = server or format_address(self._stack.nameserver or b"")
        question = dns.message.make_query(name, type, id=next(self._identifiers) & 0xFFFF)
        answer: dns.message.Message | None = None
        with trio.move_on_after(timeout):
            if over == "udp":
                answer = await self._query_udp(question, address)
            if answer is None or answer.flags & dns.flags.TC:
                answer = await self._query_tcp(question, address)
            return answer
        raise TimeoutError(
            errno.ETIMEDOUT, f"{address} did not answer for {name} {type} within {timeout:g} s"
        )

    async def _query_udp(self, question: dns.message.Message, server: str) -> dns.message.Message:
        with self.open_udp() as port:
            while True:
                await port.send_to(question.to_wire(), server, DNS_PORT)
                try:
                    while True:
                        octets, *_ = await port.receive_from(DNS_PATIENCE)
                        answer = dns.message.from_wire(octets)
                        if question.is_response(answer):
                            return answer
                except TimeoutError:
                    continue

    async def _query_tcp(self, question: dns.message.Message, server: str) -> dns.message.Message:
        stream = await self.connect_tcp(server, DNS_PORT)
        async with stream:
            message = question.to_wire()
            await stream.send_all(len(message).to_bytes(2, "big") + message)
            octets = await _exactly(stream, int.from_bytes(await _exactly(stream, 2), "big"))
            return dns.message.from_wire(octets)

    async def _address_of(self, host_or_address: str) -> Address:
        address = as_address(host_or_address)
        if address is None:
            found = await self.resolve(host_or_address)
            if not found:
                raise DnsError(host_or_address, "no address")
            address = _required("address", found[0])
        return address

    # -- TCP and UDP

    async def connect_tcp(
        self,
        host_or_address: str,
        port: int,
        *,
        local_port: int = 0,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> TcpStream:
        """A connection: a stream of trio's, which can end its own direction alone.

        ConnectionRefusedError where it was reset, OSError with the ICMP error's name where there is
        no way, TimeoutError where nobody answers. Later a reset is trio.BrokenResourceError.
        """
        if not 0 < port < 65536:
            raise ValueError(f"port is from 1 to 65535, not {port}")
        address = await self._address_of(host_or_address)
        return await self._tcp.connect(address, port, timeout, local_port)

    def listen_tcp(self, port: int) -> TcpListener:
        """A port at which the guest can be called: ``await listener.accept()``."""
        return self._tcp.listen(port)

    def open_udp(self, port: int = 0) -> UdpSocket:
        """A UDP port: ``await socket.send_to(…)``, ``await socket.receive_from()``."""
        return self._udp.open(port)


async def _open(where: "str | Path | socket.socket | trio.abc.Stream") -> trio.abc.Stream:
    if isinstance(where, trio.abc.Stream):
        return where
    if isinstance(where, socket.socket):
        where.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(where))
    return await trio.open_unix_socket(str(where))


async def _exactly(stream: TcpStream, length: int) -> bytes:
    octets = b""
    while len(octets) < length:
        more = await stream.receive_some(length - len(octets))
        if not more:
            raise trio.BrokenResourceError(f"{stream!r} ended in the middle of an answer")
        octets += more
    return octets


def _parsed(what: str, address: str | None) -> Address | None:
    return None if address is None else _required(what, address)


def _required(what: str, address: str) -> Address:
    packed = as_address(address)
    if packed is None:
        raise ValueError(f'{what} is {address!r}; allowed: an IPv4 address, like "10.0.2.2"')
    return packed
