"""The device's memory of every request: one slot each, and one more for rows that only pad."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.engine.device import on_device
from inference.engine.layout import Layout
from inference.engine.model_config import ModelConfig
from inference.engine.ops import TrailingText
from inference.engine.sampler import SamplingTensors, key_of


@dataclass(frozen=True)
class Limits:
    """How much there is of everything that is allocated once."""

    slots: int
    rows: int  # cache rows of all slots together: positions
    positions: int  # of one request
    frames: int  # of one request
    text: int  # tokens of one request that are read while it speaks


@dataclass(frozen=True)
class ResolvedSampling:
    """A request's SamplingParams with the model's defaults filled in."""

    seed: int
    temperature: float  # 0 is greedy
    top_k: int
    top_p: float
    repetition_penalty: float


class State:
    """Tensors with a line for every slot. S = slots + 1: the last is scratch."""

    def __init__(
        self, config: ModelConfig, limits: Limits, pad: Tensor, dtype: torch.dtype
    ) -> None:
        lines, device, width = limits.slots + 1, pad.device, config.talker.hidden_size
        self.scratch = limits.slots
        self.x = torch.zeros(lines, width, device=device)
        self.position = torch.zeros(lines, dtype=torch.int32, device=device)
        self.table = torch.zeros(lines, limits.positions, dtype=torch.int32, device=device)
        self.seen = torch.zeros(lines, config.vocab_size, dtype=torch.bool, device=device)
        self.bad = torch.zeros(lines, dtype=torch.bool, device=device)
        self.frames = torch.zeros(
            lines, limits.frames, config.num_code_groups, dtype=torch.int64, device=device
        )
        self.sampling = SamplingTensors.empty(lines, device)
        self.text = TrailingText(
            torch.zeros(lines, limits.text, width, dtype=dtype, device=device),
            torch.zeros(lines, dtype=torch.int32, device=device),
            pad.to(dtype),
        )

    def begin(
        self, slot: int, layout: Layout, rows: Sequence[int], wanted: ResolvedSampling
    ) -> None:
        """A request takes `slot`, and the cache rows for its positions; row 0 is nobody's."""
        sampling, ahead = self.sampling, layout.ahead
        self.table[slot] = 0
        self.table[slot, : len(rows)] = on_device(rows, torch.int32, self.table.device)
        self.seen[slot] = False
        self.bad[slot] = False
        self.position[slot] = 0
        self.text.tokens[slot, : len(ahead)] = ahead.to(self.text.tokens.dtype)
        self.text.length[slot] = len(ahead)
        sampling.step[slot] = 0
        sampling.key[slot] = key_of(wanted.seed)
        sampling.temperature[slot] = wanted.temperature
        sampling.top_k[slot] = wanted.top_k
        sampling.top_p[slot] = wanted.top_p
        sampling.repetition_penalty[slot] = wanted.repetition_penalty
