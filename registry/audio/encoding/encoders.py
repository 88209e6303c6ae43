"""Makes an audio file of mono float samples, in each format that speech is sent as.

A file is made as its samples come, which are 16-bit from here on. What is streamed can't tell its
length in its header; the whole file is the same bytes, with a header that does if the format has
one. It knows nothing of files, names or HTTP, and does not resample.
"""

import os
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from numpy.typing import NDArray

from registry.audio.formats import AudioFormat
from registry.audio.wave import PCM, UNKNOWN_SIZE, wave_header

if TYPE_CHECKING:
    from registry.audio.encoding.codecs import CodecStream

FLAC_HEADER_BYTES = 42  # the mark, and STREAMINFO, which libFLAC rewrites at the end


class Encoder:
    """Encodes raw PCM, and has what the other formats have in common."""

    def __init__(self, format: AudioFormat, model_rate: int) -> None:
        self.format = format
        self.sample_rate, self.bit_rate = format.rates(model_rate)
        self.frames = 0

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        """Return what is ready once samples (n,) are in; outside [-1, 1] they are clipped.

        Raises ValueError for another shape, or a value not finite.
        """
        pcm = to_int16(samples)
        self.frames += len(pcm)
        return self._packed(pcm)

    def finish(self) -> bytes:
        """Return what was held back until the end."""
        return b""

    def whole(self, streamed: bytes) -> bytes:
        """Make of all that was streamed a file whose header tells its length."""
        header = self._header()
        return header + streamed[len(header) :] if header else streamed

    def _packed(self, pcm: NDArray[np.int16]) -> bytes:
        return pcm.tobytes()

    def _header(self) -> bytes:
        return b""


class WaveEncoder(Encoder):
    """Encodes WAV: a header, then PCM."""

    def __init__(self, format: AudioFormat, model_rate: int) -> None:
        super().__init__(format, model_rate)
        self._ahead = wave_header(UNKNOWN_SIZE, self.sample_rate, PCM, bits=16)

    def _packed(self, pcm: NDArray[np.int16]) -> bytes:
        ahead, self._ahead = self._ahead, b""
        return ahead + pcm.tobytes()

    def _header(self) -> bytes:
        return wave_header(2 * self.frames, self.sample_rate, PCM, bits=16)


class FlacEncoder(Encoder):
    """Encodes FLAC, in blocks of 4,096 samples: a part may be empty, and the next one larger."""

    def __init__(self, format: AudioFormat, model_rate: int) -> None:
        super().__init__(format, model_rate)
        self._out = Outlet(FLAC_HEADER_BYTES)
        self._file = soundfile.SoundFile(
            self._out, "w", self.sample_rate, channels=1, format="FLAC", subtype="PCM_16"
        )

    def finish(self) -> bytes:
        self._file.close()
        return self._out.taken()

    def _packed(self, pcm: NDArray[np.int16]) -> bytes:
        self._file.write(pcm)
        return self._out.taken()

    def _header(self) -> bytes:
        return bytes(self._out.header)


class CodecEncoder(Encoder):
    """Has FFmpeg's codecs make the file, whose bytes are final from the first one on."""

    def finish(self) -> bytes:
        return self._stream.finish()

    def _packed(self, pcm: NDArray[np.int16]) -> bytes:
        return self._stream.feed(pcm)

    @cached_property
    def _stream(self) -> "CodecStream":
        from registry.audio.encoding.codecs import (
            CodecStream,  # PyAV costs 0.12 s, and wav needs none of it
        )

        return CodecStream(self.format.name, self.sample_rate, self.bit_rate)


class Outlet:
    """A file for an encoder to write.

    It keeps what nobody took yet, and its header, the one part that is written again.
    """

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


ENCODERS: dict[str, type[Encoder]] = {
    "wav": WaveEncoder,
    "flac": FlacEncoder,
    "pcm": Encoder,
    "mp3": CodecEncoder,
    "opus": CodecEncoder,
    "aac": CodecEncoder,
    "ulaw": CodecEncoder,
    "alaw": CodecEncoder,
}


def encoder(format: AudioFormat, model_rate: int) -> Encoder:
    """Make an encoder for samples at the format's own rate, or the model's if it names none."""
    return ENCODERS[format.name](format, model_rate)


def encode(samples: NDArray[np.float32], sample_rate: int, format: AudioFormat) -> bytes:
    """Return a whole file at once; raises what `feed` raises."""
    made = encoder(format, sample_rate)
    return made.whole(made.feed(samples) + made.finish())


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round to little-endian int16; what was int16 / 32768 comes back exactly."""
    refuse_unsound(samples)
    scaled = np.rint(samples.astype(np.float64) * 32768.0)
    return np.clip(scaled, -32768.0, 32767.0).astype("<i2")


def refuse_unsound(samples: NDArray[np.float32]) -> None:
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError("Samples must be finite and of shape (n,).")
