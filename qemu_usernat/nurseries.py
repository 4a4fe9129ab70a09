"""A nursery for helpers behind a block, which does not change how the block fails."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def helpers() -> AsyncIterator[trio.Nursery]:
    """Tasks that end with the block. One error of block and tasks is raised as it is."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        single = group.exceptions[0]
    else:
        return
    raise single
