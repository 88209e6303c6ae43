"""Speech of espeak-ng in this process, with its phonemes and words in time.

Needs the `espeakng-loader` package (library and data). Knows nothing of crops, codes or training.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

SAMPLE_RATE = 24_000
NATIVE_RATE = 22_050
AUDIBLE = 60  # of 32,767: what is quieter at either end is cut off
SYNCHRONOUS, PHONEME_EVENTS, NO_EXIT = 2, 1, 0x8000
WORD, PHONEME, END = 1, 7, 0
RATE, PITCH, RANGE = 1, 3, 4

Sound = NDArray[np.int16]


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng: accent and variant by its names, the rest on its own scales."""

    accent: str
    variant: str
    pitch: int  # 0 .. 99
    range: int  # 0 .. 99, of the intonation
    rate: int  # words per minute

    @property
    def name(self) -> str:
        return f"{self.accent}+{self.variant}" if self.variant else self.accent


@dataclass(frozen=True)
class Speech:
    """24 kHz sound that starts and ends with what is audible; times in seconds of it."""

    sound: Sound  # (n,)
    phonemes: list[tuple[float, str]]  # (start, name)
    words: list[tuple[float, int, int]]  # (start, first character, characters)

    @property
    def duration_s(self) -> float:
        return len(self.sound) / SAMPLE_RATE


class _Id(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Espeak:
    """The synthesiser; one in a process. It is not exactly repeatable: lengths differ a little."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, data, PHONEME_EVENTS | NO_EXIT)
        if rate != NATIVE_RATE:
            raise RuntimeError(f"espeak-ng answered {rate} where its sample rate was expected.")
        self._pieces: list[Sound] = []
        self._phonemes: list[tuple[int, str]] = []
        self._words: list[tuple[int, int, int]] = []
        self._callback = _Callback(self._hear)  # kept: C holds no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice) -> Speech:
        """ValueError if there is no such voice or nothing was audible."""
        self._choose(voice)
        for heard in (self._pieces, self._phonemes, self._words):
            heard.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, 1, None, None)
        return self._speech()

    def _choose(self, voice: Voice) -> None:
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"espeak-ng has no voice {voice.name!r}.")
        for parameter, value in ((RATE, voice.rate), (PITCH, voice.pitch), (RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)

    def _hear(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: object) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        for event in _until_end(events):
            if event.type == WORD:
                self._words.append((event.sample, event.text_position - 1, event.length))
            elif event.type == PHONEME:
                name = event.id.string.decode("utf-8", "replace")
                self._phonemes.append((event.sample, name))
        return 0

    def _speech(self) -> Speech:
        sound = np.concatenate(self._pieces)
        audible = np.flatnonzero(np.abs(sound.astype(np.int32)) > AUDIBLE)
        if not len(audible):
            raise ValueError("Nothing was audible.")
        start, end = int(audible[0]), int(audible[-1]) + 1
        louder = resample_poly(sound[start:end].astype(np.float32), 160, 147)
        return Speech(
            np.clip(louder, -32_767, 32_767).astype(np.int16),
            [((at - start) / NATIVE_RATE, name) for at, name in self._phonemes],
            [((at - start) / NATIVE_RATE, first, n) for at, first, n in sorted(set(self._words))],
        )


def _until_end(events: object) -> Iterator[_Event]:
    index = 0
    while (event := events[index]).type != END:  # type: ignore[index]
        yield event
        index += 1
