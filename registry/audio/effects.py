"""What is done to a speech before it is encoded: another sample rate.

Each effect takes mono float samples as they come, and its result does not depend on how they are
cut. No end is lost: what goes in for a second comes out for a second.
"""

from typing import Protocol

import numpy as np
import soxr

from registry.contract import Samples

NOTHING = np.empty(0, np.float32)


class Effect(Protocol):
    def feed(self, samples: Samples) -> Samples:
        """Take samples; return those that are ready."""

    def finish(self) -> Samples:
        """Return the rest."""


class Resampler:
    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")

    def feed(self, samples: Samples) -> Samples:
        return self._resampled(samples, last=False)

    def finish(self) -> Samples:
        return self._resampled(NOTHING, last=True)

    def _resampled(self, samples: Samples, *, last: bool) -> Samples:
        resampled: Samples = self._stream.resample_chunk(samples, last=last)
        return resampled
