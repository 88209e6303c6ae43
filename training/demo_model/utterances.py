"""Training material: utterances of random espeak-ng voices in arrays of a fixed shape.

A block is some utterances of one voice. Knows nothing of codes, models or devices.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.demo_model.espeak import SAMPLE_RATE, Espeak, Speech, Voice
from training.demo_model.phones import index_of
from training.demo_model.pitch import HOP, Track, track
from training.demo_model.sentences import Lexicon, sentence

FRAME = 1920  # samples of a codec frame, 80 ms
FRAMES = 84  # of the longest utterance: 6.72 s
SHORTEST = 6
PHONES_PER_FRAME = 4  # phoneme classes are at 50 Hz
POINTS_PER_FRAME = FRAME // HOP  # pitch is at 100 Hz
BLOCK = 12  # utterances

LOW_VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "Andy", "Lee", "edward", "john", "adam")
HIGH_VARIANTS = ("f1", "f2", "f3", "f4", "f5", "steph", "linda", "shelby", "Alicia")
VARIANTS = (*LOW_VARIANTS, *HIGH_VARIANTS)
ACCENTS = ("en-us", "en-us", "en-us", "en")
LOW_PITCH, HIGH_PITCH = (28, 88), (12, 60)  # about 75 to 145 Hz, 115 to 230 Hz
LOWEST_MEDIAN_HZ, HIGHEST_MEDIAN_HZ = 70.0, 250.0

Arrays = dict[str, NDArray[np.generic]]
Fields = Mapping[str, tuple[tuple[int, ...], type]]

FIELDS: Fields = {
    "sound": ((FRAMES * FRAME,), np.int16),
    "frames": ((), np.int32),
    "phones": ((FRAMES * PHONES_PER_FRAME,), np.uint8),
    "f0": ((FRAMES * POINTS_PER_FRAME,), np.float32),
    "voiced": ((FRAMES * POINTS_PER_FRAME,), np.bool_),
    "phase": ((FRAMES * POINTS_PER_FRAME,), np.float32),
}


@dataclass(frozen=True)
class Utterance:
    """One spoken text, padded with silence to whole frames."""

    text: str
    sound: NDArray[np.int16]  # (frames * 1920,)
    phones: NDArray[np.uint8]  # (frames * 4,)
    track: Track  # (frames * 8,)
    characters: NDArray[np.float64]  # (frames,): the character being spoken

    @property
    def frames(self) -> int:
        return len(self.characters)


def random_voice(chance: random.Random) -> Voice:
    """One of the training voices; pitches overlap, so that a variant does not give its pitch."""
    low = chance.random() < 0.5
    return Voice(
        accent=chance.choice(ACCENTS),
        variant=chance.choice(LOW_VARIANTS if low else HIGH_VARIANTS),
        pitch=chance.randint(*(LOW_PITCH if low else HIGH_PITCH)),
        range=chance.randint(25, 50),
        rate=chance.randint(156, 168),
    )


def utter(espeak: Espeak, text: str, voice: Voice, before_s: float, after_s: float) -> Utterance:
    """`text` in `voice`, with about that much silence before and after it."""
    speech = espeak.speak(text, voice)
    lead = int(before_s * SAMPLE_RATE)
    length = lead + len(speech.sound) + int(after_s * SAMPLE_RATE)
    frames = -(-length // FRAME)
    sound = np.zeros(frames * FRAME, np.int16)
    sound[lead : lead + len(speech.sound)] = speech.sound
    return Utterance(
        text,
        sound,
        _phones(speech, before_s, frames),
        track(sound.astype(np.float32) / 32768),
        _characters(speech, before_s, frames),
    )


def _phones(speech: Speech, before_s: float, frames: int) -> NDArray[np.uint8]:
    classes = np.zeros(frames * PHONES_PER_FRAME, np.uint8)
    rate = PHONES_PER_FRAME * SAMPLE_RATE / FRAME
    end = round((before_s + speech.duration_s) * rate)
    for start_s, name in speech.phonemes:
        index = index_of(name)
        start = round((before_s + max(start_s, 0.0)) * rate)
        if index is not None:
            classes[start:end] = index
    classes[end:] = 0
    return classes


def _characters(speech: Speech, before_s: float, frames: int) -> NDArray[np.float64]:
    """The position in the text at the middle of each frame, straight within a word."""
    times: list[float] = []
    places: list[float] = []
    ends = [start for start, _, _ in speech.words[1:]] + [speech.duration_s]
    for (start, first, count), end in zip(speech.words, ends, strict=True):
        times += [start, max(end - 1e-4, start)]
        places += [first, first + max(count, 1) - 0.01]
    middle = (np.arange(frames) + 0.5) * FRAME / SAMPLE_RATE - before_s
    return np.interp(middle, times, places) if times else np.zeros(frames)


class Utterances:
    """Random utterances without end, a block of one voice at a time."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._espeak, self._lexicon = Espeak(), Lexicon.read()

    def block(self) -> tuple[Voice, list[Utterance]]:
        """BLOCK utterances of a new voice whose pitch is neither too low nor too high."""
        while True:
            voice = random_voice(self._chance)
            spoken = [self._one(voice) for _ in range(BLOCK)]
            medians = [u.track.median_hz for u in spoken if u.track.voiced.any()]
            if medians and LOWEST_MEDIAN_HZ < float(np.median(medians)) < HIGHEST_MEDIAN_HZ:
                return voice, spoken

    def _one(self, voice: Voice) -> Utterance:
        while True:
            before_s, after_s = self._chance.uniform(0.02, 0.12), self._chance.uniform(0.08, 0.22)
            text = sentence(self._chance, self._lexicon)
            utterance = utter(self._espeak, text, voice, before_s, after_s)
            if SHORTEST <= utterance.frames <= FRAMES:
                return utterance


def write_sound(utterances: list[Utterance], rows: Arrays) -> None:
    """Fill `rows` (arrays of FIELDS, one row per utterance) and zero what is over."""
    for index, utterance in enumerate(utterances):
        values: Arrays = {
            "sound": utterance.sound,
            "phones": utterance.phones,
            "f0": utterance.track.f0_hz,
            "voiced": utterance.track.voiced,
            "phase": utterance.track.phase,
        }
        rows["frames"][index] = utterance.frames
        for name, value in values.items():
            rows[name][index, : len(value)] = value
            rows[name][index, len(value) :] = 0
