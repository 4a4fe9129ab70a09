"""The host's own network, as the router and the name server ask for it: sockets and resolvers.

It owns nothing but the joining: what each socket does stands beside it. Whoever wants another
world behind the gateway, as a test does, gives the server something else of this shape.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import structlog
from attrs import define, field

from qemu_usernat.gateway.dns import Upstream
from qemu_usernat.host import icmp, tcp, udp
from qemu_usernat.host.addresses import HostAddresses
from qemu_usernat.host.error_queue import ErrorReader
from qemu_usernat.host.resolve import SystemResolvers
from qemu_usernat.host.upstream import AnswerCallback, UpstreamAsker
from qemu_usernat.nat.echo import EchoFlow
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.nat.udp import UdpMapping
from qemu_usernat.policy.tables import Network
from qemu_usernat.poller import Poller
from qemu_usernat.primitives.addresses import Address, format_address
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.time import SECOND

_log = structlog.get_logger()

QUIET_TIME = 60 * SECOND
"""Between two lines about one unix socket."""


@define(eq=False)
class SystemWorld:
    """Connections, datagrams and questions by the host's kernel."""

    poller: Poller
    counters: Counters
    touch: Callable[[TcpFlow], None]
    """Something happened to a flow: it is to be flushed at the end of the turn."""
    label: Mapping[str, str] = field(factory=dict)
    """What each line of the log begins with."""
    resolvers: Sequence[Upstream] = ()
    """Those to be asked; the host's own where there are none."""
    public: tuple[Network, ...] = ()
    """Networks that count as public, whatever they are elsewhere."""
    keeps_answers: bool = True
    """Whether what a resolver said may be told to all who ask for it."""
    _asker: UpstreamAsker = field(init=False)
    _system: SystemResolvers = field(factory=SystemResolvers, init=False)
    _addresses: HostAddresses = field(factory=HostAddresses, init=False)
    _errors: ErrorReader = field(init=False)
    _pings: icmp.HostPings = field(init=False)
    _datagrams: udp.UdpSockets = field(init=False)
    _told_at: dict[str, float] = field(factory=dict, init=False)
    """When the log had last that nobody was reached at a unix socket."""

    def __attrs_post_init__(self) -> None:
        self._asker = UpstreamAsker(self.poller, self.counters)
        self._errors = ErrorReader(self._addresses)
        self._pings = icmp.HostPings(self.poller, self.counters, self._errors)
        self._datagrams = udp.UdpSockets(self.poller, self.counters, self._errors)

    # -- for the router: a `HostEdge`

    def dial(self, flow: TcpFlow, address: Address, port: int, ttl: int) -> None:
        """Begin to connect; `flow.dial` is called before this returns. OSError: no descriptor."""
        tcp.dial(flow, address, port, ttl, self.poller, self.touch, self._errors)

    def dial_unix(self, flow: TcpFlow, path: str) -> None:
        """The same, to a unix socket."""
        error = tcp.dial_unix(flow, path, self.poller, self.touch, self._errors)
        now, told_at = flow.opened_at, self._told_at
        if error and now - told_at.get(path, -QUIET_TIME) >= QUIET_TIME:
            told_at[path] = now  # of as many as there are redirects
            _, _, asked, port = flow.key
            _log.info(
                "redirect failed",
                **self.label,
                asked=f"{format_address(asked)}:{port}",
                to=f"unix:{path}",
                why=os.strerror(error),
            )

    def open_udp(self, mapping: UdpMapping) -> None:
        """Set `mapping.host`. OSError: no descriptor."""
        self._datagrams.open(mapping)

    def open_echo(self, flow: EchoFlow) -> None:
        """Set `flow.host`. OSError: the system lets us ping nobody, or no descriptor."""
        self._pings.open(flow)

    def flush(self, now: float) -> None:
        """Send the datagrams that were kept to go together."""
        self._datagrams.flush(now)

    def is_of_host(self, address: Address) -> bool:
        """Whether the host has this address."""
        return self._addresses(address)

    # -- for the name server: an `Asker`, and whom to ask

    def upstreams(self) -> Sequence[Upstream]:
        """The resolvers of the moment."""
        return self.resolvers or self._system()

    def on_answers(self, callback: AnswerCallback) -> None:
        """Whom to tell of answers; to be said before the first question."""
        self._asker.on_answer = callback

    def ask(self, upstream: Upstream, transport: str, message: bytes, token: int) -> bool:
        """Send `message`; False where the system refuses at once."""
        return self._asker.ask(upstream, transport, message, token)

    def forget(self, token: int) -> None:
        """No answer is wanted any more."""
        self._asker.forget(token)

    def complaints(self) -> Sequence[str]:
        """What a person should know of this system."""
        said = icmp.complaint()
        return () if said is None else (said,)

    def close(self) -> None:
        """Forget every question; flows and mappings are their owners' to close."""
        self._asker.close()
