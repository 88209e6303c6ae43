"""Clips for the tests: tones, and the files that people or attackers would wrap around them."""

import io
import struct
from fractions import Fraction
from importlib import resources
from typing import Any

import av
import numpy as np
import soundfile
from av import AudioFrame, VideoFrame
from av.stream import Disposition
from numpy.typing import NDArray

Samples = NDArray[np.float32]  # (channels, frames), in [-1, 1]
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
WAVES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
LIBSNDFILE = [  # format, codec, rate, the media type that it is taken for
    ("RF64", "PCM_16", 44_100, "audio/wav"),
    ("FLAC", "PCM_S8", 22_050, "audio/flac"),
    ("FLAC", "PCM_16", 44_100, "audio/flac"),
    ("FLAC", "PCM_24", 96_000, "audio/flac"),
    ("OGG", "VORBIS", 44_100, "audio/ogg"),
    ("OGG", "OPUS", 48_000, "audio/ogg"),
    ("MP3", "MPEG_LAYER_III", 44_100, "audio/mpeg"),
    ("MP3", "MPEG_LAYER_III", 16_000, "audio/mpeg"),
]
FFMPEG = [
    ("ipod", "aac", 44_100, "audio/mp4"),
    ("ipod", "alac", 44_100, "audio/mp4"),
    ("mp4", "aac", 48_000, "audio/mp4"),
    ("mov", "pcm_s16be", 48_000, "audio/mp4"),
    ("webm", "libopus", 48_000, "audio/webm"),
    ("matroska", "flac", 44_100, "audio/matroska"),
    ("ogg", "flac", 44_100, "audio/ogg"),
]


def tone(
    seconds: float = 2.0,
    rate: int = 24_000,
    channels: int = 1,
    hz: float = 440.0,
    level: float = 0.4,
) -> Samples:
    """A sine of peak `level`, the same in every channel."""
    wave = level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def spoken(name: str = "alice") -> Samples:
    """A bundled clip of speech, (1, frames) at 24 kHz: 4.24 s of alice, 4.32 s of bob."""
    content = resources.files("cli.data").joinpath(f"{name}.wav").read_bytes()
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    assert rate == 24_000
    return samples.T


def silence(seconds: float, rate: int = 24_000) -> Samples:
    return np.zeros((1, round(seconds * rate)), np.float32)


def joined(*parts: Samples) -> Samples:
    return np.concatenate(parts, axis=1)


def file(samples: Samples, rate: int, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """A file by libsndfile, written in blocks because its Vorbis encoder crashes on long ones."""
    buffer = io.BytesIO()
    shape = {"samplerate": rate, "channels": len(samples), "format": format, "subtype": subtype}
    with soundfile.SoundFile(buffer, "w", **shape) as out:
        for start in range(0, samples.shape[1], 65_536):
            out.write(samples[:, start : start + 65_536].T)
    return buffer.getvalue()


def muxed(
    samples: Samples | None, rate: int, container: str, codec: str, picture: bool = False
) -> bytes:
    """A file by FFmpeg: an audio track unless there are no samples, a video track if `picture`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        tracks = [video_track(out)] if picture else []
        if samples is not None:
            tracks.append(audio_track(out, samples, rate, codec))
        for stream, frame in tracks:
            packets = [*stream.encode(frame), *stream.encode(None)]
            out.mux([packet for packet in packets if packet.size])
    return buffer.getvalue()


def two_tracks(first: Samples, second: Samples, container: str, codec: str, default: int) -> bytes:
    """A file by FFmpeg of two audio tracks at 24 kHz, of which the one at `default` is marked."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        tracks = [audio_track(out, samples, 24_000, codec) for samples in (first, second)]
        for at, (stream, _) in enumerate(tracks):
            stream.disposition = Disposition.default if at == default else Disposition(0)
        for stream, frame in tracks:
            out.mux([p for p in (*stream.encode(frame), *stream.encode(None)) if p.size])
    return buffer.getvalue()


def audio_track(out: Any, samples: Samples, rate: int, codec: str) -> tuple[Any, AudioFrame]:
    layout = LAYOUTS[len(samples)]
    frame = AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate = rate
    return out.add_stream(codec, rate=rate, layout=layout), frame


def video_track(out: Any) -> tuple[Any, VideoFrame]:
    stream = out.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    frame = VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    return stream, frame


def made(format: str, codec: str, rate: int = 48_000, channels: int = 1) -> bytes:
    """Two seconds of tone(), by libsndfile if `format` is in capitals, else by FFmpeg."""
    make = file if format.isupper() else muxed
    return make(tone(2.0, rate, channels), rate, format, codec)


def id3_tag(picture: bytes) -> bytes:
    """An ID3v2.3 tag with a cover picture."""
    body = b"\0image/png\0\3\0" + picture
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame


def raw_wav(
    data: bytes, rate: int = 24_000, channels: int = 1, bits: int = 16, claimed: int | None = None
) -> bytes:
    """A 16-byte-header WAV that may lie about all it says; `claimed` is the size of its data."""
    size = len(data) if claimed is None else claimed
    frame = channels * bits // 8
    tag = 3 if bits >= 32 else 1
    numbers = (tag, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits)
    layout = b"fmt " + struct.pack("<IHHIIHH", 16, *numbers)
    riff = b"RIFF" + struct.pack("<I", min(size + 36, 0xFFFFFFFF)) + b"WAVE"
    return riff + layout + b"data" + struct.pack("<I", size) + data


def float_wav(samples: NDArray[np.float64], rate: int = 24_000) -> bytes:
    """A mono 64-bit float WAV of exactly these values, whatever they are."""
    return raw_wav(samples.astype("<f8").tobytes(), rate, bits=64)


def pitch(samples: NDArray[Any], rate: int) -> float:
    """The frequency of the highest peak in the spectrum of shape (n,) samples, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * rate / len(samples)


def loudness(samples: NDArray[Any]) -> float:
    """RMS in dBFS."""
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-20))
