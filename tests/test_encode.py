"""Files of every format are what they say, as other decoders hear them, streamed and whole."""

import hashlib
import io
import struct

import numpy as np
import pytest
import soundfile
from clips import pitch, spoken, tone
from heard import adts_frames, heard, lag, mp3_frames, ogg_pages

from registry.audio.encoding.encoders import ENCODERS, encode, encoder
from registry.audio.formats import FORMATS, SPEECH, AudioFormat, format_named
from registry.audio.wave import IEEE_FLOAT, wave_file

RATE = 24_000
EVERY_INT16 = np.arange(-32768, 32768, dtype=np.int16)
WAV, PCM = AudioFormat("wav"), AudioFormat("pcm")
EXACT = [WAV, AudioFormat("flac"), PCM]
EVERY = [AudioFormat(name) for name in SPEECH]
WITH_RATES = [format_named(name) for name in FORMATS if "_" in name]
LOSSY = [one for one in WITH_RATES if one.name in ("mp3", "opus", "aac")]
PADDING = {"mp3": 3 * 1152, "aac": 3 * 1024}  # frames that a codec puts around, at the most
ELEVENLABS = """
    mp3_22050_32 mp3_24000_48 mp3_44100_32 mp3_44100_64 mp3_44100_96 mp3_44100_128 mp3_44100_192
    pcm_8000 pcm_16000 pcm_22050 pcm_24000 pcm_32000 pcm_44100 pcm_48000
    wav_8000 wav_16000 wav_22050 wav_24000 wav_32000 wav_44100 wav_48000
    opus_48000_32 opus_48000_64 opus_48000_96 opus_48000_128 opus_48000_192 ulaw_8000 alaw_8000
    """.split()  # noqa: SIM905
OPENAI = ("mp3", "opus", "aac", "flac", "wav", "pcm")


def decoded(data: bytes, format: AudioFormat, rate: int = RATE) -> np.ndarray:
    """Of a format without loss, to the bit."""
    if format.name == "pcm":
        return np.frombuffer(data, "<i2")
    samples, found = soundfile.read(io.BytesIO(data), dtype="int16")
    assert found == rate
    return samples


def speech(rate: int) -> np.ndarray:
    """Two seconds that sound, and whose end is as loud as the rest."""
    samples = np.tile(spoken()[0, 6_000:30_000], 2)
    return np.interp(np.arange(2 * rate) * RATE / rate, np.arange(48_000), samples).astype("f4")


@pytest.mark.parametrize("format", EXACT, ids=str)
@pytest.mark.parametrize("rate", [8_000, RATE, 48_000])
def test_a_tone_keeps_its_pitch_length_and_level(format: AudioFormat, rate: int) -> None:
    samples = tone(1.0, rate)[0]
    found = decoded(encode(samples, rate, format), format, rate) / 32768
    assert pitch(found, rate) == pytest.approx(440, abs=1)
    np.testing.assert_allclose(found, samples, atol=0.51 / 32768)


@pytest.mark.parametrize("format", EXACT, ids=str)
def test_every_16_bit_value_comes_back_exactly(format: AudioFormat) -> None:
    samples = EVERY_INT16.astype(np.float32) / 32768
    np.testing.assert_array_equal(decoded(encode(samples, RATE, format), format), EVERY_INT16)


@pytest.mark.parametrize("format", EXACT, ids=str)
def test_loud_samples_are_clipped_and_never_wrap_around(format: AudioFormat) -> None:
    loud = np.array([-3e38, -2, -1.0001, -1, 0, 1, 1.0001, 2, 3e38], np.float32)
    found = decoded(encode(loud, RATE, format), format)
    assert found.tolist() == [-32768] * 4 + [0] + [32767] * 4


@pytest.mark.parametrize("format", WITH_RATES, ids=str)
def test_another_decoder_hears_all_that_was_said(format: AudioFormat) -> None:
    rate, _ = format.rates(RATE)
    samples = speech(rate)
    found = heard(encode(samples, rate, format), format, rate)
    late = lag(found, samples)
    assert late <= len(found) - len(samples) <= PADDING.get(format.name, 0)
    end, found = rate // 20, found[late : late + len(samples)]
    for part, source in ((found, samples), (found[-end:], samples[-end:])):
        assert np.corrcoef(part, source)[0, 1] > 0.9
        assert np.std(part) == pytest.approx(np.std(source), rel=0.2)


@pytest.mark.parametrize("format", LOSSY, ids=str)
def test_a_bit_rate_is_what_is_sent(format: AudioFormat) -> None:
    rate, kbps = format.rates(RATE)
    data = encode(np.concatenate([speech(rate)] * 4), rate, format)
    if format.name == "opus":
        data = b"".join(page.content for page in ogg_pages(data))
    found = len(data) * 8 / 8 / 1000
    assert found == pytest.approx(kbps, rel=0.05 if format.name == "mp3" else 0.4)


