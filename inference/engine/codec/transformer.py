"""The transformer of the codec, a few frames at a time over a window of the last 72.

Norms, softmax and angles are float32 in every dtype below.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine.codec.weights import CodecLayerWeights, CodecWeights

SPARE = 8  # frames a ring holds beyond the window: up to 9 new ones are written before it is read


@dataclass(frozen=True)
class WindowMetadata:
    """Where the new frames of a batch stand: the same for every layer."""

    slots: Tensor  # (B,) int64
    places: Tensor  # (B, n) int64: in the ring
    cosine: Tensor  # (B, n, 3, 1, 2, W / 2) float32: of queries, keys and values, which don't turn
    sine: Tensor
    mask: Tensor  # (B, 1, n, S): 0 where a frame is seen, else -inf


class SlidingWindowCache:
    """Keeps rotated keys and values of the last frames, in a ring for every layer and slot."""

    def __init__(self, config: Mapping[str, Any], slots: int, like: Tensor) -> None:
        heads, width = config["num_attention_heads"], config["head_dim"]
        self._span = config["sliding_window"]
        self._size = self._span + SPARE
        layers = config["num_hidden_layers"]
        self.ring = like.new_zeros(layers, slots + 1, self._size, 2, heads, width)
        self.position = like.new_zeros(slots + 1, dtype=torch.int64)
        self._places = torch.arange(self._size, device=like.device)
        self._shown, self._hidden = like.new_tensor([0.0, -torch.inf])
        self._turns = _turns(config["rope_theta"], width).to(like.device)

    def advance(self, slots: Tensor, count: int) -> WindowMetadata:
        """Give `count` new frames to every slot their places."""
        new = torch.arange(count, device=slots.device)
        frames = self.position.index_select(0, slots)[:, None] + new
        self.position.index_copy_(0, slots, frames[:, -1] + 1)
        angles = frames.float()[:, :, None, None, None, None] * self._turns
        return WindowMetadata(
            slots, frames % self._size, angles.cos(), angles.sin(), self._mask(frames)
        )

    def _mask(self, frames: Tensor) -> Tensor:
        held = self._held(frames)
        age = frames[:, :, None] - held[:, None]
        seen = (age >= 0) & (age < self._span) & (held >= 0)[:, None]
        return torch.where(seen, self._shown, self._hidden)[:, None]

    def _held(self, frames: Tensor) -> Tensor:
        """Which frames `extend` returns, (B, S); negative for none."""
        if self._fits(frames):
            return _latest(frames[:, -1:], self._places, self._size)
        before = _latest(frames[:, :1] - 1, self._places, self._size)
        return torch.cat([before, frames], 1)

    def _fits(self, frames: Tensor) -> bool:
        """Tell whether new frames (B, n, …) take only places of frames that none of them sees."""
        return frames.shape[1] <= SPARE + 1

    def extend(self, layer: int, new: Tensor, metadata: WindowMetadata) -> Tensor:
        """Remember keys and values (B, n, 2, H, W); returns what queries may see, (B, S, …)."""
        ring = self.ring[layer]
        if self._fits(new):
            ring[metadata.slots[:, None], metadata.places] = new
            return ring.index_select(0, metadata.slots)
        seen = torch.cat([ring.index_select(0, metadata.slots), new], 1)
        ring[metadata.slots[:, None], metadata.places[:, -self._size :]] = new[:, -self._size :]
        return seen


class CodecTransformer:
    """Runs the layers over the windows of `slots` slots and one more."""

    def __init__(self, weights: CodecWeights, config: Mapping[str, Any], slots: int) -> None:
        self._weights, self._epsilon = weights, config["rms_norm_eps"]
        self._heads = (3, config["num_attention_heads"], 2, config["head_dim"] // 2)
        self.window = SlidingWindowCache(config, slots, weights.norm)

    def run(self, x: Tensor, slots: Tensor) -> Tensor:
        """Run the next n frames of B slots: (B, n, D) → (B, n, D), normed; x is overwritten."""
        metadata = self.window.advance(slots, x.shape[1])
        flat = x.flatten(0, 1)
        for index, layer in enumerate(self._weights.layers):
            self._layer(flat, layer, index, metadata)
        return self._norm(flat, self._weights.norm).view_as(x)

    def _layer(
        self, x: Tensor, layer: CodecLayerWeights, index: int, metadata: WindowMetadata
    ) -> None:
        """Add a layer's two halves to x (B * n, D), in place."""
        qkv = F.linear(self._norm(x, layer.input_norm), layer.qkv)
        x.addmm_(self._attend(qkv, index, metadata), layer.o.T)
        gate, up = F.linear(self._norm(x, layer.post_norm), layer.gate_up).chunk(2, -1)
        x.addmm_(F.silu(gate) * up, layer.down.T)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._epsilon)

    def _attend(self, qkv: Tensor, layer: int, metadata: WindowMetadata) -> Tensor:
        """Let each frame attend to those in its window: (B * n, 3 H W) → (B * n, H W)."""
        x = qkv.view(*metadata.places.shape, *self._heads)
        turned = torch.empty_like(x)
        torch.addcmul(x * metadata.cosine, x.flip(-2), metadata.sine, out=turned)
        query, new = torch.split(turned.flatten(-2), [1, 2], 2)
        seen = self.window.extend(layer, new, metadata).transpose(1, 3)  # (B, H, 2, S, W)
        out = F.scaled_dot_product_attention(
            query[:, :, 0].transpose(1, 2), seen[:, :, 0], seen[:, :, 1], attn_mask=metadata.mask
        )
        return out.transpose(1, 2).reshape(len(qkv), -1)


def _latest(newest: Tensor, places: Tensor, size: int) -> Tensor:
    """The frame that each place of a ring holds once `newest` (B, 1) is written."""
    return newest - (newest - places) % size


def _turns(base: float, width: int) -> Tensor:
    """How far a frame turns the halves of queries, keys and values: (3, 1, 2, W / 2) float32."""
    powers = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    turn = 1.0 / base**powers
    halves = torch.stack([-turn, turn])
    return torch.stack([halves, halves, torch.zeros_like(halves)])[:, None]
