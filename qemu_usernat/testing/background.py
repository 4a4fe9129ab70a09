"""A trio loop in a thread of its own: for tests that are plain functions, and for what outlives
the trio loop of a single test.

It owns the thread, and what is held open in it; what that is, is the caller's affair.
"""

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from types import CodeType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

import trio
from attrs import define, field

CHECK_TIME = 0.5  # seconds after which it is looked whether the loop still runs

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

    async def release(self) -> None:
        """In the loop: leave the context, and raise what that raises. Once is enough."""
        self._released.set()
        await self._ended.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error


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
        self._thread = threading.Thread(target=self._run, args=(ready,), name="usernat loop")
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
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            self._token = trio.lowlevel.current_trio_token()
            self._end = trio.Event()
            async with trio.open_nursery() as self._nursery:
                ready.set()
                await self._end.wait()
                while self._held:
                    await self._held.pop().release()

        try:
            trio.run(main)
        except BaseException as error:  # raised where the loop ends
            self._error = _alone(error)
        finally:
            ready.set()

    def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in the loop; returns, or raises, what it does.

        LoopEnded if the loop has ended, or ends before that.
        """

        async def called() -> T:
            return await function(*args, **kwargs)

        try:
            return trio.from_thread.run(called, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            self._thread.join()  # the reason is known when it is gone
            raise LoopEnded("the background loop has ended") from self._error
        except Exception as error:
            error.__traceback__ = _from(called.__code__, error.__traceback__)
            raise

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
        scope = trio.CancelScope()
        results: list[T] = []
        errors: list[BaseException] = []

        async def run() -> None:
            try:
                with scope:
                    results.append(await function(*args, **kwargs))
            except Exception as error:
                errors.append(error)
            finally:
                with suppress(trio.RunFinishedError):
                    here.run_sync_soon(done.set)

        def start() -> None:
            try:
                self._nursery.start_soon(run)
            except RuntimeError:  # it has ended in this very moment
                here.run_sync_soon(done.set)

        try:
            self._token.run_sync_soon(start)
            await done.wait()
        except trio.RunFinishedError:
            pass
        except trio.Cancelled:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(scope.cancel)
            with trio.CancelScope(shield=True):
                await done.wait()
            raise
        if errors:
            raise errors[0]
        if not results:
            await trio.to_thread.run_sync(self._thread.join)
            raise LoopEnded("the background loop has ended") from self._error
        return results[0]

    def hold(self, manager: AbstractAsyncContextManager[T]) -> tuple[T, Callable[[], None]]:
        """Enter `manager` in the loop: what it gives, and what is to be called to leave it."""
        value, held = self.call(self.begin, manager)
        return value, lambda: self.call(self.end, held)

    async def begin(self, manager: AbstractAsyncContextManager[T]) -> tuple[T, Held[T]]:
        """In the loop: enter `manager`; what it gives, and the handle for `end`."""
        held = Held(manager)
        value: T = await self._nursery.start(held.run)
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


def _from(code: CodeType, trace: TracebackType | None) -> TracebackType | None:
    """A traceback from where `code` runs: without trio's way there."""
    inner = trace
    while inner is not None and inner.tb_frame.f_code is not code:
        inner = inner.tb_next
    return inner or trace
