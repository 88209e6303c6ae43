"""What the model hears of a clip: no silent edges, no rumble, one level."""

import clips
import numpy as np
import pytest
from clips import joined, silence, spoken, tone

from registry.audio.conditioning import CEILING, condition, speech_dbfs, speech_span, without_rumble

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


MOST = 60 * RATE


def heard(samples: clips.Samples) -> clips.Samples:
    return condition(samples[0], RATE, MOST).samples


def change_db(hz: float) -> float:
    """What the filter does to a tone of `hz`, away from its ends."""
    wave = tone(4.0, hz=hz, level=0.1)[0]
    found = without_rumble(wave, RATE)[RATE:-RATE]
    return clips.loudness(found) - clips.loudness(wave[RATE:-RATE])


@pytest.mark.parametrize("hz", [5, 20, 30, 40, 50, 54])
def test_what_is_under_60_hz_is_gone(hz):
    assert change_db(hz) < -40


@pytest.mark.parametrize("hz", [76, 85, 100, 200, 1_000, 8_000, 11_900])
def test_what_is_above_75_hz_is_as_it_was(hz):
    assert change_db(hz) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("hz", [20.0, 40.0, 50.0])
@pytest.mark.parametrize("dbfs", [-40.0, -20.0, -6.0])
def test_a_voice_in_rumble_is_heard_as_without_it(hz, dbfs):
    voice = spoken()
    rumble = tone(4.24, hz=hz, level=10 ** (dbfs / 20) * np.sqrt(2))
    clean, found = heard(voice), heard(voice + rumble)
    inner = slice(RATE // 2, min(len(clean), len(found)) - RATE // 2)
    assert np.corrcoef(clean[inner], found[inner])[0, 1] > 0.99


def test_the_filter_moves_nothing_in_time_and_rings_before_nothing():
    impulse = silence(1.0)[0]
    impulse[12_000] = 0.5
    found = without_rumble(impulse, RATE)
    assert np.argmax(np.abs(found)) == 12_000
    np.testing.assert_allclose(found[1:], found[1:][::-1], atol=1e-6)
    assert np.abs(np.delete(found, 12_000)).max() < 0.005


@pytest.mark.parametrize("gain_db", [-37.0, -30.0, -20.0, -6.0, 0.0, 3.0])
def test_every_voice_is_brought_to_one_level(gain_db):
    voice = spoken()
    made = condition(voice[0] * np.float32(10 ** (gain_db / 20)), RATE, MOST)
    np.testing.assert_allclose(made.samples, heard(voice), atol=2e-3)
    assert made.gain_db == pytest.approx(
        condition(voice[0], RATE, MOST).gain_db - gain_db, abs=0.05
    )


def test_pauses_do_not_make_a_voice_louder():
    pause = joined(spoken("bob"), silence(8.0), spoken("bob"))
    assert speech_dbfs(pause[0], RATE) == pytest.approx(
        speech_dbfs(spoken("bob")[0], RATE), abs=0.5
    )


def test_a_knock_neither_keeps_a_voice_quiet_nor_is_clipped():
    quiet = 0.03 * spoken()
    quiet[0, RATE : RATE + 50] += 0.9
    found = heard(quiet)
    assert np.abs(found).max() <= CEILING + 1e-6
    assert speech_dbfs(found[2 * RATE :], RATE) == pytest.approx(-20, abs=1.5)


def test_a_clip_is_cut_to_what_the_model_takes():
    assert len(condition(tone(61.0)[0], RATE, MOST).samples) == MOST
