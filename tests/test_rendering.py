"""Speed, loudness and sample rates: nothing is lost, and nothing changes that nobody asked for."""

import numpy as np
import pytest
from clips import pitch, silence, spoken, tone
from heard import heard, lag
from numpy.typing import NDArray

from registry.audio.encoding.encoders import encode
from registry.audio.encoding.loudness import PEAK, SILENT, loudness
from registry.audio.encoding.rendering import Renderer, Rendering
from registry.audio.formats import SPEECH, AudioFormat

RATE = 24_000
PCM = AudioFormat("pcm")
SPEEDS = [0.25, 0.3, 0.5, 0.9, 1.1, 1.5, 2.0, 2.5, 4.0]
Samples = NDArray[np.float32]


def rendered(
    samples: Samples, asked: Rendering, size: int = 1920, *, whole: bool = True
) -> tuple[Samples, Renderer]:
    """What is heard of PCM that was made of pieces of `size`."""
    made = Renderer(asked, RATE, whole=whole)
    parts = [made.feed(samples[i : i + size]) for i in range(0, len(samples), size)]
    content = made.whole(b"".join(parts) + b"".join(made.finish()))
    return heard(content, PCM, RATE), made


@pytest.mark.parametrize("name", [name for name, one in SPEECH.items() if RATE in one.rates])
@pytest.mark.parametrize("whole", [True, False])
def test_what_nobody_asks_for_changes_no_byte(name: str, whole: bool) -> None:
    format, samples = AudioFormat(name), spoken()[0]
    made = Renderer(Rendering(format, speed=1.0), RATE, whole=whole)
    assert made.whole(made.feed(samples) + b"".join(made.finish())) == encode(samples, RATE, format)
    assert made.seconds == len(samples) / RATE and made.loudness is None


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


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("whole", [True, False])
def test_speed_changes_the_length_and_not_the_pitch(speed: float, whole: bool) -> None:
    samples = tone(3.0013)[0]
    found, made = rendered(samples, Rendering(PCM, speed), whole=whole)
    assert len(found) == round(len(samples) / speed)
    assert made.seconds == len(found) / RATE
    assert pitch(found, RATE) == pytest.approx(440, abs=2)
    middle = found[len(found) // 4 : -len(found) // 4]
    assert np.std(middle) == pytest.approx(0.4 / 2**0.5, rel=0.05)


@pytest.mark.parametrize("speed", SPEEDS)
def test_no_word_is_lost_at_any_speed(speed: float) -> None:
    """Bursts at known moments, the last one at the very end, are heard when their turn comes."""
    moments, noise = [0.3, 1.0, 1.7, 2.4, 2.9], np.random.default_rng(0)
    samples = silence(3.0)[0]
    for at in moments:
        begin = round(at * RATE)
        samples[begin : begin + 2400] = 0.3 * noise.standard_normal(2400)
    found, _ = rendered(samples, Rendering(PCM, speed))
    levels = [np.std(found[i : i + 240]) for i in range(0, len(found) - 239, 240)]
    loud = np.flatnonzero(np.array(levels) > 0.03) * 0.01 * speed  # moments of the source
    for at in moments:
        assert np.any(np.abs(loud - at - 0.05) < 0.06), at
    assert all(any(-0.1 < at - begin < 0.2 for begin in moments) for at in loud)
    assert loud[-1] > 2.9


@pytest.mark.parametrize("frames", [0, 1, 100, 1000])
@pytest.mark.parametrize("speed", [0.25, 4.0])
def test_the_shortest_speech_has_its_length_at_any_speed(frames: int, speed: float) -> None:
    found, _ = rendered(tone()[0, :frames], Rendering(PCM, speed))
    assert len(found) == round(frames / speed)


@pytest.mark.parametrize("target", [-30.0, -23.0, -20.0])
@pytest.mark.parametrize("name", ["alice", "bob"])
def test_a_whole_speech_is_as_loud_as_was_asked(name: str, target: float) -> None:
    samples = spoken(name)[0] / 4
    found, made = rendered(samples, Rendering(PCM, loudness=target))
    assert loudness(found, RATE) == pytest.approx(target, abs=0.1)
    assert made.loudness is not None and float(made.loudness) == pytest.approx(target, abs=0.1)
    assert len(found) == len(samples) and lag(found, samples) == 0
    assert np.corrcoef(found, samples)[0, 1] > 0.999


def test_peaks_stay_below_the_limit_and_the_header_tells_what_came_of_it() -> None:
    clicks = tone(2.0, level=0.05)[0]
    clicks[::6_000] = 0.9
    for whole in (True, False):
        found, made = rendered(clicks, Rendering(PCM, loudness=-12.0), whole=whole)
        assert 0.8 < np.abs(found).max() <= PEAK + 1e-4
        assert len(found) == len(clicks)
    _, made = rendered(clicks, Rendering(PCM, loudness=-12.0))
    assert made.loudness is not None and float(made.loudness) < -12.5


def test_what_is_far_too_quiet_is_raised_by_no_more_than_24_db() -> None:
    samples = spoken()[0] / 64
    found, made = rendered(samples, Rendering(PCM, loudness=-14.0))
    assert made.loudness == f"{loudness(samples, RATE) + 24:.1f}"
    assert np.abs(found).max() == pytest.approx(np.abs(samples).max() * 10 ** (24 / 20), abs=2e-4)


def test_a_stream_glides_to_its_loudness_without_waiting() -> None:
    samples, asked = tone(8.0, level=0.02)[0], Rendering(PCM, loudness=-23.0)
    made = Renderer(asked, RATE, whole=False)
    assert len(made.feed(samples[:480])) / 2 >= 480 - 0.005 * RATE  # the limiter looks 5 ms ahead
    assert made.loudness == "running"
    found, _ = rendered(samples, asked, whole=False)
    np.testing.assert_allclose(found[:2400], samples[:2400], atol=1e-4)  # as spoken at first
    gains = 20 * np.log10(level(found) / level(samples))
    assert 0.4 < np.diff(gains).max() <= 0.61  # per 100 ms: 6 dB a second
    assert loudness(found[-2 * RATE :], RATE) == pytest.approx(-23.0, abs=0.5)


def level(samples: Samples) -> NDArray[np.float64]:
    """Of each 100 ms."""
    return np.std(samples.reshape(-1, 2400).astype(np.float64), axis=1)


def test_silence_is_not_made_loud() -> None:
    hum = tone(2.0, hz=100, level=1e-4)[0]
    for whole in (True, False):
        found, _ = rendered(hum, Rendering(PCM, loudness=-12.0), whole=whole)
        assert np.abs(found).max() < 2e-4
    assert loudness(silence(1.0)[0], RATE) == SILENT


def test_a_short_word_is_measured_by_its_level() -> None:
    long = loudness(tone(2.0, hz=1000)[0], RATE)
    assert loudness(tone(0.1, hz=1000)[0], RATE) == pytest.approx(long, abs=0.2)


EVERYTHING = Rendering(AudioFormat("pcm", 44_100), 1.3, -20.0)


@pytest.mark.parametrize("size", [1, 17, 777, 10**6])
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_heard_does_not_depend_on_how_it_came(size: int, whole: bool) -> None:
    samples = spoken()[0, : RATE // 4 if size == 1 else None]
    found, made = rendered(samples, EVERYTHING, size, whole=whole)
    expected, _ = rendered(samples, EVERYTHING, whole=whole)
    np.testing.assert_array_equal(found, expected)
    assert made.seconds == pytest.approx(len(samples) / RATE / 1.3, abs=1e-4)


def test_what_is_left_at_the_end_is_made_in_parts() -> None:
    """So that who has left is noticed, and no thread is taken for long."""
    made = Renderer(EVERYTHING, RATE, whole=True)
    assert not any(made.feed(part) for part in np.tile(spoken()[0], 4).reshape(16, -1))
    assert len([part for part in made.finish() if part]) >= 16


@pytest.mark.parametrize("asked", [Rendering(), EVERYTHING])
@pytest.mark.parametrize("samples", [np.array([np.nan], "f4"), np.zeros((2, 2), "f4")])
def test_what_is_no_sound_is_refused_before_anything_hears_it(
    asked: Rendering, samples: Samples
) -> None:
    with pytest.raises(ValueError, match="finite and of shape"):
        Renderer(asked, RATE, whole=True).feed(samples)
