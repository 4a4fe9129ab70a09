"""Whether what a guest asks of a host is what the test has defined there: names and paths.

An address alone says little of whom a guest means: behind one that is defined it may call any name.
"""

from collections.abc import Callable, Collection

import trio
from attrs import define

from qemu_usernat.testing.internet.records import Connection, Unexpected

GATEWAY_STANDS_FOR = "127.0.0.1"
"""A host at this address is called by the gateway's address and names."""


@define(eq=False)
class Watch:
    """Of one host."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]
    addresses_of: Callable[[str], Collection[str]]
    """Of a name, as DNS says it."""
    unexpected: list[Unexpected]

    def on_name(self, protocol: str, name: str, record: Connection) -> None:
        """A guest calls this host `name`; noted if that is not it."""
        known = {each.lower().rstrip(".") for each in (*self.names, *self.addresses)}
        if (
            name.lower().rstrip(".") not in known
            and GATEWAY_STANDS_FOR not in self.addresses
            and not set(self.addresses_of(name)) & set(self.addresses)
        ):
            self._note(protocol, name, None, record)

    def on_missing(self, scheme: str, path: str, record: Connection) -> None:
        """A guest asks for a path that is not there."""
        self._note(scheme, self.names[0] if self.names else None, path, record)

    def _note(self, protocol: str, name: str | None, path: str | None, record: Connection) -> None:
        self.unexpected.append(
            Unexpected(
                protocol,
                record.address,
                record.port,
                name,
                record.guest,
                record.source,
                trio.current_time(),
                path,
            )
        )
