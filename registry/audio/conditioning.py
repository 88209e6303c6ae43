"""Makes of a decoded clip what the model hears: no rumble, no silent edges, one level.

Arrays in, arrays out, mono at one rate; it knows nothing of files, codecs or refusals.
"""

import math
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
RUMBLE_HZ, VOICE_HZ = 55.0, 75.0  # all below the first is removed, nothing above the second
MIRROR_S = 0.5
TARGET_DBFS, CEILING = -20.0, 0.89  # the level of the speech, and of its peaks (-1 dBFS)
GATE_S, GATE = 0.05, 0.1  # pauses are 10 dB below the mean, and don't count
KNOCKS = 4  # blocks that may be louder than all speech
LIMITER_S = 0.005


@dataclass(frozen=True)
class Conditioned:
    """The samples that the model hears, and what was done; levels are dBFS, before the gain."""

    samples: Mono
    span: "Span"
    rms_dbfs: float
    rumble_dbfs: float
    gain_db: float


@dataclass(frozen=True)
class Span:
    """Samples from `start` up to `stop`."""

    start: int
    stop: int


def condition(samples: Mono, rate: int, most: int) -> Conditioned:
    """Return at most `most` samples of a clip, without rumble and silent edges, at one level."""
    voice = without_rumble(samples, rate)
    span = speech_span(voice, rate)
    span = Span(span.start, min(span.stop, span.start + most))
    kept = voice[span.start : span.stop]
    rumble = samples[span.start : span.stop] - kept
    gain_db = TARGET_DBFS - speech_dbfs(kept, rate)
    louder = limited(kept * np.float32(10 ** (gain_db / 20)), rate)
    return Conditioned(louder, span, rms(kept), rms(rumble - rumble.mean()), gain_db)


def without_rumble(samples: Mono, rate: int) -> Mono:
    """Remove what is below the lowest voice, DC too, and move none of the rest in time.

    The clip goes on at both ends as its mirror image, so that nothing begins or stops there.
    """
    margin = min(round(MIRROR_S * rate), len(samples) - 1)
    longer = np.pad(samples - samples.mean(), margin, "reflect")
    size = 1 << (len(longer) - 1).bit_length()
    spectrum = np.fft.rfft(longer, size)
    hertz = np.arange(len(spectrum)) * rate / size
    part = np.clip((hertz - RUMBLE_HZ) / (VOICE_HZ - RUMBLE_HZ), 0, 1)
    filtered = np.fft.irfft(spectrum * np.sin(part * np.pi / 2) ** 2, size)
    return np.asarray(filtered[margin : margin + len(samples)], np.float32)


def speech_dbfs(samples: Mono, rate: int) -> float:
    """Measure the level of the speech alone, whatever pauses and knocks are in it."""
    size = min(round(GATE_S * rate), len(samples))
    power = np.square(samples[: len(samples) // size * size].reshape(-1, size)).mean(axis=1)
    power = np.minimum(power, np.sort(power)[-KNOCKS:][0])
    return decibels(math.sqrt(power[power >= GATE * power.mean()].mean()))


def limited(samples: Mono, rate: int) -> Mono:
    """Turn down the moments around each peak above the ceiling; no wave is cut."""
    size = round(LIMITER_S * rate)
    blocks = np.pad(np.abs(samples), (0, -len(samples) % size)).reshape(-1, size).max(axis=1)
    if blocks.max() <= CEILING:
        return samples
    needed = np.pad(CEILING / np.maximum(blocks, CEILING), 1, "edge")
    gains = np.minimum(np.minimum(needed[:-2], needed[2:]), needed[1:-1])
    centres = np.arange(len(gains)) * size + size // 2
    curve = np.interp(np.arange(len(samples)), centres, gains)
    return np.asarray(samples * curve, np.float32)


def rms(samples: Mono) -> float:
    return decibels(math.sqrt(float(np.square(samples).mean(dtype=np.float64))))


def decibels(level: float) -> float:
    """Convert to decibels below full scale: 1.0 is 0 dB, and nothing is below -200 dB."""
    return 20.0 * math.log10(max(level, 1e-10))


def speech_span(samples: Mono, rate: int) -> Span:
    """Find the clip without its silent edges, with a natural margin; pauses inside stay."""
    step = round(rate * STEP_S)
    steps = np.flatnonzero(sustained(is_active(band_levels(samples, rate))))
    if not len(steps):
        return Span(0, len(samples))
    start = int(steps[0]) * step - round(LEAD_S * rate)
    stop = (int(steps[-1]) + 1) * step + round(TAIL_S * rate)
    return Span(max(start, 0), min(stop, len(samples)))


def band_levels(samples: Mono, rate: int) -> Levels:
    """Measure the level of each band in windows of 20 ms, 10 ms apart."""
    step, window = round(rate * STEP_S), round(rate * WINDOW_S)
    padded = np.pad(samples, (0, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(samples) : step]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32))))
    edges = [round(hz * WINDOW_S) for hz in BANDS_HZ]
    bands = [power[:, low:high].sum(axis=1) for low, high in pairwise(edges)]
    return np.asarray(10 * np.log10(np.asarray(bands, np.float64) / window + 1e-20))


def is_active(levels: Levels) -> NDArray[np.bool_]:
    """Tell for each step whether a band is well above its floor, and not far below its speech.

    The answer has shape (steps,). A band that hardly changes, such as hiss or hum, says nothing.
    """
    loudest = np.sort(levels, axis=1)[:, -round(LOUD_S / STEP_S) :][:, :1]
    heard = loudest - np.percentile(levels, 10, axis=1, keepdims=True) >= LEAST_RANGE_DB
    floor = np.array([[floor_of(band, peak)] for band, peak in zip(levels, loudest, strict=True)])
    above = np.minimum(floor, loudest - LEAST_RANGE_DB) + ABOVE_FLOOR_DB
    active = levels > np.maximum(loudest - RANGE_DB, above)
    return np.asarray((active & heard & (loudest >= loudest.max() - RANGE_DB)).any(axis=0))


def floor_of(band: Levels, loudest: Levels) -> float:
    """Measure the level between the words, without muted stretches: no room is so quiet."""
    return float(np.percentile(band[band >= loudest - DIGITAL_SILENCE_DB], 10))


def sustained(active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the active steps that have enough active ones around them."""
    within = np.convolve(active, np.ones(SUSTAINED_OF), "full") >= SUSTAINED  # up to here
    around = np.convolve(within[::-1], np.ones(SUSTAINED_OF), "full")[::-1][SUSTAINED_OF - 1 :]
    return np.asarray(active & (around[: len(active)] > 0))
