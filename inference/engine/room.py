"""How much text fits into one request beside the voice that speaks it."""

from bisect import bisect_left
from dataclasses import dataclass, replace

from inference.engine.config import EngineConfig
from inference.engine.layout import Composer, Script
from inference.engine.params import FRAMES_PER_S, MAX_FRAMES, MAX_TOKENS, frame_budget
from inference.engine.state import Limits


@dataclass(frozen=True)
class Size:
    """Of one request."""

    prompt: int  # positions to prefill
    ahead: int  # positions read while it speaks
    budget: int  # frames

    @property
    def positions(self) -> int:
        """With the one past the budget."""
        return self.prompt + self.budget + 1


class Room:
    def __init__(self, composer: Composer, limits: Limits) -> None:
        self._composer, self._limits = composer, limits
        self._positions = min(limits.positions, limits.rows)

    def size(self, script: Script) -> Size:
        tokens = len(script.ids)
        prompt, ahead = self._composer.lengths(script)
        # Transcript that outlasts its codes is read while frames are made.
        budget = frame_budget(tokens) + max(0, ahead - tokens - 1)
        return Size(prompt, ahead, min(MAX_FRAMES, budget))

    def holds(self, script: Script) -> bool:
        size = self.size(script)
        fits = size.positions <= self._positions and size.ahead <= self._limits.text
        return fits and len(script.ids) <= MAX_TOKENS

    def most(self, script: Script) -> int:
        """The most tokens that a text may have in the place of this one."""

        def is_too_long(tokens: int) -> bool:
            return not self.holds(replace(script, ids=range(tokens)))

        return bisect_left(range(1, MAX_TOKENS + 1), True, key=is_too_long)

    def taken(self, script: Script) -> str:
        """What is taken by the voice, in words."""
        limits = f"one request has {self._positions:,} positions"
        if script.reference is None:
            return limits
        frames, words = len(script.reference.codes) - 1, len(script.reference.text)
        return (
            f"its transcript has {words:,} tokens for a clip of {frames:,} frames"
            f" ({frames / FRAMES_PER_S:.1f} s), {limits}, and {self._limits.text:,} for tokens that"
            " outlast the clip"
        )


def room_beside(frames: int, words: int) -> int:
    """The most tokens of a text that a voice leaves, with so many of transcript over its frames.

    The longest clip leaves room for as many frames as there may be, so only text is counted.
    """
    return max(0, min(MAX_TOKENS, EngineConfig.trailing_text_tokens + frames - words))
