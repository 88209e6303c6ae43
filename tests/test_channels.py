"""Which channels carry the voice: each way of recording one, with what is made of it."""

import clips
import numpy as np
import pytest
from clips import tone
from numpy.typing import NDArray

from registry.audio.decoding.channels import Folded, fold
from registry.audio.report import Refusal

RATE = 24_000
VOICE = clips.spoken("alice")[0]
OTHER = clips.spoken("bob")[0][: len(VOICE)]
NONE = np.zeros_like(VOICE)
HUM = sum(tone(4.24, hz=50.0 * k, level=0.3 / k)[0] for k in (1, 3, 5, 7))
FILM = ("FL", "FR", "FC", "LFE", "BL", "BR")
Channel = NDArray[np.float32]


def noise(dbfs: float, slope: float = 0.0, seed: int = 3) -> Channel:
    """White noise, or with a slope of 1 pink and of 2 brown, at a level."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=len(VOICE)))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-slope / 2)
    spectrum[:100] = 0
    made = np.fft.irfft(spectrum, len(VOICE))
    return (made / made.std() * 10 ** (dbfs / 20)).astype(np.float32)


def late(samples: int) -> Channel:
    return np.roll(VOICE, samples)


def room(seed: int, level: float) -> Channel:
    """The voice in a room that echoes for half a second."""
    echo = np.random.default_rng(seed).normal(size=12_000) * 10 ** (-3 * np.arange(12_000) / 12_000)
    echo *= level / np.sqrt(np.square(echo).sum())
    echo[0] = 1.0
    return np.convolve(VOICE, echo)[: len(VOICE)].astype(np.float32)


def folded(*channels: Channel, names: tuple[str, ...] = ()) -> Folded:
    return fold(np.stack(channels).astype(np.float32), RATE, names)


def likeness(found: Channel, wanted: Channel) -> float:
    """The cosine of two signals: 1 where they differ in level alone."""
    return float(found @ wanted / np.sqrt((found @ found) * (wanted @ wanted)))


ALONE = {
    "the second": ((NONE, VOICE), "only 2 carries the voice"),
    "beside codec noise": ((VOICE, noise(-75.0)), "only 1 carries"),
    "beside loud white noise": ((noise(-15.0), VOICE), "only 2 carries"),
    "beside loud pink noise": ((noise(-15.0, 1.0), VOICE), "2"),
    "beside loud brown noise": ((noise(-15.0, 2.0), VOICE), "channel 2 was taken"),
    "beside hum": ((HUM, VOICE), "only 2 carries"),
    "beside a constant": ((NONE + 0.5, VOICE), "only 2 carries"),
    "much louder": ((VOICE * 0.03, VOICE), "only 2 carries"),
    "louder": ((VOICE, VOICE * 0.2), "Channel 2 is much quieter; channel 1 was taken."),
    "inverted": ((VOICE, -VOICE), "The channels cancel each other out; channel 1 was taken."),
    "inverted and quieter": ((VOICE, -0.5 * VOICE), "cancel each other out"),
    "inverted in hum": ((VOICE + 0.1 * HUM, 0.1 * HUM - VOICE), "cancel each other out"),
    "inverted on a constant": ((VOICE + 0.2, 0.2 - VOICE), "cancel each other out"),
    "inverted and late": ((VOICE, -late(5)), "Channel 2 is not in step; channel 1 was taken."),
    "half a millisecond late": ((VOICE, late(12)), "Channel 2 is not in step"),
    "an echo late": ((VOICE, late(7_200)), "Channel 2 is not in step"),
    "mid and side": ((VOICE, 0.1 * late(300)), "channel 1 was taken"),
    "mid and a side of noise": ((VOICE, noise(-45.0, 1.0)), "only 1 carries"),
    "over a quiet other": ((VOICE, 0.1 * OTHER), "Channel 2 holds another sound; channel 1"),
    "one of six": ((NONE, NONE, NONE, NONE, VOICE, NONE), "Of the 6 channels only 5 carries"),
    "one of 32": ((*[NONE] * 30, VOICE, NONE), "Of the 32 channels only 31 carries"),
}


@pytest.mark.parametrize("kind", ALONE)
def test_one_channel_is_taken_and_the_note_says_which(kind):
    channels, told = ALONE[kind]
    found = folded(*channels)
    assert abs(likeness(found.samples - found.samples.mean(), VOICE)) > 0.94
    assert told in found.notes[0]


TOGETHER = {
    "twice the same": (VOICE, VOICE),
    "a little quieter": (VOICE, 0.5 * VOICE),
    "a studio": (room(1, 0.3), room(2, 0.3)),
    "a room": (room(1, 0.7), room(2, 0.7)),
    "each with its hiss": (VOICE + noise(-40.0, seed=1), VOICE + noise(-40.0, seed=2)),
    "each with much noise": (VOICE + noise(-28.0, seed=1), VOICE + noise(-28.0, seed=2)),
    "widened": (VOICE + 0.2 * late(40), VOICE - 0.2 * late(40)),
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_ordinary_stereo_is_the_mean_of_both_without_a_note(kind):
    one, other = TOGETHER[kind]
    found = folded(one, other)
    np.testing.assert_allclose(found.samples, (one + other) / 2, atol=1e-6)
    assert found.notes == []


def test_the_channels_that_agree_are_taken_together():
    found = folded(VOICE, VOICE, -VOICE, VOICE)
    np.testing.assert_allclose(found.samples, VOICE, atol=1e-6)
    assert found.notes == ["The channels cancel each other out; the other 3 were taken."]


@pytest.mark.parametrize("beside", [OTHER, noise(-40.0, 1.0), NONE])
def test_a_film_speaks_from_its_centre(beside):
    found = folded(beside, beside, VOICE, noise(-30.0, 2.0), NONE, NONE, names=FILM)
    assert likeness(found.samples, VOICE) > 0.99


def turns(bleed: float) -> tuple[Channel, Channel]:
    """An interview: two voices take turns, and each microphone hears the other a little."""
    return (
        np.concatenate([VOICE, bleed * OTHER, VOICE]),
        np.concatenate([bleed * VOICE, OTHER, bleed * VOICE]),
    )


TWO = [(VOICE, OTHER), (VOICE, 0.5 * OTHER), turns(0.0), turns(0.05), turns(0.2)]


@pytest.mark.parametrize("channels", TWO)
def test_two_voices_are_refused(channels):
    with pytest.raises(Refusal, match="Channels 1 and 2 hold different sounds") as caught:
        folded(*channels)
    assert caught.value.code == "audio-channels-differ"


def test_steady_tones_are_told_apart_by_level_alone():
    loud, none = tone()[0], np.zeros(48_000, np.float32)
    np.testing.assert_allclose(folded(none, loud, none).samples, loud)
    np.testing.assert_allclose(folded(loud, loud).samples, loud)
    assert "cancel" in folded(loud, -loud).notes[0]


def test_silence_on_all_channels_stays_silence():
    assert not folded(NONE, NONE).samples.any()
