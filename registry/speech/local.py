"""What the registry asks of inference, and the two ways it is reached or not.

Ids and hashes cross this line, never audio or features. Nothing of `inference` is imported: an
error is recognised by its `code`, so that the same mapping serves another process.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray

from registry.errors import (
    InferenceOff,
    LanguageUnsupported,
    ModelUnavailable,
    ModeUnavailable,
    Overloaded,
    PromptBroken,
    RegistryError,
    SpeechFailed,
    StorageUnavailable,
    TextTooLong,
)
from registry.storage.data_dir import ModelRef, PromptRef, PromptSource

Samples = NDArray[np.float32]
LIGHT_BYTES = 128 * 1024 * 1024  # of weights: they load in a second or two
CLOSE_S = 5.0  # how long the request that runs may take to end at shutdown


@dataclass(frozen=True)
class Patience:
    """How long one request would wait for a GPU that has to start, however often it asks it."""

    most_s: float = float("inf")
    since_s: float = field(default_factory=time.monotonic)

    def at_most(self, seconds: float) -> "Patience":
        return Patience(min(self.most_s, seconds), self.since_s)

    def left_s(self) -> float:
        return self.since_s + self.most_s - time.monotonic()


patience: ContextVar[Patience] = ContextVar("patience")


@dataclass(frozen=True)
class SpeakParams:
    """The knobs of one request; None means the model's own default."""

    language: str | None = None
    mode: str | None = None
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def given(self) -> dict[str, Any]:
        return {knob: value for knob, value in asdict(self).items() if value is not None}


class Description(Protocol):
    @property
    def model(self) -> ModelRef: ...
    @property
    def source(self) -> str: ...
    @property
    def languages(self) -> tuple[str, ...]: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def device(self) -> str | None: ...


