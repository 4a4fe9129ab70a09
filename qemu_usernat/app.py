"""The composition root: the only file that knows every part, and the only one with a nursery.

Links and host sockets share one poller, and one task serves it: a turn needs no queue
between tasks, and waking trio costs once a turn, not once a socket. A second task sleeps
until the router's next deadline. Everything else here is listening, connecting and ending.
"""

import resource
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import dns.name
import structlog
import trio
from attrs import define, evolve, field

from qemu_usernat import signals
from qemu_usernat.admission import Admission
from qemu_usernat.config.configuration import Config, groups_of
from qemu_usernat.config.endpoints import Endpoint
from qemu_usernat.config.network import Network
from qemu_usernat.gateway.dns import Asker, DnsForwarder, Upstream
from qemu_usernat.gateway.dns_cache import DnsCache
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.host.chance import Chance
from qemu_usernat.host.folder import Folder
from qemu_usernat.host.upstream import AnswerCallback
from qemu_usernat.host.world import SystemWorld
from qemu_usernat.lease_file import LeaseFile
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.observe import Audit
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.policy.tables import Network as IpNetwork
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import MS
from qemu_usernat.qemu.link import Link
from qemu_usernat.qemu.listener import Listener, connect_forever
from qemu_usernat.router import HostEdge, Router

PATIENCE = 1 * MS
"""How long a server that has nothing else to do waits for the next turn by itself. Traffic comes
in pairs, question and answer: going through trio between them would double what they cost."""

TURNS_TIME = 5 * MS
"""How long turns may follow each other before the other tasks get theirs."""

BUGS_TOLD = 16
"""Bugs of ours that the log tells of in full: a guest that has found one may show it for ever."""

_log = structlog.get_logger()

# What a person asks for is told, however little the log is to say by itself.
_asked = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(0))


class World(HostEdge, Asker, Protocol):
    """What is behind the gateway."""

    @property
    def public(self) -> tuple[IpNetwork, ...]:
        """Networks that are public there, though they are not elsewhere."""

    def is_of_host(self, address: Address) -> bool:
        """Whether the host itself has this address at this moment."""

    def upstreams(self) -> Sequence[Upstream]:
        """Whom to ask for names, at this moment."""

    @property
    def keeps_answers(self) -> bool:
        """Whether the name server may tell others what one guest was told, or has to ask for each:
        not where each question is to be seen."""

    def on_answers(self, callback: AnswerCallback) -> None:
        """Whom to tell of answers; said before the first question."""

    def complaints(self) -> Sequence[str]:
        """What does not work here, and what a person can do about it."""

    def close(self) -> None:
        """Give back all that is not a flow's or a mapping's."""


def system_world(server: "Server") -> World:
    """The host's own network."""
    resolvers = [(address.packed, port) for address, port in server.config.network.dns]
    return SystemWorld(server.poller, server.counters, server.touch, resolvers)


