import io
import struct
from typing import get_args

import numpy as np
import pytest
import soundfile
from clips import pitch, tone

from registry.audio.encoders import ENCODERS, IEEE_FLOAT, encode, encoder, media_type, wave_file
from registry.audio.formats import SPEECH, SpeechFormat

RATE = 24_000
EVERY_INT16 = np.arange(-32768, 32768, dtype=np.int16)


def decoded(data: bytes, format: str, rate: int = RATE) -> np.ndarray:
    if format == "pcm":
        return np.frombuffer(data, "<i2")
    samples, found = soundfile.read(io.BytesIO(data), dtype="int16")
    assert found == rate
    return samples


@pytest.mark.parametrize("format", SPEECH)
@pytest.mark.parametrize("rate", [8_000, RATE, 48_000])
def test_a_tone_keeps_its_pitch_length_and_level(format, rate):
    samples = tone(1.0, rate)[0]
    heard = decoded(encode(samples, rate, format), format, rate) / 32768
    assert pitch(heard, rate) == pytest.approx(440, abs=1)
    np.testing.assert_allclose(heard, samples, atol=0.51 / 32768)


@pytest.mark.parametrize("format", SPEECH)
def test_every_16_bit_value_comes_back_exactly(format):
    samples = EVERY_INT16.astype(np.float32) / 32768
    np.testing.assert_array_equal(decoded(encode(samples, RATE, format), format), EVERY_INT16)


@pytest.mark.parametrize("format", SPEECH)
def test_loud_samples_are_clipped_and_never_wrap_around(format):
    loud = np.array([-3e38, -2, -1.0001, -1, 0, 1, 1.0001, 2, 3e38], np.float32)
    heard = decoded(encode(loud, RATE, format), format)
    assert heard.tolist() == [-32768] * 4 + [0] + [32767] * 4


def test_samples_are_rounded_to_the_nearest_step():
    steps = np.array([-1.6, -1.4, -0.4, 0.4, 1.4, 1.6], np.float32)
    assert decoded(encode(steps / 32768, RATE, "pcm"), "pcm").tolist() == [-2, -1, 0, 0, 1, 2]


@pytest.mark.parametrize("format", ["wav", "pcm"])
def test_no_samples_make_an_empty_but_valid_file(format):
    assert len(decoded(encode(np.zeros(0, np.float32), RATE, format), format)) == 0


@pytest.mark.parametrize("format", SPEECH)
def test_equal_samples_give_equal_bytes(format):
    assert encode(tone()[0], RATE, format) == encode(tone()[0], RATE, format)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        encode(np.array([0, bad], np.float32), RATE, "wav")


def test_two_channels_are_refused():
    with pytest.raises(ValueError, match="shape"):
        encode(tone(channels=2), RATE, "wav")


def test_the_media_type_of_raw_pcm_says_how_to_play_it():
    assert media_type("pcm", 48_000) == "audio/pcm;rate=48000;channels=1"
    assert media_type("wav", 48_000) == "audio/wav"


@pytest.mark.parametrize("format", SPEECH)
@pytest.mark.parametrize("size", [1, 1920, 4096, 10_000])
def test_a_file_made_in_pieces_is_the_file_made_at_once(format, size):
    samples = tone(0.5 if size == 1 else 2.0)[0]
    made = encoder(format, RATE)
    parts = [made.feed(samples[i : i + size]) for i in range(0, len(samples), size)]
    whole = made.whole(b"".join(parts) + made.finish())
    assert whole == encode(samples, RATE, format)
    assert made.frames == len(samples)


@pytest.mark.parametrize("format", SPEECH)
def test_an_encoder_gives_out_all_but_a_block_at_once(format):
    noise = np.random.default_rng(0).uniform(-1, 1, (200, 1920)).astype(np.float32)
    made, given = encoder(format, RATE), 0
    for count, samples in enumerate(noise, start=1):
        given += len(made.feed(samples))
        assert given > 2 * (1920 * count - 2 * 4096)
    assert len(made.finish()) < 2 * 2 * 4096


def test_a_float_wave_file_holds_its_samples_bit_for_bit():
    samples = np.array([0.1, -0.3, 1.5, 1e-30], "<f4")
    data = wave_file(samples.tobytes(), RATE, IEEE_FLOAT, bits=32)
    heard, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(heard, samples)
    assert (rate, soundfile.info(io.BytesIO(data)).subtype) == (RATE, "FLOAT")
    assert data[4:8] == (len(data) - 8).to_bytes(4, "little")
    assert data[38:50] == b"fact" + struct.pack("<II", 4, len(samples))


def test_each_format_of_speech_has_its_encoder_and_endings_of_its_own() -> None:
    assert set(SPEECH) == set(ENCODERS) == set(get_args(SpeechFormat))
    endings = [ending for one in SPEECH.values() for ending in one.endings]
    assert len(endings) == len(set(endings))
    assert all(name in one.endings for name, one in SPEECH.items())
