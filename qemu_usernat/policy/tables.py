"""Tables that are asked for an address, or for a name: the cost does not grow with what is in them.

A lookup by address costs one dictionary access for each length of prefix that occurs, at most 33
for IPv4; a lookup by name one for each label.
"""

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeAlias, TypeVar

from attrs import define, field

from qemu_usernat.primitives.addresses import Address

T = TypeVar("T")

Network: TypeAlias = IPv4Network | IPv6Network


@define
class PrefixTable(Generic[T]):
    """Values by network."""

    _networks: dict[int, dict[int, dict[int, list[T]]]] = field(factory=dict)
    """Length of the address in octets → length of the prefix, the longest first → prefix."""

    def add(self, network: Network, value: T) -> None:
        """`value` is found by every address in `network`."""
        lengths = self._networks.setdefault(network.max_prefixlen // 8, {})
        if network.prefixlen not in lengths:
            lengths[network.prefixlen] = {}
            ordered = sorted(lengths.items(), reverse=True)
            lengths.clear()
            lengths.update(ordered)
        prefix = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        lengths[network.prefixlen].setdefault(prefix, []).append(value)

    def find(self, address: Address) -> Iterator[T]:
        """The values of the networks that it is in, those of the smallest network first."""
        number, bits = int.from_bytes(address, "big"), 8 * len(address)
        for length, prefixes in self._networks.get(len(address), {}).items():
            yield from prefixes.get(number >> (bits - length), ())


@define
class NameTable(Generic[T]):
    """Values by name, and by what a name ends in."""

    _names: dict[str, list[T]] = field(factory=dict)
    _suffixes: dict[str, list[T]] = field(factory=dict)

    def add(self, name: str, value: T, wildcard: bool = False) -> None:
        """`value` is found by `name`; as a wildcard, by every longer name that ends in it."""
        (self._suffixes if wildcard else self._names).setdefault(name, []).append(value)

    def find(self, name: str) -> Iterator[T]:
        """The values of this very name, then those of what it ends in, the longest first."""
        yield from self._names.get(name, ())
        _, dot, suffix = name.partition(".")
        while dot:
            yield from self._suffixes.get(suffix, ())
            _, dot, suffix = suffix.partition(".")
