"""The service for callers on threads, who give and get plain built-ins, as across a Modal call.

A speech is items: {"speech": …}, then {"pcm": …} as it is spoken, then {"end": …}; what ends it
early is {"error": …}. Each item but an error names its `run`: whoever meets two has been served
by a container that took over from another. PCM crosses as 16 bits, little-endian: every format
that the registry sends has 16, so nothing is lost, and half of float32 travels. Knows no Modal.
"""

import asyncio
import logging
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.errors import ExtractionFailed, InferenceError, SpeechUnfinished
from inference.service import InferenceService
from registry.files import PromptRef, PromptSource

Item = dict[str, Any]
Job = Future[Item]

REMEMBERED = 1024  # calls that were forgotten, of which some may still come
LAST_S = 1.0  # for what is spoken to be handed out, at the end
ENDED = "The call was given up, or its container is being shut down. Try again."

log = logging.getLogger(__name__)


class Remote:
    """Any number of threads may call. Close it when done."""

    def __init__(self, service: InferenceService, limit_s: float) -> None:
        """`limit_s` is the longest that one speech may take, from its call to its end."""
        self._service, self._limit_s = service, limit_s
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._over = asyncio.Event()
        self._jobs: dict[str, Job] = {}
        self._forgotten: deque[str] = deque(maxlen=REMEMBERED)
        self._thread = threading.Thread(target=self._serve, name="calls", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        """Returns when the model is loaded. If it can't be, the calls will say why."""
        answer = outcome(self._begin("", self._ready()))
        if "error" in answer:
            log.error("The model is not loaded: %s", answer["error"]["detail"])

    def extract_prompt(self, source: Mapping[str, Any]) -> Item:
        """{"prompt": …} of a PromptSource's fields, or {"error": …}."""
        return outcome(self._begin("", self._extract(source)))

    def speak(
        self, call: str, ref: Mapping[str, Any], text: str, params: Mapping[str, Any]
    ) -> Iterator[Item]:
        """The items of a speech; `call` is a name for `forget`. Closing it frees the slot."""
        items: SimpleQueue[Any] = SimpleQueue()
        job = self._begin(call, self._speak(call, items.put, ref, text, params))
        job.add_done_callback(items.put)
        try:
            while (item := items.get()) is not job:
                yield item
            yield outcome(job)
        finally:
            job.cancel()
            self._jobs.pop(call, None)

    def forget(self, call: str) -> None:
        """Nobody listens to this speech any more, whether it has begun or is still to come."""
        self._forgotten.append(call)
        if job := self._jobs.get(call):
            job.cancel()

    def describe(self) -> Item:
        return outcome(self._begin("", self._describe()))

    def status(self) -> Item:
        return asdict(self._service.status())

    def close(self, timeout_s: float) -> bool:
        """What runs may end in time, and is told else; True if all did."""
        ended = self._service.close(timeout_s)
        wait(list(self._jobs.values()), LAST_S if ended else 0)
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        return ended

    def _serve(self) -> None:
        with self._runner:
            self._runner.run(self._over.wait())

    def _begin(self, call: str, work: Coroutine[Any, Any, Item]) -> Job:
        job = asyncio.run_coroutine_threadsafe(work, self._loop)
        if call:
            self._jobs[call] = job
        if call in self._forgotten:
            job.cancel()
        return job

    async def _ready(self) -> Item:
        await self._service.ready()
        return {}

    async def _extract(self, source: Mapping[str, Any]) -> Item:
        async with self._limited(ExtractionFailed, "The prompt features are"):
            found = asdict(await self._service.extract_prompt(PromptSource(**source)))
        return {"prompt": found | {"modes": list(found["modes"])}}

    async def _describe(self) -> Item:
        found = asdict(await asyncio.to_thread(self._service.describe))
        return {"model": found | {"languages": list(found["languages"])}}

    async def _speak(
        self,
        call: str,
        put: Callable[[Item], None],
        ref: Mapping[str, Any],
        text: str,
        params: Mapping[str, Any],
    ) -> Item:
        """Puts every item but the last, which it returns."""
        if call in self._forgotten:
            raise asyncio.CancelledError
        run, samples = secrets.token_hex(8), 0
        async with self._limited(SpeechUnfinished, "The speech is"):
            speech = await self._service.speak(PromptRef(**ref), text, params)
            async with aclosing(speech.chunks) as chunks:
                told = {k: v for k, v in vars(speech).items() if k != "chunks"}
                put({"speech": told | {"timings": dict(speech.timings)}, "run": run})
                async for chunk in chunks:
                    put({"pcm": to_pcm(chunk), "run": run})
                    samples += len(chunk)
        return {"end": {"samples": samples}, "run": run}

    @asynccontextmanager
    async def _limited(self, late: type[InferenceError], what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limit_s):
                yield
        except TimeoutError as error:
            reason = f"{what} not done after {self._limit_s:g} s, the limit of one request."
            raise late(reason) from error


def outcome(job: Job) -> Item:
    """What a call ended with; an error is an item too."""
    wait([job])
    if job.cancelled():
        return _error("overloaded", ENDED, 5)
    error = job.exception()
    if error is None:
        return job.result()
    if isinstance(error, InferenceError):
        return _error(error.code, str(error), getattr(error, "retry_after_s", None))
    log.error("A call failed.", exc_info=error)
    reason = f"Inference broke: {type(error).__name__}: {str(error).rstrip('.')}."
    return _error(InferenceError.code, reason, None)


def _error(code: str, detail: str, retry_after_s: float | None) -> Item:
    return {"error": {"code": code, "detail": detail, "retry_after_s": retry_after_s}}


def to_pcm(samples: NDArray[np.float32]) -> bytes:
    """Mono int16, little-endian, of finite samples: rounded, and clipped to what there is."""
    scaled = np.rint(samples.astype(np.float64) * 32768.0)
    return np.clip(scaled, -32768, 32767).astype("<i2").tobytes()
