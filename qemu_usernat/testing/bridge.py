"""What lives in a `BackgroundLoop`, for a test that is a coroutine in a trio loop of its own.

It owns the crossing: a coroutine method of the object is awaited here and runs there, any other
method is called there, and what they return that is of the same kind is bridged again. A test sees
the very interface of the object, so it is typed as that.
"""

import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import wraps
from typing import Any, TypeVar, cast

from qemu_usernat.testing.background import BackgroundLoop, Held

T = TypeVar("T")

_OURS = "qemu_usernat.testing."


def bridged(behind: T, loop: BackgroundLoop) -> T:
    """`behind`, which lives in `loop`, as it is used from another trio loop."""
    return cast(T, _Bridged(behind, loop))


class _Bridged:
    """Stands for an object of another loop."""

    def __init__(self, behind: Any, loop: BackgroundLoop) -> None:
        self._behind = behind
        self._loop = loop
        self._held: Held[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._behind, name)
        if inspect.iscoroutinefunction(value):

            @wraps(value)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return self._crossing(await self._loop.bridge(value, *args, **kwargs))

            return awaited
        if inspect.ismethod(value):

            @wraps(value)
            def called(*args: Any, **kwargs: Any) -> Any:
                return self._crossing(self._loop.call_sync(value, *args, **kwargs))

            return called
        return self._crossing(value)

    def _crossing(self, value: Any) -> Any:
        return bridged(value, self._loop) if _needs_a_loop(type(value)) else value

    def __repr__(self) -> str:
        return repr(self._behind)

    def __bool__(self) -> bool:
        return bool(self._behind)

    def __len__(self) -> int:
        return len(self._behind)

    async def __aenter__(self) -> Any:
        value, self._held = await self._loop.bridge(self._loop.begin, self._behind)
        return self._crossing(value)

    async def __aexit__(self, *exception: object) -> None:
        assert self._held is not None, "entered before"
        await self._loop.bridge(self._loop.end, self._held)

    def __aiter__(self) -> AsyncIterator[Any]:
        return cast(AsyncIterator[Any], self)

    async def __anext__(self) -> Any:
        return await self._loop.bridge(self._behind.__anext__)


def _needs_a_loop(kind: type) -> bool:
    """Whether its values have something to await, and are no plain values."""
    if issubclass(kind, AbstractAsyncContextManager) and not kind.__module__.startswith(_OURS):
        return True  # of `contextlib`
    return kind.__module__.startswith(_OURS) and any(
        inspect.iscoroutinefunction(value)
        for each in kind.__mro__
        for name, value in vars(each).items()
        if not name.startswith("_")
    )
