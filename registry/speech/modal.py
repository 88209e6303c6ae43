"""Inference on Modal: the class with the GPU, which may be off, behind the same protocol.

A request is sent once: what was heard in part is never spoken again. Knows how a call fails and how
long a GPU takes to start, and of Modal itself no more than `Remote`.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from registry.contract import (
    Deadline,
    Description,
    ExtractedPrompt,
    InferenceState,
    Item,
    ModelRef,
    PromptRef,
    PromptSource,
    Speech,
    SpeechRequest,
    Status,
)
from registry.errors import GpuCold, ModelUnavailable
from registry.speech.items import RemoteChunks, checked, unreachable
from registry.text import refuse_long
from registry.threads import retrieve

Plain = Mapping[str, Any]  # built-ins only
T = TypeVar("T")

WAIT_S = 100.0  # how long one request waits for a GPU that starts
RETRY_S = 20  # after which a GPU that starts is likely there
LEFT = 256  # calls that nobody waits for any more, and that may still start a GPU
LOOK_S = 5.0  # between two looks at how busy it is
MODEL_FILE = "model.json"

log = logging.getLogger("registry")


class Load(NamedTuple):
    """How many containers and calls a deployed App has now."""

    containers: int
    running: int  # calls under way
    waiting: int


class Remote(Protocol):
    """The class with the GPU, however it is called; `inference.modal.calls` has what it answers.

    A call that is sent starts a GPU that is off. `until_s`, in seconds since the epoch, is when
    nobody waits for its beginning any more: later it is refused there.
    """

    def speak(
        self, ref: Plain, text: str, params: Plain, until_s: float
    ) -> AsyncGenerator[Item, None]: ...

    async def extract_prompt(self, source: Plain, until_s: float) -> Item: ...

    async def cancel(self, call: str) -> None:
        """Stop this call and no other, wherever it runs."""

    def load(self) -> Load:
        """Count containers and calls. Starts nothing, but may block."""


@dataclass(frozen=True)
class ModalClass:
    """The deployed class as a Remote: `modal.Cls.from_name(plan.inference_app, "Voices")()`."""

    instance: Any
    call_of: Callable[[str], Any]  # `modal.FunctionCall.from_id`

    def speak(
        self, ref: Plain, text: str, params: Plain, until_s: float
    ) -> AsyncGenerator[Item, None]:
        items: AsyncGenerator[Item, None] = self.instance.speak.remote_gen.aio(
            ref, text, params, until_s
        )
        return items

    async def extract_prompt(self, source: Plain, until_s: float) -> Item:
        answer: Item = await self.instance.extract_prompt.remote.aio(source, until_s)
        return answer

    async def cancel(self, call: str) -> None:
        await self.call_of(call).cancel.aio()

    def load(self) -> Load:
        found = self.instance.speak.get_current_stats()
        return Load(found.num_total_runners, found.num_running_inputs, found.backlog)


class ModalInference:
    """Inference by a class on Modal, whose GPU a request may have to start."""

    def __init__(
        self,
        remote: Remote,
        weights: Path,
        *,
        failures: tuple[type[Exception], ...],
        limit_s: float,
        slots: int,
        wait_s: float = WAIT_S,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        """Use `remote`, whose calls may raise `failures` and speak for `limit_s` at most.

        The folder `weights` holds model.json; `refresh` looks whether a missing one is there now.
        """
        self._remote, self._weights, self._failures = remote, weights, failures
        self._limit_s, self._slots, self._wait_s = limit_s, slots, wait_s
        self._refresh = refresh
        self.encoders = slots  # any number: the queue is Modal's
        self._left: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._status: Status | None = None
        self._looked_s = -LOOK_S
        self._looking = threading.Lock()

    def describe(self) -> Description:
        """Return what the file beside the weights says: no GPU is asked."""
        path = self._weights / MODEL_FILE
        if self._refresh is not None and not path.exists():
            with suppress(*self._failures):
                self._refresh()
        try:
            found = json.loads(path.read_bytes())
            model = ModelRef(found["model_id"], found["revision"])
            languages = tuple(found["languages"])
            return Description(model, found["source"], languages, found["sample_rate"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelUnavailable(
                "There is no model here yet: `voices deploy model` brings it."
            ) from error

    def status(self) -> Status | None:
        """Return what the last look found, None before the first; a new look runs beside."""
        now_s = time.monotonic()
        with self._looking:
            due = now_s - self._looked_s >= LOOK_S
            self._looked_s = now_s if due else self._looked_s
        if due:
            threading.Thread(target=self._look, name="status", daemon=True).start()
        return self._status

    def is_spare(self) -> bool:
        """Tell whether no call waited at the last look; calls since then do not count."""
        return self._status is None or not self._status.queued

    def refuse_full(self, ahead: int) -> None:
        """Refuse nobody: the queue is Modal's, and what is known of it here is too old."""

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> ExtractedPrompt:
        deadline = self._at_most(deadline or Deadline())
        call = asyncio.ensure_future(self._remote.extract_prompt(asdict(source), until_s(deadline)))
        call.add_done_callback(retrieve)
        try:
            answer = await self._in_time(asyncio.shield(call), deadline)
        finally:
            if not call.done():
                self._beside(call)
        found = checked(answer)["prompt"]
        return ExtractedPrompt(
            fingerprint=found["fingerprint"],
            sha256=found["sha256"],
            frames=found["frames"],
            modes=tuple(found["modes"]),
            model=ModelRef(**found["model"]),
            room=found.get("room"),
        )

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        """Speak on the GPU. The request's client is not sent: Modal's edge shows one for all."""
        refuse_long(asked.text, self._limit_s)
        deadline = self._at_most(asked.deadline)
        items = self._remote.speak(asdict(ref), asked.text, asked.params.given(), until_s(deadline))
        chunks = RemoteChunks(items, self._failures, self._remote.cancel, self._beside)
        async with AsyncExitStack() as if_left:
            if_left.push_async_callback(chunks.aclose)
            told = await self._in_time(chunks.begin(), deadline)
            if_left.pop_all()
        return Speech(**told, chunks=chunks)

    def close(self) -> None:
        for task in [*self._left]:
            task.get_loop().call_soon_threadsafe(task.cancel)

    def _at_most(self, deadline: Deadline) -> Deadline:
        return deadline.at_most(self._wait_s)

    async def _in_time(self, answer: Awaitable[T], deadline: Deadline) -> T:
        """Wait for a call's first answer. Raises GpuCold when the deadline has passed."""
        try:
            async with asyncio.timeout(deadline.left_s()):
                return await answer
        except TimeoutError as error:
            raise GpuCold(
                f"The GPU did not answer within {deadline.most_s:.3g} s. It is starting: ask again"
                " in a moment.",
                RETRY_S,
            ) from error
        except self._failures as error:
            raise unreachable(error) from error

    def _beside(self, work: Awaitable[object]) -> None:
        """Go on without the caller. Of too many tasks the oldest ends: it is too late anyway."""
        if len(self._left) >= LEFT:
            oldest = next(iter(self._left))
            del self._left[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._to_its_end(work))
        self._left[task] = None
        task.add_done_callback(lambda task: self._left.pop(task, None))

    async def _to_its_end(self, work: Awaitable[object]) -> None:
        try:
            await work
        except self._failures as error:
            log.warning("A call that nobody waits for any more failed: %s", error)

    def _look(self) -> None:
        try:
            load = self._remote.load()
        except self._failures as error:
            self._status = Status("failed", error=unreachable(error).detail)
        else:
            starting = load.waiting and not load.running
            state: InferenceState = (
                "cold" if not load.containers else "warming" if starting else "warm"
            )
            self._status = Status(state, load.waiting, load.running, self._slots)


def until_s(deadline: Deadline) -> float:
    """Return the deadline in seconds since the epoch, which another machine knows too."""
    return time.time() + deadline.left_s()
