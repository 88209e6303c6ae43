"""Sample codes from logits, each row by its own parameters, seed and step, never by its neighbours.

The order of Hugging Face's processors: repetition penalty, suppressed tokens, temperature, top-k
(ties are kept), top-p. Then the Gumbel-argmax trick, with noise from a counter-based generator
(Squares: Widynski, arXiv 2004.06278), so that a code depends on (seed, step, codebook) alone.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from inference.engine.model_config import GenerationConfig
from registry.contract import GREEDY_BELOW, SamplingParams

MIN_FRAMES = 2  # qwen_tts' min_new_tokens: the end can't come sooner
LOW_32 = 0xFFFFFFFF
NO_ROW = -torch.inf


@dataclass(frozen=True)
class SamplingTensors:
    """The sampling parameters and the step of every slot, on the device."""

    temperature: Tensor  # (S,) float32; 0 is greedy
    top_k: Tensor  # (S,) int32
    top_p: Tensor  # (S,) float32
    repetition_penalty: Tensor  # (S,) float32
    key: Tensor  # (S,) int64: `key_of(seed)`
    step: Tensor  # (S,) int32: frames made so far

    @classmethod
    def empty(cls, slots: int, device: torch.device) -> "SamplingTensors":
        kinds = {"top_k": torch.int32, "key": torch.int64, "step": torch.int32}
        return cls(
            *(
                torch.ones(slots, dtype=kinds.get(field.name, torch.float32), device=device)
                for field in fields(cls)
            )
        )

    def begin(self, slot: int, asked: SamplingParams, model: GenerationConfig) -> None:
        """Write what is asked for `slot`, and the model's own values where nothing is."""
        temperature = model.temperature if asked.temperature is None else asked.temperature
        self.temperature[slot] = 0.0 if temperature < GREEDY_BELOW else temperature
        self.top_k[slot] = asked.top_k or model.top_k
        self.top_p[slot] = asked.top_p or model.top_p
        self.repetition_penalty[slot] = asked.repetition_penalty or model.repetition_penalty
        self.key[slot] = key_of(asked.seed or 0)
        self.step[slot] = 0

    def of(self, slots: Tensor) -> "SamplingTensors":
        """Take the lines of `slots` (B,)."""
        return SamplingTensors(*(getattr(self, field.name)[slots] for field in fields(self)))


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide what was seen (B, V) by the row's penalty if positive, else multiply."""
    by = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / by, logits * by), logits)


def sample(scores: Tensor, sampling: SamplingTensors, group: int) -> Tensor:
    """Sample one code a row: scores (B, V) float32, the sampling of those rows → (B,) int64."""
    noise = gumbel(sampling.key, sampling.step, group, scores.shape[1])
    greedy = sampling.temperature == 0
    warm = scores / torch.where(greedy, 1.0, sampling.temperature)[:, None]
    cut = warm.masked_fill(warm < threshold(warm, sampling.top_k, sampling.top_p), NO_ROW)
    return torch.where(greedy[:, None], scores, cut + noise).argmax(-1)


def threshold(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Find the least score that top-k and top-p both keep, (B, 1); the best is always kept."""
    falling, _ = scores.sort(-1, descending=True)
    kth = falling.gather(1, (top_k.long().clamp(1, scores.shape[1]) - 1)[:, None])
    chances = falling.masked_fill(falling < kth, NO_ROW).softmax(-1)
    above = chances.cumsum(-1) - chances  # of all that are ranked higher
    whole = top_p[:, None] >= 1  # sums of chances are not exact, so all is not left to them
    kept = (whole | (above < top_p[:, None])) & (falling >= kth)
    return falling.gather(1, kept.sum(-1, keepdim=True).clamp(min=1) - 1)


def gumbel(key: Tensor, step: Tensor, group: int, count: int) -> Tensor:
    """Make (B, count) float32 Gumbel noise of (key, step, group, index) and nothing else."""
    index = torch.arange(count, device=key.device)
    counter = (((step.long() * 16 + group) << 16)[:, None]) + index
    word = _squares(counter, key[:, None])
    uniform = ((word >> 9).float() + 0.5) * 2.0**-23  # within (0, 1), exactly
    return -torch.log(-torch.log(uniform))


def key_of(seed: int) -> int:
    """Mix a seed into an odd 64-bit key, as a signed integer (SplitMix64's finaliser)."""
    word = (seed + 0x9E3779B97F4A7C15) & (2**64 - 1)
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    word = (word ^ (word >> 31)) | 1
    return word - 2**64 if word >= 2**63 else word


def _squares(counter: Tensor, key: Tensor) -> Tensor:
    """Run four rounds of Squares: 32 random bits in an int64; its products wrap, as they should."""
    y = counter * key
    z = y + key
    x = _swap(y * y + y)
    x = _swap(x * x + z)
    x = _swap(x * x + y)
    return ((x * x + z) >> 32) & LOW_32


def _swap(x: Tensor) -> Tensor:
    return ((x >> 32) & LOW_32) | (x << 32)
