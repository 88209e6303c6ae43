"""From a decoded clip to what the model hears: without its silent edges.

Arrays in, arrays out, mono at one rate; it knows nothing of files, codecs or refusals.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Mono = NDArray[np.float32]
Levels = NDArray[np.float64]  # (bands, steps), decibels

STEP_S, WINDOW_S = 0.01, 0.02
BANDS_HZ = (150, 1_000, 4_000, 11_000)  # each is judged by itself: an s or an f is in the highest
LOUD_S = 0.15  # the level that a band reaches for this long is its speech; a click is shorter
RANGE_DB, ABOVE_FLOOR_DB, LEAST_RANGE_DB = 40.0, 8.0, 12.0
DIGITAL_SILENCE_DB = 70.0  # below the speech
SUSTAINED, SUSTAINED_OF = 6, 10  # steps: a click is no speech
LEAD_S, TAIL_S = 0.15, 0.2


@dataclass(frozen=True)
class Span:
    """Samples from `start` up to `stop`."""

    start: int
    stop: int


def speech_span(samples: Mono, rate: int) -> Span:
    """Where the clip is more than its silent edges, with a natural margin; pauses inside stay."""
    step = round(rate * STEP_S)
    steps = np.flatnonzero(sustained(is_active(band_levels(samples, rate))))
    if not len(steps):
        return Span(0, len(samples))
    start = int(steps[0]) * step - round(LEAD_S * rate)
    stop = (int(steps[-1]) + 1) * step + round(TAIL_S * rate)
    return Span(max(start, 0), min(stop, len(samples)))


def band_levels(samples: Mono, rate: int) -> Levels:
    """The level of each band in windows of 20 ms, 10 ms apart."""
    step, window = round(rate * STEP_S), round(rate * WINDOW_S)
    padded = np.pad(samples, (0, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(samples) : step]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32))))
    edges = [round(hz * WINDOW_S) for hz in BANDS_HZ]
    bands = [power[:, low:high].sum(axis=1) for low, high in pairwise(edges)]
    return np.asarray(10 * np.log10(np.asarray(bands, np.float64) / window + 1e-20))


def is_active(levels: Levels) -> NDArray[np.bool_]:
    """(steps,): whether any band is well above its own floor, and not far below its own speech.

    A band that hardly changes, such as hiss or hum, says nothing.
    """
    loudest = np.sort(levels, axis=1)[:, -round(LOUD_S / STEP_S) :][:, :1]
    heard = loudest - np.percentile(levels, 10, axis=1, keepdims=True) >= LEAST_RANGE_DB
    floor = np.array([[floor_of(band, peak)] for band, peak in zip(levels, loudest, strict=True)])
    above = np.minimum(floor, loudest - LEAST_RANGE_DB) + ABOVE_FLOOR_DB
    active = levels > np.maximum(loudest - RANGE_DB, above)
    return np.asarray((active & heard & (loudest >= loudest.max() - RANGE_DB)).any(axis=0))


def floor_of(band: Levels, loudest: Levels) -> float:
    """The level between the words; muted stretches are left out, as no room is so quiet."""
    return float(np.percentile(band[band >= loudest - DIGITAL_SILENCE_DB], 10))


def sustained(active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Steps that are active among enough active ones."""
    within = np.convolve(active, np.ones(SUSTAINED_OF), "full") >= SUSTAINED  # of those up to here
    around = np.convolve(within[::-1], np.ones(SUSTAINED_OF), "full")[::-1][SUSTAINED_OF - 1 :]
    return np.asarray(active & (around[: len(active)] > 0))
