"""`Internet`: everything behind the gateway, defined by a test and in the test's own process.

There are no sockets: what a guest sends to the world arrives at handlers of the test, at the times
that the test has set. What nobody has defined is refused at once, and noted in `unexpected`.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, ip_address
from ssl import SSLContext

import trio
import trustme

from qemu_usernat.policy.groups import is_martian
from qemu_usernat.primitives.addresses import (
    is_loopback,
    is_multicast_or_broadcast,
    is_unspecified_network,
    parse_address,
)
from qemu_usernat.server import Server
from qemu_usernat.testing.internet.hosts import InternetHost
from qemu_usernat.testing.internet.name_server import NameServer
from qemu_usernat.testing.internet.names import Names, parse_name
from qemu_usernat.testing.internet.records import DnsQuery, HandlerFailure, Unexpected
from qemu_usernat.testing.internet.stage import Stage
from qemu_usernat.testing.internet.watch import Watch
from qemu_usernat.testing.internet.web import server_context
from qemu_usernat.testing.internet.world import InternetWorld

LISTED_MAXIMUM = 50
"""Lines in one message about what was unexpected."""

FREE_ADDRESSES = IPv4Network("198.18.0.0/15")
"""Of hosts that were given none: for networks of tests alone (RFC 2544, appendix C.2.2), and apart
from the three that documents use, as tests write those by hand."""


class Internet:
    """The hermetic internet of a test.

    ```python
    internet = Internet(seed=1)
    internet.host("example.com", "203.0.113.10").http("hello")
    async with internet.running():
        server = Server(config, make_world=internet.make_world)
        ...
    internet.assert_nothing_unexpected()
    ```

    It may be given to several servers, one after the other or at the same time; what is defined
    later counts from then on.
    """

    def __init__(self, seed: int = 0, authority: trustme.CA | None = None) -> None:
        """`seed` decides all that is left to chance: what is lost. `authority` signs certificates;
        without it there is a new one. `kept_authority` gives one for all tests of a machine."""
        unexpected: list[Unexpected] = []
        self._seed = seed
        self._stage = Stage(Names(unexpected), unexpected=unexpected)
        self._hosts: list[InternetHost] = []
        self._free_addresses: Iterator[IPv4Address] = FREE_ADDRESSES.hosts()
        self._authority = authority

    def __repr__(self) -> str:
        return f"<Internet of {self._listed()}; {len(self.unexpected)} unexpected>"

    def _listed(self) -> str:
        hosts = (f"{host} ({', '.join(host.addresses)})" for host in self._hosts)
        return ", ".join(hosts) or "no host"

    # -- defining

    def host(self, name: str | None, *addresses: str, aliases: Iterable[str] = ()) -> InternetHost:
        """A new host. Its names say its addresses, and its addresses say `name`.

        Where a test does not care, a name is enough: the host gets an address of its own. It
        answers pings; every other service has to be defined. `aliases` are further names.
        """
        names = ((name,) if name is not None else ()) + tuple(aliases)
        for each in names:
            parse_name(each)
        if name is not None and any(_same(name, host.name) for host in self._hosts):
            raise ValueError(
                f'name {name!r} is taken: internet["{name}"] is that host; for the name to lead '
                f'somewhere else, internet.dns("{name}", "A", address)'
            )
        if not addresses:
            addresses = (self._free_address(),)
        packed = [self._checked_address(address) for address in addresses]
        host = InternetHost(
            name,
            addresses,
            aliases=names if name is None else names[1:],
            issue=self._issue,
            watch=Watch(names, addresses, self._stage.names.addresses_of, self._stage.unexpected),
            name_server=NameServer(self._stage.names, self._stage.guests),
            seed=f"{self._seed}",
        )
        self._hosts.append(host)
        self._stage.hosts.update(dict.fromkeys(packed, host))
        self._stage.names.define_address(names, addresses)
        return host

    def _free_address(self) -> str:
        return next(
            str(address)
            for address in self._free_addresses
            if address.packed not in self._stage.hosts
            and not any(address in subnet for subnet in self._stage.subnets)
        )

    def _checked_address(self, address: str) -> bytes:
        allowed = 'a unicast IPv4 address, like "203.0.113.10"'
        try:
            packed = parse_address(address)
        except ValueError as error:
            raise ValueError(f"address is {address!r}; allowed: {allowed}") from error
        if len(packed) != 4:
            raise ValueError(f"address is {address!r}: IPv6 is not carried yet; allowed: {allowed}")
        loopback = is_loopback(packed) and address != "127.0.0.1"  # which the gateway may stand for
        if (
            loopback
            or is_multicast_or_broadcast(packed)
            or is_unspecified_network(packed)
            or packed[0] >= 240
        ):
            raise ValueError(f"address is {address!r}; allowed: {allowed}")
        if packed in self._stage.hosts:
            raise ValueError(f'address {address} is taken: internet["{address}"] is that host')
        for subnet in self._stage.subnets:
            if IPv4Address(packed) in subnet:
                raise ValueError(
                    f"address {address} is in the guests' own network {subnet}, where no host is; "
                    f"allowed: an address outside of it"
                )
        return packed

    def dns(self, name: str, record_type: str, *values: str) -> None:
        """`name` has records of this type, written as in a zone file, and no others of it:
        `internet.dns("example.com", "MX", "10 mail.example.com")`."""
        self._stage.names.define(name, record_type, values)

    def dns_fails(self, name: str, rcode: str = "SERVFAIL") -> None:
        """Questions for `name`, of any type, are answered by that response code."""
        self._stage.names.fail(name, rcode)

    def dns_is_silent(self, name: str) -> None:
        """Questions for `name` are not answered; the gateway tells its guest SERVFAIL when it has
        waited for four seconds, and asked twice."""
        self._stage.names.fail(name, None)

    @property
    def dns_latency(self) -> float:
        """Seconds until a question is answered."""
        return self._stage.dns_latency

    @dns_latency.setter
    def dns_latency(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"dns_latency is {seconds!r}; allowed: seconds, 0 or more")
        self._stage.dns_latency = seconds

    # -- certificates

    @property
    def authority(self) -> trustme.CA:
        """Who has signed the certificates of all hosts; made when it is first asked for."""
        if self._authority is None:
            self._authority = trustme.CA(organization_name="qemu_usernat testing")
        return self._authority

    @property
    def ca_pem(self) -> bytes:
        """The authority's certificate, for the guest to trust."""
        return self.authority.cert_pem.bytes()

    def _issue(self, host: InternetHost) -> SSLContext:
        names = ((host.name,) if host.name is not None else ()) + host.aliases
        return server_context(self.authority.issue_cert(*names, *host.addresses))

    # -- looking

    def __getitem__(self, name_or_address: str) -> InternetHost:
        """The host of that name or address; KeyError that lists what there is."""
        for host in self._hosts:
            names = (host.name, *host.aliases)
            if name_or_address in host.addresses or any(
                _same(name_or_address, name) for name in names
            ):
                return host
        raise KeyError(f"no host {name_or_address!r}; there is: {self._listed()}")

    @property
    def hosts(self) -> tuple[InternetHost, ...]:
        """All that were defined."""
        return tuple(self._hosts)

    @property
    def dns_queries(self) -> list[DnsQuery]:
        """What guests have asked for, beside the gateway's own names; the oldest first."""
        return self._stage.names.queries

    @property
    def unexpected(self) -> list[Unexpected]:
        """What guests have reached for and nobody has defined, the oldest first. A test that
        expects some of it takes it out."""
        return self._stage.unexpected

    @property
    def unusual(self) -> list[Unexpected]:
        """What guests have said to everybody and nobody has answered, as systems do by themselves:
        broadcasts, multicast as that of mDNS, IPv6 looking for routers. No test fails for it."""
        return self._stage.unusual

    @property
    def errors(self) -> list[HandlerFailure]:
        """Handlers that have raised. A test that expects some of it takes it out."""
        return self._stage.failures

    def assert_nothing_unexpected(self) -> None:
        """AssertionError that lists what guests have reached for, and how each is defined."""
        __tracebackhide__ = True
        counted = Counter((str(note), self._remedy(note)) for note in self.unexpected)
        if not counted:
            return
        lines = [
            f"  {note}{f' ({count} times)' if count > 1 else ''}\n      {remedy}"
            for (note, remedy), count in counted.items()
        ]
        more = len(lines) - LISTED_MAXIMUM
        lines[LISTED_MAXIMUM:] = [f"  and {more} more"] if more > 0 else []
        raise AssertionError("a guest has reached for what is not defined:\n" + "\n".join(lines))

    def _remedy(self, note: Unexpected) -> str:
        if note.protocol != "dns" and not self._may_be_host(note):
            return "no host of an internet can be there"
        if note.destination in self._stage.gateways:
            host = f'internet.host(None, "127.0.0.1").{note.protocol}({note.port}, handler)'
            return f"define it: NetworkSettings(host_loopback=True), and {host}"
        defined = any(note.destination in host.addresses for host in self._hosts)
        return f"define it: {note.remedy(defined)}"

    def _may_be_host(self, note: Unexpected) -> bool:
        address = ip_address(note.destination)
        is_near = any(address in subnet for subnet in self._stage.subnets)
        return (
            note.protocol in ("tcp", "udp", "ping", "http", "https", "tls")
            and address.version == 4
            and not is_martian(address.packed)
            and (not is_near or (note.port is not None and str(address) in self._stage.gateways))
        )

    def assert_no_errors(self) -> None:
        """AssertionError that lists the handlers that have raised; its cause has the tracebacks."""
        __tracebackhide__ = True
        if self.errors:
            lines = [f"a handler has failed: {self.errors[0].said}", *map(str, self.errors)]
            message = "\n  ".join(lines)  # the first line is all that pytest's summary shows
            causes = ExceptionGroup("in handlers", [each.error for each in self.errors])
            raise AssertionError(message) from causes

    # -- running

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Internet"]:
        """Play, until the block ends; then handlers that are still at work are cancelled.

        Leaving it is `assert_no_errors`: a test does not pass over a broken handler. If the block
        itself raises, that goes on, with a note of the handlers that have failed.
        """
        if self._stage.nursery is not None:
            raise RuntimeError("this internet is running already")
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stage.timeline.run)
            self._stage.nursery = nursery
            try:
                yield self
            except BaseException as error:  # raised again below, and not wrapped by the nursery
                failure = error
            finally:
                self._stage.nursery = None
            nursery.cancel_scope.cancel()
        if failure is None:
            self.assert_no_errors()
        else:
            for each in self.errors:
                failure.add_note(f"a handler of the internet has failed, too: {each}")
            raise failure

    def make_world(self, server: Server) -> InternetWorld:
        """For `Server(config, make_world=internet.make_world)`: what is behind its gateway."""
        subnet = server.config.network.subnet
        for host in self._hosts:
            for address in host.addresses:
                if ip_address(address) in subnet:
                    raise ValueError(
                        f"host {host} has the address {address}, which is in the guests' own "
                        f"network {subnet}; allowed: an address outside of it"
                    )
        self._stage.subnets.add(subnet)
        self._stage.gateways.add(str(server.config.network.gateway))
        return InternetWorld(self._stage, server)


def _same(name: str, other: str | None) -> bool:
    """Whether two names are one (RFC 4343)."""
    return other is not None and name.lower().rstrip(".") == other.lower().rstrip(".")
