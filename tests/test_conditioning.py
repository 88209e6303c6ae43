"""What the model hears of a clip: without its silent edges."""

import clips
import numpy as np
import pytest
from clips import joined, silence, spoken, tone

from registry.conditioning import speech_span

RATE = 24_000
RNG = np.random.default_rng(5)


def noise(seconds: float, dbfs: float) -> clips.Samples:
    values = RNG.normal(size=(1, round(seconds * RATE))) * 10 ** (dbfs / 20)
    return values.astype(np.float32)


def hum(seconds: float, dbfs: float) -> clips.Samples:
    return tone(seconds, hz=50, level=10 ** (dbfs / 20)) + tone(seconds, hz=150, level=0.01)


def click(seconds: float) -> clips.Samples:
    samples = silence(seconds)
    samples[0, RATE : RATE + 100] = 0.9
    return samples


ROOM = 0.05  # s that a margin may be off
EDGES = {
    "nothing": lambda seconds: silence(seconds),
    "a quiet room": lambda seconds: noise(seconds, -70.0),
    "a noisy room": lambda seconds: noise(seconds, -50.0),
    "hum": lambda seconds: hum(seconds, -30.0),
    "a click": click,
    "a constant": lambda seconds: silence(seconds) + np.float32(0.1),
}


def edges(samples: clips.Samples) -> tuple[float, float]:
    """The seconds that are cut off at the beginning and at the end."""
    span = speech_span(samples[0], RATE)
    return span.start / RATE, (samples.shape[1] - span.stop) / RATE


@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize(("before", "after"), [(10.0, 0.0), (0.0, 10.0), (2.0, 3.0), (45.0, 5.0)])
def test_silent_edges_are_cut_off_up_to_a_margin(kind, before, after):
    voice = spoken()
    edge = EDGES[kind]
    lead, tail = edges(joined(edge(before), voice, edge(after)))
    own_lead, own_tail = 0.05, 0.21  # alice.wav begins and ends with so much
    assert before - 0.15 - ROOM <= lead <= before + own_lead or before == 0
    assert after - 0.2 - ROOM <= tail <= after + own_tail or after == 0


@pytest.mark.parametrize("dbfs", [-20.0, -50.0, -70.0])
def test_noise_all_along_does_not_hide_the_speech(dbfs):
    lead, tail = edges(joined(silence(10), spoken(), silence(10)) + noise(24.24, dbfs))
    assert lead == pytest.approx(9.9, abs=0.25)
    assert tail == pytest.approx(9.9, abs=0.35)


def test_a_pause_inside_stays():
    voice = joined(spoken("bob"), silence(3.0), spoken("bob"))
    assert sum(edges(voice)) < 0.2


def test_a_soft_consonant_at_the_end_stays():
    hiss = noise(0.25, -20.0)
    ess = hiss - np.roll(hiss, 1)  # bright, as an s is
    samples = joined(silence(1.0), tone(1.0, hz=200), 0.05 * ess, silence(1.0))
    assert edges(samples)[1] <= 0.81


@pytest.mark.parametrize("samples", [tone(), noise(2.0, -20.0), silence(2.0), spoken("bob")])
def test_a_clip_without_silent_edges_is_whole(samples):
    assert sum(edges(samples)) < 0.1


def test_one_moment_is_enough_to_tell_nothing():
    assert edges(tone(0.01)) == (0.0, 0.0)
    assert edges(noise(0.3, -20.0)) == (0.0, 0.0)
