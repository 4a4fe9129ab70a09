"""`VirtualNetwork`: a server of ours inside a test, with the hermetic internet behind it.

It owns the joining. Between each guest and the server is a `Wire`, which a capture sees and faults
bend; behind the server is an `Internet`, and what goes there is recorded. All of it runs in the
test's own trio loop, on its clock.

QEMU's side of a wire stays when the server is stopped, and is taken up when there is one again: a
QEMU before 8.0 would not come back by itself.
"""

import re
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import trio
from attrs import evolve

from qemu_usernat.config import UnixEndpoint
from qemu_usernat.config.configuration import Config
from qemu_usernat.config.network import Network
from qemu_usernat.config.publish import TCP, UDP, Publication, parse_publication
from qemu_usernat.nurseries import helpers
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import PolicySettings
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.qemu.command_lines import guest_mac, netdev_arguments, version_of
from qemu_usernat.server import Server
from qemu_usernat.testing import values
from qemu_usernat.testing.background import Held
from qemu_usernat.testing.capture import Capture
from qemu_usernat.testing.event_log import EventLog
from qemu_usernat.testing.fake_guest import FakeGuest
from qemu_usernat.testing.faults import Faults
from qemu_usernat.testing.folders import kept_or_temporary
from qemu_usernat.testing.guest_image import GuestImage
from qemu_usernat.testing.internet import Internet
from qemu_usernat.testing.internet.records import DnsQuery
from qemu_usernat.testing.observed_server import ObservedServer
from qemu_usernat.testing.recording import RecordingWorld
from qemu_usernat.testing.records import (
    FLOW_FIELDS,
    QUERY_FIELDS,
    VERDICT_FIELDS,
    FlowRecord,
    Records,
    Verdict,
)
from qemu_usernat.testing.virtual_machine import QEMU, VirtualMachine
from qemu_usernat.testing.wire import Wire

FIRST_GUEST = "guest"


