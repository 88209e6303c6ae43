"""The service for calls of plain built-ins, as they cross to Modal.

A speech is items: {"call": …} as soon as it is taken, {"speech": …}, then {"pcm": …} as it is
spoken, then {"end": …}; what ends it early is {"error": …}. Each item but an error names its `run`:
whoever meets two has been served by a container that took over from another. PCM crosses as 16
bits, little-endian: every format that the registry sends has 16, so nothing is lost, and half of
float32 travels.

Nothing is remembered from one call to the next. A call is stopped by cancelling its task; one that
comes when nobody waits for it any more is refused by the clock. Knows no Modal.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.serving.service import InferenceService
from registry.contract import Item, PromptRef, PromptSource, SpeakParams, SpeechRequest
from registry.errors import (
    ExtractionFailed,
    InferenceFailed,
    Overloaded,
    RegistryError,
    SpeechFailed,
    SpeechUnfinished,
)

RETRY_S = 5

log = logging.getLogger(__name__)


class RemoteCalls:
    """Answers the calls of any number of tasks. Close it when done."""

    def __init__(self, service: InferenceService, limit_s: float) -> None:
        """`limit_s` is the longest that one call may take, from its beginning to its end."""
        self._service, self._limit_s = service, limit_s

    async def ready(self) -> None:
        """Returns when the model is loaded. If it can't be, the calls will say why."""
        try:
            await self._service.ready()
        except Exception as error:  # the container goes on: each call tries again, and says why
            log.error("The model is not loaded: %s", failed(error)["error"]["detail"])

    async def extract_prompt(self, source: Mapping[str, Any], until_s: float) -> Item:
        """Answer {"prompt": …} to a PromptSource's fields, or {"error": …}.

        `until_s` is when its caller stops waiting for it, in seconds since the epoch.
        """
        try:
            refuse_late(until_s)
            async with self._limit(ExtractionFailed, "The prompt features are").step():
                found = asdict(await self._service.extract_prompt(PromptSource(**source)))
            return {"prompt": found | {"modes": list(found["modes"])}}
        except Exception as error:  # a failure is an item too; who cancels a call knows why
            return failed(error)

    async def speak(
        self,
        call: str,
        ref: Mapping[str, Any],
        text: str,
        params: Mapping[str, Any],
        until_s: float,
    ) -> AsyncGenerator[Item, None]:
        """Yield the items of a speech; `call` is what cancels it. Closing it frees its slot.

        `until_s` is when its caller stops waiting for its beginning, in seconds since the epoch.
        """
        run, samples = secrets.token_hex(8), 0
        limit = self._limit(SpeechUnfinished, "The speech is")
        failure: Item | None = None
        try:
            refuse_late(until_s)
            yield {"call": call, "run": run}
            async with limit.step():
                asked = SpeechRequest(text, SpeakParams(**params))
                speech = await self._service.speak(PromptRef(**ref), asked)
            async with aclosing(speech.chunks) as chunks:
                told = vars(speech) | {"timings": dict(speech.timings)}
                beside = {name: told.pop(name) for name in ("chunks", "text_tokens")}
                tokens = beside["text_tokens"]  # older registries take `speech` as they know it
                yield {"speech": told, "text_tokens": tokens, "run": run}
                async for chunk in limit.each(chunks):
                    yield {"pcm": to_pcm(chunk), "run": run}
                    samples += len(chunk)
            yield {"end": {"samples": samples}, "run": run}
        except Exception as error:  # a failure is an item too; who cancels a call knows why
            failure = failed(error)
        if failure is not None:
            yield failure

    async def describe(self) -> Item:
        try:
            found = asdict(await asyncio.to_thread(self._service.describe))
            return {"model": found | {"languages": list(found["languages"])}}
        except Exception as error:  # a failure is an item too; who cancels a call knows why
            return failed(error)

    def status(self) -> Item:
        return asdict(self._service.status())

    def close(self, timeout_s: float) -> bool:
        """Let what runs end in time, and refuse the rest; True if all did."""
        return self._service.close(timeout_s)

    def _limit(self, late: type[SpeechFailed], what: str) -> "Limit":
        return Limit(self._limit_s, late, what)


class Limit:
    """Bounds how long one call may take in all.

    It is watched in each step for itself: what is cancelled between two items is whoever takes
    them, who would not know why.
    """

    def __init__(self, limit_s: float, late: type[SpeechFailed], what: str) -> None:
        self._end_s = asyncio.get_running_loop().time() + limit_s
        self._reason = f"{what} not done after {limit_s:g} s, the limit of one request."
        self._late = late

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(self._end_s):
                yield
        except TimeoutError as error:
            raise self._late(self._reason) from error

    async def each(
        self, chunks: AsyncIterator[NDArray[np.float32]]
    ) -> AsyncIterator[NDArray[np.float32]]:
        while True:
            async with self.step():
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            yield chunk


def failed(error: Exception) -> Item:
    """The item that tells of a failure; what is no refusal is logged, too."""
    if isinstance(error, RegistryError):
        return _error(error)
    log.error("A call failed.", exc_info=error)
    reason = f"Inference broke: {type(error).__name__}: {str(error).rstrip('.')}."
    return _error(InferenceFailed(reason))


def refuse_late(until_s: float) -> None:
    """Raise Overloaded if the caller has stopped waiting: nobody would hear what is made now."""
    if time.time() > until_s:
        raise Overloaded("The call came when nobody waited for it any more. Ask again.", RETRY_S)


def _error(error: RegistryError) -> Item:
    code = error.wire_code or error.code
    return {"error": {"code": code, "detail": error.detail, "retry_after_s": error.retry_after_s}}


def to_pcm(samples: NDArray[np.float32]) -> bytes:
    """Turn finite samples into mono int16, little-endian: rounded, and clipped to its range."""
    scaled = np.rint(samples.astype(np.float64) * 32768.0)
    return np.clip(scaled, -32768, 32767).astype("<i2").tobytes()
