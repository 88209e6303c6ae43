"""What people wrap a sound in: tags, padding, tracks, odd headers, and files that break off."""

import struct

import clips
import numpy as np
import pytest
from clips import made, silence, spoken, tone

from registry.audio.decoder import examine
from registry.audio.decoding.track import told
from registry.audio.report import Bounds, Refusal, Report

BOUNDS = Bounds(1.0, 60.0, 24_000)
RATE = 24_000


def read(data: bytes) -> Report:
    return examine(data, BOUNDS)[0]


def refusal(data: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(data)
    return caught.value


PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
ID3 = clips.id3_tag(PICTURE)
ID3V1 = b"TAG" + b"a title".ljust(125, b"\0")


def ape(at_end: bool) -> bytes:
    item = struct.pack("<II", 5, 0) + b"Title\0alice"
    flags = 1 << 31 | (0 if at_end else 1 << 29)
    size = len(item) + 32
    head = b"APETAGEX" + struct.pack("<IIII", 2000, size, 1, 1 << 31 | 1 << 29) + bytes(8)
    foot = b"APETAGEX" + struct.pack("<IIII", 2000, size, 1, flags & ~(1 << 29)) + bytes(8)
    return head + item + foot


FORMATS = {
    "wav": made("WAV", "PCM_16"),
    "flac": made("FLAC", "PCM_16"),
    "mp3": made("MP3", "MPEG_LAYER_III"),
    "ogg": made("OGG", "VORBIS"),
    "m4a": made("ipod", "aac"),
    "webm": made("webm", "libopus"),
    "aac": made("adts", "aac"),
}
BEFORE = {
    "nothing": b"",
    "an ID3v2 tag": ID3,
    "two tags": ID3 + clips.id3_tag(b"small"),
    "a tag and padding": ID3 + bytes(5_000),
    "an APEv2 tag": ape(at_end=False),
    "zeros": bytes(777),
    "blank lines": b"\r\n\r\n",
    "a byte order mark": b"\xef\xbb\xbf",
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("format", FORMATS)
def test_what_stands_before_a_sound_is_passed_over(format, before):
    plain, found = read(FORMATS[format]), read(BEFORE[before] + FORMATS[format])
    assert found == plain
    assert found.notes == []


@pytest.mark.parametrize("after", [ID3V1, ape(at_end=True), ape(at_end=True) + ID3V1])
@pytest.mark.parametrize("format", ["flac", "mp3", "aac"])
def test_what_stands_behind_a_sound_is_no_damage(format, after):
    found = read(FORMATS[format] + after)
    assert (found.damaged_packets, found.notes) == (0, [])


@pytest.mark.parametrize("format", ["mp3", "aac"])
@pytest.mark.parametrize("rubbish", [b"\xff\xfb\x90rubbish" * 9, b"some text, as of a header\n"])
def test_rubbish_before_the_first_frame_is_passed_over(format, rubbish):
    assert read(rubbish + FORMATS[format]).duration_s == read(FORMATS[format]).duration_s


def test_a_tag_that_lies_about_its_size_does_not_hide_the_sound():
    lying = ID3[:6] + b"\x7f\x7f\x7f\x7f" + ID3[10:]
    assert read(lying + FORMATS["mp3"]).media_type == "audio/mpeg"


def test_a_tag_alone_is_no_sound():
    assert refusal(ID3).code == "audio-undecodable"
    assert "no sound follows" in str(refusal(ID3 + b"words"))


def test_an_mp3_in_a_wav_is_taken():
    mp3 = clips.muxed(tone(4.0, 44_100), 44_100, "wav", "libmp3lame")
    assert mp3[:4] == b"RIFF"
    found = read(mp3)
    assert (found.media_type, found.duration_s) == ("audio/wav", pytest.approx(4.0, abs=0.1))


@pytest.mark.parametrize("container", ["mov", "3gp", "mp4", "ipod", "ismv"])
def test_every_brand_of_mp4_is_taken(container):
    data = clips.muxed(tone(2.0, 44_100), 44_100, container, "aac")
    assert read(data).media_type == "audio/mp4"


def test_a_film_without_a_brand_is_taken():
    data = clips.muxed(tone(2.0, 44_100), 44_100, "mov", "aac")
    brand = int.from_bytes(data[:4], "big")
    assert data[4:8] == b"ftyp"
    free = struct.pack(">I", brand) + b"free" + bytes(brand - 8)  # offsets stay as they are
    assert read(free + data[brand:]).media_type == "audio/mp4"


SILENT = silence(4.24)


@pytest.mark.parametrize("container", ["ipod", "matroska", "mov"])
@pytest.mark.parametrize(
    ("first", "second", "default", "taken"),
    [
        (SILENT, spoken(), 1, 2),
        (SILENT, spoken(), 0, 2),
        (spoken(), SILENT, 1, 1),
        (spoken(), spoken("bob"), 0, 1),
        (spoken(), spoken("bob"), 1, 2),
    ],
)
def test_the_default_track_is_taken_unless_it_is_silent(container, first, second, default, taken):
    found = read(clips.two_tracks(first, second, container, "aac", default))
    assert found.notes == [f"The file holds 2 audio tracks; track {taken} was taken."]
    voice = (first, second)[taken - 1]
    assert found.rms_dbfs == pytest.approx(clips.loudness(voice), abs=0.3)


LOSSY = [
    ("ipod", "aac", 8_000),
    ("ipod", "aac", 44_100),
    ("adts", "aac", 16_000),
    ("mp3", "libmp3lame", 8_000),
    ("mp3", "libmp3lame", 44_100),
    ("ogg", "libopus", 48_000),
    ("webm", "libopus", 48_000),
]


@pytest.mark.slow
@pytest.mark.parametrize(("container", "codec", "rate"), LOSSY)
def test_the_padding_of_a_codec_is_not_counted_at_the_limits(container, codec, rate):
    longest = read(clips.muxed(tone(60.0, rate), rate, container, codec))
    assert longest.speech_s <= 60.0
    assert read(clips.muxed(tone(1.0, rate), rate, container, codec)).duration_s >= 1.0
    assert refusal(clips.muxed(tone(60.5, rate), rate, container, codec)).code == "audio-too-long"
    assert refusal(clips.muxed(tone(0.7, rate), rate, container, codec)).code == "audio-too-short"


@pytest.mark.parametrize(
    ("seconds", "limit", "text"),
    [
        (0.5, 1.0, "0.50"),
        (0.9985, 1.0, "0.999"),
        (0.999958, 1.0, "0.99996"),
        (60.04, 60.0, "60.04"),
        (60.0001, 60.0, "60.0001"),
    ],
)
def test_a_figure_never_contradicts_its_sentence(seconds, limit, text):
    assert told(seconds, limit) == text


def test_a_clip_just_under_the_limit_is_told_with_enough_digits():
    short = refusal(clips.file(tone()[:, :23_964], RATE))
    assert str(short) == "The clip is too short: 0.999 s, at least 1 s are needed."
    long = refusal(clips.file(tone(61.0)[:, : 60 * RATE + 1], RATE))
    assert "at least 60.00004 s, 60 s are the most" in str(long)


CUT = {
    "wav": clips.file(tone(4.2), RATE),
    "wav float": clips.file(tone(4.2), RATE, subtype="FLOAT"),
    "rf64": clips.file(tone(4.2), RATE, "RF64"),
    "flac": clips.file(tone(4.2), RATE, "FLAC"),
    "mp3": clips.file(tone(4.2), RATE, "MP3", "MPEG_LAYER_III"),
    "mp3 by lame": clips.muxed(tone(4.2), RATE, "mp3", "libmp3lame"),
    "webm": clips.muxed(tone(4.2), RATE, "webm", "libopus"),
    "matroska": clips.muxed(tone(4.2), RATE, "matroska", "flac"),
}
TORN = {
    "vorbis": clips.file(spoken(), RATE, "OGG", "VORBIS"),
    "opus": clips.muxed(spoken(), RATE, "ogg", "libopus"),
    "adts": clips.muxed(spoken(), RATE, "adts", "aac"),
}


@pytest.mark.parametrize("format", CUT)
def test_a_file_that_ends_early_is_taken_with_a_note_unless_most_is_missing(format):
    data = CUT[format]
    assert read(data).notes == []
    found = read(data[: len(data) * 7 // 10])
    assert found.damaged_packets == 0
    (note,) = found.notes
    told = f"The file ends early: its header promises 4.2 s, {found.duration_s:.1f} s are there."
    assert note == told
    refused = refusal(data[: len(data) * 4 // 10])
    assert refused.code == "audio-cut-off"
    assert "its header promises 4.2 s" in str(refused)


@pytest.mark.parametrize("format", TORN)
def test_a_stream_that_ends_within_a_piece_is_taken_with_a_note(format):
    data = TORN[format]
    assert read(data).notes == []
    (note,) = read(data[: len(data) * 7 // 10]).notes
    assert note.startswith("The file ends early: its last piece is not whole; ")


def test_an_mp4_without_its_index_is_refused_as_cut_off():
    data = made("ipod", "aac")
    assert "was cut off: its index" in str(refusal(data[: len(data) * 7 // 10]))


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_recording_whose_sizes_were_never_written_is_whole(size):
    data = clips.raw_wav((tone(4.2)[0] * 32_767).astype("<i2").tobytes(), claimed=size)
    found = read(data)
    assert (found.duration_s, found.notes) == (4.2, [])


def test_a_film_that_is_longer_than_its_sound_is_not_cut_off():
    film = clips.muxed(tone(2.0, 48_000), 48_000, "matroska", "libopus", picture=True)
    assert read(film).notes == []


def padded_wav(samples: np.ndarray, bits: int, valid: int, low: bool, extensible: bool) -> bytes:
    """A WAV of `valid` bits in containers of `bits`, at the upper end or at the lower one."""
    values = np.round(samples * (2 ** (valid - 1) - 1)).astype("<i4") << (
        0 if low else bits - valid
    )
    data = values.astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    align = bits // 8
    tag, said = (0xFFFE, bits) if extensible else (1, valid)
    layout = struct.pack("<HHIIHH", tag, 1, RATE, RATE * align, align, said)
    if extensible:
        guid = struct.pack("<IHH", 1, 0, 16) + bytes.fromhex("800000aa00389b71")
        layout += struct.pack("<HHI", 22, valid, 4) + guid
    body = b"fmt " + struct.pack("<I", len(layout)) + layout
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


@pytest.mark.parametrize(("bits", "valid"), [(32, 24), (32, 20), (32, 18), (24, 20), (16, 12)])
@pytest.mark.parametrize("extensible", [True, False])
@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("level", [0.4, 0.004])
def test_padded_samples_are_read_at_their_level(bits, valid, extensible, low, level):
    found = read(padded_wav(tone(level=level)[0], bits, valid, low, extensible))
    assert found.peak_dbfs == pytest.approx(20 * np.log10(level), abs=0.3)
    assert (found.duration_s, found.notes) == (2.0, [])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_extensible_wav_is_read_at_its_level(subtype, channels):
    found = read(clips.file(tone(channels=channels), RATE, "WAVEX", subtype))
    assert found.peak_dbfs == pytest.approx(-7.96, abs=0.2)
    assert found.notes == []


@pytest.mark.parametrize("rates", [(44_100, 48_000), (48_000, 22_050)])
def test_a_chained_ogg_of_another_rate_is_a_sentence(rates):
    data = b"".join(clips.file(tone(2.0, rate), rate, "OGG", "VORBIS") for rate in rates)
    refused = refusal(data)
    assert f"from {rates[0]:,} to {rates[1]:,} Hz within the clip" in str(refused)


def test_a_chained_ogg_of_the_same_rate_is_taken_whole():
    data = clips.file(tone(2.0, 48_000), 48_000, "OGG", "VORBIS")
    assert read(data + data).duration_s == pytest.approx(4.0, abs=0.1)