@pytest.mark.parametrize("format", [one for one in WITH_RATES if one.name == "mp3"], ids=str)
def test_mp3s_can_be_joined(format: AudioFormat) -> None:
    rate, kbps = format.rates(RATE)
    one = encode(speech(rate), rate, format)
    other = encode(speech(rate)[::-1].copy(), rate, format)
    for data in (one, other):
        frames = mp3_frames(data)
        assert {(frame.rate, frame.kbps) for frame in frames} == {(rate, kbps)}
        assert not any(frame.begins for frame in frames)  # none needs what stands before it
        assert b"ID3" not in data[:3] and b"TAG" not in data[-128:]
    both = heard(one + other, format, rate)
    assert len(both) == len(heard(one, format, rate)) + len(heard(other, format, rate))


def test_opus_has_a_page_for_each_packet_and_tells_its_length() -> None:
    format, samples = AudioFormat("opus", 48_000, 64), speech(48_000)[: 48_000 + 371]
    head, tags, *sound = ogg_pages(encode(samples, 48_000, format))
    assert head.content[:10] == b"OpusHead\x01\x01" and tags.content.startswith(b"OpusTags")
    assert {page.packets for page in sound} == {1}
    skipped = int.from_bytes(head.content[10:12], "little")
    assert sound[-1].granule == len(samples) + skipped
    assert (head.flags, sound[-1].flags) == (2, 4)


def test_streams_of_opus_are_told_apart() -> None:
    format = AudioFormat("opus")
    one, other = (encode(speech(RATE)[at:], RATE, format) for at in (0, 100))
    serials = [{page.serial for page in ogg_pages(data)} for data in (one, one, other)]
    assert serials[0] == serials[1] != serials[2]
    assert all(len(found) == 1 for found in serials)


def test_aac_is_frames_alone() -> None:
    data = encode(speech(RATE), RATE, AudioFormat("aac"))
    assert {frame.rate for frame in adts_frames(data)} == {RATE}


def test_a_whole_flac_tells_its_length_and_the_hash_of_its_samples() -> None:
    samples = speech(RATE)
    data = encode(samples, RATE, AudioFormat("flac"))
    pcm = encode(samples, RATE, PCM)
    assert int.from_bytes(data[18:26], "big") & (1 << 36) - 1 == len(samples)
    assert data[26:42] == hashlib.md5(pcm, usedforsecurity=False).digest()


@pytest.mark.parametrize("rate", SPEECH["wav"].rates)
def test_a_whole_wav_tells_its_length_and_rate(rate: int) -> None:
    data = encode(speech(rate), rate, AudioFormat("wav", rate))
    assert struct.unpack_from("<II", data, 24) == (rate, 2 * rate)
    assert struct.unpack_from("<I", data, 4) == (len(data) - 8,)
    assert struct.unpack_from("<I", data, 40) == (len(data) - 44,)


def test_samples_are_rounded_to_the_nearest_step() -> None:
    steps = np.array([-1.6, -1.4, -0.4, 0.4, 1.4, 1.6], np.float32)
    assert decoded(encode(steps / 32768, RATE, PCM), PCM).tolist() == [-2, -1, 0, 0, 1, 2]


@pytest.mark.parametrize("format", [WAV, PCM], ids=str)
def test_no_samples_make_an_empty_but_valid_file(format: AudioFormat) -> None:
    assert len(decoded(encode(np.zeros(0, np.float32), RATE, format), format)) == 0


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "ulaw", "alaw"])
def test_no_samples_make_no_bytes_where_a_file_has_no_header_of_its_own(name: str) -> None:
    assert encode(np.zeros(0, np.float32), RATE, AudioFormat(name)) == b""


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_equal_samples_give_equal_bytes(format: AudioFormat) -> None:
    assert encode(tone()[0], RATE, format) == encode(tone()[0], RATE, format)


