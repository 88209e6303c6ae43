import io
from concurrent.futures import ThreadPoolExecutor

import clips
import numpy as np
import pytest
import soundfile
from clips import FFMPEG, LIBSNDFILE, WAVES, made, tone
from uploading import read_clip

from registry.audio.clips import SAMPLE_RATE, ClipLimits, ClipRefused, ReferenceClip
from registry.storage.data_dir import sha256_of

LIMITS = ClipLimits()


def heard(clip: ReferenceClip) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(clip.conditioned_wav), dtype="float32")
    assert rate == SAMPLE_RATE and samples.ndim == 1
    return samples


def refusal(data: bytes, limits: ClipLimits = LIMITS) -> ClipRefused:
    with pytest.raises(ClipRefused) as caught:
        read_clip(data, limits)
    return caught.value


def assert_same_tone(clip: ReferenceClip, seconds: float = 2.0, lossy: bool = False) -> None:
    samples = heard(clip)
    assert clips.pitch(samples, SAMPLE_RATE) == pytest.approx(440, abs=1)
    assert len(samples) / SAMPLE_RATE == pytest.approx(seconds, abs=0.1 if lossy else 1e-4)
    assert clip.duration_s == pytest.approx(len(samples) / SAMPLE_RATE, abs=1e-4)
    assert clips.loudness(samples) == pytest.approx(-20, abs=0.1)
    assert clip.rms_dbfs == pytest.approx(-10.97, abs=0.5 if lossy else 0.05)
    assert clip.gain_db == pytest.approx(-20 - clip.rms_dbfs, abs=0.1)
    assert lossy or clip.peak_dbfs == pytest.approx(-7.96, abs=0.2)
    assert clip.dc_offset == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("subtype", WAVES)
def test_every_kind_of_wav_sample_is_scaled_alike(subtype):
    assert_same_tone(read_clip(made("WAV", subtype), LIMITS))


@pytest.mark.parametrize(("format", "codec", "rate", "media_type"), LIBSNDFILE + FFMPEG)
def test_every_container_keeps_pitch_length_and_level(format, codec, rate, media_type):
    clip = read_clip(made(format, codec, rate), LIMITS)
    lossy = codec in ("VORBIS", "OPUS", "MPEG_LAYER_III", "aac", "libopus")
    assert_same_tone(clip, lossy=lossy)
    assert (clip.media_type, clip.sample_rate, clip.channels) == (media_type, rate, 1)


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 24_000, 48_000, 96_000, 192_000, 384_000])
def test_every_rate_becomes_24_khz(rate):
    clip = read_clip(made("WAV", "PCM_16", rate), LIMITS)
    assert clip.sample_rate == rate
    assert_same_tone(clip)


@pytest.mark.slow
@pytest.mark.parametrize("channels", range(1, 33))
def test_a_voice_on_one_of_many_channels_is_taken_alone(channels):
    samples = np.zeros((channels, 2 * 24_000), np.float32)
    samples[channels // 2] = tone()
    clip = read_clip(clips.file(samples, 24_000), LIMITS)
    assert clip.rms_dbfs == pytest.approx(-10.97, abs=0.05)
    assert clip.peak_dbfs == pytest.approx(-7.96, abs=0.01)
    assert clip.channels == channels
    told = f"Of the {channels} channels only {channels // 2 + 1} carries the voice"
    assert channels == 1 or clip.warnings[0].startswith(told)


def test_channels_that_cancel_each_other_out_are_not_folded():
    samples = clips.spoken()
    clip = read_clip(muxed_stereo(samples, -samples), LIMITS)
    assert clip.warnings == ("The channels cancel each other out; channel 1 was taken.",)
    alone = read_clip(clips.muxed(samples, 24_000, "ogg", "libopus"), LIMITS)
    assert clip.rms_dbfs == pytest.approx(alone.rms_dbfs, abs=0.5)


def muxed_stereo(left: clips.Samples, right: clips.Samples) -> bytes:
    return clips.muxed(np.concatenate([left, right]), 24_000, "ogg", "libopus")


def test_two_voices_on_two_channels_are_refused():
    one, other = clips.spoken("alice"), clips.spoken("bob")
    refused = refusal(clips.file(np.concatenate([one, other[:, : one.shape[1]]]), 24_000))
    assert refused.code == "audio-channels-differ"
    assert "Channels 1 and 2 hold different sounds" in str(refused)


@pytest.mark.parametrize(
    ("format", "codec", "channels"),
    [("OGG", "VORBIS", 2), ("webm", "libopus", 2), ("ipod", "aac", 6), ("FLAC", "PCM_16", 6)],
)
def test_channels_of_compressed_clips_are_folded_too(format, codec, channels):
    clip = read_clip(made(format, codec, 48_000, channels), LIMITS)
    assert clip.channels == channels
    assert clips.pitch(heard(clip), SAMPLE_RATE) == pytest.approx(440, abs=1)


def test_a_cover_picture_in_an_mp3_is_passed_over():
    mp3 = made("MP3", "MPEG_LAYER_III")
    for picture in (b"\x89PNG\r\n\x1a\n" + bytes(5_000), b"not a picture"):
        assert_same_tone(read_clip(clips.id3_tag(picture) + mp3, LIMITS), lossy=True)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "libopus")])
