"""Work in threads, which can't be stopped."""

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import to_thread

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def to_its_end(call: Callable[[*Args], T], *args: *Args) -> T:
    """As `to_thread.run_sync`, but who is cancelled meanwhile ends only once the thread has.

    Until then it may write, and what it was counted for is still taken.
    """
    running = asyncio.ensure_future(to_thread.run_sync(call, *args))
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait({running})
