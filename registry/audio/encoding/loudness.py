"""Brings speech to one loudness, in LUFS as BS.1770 measures it, with peaks below a limit.

A whole speech gets one gain, so that it is as loud as was asked. Of a stream the end is not known:
its gain begins at 0 dB and follows the loudness of what was heard so far, without holding it back.
"""

import numpy as np
from numpy.typing import NDArray

from registry.audio.encoding.filters import NOTHING, FilterChain
from registry.contract import Samples

BLOCK_S = 0.1  # after which the meter tells more
GATED_S = 0.4  # the least that can be measured
SILENT = -70.0  # LUFS, below which nothing is
MOST_DB = 24.0  # of gain: more would lift the noise between words
GLIDE_DB_PER_S = 6.0
PEAK = 10 ** (-1 / 20)  # -1 dBFS
# It looks 5 ms ahead, gives that time back at the end, and leaves what is below PEAK as it is.
LIMITER = ("alimiter", f"limit={PEAK:.6f}:attack=5:release=50:level=0:latency=1")


def loudness(samples: Samples, sample_rate: int) -> float:
    """Measure the integrated, gated loudness: SILENT if nothing is heard.

    What is too short to be measured is repeated.
    """
    meter = Meter(sample_rate)
    meter.feed(np.resize(samples, max(len(samples), round(GATED_S * sample_rate))))
    return meter.lufs


class Meter:
    """Measures the loudness of all that it was fed; FFmpeg's ebur128 counts every 100 ms."""

    def __init__(self, sample_rate: int) -> None:
        self._chain = FilterChain(sample_rate, ("ebur128", "metadata=1:framelog=quiet"))

    def feed(self, samples: Samples) -> None:
        self._chain.feed(samples)

    @property
    def lufs(self) -> float:
        return float(self._chain.metadata.get("lavfi.r128.I", SILENT))


class WholeLoudness:
    """Gives all of a speech one gain, and keeps it until its end for that."""

    def __init__(self, sample_rate: int, target: float) -> None:
        self._sample_rate, self._target = sample_rate, target
        self._kept: list[Samples] = []
        self.reached: float | None = None  # LUFS, once it is finished

    def feed(self, samples: Samples) -> Samples:
        self._kept.append(samples)
        return NOTHING

    def finish(self) -> Samples:
        speech = np.concatenate([NOTHING, *self._kept])
        gain_db = gain_to(self._target, loudness(speech, self._sample_rate))
        limiter = FilterChain(self._sample_rate, LIMITER)
        speech = np.concatenate([limiter.feed(amplified(speech, gain_db)), limiter.finish()])
        self.reached = loudness(speech, self._sample_rate)
        return speech


class RunningLoudness:
    """Lets the gain follow the loudness so far, by no more than 0.6 dB in each block of 100 ms."""

    reached = None

    def __init__(self, sample_rate: int, target: float) -> None:
        self._target, self._block = target, round(sample_rate * BLOCK_S)
        self._meter, self._limiter = Meter(sample_rate), FilterChain(sample_rate, LIMITER)
        self._at = 0  # frames into the block
        self._from_db = self._to_db = 0.0  # the gain where the block begins, and where it ends

    def feed(self, samples: Samples) -> Samples:
        parts = [NOTHING]
        while len(samples):
            part = samples[: self._block - self._at]
            parts.append(self._limiter.feed(amplified(part, self._gains_db(len(part)))))
            self._hear(part)
            samples = samples[len(part) :]
        return np.concatenate(parts)

    def finish(self) -> Samples:
        return self._limiter.finish()

    def _gains_db(self, frames: int) -> NDArray[np.float64]:
        passed = (self._at + np.arange(1, frames + 1)) / self._block
        return self._from_db + (self._to_db - self._from_db) * passed

    def _hear(self, part: Samples) -> None:
        """Take part of a block; where it ends, settle with which gain the next one ends."""
        self._meter.feed(part)
        self._at = (self._at + len(part)) % self._block
        if self._at == 0:
            self._from_db = self._to_db
            step = gain_to(self._target, self._meter.lufs) - self._from_db
            most = GLIDE_DB_PER_S * BLOCK_S
            self._to_db += min(max(step, -most), most)


def gain_to(target: float, lufs: float) -> float:
    """Return the gain in dB: none for what can't be heard."""
    return 0.0 if lufs <= SILENT else min(target - lufs, MOST_DB)


def amplified(samples: Samples, gain_db: float | NDArray[np.float64]) -> Samples:
    return (samples * 10 ** (np.asarray(gain_db) / 20)).astype(np.float32)
