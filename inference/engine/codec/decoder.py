"""Codes → sound, a few frames at a time: the speech tokenizer's decoder with its past in slots.

However a stream is cut into calls and whoever shares them, its sound is that of one decode of all
of its codes. The past is what the convolutions and the attention window still see. The decoder
knows nothing of requests or CUDA graphs, but `decode` is made to be captured: it never asks the
device anything, and what it keeps stays where it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.engine.codec.convolutions import Convolutions, context_frames
from inference.engine.codec.transformer import CodecTransformer
from inference.engine.codec.weights import fold
from inference.engine.ops import TorchOps

PREFILL_FRAMES = 64  # frames of a reference that are read at once


@dataclass(frozen=True)
class CodecState:
    """A copy of one stream's past; any decoder of the same weights and dtype can go on from it."""

    window: Tensor  # (layers, ring, 2, H, W): keys and values
    histories: Tensor  # (N,): of the convolutions, one after another
    position: Tensor  # () int64: frames so far

    @property
    def nbytes(self) -> int:
        return self.window.nbytes + self.histories.nbytes + self.position.nbytes


class StreamingDecoder:
    """Decodes up to `slots` streams; any padding row may name one more slot, `slots` itself."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: Mapping[str, Any],
        slots: int,
        device: torch.device,
        dtype: torch.dtype,
        ops: TorchOps | None = None,
    ) -> None:
        """`weights`: decoder.* of the speech tokenizer, by its names without `decoder.`."""
        folded = fold(weights, config, device, dtype)
        self._table = folded.table
        self._first_codes = torch.arange(config["num_quantizers"], device=device)
        self._first_codes *= config["codebook_size"]
        self._transformer = CodecTransformer(folded, config, slots)
        self._convolutions = Convolutions(folded, slots, ops or TorchOps())
        self._context = context_frames(config["upsample_rates"], config["upsampling_ratios"])
        self._scratch = torch.tensor([slots], device=device)
        self._states = (
            self._transformer.window.ring.transpose(0, 1),
            self._convolutions.histories,
            self._transformer.window.position,
        )

    def clear(self, slot: int) -> None:
        """Begin a stream without a past in `slot`."""
        for states in self._states:
            states[slot].zero_()

    def save(self, slot: int) -> CodecState:
        return CodecState(*(states[slot].clone() for states in self._states))

    def load(self, slot: int, state: CodecState) -> None:
        """Let the stream in `slot` go on from `state`."""
        saved = (state.window, state.histories, state.position)
        for states, values in zip(self._states, saved, strict=True):
            states[slot].copy_(values, non_blocking=True)

    def decode(self, codes: Tensor, slots: Tensor) -> Tensor:
        """Decode the next n frames of B streams: PCM (B, n * 1920) float32 in [-1, 1].

        codes (B, n, groups) of any integer type, slots (B,) int64: all different but the padding.
        A float64 decoder's PCM is float64.
        """
        return self._convolutions.decode(self._read(codes, slots), slots)

    def prefill(self, codes: Tensor) -> CodecState:
        """Read the codes (T, groups) of a reference; returns the state after them.

        Only their end is made sound.
        """
        scratch = len(self._convolutions.histories) - 1
        self.clear(scratch)
        pieces = torch.split(codes[None], PREFILL_FRAMES, 1)
        read = torch.cat([self._read(piece, self._scratch) for piece in pieces], 1)
        self._convolutions.decode(read[:, -self._context :], self._scratch)
        return self.save(scratch)

    def _read(self, codes: Tensor, slots: Tensor) -> Tensor:
        """Run the codebooks and the transformer: (B, n, groups) → (B, n, D)."""
        frames = self._table[codes + self._first_codes].sum(2)
        return self._transformer.run(self._convolutions.pre_conv(frames, slots), slots)
