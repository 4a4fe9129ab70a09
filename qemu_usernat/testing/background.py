"""A trio loop in a thread of its own: for tests that are plain functions, and for what outlives
the trio loop of a single test.

It owns the thread, and what is held open in it; what that is, is the caller's affair.

A caller may go before the answer comes: by Ctrl-C, or by a time limit that raises in its thread.
What it has called is cancelled then. So everything that runs in the loop is a task of its one
nursery, and is cancelled at the loop's end, whether or not anybody knows of it.
"""

import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

import trio
from attrs import define, field

CHECK_TIME = 0.5  # seconds after which it is looked whether the loop still runs
END_TIME = 10.0  # seconds for what is held to end in order, and for the rest to be cancelled

P = ParamSpec("P")
T = TypeVar("T")

__tracebackhide__ = (
    True  # from pytest's reports: how a call gets into the loop tells nobody anything
)


class LoopEnded(Exception):  # noqa: N818  # reads as what happened
    """The background loop has ended; an error of what it held, if there was one, is the cause."""


@define(eq=False)
class Held(Generic[T]):
    """An asynchronous context manager that is open in the loop."""

    manager: AbstractAsyncContextManager[T]
    _released: trio.Event = field(factory=trio.Event)
    _ended: trio.Event = field(factory=trio.Event)
    _error: BaseException | None = None

    async def run(self, task_status: trio.TaskStatus[T]) -> None:
        """In the loop: enter, wait for `release`, leave. An error before that ends the loop."""
        try:
            async with self.manager as value:
                task_status.started(value)
                await self._released.wait()
        except Exception as error:
            if not self._released.is_set():
                raise
            self._error = error
        finally:
            self._ended.set()

    def abandon(self) -> None:
        """In the loop: leave it without waiting for that, should it have been entered."""
        self._released.set()

    async def release(self) -> None:
        """In the loop: leave the context, and raise what that raises. Once is enough."""
        self._released.set()
        await self._ended.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error


@define(eq=False)
class _Call(Generic[T]):
    """A function that runs in the loop for somebody outside."""

    function: Callable[[], Awaitable[T]]
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    result: Future[T] = field(factory=Future)
    """Cancelled, where the loop or the caller has gone before it was there."""

    def start(self, nursery: trio.Nursery) -> None:
        """In the loop."""
        try:
            nursery.start_soon(self.run)
        except RuntimeError:  # it has ended in this very moment
            self.result.cancel()

    async def run(self) -> None:
        """In the loop."""
        try:
            with self.scope:
                self.result.set_result(await self.function())
        except trio.Cancelled:
            raise
        except BaseException as error:
            self.result.set_exception(error)
        finally:
            self.result.cancel()  # which does nothing to one that is there


