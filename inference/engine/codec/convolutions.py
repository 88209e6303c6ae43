"""The convolutions of the codec: what the transformer made of the codes → sound, 1,920 a frame.

Sound is (B, T, C). Each convolution's past inputs are kept in slots, so none ever sees padding but
at the start of a stream. Snakes and `convolve` are where the time goes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.engine.codec.weights import (
    DILATIONS,
    BlockWeights,
    CodecWeights,
    SnakeWeights,
    UnitWeights,
    UpsampleWeights,
)
from inference.engine.ops import TorchOps

LAYER_NORM_EPSILON = 1e-6


class ConvCache:
    """Keeps a convolution's last inputs for every slot: `state` is (slots + 1, length, C)."""

    def __init__(self, state: Tensor) -> None:
        self._state, self._length = state, state.shape[1]

    def join(self, x: Tensor, slots: Tensor) -> Tensor:
        """Put the past before x, (B, T, C) → (B, length + T, C), and remember its end."""
        line = self._open(x, slots)
        line[:, self._length :] = x
        return self._close(line, slots)

    def join_snake(self, ops: TorchOps, x: Tensor, weights: SnakeWeights, slots: Tensor) -> Tensor:
        """Do as `join` does with snake(x), which takes no pass of its own."""
        line = self._open(x, slots)
        new = line[:, self._length :]
        ops.snake(x, weights.alpha, weights.inverse_beta, weights.bias, out=new)
        return self._close(line, slots)

    def _open(self, x: Tensor, slots: Tensor) -> Tensor:
        line = x.new_empty(x.shape[0], self._length + x.shape[1], x.shape[2])
        torch.index_select(self._state, 0, slots, out=line[:, : self._length])
        return line

    def _close(self, line: Tensor, slots: Tensor) -> Tensor:
        self._state.index_copy_(0, slots, line[:, -self._length :])
        return line


class Convolutions:
    """Runs the codec's convolutions, and keeps their pasts in `slots` slots and one more."""

    def __init__(self, weights: CodecWeights, slots: int, ops: TorchOps) -> None:
        self._weights, self._ops = weights, ops
        shapes = list(_past_shapes(weights))
        sizes = [length * width for length, width in shapes]
        self.histories = weights.norm.new_zeros(slots + 1, sum(sizes))  # a line for each slot
        parts = zip(torch.split(self.histories, sizes, 1), shapes, strict=True)
        pasts = (ConvCache(part.view(len(part), *shape)) for part, shape in parts)
        self._pre_conv = next(pasts)
        self._upsamples = [(upsample, next(pasts)) for upsample in weights.upsamples]
        self._open = next(pasts)
        self._blocks = [
            (block, next(pasts), [(unit, next(pasts)) for unit in block.units])
            for block in weights.blocks
        ]
        self._last = next(pasts)

    def pre_conv(self, frames: Tensor, slots: Tensor) -> Tensor:
        """Run the one before the transformer: (B, n, codebook dim) → (B, n, D)."""
        weight = self._weights.pre_conv
        seen = windows(self._pre_conv.join(frames, slots), weight.shape[1])
        return F.linear(seen, weight.flatten(1), self._weights.pre_conv_bias)

    def decode(self, x: Tensor, slots: Tensor) -> Tensor:
        """Run those after the transformer: (B, n, D) → (B, n * 1920), float32 or better."""
        for upsample, past in self._upsamples:
            x = _upsample(x, upsample, past, slots)
        x = convolve(self._open.join(x, slots), self._weights.open)
        for block, past, units in self._blocks:
            x = self._expand(x, block, past, slots)
            for unit, unit_past in units:
                x = self._unit(x, unit, unit_past, slots)
        return self._mouth(self._last.join_snake(self._ops, x, self._weights.last, slots))

    def _expand(self, x: Tensor, weights: BlockWeights, past: ConvCache, slots: Tensor) -> Tensor:
        line = past.join_snake(self._ops, x, weights.before, slots)
        return convolve(line, weights.expand).reshape(len(x), -1, weights.width)

    def _unit(self, x: Tensor, weights: UnitWeights, past: ConvCache, slots: Tensor) -> Tensor:
        line = past.join_snake(self._ops, x, weights.before, slots)
        h = convolve(line, weights.dilated, weights.dilation)
        between = weights.between
        self._ops.snake(h, between.alpha, between.inverse_beta, between.bias, out=h)
        flat = x.flatten(0, 1)
        return flat.addmm_(h.flatten(0, 1), weights.mix.T).view_as(x)

    def _mouth(self, line: Tensor) -> Tensor:
        """Run the last convolution, to one channel: each tap times each sample, then sums."""
        products = F.linear(line, self._weights.taps)  # (B, 6 + T, 8)
        kind = torch.promote_types(line.dtype, torch.float32)
        sound = products.unfold(1, 7, 1).diagonal(0, -2, -1).sum(-1, dtype=kind)
        return (sound + self._weights.taps_bias).clamp(-1, 1)


def convolve(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Convolve (B, T + (width - 1) * dilation, C_in) with (C_out, width, C_in) → (B, T, C_out).

    A copy and one matrix product: cuDNN is up to three times faster for some shapes, and hundreds
    of times slower for their neighbours.
    """
    return F.linear(windows(x, weight.shape[1], dilation), weight.flatten(1))


def windows(x: Tensor, width: int, dilation: int = 1) -> Tensor:
    """Copy what each output of a convolution sees: (B, T + …, C) → (B, T, width * C).

    Without the copy neighbours would overlap in memory, and one product become B small ones.
    """
    seen = x.unfold(1, (width - 1) * dilation + 1, 1)[..., ::dilation]
    return seen.transpose(2, 3).flatten(2).contiguous()


def context_frames(rates: Sequence[int], ratios: Sequence[int]) -> int:
    """How many of the last frames the histories of all the convolutions depend on."""
    units = sum(6 * dilation for dilation in DILATIONS)
    needed = 6
    for rate in reversed(rates):
        needed = -(-(needed + units) // rate) + 1
    needed += 6
    for ratio in reversed(ratios):
        needed = -(-(needed + 6) // ratio)
    return needed


def _upsample(x: Tensor, weights: UpsampleWeights, past: ConvCache, slots: Tensor) -> Tensor:
    width = len(weights.norm)
    x = F.linear(x, weights.expand, weights.expand_bias).reshape(len(x), -1, width)
    seen = past.join(x, slots).unfold(1, 7, 1).transpose(2, 3)
    h = (seen * weights.taps).sum(2) + weights.taps_bias
    h = F.layer_norm(h, (width,), weights.norm, weights.norm_bias, LAYER_NORM_EPSILON)
    h = F.gelu(F.linear(h, weights.widen, weights.widen_bias))
    return x + F.linear(h, weights.narrow, weights.narrow_bias)


def _past_shapes(weights: CodecWeights) -> Iterator[tuple[int, int]]:
    """The size (length, C) of every convolution's past, in the order in which they work."""
    yield 2, weights.table.shape[1]
    yield from ((6, len(upsample.norm)) for upsample in weights.upsamples)
    yield 6, weights.open.shape[2]
    for block in weights.blocks:
        yield 1, block.expand.shape[2]
        yield from ((6 * unit.dilation, block.width) for unit in block.units)
    yield 6, len(weights.last.bias)
