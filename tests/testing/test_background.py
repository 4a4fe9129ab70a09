"""A loop in another thread: calls come back, what is held ends in order, nothing hangs."""

import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from qemu_usernat.testing import background
from qemu_usernat.testing.background import BackgroundLoop, LoopEnded


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    with BackgroundLoop() as loop:
        yield loop


class Diary:
    """What was entered and left, by name."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @asynccontextmanager
    async def room(self, name: str) -> AsyncIterator[str]:
        self.lines.append(f"enter {name}")
        try:
            yield name
        finally:
            self.lines.append(f"leave {name}")


def test_a_call_runs_in_the_loop_and_comes_back(loop: BackgroundLoop) -> None:
    """With arguments and result, in another thread."""

    async def add(one: int, *, other: int) -> tuple[int, threading.Thread]:
        await trio.lowlevel.checkpoint()
        return one + other, threading.current_thread()

    total, thread = loop.call(add, 1, other=2)
    assert total == 3
    assert thread is not threading.current_thread()
    assert loop.call_sync(lambda: trio.current_time() > 0)


def test_an_error_is_the_caller_s(loop: BackgroundLoop) -> None:
    """The loop lives on."""

    async def fails() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        loop.call(fails)
    loop.call(trio.sleep, 0)


def test_what_is_held_stays_open_until_it_is_released(loop: BackgroundLoop) -> None:
    """And is left once."""
    diary = Diary()
    value, release = loop.hold(diary.room("one"))
    assert value == "one"
    assert diary.lines == ["enter one"]
    release()
    assert diary.lines == ["enter one", "leave one"]
    release()
    assert diary.lines == ["enter one", "leave one"]


def test_the_end_leaves_everything_the_latest_first() -> None:
    """A machine is left before the network that it is on."""
    diary = Diary()
    with BackgroundLoop() as loop:
        loop.hold(diary.room("network"))
        loop.hold(diary.room("machine"))
    assert diary.lines == ["enter network", "enter machine", "leave machine", "leave network"]


def test_what_cannot_be_entered_is_the_caller_s_error(loop: BackgroundLoop) -> None:
    """A guest that does not boot, say."""

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ValueError("does not boot")
        yield

    with pytest.raises(ValueError, match="does not boot"):
        loop.hold(broken())
    loop.call(trio.sleep, 0)


def test_what_goes_wrong_while_leaving_is_said_to_whoever_releases(loop: BackgroundLoop) -> None:
    """And only there."""

    @asynccontextmanager
    async def sour() -> AsyncIterator[None]:
        yield
        raise ValueError("was not well")

    _, release = loop.hold(sour())
    with pytest.raises(ValueError, match="was not well"):
        release()
    loop.call(trio.sleep, 0)


def test_what_breaks_while_it_is_held_ends_the_loop() -> None:
    """Whoever waits for an answer gets none, and hears so at once, with the reason."""

    breaks: list[Callable[[], None]] = []

    @asynccontextmanager
    async def fragile() -> AsyncIterator[None]:
        broken = trio.Event()
        breaks.append(broken.set)

        async def crack() -> None:
            await broken.wait()
            raise ValueError("it broke")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(crack)
            yield

    async def wait_for_ever() -> None:
        breaks[0]()
        await trio.sleep_forever()

    loop = BackgroundLoop()
    loop.__enter__()
    loop.hold(fragile())
    with pytest.raises(LoopEnded):
        loop.call(wait_for_ever)
    with pytest.raises(LoopEnded) as ended:
        loop.call(trio.sleep, 0)
    assert "it broke" in str(ended.value.__cause__)
    with pytest.raises(ValueError, match="it broke"):
        loop.__exit__(None, None, None)


async def test_a_task_of_another_loop_waits_without_holding_up_its_own(
    loop: BackgroundLoop,
) -> None:
    """A trio test drives a guest that lives in the background."""
    order: list[str] = []

    async def long(what: str) -> str:
        await trio.sleep(0.05)
        order.append("there")
        return what

    async def meanwhile() -> None:
        await trio.lowlevel.checkpoint()
        order.append("here")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(meanwhile)
        assert await loop.bridge(long, "done") == "done"
    assert order == ["here", "there"]


async def test_an_error_there_is_an_error_here(loop: BackgroundLoop) -> None:
    """As if it were one loop."""

    async def fails() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await loop.bridge(fails)
    await loop.bridge(trio.sleep, 0)


async def test_cancelling_here_cancels_there(loop: BackgroundLoop) -> None:
    """A time limit of the test ends what it waits for."""
    ended: list[str] = []

    async def endless() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    with trio.move_on_after(0.01) as limit:
        await loop.bridge(endless)
    assert limit.cancelled_caught
    assert ended == ["cancelled"]
    await loop.bridge(trio.sleep, 0)


async def test_a_loop_that_has_ended_says_so() -> None:
    """And nobody waits for it."""
    with BackgroundLoop() as loop:
        pass
    with pytest.raises(LoopEnded):
        await loop.bridge(trio.sleep, 0)


class Impatient(BaseException):
    """What a test's time limit raises, in the middle of a call: pytest-timeout does it so."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """A signal, as of Ctrl-C, after that many seconds."""

    def on_alarm(number: int, frame: object) -> None:
        raise Impatient

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.timeout(60)
def test_who_is_interrupted_leaves_nothing_running(loop: BackgroundLoop) -> None:
    """Ctrl-C ends what was called, before anything else is done with it."""
    ended = threading.Event()

    async def endless() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    with pytest.raises(Impatient), time_limit(0.1):
        loop.call(endless)
    assert ended.is_set()
    loop.call(trio.sleep, 0)


