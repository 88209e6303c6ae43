"""Inference as the registry and the CLI see it: ids and text in, prompt files and PCM out.

One daemon thread owns the model; any number of callers, on any event loop, wait their turn in a
bounded queue. torch is first imported on that thread. Knows nothing of names, SQL or HTTP.
"""

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.clips import read_conditioned
from inference.device_thread import DeviceThread
from inference.engine.params import FRAME_SAMPLES, SpeechParams
from inference.errors import (
    InferenceError,
    Overloaded,
    PromptCorrupt,
    PromptMissing,
)
from inference.prompt import FILE_LIMIT_BYTES, PromptFeatures, PromptShape
from inference.voices import PromptCache
from inference.weights import LocatedModel, not_installed
from registry.files import DataDir, ModelRef, PromptRef, PromptSource, sha256_of, write_atomically

if TYPE_CHECKING:
    from inference.engine.stock import Prompt, StockEngine

T = TypeVar("T")


@dataclass(frozen=True)
class ServiceConfig:
    """None leaves device and dtype to the engine, and torch's threads as they are."""

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    queue_limit: int = 32
    queue_timeout_s: float = 30.0
    prompt_cache_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True)
class ExtractedPrompt:
    """A prompt file that was written: its address but for the voice, and what it offers."""

    fingerprint: str
    sha256: str
    frames: int  # of 80 ms; 0 without a transcript
    modes: tuple[str, ...]
    model: ModelRef


@dataclass(frozen=True)
class Speech:
    """Speech whose first chunk exists already, so nothing that can be refused is still to come."""

    sample_rate: int  # Hz
    seed: int
    prompt_cache: Literal["memory", "file"]
    frames: int  # of 80 ms
    mode: str  # icl or xvec
    timings: Mapping[str, float]  # seconds: queue, prompt, ttfa, total
    chunks: AsyncIterator[NDArray[np.float32]]  # mono, in order


@dataclass(frozen=True)
class Description:
    """The model in words. dtype and device are None until it is loaded."""

    model: ModelRef
    source: str
    languages: tuple[str, ...]
    sample_rate: int
    dtype: str | None
    device: str | None


@dataclass(frozen=True)
class Status:
    state: Literal["cold", "warming", "warm", "failed"]
    queued: int
    running: int
    error: str | None  # why it failed


@dataclass(frozen=True)
class _Loaded:
    model: LocatedModel
    engine: "StockEngine"
    shape: PromptShape
    prompts: "PromptCache[Prompt]"


@dataclass(frozen=True)
class _Spoken:
    pcm: NDArray[np.float32]
    mode: str
    prompt_cache: Literal["memory", "file"]
    started_s: float
    prompt_s: float


