"""The laboratory as fixtures; without root and a TAP device every kernel test is skipped."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from qemu_usernat.testing.namespace import why_not
from tests.kernel.laboratory import Laboratory, ServerProcess

_MISSING = why_not()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why, once for each test that cannot run here."""
    if _MISSING:
        for item in items:
            if item.get_closest_marker("kernel"):
                item.add_marker(pytest.mark.skip(reason=_MISSING))


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., object]]:
    """One server for each MTU, for all tests: what one test leaves behind, the next must bear."""
    with ExitStack() as ends:

        @cache
        def server(mtu: int) -> ServerProcess:
            return _started(ends, tmp_path_factory.mktemp(f"server-{mtu}"), mtu)

        yield server


@pytest.fixture
def lab(shared_server: Callable[[int], ServerProcess], tmp_path: Path) -> Iterator[Laboratory]:
    """A laboratory for one test."""
    with ExitStack() as ends:

        def own_server(mtu: int, *options: str) -> ServerProcess:
            return _started(ends, tmp_path, mtu, *options)

        yield Laboratory(ends, shared_server, own_server)


def _started(ends: ExitStack, folder: Path, mtu: int, *options: str) -> ServerProcess:
    server = ServerProcess(folder, mtu, options)
    server.start()
    ends.callback(server.end)
    return server
