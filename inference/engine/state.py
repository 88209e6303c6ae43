"""The device's memory of every request: one slot each, and one more for rows that only pad."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.engine.device import on_device
from inference.engine.model_config import ModelConfig
from inference.engine.ops import TrailingText
from inference.engine.prompt_builder import PromptEmbeds
from inference.engine.sampler import SamplingTensors
from registry.contract import SamplingParams


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine allocates, once and for good."""

    slots: int
    cache_entries: int  # of all slots together: positions
    request_positions: int
    request_frames: int
    trailing_text: int  # tokens of one request that it reads while it speaks


class State:
    """Holds tensors with a line for every slot, S = slots + 1: the last is scratch."""

    def __init__(
        self, config: ModelConfig, limits: EngineLimits, pad: Tensor, dtype: torch.dtype
    ) -> None:
        lines, device, width = limits.slots + 1, pad.device, config.talker.hidden_size
        self._defaults = config.generation
        self.scratch = limits.slots
        self.x = torch.zeros(lines, width, device=device)
        self.position = torch.zeros(lines, dtype=torch.int32, device=device)
        self.table = torch.zeros(lines, limits.request_positions, dtype=torch.int32, device=device)
        self.seen = torch.zeros(lines, config.vocab_size, dtype=torch.bool, device=device)
        self.bad = torch.zeros(lines, dtype=torch.bool, device=device)
        self.frames = torch.zeros(
            lines, limits.request_frames, config.num_code_groups, dtype=torch.int64, device=device
        )
        self.sampling = SamplingTensors.empty(lines, device)
        self.text = TrailingText(
            torch.zeros(lines, limits.trailing_text, width, dtype=dtype, device=device),
            torch.zeros(lines, dtype=torch.int32, device=device),
            pad.to(dtype),
        )

    def begin(
        self, slot: int, embeds: PromptEmbeds, entries: Sequence[int], wanted: SamplingParams
    ) -> None:
        """Give a request `slot` and the cache entries for its positions; entry 0 is nobody's."""
        trailing = embeds.trailing
        self.table[slot] = 0
        self.table[slot, : len(entries)] = on_device(entries, torch.int32, self.table.device)
        self.seen[slot] = False
        self.bad[slot] = False
        self.position[slot] = 0
        self.text.tokens[slot, : len(trailing)] = trailing.to(self.text.tokens.dtype)
        self.text.length[slot] = len(trailing)
        self.sampling.begin(slot, wanted, self._defaults)
