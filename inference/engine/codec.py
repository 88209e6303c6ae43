"""Codes → sound, a few frames at a time: the speech tokenizer's decoder with its past in slots.

However a stream is cut into calls and whoever shares them, its sound is that of one decode of all
of its codes. The past is what the convolutions and the attention window still see. The decoder
knows nothing of requests or CUDA graphs; `decode` is made to be captured: it never asks the device
anything, and what it keeps stays where it is. Sound inside is (B, T, C).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine.codec_weights import (
    DILATIONS,
    BlockWeights,
    CodecWeights,
    LayerWeights,
    SnakeWeights,
    UnitWeights,
    UpsampleWeights,
    fold,
)

SPARE = 8  # frames a ring holds beyond the window: up to 9 new ones are written before it is read
ABSORBED = 64  # frames of a reference that are read at once
GEMM_ROWS = 2048  # B * T up to which a convolution is a copy and one matrix product
LAYER_NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class CodecState:
    """One stream's past, off the slots; it fits decoders of the same weights and dtype."""

    window: Tensor  # (layers, ring, 2, H, W): keys and values
    histories: Tensor  # (N,): of the convolutions, one after another
    position: Tensor  # () int64: frames so far

    @property
    def nbytes(self) -> int:
        return self.window.nbytes + self.histories.nbytes + self.position.nbytes


@dataclass(frozen=True)
class Step:
    """Where the new frames of a batch stand, the same for every layer."""

    slots: Tensor  # (B,) int64
    places: Tensor  # (B, n) int64: in the ring
    cosine: Tensor  # (B, n, 3, 1, 2, W / 2) float32: of queries, keys and values, which don't turn
    sine: Tensor
    mask: Tensor  # (B, 1, n, S): 0 where a frame is seen, else -inf


class Window:
    """Rotated keys and values of the last frames, in a ring for every layer and slot."""

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

    def advance(self, slots: Tensor, count: int) -> Step:
        """Give `count` new frames to every slot their places."""
        new = torch.arange(count, device=slots.device)
        frames = self.position.index_select(0, slots)[:, None] + new
        self.position.index_copy_(0, slots, frames[:, -1] + 1)
        angles = frames.float()[:, :, None, None, None, None] * self._turns
        return Step(slots, frames % self._size, angles.cos(), angles.sin(), self._mask(frames))

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
        """Whether new frames (B, n, …) take only places of frames that none of them sees."""
        return frames.shape[1] <= SPARE + 1

    def extend(self, layer: int, new: Tensor, step: Step) -> Tensor:
        """Remember keys and values (B, n, 2, H, W); what the queries may look at, (B, S, …)."""
        ring = self.ring[layer]
        if self._fits(new):
            ring[step.slots[:, None], step.places] = new
            return ring.index_select(0, step.slots)
        seen = torch.cat([ring.index_select(0, step.slots), new], 1)
        ring[step.slots[:, None], step.places[:, -self._size :]] = new[:, -self._size :]
        return seen


class StreamingDecoder:
    """`slots` streams, and one more slot, `slots` itself, that any padding row may name."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: Mapping[str, Any],
        slots: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`weights`: decoder.* of the speech tokenizer, by its names without `decoder.`."""
        self._weights = fold(weights, config, device, dtype)
        self._epsilon = config["rms_norm_eps"]
        self._heads = (3, config["num_attention_heads"], 2, config["head_dim"] // 2)
        self._context = context_frames(config["upsample_rates"], config["upsampling_ratios"])
        self._first_codes = torch.arange(config["num_quantizers"], device=device)
        self._first_codes *= config["codebook_size"]
        self._scratch = torch.tensor([slots], device=device)
        self._window = Window(config, slots, self._weights.norm)
        self._place_pasts(slots)

    @property
    def state_bytes(self) -> int:
        """Of one slot."""
        return self.save(len(self._histories) - 1).nbytes

    def clear(self, slot: int) -> None:
        """A stream without a past begins in `slot`."""
        self._window.ring[:, slot].zero_()
        self._window.position[slot].zero_()
        self._histories[slot].zero_()

    def save(self, slot: int) -> CodecState:
        window, position = self._window.ring[:, slot], self._window.position[slot]
        return CodecState(window.clone(), self._histories[slot].clone(), position.clone())

    def load(self, slot: int, state: CodecState) -> None:
        """The stream in `slot` goes on from `state`."""
        self._window.ring[:, slot].copy_(state.window)
        self._window.position[slot].copy_(state.position)
        self._histories[slot].copy_(state.histories)

    def decode(self, codes: Tensor, slots: Tensor) -> Tensor:
        """The next n frames of B streams: PCM (B, n * 1920) float32 in [-1, 1].

        codes (B, n, groups) of any integer type, slots (B,) int64: all different but the padding.
        """
        return self._speak(self._read(codes, slots), slots)

    def absorb(self, codes: Tensor) -> CodecState:
        """The state after the codes (T, groups) of a reference; only its end is made sound."""
        slot = len(self._histories) - 1
        self.clear(slot)
        pieces = torch.split(codes[None], ABSORBED, 1)
        read = torch.cat([self._read(piece, self._scratch) for piece in pieces], 1)
        self._speak(read[:, -self._context :], self._scratch)
        return self.save(slot)

    def _read(self, codes: Tensor, slots: Tensor) -> Tensor:
        """The codebooks and the transformer: (B, n, groups) → (B, n, D)."""
        frames = self._weights.table[codes + self._first_codes].sum(2)
        line = self._enter.join(frames, slots)
        enter = self._weights.enter
        x = F.linear(windows(line, enter.shape[1]), enter.flatten(1), self._weights.enter_bias)
        step = self._window.advance(slots, codes.shape[1])
        flat = x.flatten(0, 1)
        for index, layer in enumerate(self._weights.layers):
            self._layer(flat, layer, index, step)
        return self._norm(flat, self._weights.norm).view_as(x)

    def _layer(self, x: Tensor, layer: LayerWeights, index: int, step: Step) -> None:
        """Add a layer's two halves to x (B * n, D), in place."""
        qkv = F.linear(self._norm(x, layer.input_norm), layer.qkv)
        x.addmm_(self._attend(qkv, index, step), layer.o.T)
        gate, up = F.linear(self._norm(x, layer.post_norm), layer.gate_up).chunk(2, -1)
        x.addmm_(F.silu(gate) * up, layer.down.T)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._epsilon)

    def _attend(self, qkv: Tensor, layer: int, step: Step) -> Tensor:
        """(B * n, 3 H W) → (B * n, H W)."""
        x = qkv.view(*step.places.shape, *self._heads)
        turned = torch.empty_like(x)
        torch.addcmul(x * step.cosine, x.flip(-2), step.sine, out=turned)
        query, new = torch.split(turned.flatten(-2), [1, 2], 2)
        seen = self._window.extend(layer, new, step).transpose(1, 3)  # (B, H, 2, S, W)
        out = F.scaled_dot_product_attention(
            query[:, :, 0].transpose(1, 2), seen[:, :, 0], seen[:, :, 1], attn_mask=step.mask
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
