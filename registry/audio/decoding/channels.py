"""Finds the channels of a clip that carry the voice, and makes one channel of them.

A plain mean loses a voice whose channels cancel, comb-filters one whose channels are not in step,
and buries one that stands on a single channel of many. It knows nothing of files or codecs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from registry.audio.conditioning import Mono, band_levels
from registry.audio.report import Refusal

Channels = NDArray[np.float32]  # (channels, frames)

MODULATED = 0.05  # the part of its power that a voice has in moments well above its floor
ABOVE_FLOOR = 4.0  # 6 dB, more than steady noise or hum ever rises
TIED_DB, LOUD_DB, CENTRE_DB, HEARD_DB = 1.0, 10.0, 12.0, 25.0
BLOCK, BLOCKS = 1 << 15, 8
RELATED, LATE, OPPOSITE, ALIKE = 0.1, 0.1, -0.3, 0.6
TURN_DB, TURN_SHARE = 6.0, 0.15


class Relation(StrEnum):
    """How another channel stands to the one that carries the voice best; the worst comes first."""

    UNRELATED = "holds another sound"
    OPPOSITE = "cancels the voice out"
    LATE = "is not in step"
    QUIET = "is much quieter"
    VOICELESS = "holds no voice"
    IN_STEP = "carries the same voice"


@dataclass(frozen=True)
class Folded:
    """One channel, and a sentence on what was done where it is not the mean of all."""

    samples: Mono
    notes: list[str]


def fold(channels: Channels, rate: int, names: Sequence[str] = ()) -> Folded:
    """Return the mean of the channels that carry the voice in step with the leading one.

    `names` are the speakers' as FFmpeg calls them (FC is the centre). Raises Refusal where two
    channels hold different sounds and either may be the voice.
    """
    if len(channels) == 1:
        return Folded(channels[0], [])
    levels = [band_levels(channel - channel.mean(), rate) for channel in channels]
    voice = voice_levels([10 ** (each / 10) for each in levels])
    best, centred = leader(voice, names)
    relations = [
        Relation.IN_STEP if index == best else relation(channels, levels, voice, best, index)
        for index in range(len(channels))
    ]
    rivals = [i for i, r in enumerate(relations) if r is Relation.UNRELATED and not centred]
    rivals = [i for i in rivals if voice[i] >= voice[best] - LOUD_DB]
    if rivals:
        refuse_rivals(min(best, rivals[0]), max(best, rivals[0]))
    taken = [i for i, r in enumerate(relations) if r is Relation.IN_STEP]
    mono = sum(channels[i] for i in taken) / np.float32(len(taken))
    return Folded(np.asarray(mono), notes_on(relations, taken))


def voice_levels(powers: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Measure (channels,) dB: how much each has in moments well above its floor, as speech has.

    If no channel has such moments, as with a steady tone, all that it has counts.
    """
    floors = [np.percentile(power, 10, axis=1, keepdims=True) for power in powers]
    pairs = zip(powers, floors, strict=True)
    bursts = np.array([np.maximum(p - ABOVE_FLOOR * f, 0).sum(axis=0).mean() for p, f in pairs])
    whole = np.array([power.sum(axis=0).mean() for power in powers])
    found = bursts if (bursts > MODULATED * whole).any() else whole
    return np.asarray(10 * np.log10(found + 1e-20))


def leader(voice: NDArray[np.float64], names: Sequence[str]) -> tuple[int, bool]:
    """Return the channel with most of the voice, and whether it is a centre that can be trusted.

    Films keep speech in the centre, whatever else plays beside it.
    """
    if len(voice) > 2 and "FC" in names:
        centre = list(names).index("FC")
        if voice[centre] >= voice.max() - CENTRE_DB:
            return centre, True
    return int(np.flatnonzero(voice >= voice.max() - TIED_DB)[0]), False


