"""What counts as heard, and how much of a speech its text takes at the least."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray

from registry.errors import SpeechInaudible
from registry.voices.audible import HELD_S, LEAST_S, AudibleChunks, Hearing, least_s

RATE = 24_000
Sound = NDArray[np.float32]


def hum(seconds: float, level: float = 0.3) -> Sound:
    return (level * np.sin(np.arange(round(seconds * RATE)) / 20)).astype(np.float32)


def silence(seconds: float) -> Sound:
    """As a codec makes it: not quite zero."""
    return np.random.default_rng(0).normal(0, 5e-4, round(seconds * RATE)).astype(np.float32)


class Made(AsyncIterator[Sound]):
    """Chunks that count how many were taken."""

    def __init__(self, *chunks: Sound) -> None:
        self._chunks, self.taken, self.closed = list(chunks), 0, False

    async def __anext__(self) -> Sound:
        if self.taken == len(self._chunks):
            raise StopAsyncIteration
        self.taken += 1
        return self._chunks[self.taken - 1]

    async def aclose(self) -> None:
        self.closed = True


def frames(sound: Sound, size: int = 1920) -> list[Sound]:
    return [sound[start : start + size] for start in range(0, len(sound), size)]


@pytest.mark.parametrize("size", [7, 239, 240, 241, 1920, RATE])
def test_what_is_heard_does_not_depend_on_how_it_was_cut(size: int) -> None:
    hearing = Hearing(RATE)
    for chunk in frames(np.concatenate([silence(0.5), hum(0.2), silence(0.3)]), size):
        hearing.hear(chunk)
    assert hearing.heard_s == pytest.approx(0.2) and hearing.length_s == pytest.approx(1.0)


@pytest.mark.parametrize(("level", "heard"), [(0.3, True), (0.01, True), (0.001, False)])
def test_a_quiet_voice_is_heard_and_a_codecs_silence_is_not(level: float, heard: bool) -> None:
    hearing = Hearing(RATE)
    hearing.hear(hum(0.5, level))
    assert bool(hearing.heard_s) is heard


def test_a_text_takes_time_by_its_letters_and_numbers_alone() -> None:
    assert least_s("a") == least_s("a!!! … 😂😂😂😂") == LEAST_S
    assert least_s("hello there") < least_s("hello there, my friend") < 0.5
    assert least_s("=" * 500 + "yes") == least_s("yes") < 0.1
    assert least_s("你好吗我很好") > least_s("abcdef"), "an ideograph is a syllable"
    assert least_s("x" * 800) > 10


def test_a_speech_that_could_be_its_text_passes_unchanged() -> None:
    sound = np.concatenate([silence(0.2), hum(0.4), silence(0.2)])

    async def listen() -> list[Sound]:
        return [chunk async for chunk in AudibleChunks(Made(*frames(sound)), RATE, "hello")]

    np.testing.assert_array_equal(np.concatenate(asyncio.run(listen())), sound)


@pytest.mark.parametrize(
    ("sound", "text"),
    [
        (silence(0.16), "hello"),
        (np.zeros(0, np.float32), "hello"),
        (np.concatenate([silence(0.1), hum(0.02), silence(0.1)]), "a"),
        (hum(0.08), "Good morning, everybody, and welcome."),
        (np.concatenate([hum(0.3), silence(9.0)]), "Half of this text was never said. " * 3),
        (silence(30.0), "a"),
    ],
)
@pytest.mark.parametrize("hold", [True, False])
def test_one_that_could_not_ends_with_an_error(sound: Sound, text: str, hold: bool) -> None:
    async def listen() -> None:
        chunks = AudibleChunks(Made(*frames(sound)), RATE, text)
        if hold:
            await chunks.hold()
        async for _ in chunks:
            pass

    with pytest.raises(SpeechInaudible, match="can be heard, and the text takes"):
        asyncio.run(listen())


def test_only_silence_is_held_back_and_never_for_long() -> None:
    async def held(sound: Sound) -> int:
        made = Made(*frames(sound))
        await AudibleChunks(made, RATE, "hello").hold()
        return made.taken

    assert asyncio.run(held(hum(5.0))) == 1
    assert asyncio.run(held(np.concatenate([silence(0.16), hum(5.0)]))) == 3
    assert asyncio.run(held(silence(5.0))) == int(HELD_S / 0.08) + 1


def test_closing_reaches_what_makes_the_chunks() -> None:
    made = Made(hum(1.0))
    asyncio.run(AudibleChunks(made, RATE, "hello").aclose())
    assert made.closed
