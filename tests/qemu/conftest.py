"""One real guest for all tests of this folder.

It takes seconds to boot, so the tests share it, and each leaves it as it was. It lives in a
thread with a trio loop of its own, since pytest-trio gives every test a new one.
"""

import queue
import threading
from collections.abc import Iterator

import pytest
import trio

from qemu_usernat.testing.guest_image import GuestImage
from tests.qemu.room import Guest, living_guest


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The guest's kernel and initramfs, built if they are not there yet."""
    return GuestImage.build()


@pytest.fixture(scope="session")
def guest(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The guest of the whole session."""
    folder = tmp_path_factory.mktemp("guest")
    handed: queue.SimpleQueue[Guest | BaseException] = queue.SimpleQueue()
    done = trio.Event()

    async def live() -> None:
        async with living_guest(image, folder) as guest:
            handed.put(guest)
            await done.wait()

    def thread() -> None:
        try:
            trio.run(live)
        except BaseException as error:
            handed.put(error)

    home = threading.Thread(target=thread, name="guest")
    home.start()
    guest = handed.get()
    if isinstance(guest, BaseException):
        raise guest
    yield guest
    guest.token.run_sync_soon(done.set)
    home.join()
    if not handed.empty() and isinstance(error := handed.get(), BaseException):
        raise error
