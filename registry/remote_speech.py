"""One speech that comes from elsewhere in items; `inference.remote` says which there are.

Whatever breaks it is an error of the registry. Knows nothing of how the items are brought.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import numpy as np

from registry.errors import InferenceUnreachable, Overloaded, RegistryError, StreamBroken
from registry.inference_client import Samples, error_of

Item = dict[str, Any]
LAST = ("end", "error")
RETRY_S = 20


class RemoteChunks(AsyncIterator[Samples]):
    """The items of one speech as PCM. Left before its end, it is forgotten there too."""

    def __init__(
        self,
        items: AsyncGenerator[Item, None],
        failures: tuple[type[Exception], ...],
        forget: Callable[[], None],
    ) -> None:
        self._items, self._failures, self._forget = items, failures, forget
        self._run: str | None = None
        self._samples = 0
        self._over = False

    async def begin(self) -> Item:
        """What is said of the speech before it begins, the arguments of Speech."""
        told: Item = (await self._next())["speech"]
        return told

    async def __anext__(self) -> Samples:
        if self._over:
            raise StopAsyncIteration
        try:
            item = await self._next()
        except self._failures as error:
            raise StreamBroken(f"The speech broke off: {describe(error)}.") from error
        if "end" in item:
            self._finish(item["end"]["samples"])
            raise StopAsyncIteration
        samples = np.frombuffer(item["pcm"], "<i2").astype(np.float32) / 32768.0
        self._samples += len(samples)
        return samples

    async def aclose(self) -> None:
        if not self._over:
            self._over = True
            self._forget()
        await self._items.aclose()

    async def _next(self) -> Item:
        try:
            item = await anext(self._items, None)
        except self._failures:
            self._over = True
            raise
        self._over = item is None or not item.keys().isdisjoint(LAST)
        if item is None:
            raise StreamBroken("The speech stopped before its end.")
        run = checked(item)["run"]
        if self._run not in (None, run):
            raise StreamBroken("The GPU's container was lost, and another one began anew.")
        self._run = run
        return item

    def _finish(self, samples: int) -> None:
        if samples != self._samples:
            raise StreamBroken(f"The speech lacks {samples - self._samples} samples.")


def checked(item: Item) -> Item:
    """The item, unless it is an error, which is raised."""
    if "error" in item:
        error = item["error"]
        raise error_of(error["code"], error["detail"], error["retry_after_s"] or RETRY_S)
    return item


def unreachable(error: Exception) -> RegistryError:
    """Why a call that brought nothing failed: by the names of Modal's exceptions."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "NotFoundError" in kinds:
        return InferenceUnreachable("The model's app is not deployed: `voices deploy` does that.")
    if kinds & {"AuthError", "PermissionDeniedError"}:
        return InferenceUnreachable(f"Modal refuses to call the model's app: {describe(error)}.")
    if "ResourceExhaustedError" in kinds:
        return Overloaded(f"Modal takes no more calls now: {describe(error)}.", RETRY_S)
    if "FunctionTimeoutError" in kinds:
        return InferenceUnreachable("The GPU's container did not start, or not answer, in time.")
    return InferenceUnreachable(f"The model's app can't be called: {describe(error)}.")


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". ")