def relation(
    channels: Channels,
    levels: Sequence[NDArray[np.float64]],
    voice: NDArray[np.float64],
    best: int,
    other: int,
) -> Relation:
    """Tell how channel `other` stands to channel `best`."""
    if voice[other] < voice[best] - HEARD_DB:
        return Relation.VOICELESS
    at_once, at_best, lag = correlation(channels[best], channels[other])
    if not is_same_voice(levels[best], levels[other], at_best, lag):
        return Relation.UNRELATED
    if at_once <= OPPOSITE and abs(at_once) >= abs(at_best) - LATE:
        return Relation.OPPOSITE
    if abs(at_best) >= RELATED and abs(at_best) > at_once + LATE:
        return Relation.LATE
    return Relation.QUIET if voice[other] < voice[best] - LOUD_DB else Relation.IN_STEP


def correlation(one: Mono, other: Mono) -> tuple[float, float, int]:
    """Return the correlation at no lag, the strongest up to 0.7 s, and that one's lag.

    It is taken over the loudest blocks. Both channels are differentiated first, or a hum in common
    would count more than speech.
    """
    a, b = (blocks_of(np.diff(samples)) for samples in (one, other))
    loudest = np.argsort(-np.square(a).sum(axis=1), kind="stable")[:BLOCKS]
    a, b = a[loudest], b[loudest]
    scale = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    spectra = (np.fft.rfft(each, 2 * BLOCK) for each in (a, b))
    found = np.fft.irfft((next(spectra).conj() * next(spectra)).sum(axis=0)) / max(scale, 1e-20)
    half = BLOCK // 2
    lags = np.concatenate([found[-half:], found[: half + 1]])
    at = int(np.argmax(np.abs(lags)))
    return float(found[0]), float(lags[at]), at - half


def blocks_of(samples: Mono) -> NDArray[np.float32]:
    return np.pad(samples, (0, -len(samples) % BLOCK)).reshape(-1, BLOCK)


def is_same_voice(
    one: NDArray[np.float64], other: NDArray[np.float64], correlated: float, lag: int
) -> bool:
    """Tell whether two channels hold one voice: levels that move together, or waves alike.

    Of two voices that take turns each leads on its own channel, though both may hear both.
    """
    total = [10 * np.log10((10 ** (levels / 10)).sum(axis=0) + 1e-20) for levels in (one, other)]
    a, b = (np.maximum(each, max(each.max() - 40, np.percentile(each, 10))) for each in total)
    if np.ptp(a) < 1 or np.ptp(b) < 1:
        return True
    if abs(correlated) < RELATED:
        return bool(np.corrcoef(a, b)[0, 1] >= ALIKE)
    return abs(lag) > BLOCK // 64 or not take_turns(a, b)


def take_turns(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Tell whether each leads in a good part of the loud moments, relative to both levels."""
    a, b = 10 ** (one / 10), 10 ** (other / 10)
    a, b = (np.maximum(each - 2 * each.min(), 1e-6 * each.sum()) / each.sum() for each in (a, b))
    ahead, weight = 10 * np.log10(a / b), a + b
    shares = [weight[side > TURN_DB].sum() / weight.sum() for side in (ahead, -ahead)]
    return bool(min(shares) > TURN_SHARE)


def refuse_rivals(one: int, other: int) -> None:
    found = f"Channels {one + 1} and {other + 1} hold different sounds of about the same level"
    advice = "which of them is the voice can't be told. Send the voice's channel alone"
    raise Refusal("audio-channels-differ", f"{found}; {advice}.")


def notes_on(relations: Sequence[Relation], taken: Sequence[int]) -> list[str]:
    """Say what was done with the channels, by the worst relation that was found."""
    if len(taken) == len(relations):
        return []
    worst = min(relations, key=list(Relation).index)
    which = f"channel {taken[0] + 1} was" if len(taken) == 1 else f"the other {len(taken)} were"
    if worst is Relation.OPPOSITE:
        return [f"The channels cancel each other out; {which} taken."]
    if worst is Relation.VOICELESS:
        alone = " and ".join(str(i + 1) for i in taken)
        return [f"Of the {len(relations)} channels only {alone} carries the voice, and was taken."]
    return [f"Channel {relations.index(worst) + 1} {worst}; {which} taken."]
