"""Collects what is decoded of a clip: its channels at the rate of the model, and counts over all.

Blocks come in at the clip's own rate and are resampled at once, so that a clip of many channels at
a high rate is never in memory as a whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import soxr
from numpy.typing import NDArray

from registry.audio.decoding.channels import Folded, fold
from registry.audio.report import TOO_LOUD, Bounds, Refusal

Block = NDArray[np.floating]  # (channels, frames), as decoded

CLIPPED = 0.9999
SLACK_S = 1.0
MOST_NOTES = 2


class Part:
    """A stretch of the clip with one number of channels."""

    def __init__(self, block: Block, names: Sequence[str], rate: int, bounds: Bounds) -> None:
        count = len(block)
        self.names = names
        self.channels = np.empty((count, round((bounds.max_s + SLACK_S) * bounds.rate)), np.float32)
        self.length = 0
        self._offset = block.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
        self._stream = soxr.ResampleStream(rate, bounds.rate, count, dtype="float32", quality="HQ")

    def add(self, block: Block) -> None:
        """Resample a block less the mean of the first one, or DC would begin with a click."""
        self._keep(block.astype(np.float32) - self._offset, last=False)

    def end(self) -> None:
        """Take no more blocks, and give back the room that was kept for them."""
        self._keep(np.zeros((len(self.channels), 0), np.float32), last=True)
        self.channels = self.channels[:, : self.length].copy()

    def _keep(self, block: NDArray[np.float32], last: bool) -> None:
        made = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)
        made = made.reshape(-1, len(self.channels))
        self.channels[:, self.length : self.length + len(made)] = made.T
        self.length += len(made)


@dataclass
class Recording:
    """The parts of a clip, usually one, and counts over all of its channels."""

    bounds: Bounds
    sample_rate: int = 0
    channels: int = 0
    frames: int = 0
    peak: float = 0.0
    clipped: int = 0
    values: int = 0
    total: float = 0.0  # the sum of the means over the channels
    damaged: int = 0
    blocks: int = 0
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        return self.frames / self.sample_rate if self.sample_rate else 0.0

    @property
    def dc_offset(self) -> float:
        return self.total / self.frames

    def add(self, block: Block, names: Sequence[str]) -> None:
        """Count a block of shape (channels, frames), and keep it at the rate of the model.

        Raises Refusal for values that are not finite or far outside [-1, 1].
        """
        level = np.maximum(block.max(initial=0.0), -block.min(initial=0.0))
        if not level <= TOO_LOUD:
            refuse_block(block, self.duration_s, self.sample_rate)
        if level >= CLIPPED:
            self.clipped += int(np.count_nonzero(np.abs(block) >= CLIPPED))
        self.peak = max(self.peak, float(level))
        self.channels = max(self.channels, len(block))
        self.values += block.size
        self.frames += block.shape[1]
        self.total += float(block.sum(dtype=np.float64)) / len(block)
        self.blocks += 1
        if not self.parts or len(self.parts[-1].channels) != len(block):
            self.end()
            self.parts.append(Part(block, names, self.sample_rate, self.bounds))
        self.parts[-1].add(block)

    def end(self) -> None:
        for part in self.parts[-1:]:
            part.end()

    def folded(self) -> Folded:
        """Return all parts as one channel, and what was done with theirs. Raises Refusal."""
        self.end()
        folded = [fold(part.channels, self.bounds.rate, part.names) for part in self.parts]
        notes = dict.fromkeys(note for each in folded for note in each.notes)
        return Folded(np.concatenate([each.samples for each in folded]), list(notes)[:MOST_NOTES])


def refuse_block(block: Block, start_s: float, rate: int) -> None:
    """Refuse a block: say which value of it is not finite, or far outside [-1, 1], and where."""
    bad = ~(np.abs(block) <= TOO_LOUD)
    at = int(np.flatnonzero(bad.any(axis=0))[0])
    value = float(block[bad[:, at], at][0])
    where = f"{start_s + at / rate:.3f} s"
    if not math.isfinite(value):
        raise Refusal("audio-not-finite", f"The sample at {where} is not a number ({value}).")
    found = f"{value:.4g}; audio lies between -1 and 1"
    raise Refusal("audio-too-loud", f"The sample at {where} is {found}.")
