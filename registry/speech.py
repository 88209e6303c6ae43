"""From a voice and a text to audio. It knows nothing about HTTP, and opens a clip only to heal."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from anyio import to_thread

from registry.encode import Encoder
from registry.enrol import Enroller
from registry.errors import PromptBroken
from registry.inference_client import Description, Inference, SpeakParams, Speech
from registry.languages import language_named
from registry.queries import StoredVoice
from registry.store import VoiceStore


@dataclass(frozen=True)
class Spoken:
    voice: StoredVoice
    speech: Speech
    rebuilt: bool

    @property
    def prompt_cache(self) -> str:
        return "rebuilt" if self.rebuilt else self.speech.prompt_cache

    async def encoded(self, encoder: Encoder) -> AsyncGenerator[bytes, None]:
        """The audio as it is spoken, never ahead of whoever takes it; its end ends the speech."""
        async with aclosing(self.speech.chunks) as chunks:
            async for chunk in chunks:
                if part := await to_thread.run_sync(encoder.feed, chunk):
                    yield part
        if part := encoder.finish():
            yield part


class Speaker:
    def __init__(self, store: VoiceStore, inference: Inference, enroller: Enroller) -> None:
        self._store = store
        self._inference = inference
        self._enroller = enroller
        self._healing = WeakValueDictionary[str, asyncio.Lock]()

    async def speak(self, reference: str, text: str, params: SpeakParams) -> Spoken:
        """Returns once the first chunk exists. A broken prompt is rebuilt once from its clip."""
        voice = await to_thread.run_sync(self._store.get, reference)
        description = await self._enroller.refuse_other_model(voice)
        params = in_words_of(description, with_defaults(params, voice))
        try:
            return await self._from_prompt(voice, text, params, rebuilt=False)
        except PromptBroken:
            return await self._heal_and_speak(voice, text, params)

    async def _from_prompt(
        self, voice: StoredVoice, text: str, params: SpeakParams, *, rebuilt: bool
    ) -> Spoken:
        ref = voice.prompt_ref()
        if ref is None:
            raise PromptBroken(f"{voice.row.name!r} has no prompt features for this model.")
        return Spoken(voice, await self._inference.speak(ref, text, params), rebuilt)

    async def _heal_and_speak(self, voice: StoredVoice, text: str, params: SpeakParams) -> Spoken:
        """Under the voice's lock: of many callers that meet the damage, the first one heals it."""
        lock = self._healing.setdefault(voice.row.id, asyncio.Lock())  # gone with its last holder
        async with lock:
            voice = await to_thread.run_sync(self._store.get, voice.row.id)
            try:
                return await self._from_prompt(voice, text, params, rebuilt=True)
            except PromptBroken:
                voice = await self._enroller.rebuild(voice)
        return await self._from_prompt(voice, text, params, rebuilt=True)


def with_defaults(params: SpeakParams, voice: StoredVoice) -> SpeakParams:
    """What the request says, else what the voice says, else the model's own."""
    return SpeakParams(**voice.defaults.model_dump(exclude_none=True) | params.given())


def in_words_of(description: Description, params: SpeakParams) -> SpeakParams:
    """With the model's name for the language. Raises LanguageUnsupported."""
    if params.language is None:
        return params
    return replace(params, language=language_named(params.language, description.languages))