def test_the_sound_of_a_film_is_taken(container, codec):
    film = clips.muxed(tone(2.0, 48_000), 48_000, container, codec, picture=True)
    assert_same_tone(read_clip(film, LIMITS), lossy=True)


def test_a_clip_that_is_already_24_khz_mono_is_altered_in_level_alone():
    samples = tone()
    clip = read_clip(clips.file(samples, 24_000, subtype="FLOAT"), LIMITS)
    found, expected = heard(clip), samples[0] * 10 ** (clip.gain_db / 20)
    np.testing.assert_allclose(found[2_400:-2_400], expected[2_400:-2_400], atol=2e-4)
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_sound_above_12_khz_is_not_folded_back():
    samples = tone(2.0, 48_000) + tone(2.0, 48_000, hz=15_000)
    spectrum = np.abs(np.fft.rfft(heard(read_clip(clips.file(samples, 48_000), LIMITS))))
    bin_of_9_khz = 9_000 * 2
    assert spectrum[bin_of_9_khz - 20 : bin_of_9_khz + 20].max() < 1e-4 * spectrum.max()


def test_dc_is_removed_without_a_click():
    samples = tone(4.0, 48_000) + np.float32(0.3)
    clip = read_clip(clips.file(samples, 48_000), LIMITS)
    assert clip.dc_offset == pytest.approx(0.3, abs=1e-3)
    assert abs(heard(clip).mean()) < 1e-4
    assert np.abs(heard(clip)).max() < 1.1 * np.sqrt(2) * 0.1
    assert clip.warnings == ("A constant offset of 0.30 was removed; check the microphone.",)


def test_a_clip_is_conditioned_into_the_same_bytes_each_time():
    data = made("MP3", "MPEG_LAYER_III")
    first, second = read_clip(data, LIMITS), read_clip(data, LIMITS)
    assert first == second
    assert first.sha256 == sha256_of(data)


def test_the_peak_is_that_of_the_loudest_moment():
    samples = tone(4.0)
    samples[:, 24_000:] /= 10
    assert read_clip(clips.file(samples, 24_000), LIMITS).peak_dbfs == pytest.approx(
        -7.96, abs=0.01
    )


@pytest.mark.slow
def test_clips_read_at_once_do_not_mix():
    pitches = [200 + 50 * i for i in range(8)]
    data = [clips.file(tone(hz=hz), 24_000) for hz in pitches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: read_clip(each, LIMITS), data))
    assert [round(clips.pitch(heard(clip), SAMPLE_RATE)) for clip in found] == pitches


@pytest.mark.parametrize(
    ("samples", "rate", "warning"),
    [
        (tone(2.5), 24_000, "The clip lasts 2.5 s; 3 to 30 s make the best voice."),
        (tone(31.0), 24_000, "The clip lasts 31.0 s; 3 to 30 s make the best voice."),
        (tone(4.0, level=0.01), 24_000, "The clip is quiet (-43 dBFS); speak closer"),
        (tone(4.0, 8_000), 8_000, "The sample rate is 8,000 Hz; 16,000 Hz or more"),
        (np.clip(tone(4.0, level=2.0), -1, 1), 24_000, "67% of the samples are clipped"),
    ],
)
def test_a_poor_clip_is_taken_with_one_sentence_that_says_why(samples, rate, warning):
    (found,) = read_clip(clips.file(samples, rate), LIMITS).warnings
    assert found.startswith(warning)


def test_a_good_clip_has_no_warnings():
    assert read_clip(clips.file(tone(4.0), 24_000), LIMITS).warnings == ()


