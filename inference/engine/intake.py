"""From a request to what waits for a slot: checked, tokenised, laid out."""

import time

import numpy as np
from numpy.typing import NDArray

from inference.engine.admission import Waiting
from inference.engine.layout import Composer
from inference.engine.params import MAX_FRAMES, frame_budget
from inference.engine.request import Request
from inference.engine.shapes import ModelShape
from inference.engine.state import Limits
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
        """The request laid out. Raises what Engine.submit does, but for Overloaded."""
        voice, ids = request.voice, self._text.ids(request.text)
        reference = voice.reference if voice.mode(request.mode) == "icl" else None
        language = self._language(request.language)
        if not ids:
            raise SpeechFailed("There is no text to speak.")
        budget = frame_budget(len(ids))
        layout = self._composer.compose(
            voice.speaker, reference, ids, language, text_first=request.text_first
        )
        # Transcript that outlasts its codes is read while frames are made.
        overhang = max(0, len(layout.ahead) - len(ids) - 1)
        waiting = Waiting(request, layout, min(MAX_FRAMES, budget + overhang), time.perf_counter())
        self._check_size(waiting)
        return waiting

    def _check_size(self, waiting: Waiting) -> None:
        limits, ahead = self._limits, len(waiting.layout.ahead)
        most = min(limits.positions, limits.rows)
        if waiting.positions > most or ahead > limits.text:
            raise TextTooLong(
                f"The reference and the text take {waiting.positions} positions, {ahead} of them"
                f" text read while speaking; one request has {most} and {limits.text}."
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
