"""How alike two utterances are: dynamic time warping of their MFCCs. NumPy and SciPy alone."""

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, rfft

from training.demo_model.codec_losses import mel_bank

SIZE, HOP, BANDS, KEPT = 1024, 480, 60, 20
Floats = NDArray[np.float64]
_BANK = mel_bank(SIZE, BANDS).double().numpy()


def mfcc(sound: NDArray[np.float32]) -> Floats:
    """(frames, 19) of 20 ms, without the level, normalised over the utterance."""
    padded = np.pad(np.asarray(sound, np.float64), (SIZE // 2, SIZE))
    frames = np.lib.stride_tricks.sliding_window_view(padded, SIZE)[: len(sound) : HOP]
    power = np.abs(rfft(frames * np.hanning(SIZE), axis=1)) ** 2
    found = dct(np.log(power @ _BANK.T + 1e-4), axis=1, norm="ortho")[:, 1:KEPT]
    normalised: Floats = (found - found.mean(0)) / (found.std(0) + 1e-3)
    return normalised


def distance(one: Floats, other: Floats) -> float:
    """Mean Euclidean distance along the best path, found diagonal by diagonal."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    cost = np.sqrt(np.maximum(squares, 0))
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = before + cost[i, j]
    return float(total[-1, -1] / (rows + columns))
