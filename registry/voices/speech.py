"""From a voice and a text to audio. It knows nothing about HTTP, and opens a clip only to heal.

A speech that can't be heard is made again, with other seeds and then in x-vector mode: what is
derived from the request's seed is the same at every request.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakValueDictionary

from anyio import to_thread

from registry.audio.encoders import Encoder
from registry.contract import (
    GREEDY_BELOW,
    Description,
    Inference,
    SpeakParams,
    Speech,
    SpeechRequest,
    is_transient,
)
from registry.errors import ModeUnavailable, PromptBroken, SpeechInaudible
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.voices.audible import AudibleChunks
from registry.voices.enrolment import Enroller
from registry.voices.languages import language_named
from registry.voices.line import Line

T = TypeVar("T")

RETRIES = 2  # with other seeds


@dataclass(frozen=True)
class Spoken:
    voice: StoredVoice
    speech: Speech  # the last one that was made
    chunks: AudibleChunks
    first: Speech
    rebuilt: bool
    retries: int = 0
    retries_s: float = 0.0  # all before the last one was asked for

    @property
    def prompt_cache(self) -> str:
        return "rebuilt" if self.rebuilt else self.first.prompt_cache

    @property
    def fell_back(self) -> bool:
        """Whether another mode had to speak."""
        return self.speech.mode != self.first.mode

    @property
    def timings(self) -> Mapping[str, float]:
        """Those of the last one, and what came before and after it until something was heard."""
        told = dict(self.speech.timings)
        if self.retries:
            told = {"retries": self.retries_s} | told
        return told | {"ttfa": self.retries_s + told["ttfa"] + self.chunks.held_s}

    async def encoded(self, encoder: Encoder, *, hold: bool) -> AsyncGenerator[bytes, None]:
        """The audio as it is spoken, never ahead of whoever takes it; its end ends the speech.

        SpeechInaudible if it can't be its text: before the first part for one that is silent, if
        it may `hold` that back, else at the end.
        """
        async with aclosing(self.chunks) as chunks:
            if hold:
                await chunks.hold()
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
        self.line = Line(inference)
        self._healing = WeakValueDictionary[str, asyncio.Lock]()

    async def speak(
        self, reference: str, asked: SpeechRequest, use: Callable[[Spoken], Awaitable[T]]
    ) -> T:
        """What `use` makes of the first speech in which it does not meet SpeechInaudible."""
        with self.line.joined():
            voice = await to_thread.run_sync(self._store.get, reference)
            asked = await self._settled(voice, asked)
        return await self._spoken(voice, asked, use)

    async def speak_as(
        self, voice: StoredVoice, asked: SpeechRequest, use: Callable[[Spoken], Awaitable[T]]
    ) -> T:
        """The same with a voice that was found already, or that is not stored."""
        with self.line.joined():
            asked = await self._settled(voice, asked)
        return await self._spoken(voice, asked, use)

    async def _settled(self, voice: StoredVoice, asked: SpeechRequest) -> SpeechRequest:
        """What the model is asked for. Raises what can be refused without it."""
        description = await self._enroller.refuse_other_model(voice)
        refuse_icl_without_words(voice, asked.params)
        return asked.asking(in_words_of(description, with_defaults(asked.params, voice)))

    async def _spoken(
        self, voice: StoredVoice, asked: SpeechRequest, use: Callable[[Spoken], Awaitable[T]]
    ) -> T:
        begun_s = time.perf_counter()
        spoken = await self._healed(voice, asked)
        for other in other_takes(asked.params, spoken.first):
            try:
                return await use(spoken)
            except SpeechInaudible:
                retries_s = time.perf_counter() - begun_s
                again = await self._healed(spoken.voice, asked.asking(other))
                spoken = replace(
                    spoken,
                    voice=again.voice,
                    speech=again.speech,
                    chunks=again.chunks,
                    rebuilt=spoken.rebuilt or again.rebuilt,
                    retries=spoken.retries + 1,
                    retries_s=retries_s,
                )
        try:
            return await use(spoken)
        except SpeechInaudible as error:
            raise _given_up(error, spoken, asked.params) from error

    async def _healed(self, voice: StoredVoice, asked: SpeechRequest) -> Spoken:
        """Once the first chunk exists. A broken prompt is rebuilt once from its clip."""
        try:
            return await self._from_prompt(voice, asked, rebuilt=False)
        except PromptBroken:
            if is_transient(voice.row.id):
                raise
            return await self._heal_and_speak(voice, asked)

    async def _from_prompt(
        self, voice: StoredVoice, asked: SpeechRequest, *, rebuilt: bool
    ) -> Spoken:
        ref = voice.prompt_ref()
        if ref is None:
            raise PromptBroken(f"{voice.row.name!r} has no prompt features for this model.")
        speech = await self._inference.speak(ref, asked)
        chunks = AudibleChunks(speech.chunks, speech.sample_rate, asked.text)
        return Spoken(voice, speech, chunks, speech, rebuilt)

    async def _heal_and_speak(self, voice: StoredVoice, asked: SpeechRequest) -> Spoken:
        """Under the voice's lock: of many callers that meet the damage, the first one heals it."""
        lock = self._healing.setdefault(voice.row.id, asyncio.Lock())  # gone with its last holder
        async with lock:
            voice = await to_thread.run_sync(self._store.get, voice.row.id)
            try:
                return await self._from_prompt(voice, asked, rebuilt=True)
            except PromptBroken:
                voice = await self._enroller.refresh(voice, asked.client, asked.deadline)
        return await self._from_prompt(voice, asked, rebuilt=True)


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


def other_takes(params: SpeakParams, first: Speech) -> Iterator[SpeakParams]:
    """How else the text may be spoken, without a mode that nobody asked for if one was asked."""
    sampled = params.temperature is None or params.temperature >= GREEDY_BELOW
    for number in range(1, RETRIES + 1 if sampled else 1):
        yield replace(params, seed=derived_seed(first.seed, number))
    if first.mode == "icl" and params.mode != "icl":
        yield replace(params, seed=first.seed, mode="xvec")


def derived_seed(seed: int, number: int) -> int:
    """Far from its neighbours, so that who counts seeds up hears none of them twice."""
    return (seed + number * 0x9E3779B1) % 2**31


def _given_up(error: SpeechInaudible, spoken: Spoken, params: SpeakParams) -> SpeechInaudible:
    tried = f" {spoken.retries} more tries came to no better." if spoken.retries else ""
    asked = params.mode in ("icl", "xvec")
    modes = f"in mode {params.mode}, which is asked for" if asked else "in any mode"
    advice = ", or ask for mode auto" if params.mode == "icl" else ""
    return SpeechInaudible(
        f"{error.detail}{tried} The model can't speak this text {modes}: write it as a longer"
        f" sentence, in a language and script that the model knows{advice}."
    )
