"""One speech as its caller sees it: what is asked, what comes, how long it took. No torch."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from registry.contract import SpeechRequest
from registry.errors import RegistryError

if TYPE_CHECKING:
    from inference.engine.request import Output


def with_seed(asked: SpeechRequest) -> SpeechRequest:
    """Return the request with a seed, which is chosen if it has none."""
    if asked.params.seed is not None:
        return asked
    return asked.asking(replace(asked.params, seed=secrets.randbelow(2**31)))


class Stopwatch:
    """Measures where the seconds before the first chunk went."""

    def __init__(self) -> None:
        self._begun_s = self._last_s = time.perf_counter()
        self.laps: dict[str, float] = {}

    @property
    def total_s(self) -> float:
        return time.perf_counter() - self._begun_s

    def lap(self, name: str) -> None:
        """Count all time since the last lap as `name`'s."""
        now_s = time.perf_counter()
        self.laps[name] = now_s - self._last_s
        self._last_s = now_s

    def add(self, name: str, seconds: float) -> None:
        """Add what someone else measured."""
        self.laps[name] += seconds


class OutputCollector:
    """Carries Outputs to the event loop on which it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()

    def put(self, output: "Output") -> None:
        """Hand over an output, from any thread. A caller whose loop is gone misses nothing."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._outputs.put_nowait, output)

    async def get(self) -> "Output":
        """Wait for the next Output; raises what ended the request."""
        output = await self._outputs.get()
        if output.error is not None:
            raise output.error
        return output


class EngineChunks:
    """Iterates over mono float32 PCM. `aclose` before its end cancels the request."""

    def __init__(
        self, first: "Output", collector: OutputCollector, cancel: Callable[[], None]
    ) -> None:
        self._next: Output | None = first
        self._ended = False
        self._collector, self._cancel = collector, cancel

    def __aiter__(self) -> "EngineChunks":
        return self

    async def __anext__(self) -> NDArray[np.float32]:
        while not self._ended:
            output, self._next = self._next or await self._output(), None
            self._ended = output.finished
            if len(output.pcm):
                return output.pcm
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            self._cancel()

    async def _output(self) -> "Output":
        try:
            return await self._collector.get()
        except RegistryError:
            self._ended = True
            raise
