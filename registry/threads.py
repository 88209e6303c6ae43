"""Runs work in threads, which can't be stopped."""

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import to_thread

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def to_its_end(call: Callable[[*Args], T], *args: *Args) -> T:
    """Run a call as `to_thread.run_sync` does, but if cancelled, end only once the thread has.

    Until then it may write, and whatever place it took is still taken.
    """
    running = asyncio.ensure_future(to_thread.run_sync(call, *args))
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait({running})
