"""Inference as the registry and the CLI see it: ids and text in, prompt files and PCM out.

One daemon thread owns the engine and steps it for any number of callers, on any event loop; another
extracts prompts, so that enrolling stops nobody's speech. torch is first imported on those threads.
Knows nothing of names, SQL or HTTP.
"""

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

from inference.models.catalog import LocatedModel, load_model_config, not_imported
from inference.models.read_ahead import reading_ahead
from inference.prompts.features import FeatureShape, PromptFeatures
from inference.serving import worker
from inference.serving.config import ServiceConfig
from inference.serving.stream import EngineChunks, OutputCollector, Stopwatch, with_seed
from inference.serving.voice_files import VoiceFiles
from inference.serving.worker import ArrivalCounter, DeviceThread, too_slow
from registry.contract import (
    Deadline,
    Description,
    ExtractedPrompt,
    InferenceState,
    PromptRef,
    PromptSource,
    Speech,
    SpeechRequest,
    Status,
)
from registry.errors import Overloaded, PromptMissing, RegistryError, SpeechFailed
from registry.storage.data_dir import DataDir, sha256_of

if TYPE_CHECKING:
    from inference.engine import Counters, Engine, PreparedVoice
    from inference.engine.checkpoint.host_checkpoint import HostCheckpoint
    from inference.engine.extract import Extractor
    from inference.serving.loaded_engine import LoadedEngine

T = TypeVar("T")

log = logging.getLogger(__name__)


