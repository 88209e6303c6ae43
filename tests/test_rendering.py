"""Sample rates: nothing is lost, and nothing changes that nobody asked for."""

import numpy as np
import pytest
from clips import spoken, tone
from heard import heard
from numpy.typing import NDArray

from registry.audio.encoders import encode
from registry.audio.formats import SPEECH, AudioFormat
from registry.audio.rendering import Renderer, Rendering

RATE = 24_000
PCM = AudioFormat("pcm")
Samples = NDArray[np.float32]


def rendered(samples: Samples, asked: Rendering, size: int = 1920) -> tuple[Samples, Renderer]:
    """What is heard of PCM that was made of pieces of `size`."""
    made = Renderer(asked, RATE)
    parts = [made.feed(samples[i : i + size]) for i in range(0, len(samples), size)]
    content = made.whole(b"".join(parts) + b"".join(made.finish()))
    return heard(content, PCM, RATE), made


@pytest.mark.parametrize("name", [name for name, one in SPEECH.items() if RATE in one.rates])
def test_what_nobody_asks_for_changes_no_byte(name: str) -> None:
    format, samples = AudioFormat(name), spoken()[0]
    made = Renderer(Rendering(format), RATE)
    assert made.whole(made.feed(samples) + b"".join(made.finish())) == encode(samples, RATE, format)
    assert made.seconds == len(samples) / RATE


@pytest.mark.parametrize("rate", SPEECH["pcm"].rates)
def test_another_rate_is_the_same_sound(rate: int) -> None:
    samples = tone(1.0137, hz=1000)[0]
    found, made = rendered(samples, Rendering(AudioFormat("pcm", rate)))
    assert len(found) == pytest.approx(len(samples) * rate / RATE, abs=0.51)
    assert made.seconds == pytest.approx(1.0137, abs=1 / rate)
    expected = 0.4 * np.sin(2 * np.pi * 1000 * np.arange(len(found)) / rate)
    inner = slice(rate // 20, -rate // 20)  # a tone that begins at once rings at its edges
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-4)
    assert np.abs(found[-20:]).max() > 0.1  # its end is there


def test_a_lower_rate_does_not_mirror_what_it_can_not_hold() -> None:
    found, _ = rendered(tone(1.0, hz=5_000)[0], Rendering(AudioFormat("pcm", 8_000)))
    assert np.abs(found[400:-400]).max() < 1e-4


EVERYTHING = Rendering(AudioFormat("pcm", 44_100))


@pytest.mark.parametrize("size", [1, 17, 777, 10**6])
def test_what_is_heard_does_not_depend_on_how_it_came(size: int) -> None:
    samples = spoken()[0, : RATE // 4 if size == 1 else None]
    found, made = rendered(samples, EVERYTHING, size)
    expected, _ = rendered(samples, EVERYTHING)
    np.testing.assert_array_equal(found, expected)
    assert made.seconds == pytest.approx(len(samples) / RATE, abs=1e-4)


@pytest.mark.parametrize("asked", [Rendering(), EVERYTHING])
@pytest.mark.parametrize("samples", [np.array([np.nan], "f4"), np.zeros((2, 2), "f4")])
def test_what_is_no_sound_is_refused_before_anything_hears_it(
    asked: Rendering, samples: Samples
) -> None:
    with pytest.raises(ValueError, match="finite and of shape"):
        Renderer(asked, RATE).feed(samples)
