"""Mono float samples → the bytes of a whole audio file: wav and flac (16-bit), raw pcm (s16le).

It knows nothing of files, names or HTTP, and does not resample.
"""

import io
import struct

import numpy as np
import soundfile
from numpy.typing import NDArray

MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "pcm": "audio/pcm"}
PCM, IEEE_FLOAT = 1, 3  # RIFF format tags


def encode(samples: NDArray[np.float32], sample_rate: int, format: str) -> bytes:
    """Encode float samples of shape (n,); values outside [-1, 1] are clipped.

    Raises ValueError for a format not in MEDIA_TYPES, another shape, or a value not finite.
    """
    check_format(format)
    pcm = to_int16(samples)
    if format == "pcm":
        return pcm.tobytes()
    if format == "wav":
        return wave_file(pcm.tobytes(), sample_rate, PCM, bits=16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def media_type(format: str, sample_rate: int) -> str:
    """The Content-Type of a format; raw PCM says how to play it, as it has no header to do so."""
    check_format(format)
    suffix = f";rate={sample_rate};channels=1" if format == "pcm" else ""
    return MEDIA_TYPES[format] + suffix


def check_format(format: str) -> None:
    if format not in MEDIA_TYPES:
        raise ValueError(
            f"Unknown audio format {format!r}: choose one of {', '.join(MEDIA_TYPES)}."
        )


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Little-endian int16, rounded to the nearest; what was int16 / 32768 comes back exactly."""
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError("Samples must be finite and of shape (n,).")
    scaled = np.rint(samples.astype(np.float64) * 32768.0)
    return np.clip(scaled, -32768.0, 32767.0).astype("<i2")


def wave_file(pcm: bytes, sample_rate: int, tag: int, bits: int) -> bytes:
    """A mono RIFF file around little-endian samples; equal samples give equal bytes."""
    frame = bits // 8
    layout = struct.pack("<HHIIHH", tag, 1, sample_rate, sample_rate * frame, frame, bits)
    chunks = chunk(b"fmt ", layout if tag == PCM else layout + b"\0\0")
    if tag != PCM:
        chunks += chunk(b"fact", struct.pack("<I", len(pcm) // frame))
    return chunk(b"RIFF", b"WAVE" + chunks + chunk(b"data", pcm))


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content
