"""From a voice and a text to audio. It knows nothing about HTTP, and opens no clip."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from anyio import to_thread

from registry.contract import Description, Inference, SpeakParams, SpeechRequest
from registry.errors import ModeUnavailable
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.voices.enrolment import Enroller
from registry.voices.healing import Healer
from registry.voices.languages import language_named
from registry.voices.line import Line
from registry.voices.takes import Spoken, Takes

T = TypeVar("T")


class Speaker:
    def __init__(self, store: VoiceStore, inference: Inference, enroller: Enroller) -> None:
        self._store = store
        self._inference = inference
        self._enroller = enroller
        self._healer = Healer(store, enroller)
        self.line = Line(inference)

    async def speak(
        self, reference: str, asked: SpeechRequest, use: Callable[[Spoken], Awaitable[T]]
    ) -> T:
        """What `use` makes of the first speech in which it does not meet SpeechInaudible."""
        with self.line.joined():
            voice = await to_thread.run_sync(self._store.get, reference)
            asked = await self._settled(voice, asked)
        return await Takes(self._inference, self._healer, voice, asked).used_by(use)

    async def speak_as(
        self, voice: StoredVoice, asked: SpeechRequest, use: Callable[[Spoken], Awaitable[T]]
    ) -> T:
        """The same with a voice that was found already, or that is not stored."""
        with self.line.joined():
            asked = await self._settled(voice, asked)
        return await Takes(self._inference, self._healer, voice, asked).used_by(use)

    async def _settled(self, voice: StoredVoice, asked: SpeechRequest) -> SpeechRequest:
        """What the model is asked for. Raises what can be refused without it."""
        description = await self._enroller.refuse_other_model(voice)
        refuse_icl_without_words(voice, asked.params)
        return asked.asking(in_words_of(description, with_defaults(asked.params, voice)))


def with_defaults(params: SpeakParams, voice: StoredVoice) -> SpeakParams:
    """What the request says, else what the voice says, else the model's own."""
    return SpeakParams(**voice.defaults.model_dump(exclude_none=True) | params.given())


def in_words_of(description: Description, params: SpeakParams) -> SpeakParams:
    """With the model's name for the language. Raises LanguageUnsupported."""
    if params.language is None:
        return params
    return replace(params, language=language_named(params.language, description.languages))


def refuse_icl_without_words(voice: StoredVoice, params: SpeakParams) -> None:
    """Before a GPU is woken for it; the sentence says who asks for the mode."""
    asked = params.mode or voice.defaults.mode
    if asked == "icl" and voice.source.transcript is None:
        why = "the request asks for" if params.mode else "it speaks in by default"
        raise ModeUnavailable(
            f"{voice.row.name!r} has no transcript, so it can't speak in mode icl, which {why}."
            " Ask for mode auto or xvec, or give it the words of its clip."
        )
