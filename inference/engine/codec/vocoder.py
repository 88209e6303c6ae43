"""Codes in the State → PCM on the host, in chunks of 1, 2, 4 or 8 frames, on a lane of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.engine.codec.decoder import CodecState, StreamingDecoder
from inference.engine.device import Lane, Mark, Replays, falling, least, on_device

CHUNKS = (1, 2, 4, 8)  # frames; a stream climbs them, so that its first sound comes soonest
BATCHES = (1, 2, 4, 8, 16)  # streams that are decoded together


@dataclass(frozen=True)
class Sound:
    """PCM of several streams that is on its way to the host."""

    pcm: Tensor  # (B, n * 1920) float32, pinned
    mark: Mark

    def of(self, row: int) -> NDArray[np.float32]:
        """One stream's samples; the mark must be done."""
        return self.pcm[row].numpy()


class Vocoder:
    """A StreamingDecoder that reads the State's frames (S, F, groups) by slot and position."""

    def __init__(self, decoder: StreamingDecoder, frames: Tensor, codes: int) -> None:
        """`codes`: of a codebook; an end token among the frames is read as the last code."""
        self._decoder, self._frames, self._last_code = decoder, frames, codes - 1
        self.lane = Lane(frames.device)
        self._scratch = len(frames) - 1
        self._slots = torch.full((BATCHES[-1],), self._scratch, device=frames.device)
        self._starts = torch.zeros_like(self._slots)
        padding = [(self._slots, self._scratch), (self._starts, 0)]
        self._replays = Replays(self._decode, self.lane, padding)

    def captures(self, streams: int) -> Iterator[tuple[int, int]]:
        """Capture what up to `streams` at once need, a graph at each turn."""
        shapes = product(reversed(CHUNKS), falling(BATCHES, streams))
        return self._replays.captures((batch, count) for count, batch in shapes)

    def begin(self, slot: int, past: CodecState | None) -> None:
        """A stream takes `slot`, after the frames of its reference or after nothing."""
        with self.lane.on():
            if past is None:
                self._decoder.clear(slot)
            else:
                self._decoder.load(slot, past)

    def absorb(self, codes: Tensor, after: Mark) -> CodecState:
        """The state after the codes of a reference (T, groups), which exist `after` a mark."""
        with self.lane.on():
            self.lane.after(after)
            self.lane.uses(codes)
            return self._decoder.absorb(codes)

    def decode(self, slots: Sequence[int], starts: Sequence[int], count: int, after: Mark) -> Sound:
        """`count` frames of at most 16 slots, from their `starts`, once `after` is done."""
        rows = len(slots)
        batch = least(BATCHES, rows) if self.lane.pads else rows
        with self.lane.on():
            self.lane.after(after)
            self._fill(self._slots, slots, self._scratch)
            self._fill(self._starts, starts, 0)
            pcm = self.lane.fetch(self._replays((batch, count))[:rows])
            return Sound(pcm, self.lane.mark())

    def _fill(self, line: Tensor, values: Sequence[int], padding: int) -> None:
        padded = [*values, *[padding] * (len(line) - len(values))]
        line.copy_(on_device(padded, line.dtype, line.device))

    def _decode(self, shape: tuple[int, int]) -> Tensor:
        batch, count = shape
        slots = self._slots[:batch]
        steps = torch.arange(count, device=slots.device)
        place = (self._starts[:batch, None] + steps).clamp(max=self._frames.shape[1] - 1)
        codes = self._frames[slots[:, None], place].clamp(max=self._last_code)
        pcm: Tensor = self._decoder.decode(codes, slots)
        return pcm
