"""Changes a speech before it is encoded: its loudness, its speed, its sample rate.

Each effect takes mono float samples as they come, and its result does not depend on how they are
cut. No end is lost: what goes in for a second comes out for a second, at its speed.
"""

from typing import Protocol

import numpy as np
import soxr

from registry.audio.encoding.filters import NOTHING, FilterChain
from registry.contract import Samples

BLOCK_S = 0.02  # what atempo makes of shorter pieces depends on their length
TEMPO_TAIL_S = 0.5  # of silence, which pushes out what atempo would keep


class Effect(Protocol):
    """A change of samples that come in parts."""

    def feed(self, samples: Samples) -> Samples:
        """Take samples; return those that are ready."""

    def finish(self) -> Samples:
        """Return the rest."""


class Resampler:
    """Changes the sample rate."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")

    def feed(self, samples: Samples) -> Samples:
        return self._resampled(samples, last=False)

    def finish(self) -> Samples:
        return self._resampled(NOTHING, last=True)

    def _resampled(self, samples: Samples, *, last: bool) -> Samples:
        resampled: Samples = self._stream.resample_chunk(samples, last=last)
        return resampled


class Tempo:
    """Changes the speed, 0.25 to 4 times, and not the pitch, by FFmpeg's atempo."""

    def __init__(self, sample_rate: int, speed: float) -> None:
        self._sample_rate, self._speed = sample_rate, speed
        # Beyond 2 atempo drops samples rather than blending them, and below 0.5 it refuses.
        times = 1 if 0.5 <= speed <= 2 else 2
        step = ("atempo", f"{speed ** (1 / times):.9f}")
        self._chain = FilterChain(sample_rate, *[step] * times)
        self._block = round(sample_rate * BLOCK_S)
        self._waiting = NOTHING  # less than a block
        self._taken = self._given = 0  # frames

    def feed(self, samples: Samples) -> Samples:
        self._taken += len(samples)
        return self._stretched(samples)

    def finish(self) -> Samples:
        tail = np.zeros(round(self._sample_rate * TEMPO_TAIL_S), np.float32)
        most = round(self._taken / self._speed) - self._given
        return self._stretched(tail)[: max(0, most)]

    def _stretched(self, samples: Samples) -> Samples:
        samples = np.concatenate([self._waiting, samples])
        whole = len(samples) // self._block * self._block
        self._waiting = samples[whole:]
        blocks = samples[:whole].reshape(-1, self._block)
        stretched = np.concatenate([NOTHING, *map(self._chain.feed, blocks)])
        self._given += len(stretched)
        return stretched
