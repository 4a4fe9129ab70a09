"""One network as it runs: its router, the world behind it, its links, and turns that serve them.

Links and host sockets share one poller, and one task serves it: a turn needs no queue
between tasks, and waking trio costs once a turn, not once a socket. A second task sleeps
until the router's next deadline. Who listens, and when all ends, is `app`'s affair.
"""

import secrets
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import dns.name
import structlog
import trio
from attrs import define, evolve, field

from qemu_usernat.admission import Admission
from qemu_usernat.config.configuration import Config, groups_of, implicit_policy
from qemu_usernat.config.publish import Publication, parse_publication
from qemu_usernat.gateway.dns import Asker, DnsForwarder, Upstream
from qemu_usernat.gateway.dns_cache import DnsCache
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.host.chance import Chance
from qemu_usernat.host.folder import Folder
from qemu_usernat.host.publish import Publisher
from qemu_usernat.host.upstream import AnswerCallback
from qemu_usernat.host.world import SystemWorld
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.observe import Audit
from qemu_usernat.policy.redirects import Redirects
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.policy.tables import Network as IpNetwork
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import Address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import MS
from qemu_usernat.qemu.joining import Joining
from qemu_usernat.qemu.link import Link
from qemu_usernat.router import HostEdge, Router

TURNS_TIME = 5 * MS
"""How long turns may follow each other before the other tasks get theirs, where these are no other
network's."""

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
    return SystemWorld(server.poller, server.counters, server.touch, server.label, resolvers)


@define(eq=False)
class Server:
    """One network and its sockets, running inside a trio nursery."""

    config: Config
    patience: float = 0.0
    """Seconds that this task may keep the others waiting for the next turn: zero where they work
    for the guest, too, as in a test."""
    turns_time: float = TURNS_TIME
    make_world: Callable[["Server"], World] = system_world
    counters: Counters = field(factory=Counters)
    poller: Poller = field(init=False)
    router: Router = field(init=False)
    audit: Audit = field(factory=Audit)
    """What is told of verdicts."""
    admission: Admission = field(init=False)
    links: dict[Link, trio.Event] = field(factory=dict)
    joining: Joining = field(init=False)
    """Links to other servers of the segment."""
    world: World = field(init=False)
    _publisher: Publisher = field(init=False)
    _alarm: trio.CancelScope = field(factory=trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        network = self.config.network
        self.poller = Poller(self.on_bug, alone=bool(self.patience))
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
            implicit=implicit_policy(network),
            redirects=Redirects(network.redirects),
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
        router = self.router
        self.joining = Joining(
            router.joins,
            self.poller,
            self.counters,
            router.on_join_down,
            self._set_alarm,
            self.label,
        )
        self._publisher = Publisher(
            router.arrivals, router.visits, self.poller, router.touch, self.counters, self.label
        )

    def touch(self, flow: TcpFlow) -> None:
        """Something happened to `flow`: flush it at the end of the turn."""
        self.router.touch(flow)

    def set_policy(self, settings: PolicySettings | None) -> None:
        """Another policy from this moment on, or none; flows that it does not allow any more are
        reset, the others notice nothing."""
        self.admission.replace(settings)
        self.router.on_policy(settings is not None, trio.current_time())
        self.end_turn()

    @property
    def label(self) -> dict[str, str]:
        """What the log says with each line, so that one knows which network it is of."""
        return {"network": self.config.name} if self.config.name else {}

    def on_bug(self, error: Exception) -> None:
        """Say so, with all that helps to mend it; everything else goes on."""
        self.counters.count("server.bug")
        if self.counters["server.bug"] <= BUGS_TOLD:
            _log.error(
                "a bug of qemu-usernat: what it showed in was ended", exc_info=error, **self.label
            )

    # -- guests

    def on_connection(self, sock: socket.socket, name: str) -> trio.Event:
        """A QEMU has connected; the event is set when it is gone."""
        link = Link(sock, name, self.router.switch, self.poller, self.counters, self._on_close)
        self.links[link] = trio.Event()
        _log.info("guest connected", **self.label, link=name)
        return self.links[link]

    def _on_close(self, link: Link, reason: str) -> None:
        _log.info("guest disconnected", **self.label, link=link.port.name, reason=reason)
        self.router.on_link_down(link.port, trio.current_time())
        self.links.pop(link).set()

    # -- published ports

    @property
    def publications(self) -> tuple[Publication, ...]:
        """What is published, each as it is bound."""
        return tuple(self._publisher.published)

    def publish(self, publication: Publication | str) -> Publication:
        """Let the host's world call a port of a guest, as of now: the text is `--publish`'s.

        The same comes back as it is bound, with the port that the system has chosen where none was
        given; its `address` is where a client connects to. UserError says why it cannot be.
        """
        if not isinstance(publication, Publication):
            publication = parse_publication(str(publication))
        self.config.network.check_publication(publication)
        return self._publisher.publish(publication)

    def publish_all(self) -> None:
        """What the configuration says."""
        for publication in self.config.network.publications:
            self.publish(publication)

    def unpublish(self, publication: Publication, *, cut: bool = False) -> None:
        """Take nobody in any more at what `publish` has returned. Connections there are go on; with
        `cut` they are reset, both ways."""
        self._publisher.unpublish(publication, cut)
        self.end_turn()

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
        self._publisher.on_deadline(now)
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
            until = trio.current_time() + self.turns_time
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
        return min(self.router.deadline(), self.audit.deadline(), self._publisher.deadline())

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
            **self.label,
            links=len(self.links),
            joins=len(self.joining.links),
            mappings=len(router.datagrams.mappings),
            pings=len(router.pings.all()),
            published=len(self._publisher.published),
            publish_waiting=len(router.arrivals.waiting),
            visits=len(router.visits.by_key),
            **live,
            **self.counters,
        )

    def close(self) -> None:
        """Give every descriptor back; guests see their link go down."""
        for link in (*self.links, *self.joining.links):
            link.close("the server ends")
        self._publisher.close()
        self.router.close()
        self.audit.close()
        self.world.close()
        self.poller.close()
