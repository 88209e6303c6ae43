"""Checks by level and length whether sound that was made can be the text that was asked for.

It knows no words and no models: sound that is wrong but loud and long enough passes.
"""

import time
from collections.abc import AsyncIterator

import numpy as np

from registry.contract import Chunks, Samples
from registry.errors import SpeechInaudible
from registry.text import spoken_s

WINDOW_S = 0.01
AUDIBLE = 0.003  # the RMS of a window: -50 dBFS; a voice has -30 or more
LEAST_S = 0.03  # a shorter sound may be a click
MOST_PER_S = 40.0  # letters and figures: nobody talks as fast
FASTER = 5.0  # times as fast as calm speech, in scripts whose characters are more than a letter
HELD_S = 1.0  # of silence, at most, before a stream begins


def least_s(text: str) -> float:
    """Return how many seconds of this text's speech must be audible, by letters and numbers."""
    spoken = [character for character in text if character.isalnum()]
    letters = "".join(filter(str.isalpha, spoken))  # a figure may be a word or a part of one
    return max(LEAST_S, len(spoken) / MOST_PER_S, spoken_s(letters) / FASTER)


class Hearing:
    """Counts the windows that can be heard in samples that come in parts."""

    def __init__(self, sample_rate: int) -> None:
        self._rate, self._size = sample_rate, round(sample_rate * WINDOW_S)
        self._left = np.empty(0, np.float32)  # samples of a window that is not whole yet
        self._samples = self._audible = 0

    @property
    def heard_s(self) -> float:
        return self._audible * WINDOW_S

    @property
    def length_s(self) -> float:
        return self._samples / self._rate

    def hear(self, samples: Samples) -> None:
        self._samples += len(samples)
        samples = np.concatenate([self._left, samples])
        whole = len(samples) // self._size * self._size
        windows = samples[:whole].reshape(-1, self._size)
        power = np.einsum("ij,ij->i", windows, windows) / self._size
        self._audible += int(np.count_nonzero(power >= AUDIBLE**2))
        self._left = samples[whole:]


class AudibleChunks(AsyncIterator[Samples]):
    """Yields the chunks of a speech; ends with SpeechInaudible if they can't be its text."""

    def __init__(self, chunks: Chunks, sample_rate: int, text: str) -> None:
        self._chunks, self._least_s = chunks, least_s(text)
        self._hearing = Hearing(sample_rate)
        self._held: list[Samples] = []
        self._ended = False
        self.held_s = 0.0

    @property
    def length_s(self) -> float:
        """How long what was taken of them so far plays."""
        return self._hearing.length_s

    async def hold(self) -> None:
        """Take chunks until something can be heard: a speech that is silent fails here.

        After HELD_S of silence it goes on all the same: it may be a pause, and somebody waits.
        """
        hearing, begun_s = self._hearing, time.perf_counter()
        while hearing.heard_s < LEAST_S and hearing.length_s < HELD_S and not self._ended:
            if (samples := await self._next()) is not None:
                self._held.append(samples)
        self.held_s = time.perf_counter() - begun_s

    async def __anext__(self) -> Samples:
        samples = self._held.pop(0) if self._held else await self._next()
        if samples is None:
            raise StopAsyncIteration
        return samples

    async def aclose(self) -> None:
        await self._chunks.aclose()

    async def _next(self) -> Samples | None:
        """Return the next chunk and count it; None at the end. Raises SpeechInaudible."""
        samples = None if self._ended else await anext(self._chunks, None)
        if samples is not None:
            self._hearing.hear(samples)
        elif not self._ended:
            self._ended = True
            self._refuse_inaudible()
        return samples

    def _refuse_inaudible(self) -> None:
        heard_s = self._hearing.heard_s
        if heard_s < self._least_s:
            heard = f"no more than {heard_s:.2f} s" if heard_s else "nothing"
            raise SpeechInaudible(
                f"Of {self._hearing.length_s:.2f} s of speech {heard} can be heard, and the text"
                f" takes {self._least_s:.2f} s at the very least."
            )
