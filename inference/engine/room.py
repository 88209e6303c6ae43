"""How much text fits into one request beside the voice that speaks it."""

from bisect import bisect_left
from dataclasses import dataclass, replace

from inference.engine.config import EngineConfig
from inference.engine.frame_budget import FRAMES_PER_S, MAX_FRAMES, MAX_TOKENS, frame_budget
from inference.engine.prompt_builder import PromptBuilder, TokenizedPrompt
from inference.engine.state import EngineLimits


@dataclass(frozen=True)
class RequestSize:
    """The memory and tokens that one request takes."""

    prompt_len: int  # positions to prefill
    trailing_len: int  # positions read while it speaks
    budget: int  # frames

    @property
    def positions(self) -> int:
        """Cache entries: of the prompt, of the frames, and the one past the budget."""
        return self.prompt_len + self.budget + 1


class Room:
    """Measures requests: does a text fit, beside the voice that speaks it?"""

    def __init__(self, prompt_builder: PromptBuilder, limits: EngineLimits) -> None:
        self._prompt_builder, self._limits = prompt_builder, limits
        self._positions = min(limits.request_positions, limits.cache_entries)

    def size(self, prompt: TokenizedPrompt) -> RequestSize:
        tokens = len(prompt.ids)
        prompt_len, trailing_len = self._prompt_builder.lengths(prompt)
        # Transcript that outlasts its codes is read while frames are made.
        budget = frame_budget(tokens) + max(0, trailing_len - tokens - 1)
        return RequestSize(prompt_len, trailing_len, min(MAX_FRAMES, budget))

    def holds(self, prompt: TokenizedPrompt) -> bool:
        size = self.size(prompt)
        fits = size.positions <= self._positions and size.trailing_len <= self._limits.trailing_text
        return fits and len(prompt.ids) <= MAX_TOKENS

    def most(self, prompt: TokenizedPrompt) -> int:
        """The most tokens that a text may have in the place of this one."""

        def is_too_long(tokens: int) -> bool:
            return not self.holds(replace(prompt, ids=range(tokens)))

        return bisect_left(range(1, MAX_TOKENS + 1), True, key=is_too_long)

    def taken(self, prompt: TokenizedPrompt) -> str:
        """Say what the voice takes of a request."""
        limits = f"one request has {self._positions:,} positions"
        if prompt.reference is None:
            return limits
        frames, words = len(prompt.reference.codes) - 1, len(prompt.reference.text)
        return (
            f"its transcript has {words:,} tokens for a clip of {frames:,} frames"
            f" ({frames / FRAMES_PER_S:.1f} s), {limits}, and"
            f" {self._limits.trailing_text:,} for tokens that outlast the clip"
        )


def room_beside(frames: int, words: int) -> int:
    """The most tokens of a text that a voice leaves, with so many of transcript over its frames.

    The longest clip leaves room for as many frames as there may be, so only text is counted.
    """
    return max(0, min(MAX_TOKENS, EngineConfig.trailing_text_tokens + frames - words))
