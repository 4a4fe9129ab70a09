"""The hermetic internet as one server sees it: a `World` that has no socket.

It joins what the router and the name server ask to what the test has defined. Whatever was not
defined is refused at once, and noted.
"""

from collections.abc import Sequence
from functools import partial
from ipaddress import ip_network
from typing import cast

import trio

from qemu_usernat.admission import Guest
from qemu_usernat.gateway.dns import Upstream
from qemu_usernat.host import tcp
from qemu_usernat.host.error_queue import ErrorReader
from qemu_usernat.host.upstream import AnswerCallback
from qemu_usernat.nat.echo import EchoFlow
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.udp import UdpMapping
from qemu_usernat.policy.judge import FlowRequest
from qemu_usernat.policy.tables import Network
from qemu_usernat.primitives.addresses import (
    LOOPBACK_IPV4,
    Address,
    format_address,
    is_multicast_or_broadcast,
)
from qemu_usernat.server import Server
from qemu_usernat.testing.internet.datagrams import HostSocket
from qemu_usernat.testing.internet.echo import EchoHost
from qemu_usernat.testing.internet.faults import Fault
from qemu_usernat.testing.internet.hosts import Service, StreamHandler
from qemu_usernat.testing.internet.records import HandlerFailure, Peer, Unexpected
from qemu_usernat.testing.internet.stage import Stage
from qemu_usernat.testing.internet.streams import NETWORK_ENDED, HostConnection, HostStream

TEST_NETWORKS: tuple[Network, ...] = tuple(
    map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15"))
)
"""Networks for documentation (RFC 5737) and benchmarks (RFC 2544): here they are the world."""

NAMES: Upstream = (LOOPBACK_IPV4, 53)
"""The only resolver there is; nobody dials it."""


