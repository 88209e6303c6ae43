"""Clips as other programs made them when somebody reported a bug, out of the bundled one."""

import io
import struct
from collections.abc import Callable
from importlib import resources
from typing import Any

import av
import numpy as np
import soundfile
from av import AudioFrame
from av.stream import Disposition
from clips import Samples

ALICE = resources.files("cli.data").joinpath("alice.wav").read_bytes()
WORDS = resources.files("cli.data").joinpath("alice.txt").read_text().strip()
SECONDS = 4.24
RATE = 24_000
BIT_RATE = 32_000


def alice() -> Samples:
    samples, rate = soundfile.read(io.BytesIO(ALICE), dtype="float32")
    assert rate == RATE
    return np.ascontiguousarray(samples[None, :])


def container(format: str, codec: str, tracks: list[Samples], **options: str) -> bytes:
    """A file by FFmpeg with one audio track for each; the last one is the default track."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format, options=options) as out:
        streams = [out.add_stream(codec, rate=RATE, layout=layout(t)) for t in tracks]
        for stream in streams:
            stream.bit_rate, stream.disposition = BIT_RATE, Disposition(0)
        streams[-1].disposition = Disposition.default
        for stream, samples in zip(streams, tracks, strict=True):
            encode(out, stream, samples)
    return buffer.getvalue()


def layout(samples: Samples) -> str:
    return {1: "mono", 2: "stereo"}[len(samples)]


def encode(out: Any, stream: Any, samples: Samples) -> None:
    frame = AudioFrame.from_ndarray(samples, format="fltp", layout=layout(samples))
    frame.sample_rate = RATE
    out.mux([*stream.encode(frame), *stream.encode(None)])


def one_channel_inverted() -> bytes:
    return container("ogg", "libopus", [np.concatenate([alice(), -alice()])])


def id3_before() -> bytes:
    """A tagger for MP3 was run over a FLAC."""
    buffer = io.BytesIO()
    soundfile.write(buffer, alice()[0], RATE, format="FLAC")
    title = b"TIT2" + struct.pack(">IH", 7, 0) + b"\0A clip"
    tag = title.ljust(10_000, b"\0")
    size = bytes(len(tag) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + tag + buffer.getvalue()


def second_track_is_the_default() -> bytes:
    """As screen recorders do it: an empty microphone, then what was played."""
    return container("ipod", "aac", [np.zeros_like(alice()), alice()])


def sixty_seconds() -> bytes:
    """The codec's padding makes a few milliseconds more of it."""
    samples = np.resize(alice()[0], 60 * RATE)[None, :]
    return container("ipod", "aac", [samples])


def sizes_never_written() -> bytes:
    """A recorder that wrote to a pipe, and could not go back to its header."""
    pcm = (alice()[0] * 32767).astype("<i2").tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE * 2, 2, 16)
    unknown = b"\xff\xff\xff\xff"
    return b"RIFF" + unknown + b"WAVEfmt " + form + b"data" + unknown + pcm


def recorder_live() -> bytes:
    """As MediaRecorder of a browser sends it: no length, no cues."""
    return container("webm", "libopus", [alice()], live="1")


FILES: dict[str, Callable[[], bytes]] = {
    "o1-one-channel-inverted.opus": one_channel_inverted,
    "o2a-id3-before.flac": id3_before,
    "o2b-second-track-is-the-default.m4a": second_track_is_the_default,
    "o2c-sixty-seconds.m4a": sixty_seconds,
    "p1-sizes-never-written.wav": sizes_never_written,
    "p2-recorder-live.webm": recorder_live,
}
