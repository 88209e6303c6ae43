"""Mono float samples → the bytes of an audio file: wav and flac (16-bit), raw pcm (s16le).

A file is made as its samples come. What is streamed can't tell its length in its header; the whole
file is the same bytes with a header that does. It knows nothing of files, names or HTTP, and does
not resample.
"""

import os
import struct

import numpy as np
import soundfile
from numpy.typing import NDArray

from registry.audio.formats import SPEECH, SpeechFormat

PCM, IEEE_FLOAT = 1, 3  # RIFF format tags
UNKNOWN_SIZE = 0xFFFFFFFF  # of a RIFF chunk that ends with the stream
FLAC_HEADER_BYTES = 42  # the mark, and STREAMINFO, which libFLAC rewrites at the end


class Encoder:
    """Raw PCM as it comes, and what the other formats have in common."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.frames = 0

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        """What is ready once these samples of shape (n,) are in; outside [-1, 1] they are clipped.

        Raises ValueError for another shape, or a value not finite.
        """
        pcm = to_int16(samples)
        self.frames += len(pcm)
        return self._packed(pcm)

    def finish(self) -> bytes:
        """What was held back until the end."""
        return b""

    def whole(self, streamed: bytes) -> bytes:
        """All that was streamed, as a file whose header tells its length."""
        header = self._header()
        return header + streamed[len(header) :]

    def _packed(self, pcm: NDArray[np.int16]) -> bytes:
        return pcm.tobytes()

    def _header(self) -> bytes:
        return b""


class WaveEncoder(Encoder):
    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        self._ahead = wave_header(UNKNOWN_SIZE, sample_rate, PCM, bits=16)

    def _packed(self, pcm: NDArray[np.int16]) -> bytes:
        ahead, self._ahead = self._ahead, b""
        return ahead + pcm.tobytes()

    def _header(self) -> bytes:
        return wave_header(2 * self.frames, self.sample_rate, PCM, bits=16)


class FlacEncoder(Encoder):
    """libFLAC gives out blocks of 4,096 samples: a part may be empty, and the next one larger."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        self._out = Outlet(FLAC_HEADER_BYTES)
        self._file = soundfile.SoundFile(
            self._out, "w", sample_rate, channels=1, format="FLAC", subtype="PCM_16"
        )

    def finish(self) -> bytes:
        self._file.close()
        return self._out.taken()

    def _packed(self, pcm: NDArray[np.int16]) -> bytes:
        self._file.write(pcm)
        return self._out.taken()

    def _header(self) -> bytes:
        return bytes(self._out.header)


class Outlet:
    """A file for libsndfile to write. It keeps what nobody took yet, and its header, the one part
    that is written again."""

    def __init__(self, header_bytes: int) -> None:
        self.header = bytearray(header_bytes)
        self._fresh = bytearray()
        self._at = self._end = 0

    def write(self, part: bytes) -> int:
        if self._at == self._end:
            self._fresh += part
        again = part[: max(0, len(self.header) - self._at)]
        self.header[self._at : self._at + len(again)] = again
        self._at += len(part)
        self._end = max(self._end, self._at)
        return len(part)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        fresh, self._fresh = bytes(self._fresh), bytearray()
        return fresh


ENCODERS: dict[SpeechFormat, type[Encoder]] = {
    "wav": WaveEncoder,
    "flac": FlacEncoder,
    "pcm": Encoder,
}


def encoder(format: SpeechFormat, sample_rate: int) -> Encoder:
    return ENCODERS[format](sample_rate)


def encode(samples: NDArray[np.float32], sample_rate: int, format: SpeechFormat) -> bytes:
    """The whole file at once; raises what `feed` raises."""
    made = encoder(format, sample_rate)
    return made.whole(made.feed(samples) + made.finish())


def media_type(format: SpeechFormat, sample_rate: int) -> str:
    """The Content-Type of a format; raw PCM says how to play it, as it has no header to do so."""
    suffix = f";rate={sample_rate};channels=1" if format == "pcm" else ""
    return SPEECH[format].media_type + suffix


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Little-endian int16, rounded to the nearest; what was int16 / 32768 comes back exactly."""
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError("Samples must be finite and of shape (n,).")
    scaled = np.rint(samples.astype(np.float64) * 32768.0)
    return np.clip(scaled, -32768.0, 32767.0).astype("<i2")


def wave_file(pcm: bytes, sample_rate: int, tag: int, bits: int) -> bytes:
    """A mono RIFF file around little-endian samples; equal samples give equal bytes."""
    return wave_header(len(pcm), sample_rate, tag, bits) + pcm


def wave_header(size: int, sample_rate: int, tag: int, bits: int) -> bytes:
    """All of the file that comes before its `size` bytes of samples."""
    frame = bits // 8
    layout = struct.pack("<HHIIHH", tag, 1, sample_rate, sample_rate * frame, frame, bits)
    content = b"WAVE" + chunk(b"fmt ", layout if tag == PCM else layout + b"\0\0")
    if tag != PCM:
        content += chunk(b"fact", struct.pack("<I", size // frame))
    content += b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(len(content) + size, UNKNOWN_SIZE)) + content


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content
