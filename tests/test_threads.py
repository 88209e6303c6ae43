"""Work in threads that whoever asked for it has left."""

import asyncio
import gc
import threading
from typing import Any

import pytest

from registry.threads import to_its_end


async def left(until: threading.Event) -> list[dict[str, Any]]:
    """What the loop would log of a call whose caller leaves, and which fails after that."""
    logged, begun = list[dict[str, Any]](), threading.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: logged.append(told))

    def fail() -> None:
        begun.set()
        until.wait(60)
        raise ValueError("junk")

    task = asyncio.ensure_future(to_its_end(fail))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done(), "it ends before its thread"
    until.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    await asyncio.sleep(0)
    return logged


def test_a_failure_that_nobody_waits_for_is_not_in_the_log() -> None:
    assert asyncio.run(left(threading.Event())) == []
