"""Codes in the State → PCM on the host, in chunks of 1, 2, 4 or 8 frames, on the codec lane."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.engine.codec.decoder import CodecState, StreamingDecoder
from inference.engine.device import (
    Event,
    GraphRunner,
    Lane,
    on_device,
    padded_size,
    sizes_to_capture,
)

CHUNKS = (1, 2, 4, 8)  # frames; a stream climbs them, so that its first sound comes soonest
BATCHES = (1, 2, 4, 8, 16)  # streams that are decoded together


@dataclass(frozen=True)
class PendingSound:
    """PCM of several streams that is on its way to the host."""

    pcm: Tensor  # (B, n * 1920) float32, pinned
    event: Event

    def of(self, row: int) -> NDArray[np.float32]:
        """One stream's samples; the event must have happened."""
        return self.pcm[row].numpy()


class Vocoder:
    """Decodes the State's frames (S, F, groups), which it reads by slot and position."""

    def __init__(self, decoder: StreamingDecoder, frames: Tensor, codes: int) -> None:
        """A codebook has `codes` codes; an end token in a frame is read as the last of them."""
        self._decoder, self._frames, self._last_code = decoder, frames, codes - 1
        self.lane = Lane(frames.device)
        self._scratch = len(frames) - 1
        self._slots = torch.full((BATCHES[-1],), self._scratch, device=frames.device)
        self._starts = torch.zeros_like(self._slots)
        padding = [(self._slots, self._scratch), (self._starts, 0)]
        self._graphs = GraphRunner(self._decode, self.lane, padding)

    def captures(self, streams: int) -> Iterator[tuple[int, int]]:
        """Capture what up to `streams` at once need, a graph at each turn."""
        shapes = product(reversed(CHUNKS), sizes_to_capture(BATCHES, streams))
        return self._graphs.captures((batch, count) for count, batch in shapes)

    def begin(self, slot: int, past: CodecState | None) -> None:
        """Begin a stream in `slot`, after the frames of its reference or after nothing."""
        with self.lane.on():
            if past is None:
                self._decoder.clear(slot)
            else:
                self._decoder.load(slot, past)

    def prefill(self, codes: Tensor, after: Event) -> CodecState:
        """Read a reference's codes (T, groups), which exist `after` an event; returns the state."""
        with self.lane.on():
            self.lane.wait_event(after)
            self.lane.uses(codes)
            return self._decoder.prefill(codes)

    def decode(
        self, slots: Sequence[int], starts: Sequence[int], count: int, after: Event
    ) -> PendingSound:
        """Decode `count` frames of at most 16 slots, from their `starts`, `after` an event."""
        rows = len(slots)
        batch = padded_size(BATCHES, rows) if self.lane.pads else rows
        with self.lane.on():
            self.lane.wait_event(after)
            self._fill(self._slots, slots, self._scratch)
            self._fill(self._starts, starts, 0)
            pcm = self.lane.fetch(self._graphs((batch, count))[:rows])
            return PendingSound(pcm, self.lane.record_event())

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
