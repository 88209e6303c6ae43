"""Makes audio of a voice and a text. It knows nothing about HTTP, and opens no clip."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from anyio import to_thread

from registry.contract import Description, Inference, SpeakParams, SpeechRequest
from registry.errors import ModeUnavailable
from registry.storage.queries import Visible
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.voices.enrolment import Enroller
from registry.voices.healing import Healer
from registry.voices.languages import language_named
from registry.voices.line import Line
from registry.voices.takes import Spoken, Takes

T = TypeVar("T")


class Speaker:
    """Speaks texts in stored voices, or in voices for one speech."""

    def __init__(self, store: VoiceStore, inference: Inference, enroller: Enroller) -> None:
        self._store = store
        self._inference = inference
        self._enroller = enroller
        self._healer = Healer(store, enroller)
        self.line = Line(inference)

    async def speak(
        self,
        reference: str,
        asked: SpeechRequest,
        use: Callable[[Spoken], Awaitable[T]],
        only: Visible = None,
    ) -> T:
        """Speak in a stored voice; return what `use` makes of the first take that can be heard.

        A take fails if `use` raises SpeechInaudible.
        """
        with self.line.joined():
            voice = await to_thread.run_sync(self._store.get, reference, only)
            asked = await self._settled(voice, asked)
        return await Takes(self._inference, self._healer, voice, asked).used_by(use)

    async def speak_as(
        self, voice: StoredVoice, asked: SpeechRequest, use: Callable[[Spoken], Awaitable[T]]
    ) -> T:
        """Do as `speak` does with a voice that was found already, or that is not stored."""
        with self.line.joined():
            asked = await self._settled(voice, asked)
        return await Takes(self._inference, self._healer, voice, asked).used_by(use)

    async def _settled(self, voice: StoredVoice, asked: SpeechRequest) -> SpeechRequest:
        """Return what to ask of the model. Raises all that can be refused without it."""
        description = await self._enroller.refuse_other_model(voice)
        refuse_icl_without_words(voice, asked.params)
        return asked.asking(in_words_of(description, with_defaults(asked.params, voice)))


def with_defaults(params: SpeakParams, voice: StoredVoice) -> SpeakParams:
    """Merge parameters: the request's win over the voice's, which win over the model's own."""
    return SpeakParams(**voice.defaults.model_dump(exclude_none=True) | params.given())


def in_words_of(description: Description, params: SpeakParams) -> SpeakParams:
    """Replace the language by the model's name for it. Raises LanguageUnsupported."""
    if params.language is None:
        return params
    return replace(params, language=language_named(params.language, description.languages))


def refuse_icl_without_words(voice: StoredVoice, params: SpeakParams) -> None:
    """Raise ModeUnavailable before a GPU starts for icl without a transcript.

    The sentence says whether the request or the voice's defaults ask for the mode.
    """
    asked = params.mode or voice.defaults.mode
    if asked == "icl" and voice.source.transcript is None:
        why = "the request asks for" if params.mode else "it speaks in by default"
        raise ModeUnavailable(
            f"{voice.row.name!r} has no transcript, so it can't speak in mode icl, which {why}."
            " Ask for mode auto or xvec, or give it the words of its clip."
        )