class Status(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def queued(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def slots(self) -> int | None: ...
    @property
    def queue_limit(self) -> int | None: ...
    @property
    def error(self) -> str | None: ...


class ExtractedPrompt(Protocol):
    @property
    def fingerprint(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def frames(self) -> int: ...
    @property
    def modes(self) -> tuple[str, ...]: ...
    @property
    def model(self) -> ModelRef: ...
    @property
    def room(self) -> int | None:
        """Tokens of a text that fit into one request in icl; None if that was not said."""


class Chunks(Protocol):
    """Mono PCM in order; may raise half-way. Whoever leaves before the end closes it, even before
    taking the first one: that ends the request and frees its slot."""

    def __aiter__(self) -> AsyncIterator[Samples]: ...
    async def __anext__(self) -> Samples: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True)
class Speech:
    """Exists once the first chunk does."""

    sample_rate: int  # Hz
    seed: int
    prompt_cache: str
    mode: str
    timings: Mapping[str, float]  # seconds: load, queue, prompt, ttfa
    chunks: Chunks


class Inference(Protocol):
    def describe(self) -> Description:
        """The model, found without loading it. May read files: not for the event loop."""

    def status(self) -> Status | None:
        """Never loads, wakes or waits for anything; None if no model has been asked for."""

    def is_spare(self) -> bool:
        """Whether a short speech would keep nobody waiting, and be made at once."""

    def refuse_full(self, ahead: int) -> None:
        """Overloaded if that is what a speech that comes now would be told, after `ahead` others.

        For the event loop: it waits for nothing, and what it lets pass may be refused later.
        """

    async def extract_prompt(self, source: PromptSource) -> ExtractedPrompt:
        """Read the conditioned clip, write the prompt file.

        Who leaves early waits for a file that is being made, unless another machine makes it.
        """

    async def speak(self, ref: PromptRef, text: str, params: SpeakParams) -> Speech:
        """Raises PromptBroken, and every other error, before the first chunk."""

    def close(self) -> None: ...


class Service(Protocol):
    """`inference.serving.service.InferenceService`, as the registry needs it."""

    def describe(self) -> Any: ...
    def status(self) -> Any: ...
    def refuse_full(self, ahead: int) -> None: ...
    def warm(self) -> None: ...
    async def extract_prompt(self, source: PromptSource) -> Any: ...
    async def speak(self, ref: PromptRef, text: str, params: Mapping[str, Any]) -> Any: ...
    def close(self, timeout_s: float) -> bool: ...


class LocalInference:
    """A service in this process, made when it is first needed, so that listing costs no model."""

    def __init__(self, make_service: Callable[[], Service]) -> None:
        self._make_service = make_service
        self._service: Service | None = None
        self._lock = Lock()

    def describe(self) -> Description:
        with registry_errors():
            description: Description = self._ready().describe()
        return description

    def status(self) -> Status | None:
        return None if self._service is None else self._service.status()

    def is_spare(self) -> bool:
        """Only a light model is loaded for this, or speaks on a CPU."""
        status = self.status()
        if status is None or status.queued or 2 * status.running > (status.slots or 2):
            return False
        description = self._ready().describe()
        on_gpu = description.device not in (None, "cpu")
        return bool(on_gpu or description.weights_bytes <= LIGHT_BYTES)

    def refuse_full(self, ahead: int) -> None:
        if self._service is not None:
            with registry_errors():
                self._service.refuse_full(ahead)

    def warm(self) -> None:
        """Start loading the model; returns at once."""
        with registry_errors():
            self._ready().warm()

    async def extract_prompt(self, source: PromptSource) -> ExtractedPrompt:
        with registry_errors():
            service = await to_thread.run_sync(self._ready)
            extracted: ExtractedPrompt = await service.extract_prompt(source)
        return extracted

    async def speak(self, ref: PromptRef, text: str, params: SpeakParams) -> Speech:
        with registry_errors():
            service = self._service
            if service is None:
                service = await to_thread.run_sync(self._ready)
            speech = await service.speak(ref, text, params.given())
        return Speech(
            sample_rate=speech.sample_rate,
            seed=speech.seed,
            prompt_cache=speech.prompt_cache,
            mode=speech.mode,
            timings=speech.timings,
            chunks=LocalChunks(speech.chunks),
        )

    def close(self) -> None:
        if self._service is not None:
            self._service.close(CLOSE_S)

    def _ready(self) -> Service:
        with self._lock:
            if self._service is None:
                self._service = self._make_service()
            return self._service


class LocalChunks(AsyncIterator[Samples]):
    """Inference's chunks, with the registry's errors.

    No generator: one that has not begun would not close what it stands for.
    """

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks

    async def __anext__(self) -> Samples:
        with registry_errors():
            return await anext(self._chunks)

    async def aclose(self) -> None:
        await self._chunks.aclose()


@contextmanager
def registry_errors() -> Iterator[None]:
    """Turn what inference raises (RuntimeErrors with a `code`) into the registry's own errors."""
    try:
        yield
    except RuntimeError as error:
        code = getattr(error, "code", None)
        if code is None or isinstance(error, RegistryError):
            raise
        raise error_of(code, str(error), getattr(error, "retry_after_s", 5)) from error


def error_of(code: str, detail: str, retry_after_s: float) -> RegistryError:
    """The registry's error for what inference calls `code`."""
    plain = {
        "prompt-missing": PromptBroken,
        "prompt-corrupt": PromptBroken,
        "text-too-long": TextTooLong,
        "language-unsupported": LanguageUnsupported,
        "mode-unavailable": ModeUnavailable,
        "storage-unavailable": StorageUnavailable,
    }
    if code in plain:
        return plain[code](detail)
    if code == "overloaded":
        return Overloaded(detail, max(1, round(retry_after_s)))
    if code.startswith("model-"):
        return ModelUnavailable(detail, code)
    return SpeechFailed(code, detail)


class NoInference:
    """A server that keeps voices and speaks none."""

    _REASON = "This server runs with inference off: it keeps voices but can't enrol or speak."

    def describe(self) -> Description:
        raise InferenceOff(self._REASON)

    def status(self) -> None:
        return None

    def is_spare(self) -> bool:
        return False

    def refuse_full(self, ahead: int) -> None:
        return None

    async def extract_prompt(self, source: PromptSource) -> ExtractedPrompt:
        raise InferenceOff(self._REASON)

    async def speak(self, ref: PromptRef, text: str, params: SpeakParams) -> Speech:
        raise InferenceOff(self._REASON)

    def close(self) -> None:
        return None