@define(eq=False)
class Server:
    """One network and its sockets, running inside a trio nursery."""

    config: Config
    patience: float = 0.0
    """Seconds that this task may keep the others waiting for the next turn: zero where they work
    for the guest, too, as in a test."""
    make_world: Callable[["Server"], World] = system_world
    counters: Counters = field(factory=Counters)
    poller: Poller = field(init=False)
    router: Router = field(init=False)
    audit: Audit = field(factory=Audit)
    """What is told of verdicts."""
    admission: Admission = field(init=False)
    links: dict[Link, trio.Event] = field(factory=dict)
    world: World = field(init=False)
    _alarm: trio.CancelScope = field(factory=trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        network = self.config.network
        self.poller = Poller(self.on_bug)
        try:
            world = self.world = self.make_world(self)
        except BaseException:
            self.poller.close()
            raise
        forwarder = DnsForwarder(
            zone=Zone(
                network.gateway.packed,
                network.nameserver.packed,
                network.subnet.prefixlen,
                dns.name.from_text(network.domain),
                network.records,
            ),
            upstreams=world.upstreams,
            asker=world,
            random_id=Chance(),
            counters=self.counters,
            cache=DnsCache(self.counters) if world.keeps_answers else None,
        )
        world.on_answers(forwarder.on_answer)
        self.admission = Admission(
            evolve(groups_of(network), is_of_host=world.is_of_host, public=world.public),
            implicit=_implicit_policy(network),
            settings=self.config.policy,
            on_decision=self.audit.on_decision,
        )
        self.router = Router(
            network,
            world,
            forwarder,
            self.admission,
            secrets.token_bytes(16),
            self.counters,
            self.on_bug,
            None if network.boot.folder is None else Folder(network.boot.folder).open,
        )
        self.router.switch.guard_sources(self.config.policy is not None)

    def touch(self, flow: TcpFlow) -> None:
        """Something happened to `flow`: flush it at the end of the turn."""
        self.router.touch(flow)

    def set_policy(self, settings: PolicySettings | None) -> None:
        """Another policy from this moment on, or none; flows that it does not allow any more are
        reset, the others notice nothing."""
        self.admission.replace(settings)
        self.router.on_policy(settings is not None, trio.current_time())
        self.end_turn()

    def reload(self, read: Callable[[], Config]) -> None:
        """The policy as it is written now, whole or not at all."""
        try:
            config = read()
            if config.policy is None and self.admission.settings is not None:
                raise UserError("there is no [policy] any more; to serve without one, start anew")
            self.audit.open()
        except UserError as error:
            _log.error("nothing was reloaded", reason=str(error))
            return
        self.set_policy(config.policy)
        _asked.info(
            "reloaded", policy="none" if config.policy is None else str(config.policy.policy)
        )

    def on_bug(self, error: Exception) -> None:
        """Say so, with all that helps to mend it; everything else goes on."""
        self.counters.count("server.bug")
        if self.counters["server.bug"] <= BUGS_TOLD:
            _log.error("a bug of qemu-usernat: what it showed in was ended", exc_info=error)

    # -- guests

    def on_connection(self, sock: socket.socket, name: str) -> trio.Event:
        """A QEMU has connected; the event is set when it is gone."""
        link = Link(sock, name, self.router.switch, self.poller, self.counters, self._on_close)
        self.links[link] = trio.Event()
        _log.info("guest connected", link=name)
        return self.links[link]

    def _on_close(self, link: Link, reason: str) -> None:
        _log.info("guest disconnected", link=link.port.name, reason=reason)
        self.router.on_link_down(link.port, trio.current_time())
        self.links.pop(link).set()

    # -- turns

    def turn(self) -> bool:
        """Serve every socket that is ready, and every deadline; True if any socket was."""
        ready = self.poller.wait(self.patience)
        now = trio.current_time()
        self.poller.dispatch(ready, now)
        if self.router.deadline() <= now:
            self.router.on_deadline(now)
        if self.audit.deadline() <= now:
            self.audit.on_deadline(now)
        self.router.end_turn(now)
        return bool(ready)

    def end_turn(self) -> None:
        """What a world did to flows and mappings by itself, and not through the poller, is paid."""
        self.router.end_turn(trio.current_time())
        self._set_alarm()

    async def serve_sockets(self) -> None:
        """Turn after turn, for ever."""
        descriptor = self.poller.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            until = trio.current_time() + TURNS_TIME
            while self.turn() and trio.current_time() < until:
                pass
            self._set_alarm()

    async def serve_deadlines(self) -> None:
        """Wake the router at its earliest deadline, for ever."""
        while True:
            with trio.CancelScope() as self._alarm:
                self._alarm.deadline = self._deadline()
                await trio.sleep_forever()
            self.turn()

    def _set_alarm(self) -> None:
        # A later deadline is not chased: the alarm rings early, once, and finds nothing due.
        deadline = self._deadline()
        if deadline < self._alarm.deadline:
            self._alarm.deadline = deadline

    def _deadline(self) -> float:
        return min(self.router.deadline(), self.audit.deadline())

    def report(self) -> None:
        """Log what there is now, and all that was counted."""
        live = Counter(
            f"flows.{sleeper.guest_state.value}"
            for sleeper in self.router.alarms  # every flow and mapping has a deadline
            if isinstance(sleeper, TcpFlow)
        )
        router = self.router
        _asked.info(
            "report",
            links=len(self.links),
            mappings=len(router.datagrams.mappings),
            pings=len(router.pings.all()),
            **live,
            **self.counters,
        )

    def close(self) -> None:
        """Give every descriptor back; guests see their link go down."""
        for link in tuple(self.links):
            link.close("the server ends")
        self.router.close()
        self.audit.close()
        self.world.close()
        self.poller.close()


async def serve(
    config: Config,
    on_ready: Callable[[Sequence[Endpoint]], None],
    read: Callable[[], Config] | None = None,
) -> None:
    """Run the network of `config` until SIGTERM or SIGINT, and report at each SIGUSR1.

    `on_ready` is called once, with where we listen, when everything listens. UserError where
    something cannot. At SIGHUP the policy that `read` gives replaces the one there was, and the
    audit's file is opened again; a mistake is told, and changes nothing. Without `read` it ends.
    """
    raise_descriptor_limit()
    with trio.open_signal_receiver(*signals.ANSWERED) as received, signals.answered():
        server = Server(config, PATIENCE, audit=Audit(config.audit))
        leases = LeaseFile(config.lease_file, server.router.dhcp) if config.lease_file else None
        listeners: list[Listener] = []
        try:
            server.audit.open()
            if config.network.boot.folder is not None:
                Folder(config.network.boot.folder).check(config.network.boot.names)
            if leases is not None:
                leases.open(trio.current_time())
            listeners.extend(Listener.open(endpoint, server.counters) for endpoint in config.listen)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve_sockets)
                nursery.start_soon(server.serve_deadlines)
                if leases is not None:
                    nursery.start_soon(leases.keep)
                for listener in listeners:
                    nursery.start_soon(listener.accept_forever, server.on_connection)
                for endpoint in config.connect:
                    nursery.start_soon(
                        connect_forever, endpoint, server.on_connection, server.counters
                    )
                for complaint in server.world.complaints():
                    _log.warning(complaint)
                on_ready([listener.endpoint for listener in listeners])
                async for number in received:
                    if number == signals.REPORT:
                        server.report()
                    elif number == signals.RELOAD and read is not None:
                        server.reload(read)
                    else:
                        break
                nursery.cancel_scope.cancel()
        finally:
            for listener in listeners:
                listener.close()
            if leases is not None:
                leases.close(trio.current_time())
            server.close()
    _log.debug("ended", **server.counters)


def _implicit_policy(network: Network) -> NetworkPolicy:
    """Without a policy: all but the floor, and of that the host's loopback where it was named."""
    policy = NetworkPolicy.allow_all()
    return policy.allow_ip(str(network.gateway)) if network.host_loopback else policy


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: each flow of a guest needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
