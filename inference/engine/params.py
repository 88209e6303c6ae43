"""What one piece of speech is asked to be: its sampling, its frame budget. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["auto", "icl", "xvec"]

FRAMES_PER_S = 12.5
BASE_FRAMES = 50
FRAMES_PER_TOKEN = 6
MAX_FRAMES = 2048
MAX_TOKENS = (MAX_FRAMES - BASE_FRAMES) // FRAMES_PER_TOKEN  # of a text
GREEDY_BELOW = 0.01


@dataclass(frozen=True)
class SamplingParams:
    """How codes are sampled; None is the model's own value. Talker and code predictor use the same.

    A temperature under 0.01 is greedy. The same seed gives the same codes.
    """

    seed: int = 0  # 0 .. 2**31 - 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None  # of codebook 0

    def __post_init__(self) -> None:
        _check_whole("seed", self.seed)
        if self.top_k is not None:
            _check_whole("top_k", self.top_k)
        _check("seed", self.seed, 0, 2**31 - 1)
        _check("temperature", self.temperature, 0, 2)
        _check("top_k", self.top_k, 1, 100_000)
        _check("top_p", self.top_p, 0.001, 1)
        _check("repetition_penalty", self.repetition_penalty, 0.1, 10)


def _check_whole(name: str, value: int) -> None:
    if not isinstance(value, int):
        raise ValueError(f"{name} is a whole number, not {value!r}.")


def _check(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} is between {low} and {high}, not {value}.")


def frame_budget(tokens: int) -> int:
    """The most frames that a text of so many tokens may speak; MAX_TOKENS is all there is."""
    return BASE_FRAMES + FRAMES_PER_TOKEN * tokens
