"""Speaks with a model in this process, or with none.

Ids and hashes cross to inference, never audio or features. Nothing of `inference` is imported; its
errors are the registry's own.
"""

from collections.abc import Callable
from threading import Lock
from typing import Protocol

from anyio import to_thread

from registry.contract import (
    Deadline,
    Description,
    ExtractedPrompt,
    PromptRef,
    PromptSource,
    Speech,
    SpeechModel,
    SpeechRequest,
    Status,
)
from registry.errors import InferenceOff

LIGHT_BYTES = 128 * 1024 * 1024  # weights up to this load in a second or two
CLOSE_S = 5.0  # how long the request that runs may take to end at shutdown


class Service(SpeechModel, Protocol):
    """The part of `inference.serving.service.InferenceService` that the registry needs."""

    def warm(self) -> None: ...
    def close(self, timeout_s: float) -> bool: ...


class LocalInference:
    """A service in this process, made when it is first needed, so that listing costs no model."""

    encoders = 1

    def __init__(self, make_service: Callable[[], Service]) -> None:
        self._make_service = make_service
        self._service: Service | None = None
        self._lock = Lock()

    def describe(self) -> Description:
        return self._ready().describe()

    def status(self) -> Status | None:
        return None if self._service is None else self._service.status()

    def is_spare(self) -> bool:
        """Tell whether half of the slots are free, on a GPU or with a light model.

        A heavy model is not loaded for this, and does not speak on a CPU.
        """
        status = self.status()
        if status is None or status.queued or 2 * status.running > (status.slots or 2):
            return False
        description = self._ready().describe()
        on_gpu = description.device not in (None, "cpu")
        return on_gpu or (description.weights_bytes or LIGHT_BYTES) <= LIGHT_BYTES

    def refuse_full(self, ahead: int) -> None:
        if self._service is not None:
            self._service.refuse_full(ahead)

    def warm(self) -> None:
        """Start loading the model, and return at once."""
        self._ready().warm()

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> ExtractedPrompt:
        service = await to_thread.run_sync(self._ready)
        return await service.extract_prompt(source, deadline)

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        service = self._service
        if service is None:
            service = await to_thread.run_sync(self._ready)
        return await service.speak(ref, asked)

    def close(self) -> None:
        if self._service is not None:
            self._service.close(CLOSE_S)

    def _ready(self) -> Service:
        with self._lock:
            if self._service is None:
                self._service = self._make_service()
            return self._service


class NoInference:
    """Refuses to enrol and to speak, for a server that only keeps voices."""

    encoders = 1
    _REASON = "This server runs with inference off: it keeps voices but can't enrol or speak."

    def describe(self) -> Description:
        raise InferenceOff(self._REASON)

    def status(self) -> None:
        return None

    def is_spare(self) -> bool:
        return False

    def refuse_full(self, ahead: int) -> None:
        return None

    async def extract_prompt(
        self, source: PromptSource, deadline: Deadline | None = None
    ) -> ExtractedPrompt:
        raise InferenceOff(self._REASON)

    async def speak(self, ref: PromptRef, asked: SpeechRequest) -> Speech:
        raise InferenceOff(self._REASON)

    def close(self) -> None:
        return None
