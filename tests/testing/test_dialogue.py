"""What is unread, and what is held back of it while it may be an echo, without a terminal."""

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from qemu_usernat.testing.dialogue import QUIET, Dialogue, WaitTimeout


async def test_words_that_begin_like_a_line_are_heard_at_last(autojump_clock: MockClock) -> None:
    """Whoever waits for them has them when the time is over, though no more came after them."""
    ours, guest = memory_stream_pair()
    async with Dialogue(ours) as dialogue:
        await dialogue.send_line("login root")
        await guest.send_all(b"welcome\r\nlogin")
        with pytest.raises(WaitTimeout, match=r"unread: b'welcome.*'\nheld back.*: b'login'"):
            await dialogue.wait_for("never said", timeout=5)
        assert (await dialogue.wait_for("log", timeout=5)).string == b"welcome\r\nlogin"
        await guest.send_all(b": ")
        assert (await dialogue.expect("in: ")).string == b"in: "


async def test_a_prompt_that_begins_like_a_line_is_found_at_last(autojump_clock: MockClock) -> None:
    """It is also what the guest says last."""
    ours, guest = memory_stream_pair()
    async with Dialogue(ours) as dialogue:
        await dialogue.send_line("> text")
        await guest.send_all(b"> ")
        assert (await dialogue.expect(timeout=5)).string == b"> "


async def test_an_echo_that_has_only_begun_is_not_heard(autojump_clock: MockClock) -> None:
    """The time may be over in its middle: its words are no answer then, nor later."""
    ours, guest = memory_stream_pair()
    async with Dialogue(ours) as dialogue, trio.open_nursery() as nursery:
        await dialogue.send_line("echo ready; reboot")
        nursery.start_soon(say_after, 1, guest, b"echo ready; ")
        with pytest.raises(WaitTimeout, match=r"held back.*echo ready; '"):
            await dialogue.wait_for("ready", timeout=1 + QUIET / 2)
        await guest.send_all(b"reboot\r\nready\r\n")
        assert (await dialogue.wait_for("ready")).string == b"ready\r\n"


async def say_after(seconds: float, guest: trio.abc.SendStream, words: bytes) -> None:
    await trio.sleep(seconds)
    await guest.send_all(words)