class InferenceService:
    """Extracts prompts and speaks. Close it when done: `close` lets the running request finish."""

    def __init__(
        self,
        data: DataDir,
        model: LocatedModel | Callable[[], LocatedModel],
        config: ServiceConfig | None = None,
    ) -> None:
        """`model` may be a function that finds it: called at first use, until it succeeds."""
        self._data = data
        self._find: Callable[[], LocatedModel] = (
            (lambda: model) if isinstance(model, LocatedModel) else model
        )
        self._config = config or ServiceConfig()
        self._thread = DeviceThread(self._config.queue_limit)
        self._finding = threading.Lock()
        self._model: LocatedModel | None = None
        self._loaded: _Loaded | None = None
        self._state: Literal["cold", "warming", "warm", "failed"] = "cold"
        self._error: str | None = None

    async def extract_prompt(self, source: PromptSource) -> ExtractedPrompt:
        """Read the conditioned clip of `source`, write its prompt file. ExtractionFailed."""
        return await self._wait_for(self._thread.submit(lambda: self._extract(source)))

    async def speak(self, ref: PromptRef, text: str, params: Mapping[str, Any]) -> Speech:
        """Speak `text` with the prompt `ref`; `params` are the fields of SpeechParams.

        Returns once the first chunk exists. An unknown parameter is a TypeError, a value out of
        range a ValueError; see errors.py for the rest. Cancelling while queued starts nothing.
        """
        asked_s = time.perf_counter()
        chosen = SpeechParams(**params)
        seed = secrets.randbelow(2**31) if chosen.seed is None else chosen.seed
        seeded = replace(chosen, seed=seed)
        job = self._thread.submit(lambda: self._speak(ref, text, seeded))
        spoken = await self._wait_for(job)
        total_s = time.perf_counter() - asked_s
        return Speech(
            sample_rate=self.located().sample_rate,
            seed=seed,
            prompt_cache=spoken.prompt_cache,
            frames=len(spoken.pcm) // FRAME_SAMPLES,
            mode=spoken.mode,
            timings={
                "queue": spoken.started_s - asked_s,
                "prompt": spoken.prompt_s,
                "ttfa": total_s,
                "total": total_s,
            },
            chunks=_one(spoken.pcm),
        )

    def located(self) -> LocatedModel:
        """The model's files. The first call may take long: it may hash them, or make the demo."""
        with self._finding:
            if self._model is None:
                self._model = self._find()
            return self._model

    def describe(self) -> Description:
        """What the model is, without loading it; see `located`."""
        model, engine = self.located(), self._loaded and self._loaded.engine
        return Description(
            model=model.ref,
            source=model.source,
            languages=model.languages,
            sample_rate=model.sample_rate,
            dtype=engine.dtype if engine else None,
            device=engine.device if engine else None,
        )

    def status(self) -> Status:
        return Status(self._state, self._thread.queued, self._thread.running, self._error)

    def warm(self) -> None:
        """Start loading the model, if nothing else does; returns at once."""
        if self._loaded is None:
            with contextlib.suppress(Overloaded):  # then the requests before this one will load it
                self._thread.submit(self._ready)

    def close(self, timeout_s: float) -> bool:
        """Refuse new requests, fail those queued; True if the running one ended in `timeout_s`."""
        return self._thread.close(timeout_s)

    async def _wait_for(self, job: "Future[T]") -> T:
        """The job's result; Overloaded if it has not begun in time. Leaving cancels it."""
        waiting = asyncio.wrap_future(job)
        waiting.add_done_callback(_retrieve)
        try:
            await asyncio.wait({waiting}, timeout=self._config.queue_timeout_s)
            if not job.done() and job.cancel():
                raise self._too_slow()
            return await waiting
        finally:
            job.cancel()
            waiting.cancel()

    def _too_slow(self) -> Overloaded:
        reason = "The model is still loading" if self._state == "warming" else "The queue is slow"
        waited_s = self._config.queue_timeout_s
        return Overloaded(
            f"{reason}: this request waited {waited_s:g} s. Try again later.",
            self._thread.retry_after_s,
        )

    def _extract(self, source: PromptSource) -> ExtractedPrompt:
        loaded = self._ready()
        samples = read_conditioned(self._data.conditioned(source))
        found = loaded.engine.extract(samples, source.transcript or None)
        codes, embedding = found.ref_code, found.ref_spk_embedding
        features = PromptFeatures(source, loaded.model.ref, codes, embedding)
        data = features.save(loaded.shape)
        ref = PromptRef(source.voice_id, features.fingerprint, sha256_of(data))
        write_atomically(self._data.prompt(ref), data)
        return ExtractedPrompt(
            ref.fingerprint, ref.sha256, features.frames, features.modes, features.model
        )

    def _speak(self, ref: PromptRef, text: str, params: SpeechParams) -> _Spoken:
        loaded = self._ready()
        started_s = time.perf_counter()
        prompt, prompt_cache = loaded.prompts.get(ref)
        prompt_s = time.perf_counter() - started_s
        pcm = loaded.engine.speak(prompt, text, params)
        return _Spoken(pcm, prompt.mode(params.mode), prompt_cache, started_s, prompt_s)

    def _ready(self) -> _Loaded:
        """The loaded model. A load that failed is tried again by the next request."""
        if self._loaded is None:
            self._state, self._error = "warming", None
            try:
                self._loaded = self._load()
            except InferenceError as error:
                self._error = str(error)
                raise
            finally:
                self._state = "failed" if self._loaded is None else "warm"
        return self._loaded

    def _load(self) -> _Loaded:
        model, config = self.located(), self._config
        try:
            from inference.engine.qwen import import_qwen_tts
            from inference.engine.stock import Features, StockEngine

            import_qwen_tts()
        except (ImportError, OSError) as error:
            raise not_installed(error) from error
        engine = StockEngine.load(model.path, config.device, config.dtype, config.threads)
        shape = PromptShape(engine.code_groups, engine.codebook_size, engine.embedding_width)

        def read(ref: PromptRef) -> "Prompt":
            found = self._read(ref, shape, model.ref)
            features = Features(found.ref_code, found.ref_spk_embedding, found.source.transcript)
            return engine.prepare(features)

        return _Loaded(model, engine, shape, PromptCache(read, config.prompt_cache_bytes))

    def _read(self, ref: PromptRef, shape: PromptShape, model: ModelRef) -> PromptFeatures:
        """The prompt file, read once; PromptMissing or PromptCorrupt."""
        try:
            with open(self._data.prompt(ref), "rb") as file:
                data = file.read(FILE_LIMIT_BYTES)
        except FileNotFoundError as error:
            raise PromptMissing(f"There are no prompt features for {ref.voice_id}.") from error
        except OSError as error:
            raise PromptCorrupt(f"The prompt file can't be read: {error}") from error
        features = PromptFeatures.load(data, ref, shape)
        if features.model != model:
            raise PromptMissing(
                f"The prompt features of {ref.voice_id} are for {features.model.id},"
                f" not {model.id}."
            )
        return features


async def _one(pcm: NDArray[np.float32]) -> AsyncIterator[NDArray[np.float32]]:
    yield pcm


def _retrieve(waiting: "asyncio.Future[Any]") -> None:
    """A failure that nobody waits for any more is not worth a log entry."""
    if not waiting.cancelled():
        waiting.exception()
