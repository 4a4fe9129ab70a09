"""The composition root: what is configured is opened, run, and closed again.

It owns who listens for guests, which signals are answered, and the order in which all ends.
Several networks are as many servers side by side: they share signals and a nursery, and no state.
"""

import resource
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog
import trio
from attrs import define, evolve, field

from qemu_usernat import signals
from qemu_usernat.config.configuration import Config
from qemu_usernat.host.folder import Folder
from qemu_usernat.lease_file import LeaseFile
from qemu_usernat.nurseries import helpers
from qemu_usernat.observe import Audit
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import MS
from qemu_usernat.qemu.listener import Listener, connect_forever
from qemu_usernat.server import TURNS_TIME, Server

PATIENCE = 1 * MS
"""How long a server that has nothing else to do waits for the next turn by itself. Traffic comes
in pairs, question and answer: going through trio between them would double what they cost. Beside
others it does not: they would wait with it."""

_log = structlog.get_logger()

# What a person asks for is told, however little the log is to say by itself.
_asked = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(0))


async def serve(
    configs: Sequence[Config],
    on_ready: Callable[[Sequence[Config]], None],
    read: Callable[[], Sequence[Config]] | None = None,
) -> None:
    """Run the networks of `configs` until SIGTERM or SIGINT, and report at each SIGUSR1.

    `on_ready` is called once, when everything listens, with where that really is. UserError where
    something cannot. At SIGHUP the policies that `read` gives replace those there were, and the
    audit's file is opened again; a mistake is told, and changes nothing. Without `read` it ends.
    """
    raise_descriptor_limit()
    networks: list[_Network] = []
    with trio.open_signal_receiver(*signals.ANSWERED) as received, signals.answered():
        try:
            for config in configs:
                with _naming(config):
                    networks.append(_Network(config, alone=len(configs) == 1))
                    networks[-1].open()
            async with trio.open_nursery() as nursery:
                for network in networks:
                    network.start(nursery)
                for complaint in dict.fromkeys(
                    said for network in networks for said in network.server.world.complaints()
                ):
                    _log.warning(complaint)
                on_ready([network.as_it_is() for network in networks])
                async for number in received:
                    if number == signals.REPORT:
                        for network in networks:
                            network.server.report()
                    elif number == signals.RELOAD and read is not None:
                        _reload(networks, read)
                    else:
                        break
                nursery.cancel_scope.cancel()
        finally:
            for network in networks:
                network.close()
    for network in networks:
        _log.debug("ended", **network.server.label, **network.server.counters)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Server]:
    """A server for the length of an ``async with``, in a trio program: it listens, serves, and
    publishes what `config` says. UserError where something cannot be; what the block raises comes
    out as it is."""
    raise_descriptor_limit()
    network = _Network(config, alone=False)
    try:
        network.open()
        async with helpers() as nursery:
            network.start(nursery)
            yield network.server
    finally:
        network.close()


@define(eq=False)
class _Network:
    """One of them: its server, and who listens for it."""

    config: Config
    alone: bool
    """Whether nobody else waits while it takes turn after turn."""
    server: Server = field(init=False)
    _leases: LeaseFile | None = field(default=None, init=False)
    _listeners: list[Listener] = field(factory=list, init=False)
    _join_listeners: list[Listener] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        config = self.config
        audit = Audit(config.audit, config.name)
        times = (PATIENCE, TURNS_TIME) if self.alone else (0.0, 0.0)
        self.server = Server(config, *times, audit=audit)
        if config.lease_file is not None:
            self._leases = LeaseFile(config.lease_file, self.server.router.dhcp)

    def open(self) -> None:
        """All that may fail: files and sockets. UserError."""
        boot = self.config.network.boot
        self.server.audit.open()
        if boot.folder is not None:
            Folder(boot.folder).check(boot.names)
        if self._leases is not None:
            self._leases.open(trio.current_time())
        self.server.publish_all()
        for endpoint in self.config.listen:
            self._listeners.append(Listener.open(endpoint, self.server.counters))
        for endpoint in self.config.join_listen:
            self._join_listeners.append(Listener.open(endpoint, self.server.counters))

    def start(self, nursery: trio.Nursery) -> None:
        """Serve from now on."""
        server = self.server
        nursery.start_soon(server.serve_sockets)
        nursery.start_soon(server.serve_deadlines)
        if self._leases is not None:
            nursery.start_soon(self._leases.keep)
        for listener in self._listeners:
            nursery.start_soon(listener.accept_forever, server.on_connection)
        for endpoint in self.config.connect:
            nursery.start_soon(connect_forever, endpoint, server.on_connection, server.counters)
        for listener in self._join_listeners:
            nursery.start_soon(listener.accept_forever, server.joining.on_caller)
        for where in self.config.join:
            nursery.start_soon(server.joining.join_forever, where)

    def as_it_is(self) -> Config:
        """The configuration, with where we really listen, and what is published."""
        return evolve(
            self.config,
            listen=tuple(each.endpoint for each in self._listeners),
            join_listen=tuple(each.endpoint for each in self._join_listeners),
            network=evolve(self.config.network, publications=self.server.publications),
        )

    def close(self) -> None:
        """Give everything back; nobody new is let in before that."""
        for listener in (*self._listeners, *self._join_listeners):
            listener.close()
        if self._leases is not None:
            self._leases.close(trio.current_time())
        self.server.close()


def _reload(networks: Sequence[_Network], read: Callable[[], Sequence[Config]]) -> None:
    """The policies as they are written now, all of them or none."""
    servers = [network.server for network in networks]
    try:
        configs = read()
        if [config.name for config in configs] != [server.config.name for server in servers]:
            raise UserError("the networks are not those of before; to serve these, start anew")
        for server, config in zip(servers, configs, strict=True):
            if config.policy is None and server.admission.settings is not None:
                with _naming(config):
                    raise UserError(
                        "there is no [policy] any more; to serve without one, start anew"
                    )
        for server in servers:
            server.audit.open()
    except UserError as error:
        _log.error("nothing was reloaded", reason=str(error))
        return
    for server, config in zip(servers, configs, strict=True):
        server.set_policy(config.policy)
        said = "none" if config.policy is None else str(config.policy.policy)
        _asked.info("reloaded", **server.label, policy=said)


@contextmanager
def _naming(config: Config) -> Iterator[None]:
    """A `UserError` in here says of which network it is."""
    try:
        yield
    except UserError as error:
        if not config.name:
            raise
        raise UserError(f'network "{config.name}": {error}') from error


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: each flow of a guest needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
