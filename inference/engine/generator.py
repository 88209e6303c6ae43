"""Makes frames: the talker's hidden state → 16 codes → the talker's next hidden state.

Both halves read and write the State alone, so that each can be a CUDA graph: no host sync, no
shape that depends on data. Knows neither requests nor streams.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from inference.engine.device import on_device
from inference.engine.model_config import ModelConfig
from inference.engine.ops import AttentionMetadata, LogitsRules, TorchOps
from inference.engine.state import EngineLimits, State
from inference.engine.transformer import KVCache, Transformer, contiguous_table
from inference.engine.weights import Weights

SPECIALS = 1024  # tokens above the codes in the talker's vocabulary; only the end may be chosen


class Generator:
    """The talker and the code predictor over the State; vLLM would call it a model runner."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        limits: EngineLimits,
        state: State,
        ops: TorchOps,
    ) -> None:
        self._config, self._state, self._ops = config, state, ops
        self._talker_weights, self._predictor_weights = weights.talker, weights.predictor
        dtype, device = weights.talker.head.dtype, weights.talker.head.device
        like = torch.empty(0, dtype=dtype, device=device)
        self._talker = Transformer(
            config.talker, weights.talker.transformer, limits.request_positions
        )
        self._predictor = Transformer(
            config.code_predictor, weights.predictor.transformer, config.num_code_groups
        )
        self._cache = KVCache.empty(config.talker, limits.cache_entries, like)
        batch, length = limits.slots, config.num_code_groups
        self._predictor_cache = KVCache.empty(config.code_predictor, batch * length, like)
        self._predictor_table = contiguous_table(batch, length, device)
        self._batch = torch.arange(batch, dtype=torch.int32, device=device)
        self._places = torch.arange(length, dtype=torch.int32, device=device)[:, None]
        self._places = self._places.repeat(1, batch)  # [t] is position t of every row
        allowed = torch.arange(config.vocab_size, device=device) < config.vocab_size - SPECIALS
        allowed[config.codec_tokens.eos] = True
        self._rules = LogitsRules(state.seen, allowed, config.codec_tokens.eos)

    def prefill(self, slots: Tensor, prompts: Tensor, lengths: Tensor) -> Tensor:
        """Run the talker over prompts (B, P, D) float32; returns its state at their ends, (B, D).

        `slots` and `lengths` (B,) int32; what a prompt has beyond its length is not used.
        """
        rows, span, width = prompts.shape
        metadata = AttentionMetadata(slots, torch.zeros_like(slots), self._state.table, span)
        x = self._talker.run(self._ops, prompts.reshape(-1, width), self._cache, metadata)
        last = (lengths - 1).long()[:, None, None].expand(-1, 1, width)
        ends = x.view(rows, span, width).gather(1, last)[:, 0]
        self._state.x[slots.long()] = ends
        self._state.position[slots.long()] = lengths
        return ends

    def clear_cache(self, entries: Sequence[int]) -> None:
        """Zero cache entries: a number that is not finite there would outlive its mask."""
        index = on_device(entries, torch.int64, self._state.x.device)
        for part in (self._cache.keys, self._cache.values):
            part[:, index] = 0

    def sample_frame(self, slots: Tensor) -> Tensor:
        """Sample a frame of `slots` (B,) int32; returns codes and bad, (B, groups + 1) int64."""
        state, ops, groups = self._state, self._ops, self._config.num_code_groups
        index = slots.long()
        out = self._talker.head(ops, state.x[index], self._talker_weights.head)
        logits, hidden = out.tensor_split([self._config.vocab_size], dim=1)
        code = ops.sample(logits, self._rules, state.sampling, slots, 0, state.bad)
        codes = [code, *self._sample_rest(hidden, code, slots)]
        frame = torch.stack(codes, dim=1)
        state.frames[index, state.sampling.step[index].long()] = frame
        assert frame.shape[1] == groups
        return torch.cat([frame, state.bad[index][:, None].long()], dim=1)

    def advance(self, slots: Tensor, span: int) -> Tensor:
        """Feed the frame and the next text to the talker; returns its new state (B, D) float32.

        No row may stand at position `span` or beyond.
        """
        state, index = self._state, slots.long()
        step = state.sampling.step[index]
        codes = state.frames[index, step.long()]
        tables = (self._talker_weights.first, self._talker_weights.rest)
        x = self._ops.frame_embed(codes, tables, state.text, state.sampling, slots)
        metadata = AttentionMetadata(slots, state.position[index], state.table, span)
        x = self._talker.run(self._ops, x, self._cache, metadata)
        state.x[index] = x
        # The clamps only ever hold the scratch slot back, which no request ends.
        state.position[index] = (metadata.position + 1).clamp(max=state.table.shape[1] - 1)
        state.sampling.step[index] = (step + 1).clamp(max=state.frames.shape[1] - 1)
        return x

    def _sample_rest(self, hidden: Tensor, first: Tensor, slots: Tensor) -> list[Tensor]:
        """Sample codebooks 1 to 15, of the talker's projected state (B, Dp) and codebook 0."""
        weights, ops, rows = self._predictor_weights, self._ops, len(first)
        start = hidden.float() + self._talker_weights.head_bias
        pair = torch.stack([start, ops.embed(weights.first, first)], dim=1)  # (B, 2, Dp)
        x = self._run_predictor(pair.flatten(0, 1), rows, 0).view(rows, 2, -1)[:, 1]
        codes = []
        for group in range(1, self._config.num_code_groups):
            logits = self._predictor.head(ops, x.contiguous(), weights.heads[group - 1])
            code = ops.sample(
                logits, LogitsRules(), self._state.sampling, slots, group, self._state.bad
            )
            codes.append(code)
            if group < self._config.num_code_groups - 1:
                x = self._run_predictor(ops.embed(weights.rest[group - 1], code), rows, group + 1)
        return codes

    def _run_predictor(self, x: Tensor, rows: int, position: int) -> Tensor:
        """Run the predictor over (rows · N, Dp) that stand at `position` and after it."""
        span = position + len(x) // rows
        metadata = AttentionMetadata(
            self._batch[:rows], self._places[position, :rows], self._predictor_table, span
        )
        return self._predictor.run(self._ops, x, self._predictor_cache, metadata)
