"""Transformer layers over a key/value cache: the talker is one such, the code predictor another."""

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.engine.model_config import TransformerConfig
from inference.engine.ops import AttentionConfig, AttentionMetadata, TorchOps, rope_table
from inference.engine.weights import TransformerWeights


@dataclass(frozen=True)
class KVCache:
    """Holds keys and values of every layer; an AttentionMetadata says which entries belong to whom.

    Entry 0 is nobody's: what padding writes goes there, and nothing of it is ever seen.
    """

    keys: Tensor  # (layers, entries + 1, G, W)
    values: Tensor

    @classmethod
    def empty(cls, config: TransformerConfig, entries: int, like: Tensor) -> "KVCache":
        """Make one of zeros, in the dtype and on the device of `like`."""
        size = (config.num_hidden_layers, entries + 1, config.num_key_value_heads, config.head_dim)
        return cls(like.new_zeros(size), like.new_zeros(size))


class Transformer:
    """Runs layers. `ops` is TorchOps, or the same operations as kernels."""

    def __init__(
        self, config: TransformerConfig, weights: TransformerWeights, positions: int
    ) -> None:
        self.weights = weights
        self.epsilon = config.rms_norm_eps
        self.attention = AttentionConfig(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
        )
        device = weights.norm.device
        self.rope = rope_table(config.rope_theta, config.head_dim, positions, device)

    def run(self, ops: TorchOps, x: Tensor, cache: KVCache, metadata: AttentionMetadata) -> Tensor:
        """Run all layers; returns the residual stream (B·N, D) float32 before the last norm."""
        for index, layer in enumerate(self.weights.layers):
            qkv = ops.norm_linear(x, layer.input_norm, layer.qkv, self.epsilon)
            kept = (cache.keys[index], cache.values[index])
            norms = (layer.q_norm, layer.k_norm)
            heads = ops.attend(qkv, norms, self.rope, kept, metadata, self.attention)
            x = ops.linear_add(x, heads, layer.o)
            gated = ops.norm_gated(x, layer.post_norm, layer.gate_up, self.epsilon)
            x = ops.linear_add(x, gated, layer.down)
        return x

    def head(self, ops: TorchOps, x: Tensor, weight: Tensor) -> Tensor:
        """Run the last norm and an output matrix (M, D): (B, D) → (B, M)."""
        return ops.norm_linear(x, self.weights.norm, weight, self.epsilon)


def contiguous_table(sequences: int, positions: int, device: torch.device) -> Tensor:
    """(sequences, positions) int32: each sequence has entries of its own, one after another."""
    entries = torch.arange(1, sequences * positions + 1, dtype=torch.int32, device=device)
    return entries.view(sequences, positions)
