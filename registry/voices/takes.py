"""Speaks one text in one voice, and again if nothing of it could be heard. Knows nothing of HTTP.

The next takes have other seeds, and the last one is in x-vector mode. Their seeds are derived from
the request's, so the same request gives the same speech.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from anyio import to_thread

from registry.audio.encoding.rendering import Renderer
from registry.contract import (
    GREEDY_BELOW,
    Inference,
    SpeakParams,
    Speech,
    SpeechRequest,
    is_transient,
)
from registry.errors import PromptBroken, SpeechInaudible
from registry.storage.stored_voice import StoredVoice
from registry.voices.audible import AudibleChunks
from registry.voices.healing import Healer

T = TypeVar("T")

RETRIES = 2  # takes with other seeds


@dataclass(frozen=True)
class Spoken:
    """A speech that has begun, and what it took to come to it."""

    voice: StoredVoice
    speech: Speech  # the last one that was made
    chunks: AudibleChunks
    first: Speech
    rebuilt: bool
    retries: int = 0
    retries_s: float = 0.0  # what all takes before the last one took

    @property
    def prompt_cache(self) -> str:
        return "rebuilt" if self.rebuilt else self.first.prompt_cache

    @property
    def fell_back(self) -> bool:
        """True if another mode had to speak."""
        return self.speech.mode != self.first.mode

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by stage of the last take, with all that passed until something was heard."""
        told = dict(self.speech.timings)
        if self.retries:
            told = {"retries": self.retries_s} | told
        return told | {"ttfa": self.retries_s + told["ttfa"] + self.chunks.held_s}

    async def rendered(self, renderer: Renderer, *, hold: bool) -> AsyncGenerator[bytes, None]:
        """Yield the audio to send as it is spoken, never ahead of its reader.

        Closing it ends the speech. Raises SpeechInaudible if it can't be its text: before the first
        part for one that is silent, if it may `hold` that back, else at the end.
        """
        async with aclosing(self.chunks) as chunks:
            if hold:
                await chunks.hold()
            async for chunk in chunks:
                if part := await to_thread.run_sync(renderer.feed, chunk):
                    yield part
        rest = filter(None, renderer.finish())
        while part := await to_thread.run_sync(next, rest, b""):
            yield part


class Takes:
    """Speaks one text until one of its takes can be heard."""

    def __init__(
        self, inference: Inference, healer: Healer, voice: StoredVoice, asked: SpeechRequest
    ) -> None:
        self._inference, self._healer = inference, healer
        self._voice, self._asked = voice, asked

    async def used_by(self, use: Callable[[Spoken], Awaitable[T]]) -> T:
        """Return what `use` makes of the first take for which it does not raise SpeechInaudible."""
        begun_s = time.perf_counter()
        spoken = await self._take(self._asked.params)
        for params in other_takes(self._asked.params, spoken.first):
            try:
                return await use(spoken)
            except SpeechInaudible:
                retries_s = time.perf_counter() - begun_s
                again = await self._take(params)
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
            raise _given_up(error, spoken, self._asked.params) from error

    async def _take(self, params: SpeakParams) -> Spoken:
        """Speak, and return once the first chunk exists. A broken prompt is rebuilt once."""
        try:
            return await self._first_chunk(self._voice, params, rebuilt=False)
        except PromptBroken:
            if is_transient(self._voice.row.id):
                raise
            again = partial(self._first_chunk, params=params, rebuilt=True)
            client, deadline = self._asked.client, self._asked.deadline
            spoken = await self._healer.healed(self._voice, client, deadline, again)
        self._voice = spoken.voice
        return spoken

    async def _first_chunk(
        self, voice: StoredVoice, params: SpeakParams, *, rebuilt: bool
    ) -> Spoken:
        ref = voice.prompt_ref()
        if ref is None:
            raise PromptBroken(f"{voice.row.name!r} has no prompt features for this model.")
        speech = await self._inference.speak(ref, self._asked.asking(params))
        chunks = AudibleChunks(speech.chunks, speech.sample_rate, self._asked.text)
        return Spoken(voice, speech, chunks, speech, rebuilt)


def other_takes(params: SpeakParams, first: Speech) -> Iterator[SpeakParams]:
    """Yield the parameters of further takes; no other mode is tried where one was asked for."""
    sampled = params.temperature is None or params.temperature >= GREEDY_BELOW
    for number in range(1, RETRIES + 1 if sampled else 1):
        yield replace(params, seed=derived_seed(first.seed, number))
    if first.mode == "icl" and params.mode != "icl":
        yield replace(params, seed=first.seed, mode="xvec")


def derived_seed(seed: int, number: int) -> int:
    """Derive a seed far from its neighbours: a client that counts seeds up hears none twice."""
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
