"""Inference on Modal: the class with the GPU, which may be off, behind the same protocol.

A request is sent once: what was heard in part is never spoken again. Knows how a call fails and
how long a GPU takes to start, and of Modal itself no more than `Remote`.
"""

import asyncio
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from registry.errors import GpuCold, ModelUnavailable
from registry.files import ModelRef, PromptRef, PromptSource
from registry.inference_client import Patience, SpeakParams, Speech, patience
from registry.remote_speech import Item, RemoteChunks, checked, unreachable
from registry.text import refuse_long

Plain = Mapping[str, Any]  # built-ins only
T = TypeVar("T")

WAIT_S = 100.0  # of one request, for a GPU that starts
RETRY_S = 20  # after which a GPU that starts is likely there
LOOK_S = 5.0  # between two looks at how busy it is
MODEL_FILE = "model.json"

log = logging.getLogger("registry")


class Load(NamedTuple):
    """What Modal counts."""

    containers: int
    running: int  # calls
    waiting: int


class Remote(Protocol):
    """The class with the GPU, however it is called; `inference.remote` has what it answers."""

    def speak(
        self, call: str, ref: Plain, text: str, params: Plain
    ) -> AsyncGenerator[Item, None]: ...

    async def extract_prompt(self, source: Plain) -> Item: ...

    async def forget(self, call: str) -> None:
        """Sent, not waited for. Like any call, it starts a GPU that is off."""

    def load(self) -> Load:
        """Starts nothing; may block."""


@dataclass(frozen=True)
class ModalClass:
    """The deployed class: `modal.Cls.from_name(plan.inference_app, "Voices")()`."""

    instance: Any

    def speak(self, call: str, ref: Plain, text: str, params: Plain) -> AsyncGenerator[Item, None]:
        items: AsyncGenerator[Item, None] = self.instance.speak.remote_gen.aio(
            call, ref, text, params
        )
        return items

    async def extract_prompt(self, source: Plain) -> Item:
        answer: Item = await self.instance.extract_prompt.remote.aio(source)
        return answer

    async def forget(self, call: str) -> None:
        await self.instance.forget.spawn.aio(call)

    def load(self) -> Load:
        found = self.instance.speak.get_current_stats()
        return Load(found.num_total_runners, found.num_running_inputs, found.backlog)


@dataclass(frozen=True)
class RemoteDescription:
    model: ModelRef
    source: str
    languages: tuple[str, ...]
    sample_rate: int
    dtype: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class RemotePrompt:
    fingerprint: str
    sha256: str
    frames: int
    modes: tuple[str, ...]
    model: ModelRef


@dataclass(frozen=True)
class RemoteStatus:
    state: str
    queued: int = 0
    running: int = 0
    slots: int | None = None
    error: str | None = None


class ModalInference:
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
        """`failures` are what calls may raise; `limit_s` is how long one speech may be made.

        The folder `weights` holds model.json; `refresh` looks whether a missing one is there now.
        """
        self._remote, self._weights, self._failures = remote, weights, failures
        self._limit_s, self._slots, self._wait_s = limit_s, slots, wait_s
        self._refresh = refresh
        self._forgetting: set[asyncio.Task[None]] = set()
        self._status: RemoteStatus | None = None
        self._looked_s = -LOOK_S
        self._looking = threading.Lock()

    def describe(self) -> RemoteDescription:
        """From the file beside the weights: no GPU is asked."""
        path = self._weights / MODEL_FILE
        if self._refresh is not None and not path.exists():
            with suppress(*self._failures):
                self._refresh()
        try:
            found = json.loads(path.read_bytes())
            model = ModelRef(found["model_id"], found["revision"])
            languages = tuple(found["languages"])
            return RemoteDescription(model, found["source"], languages, found["sample_rate"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(
                "There is no model here yet: `voices deploy model` brings it."
            ) from error

    def status(self) -> RemoteStatus | None:
        """As of the last look, and looks again beside; None before the first."""
        now_s = time.monotonic()
        with self._looking:
            due = now_s - self._looked_s >= LOOK_S
            self._looked_s = now_s if due else self._looked_s
        if due:
            threading.Thread(target=self._look, name="status", daemon=True).start()
        return self._status

    async def extract_prompt(self, source: PromptSource) -> RemotePrompt:
        try:
            answer = await self._in_time(self._remote.extract_prompt(asdict(source)))
        except GpuCold:
            self._forget("")  # a call that stays, so that the GPU starts for sure
            raise
        found = checked(answer)["prompt"]
        return RemotePrompt(
            fingerprint=found["fingerprint"],
            sha256=found["sha256"],
            frames=found["frames"],
            modes=tuple(found["modes"]),
            model=ModelRef(**found["model"]),
        )

    async def speak(self, ref: PromptRef, text: str, params: SpeakParams) -> Speech:
        refuse_long(text, self._limit_s)
        call = secrets.token_hex(8)
        items = self._remote.speak(call, asdict(ref), text, params.given())
        chunks = RemoteChunks(items, self._failures, lambda: self._forget(call))
        async with AsyncExitStack() as if_left:
            if_left.push_async_callback(chunks.aclose)
            told = await self._in_time(chunks.begin())
            if_left.pop_all()
        return Speech(**told, chunks=chunks)

    def close(self) -> None:
        return None

    async def _in_time(self, answer: Awaitable[T]) -> T:
        """The first that is heard of the GPU. GpuCold if whoever asks would not wait longer."""
        patient = patience.get(Patience()).at_most(self._wait_s)
        try:
            async with asyncio.timeout(patient.left_s()):
                return await answer
        except TimeoutError as error:
            raise GpuCold(
                f"The GPU did not answer within {patient.most_s:.3g} s. It is starting: ask again"
                " in a moment.",
                RETRY_S,
            ) from error
        except self._failures as error:
            raise unreachable(error) from error

    def _forget(self, call: str) -> None:
        """Beside what goes on here: nobody waits for it, and it may fail."""
        task = asyncio.create_task(self._send_forget(call))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    async def _send_forget(self, call: str) -> None:
        try:
            await self._remote.forget(call)
        except self._failures as error:
            log.warning("A speech that nobody hears could not be stopped: %s", error)

    def _look(self) -> None:
        try:
            load = self._remote.load()
        except self._failures as error:
            self._status = RemoteStatus("failed", error=unreachable(error).detail)
        else:
            starting = load.waiting and not load.running
            state = "cold" if not load.containers else "warming" if starting else "warm"
            self._status = RemoteStatus(state, load.waiting, load.running, self._slots)
