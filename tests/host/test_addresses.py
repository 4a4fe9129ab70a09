"""Which addresses are the host's own: what keeps its services from the guests."""

from pathlib import Path

import pytest

from qemu_usernat.host.addresses import FRESH, HostAddresses
from tests.scripted_guest import packed


def test_without_descriptors_the_host_keeps_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that uses all of them up does not make the host's own addresses anybody's."""
    now = [0.0]
    addresses = HostAddresses(clock=lambda: now[0])

    def fails(path: Path, *arguments: object) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_text", fails)
    for _ in range(3):
        now[0] += 2 * FRESH
        assert addresses(packed("127.0.0.1"))
    assert not addresses(packed("203.0.113.9"))


def test_an_address_that_is_new_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second later: a host moves from one network to the next."""
    now = [0.0]
    addresses = HostAddresses(clock=lambda: now[0])
    new = packed("203.0.113.9")
    monkeypatch.setattr("qemu_usernat.host.addresses.read_addresses", lambda: frozenset({new}))
    now[0] += 2 * FRESH
    assert addresses(new)
    assert not addresses(packed("127.0.0.1"))
