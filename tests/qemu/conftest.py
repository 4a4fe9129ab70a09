"""One real guest for all tests of this folder: it takes seconds to boot, and each test leaves it
as it was."""

from collections.abc import Iterator

import pytest

from qemu_usernat.testing import GuestImage
from qemu_usernat.testing.background import BackgroundLoop
from tests.qemu.room import Guest, living_guest


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The guest's kernel and initramfs, built if they are not there yet."""
    return GuestImage.build()


@pytest.fixture(scope="session")
def guest(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The guest of the whole session."""
    folder = tmp_path_factory.mktemp("guest")
    with BackgroundLoop() as loop:
        parts, _ = loop.hold(living_guest(image, folder))
        yield Guest(*parts, loop)
