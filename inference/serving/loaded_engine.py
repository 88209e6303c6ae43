"""A loaded engine at work: its voices in memory, and who listens to which request.

Belongs to the device thread, but for `voices`, which any thread may ask.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from inference.engine import Engine, EngineConfig, Output, PreparedVoice, Request
from inference.engine.checkpoint.host_checkpoint import HostCheckpoint, loading
from inference.prompts.features import PromptFeatures
from inference.serving.prompt_cache import PromptCache
from inference.serving.stream import OutputCollector
from inference.serving.worker import too_many
from registry.contract import Mode, PromptRef, SpeechRequest, SpokenMode, is_transient
from registry.errors import Overloaded, SpeechFailed

RETRY_S = 1.0  # the voices that nobody speaks with are gone at once

log = logging.getLogger(__name__)


def load(
    folder: Path, checkpoint: HostCheckpoint | None, config: EngineConfig, streams: int
) -> Engine:
    """Load an engine and make it ready for so many streams; ModelUnavailable says why it is not."""
    with loading(f"The model in {folder}"):
        torch.cuda.empty_cache()  # of an engine before; nothing where CUDA was not used
        engine = Engine.of(checkpoint, config) if checkpoint else Engine.load(folder, config)
        engine.capture(streams)  # the rest follows when nobody waits
        return engine


class Accepted(NamedTuple):
    """The mode and the text tokens of a request, known as soon as it waits for a slot."""

    mode: SpokenMode
    text_tokens: int


class LoadedEngine:
    """Serves until `fail`; then it holds nothing, and refuses every call with the reason."""

    def __init__(self, engine: Engine, cache_bytes: int, queue_limit: int) -> None:
        """`queue_limit` bounds who waits for a slot; whoever can have one is not counted."""
        self.engine: Engine | None = engine
        self._queue_limit = queue_limit
        self._reason = ""
        self.voices: PromptCache[PreparedVoice] = PromptCache(cache_bytes)
        self._collectors: dict[Request, OutputCollector] = {}
        self._captures: Iterator[object] = engine.captures()

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        engine = self.engine
        return engine.setup.limits.slots - engine.running if engine else 0

    @property
    def waiting(self) -> int:
        """How many wait beyond those that a free slot is for; below 0 if slots are spare."""
        engine = self.engine
        return engine.queued - self.free if engine else 0

    @property
    def retry_after_s(self) -> float:
        engine = self.engine
        return engine.retry_after_s if engine else RETRY_S

    def prepare(self, ref: PromptRef, features: PromptFeatures) -> PreparedVoice:
        """Put the voice on the device, and keep it for the next request, which may be waiting.

        One that no next request can name is not kept, and puts out nobody.
        """
        if (kept := self.voices.find(ref)) is not None:
            return kept
        try:
            voice = self._working().prepare(
                features.ref_spk_embedding, features.ref_code, features.source.transcript
            )
        except torch.OutOfMemoryError as error:
            self.voices.clear()
            reason = "The device has too little memory left for another voice. Try again later."
            raise Overloaded(reason, RETRY_S) from error
        if not is_transient(ref.voice_id):
            self.voices.keep(ref, voice)
        return voice

    def begin(
        self,
        voice: PreparedVoice,
        asked: SpeechRequest,
        patience_s: float,
        collector: OutputCollector,
    ) -> Accepted:
        """Hand the engine a request; returns its mode. Raises what Engine.submit does."""
        engine = self._working()
        if self.waiting >= self._queue_limit:
            raise too_many(self.waiting, engine.retry_after_s)
        mode: Mode = asked.params.mode or "auto"
        request = Request(
            voice,
            asked.text,
            asked.params.language,
            mode,
            asked.params,
            patience_s=patience_s,
            client=asked.client,
        )
        text_tokens = engine.submit(request)
        self._collectors[request] = collector
        return Accepted(voice.mode(mode), text_tokens)

    def cancel(self, collector: OutputCollector) -> None:
        """End the request that nobody listens to. Harmless if it is over, or never began."""
        for request, other in self._collectors.items():
            if other is collector:
                self._working().cancel(request)
                del self._collectors[request]
                return

    def step(self) -> bool:
        """Step the engine, or capture a CUDA graph for later; False if nothing is left to do."""
        engine = self._working()
        if not engine.busy:
            return self._capture()
        for output in engine.step():
            self._tell(output)
        return True

    def close(self, refusal: Overloaded) -> None:
        """Refuse whoever waits for a slot; what has one goes on."""
        engine, self._captures = self._working(), iter(())
        waiting = [r for r in self._collectors if engine.position(r) is not None]
        for request in waiting:
            engine.cancel(request)
            self._tell(Output.of_error(request, refusal))

    def fail(self, error: BaseException) -> SpeechFailed:
        """Tell everyone who listens that the engine broke, and whoever still comes."""
        self._reason = f"The engine failed: {type(error).__name__}: {error}"
        collectors, self._collectors = self._collectors, {}
        for request, collector in collectors.items():
            collector.put(Output.of_error(request, SpeechFailed(self._reason)))
        self.engine, self._captures, self.voices = None, iter(()), PromptCache(0)
        return SpeechFailed(self._reason)

    def _working(self) -> Engine:
        if self.engine is None:
            raise SpeechFailed(self._reason)
        return self.engine

    def _capture(self) -> bool:
        """Capture one more graph; an engine that can't is only slower."""
        try:
            return next(self._captures, None) is not None
        except RuntimeError as error:
            log.warning("The engine captures no more CUDA graphs.", exc_info=error)
            self._captures = iter(())
            return False

    def _tell(self, output: Output) -> None:
        if output.finished or output.error is not None:
            self._collectors.pop(output.request).put(output)
        else:
            self._collectors[output.request].put(output)