class InternetWorld:
    """What is behind one server's gateway; `Internet.make_world` makes it."""

    def __init__(self, stage: Stage, server: Server) -> None:
        self._stage = stage
        self._server = server
        self._on_answer: AnswerCallback
        self._closed = False

    def _end_turn(self) -> None:
        if not self._closed:
            self._server.end_turn()

    # -- connections and datagrams: a `HostEdge`

    def dial(self, flow: TcpFlow, address: Address, port: int, ttl: int) -> None:
        """Somebody calls `address`. OSError while the internet does not run."""
        stage, now = self._stage, trio.current_time()
        if stage.nursery is None:
            raise OSError("the internet does not run")
        source = self._source(flow.key[0], flow.key[1])
        host = stage.hosts.get(address)
        answer = None if host is None else host.answer("tcp", port)
        if host is None or answer is None:
            stage.on_unexpected("tcp", address, port, source)
            flow.on_host_failed(None, now)
            return
        record = host.on_connection("tcp", stage.guests[source[0]], source, address, port)
        lines, chances = (host.to_guest, host.from_guest), (host.chance(), host.chance())
        connection = HostConnection(
            flow, record, lines, chances, stage.timeline, self._server.touch, self._end_turn
        )
        flow.dial(connection)
        if isinstance(answer, Service):
            where = f"TCP handler of {host} port {port}, for {source[0]} port {source[1]}"
            connect = partial(self._connect, connection, answer, where)
            stage.timeline.at(now + 2 * host.latency, connect)
        elif answer is Fault.REFUSES:
            stage.timeline.at(now + 2 * host.latency, connection.fail)

    def dial_unix(self, flow: TcpFlow, path: str) -> None:
        """The one way out: to a socket of this host that the test itself has named."""
        server = self._server
        tcp.dial_unix(flow, path, server.poller, server.touch, ErrorReader(self.is_of_host))

    def _connect(self, connection: HostConnection, service: Service, where: str) -> None:
        if connection.connect(service.reset) and self._stage.nursery is not None:
            handler = cast(StreamHandler, service.handler)
            self._stage.nursery.start_soon(self._serve, connection, handler, where)

    async def _serve(self, connection: HostConnection, handler: StreamHandler, where: str) -> None:
        stream = HostStream(connection)
        try:
            await handler(stream)
            await stream.aclose()
        except Exception as error:
            failure = _failure_in(error) if connection.broken else error
            if failure is not None:
                self._stage.failures.append(HandlerFailure(where, failure))
                stream.reset(f"the handler failed: {type(failure).__name__}: {failure}")
        except BaseException:  # the internet ends, and with it the time in which a reset arrives
            connection.fail(NETWORK_ENDED)
            raise

    def open_udp(self, mapping: UdpMapping) -> None:
        """Set `mapping.host`."""
        self._source(*mapping.key)
        mapping.host = HostSocket(mapping, self._stage, self._end_turn)

    def open_echo(self, flow: EchoFlow) -> None:
        """Set `flow.host`. OSError while the internet does not run."""
        if self._stage.nursery is None:
            raise OSError("the internet does not run")
        self._source(*flow.key)
        flow.host = EchoHost(flow, self._stage, self._end_turn)

    def flush(self, now: float) -> None:
        """Nothing was kept."""

    # -- what never came here

    def on_nobody(self, guest: Guest, request: FlowRequest, name: str | None = None) -> None:
        """The gateway has refused this by itself; it is noted unless the test has defined it.

        What systems say to everybody, or look for on their own link, is no more than unusual.
        """
        stage, now = self._stage, trio.current_time()
        if request.protocol == "dns":
            if name is not None and not stage.names.is_defined(name):
                note = Unexpected("dns", name, None, None, guest.link, None, now)
                stage.unexpected.append(note)
            return
        destination, network = request.destination, self._server.config.network
        if network.host_loopback and destination == network.gateway.packed:
            destination = LOOPBACK_IPV4
        host = stage.hosts.get(destination)
        if host is not None and (
            request.protocol == "icmp" or host.answer(request.protocol, request.port) is not None
        ):
            return
        source = format_address(guest.address), 0
        stage.guests[source[0]] = guest.link
        protocol = "ping" if request.protocol == "icmp" else request.protocol
        port = request.port if protocol in ("tcp", "udp") else None
        everybody = destination == network.subnet.broadcast_address.packed
        if everybody or is_multicast_or_broadcast(destination) or _is_of_link(destination):
            notes = stage.unusual
        else:
            notes = stage.unexpected
        stage.note(notes, protocol, request.destination, port, source)

    def _source(self, address: Address, port: int) -> Peer:
        """Where a guest comes from; and which guest that is, is noted."""
        text = format_address(address)
        self._stage.guests[text] = self._server.router.link_of(address)
        return text, port

    # -- what kind of place an address is

    def is_of_host(self, address: Address) -> bool:
        """There is no host."""
        return False

    @property
    def public(self) -> tuple[Network, ...]:
        """Where a test's hosts are, as a rule; elsewhere the floor of policies counts."""
        return TEST_NETWORKS

    # -- names: an `Asker`, and whom to ask

    def upstreams(self) -> Sequence[Upstream]:
        """Our own names."""
        return (NAMES,)

    @property
    def keeps_answers(self) -> bool:
        """A test sees each question, and what it defines anew holds at once."""
        return False

    def on_answers(self, callback: AnswerCallback) -> None:
        """Whom to tell of answers."""
        self._on_answer = callback

    def ask(self, upstream: Upstream, transport: str, message: bytes, token: int) -> bool:
        """The answer comes after this turn, or never."""
        stage, now = self._stage, trio.current_time()
        guest = self._server.router.dns.guest_of(token)
        answer = stage.names.answer(message, guest, transport, now)
        if answer is not None:
            tell = partial(self._tell, token, answer)
            stage.timeline.at(now + stage.dns_latency, tell)
        return True

    def _tell(self, token: int, answer: bytes) -> None:
        self._on_answer(token, answer, trio.current_time())
        self._end_turn()

    def forget(self, token: int) -> None:
        """One that comes all the same does no harm."""

    def complaints(self) -> Sequence[str]:
        """All works, in a test."""
        return ()

    def close(self) -> None:
        """The server ends."""
        self._closed = True


def _is_of_link(address: Address) -> bool:
    """IPv6 link-local (RFC 4291, 2.5.6): neighbours look for each other there by themselves."""
    return len(address) == 16 and address[0] == 0xFE and address[1] >> 6 == 2


def _failure_in(error: Exception) -> Exception | None:
    """What of `error` does not come from a connection that was reset under its handler."""
    if isinstance(error, trio.BrokenResourceError):
        return None
    if isinstance(error, ExceptionGroup):
        return error.split(trio.BrokenResourceError)[1]
    return error