@define(eq=False)
class BackgroundLoop:
    """``with BackgroundLoop() as loop: loop.call(trio.sleep, 1)``.

    At its end whatever is still held is released, the latest first.
    """

    _token: trio.lowlevel.TrioToken = field(init=False)
    _nursery: trio.Nursery = field(init=False)
    _end: trio.Event = field(init=False)
    _held: list[Held[Any]] = field(factory=list, init=False)
    _thread: threading.Thread = field(init=False)
    _error: BaseException | None = field(default=None, init=False)

    def __enter__(self) -> "BackgroundLoop":
        ready = threading.Event()
        # A daemon: Python does not wait for it where the end was interrupted, or has failed.
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="usernat loop", daemon=True
        )
        self._thread.start()
        ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._end.set)
        self._thread.join(2 * END_TIME)
        if error is not None:
            return
        if self._thread.is_alive():
            raise TimeoutError(
                f"the background loop has not ended within {2 * END_TIME:g} s; it is {self._at()}"
            )
        if self._error is not None:
            raise self._error

    def _at(self) -> str:
        """Where its thread is: most likely in something that waits, and lets nothing else run."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "at\n" + "".join(traceback.format_stack(frame)[-4:]) if frame else "gone"

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            self._token = trio.lowlevel.current_trio_token()
            self._end = trio.Event()
            async with trio.open_nursery() as self._nursery:
                ready.set()
                await self._end.wait()
                with trio.move_on_after(END_TIME):
                    while self._held:
                        await self._held.pop().release()
                self._nursery.cancel_scope.cancel()

        try:
            trio.run(main)
        except BaseException as error:  # raised where the loop ends
            self._error = _alone(error)
        finally:
            ready.set()

    def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in the loop; returns, or raises, what it does.

        LoopEnded if the loop has ended, or ends before that. What interrupts the caller cancels
        the function.
        """
        if _in_trio():
            raise RuntimeError("this call waits, and would hold up the trio loop that it is in")
        call = self._begin(function, *args, **kwargs)
        try:
            return call.result.result()
        except CancelledError:
            self._thread.join(END_TIME)  # the reason is known when it is gone
            raise LoopEnded("the background loop has ended") from self._error
        except BaseException as error:
            if call.result.done():
                error.__traceback__ = _within_call(error.__traceback__)
            else:
                self._cancel(call)
                with suppress(CancelledError, TimeoutError):
                    call.result.exception(END_TIME)
            raise

    def _begin(
        self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> _Call[T]:
        call = _Call(partial(function, *args, **kwargs))
        try:
            self._token.run_sync_soon(lambda: call.start(self._nursery))
        except trio.RunFinishedError:
            call.result.cancel()
        return call

    def _cancel(self, call: _Call[Any]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call.scope.cancel)

    def call_sync(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the loop, as one that needs it there; also from another trio loop."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function(*args, **kwargs))
            except BaseException as error:
                result.set_exception(error)

        try:
            self._token.run_sync_soon(run)
        except trio.RunFinishedError:
            self._thread.join()
            raise LoopEnded("the background loop has ended") from self._error
        while self._thread.is_alive():
            with suppress(TimeoutError):
                return result.result(CHECK_TIME)
        if result.done():
            return result.result()
        raise LoopEnded("the background loop has ended") from self._error

    async def bridge(
        self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`call` for a task in another trio loop, which goes on meanwhile; it may be cancelled."""
        here, done = trio.lowlevel.current_trio_token(), trio.Event()

        def tell(_: Future[T]) -> None:
            with suppress(trio.RunFinishedError):
                here.run_sync_soon(done.set)

        call = self._begin(function, *args, **kwargs)
        call.result.add_done_callback(tell)
        try:
            await done.wait()
        except trio.Cancelled:
            self._cancel(call)
            with trio.CancelScope(shield=True):
                await done.wait()
            raise
        try:
            return call.result.result()
        except CancelledError:
            await trio.to_thread.run_sync(self._thread.join, END_TIME)
            raise LoopEnded("the background loop has ended") from self._error

    def hold(self, manager: AbstractAsyncContextManager[T]) -> tuple[T, Callable[[], None]]:
        """Enter `manager` in the loop: what it gives, and what is to be called to leave it."""
        value, held = self.call(self.begin, manager)
        return value, lambda: self.call(self.end, held)

    async def begin(self, manager: AbstractAsyncContextManager[T]) -> tuple[T, Held[T]]:
        """In the loop: enter `manager`; what it gives, and the handle for `end`."""
        held = Held(manager)
        try:
            value: T = await self._nursery.start(held.run)
        except trio.Cancelled:
            held.abandon()
            raise
        self._held.append(held)
        return value, held

    async def end(self, held: Held[T]) -> None:
        """In the loop: leave it. Once is enough."""
        if held in self._held:
            self._held.remove(held)
        await held.release()


def _alone(error: BaseException) -> BaseException:
    """What is in a group of one: a task that holds something adds a group by itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _within_call(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from where a call runs in the loop: without the way there."""
    inner = trace
    while inner is not None and inner.tb_frame.f_code is not _Call.run.__code__:
        inner = inner.tb_next
    return inner or trace


def _in_trio() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