@pytest.mark.parametrize("format", EVERY, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(format: AudioFormat, bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        encode(np.array([0, bad], np.float32), RATE, format)


def test_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        encode(tone(channels=2), RATE, WAV)


@pytest.mark.parametrize(
    ("format", "told"),
    [
        (PCM, "audio/pcm;rate=48000;channels=1"),
        (WAV, "audio/wav"),
        (AudioFormat("opus"), "audio/ogg;codecs=opus"),
        (AudioFormat("mp3"), "audio/mpeg"),
    ],
    ids=str,
)
def test_the_media_type_says_what_the_sound_does_not(format: AudioFormat, told: str) -> None:
    assert format.content_type(48_000) == told


@pytest.mark.parametrize("format", EVERY, ids=str)
@pytest.mark.parametrize("size", [1, 777, 1920, 10_000])
def test_a_file_made_in_pieces_is_the_file_made_at_once(format: AudioFormat, size: int) -> None:
    samples = tone(0.1 if size == 1 else 2.0)[0]
    made = encoder(format, RATE)
    parts = [made.feed(samples[i : i + size]) for i in range(0, len(samples), size)]
    streamed = b"".join(parts) + made.finish()
    assert made.whole(streamed) == encode(samples, RATE, format)
    assert made.frames == len(samples)
    if format.name not in ("wav", "flac"):
        assert made.whole(streamed) == streamed


@pytest.mark.parametrize("format", EXACT, ids=str)
def test_an_encoder_gives_out_all_but_a_block_at_once(format: AudioFormat) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (200, 1920)).astype(np.float32)
    made, given = encoder(format, RATE), 0
    for count, samples in enumerate(noise, start=1):
        given += len(made.feed(samples))
        assert given > 2 * (1920 * count - 2 * 4096)
    assert len(made.finish()) < 2 * 2 * 4096


@pytest.mark.parametrize(
    ("name", "most_ms"),
    [
        ("wav", 1),
        ("pcm", 1),
        ("ulaw_8000", 20),
        ("opus", 40),
        ("opus_48000_64", 40),
        ("aac_44100_64", 50),
        ("mp3", 50),
        ("mp3_44100_128", 60),
        ("aac", 90),
    ],
)
def test_the_first_sound_does_not_wait(name: str, most_ms: int) -> None:
    """In ms of audio; the headers of Ogg are no sound."""
    format = format_named(name)
    made = encoder(format, RATE)
    step, given = made.sample_rate // 1000, 0
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (most_ms, step)).astype(np.float32)
    for part in samples:
        given += len(made.feed(part))
    assert given > (200 if format.name == "opus" else 0)


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_a_stream_that_nobody_ends_leaves_nothing_behind(format: AudioFormat) -> None:
    made = encoder(format, RATE)
    assert made.feed(tone()[0])
    del made  # what it had open complains in no way: each warning is an error


def test_a_float_wave_file_holds_its_samples_bit_for_bit() -> None:
    samples = np.array([0.1, -0.3, 1.5, 1e-30], "<f4")
    data = wave_file(samples.tobytes(), RATE, IEEE_FLOAT, bits=32)
    found, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(found, samples)
    assert (rate, soundfile.info(io.BytesIO(data)).subtype) == (RATE, "FLOAT")
    assert data[4:8] == (len(data) - 8).to_bytes(4, "little")
    assert data[38:50] == b"fact" + struct.pack("<II", 4, len(samples))


def test_each_format_of_speech_has_its_encoder_and_endings_of_its_own() -> None:
    assert set(SPEECH) == set(ENCODERS)
    endings = [ending for one in SPEECH.values() for ending in one.endings]
    assert len(endings) == len(set(endings))
    assert all(name in one.endings for name, one in SPEECH.items())
    for one in SPEECH.values():
        assert all(one.bit_rate in of_rate or not of_rate for of_rate in one.rates.values())


def test_there_is_what_clients_of_other_apis_name() -> None:
    assert len(ELEVENLABS) == 28
    assert {*ELEVENLABS, *OPENAI} <= set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_named_as_it_is_spelled(name: str) -> None:
    assert str(format_named(name)) == name


@pytest.mark.parametrize(
    ("name", "model_rate", "rates"),
    [
        ("wav", 24_000, (24_000, None)),
        ("wav", 12_345, (16_000, None)),
        ("mp3", 24_000, (24_000, 64)),
        ("mp3", 8_000, (22_050, 64)),
        ("opus", 96_000, (48_000, 64)),
        ("ulaw", 24_000, (8_000, None)),
        ("mp3_44100_128", 24_000, (44_100, 128)),
    ],
)
def test_who_names_no_rates_gets_those_of_the_model_or_the_next(
    name: str, model_rate: int, rates: tuple[int, int | None]
) -> None:
    assert format_named(name).rates(model_rate) == rates


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mp4", "There is no such format: the formats are wav, flac, pcm, mp3, opus, aac, ulaw,"),
        ("MP3", "There is no such format: the formats are wav, "),
        ("mp3_44100_129", "There is no such format: mp3 is made as mp3, mp3_22050_32, "),
        ("wav_24000_64", "There is no such format: wav is made as wav, wav_8000, "),
        ("", "There is no such format: the formats are wav, "),
    ],
)
def test_what_is_no_format_is_told_what_is(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        format_named(name)


@pytest.mark.parametrize("rates", [(44_100, 129), (44_100, None), (None, 128), (1, None)])
def test_rates_that_are_not_in_the_table_make_no_format(rates: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="There is no mp3"):
        AudioFormat("mp3", *rates)