class VirtualNetwork:
    """A network for guests, and its whole world, for the length of an ``async with``.

        internet = Internet()
        internet.host("example.com", "203.0.113.10").https("hello")
        async with VirtualNetwork(internet) as network:
            async with network.machine(GuestImage.build(ca=internet.ca_pem)) as machine:
                assert (await machine.console.exec("curl https://example.com/")).text == "hello"
        assert network.flows.where(name="example.com", port=443)

    Without an `internet` there is one in which nothing is. `settings` are the network's, as in a
    configuration; `policy` says what guests may do. Each of `guests` has a wire of its own; the
    first MAC address is QEMU's default one. `seed` decides all that the faults leave to chance.
    `folder` keeps the logs of machines, which are gone with the block without it; `accelerator` is
    theirs where they are not given another one.

    Leaving the block raises what has gone wrong behind the test's back: a handler of the internet
    that raised, a bug in the server.
    """

    folder: Path
    """Where the logs are."""

    def __init__(
        self,
        internet: Internet | None = None,
        settings: Network | None = None,
        policy: NetworkPolicy | PolicySettings | None = None,
        *,
        guests: Sequence[str] = (FIRST_GUEST,),
        seed: int = 0,
        folder: Path | None = None,
        accelerator: str | None = None,
    ) -> None:
        if not guests or len(set(guests)) != len(guests) or not all(map(_is_name, guests)):
            raise ValueError(
                f"guests is {guests!r}; allowed: one or more names that differ, of letters, "
                'digits, "-" and "_"'
            )
        self.internet = Internet(seed) if internet is None else internet
        self._folder = folder
        self._accelerator = accelerator
        whose = {"guest": values.one_of(guests)}
        self.flows: Records[FlowRecord] = Records("flows", {**FLOW_FIELDS, **whose})
        """What guests have sent to the world: connections, datagrams, pings; the oldest first."""
        self.verdicts: Records[Verdict] = Records("verdicts", {**VERDICT_FIELDS, **whose})
        """What the gateway has decided about each."""
        self.capture = Capture()
        """All frames on all wires."""
        self.faults = Faults(seed)
        """What befalls them."""
        self.events = EventLog()
        """What happened, for a person to read."""
        self._config = Config(network=Network() if settings is None else settings)
        self._wires = {
            guest: Wire(guest, self._dial(guest), self.capture, self.faults, server_ends="retry")
            for guest in guests
        }
        self._counters = Counters()
        self._bugs: list[Exception] = []
        self._guests = tuple(guests)
        self._policy = self._settings(policy)
        self._server: Server | None = None
        self._serving: trio.CancelScope
        self._stopped: trio.Event
        self._playing: Held[Internet]
        self._running: AbstractAsyncContextManager[None] | None = None
        self._nursery: trio.Nursery
        self._sockets: Path

    def __repr__(self) -> str:
        state = "running" if self._server is not None else "stopped"
        return f"<VirtualNetwork {self._config.network.subnet}, {state}, {len(self.flows)} flows>"

    async def __aenter__(self) -> "VirtualNetwork":
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._running is not None
        return await self._running.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        with (
            kept_or_temporary(self._folder) as self.folder,
            tempfile.TemporaryDirectory(prefix="usernat-") as sockets,  # a short path: 108 bytes
        ):
            self._sockets = Path(sockets)
            async with helpers() as self._nursery:
                for guest, wire in self._wires.items():
                    await self._nursery.start(wire.listen, self.socket_path(guest))
                await self._begin_world(self.internet)
                await self.start()
                try:
                    yield
                except BaseException as failure:
                    with trio.CancelScope(shield=True):
                        try:
                            await self._end()
                        except Exception as another:
                            failure.add_note(f"the network has failed, too: {another}")
                    raise
                await self._end()

    async def _end(self) -> None:
        await self.stop()
        try:
            await self._playing.release()
        finally:
            self.assert_no_bugs()

    async def _begin_world(self, internet: Internet) -> None:
        self.internet = internet
        self._playing = Held(internet.running())
        await self._nursery.start(self._playing.run)

    # -- guests

    @property
    def guests(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._wires)

    def socket_path(self, guest: str = "") -> Path:
        """Where the QEMU of `guest` is to connect; without a name the first one's."""
        return self._sockets / f"{self._named(guest)}.sock"

    def wire(self, guest: str = "") -> Wire:
        """The wire of `guest`; without a name the first one's."""
        return self._wires[self._named(guest)]

    def netdev_arguments(
        self,
        guest: str = "",
        *,
        qemu: str = QEMU,
        device: str = "virtio-net-pci",
        boot: bool = False,
    ) -> list[str]:
        """The arguments that put a QEMU on the wire of `guest`: ``-netdev … -device …``.

        With `boot` the card's firmware may boot from the network.
        """
        name = self._named(guest)
        arguments = netdev_arguments(
            version_of(qemu),
            UnixEndpoint(str(self.socket_path(name))),
            mac=guest_mac(self.guests.index(name)),
            device=device,
        )
        if not boot and not device.endswith("-device"):  # of virtio-mmio, which have no firmware
            arguments[-1] += ",romfile="
        return arguments

    def machine(
        self, image: GuestImage | None = None, *, guest: str = "", **options: Any
    ) -> VirtualMachine:
        """A guest under QEMU on the wire of `guest`; `options` are those of `VirtualMachine`."""
        name = self._named(guest)
        if "network" not in options:
            options["network"] = self.netdev_arguments(name)
        options.setdefault("folder", self.folder / name)
        options.setdefault("accelerator", self._accelerator)
        return VirtualMachine(image, **options)

    @asynccontextmanager
    async def fake_guest(self, guest: str = "", **options: Any) -> AsyncIterator[FakeGuest]:
        """A guest without QEMU on the wire of `guest`; `options` are `FakeGuest.connect`'s."""
        name = self._named(guest)
        options.setdefault("mac", guest_mac(self.guests.index(name)))
        async with FakeGuest.connect(self.socket_path(name), **options) as fake:
            yield fake

    def disconnect(self, guest: str = "") -> None:
        """Cut the connection of QEMU (8.0 or later comes again by itself; before that, unplug its
        card and plug it in again)."""
        self.events.note(f"{self._named(guest)}: QEMU is disconnected by the test")
        self.wire(guest).disconnect()

    def _named(self, guest: str) -> str:
        if guest and guest not in self._wires:
            raise UserError(f"guest is {guest!r}; allowed: {', '.join(self._wires)}")
        return guest or next(iter(self._wires))

    # -- what was seen

    @property
    def settings(self) -> Network:
        """Addresses, MTU, and the rest of the network's own."""
        return self._config.network

    @property
    def dns_queries(self) -> Records[DnsQuery]:
        """What guests have asked for, beside the gateway's own names; the oldest first."""
        fields = {**QUERY_FIELDS, "guest": values.one_of(self.guests)}
        return Records("DNS queries", fields, self.internet.dns_queries)

    @property
    def counters(self) -> Counters:
        """What all servers of this network have counted until now, by name: docs/counters.md."""
        total = Counters(self._counters)
        if self._server is not None:
            total.update(self._server.counters)
        return total

    def assert_no_bugs(self) -> None:
        """AssertionError if the server has run into a bug of its own; its cause tells of it."""
        if self._bugs:
            raise AssertionError(
                f"the server has run into {len(self._bugs)} bugs of its own; the first: "
                f"{type(self._bugs[0]).__name__}: {self._bugs[0]}"
            ) from ExceptionGroup("in the server", self._bugs)

    def clear(self) -> None:
        """Forget what was recorded, captured and counted; connections stay."""
        self.flows.clear()
        self.verdicts.clear()
        self.capture.clear()
        self.events.clear()
        self.internet.dns_queries.clear()
        self.internet.unexpected.clear()
        self.internet.unusual.clear()
        self._counters.clear()
        if self._server is not None:
            self._server.counters.clear()

    def event_log(self) -> str:
        """What happened, in order, and what was counted: for a person to read."""
        return self.events.told(self.flows, self.internet, self.counters)

    # -- the server

    async def start(self) -> None:
        """Start the server, if it is stopped."""
        if self._server is None:
            self._server = await self._nursery.start(self._serve)
            self.events.note("the server has started")

    async def stop(self) -> None:
        """End the server: connections and leases are forgotten, and its guests hear nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        self._serving.cancel()
        await self._stopped.wait()
        self._counters.update(server.counters)
        self.events.note("the server has stopped")

    async def restart(self) -> None:
        """End it and start it."""
        await self.stop()
        await self.start()

    @property
    def policy(self) -> PolicySettings | None:
        """What guests may do; None where nothing was said."""
        return self._policy

    def set_policy(self, policy: NetworkPolicy | PolicySettings | None) -> None:
        """Another policy, at once; flows that it does not allow are reset."""
        self._policy = self._settings(policy)
        if self._server is not None:
            self._server.set_policy(self._policy)

    def _settings(self, policy: NetworkPolicy | PolicySettings | None) -> PolicySettings | None:
        if isinstance(policy, NetworkPolicy):
            return PolicySettings(policy=policy)
        if policy is None:
            return None
        if not isinstance(policy, PolicySettings):
            raise TypeError(
                f"policy is {policy!r}; allowed: None, a NetworkPolicy for all guests, or "
                "PolicySettings(policy=…, guests={name: …}) with one for each, both of qemu_usernat"
            )
        policy.check_guests(self._guests)
        return policy

    def publish(
        self,
        port: int,
        *,
        guest: str = "",
        protocol: str = "tcp",
        host: tuple[str, int] = ("127.0.0.1", 0),
    ) -> Publication:
        """Let this test, and all programs of this host, call a guest's port while the server runs.

        `guest` is one of `guests`, an address, or a name that was given with DHCP; without it
        whichever is there.
        The `address` of what comes back is where to connect to.
        """
        if protocol not in (TCP, UDP):
            raise UserError(f'protocol is "{protocol}"; allowed: "{TCP}" or "{UDP}"')
        if [type(each) for each in host] != [str, int]:
            raise TypeError(
                f"host is {host!r}; allowed: an address and a port (0 is one that the system "
                'chooses), like ("127.0.0.1", 0)'
            )
        address, host_port = f"[{host[0]}]" if ":" in host[0] else host[0], host[1]
        of_link = guest in self._guests
        where = f"{guest}:{port}" if guest and not of_link else f"{port}"
        asked = parse_publication(f"{protocol}:{address}:{host_port}:{where}")
        published = self._running_server().publish(evolve(asked, guest=guest) if of_link else asked)
        self.events.note(f"published {published}")
        return published

    def unpublish(self, publication: Publication, *, cut: bool = False) -> None:
        """Nobody comes in there any more; with `cut` who has come is reset."""
        self._running_server().unpublish(publication, cut=cut)

    def _running_server(self) -> Server:
        if self._server is None:
            raise UserError("the server is stopped: start() it first")
        return self._server

    async def change_internet(self, internet: Internet) -> None:
        """Another world, and a new server: all connections to the old one are gone.

        Raises what has gone wrong in the handlers of the old one.
        """
        await self.stop()
        try:
            await self._playing.release()
        finally:
            await self._begin_world(internet)
            await self.start()

    async def _serve(self, task_status: trio.TaskStatus[Server]) -> None:
        server = ObservedServer(self._config, make_world=self._make_world, bugs=self._bugs)
        server.set_policy(self._policy)
        self._stopped = trio.Event()
        try:
            with trio.CancelScope() as self._serving:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(server.serve_sockets)
                    nursery.start_soon(server.serve_deadlines)
                    task_status.started(server)
        finally:
            server.close()
            self._stopped.set()

    def _make_world(self, server: Server) -> RecordingWorld:
        world = self.internet.make_world(server)
        return RecordingWorld(
            world,
            self.flows,
            self.verdicts,
            self._name_of,
            lambda address: server.router.link_of(address),  # there is none yet
            world.on_nobody,
        )

    def _name_of(self, address: str) -> str | None:
        for query in reversed(self.internet.dns_queries):
            if address in query.answers:
                return query.name
        return None

    def _dial(self, guest: str) -> Callable[[], socket.socket]:
        def dial() -> socket.socket:
            if self._server is None:
                raise ConnectionRefusedError("the server is stopped")
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self._server.on_connection(theirs, guest)
            self.events.note(f"{guest}: connected")
            return ours

        return dial


def _is_name(guest: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9_-]{1,40}", guest))
