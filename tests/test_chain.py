"""Recordings in a row in one file: read whole and at their pitch, or refused in a sentence."""

import struct

import clips
import numpy as np
import pytest
from clips import tone

from registry.audio.decoder import examine
from registry.audio.decoding.chain import kinds_in_row
from registry.audio.report import Bounds, Refusal

RATE = 24_000
BOUNDS = Bounds(1.0, 60.0, RATE)

Parts = tuple[str, int, int]  # codec, rate, channels

OGG = ("VORBIS", "OPUS")
REFUSED = [
    ("ogg", ("VORBIS", 48_000, 1), ("VORBIS", 24_000, 1)),
    ("ogg", ("VORBIS", 24_000, 1), ("VORBIS", 48_000, 1)),
    ("ogg", ("VORBIS", 48_000, 1), ("VORBIS", 48_000, 2)),
    ("ogg", ("OPUS", 48_000, 1), ("OPUS", 48_000, 2)),
    ("ogg", ("OPUS", 48_000, 2), ("OPUS", 48_000, 1)),
    ("ogg", ("OPUS", 48_000, 1), ("VORBIS", 48_000, 1)),
    ("ogg", ("VORBIS", 24_000, 1), ("OPUS", 48_000, 1)),
    ("ogg", ("flac", 24_000, 1), ("flac", 48_000, 1)),
    ("ogg", ("flac", 48_000, 1), ("flac", 24_000, 1)),
    ("ogg", ("OPUS", 48_000, 1), ("flac", 48_000, 1)),
    ("matroska", ("pcm_s16le", 24_000, 1), ("pcm_s16le", 48_000, 1)),
    ("matroska", ("pcm_s16le", 48_000, 1), ("pcm_s16le", 24_000, 1)),
    ("matroska", ("pcm_s16le", 24_000, 1), ("pcm_s16le", 24_000, 2)),
    ("matroska", ("pcm_f32le", 24_000, 1), ("pcm_s16le", 24_000, 1)),
    ("matroska", ("alac", 24_000, 1), ("alac", 48_000, 1)),
    ("matroska", ("aac", 24_000, 2), ("aac", 24_000, 1)),
    ("matroska", ("flac", 24_000, 1), ("flac", 48_000, 1)),
    ("matroska", ("libopus", 48_000, 1), ("pcm_s16le", 24_000, 1)),
]
TAKEN = [
    ("ogg", ("VORBIS", 48_000, 2), ("VORBIS", 48_000, 2)),
    ("ogg", ("OPUS", 24_000, 1), ("OPUS", 48_000, 1)),
    ("ogg", ("flac", 44_100, 1), ("flac", 44_100, 2)),
    ("matroska", ("pcm_s16le", 24_000, 2), ("pcm_s16le", 24_000, 2)),
    ("matroska", ("flac", 24_000, 1), ("flac", 24_000, 2)),
    ("matroska", ("aac", 44_100, 1), ("aac", 44_100, 1)),
    ("webm", ("libopus", 48_000, 1), ("libopus", 48_000, 2)),
    ("mp3", ("mp3", 44_100, 1), ("mp3", 44_100, 2)),
    ("adts", ("aac", 44_100, 1), ("aac", 44_100, 2)),
]


def recording(container: str, part: Parts) -> bytes:
    codec, rate, channels = part
    samples = tone(2.0, rate, channels)
    if codec in OGG:
        return clips.file(samples, rate, "OGG", codec)
    return clips.muxed(samples, rate, container, codec)


@pytest.mark.parametrize(("container", "first", "second"), REFUSED)
def test_recordings_of_different_kinds_in_a_row_are_a_sentence(
    container: str, first: Parts, second: Parts
) -> None:
    data = recording(container, first) + recording(container, second)
    with pytest.raises(Refusal) as caught:
        examine(data, BOUNDS)
    assert caught.value.code == "audio-undecodable"
    said = str(caught.value)
    if first[1] == second[1]:
        assert "several recordings in a row" in said
    else:
        assert f"changes from {first[1]:,} to {second[1]:,} Hz within the clip" in said


@pytest.mark.parametrize(("container", "first", "second"), TAKEN)
def test_recordings_of_one_kind_in_a_row_are_heard_whole(
    container: str, first: Parts, second: Parts
) -> None:
    data = recording(container, first) + recording(container, second)
    report, pcm = examine(data, BOUNDS)
    assert report.duration_s == pytest.approx(4.0, abs=0.1)
    samples = np.frombuffer(pcm, "<f4")
    for half in (samples[: len(samples) // 2], samples[len(samples) // 2 :]):
        assert clips.pitch(half, RATE) == pytest.approx(440, abs=2)


def test_tracks_that_are_played_at_once_are_no_row() -> None:
    one, other = tone(2.0, RATE, 1), tone(2.0, RATE, 2)
    for container, codec in (("matroska", "pcm_s16le"), ("ogg", "flac")):
        data = clips.two_tracks(one, other, container, codec, default=0)
        assert len(kinds_in_row(data, "ogg" if container == "ogg" else container)) == 1
        assert examine(data, BOUNDS)[0].duration_s == 2.0


@pytest.mark.parametrize("packed", [b"", b"\0" * 3, struct.pack(">d", np.nan), b"\xff" * 8])
def test_a_rate_that_is_no_number_is_none(packed: bytes) -> None:
    audio = b"\xe1" + bytes([0x80 | len(packed) + 2]) + b"\xb5" + bytes([0x80 | len(packed)])
    track = b"\xae" + bytes([0x80 | len(audio + packed)]) + audio + packed
    tracks = b"\x16\x54\xae\x6b" + bytes([0x80 | len(track)]) + track
    segment = b"\x18\x53\x80\x67\xff" + tracks
    assert [kind.rate for kind in kinds_in_row(segment * 2, "matroska")] == [0, 0]


@pytest.mark.parametrize(("container", "codec"), [("ogg", "flac"), ("matroska", "pcm_s16le")])
def test_any_beginning_of_a_file_has_no_more_kinds_than_the_file(
    container: str, codec: str
) -> None:
    whole = clips.muxed(tone(1.0), RATE, container, codec) * 2
    found = [len(kinds_in_row(whole[:end], container)) for end in range(0, len(whole), 37)]
    assert found == sorted(found) and set(found) == {0, 1, 2}
