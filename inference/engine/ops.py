"""The operations that frames and sound are made of, in plain torch: those worth a kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine import sampler
from inference.engine.sampler import SamplingTensors
from inference.engine.weights import GATE_INTERLEAVE


@dataclass(frozen=True)
class AttentionConfig:
    """The heads of an attention layer: how the columns of one qkv product are split."""

    num_heads: int  # H, of the queries
    num_kv_heads: int  # G, a divisor of H
    head_dim: int  # W
    rms_norm_eps: float


@dataclass(frozen=True)
class AttentionMetadata:
    """Which positions the rows of a batch stand at, and which cache entries hold their past.

    A row's query `t` of N stands at position `position + t`, and reads the cache entries
    `table[sequence, 0 .. position + t]`; its own key and value are written first.
    """

    sequence: Tensor  # (B,) int32: which line of `table`
    position: Tensor  # (B,) int32: of the row's first query
    table: Tensor  # (sequences, positions) int32: the cache entry of each position
    max_seq_len: int  # positions that any row may look at, at most the table's width


class TorchOps:
    """Computes the operations in plain torch, without state."""

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """rms_norm(x) @ weight.T: (B, D) float32 → (B, M) in the weights' dtype."""
        return F.linear(rms_norm(x, norm, epsilon).to(weight.dtype), weight)

    def linear_add(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """x + y @ weight.T: x (B, D) float32, y (B, K) → (B, D) float32."""
        return x + F.linear(y, weight).float()

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """silu(gate) * up of rms_norm(x): (B, D) float32 → (B, F) in the weights' dtype."""
        both = self.norm_linear(x, norm, weight, epsilon)
        gate, up = both.view(len(x), -1, 2, GATE_INTERLEAVE).unbind(-2)
        return (F.silu(gate.float()) * up.float()).flatten(-2).to(weight.dtype)

    def attend(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor],
        rope: Tensor,
        cache: tuple[Tensor, Tensor],
        metadata: AttentionMetadata,
        config: AttentionConfig,
    ) -> Tensor:
        """Norm and turn q and k, store k and v, attend to the past: (B·N, …) → (B·N, H·W).

        `qkv` has N consecutive queries of each row, `cache` is keys and values (entries, G, W), and
        `rope` (positions, 2, W/2) float32: cosines, then sines.
        """
        rows = len(metadata.sequence)
        split = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        q, k, v = torch.split(qkv.view(rows, -1, sum(split), config.head_dim), split, dim=2)
        places = metadata.position[:, None] + torch.arange(q.shape[1], device=q.device)  # (B, N)
        table = metadata.table[metadata.sequence.long()].long()  # (B, positions)
        turn = rope[places]  # (B, N, 2, W/2)
        keys, values = cache
        written = table.gather(1, places.long())
        nobody = (written == 0)[..., None, None]  # a mask holds back numbers, but not NaN
        k = rotate(rms_norm(k, norms[1], config.rms_norm_eps), turn).to(keys.dtype)
        keys[written], values[written] = k.masked_fill(nobody, 0), v.masked_fill(nobody, 0)
        past = torch.arange(metadata.max_seq_len, device=q.device)
        seen, mask = table[:, : len(past)], past <= places[..., None]  # (B, N, max_seq_len)
        out = F.scaled_dot_product_attention(
            rotate(rms_norm(q, norms[0], config.rms_norm_eps), turn).to(v.dtype).transpose(1, 2),
            keys[seen].transpose(1, 2),
            values[seen].transpose(1, 2),
            attn_mask=mask[:, None],
            enable_gqa=True,
        )
        return out.transpose(1, 2).reshape(len(qkv), -1)

    def sample(
        self,
        logits: Tensor,
        rules: "LogitsRules",
        sampling: SamplingTensors,
        slots: Tensor,
        group: int,
        bad: Tensor,
    ) -> Tensor:
        """Sample a code a row, (B,) int64: logits (B, V), the sampling of `slots` (B,) int32.

        A row with a logit that is not finite sets bad[slot] (S,) bool and gets code 0. What
        codebook 0 chose is marked in `rules.seen`.
        """
        slots = slots.long()
        mine, scores = sampling.of(slots), logits.float()
        finite = scores.isfinite().all(-1)
        if rules.seen is not None:
            scores = sampler.apply_repetition_penalty(
                scores, rules.seen[slots], mine.repetition_penalty
            )
        if rules.allowed is not None:
            scores = scores.masked_fill(~rules.allowed, -torch.inf)
        if rules.eos >= 0:
            early = mine.step < sampler.MIN_FRAMES
            scores[:, rules.eos] = scores[:, rules.eos].masked_fill(early, -torch.inf)
        codes = sampler.sample(scores, mine, group).where(finite, 0)
        bad[slots] |= ~finite
        if rules.seen is not None:
            rules.seen[slots, codes] = torch.ones_like(finite)
        return codes

    def embed(self, table: Tensor, codes: Tensor) -> Tensor:
        """table[codes]: (C, D), (B,) int64 → (B, D) float32."""
        return table[codes].float()

    def frame_embed(
        self,
        codes: Tensor,
        tables: tuple[Tensor, Tensor],
        text: "TrailingText",
        sampling: SamplingTensors,
        slots: Tensor,
    ) -> Tensor:
        """Sum the talker's input after a frame: its codes' embeddings and the next text's, (B, D).

        codes (B, groups) int64; tables first (V, D) and rest (groups - 1, C, D).
        """
        slots = slots.long()
        step = sampling.step[slots].long()
        group = torch.arange(codes.shape[1] - 1, device=codes.device)
        spoken = tables[0][codes[:, 0]].float() + tables[1][group, codes[:, 1:]].float().sum(1)
        last = text.tokens.shape[1] - 1
        fed = text.tokens[slots, step.clamp(max=last)]
        more = (step < text.length[slots])[:, None]
        return spoken + torch.where(more, fed, text.pad).float()

    def snake(
        self,
        x: Tensor,
        alpha: Tensor,
        inverse_beta: Tensor,
        bias: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """y + inverse_beta * sin(alpha * y)**2 of y = x + bias: x (B, T, C), the others (C,).

        `out`, of x's shape, may be x itself or a part of a longer line.
        """
        y = x + bias
        wave = (y * alpha).sin_().square_()
        return torch.addcmul(y, wave, inverse_beta, out=out)


@dataclass(frozen=True)
class LogitsRules:
    """Which codes a codebook may choose; all None and -1 for codebooks 1 to 15."""

    seen: Tensor | None = None  # (S, V) bool: what the slot chose before
    allowed: Tensor | None = None  # (V,) bool
    eos: int = -1  # never among a slot's first two frames


@dataclass(frozen=True)
class TrailingText:
    """Text that the talker reads while it makes frames, one token a frame; then padding.

    It is qwen_tts' trailing_text_hidden.
    """

    tokens: Tensor  # (S, L, D)
    length: Tensor  # (S,) int32
    pad: Tensor  # (D,)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary embedding of x (B, N, heads, W) by turn (B, N, 2, W/2): cosines and sines."""
    cosine, sine = turn.unsqueeze(2).unbind(3)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


def rope_table(base: float, width: int, positions: int, device: torch.device) -> Tensor:
    """(positions, 2, width / 2) float32: the cosine and sine of every position's angles."""
    powers = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    angles = torch.arange(positions).float()[:, None] * (1.0 / base**powers)
    return torch.stack([angles.cos(), angles.sin()], dim=1).to(device)
