"""Where speech is voiced, at which pitch, in which phase: by autocorrelation, 100 times a second.

NumPy and SciPy alone; the same tracker makes the training targets and measures the results.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import medfilt, resample_poly

SAMPLE_RATE = 24_000
HOP = 240  # samples: 10 ms
LOW_RATE = 6_000
DECIMATE = SAMPLE_RATE // LOW_RATE
LOW_HOP = HOP // DECIMATE
LOWEST_HZ, HIGHEST_HZ = 60.0, 420.0
WINDOW = 288  # of the low rate: 48 ms, nearly three periods of the lowest pitch
PHASE_WINDOW = 216  # 36 ms
FIRST_PEAK = 0.85  # of the highest peak: the first that reaches it is the period
VOICED = 0.5  # normalised autocorrelation
QUIET_DB = -38.0  # below the loudest 10 ms

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Track:
    """All (n,), one entry per 10 ms, measured around its middle."""

    f0_hz: Floats  # meaningful where voiced
    voiced: NDArray[np.bool_]
    phase: Floats  # radians, of a cosine at f0

    @property
    def median_hz(self) -> float:
        """Of the voiced frames; NaN if there is none."""
        return float(np.median(self.f0_hz[self.voiced])) if self.voiced.any() else float("nan")


def track(sound: NDArray[np.floating]) -> Track:
    """Of `sound` (samples,) at 24 kHz, at any level."""
    low = resample_poly(np.asarray(sound, np.float32), 1, DECIMATE).astype(np.float32)
    count = len(sound) // HOP
    frames = _frames(low, count, WINDOW)
    correlation = _normalised_autocorrelation(frames)
    lag, strength = _first_peak(correlation)
    loudness = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    loud = loudness > max(loudness.max(initial=-120.0) + QUIET_DB, -70.0 + 0.0)
    voiced = medfilt(((strength > VOICED) & loud).astype(np.float32), 3) > 0
    f0 = (LOW_RATE / lag).astype(np.float32)
    return Track(f0, voiced, _phase(_frames(low, count, PHASE_WINDOW), f0))


def _frames(low: Floats, count: int, width: int) -> Floats:
    """(count, width): windows around the middle of each 10 ms."""
    before = width // 2 - LOW_HOP // 2
    padded = np.pad(low, (before, width + LOW_HOP))
    view = np.lib.stride_tricks.sliding_window_view(padded, width)
    return np.ascontiguousarray(view[: count * LOW_HOP : LOW_HOP])


def _normalised_autocorrelation(frames: Floats) -> Floats:
    """(n, lags), 1 at lag 0: of the windowed frames, over that of the window alone."""
    window = np.hanning(WINDOW + 2)[1:-1].astype(np.float32)
    size = 2 * WINDOW
    highest_lag = int(LOW_RATE / LOWEST_HZ) + 2
    centred = (frames - frames.mean(1, keepdims=True)) * window
    raw = np.fft.irfft(np.abs(np.fft.rfft(centred, size)) ** 2)[:, :highest_lag]
    own = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** 2)[:highest_lag]
    result: Floats = (raw / (raw[:, :1] + 1e-9) / (own / own[0])).astype(np.float32)
    return result


def _first_peak(correlation: Floats) -> tuple[NDArray[np.float64], Floats]:
    """(lag in samples of the low rate, height) of the first peak near the highest one."""
    first = int(LOW_RATE / HIGHEST_HZ)
    left, middle, right = (
        correlation[:, first + k : correlation.shape[1] - 2 + k] for k in (0, 1, 2)
    )
    peaks = np.where((middle > left) & (middle >= right), middle, -1.0)
    index = (peaks >= FIRST_PEAK * np.maximum(peaks.max(1, keepdims=True), 0.01)).argmax(1)
    a, b, c = (
        part[np.arange(len(part)), index].astype(np.float64) for part in (left, middle, right)
    )
    curve = a - 2 * b + c
    shift = np.where(np.abs(curve) > 1e-9, 0.5 * (a - c) / np.where(curve == 0, 1, curve), 0)
    return index + first + 1 + np.clip(shift, -0.5, 0.5), b.astype(np.float32)


def _phase(frames: Floats, f0: Floats) -> Floats:
    window = np.hanning(PHASE_WINDOW + 2)[1:-1]
    time = (np.arange(PHASE_WINDOW) - (PHASE_WINDOW - 1) / 2) / LOW_RATE
    turns = np.exp(-2j * np.pi * f0[:, None] * time)
    angle: Floats = np.angle((frames * window * turns).sum(1)).astype(np.float32)
    return angle
