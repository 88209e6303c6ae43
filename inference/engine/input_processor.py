"""Makes of a request what waits for a slot: it is checked, tokenised and measured."""

import time

import numpy as np
from numpy.typing import NDArray

from inference.engine.frame_budget import FRAMES_PER_S, MAX_FRAMES, MAX_TOKENS
from inference.engine.model_config import ModelConfig
from inference.engine.prompt_builder import PromptBuilder, TokenizedPrompt
from inference.engine.request import Request
from inference.engine.request_queue import QueuedRequest
from inference.engine.room import Room
from inference.engine.state import EngineLimits
from inference.engine.text import TextTokenizer
from registry.errors import LanguageUnsupported, ModeUnavailable, SpeechFailed, TextTooLong


class InputProcessor:
    """Checks requests and prompt features, and tokenises texts."""

    def __init__(
        self,
        config: ModelConfig,
        prompt_builder: PromptBuilder,
        text: TextTokenizer,
        limits: EngineLimits,
    ) -> None:
        self._config, self._text, self._room = config, text, Room(prompt_builder, limits)

    def check_features(
        self, embedding: NDArray[np.float32], codes: NDArray[np.int16] | None
    ) -> None:
        """Raise ValueError if features do not fit the model."""
        config = self._config
        if embedding.shape != (config.talker.hidden_size,) or not np.isfinite(embedding).all():
            raise ValueError(f"The embedding {embedding.shape} is not finite or has a wrong shape.")
        if codes is None:
            return
        if codes.ndim != 2 or codes.shape[1] != config.num_code_groups or not len(codes):
            raise ValueError(
                f"The codes have the shape {codes.shape}, not (T, {config.num_code_groups})."
            )
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= config.codebook_size:
            raise ValueError(
                f"The codes {low} to {high} are not within 0 to {config.codebook_size - 1}."
            )

    def process(self, request: Request) -> QueuedRequest:
        """Make the request ready to wait. Raises what Engine.submit does, but for Overloaded."""
        voice, ids = request.voice, self._text.ids(request.text)
        reference = voice.reference if voice.mode(request.mode) == "icl" else None
        prompt = TokenizedPrompt(voice.speaker, reference, ids, self._language(request.language))
        if not ids:
            raise SpeechFailed("There is no text to speak.")
        if not self._room.holds(prompt):
            raise self._refusal(request.text, prompt)
        size = self._room.size(prompt)
        now = time.perf_counter()
        return QueuedRequest(request, prompt, size.prompt_len, size.trailing_len, size.budget, now)

    def _refusal(self, text: str, prompt: TokenizedPrompt) -> TextTooLong | ModeUnavailable:
        """Say of a text that does not fit how much of it does, and what takes the rest."""
        most = self._room.most(prompt)
        if most == 0:
            return ModeUnavailable(
                f"This voice leaves no room for a text: {self._room.taken(prompt)}. Give it the"
                " words of its clip alone, enrol a shorter clip, or use mode xvec."
            )
        fitting = self._text.fitting(text, most)
        why = f"{MAX_FRAMES} frames, {MAX_FRAMES / FRAMES_PER_S:.0f} s of speech"
        if most < MAX_TOKENS:
            why = f"of this voice, {self._room.taken(prompt)}"
        return TextTooLong(
            f"The text has {len(prompt.ids):,} tokens (of a few letters each), and one request"
            f" speaks {most} at most ({why}): about {_rounded(fitting):,} of these"
            f" {len(text):,} characters fit. Split it at a sentence and speak the parts one"
            " after another."
        )

    def _language(self, name: str | None) -> str | None:
        if name is None or name.lower() == "auto":
            return None
        languages = self._config.codec_tokens.languages
        if name.lower() not in languages:
            known = ", ".join(sorted(languages))
            raise LanguageUnsupported(f"The model doesn't speak {name!r}. It speaks {known}.")
        return name.lower()


def _rounded(count: int) -> int:
    """Round down to tens, as a word should not be cut."""
    return count // 10 * 10 or count
