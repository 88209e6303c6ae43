"""Runs work in threads, which can't be stopped."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

from anyio import to_thread

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def to_its_end(call: Callable[[*Args], T], *args: *Args) -> T:
    """Run a call as `to_thread.run_sync` does, but if cancelled, end only once the thread has.

    Until then it may write, and whatever place it took is still taken.
    """
    running = asyncio.ensure_future(to_thread.run_sync(call, *args))
    running.add_done_callback(retrieve)
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait({running})


def retrieve(waiting: "asyncio.Future[Any]") -> None:
    """Keep a failure that nobody waits for any more out of the log; add it as a done callback."""
    if not waiting.cancelled():
        waiting.exception()
