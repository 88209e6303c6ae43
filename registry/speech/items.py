"""Receives one speech from another process as items; `inference.modal.calls` lists their kinds.

An error crosses by its code and is raised again. Knows nothing of how the items are brought.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from typing import Any

import numpy as np

from registry.contract import Item, Samples
from registry.errors import (
    InferenceUnreachable,
    Overloaded,
    RegistryError,
    SpeechFailed,
    StreamBroken,
)
from registry.threads import retrieve

LAST = ("end", "error")
RETRY_S = 20


class RemoteChunks(AsyncIterator[Samples]):
    """Yields the items of one speech as PCM. Closed before its end, it cancels its call."""

    def __init__(
        self,
        items: AsyncGenerator[Item, None],
        failures: tuple[type[Exception], ...],
        cancel: Callable[[str], Awaitable[None]],
        beside: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """Take over `items`; `beside` runs what goes on when nobody listens any more."""
        self._items, self._failures = items, failures
        self._cancel, self._beside = cancel, beside
        self._first: asyncio.Future[Item] | None = None
        self._call: str | None = None
        self._run: str | None = None
        self._samples = 0
        self._over = False

    async def begin(self) -> Item:
        """Return what is said of the speech before it begins, the arguments of Speech.

        A caller that leaves meanwhile does not cut off the sending: it starts a GPU that is off,
        and a call that has not said yet what cancels it could not be stopped.
        """
        self._first = asyncio.ensure_future(self._next())
        self._first.add_done_callback(retrieve)
        self._call = (await asyncio.shield(self._first))["call"]
        begun = await self._next()
        told: Item = begun["speech"]
        return told | {"text_tokens": begun.get("text_tokens")}  # an older peer does not say

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
        if self._over:
            await self._items.aclose()
        else:
            self._over = True
            self._beside(self._give_up())

    async def _give_up(self) -> None:
        """Wait until the call has said what cancels it, then cancel it."""
        async with aclosing(self._items):
            if self._call is None and self._first is not None:
                with suppress(RegistryError, *self._failures):
                    self._call = (await self._first)["call"]
            if self._call is not None:
                await self._cancel(self._call)

    async def _next(self) -> Item:
        """Return the next item. Raises the error that it holds, or StreamBroken."""
        try:
            item = await anext(self._items, None)
        except self._failures:
            self._over = True
            raise
        self._over |= item is None or not item.keys().isdisjoint(LAST)
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
    """Return the item, unless it is an error, which is raised."""
    if "error" in item:
        error = item["error"]
        raise error_of(error["code"], error["detail"], error["retry_after_s"] or RETRY_S)
    return item


def _kinds(root: type[RegistryError] = RegistryError) -> Iterator[type[RegistryError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _kinds(kind)


OF_A_SENTENCE = (RegistryError.__init__, Overloaded.__init__)
BY_CODE = {  # errors that can be made again here: others hold more than a sentence
    kind.wire_code or kind.code: kind
    for kind in _kinds()
    if kind.__init__ in OF_A_SENTENCE and not vars(kind).keys().isdisjoint(("code", "wire_code"))
}


def error_of(code: str, detail: str, retry_after_s: float) -> RegistryError:
    """Make the error that another process raised; a SpeechFailed with its code if unknown here."""
    kind = BY_CODE.get(code)
    if kind is None:
        error = SpeechFailed(detail)
        error.code = code
        return error
    if issubclass(kind, Overloaded):
        return kind(detail, retry_after_s)
    return kind(detail)


def unreachable(error: Exception) -> RegistryError:
    """Explain by the names of Modal's exceptions why a call that brought nothing failed."""
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
