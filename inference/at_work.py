"""A loaded engine at work: its voices in memory, and who listens to which request.

Belongs to the device thread, but for `voices`, which any thread may ask.
"""

from typing import Literal

from inference.engine import Engine, Output, Request, Voice
from inference.errors import Overloaded, SpeechFailed
from inference.prompt import PromptFeatures
from inference.speaking import Listener, Wish
from inference.voices import PromptCache
from registry.files import PromptRef


class AtWork:
    def __init__(self, engine: Engine, cache_bytes: int, queue_limit: int) -> None:
        """`queue_limit` bounds who waits for a slot; whoever can have one is not counted."""
        self.engine, self._queue_limit = engine, queue_limit
        self.voices: PromptCache[Voice] = PromptCache(cache_bytes)
        self._listeners: dict[Request, Listener] = {}
        self._captures = engine.captures()

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self.engine.setup.limits.slots - self.engine.running

    def prepare(self, ref: PromptRef, features: PromptFeatures) -> Voice:
        """The voice on the device, and in memory for the next request, which may be waiting."""
        if (kept := self.voices.find(ref)) is not None:
            return kept
        voice = self.engine.prepare(
            features.ref_spk_embedding, features.ref_code, features.source.transcript
        )
        self.voices.keep(ref, voice)
        return voice

    def begin(
        self, voice: Voice, wish: Wish, patience_s: float, listener: Listener
    ) -> Literal["icl", "xvec"]:
        """Hand the engine a request; the mode it speaks in. Raises what Engine.submit does."""
        waiting = self.engine.queued - self.free
        if waiting >= self._queue_limit:
            reason = f"{waiting} requests are waiting already. Try again later."
            raise Overloaded(reason, self.engine.retry_after_s)
        request = Request(
            voice, wish.text, wish.language, wish.mode, wish.sampling, patience_s=patience_s
        )
        self.engine.submit(request)
        self._listeners[request] = listener
        return voice.mode(wish.mode)

    def cancel(self, listener: Listener) -> None:
        """Nobody listens any more. Harmless if the speech is over, or never began."""
        for request, other in self._listeners.items():
            if other is listener:
                self.engine.cancel(request)
                del self._listeners[request]
                return

    def step(self) -> bool:
        """One step of the engine, or a CUDA graph for later ones; False if nothing is left."""
        if not self.engine.busy:
            return next(self._captures, None) is not None
        for output in self.engine.step():
            self._tell(output)
        return True

    def fail(self, error: BaseException) -> None:
        """The engine broke: everyone who listens is told."""
        listeners, self._listeners = self._listeners, {}
        for request, listener in listeners.items():
            reason = SpeechFailed(f"The engine failed: {type(error).__name__}: {error}")
            listener.put(Output.of_error(request, reason))

    def _tell(self, output: Output) -> None:
        if output.finished or output.error is not None:
            self._listeners.pop(output.request).put(output)
        else:
            self._listeners[output.request].put(output)
