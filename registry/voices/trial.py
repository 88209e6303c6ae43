"""Speaks a short sentence to nobody: its length tells whether a new voice's transcript is right.

It is spoken twice at once, in icl, which reads the transcript against the clip, and in x-vector
mode, which does not. With the right words both are about as long. A trial never takes longer than
its limit, and never fails what it is a part of.
"""

import asyncio
import logging
from contextlib import aclosing

from anyio import to_thread

from registry.contract import Inference, PromptRef, SpeakParams, SpeechRequest
from registry.errors import RegistryError
from registry.text import script_of
from registry.voices.audible import LEAST_S, Hearing

LIMIT_S = 10.0
SEED = 1
SHORT, LONG = 0.7, 1.5  # shares of the length without the transcript: benchmarks/transcripts.py
OPENING = "A trial sentence"
SENTENCES = {
    "chinese": "这是一个简短的句子，用来听听这个声音怎么说话。",  # noqa: RUF001
    "english": "This is a short sentence to hear how the voice speaks.",
    "french": "Voici une courte phrase pour entendre comment parle cette voix.",
    "german": "Dies ist ein kurzer Satz, um zu hören, wie die Stimme spricht.",
    "italian": "Questa è una breve frase per sentire come parla la voce.",
    "japanese": "これは、この声がどのように話すかを聞くための短い文です。",
    "korean": "이것은 목소리가 어떻게 말하는지 들어 보기 위한 짧은 문장입니다.",
    "portuguese": "Esta é uma frase curta para ouvir como a voz fala.",
    "russian": "Это короткое предложение, чтобы услышать, как говорит голос.",
    "spanish": "Esta es una frase corta para oír cómo habla la voz.",
}

log = logging.getLogger("registry")


class Trial:
    """Tries transcripts by speaking a sentence, where inference has room to spare."""

    def __init__(self, inference: Inference, limit_s: float = LIMIT_S) -> None:
        """Prepare trials of `limit_s` seconds at most; 0 tries nothing."""
        self._inference, self._limit_s = inference, limit_s

    async def warnings(
        self, ref: PromptRef, transcript: str, language: str | None
    ) -> list[str] | None:
        """Return what the sentence tells against the transcript; None if it tells nothing."""
        if not self._limit_s or not await to_thread.run_sync(self._inference.is_spare):
            return None
        text = SENTENCES.get(language or "") or SENTENCES[script_of(transcript)]
        try:
            async with asyncio.timeout(self._limit_s), asyncio.TaskGroup() as both:
                icl, xvec = (
                    both.create_task(self._heard_s(ref, SpeechRequest(text, params)))
                    for params in (
                        SpeakParams(SEED, language=language, mode="icl"),
                        SpeakParams(SEED, language=language, mode="xvec"),
                    )
                )
        except TimeoutError:
            return None
        with_words_s, without_s = icl.result(), xvec.result()
        if with_words_s is None or without_s is None or without_s < LEAST_S:
            return None
        return judged(with_words_s, without_s)

    async def _heard_s(self, ref: PromptRef, asked: SpeechRequest) -> float | None:
        """Return the audible seconds of a speech; None if it could not be spoken."""
        try:
            speech = await self._inference.speak(ref, asked)
            hearing = Hearing(speech.sample_rate)
            async with aclosing(speech.chunks) as chunks:
                async for samples in chunks:
                    hearing.hear(samples)
        except RegistryError as error:
            log.info("A trial sentence in %s told nothing: %s", asked.params.mode, error.detail)
            return None
        return hearing.heard_s


def judged(icl_s: float, xvec_s: float) -> list[str]:
    """Return in words what two lengths of the same sentence tell about the transcript."""
    ratio = icl_s / xvec_s
    if SHORT <= ratio <= LONG:
        return []
    icl = f"is {icl_s:.1f} s long" if icl_s >= LEAST_S else "can't be heard"
    if ratio < SHORT:
        reason = "lacks words of the clip, which swallow what is to be spoken"
    else:
        reason = "has words that are not in the clip, and are spoken too"
    return [
        f"{OPENING} {icl} in icl mode, and is {xvec_s:.1f} s long in x-vector mode: the transcript"
        f" seems to be wrong, as if it {reason}. Give exactly the words that are heard in the clip,"
        " or speak in xvec mode."
    ]
