"""From a request to what waits for a slot: checked, tokenised, measured."""

import time

import numpy as np
from numpy.typing import NDArray

from inference.engine.admission import Waiting
from inference.engine.layout import Composer, Script
from inference.engine.params import GREEDY_BELOW, MAX_FRAMES, SamplingParams, frame_budget
from inference.engine.request import Request
from inference.engine.shapes import ModelShape
from inference.engine.state import Choice, Limits
from inference.engine.text import PlainText
from inference.errors import LanguageUnsupported, SpeechFailed, TextTooLong


class Intake:
    def __init__(
        self, shape: ModelShape, composer: Composer, text: PlainText, limits: Limits
    ) -> None:
        self._shape, self._composer, self._text, self._limits = shape, composer, text, limits

    def check(self, embedding: NDArray[np.float32], codes: NDArray[np.int16] | None) -> None:
        """ValueError if features do not fit the model."""
        shape = self._shape
        if embedding.shape != (shape.talker.width,) or not np.isfinite(embedding).all():
            raise ValueError(f"The embedding {embedding.shape} is not finite or has a wrong shape.")
        if codes is None:
            return
        if codes.ndim != 2 or codes.shape[1] != shape.groups or not len(codes):
            raise ValueError(f"The codes have the shape {codes.shape}, not (T, {shape.groups}).")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= shape.codes:
            raise ValueError(f"The codes {low} to {high} are not within 0 to {shape.codes - 1}.")

    def waiting(self, request: Request) -> Waiting:
        """What the request comes to. Raises what Engine.submit does, but for Overloaded."""
        script = self._script(request)
        budget = frame_budget(len(script.ids))
        prompt, ahead = self._composer.lengths(script)
        # Transcript that outlasts its codes is read while frames are made.
        budget = min(MAX_FRAMES, budget + max(0, ahead - len(script.ids) - 1))
        choice = self._choice(request.sampling)
        now = time.perf_counter()
        waiting = Waiting(request, script, choice, prompt, ahead, budget, now)
        self._check_size(waiting)
        return waiting

    def _script(self, request: Request) -> Script:
        voice, ids = request.voice, self._text.ids(request.text)
        reference = voice.reference if voice.mode(request.mode) == "icl" else None
        language = self._language(request.language)
        if not ids:
            raise SpeechFailed("There is no text to speak.")
        return Script(voice.speaker, reference, ids, language, request.text_first)

    def _choice(self, asked: SamplingParams) -> Choice:
        """What is asked, else as the model came."""
        model = self._shape.sampling
        temperature = model.temperature if asked.temperature is None else asked.temperature
        return Choice(
            seed=asked.seed,
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_k=asked.top_k or model.top_k,
            top_p=asked.top_p or model.top_p,
            penalty=asked.repetition_penalty or model.repetition_penalty,
        )

    def _check_size(self, waiting: Waiting) -> None:
        limits = self._limits
        most = min(limits.positions, limits.rows)
        if waiting.positions > most or waiting.ahead > limits.text:
            raise TextTooLong(
                f"The reference and the text take {waiting.positions} positions,"
                f" {waiting.ahead} of them text read while speaking;"
                f" one request has {most} and {limits.text}."
                " Shorten the text, or enrol a shorter clip."
            )

    def _language(self, name: str | None) -> str | None:
        if name is None or name.lower() == "auto":
            return None
        languages = self._shape.codec.languages
        if name.lower() not in languages:
            known = ", ".join(sorted(languages))
            raise LanguageUnsupported(f"The model doesn't speak {name!r}. It speaks {known}.")
        return name.lower()