def test_silent_edges_are_cut_off_and_the_clip_says_how_much_is_left():
    samples = clips.joined(clips.silence(10), clips.spoken(), clips.silence(5))
    clip = read_clip(clips.file(samples, 24_000), LIMITS)
    assert clip.duration_s == pytest.approx(19.24)
    assert clip.speech_s == len(heard(clip)) / SAMPLE_RATE == pytest.approx(4.3, abs=0.2)
    assert clip.rms_dbfs == pytest.approx(-21.6, abs=0.3)
    assert clip.warnings == ("Silence was cut off: 9.9 s before the speech, 5.0 s after it.",)


def test_a_clip_that_is_nearly_all_silence_is_too_short():
    word = clips.spoken()[:, 12_000:18_000]
    data = clips.file(clips.joined(clips.silence(5), word, clips.silence(5)), 24_000)
    refused = refusal(data)
    assert refused.code == "audio-too-short"
    assert " s of it are more than silence, at least 1 s" in str(refused)


def noted(value: float) -> bytes:
    samples = tone()[0].astype(np.float64)
    samples[12_000] = value
    return clips.float_wav(samples)


def forged_rate_change() -> bytes:
    return made("MP3", "MPEG_LAYER_III", 44_100) + made("MP3", "MPEG_LAYER_III", 48_000)


@pytest.mark.parametrize(
    ("data", "code", "number"),
    [
        (b"", "audio-empty", "0 bytes"),
        (clips.raw_wav(b""), "audio-empty", ""),
        (clips.file(tone(0.5), 24_000), "audio-too-short", "0.50 s, at least 1 s"),
        (clips.file(tone(60.2), 24_000), "audio-too-long", "60 s are the most"),
        (noted(np.nan), "audio-not-finite", "at 0.500 s"),
        (noted(-np.inf), "audio-not-finite", "(-inf)"),
        (noted(1e300), "audio-too-loud", "at 0.500 s is 1e+300"),
        (noted(-4.5), "audio-too-loud", "is -4.5"),
        (clips.file(tone(level=0.001), 24_000), "audio-silent", "-63.0 dBFS"),
        (clips.file(tone(level=0), 24_000), "audio-silent", "-200.0 dBFS"),
        (clips.file(tone(level=0) + 0.25, 24_000), "audio-dc-only", "0.250"),
        (clips.file(tone(rate=3_999), 3_999), "audio-unsupported", "3,999 Hz"),
        (clips.raw_wav(bytes(99_000), channels=33), "audio-unsupported", "33 channels"),
        (clips.file(tone(), 24_000, subtype="IMA_ADPCM"), "audio-unsupported", "adpcm_ima_wav"),
        (forged_rate_change(), "audio-undecodable", "from 44,100 to 48,000 Hz"),
    ],
)
def test_a_refusal_has_its_code_and_its_number(data, code, number):
    refused = refusal(data)
    assert refused.code == code
    assert number in str(refused) and str(refused).endswith(".")


def test_sound_that_no_24_khz_clip_can_hold_is_silence():
    ultrasound = clips.file(tone(2.0, 96_000, hz=30_000), 96_000)
    assert refusal(ultrasound).code == "audio-silent"


def test_the_limits_of_length_are_the_callers():
    data = clips.file(tone(2.0), 24_000)
    assert refusal(data, ClipLimits(min_s=2.5)).code == "audio-too-short"
    assert refusal(data, ClipLimits(max_s=1.5)).code == "audio-too-long"
    assert read_clip(data, ClipLimits(min_s=2.0, max_s=2.0)).duration_s == 2.0


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is my voice",
        b"<!DOCTYPE html><audio src='a.wav'>",
        b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1/a.ts\n",
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"PK\3\4" + bytes(1000),
        b"\x7fELF" + bytes(1000),
        b"RIFF\0\0\0\0AVI LIST" + bytes(1000),
        b"\xff\xfeh\0e\0l\0l\0o\0",
        bytes(4096),
    ],
)
def test_what_is_not_audio_is_refused_with_the_formats_taken(data):
    refused = refusal(data)
    assert refused.code == "audio-unsupported"
    assert "WAV, FLAC, MP3" in str(refused)


def test_a_film_without_sound_is_refused():
    film = clips.muxed(None, 48_000, "matroska", "none", picture=True)
    assert "no audio track" in str(refusal(film))