@pytest.mark.timeout(60)
def test_a_guest_that_boots_is_gone_when_its_test_is_interrupted() -> None:
    """Nobody knows yet that it is there: it ends all the same, and so does the loop."""
    diary = Diary()

    @asynccontextmanager
    async def boots_for_ever() -> AsyncIterator[None]:
        async with diary.room("machine"):
            await trio.sleep_forever()
            yield

    began = time.monotonic()
    with BackgroundLoop() as loop:
        loop.hold(diary.room("network"))
        with pytest.raises(Impatient), time_limit(0.1):
            loop.hold(boots_for_ever())
        assert diary.lines == ["enter network", "enter machine", "leave machine"]
    assert diary.lines[-1] == "leave network"
    assert time.monotonic() - began < 5


@pytest.mark.timeout(60)
def test_the_end_cancels_what_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of another thread, and what is held and does not end when it is told to."""
    monkeypatch.setattr(background, "END_TIME", 0.2)
    told: list[BaseException] = []

    @asynccontextmanager
    async def stays() -> AsyncIterator[None]:
        yield
        await trio.sleep_forever()

    def wait(loop: BackgroundLoop) -> None:
        try:
            loop.call(trio.sleep_forever)
        except BaseException as error:
            told.append(error)

    with BackgroundLoop() as loop:
        loop.hold(stays())
        caller = threading.Thread(target=wait, args=(loop,), daemon=True)
        caller.start()
    caller.join(5)
    assert [type(error) for error in told] == [LoopEnded]


@pytest.mark.timeout(60)
def test_a_loop_that_cannot_end_says_what_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that blocks, say: the test goes on without it, and is told which."""
    monkeypatch.setattr(background, "END_TIME", 0.2)
    go_on = threading.Event()

    async def handler_that_blocks() -> None:
        go_on.wait()

    with (
        pytest.raises(TimeoutError, match="handler_that_blocks"),
        BackgroundLoop() as loop,
        pytest.raises(Impatient),
        time_limit(0.1),
    ):
        loop.call(handler_that_blocks)
    go_on.set()
    loop._thread.join(5)
    assert not loop._thread.is_alive()


async def test_a_call_from_a_trio_loop_is_refused(loop: BackgroundLoop) -> None:
    """It would hold up the test's own tasks; `bridge` is for them."""
    with pytest.raises(RuntimeError, match="hold up"):
        loop.call(trio.sleep, 0)
