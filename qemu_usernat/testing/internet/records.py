"""What the hermetic internet has seen: plain values that a test asserts on.

Addresses are text, as a person writes them; times are trio's clock.
"""

from attrs import define, frozen

Peer = tuple[str, int]
"""Address and port."""


@define
class Connection:
    """A TCP connection, or the datagrams between one port of a guest and one of a host."""

    protocol: str
    """"tcp" or "udp"."""
    guest: str
    """The guest's name."""
    source: Peer
    """Address and port that it comes from."""
    address: str
    """The host's address that the guest has called."""
    port: int
    time: float
    """When it began."""
    received: int = 0
    """Octets that have come from the guest."""
    sent: int = 0
    """Octets that the guest was sent."""
    ended: str | None = None
    """How it ended; None while it goes on."""


@frozen
class Unexpected:
    """Something that a guest reached for and nobody has defined."""

    protocol: str
    """"tcp", "udp", "ping", "dns"; "http" or "https" for a path or a Host that is not the host's,
    "tls" for a server name; "arp" or "ndp" for a look for a neighbour; the number of another."""
    destination: str
    """The address; for "dns" the name that was asked for."""
    port: int | None
    name: str | None
    """The name that is known for the address, or that the guest has said there; for "dns" the type
    of record, if that is known."""
    guest: str
    """The guest's name."""
    source: Peer | None
    """Where it comes from; None for "dns": the gateway asks for its guests. The port of a ping
    is 0."""
    time: float
    path: str | None = None
    """Of a request, where that is what is not defined."""

    @property
    def host(self) -> str:
        """The name that was asked for or looked up, or the address where none was."""
        return self.destination if self.protocol == "dns" else self.name or self.destination

    def __str__(self) -> str:
        if self.protocol == "dns":
            return f"DNS query for {self.destination}{f' ({self.name})' if self.name else ''}"
        where = f"{self.destination}{f' ({self.name})' if self.name else ''}"
        source = f" from {self.source[0]}" if self.source else ""
        if self.protocol == "ping":
            return f"ping of {where}{source}"
        if self.protocol in ("arp", "ndp"):
            return f"{self.protocol.upper()} request for {where}{source}"
        protocol = (
            f"protocol {self.protocol}" if self.protocol.isdecimal() else self.protocol.upper()
        )
        if self.path is not None:
            protocol += f" request for {self.path}"
        port = f" port {self.port}" if self.port is not None else ""
        return f"{protocol} to {where}{port}{source}"

    def remedy(self, host_is_defined: bool) -> str:
        """What a test writes to define it, where a host may be there at all."""
        if self.protocol == "dns":
            if self.name in ("A", None):
                return f'internet.host("{self.destination}")'
            return f'internet.dns("{self.destination}", "{self.name}", ...)'
        if self.path is not None:
            return f'internet["{self.host}"].{self.protocol}({{"{self.path}": ...}}, {self.port})'
        if self.protocol in ("http", "https", "tls"):
            return f'aliases=["{self.name}"], of the host that is there'
        name = f'"{self.name}"' if self.name else None
        host = f'internet.host({name}, "{self.destination}")'
        if host_is_defined:
            host = f'internet["{self.name or self.destination}"]'
        return host if self.protocol == "ping" else f"{host}.{self.protocol}({self.port}, handler)"


@frozen
class DnsQuery:
    """A question that the gateway has passed on for a guest, and what it was told."""

    guest: str
    """The guest's name."""
    name: str
    """In lower case."""
    type: str
    transport: str
    """"udp" or "tcp"."""
    outcome: str
    """A response code, "NOERROR" or "NXDOMAIN", or "no answer"."""
    answers: tuple[str, ...]
    """The data of the records in the answer, as a zone file writes them."""
    time: float


@frozen
class HandlerFailure:
    """A handler of the test's that has raised."""

    where: str
    error: Exception

    @property
    def said(self) -> str:
        """What it has raised."""
        return f"{type(self.error).__name__}: {self.error}"

    def __str__(self) -> str:
        return f"{self.where}: {self.said}"