class InferenceService:
    """Extracts prompts and speaks. Close it when done: `close` lets what runs finish."""

    def __init__(
        self,
        data: DataDir | VoiceFiles,
        model: LocatedModel | Callable[[], LocatedModel],
        config: ServiceConfig | None = None,
        checkpoint: "HostCheckpoint | None" = None,
    ) -> None:
        """`model` may be a function that finds it: called at first use, until it succeeds.

        With `checkpoint`, the model in host memory, the first load only moves it to the device.
        """
        self._files = data if isinstance(data, VoiceFiles) else VoiceFiles(data)
        self._find: Callable[[], LocatedModel] = (
            (lambda: model) if isinstance(model, LocatedModel) else model
        )
        self._config = config or ServiceConfig()
        self._thread = DeviceThread("engine", self._config.queue_limit, self._step, self._judged)
        self._extracting = DeviceThread("extract", self._config.queue_limit)
        self._finding = threading.Lock()
        self._model: LocatedModel | None = None
        self._checkpoint = checkpoint
        self._loaded: LoadedEngine | None = None
        self._extractor: Extractor | None = None
        self._state: InferenceState = "cold"
        self._error: str | None = None
        self._arrivals = ArrivalCounter(self._thread)

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> ExtractedPrompt:
        """Read the conditioned clip, write the prompt file; ExtractionFailed. No GPU is awaited."""
        job = self._extracting.submit(lambda: self._extract(source))
        async with worker.to_its_end(job):
            return await self._wait_for(job)

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        """Speak with the prompt `ref`; returns once the first chunk exists.

        ValueError for a value out of range. Leaving, at any time, frees what was taken.
        """
        asked, stopwatch = with_seed(asked), Stopwatch()
        with self._arrivals.counted() as arrived:
            loaded = await self._await_engine()
            stopwatch.lap("load")
            voice, prompt_cache = await self._voice(loaded, ref)
            stopwatch.lap("prompt")
            collector = OutputCollector()
            with self._cancelled_if_left(collector):
                waited_s = stopwatch.total_s - stopwatch.laps["load"]  # the model is not the queue
                patience_s = max(0.0, self._config.queue_timeout_s - waited_s)
                job = self._thread.submit_short(
                    lambda: loaded.begin(voice, asked, patience_s, collector)
                )
                accepted = await self._wait_for(job)
                arrived()  # the engine counts it now
                stopwatch.lap("queue")
                first = await collector.get()
        if first.timings is not None:
            stopwatch.add("queue", first.timings.admitted_s)
        return Speech(
            sample_rate=self.located().sample_rate,
            seed=asked.params.seed or 0,
            prompt_cache=prompt_cache,
            **accepted._asdict(),
            timings=stopwatch.laps | {"ttfa": stopwatch.total_s},
            chunks=EngineChunks(first, collector, lambda: self._forget(collector)),
        )

    def located(self) -> LocatedModel:
        """Find the model's files. The first call may take long: it may have to hash them."""
        with self._finding:
            if self._model is None:
                self._model = self._find()
            return self._model

    def describe(self) -> Description:
        """Say what the model is, without loading it; see `located`."""
        model, engine = self.located(), self._engine
        setup = None if engine is None else engine.setup
        return Description(
            model=model.ref,
            source=model.source,
            languages=model.languages,
            sample_rate=model.sample_rate,
            weights_bytes=model.weights_bytes,
            dtype=str(setup.dtype).removeprefix("torch.") if setup else None,
            device=str(setup.device) if setup else None,
        )

    def status(self) -> Status:
        engine = self._engine
        ended = self._thread.has_died or self._extracting.has_died
        return Status(
            state="failed" if ended else self._state,
            queued=self._arrivals.waiting
            + self._extracting.queued
            + (engine.queued if engine else 0),
            running=max(self._thread.running, engine.running if engine else 0)
            + self._extracting.running,
            slots=engine.setup.limits.slots if engine else None,
            queue_limit=self._config.queue_limit,
            error="A thread of the model has died" if ended else self._error,
        )

    def refuse_full(self, ahead: int = 0) -> None:
        """Raise Overloaded if a speech after `ahead` others would be refused; it only counts."""
        loaded = self._loaded
        waiting = ahead + self._arrivals.waiting + (loaded.waiting if loaded else 0)
        if waiting >= self._config.queue_limit:
            raise worker.too_many(waiting, (loaded or self._thread).retry_after_s)

    def counters(self) -> "Counters | None":
        """The engine's counters; None until it is loaded."""
        engine = self._engine
        return None if engine is None else engine.counters

    def warm(self) -> None:
        """Start loading the model, if nothing else does, then the encoders; returns at once."""
        if self._loaded is None:
            with contextlib.suppress(Overloaded):  # then the requests before this one will load it
                self._thread.submit(self._ready_engine).add_done_callback(self._warm_extractor)

    def _warm_extractor(self, loaded: "Future[LoadedEngine]") -> None:
        """Load the encoders: their imports take seconds, which no enrolment need wait for."""
        if not loaded.cancelled() and loaded.exception() is None:
            with contextlib.suppress(Overloaded):
                self._extracting.submit(self._ready_extractor)

    async def ready(self) -> None:
        """Returns when the model is loaded; raises why it is not."""
        await self._await_engine()

    def close(self, timeout_s: float) -> bool:
        """Refuse new requests and all that wait; True if what runs ended in `timeout_s`."""
        deadline_s, threads = time.monotonic() + timeout_s, (self._thread, self._extracting)
        for thread in threads:
            thread.close(0.0)
        ended = [thread.close(max(0.0, deadline_s - time.monotonic())) for thread in threads]
        return all(ended)

    @property
    def _engine(self) -> "Engine | None":
        loaded = self._loaded
        return None if loaded is None else loaded.engine

    async def _await_engine(self) -> "LoadedEngine":
        """Wait for the loaded engine; it is loaded if it must be."""
        if self._loaded is not None:
            return self._loaded
        return await self._wait_for(self._thread.submit(self._ready_engine))

    async def _voice(
        self, loaded: "LoadedEngine", ref: PromptRef
    ) -> tuple["PreparedVoice", Literal["memory", "file"]]:
        """Take the voice from memory, else from its file, read beside the device thread."""
        if (kept := loaded.voices.find(ref)) is not None:
            return kept, "memory"
        features = await asyncio.to_thread(self._read, ref)
        job = self._thread.submit(lambda: loaded.prepare(ref, features), loaded.free)
        return await self._wait_for(job), "file"

    async def _wait_for(self, job: "Future[T]") -> T:
        """Wait for the job's result; Overloaded if it has not begun in time. Leaving cancels it."""
        waiting = asyncio.wrap_future(job)
        waiting.add_done_callback(worker.retrieve)
        try:
            await asyncio.wait({waiting}, timeout=self._config.queue_timeout_s)
            if not job.done() and job.cancel():
                reason = "model is still loading" if self._state == "warming" else "queue is slow"
                raise too_slow(reason, self._config.queue_timeout_s, self._thread.retry_after_s)
            return await waiting
        finally:
            job.cancel()
            waiting.cancel()

    def _forget(self, collector: OutputCollector) -> None:
        self._thread.post(lambda: self._cancel(collector))

    def _cancel(self, collector: OutputCollector) -> None:
        if self._loaded is not None:
            self._loaded.cancel(collector)

    @contextlib.contextmanager
    def _cancelled_if_left(self, collector: OutputCollector) -> Iterator[None]:
        """Give back what was taken if the caller leaves, by an error or by being cancelled."""
        with contextlib.ExitStack() as leaving:
            leaving.callback(self._forget, collector)
            yield
            leaving.pop_all()

    def _step(self) -> bool:
        """Work between jobs, on the device thread. An engine that breaks is loaded again."""
        loaded = self._loaded
        if loaded is None:
            return False
        try:
            if self._thread.closed:
                loaded.close(worker.closing())
            return loaded.step()
        except BaseException as error:  # the thread goes on, and loads another engine when asked
            self._broken(error)
            return False

    def _judged(self, error: BaseException) -> BaseException:
        """Judge what a job raised: whatever is no refusal has broken the engine."""
        refusal = isinstance(error, RegistryError | ValueError | TypeError)
        return error if refusal else self._broken(error)

    def _broken(self, error: BaseException) -> SpeechFailed:
        """Let go of the engine, and tell everyone: the next one needs its memory."""
        log.error("The engine failed while speaking.", exc_info=error)
        loaded, self._loaded = self._loaded, None
        self._state, self._error = "failed", f"{type(error).__name__}: {error}"
        traceback.clear_frames(error.__traceback__)
        return SpeechFailed(self._error) if loaded is None else loaded.fail(error)

    def _ready_engine(self) -> "LoadedEngine":
        """Load the engine if it is not; the next request tries again what failed."""
        if self._loaded is None:
            if self._state == "failed":
                gc.collect()  # what is left of another engine: two may not fit on the device
            self._state, self._error = "warming", None
            try:
                self._loaded = self._load()
            except (RegistryError, ValueError, TypeError) as error:
                self._error = str(error)
                log.error("The model can't be loaded: %s", error)
                raise
            finally:
                self._state = "failed" if self._loaded is None else "warm"
        return self._loaded

    def _load(self) -> "LoadedEngine":
        model, config = self.located(), self._config
        try:
            with reading_ahead(model.path):
                from inference.engine import EngineConfig
                from inference.serving.loaded_engine import LoadedEngine, load
        except (ImportError, OSError) as error:
            raise not_imported(error) from error
        options = EngineConfig(
            device=config.device,
            dtype=config.dtype,
            threads=config.threads,
            slots=config.slots,
            queue_limit=sys.maxsize,  # LoadedEngine bounds it
        )
        checkpoint, self._checkpoint = self._checkpoint, None
        engine = load(model.path, checkpoint, options, streams=1 + self._thread.queued)
        return LoadedEngine(engine, config.prompt_cache_bytes, config.queue_limit)

    def _extract(self, source: PromptSource) -> ExtractedPrompt:
        extractor, model = self._ready_extractor(), self.located()
        samples = self._files.clip(source)
        found = extractor.extract(samples, source.transcript or None)
        codes, embedding = found.ref_code, found.ref_spk_embedding
        features = PromptFeatures(source, model.ref, codes, embedding)
        data = features.save(self._shape)
        ref = PromptRef(source.voice_id, features.fingerprint, sha256_of(data))
        self._files.keep(ref, data)
        return ExtractedPrompt(
            ref.fingerprint, ref.sha256, features.frames, features.modes, features.model, found.room
        )

    def _ready_extractor(self) -> "Extractor":
        if self._extractor is None:
            model = self.located()
            try:
                from inference.engine.checkpoint.qwen import import_qwen_tts
                from inference.engine.extract import Extractor

                import_qwen_tts()
            except (ImportError, OSError) as error:
                raise not_imported(error) from error
            self._extractor = Extractor.load(
                model.path, load_model_config(model.path), self._config.device
            )
        return self._extractor

    @cached_property
    def _shape(self) -> FeatureShape:
        """Return the shape that features must have."""
        config = load_model_config(self.located().path)
        size = config.talker.hidden_size
        return FeatureShape(config.num_code_groups, config.codebook_size, size)

    def _read(self, ref: PromptRef) -> PromptFeatures:
        """Read the prompt file; PromptMissing or PromptCorrupt."""
        model = self.located()
        features = PromptFeatures.load(self._files.prompt(ref), ref, self._shape)
        if features.model != model.ref:
            found, wanted = features.model.id, model.ref.id
            raise PromptMissing(f"The features of {ref.voice_id} are for {found}, not {wanted}.")
        return features
