"""Measures how high a voice is: the median pitch of the voiced parts of a sound. NumPy alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOWEST_HZ, HIGHEST_HZ = 60.0, 400.0
WINDOW_S, HOP_S = 0.04, 0.02
VOICED = 0.5  # the part of the energy that comes back after one period
QUIET = 0.05  # the part of the loudest window's level
FIRST_PEAK = 0.85  # the part of the highest peak: multiples of the period are as high


def median_pitch_hz(sound: "NDArray[np.floating]", rate: int) -> float:
    """Return the median pitch of `sound` (samples,) in [-1, 1]; NaN if nothing is voiced."""
    import numpy as np

    windows = _windows(sound, rate)
    level = np.sqrt((windows**2).mean(1))
    correlation = _autocorrelation(windows[level > max(QUIET * level.max(initial=0), 1e-4)])
    lags = np.arange(int(rate / HIGHEST_HZ), int(rate / LOWEST_HZ))
    heights = correlation[:, lags]
    voiced = heights.max(1, initial=0) > VOICED
    if not voiced.any():
        return float("nan")
    return float(np.median(rate / lags[_first_peaks(heights[voiced])]))


def _windows(sound: "NDArray[np.floating]", rate: int) -> "NDArray[np.float64]":
    """Cut into windows (n, samples) without their means; a shorter sound gives none."""
    import numpy as np

    size, hop = int(WINDOW_S * rate), int(HOP_S * rate)
    if len(sound) < size:
        return np.zeros((0, size))
    found = np.lib.stride_tricks.sliding_window_view(np.asarray(sound, np.float64), size)[::hop]
    centred: NDArray[np.float64] = found - found.mean(1, keepdims=True)
    return centred


def _autocorrelation(windows: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Correlate each window with itself: (n, lags), 1 at lag 0.

    Each lag is divided by what the tapering window leaves of it.
    """
    import numpy as np

    size = windows.shape[1]
    taper = np.hanning(size)
    own = np.fft.irfft(np.abs(np.fft.rfft(taper, 2 * size)) ** 2)[:size]
    raw = np.fft.irfft(np.abs(np.fft.rfft(windows * taper, 2 * size)) ** 2)[:, :size]
    normed: NDArray[np.float64] = raw / (raw[:, :1] + 1e-12) / (own / own[0] + 1e-3)
    return normed


def _first_peaks(heights: "NDArray[np.float64]") -> "NDArray[np.intp]":
    """Return (n,): the first peak of each row that is nearly as high as the highest."""
    import numpy as np

    inner = heights[:, 1:-1]
    peak = (inner >= heights[:, :-2]) & (inner >= heights[:, 2:])
    enough = peak & (inner >= FIRST_PEAK * inner.max(1, keepdims=True))
    first: NDArray[np.intp] = enough.argmax(1) + 1
    return first
